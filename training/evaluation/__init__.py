"""What an LLM answers from each kind of prefix: rows, protocols, scores, sizes, intervals, tables."""
