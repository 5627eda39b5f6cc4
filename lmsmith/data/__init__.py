"""Token ids on disk: their format (`shards.py`), what a folder holds (`manifest.py`), and what a
run is trained on (`corpus.py`). `prepare/` makes shards of text, `batches/` makes batches of
shards."""
