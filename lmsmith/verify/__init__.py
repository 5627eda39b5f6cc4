"""Equivalences that are checked on the user's machine: `lmsmith verify`.

Each file registers equivalences with `@equivalence`; `run` measures them, file by file.
"""

from lmsmith.verify import (  # noqa: F401  each registers its equivalences
    batches,
    chats,
    decoding,
    exports,
    gradients,
    layers,
    likelihood,
    longer,
    planning,
    ranks,
    resuming,
    rollouts,
    sampling,
    steps,
    tokenization,
)
from lmsmith.verify.registry import EQUIVALENCES, Outcome, Skipped, equivalence, run

__all__ = ["EQUIVALENCES", "Outcome", "Skipped", "equivalence", "run"]
