"""Token ids on disk: the shard format (`shards.py`), the manifest of a prepared folder
(`manifest.py`), and the data of a run (`corpus.py`). `prepare/` turns text into shards, `batches/`
turns shards into batches.
"""
