"""What runs between training steps: `Hook` to write your own; `order.py` has the order."""

from lmsmith.train.hooks.hook import Context, Hook, LastStep

__all__ = ["Context", "Hook", "LastStep"]
