"""Training: turns a config and a corpus into a run folder."""
