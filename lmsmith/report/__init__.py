"""Runs, comparisons and tokenizers as HTML pages: tables, plots, reports."""
