"""Text generation: sampling and decoding."""
