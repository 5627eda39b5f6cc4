"""What this machine offers: cores and memory that the process may use, and measured speeds."""
