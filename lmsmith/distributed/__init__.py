"""One run on many processes: ranks and their collectives, DDP and FSDP2."""
