"""The target value that is ignored, shared by batches, losses and the NumPy models."""

IGNORED = -1
"""A target that adds nothing to the loss: padding, or a position that is masked out."""
