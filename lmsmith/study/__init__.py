"""Studies: sweeps, ablations and scaling laws whose verdicts state their noise."""
