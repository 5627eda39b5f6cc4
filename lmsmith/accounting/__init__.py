"""What a run costs: predicted from its config, measured on this machine."""
