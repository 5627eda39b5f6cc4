"""Ids on disk to batches."""
