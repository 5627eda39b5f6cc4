"""Text -> token files: shards of a prepared folder (`build.py`), or what one run is trained on
(`run_sources.py`).

Modules are imported one by one, because the processes that encode need few of them.
"""
