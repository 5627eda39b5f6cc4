"""Models of other programs into run folders, and out of them."""
