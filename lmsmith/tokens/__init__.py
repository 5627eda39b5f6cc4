"""Tokenizers: encode text to ids and decode ids to text."""
