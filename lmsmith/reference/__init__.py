"""The glass engine: models in NumPy alone, every gradient written out; what the fast engine is
held against.
"""
