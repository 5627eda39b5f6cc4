"""The speeds of a machine that does not exist, for predictions."""

from lmsmith.plan.here import Measured

SPEEDS = Measured(
    name="a machine",
    threads=1,
    date="2026-01-01",
    memory=8e9,
    products={"float32": 1e11},
    by_width={"64": 1e11, "256": 2e11},
    attention=1e11,
    copy=1e10,
    small=5e10,
    exponential=1e9,
    overhead=5e-6,
)
