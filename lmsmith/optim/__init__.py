"""Optimizers, their learning rates and schedules."""
