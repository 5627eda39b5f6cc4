"""The architectures of transformers that lmsmith reads and writes, one file per family."""
