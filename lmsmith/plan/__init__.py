"""Costs of a run before it starts: parameters, FLOPs, memory, time, money."""
