"""Models in NumPy only, with every gradient written out. The PyTorch models are checked against
them.
"""
