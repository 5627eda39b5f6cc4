"""The machine: cores and memory that the process may use, and measured speeds."""
