"""Files of texts to folders of frames: read, plan, run shards, commit, finish.

    files -> plan (rows, digests, shards) -> run_shard(k): read, compress, write, commit -> manifest.json

One shard is the unit of work: nothing is batched across shards, so a shard's bytes depend only on its rows.
"""
