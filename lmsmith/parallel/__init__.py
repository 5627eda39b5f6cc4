"""One run on many processes: who they are, and a model spread over them."""
