"""Text -> token files: the shards of a prepared folder (`build.py`), or the data of one run
(`run_sources.py`).

Nothing is imported here, because the encoding processes need only a few of the modules.
"""
