"""Runs side by side: tables, plots, reports."""
