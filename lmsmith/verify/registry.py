"""An equivalence: two ways to compute the same thing, and how far apart they may be.

    @equivalence("cached decoding", "the KV cache against the full text", bound=1e-10)
    def cached_decoding() -> float:
        return largest_difference(one_way(), other_way())

`run` measures all of them, in the order in which they were registered. A function returns the
largest difference it found; NaN counts as above every bound. It raises `Skipped` if this machine
cannot measure it, for example because a package is not installed. Any other exception counts as a
failure and becomes part of the outcome, because a bug may well end in one.

`cuda` is the bound on a CUDA device. Equivalences without one compare programs of the CPU, and are
measured there on every machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmsmith.verify.models import on

Measure = Callable[[], float]


class Skipped(Exception):
    """This machine cannot measure the equivalence, for the given reason."""


@dataclass(frozen=True)
class Equivalence:
    """`what` names both sides. `full`: measured only by `verify --full`."""

    name: str
    what: str
    bound: float
    measure: Measure
    full: bool = False
    cuda: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The measured difference of an equivalence. `problem`: why nothing was measured, or the
    exception that ended the measurement."""

    name: str
    what: str
    bound: float
    difference: float
    seconds: float
    skipped: bool = False
    problem: str = ""

    @property
    def agrees(self) -> bool:
        return self.skipped or self.difference <= self.bound

    def as_dict(self) -> dict[str, Any]:
        """The outcome for `--json`. A difference that is not finite becomes null."""
        finite = math.isfinite(self.difference) and not self.skipped
        return {
            "name": self.name,
            "what": self.what,
            "difference": self.difference if finite else None,
            "bound": self.bound,
            "agrees": self.agrees,
            "skipped": self.skipped,
            "problem": self.problem,
            "seconds": round(self.seconds, 3),
        }


EQUIVALENCES: dict[str, Equivalence] = {}


def equivalence(
    name: str, what: str, *, bound: float, cuda: float | None = None, full: bool = False
) -> Callable[[Measure], Measure]:
    """Registers a function that returns the largest difference between the two sides."""

    def register(measure: Measure) -> Measure:
        assert name not in EQUIVALENCES, name
        EQUIVALENCES[name] = Equivalence(name, what, bound, measure, full, cuda)
        return measure

    return register


def run(
    names: Iterable[str] | None = None, *, full: bool = False, device: str = "cpu"
) -> Iterator[Outcome]:
    """Measures the named equivalences; without names all, with `full` those that take longer too.
    `device`: "cpu" or "cuda".

    Random numbers, the number of threads and other global settings are as before afterwards.
    """
    for name in EQUIVALENCES if names is None else names:
        one = EQUIVALENCES[name]
        if names is None and one.full and not full:
            continue
        yield _measured(one, device)


def _measured(one: Equivalence, device: str) -> Outcome:
    bound = one.bound
    if device == "cuda" and one.cuda is not None:
        bound = one.cuda
    else:
        device = "cpu"
    began, threads = time.monotonic(), torch.get_num_threads()
    difference, skipped, problem = math.nan, False, ""
    try:
        with torch.random.fork_rng([]), on(device):
            difference = float(one.measure())
    except Skipped as reason:
        skipped, problem = True, str(reason)
    except Exception as error:  # a bug may raise anything
        problem = f"{type(error).__name__}: {error}"
    finally:
        torch.set_num_threads(threads)
    seconds = time.monotonic() - began
    return Outcome(one.name, one.what, bound, difference, seconds, skipped, problem)


# ---- differences ---------------------------------------------------------------------------------


def apart(found: Any, expected: Any) -> float:
    """The largest absolute difference of two tensors, arrays or numbers; infinite if their shapes
    differ. Equal infinities are no difference."""
    one, other = (_array(values) for values in (found, expected))
    if one.shape != other.shape:
        return math.inf
    if not one.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.where(one == other, 0.0, np.abs(one - other))
    return float(difference.max())


def relative(found: Any, expected: Any) -> float:
    """`apart`, relative to the largest number of `expected`."""
    largest = float(np.abs(_array(expected)).max(initial=0.0))
    return apart(found, expected) / (largest or 1.0)


def unequal(found: Any, expected: Any) -> float:
    """0 if the two are equal, else infinity: for ids, texts and bits."""
    if isinstance(found, Tensor | np.ndarray):
        one, other = (v.cpu() if isinstance(v, Tensor) else v for v in (found, expected))
        one, other = np.asarray(one), np.asarray(other)
        same = one.shape == other.shape and bool(np.array_equal(one, other))
    else:
        same = bool(found == expected)
    return 0.0 if same else math.inf


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
