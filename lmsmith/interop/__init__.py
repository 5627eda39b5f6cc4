"""Import and export of models: Hugging Face transformers and llm.c."""
