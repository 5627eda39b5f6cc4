"""Hooks run between training steps. Subclass `Hook` to write one; `order.py` has their order."""

from lmsmith.train.hooks.hook import Context, Hook, LastStep

__all__ = ["Context", "Hook", "LastStep"]
