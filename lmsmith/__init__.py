"""lmsmith makes language models from text: tokenizer, shards, training, evaluation, generation,
export.
"""

__version__ = "0.1.0"
