"""Training on several processes: ranks and their collectives, DDP and FSDP2."""
