"""HTML reports on runs, model comparisons and tokenizers."""
