"""Many rows: read JSONL or Parquet, encode, write Parquet of frames."""
