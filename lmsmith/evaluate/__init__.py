"""Evaluation: likelihood of a text, and comparisons with other models and compressors."""
