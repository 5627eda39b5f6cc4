"""What a target may be besides a token id, in batches, losses and NumPy's models alike."""

IGNORED = -1
"""A target that costs no loss: padding, or a position that is masked out."""
