"""An equivalence: two ways to compute the same thing, and how far apart they may be.

    @equivalence("cached decoding", "with a KV cache; the full text", bound=1e-10)
    def cached_decoding() -> float:
        return largest_difference(one_way(), other_way())

`run` measures all of them, in the order in which they were registered. A function returns the
largest difference it found; NaN counts as above every bound. It raises `Skipped` if this machine
cannot measure it, for example because a package is not installed. Any other exception counts as a
failure and becomes part of the outcome, because a bug may well end in one.

`cuda` is the bound on a CUDA device. Equivalences without one compare programs of the CPU, and are
measured there on every machine.

The models are tiny, so PyTorch computes them with one thread: while other programs keep cores busy,
several threads that wait for each other take up to a hundred times as long. `all_threads` is for
equivalences that are about the number of threads.
"""

from __future__ import annotations

import importlib
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
    """`what` names both sides, in at most 36 characters, so that a printed line has 80. `full`:
    measured only by `verify --full`. `all_threads`: with as many threads as training uses, not one.
    """

    name: str
    what: str
    bound: float
    measure: Measure
    full: bool = False
    cuda: float | None = None
    all_threads: bool = False


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
    name: str,
    what: str,
    *,
    bound: float,
    cuda: float | None = None,
    full: bool = False,
    all_threads: bool = False,
) -> Callable[[Measure], Measure]:
    """Registers a function that returns the largest difference between the two sides."""

    def register(measure: Measure) -> Measure:
        assert name not in EQUIVALENCES, name
        EQUIVALENCES[name] = Equivalence(name, what, bound, measure, full, cuda, all_threads)
        return measure

    return register


def run(
    names: Iterable[str] | None = None, *, full: bool = False, device: str = "cpu"
) -> Iterator[Outcome]:
    """Measures the named equivalences; without names all, with `full` those that take longer too.
    `device`: "cpu" or "cuda".

    Random numbers, the number of threads and other global settings are as before afterwards.
    """
    found = [EQUIVALENCES[name] for name in names or EQUIVALENCES]
    if names is None:
        found = [one for one in found if not one.full] + [one for one in found if full and one.full]
    for one in found:
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
        torch.set_num_threads(threads if one.all_threads else 1)
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


def package(name: str, pip: str = "") -> Any:
    """Imports an optional package. Raises Skipped if it is not installed or its import fails.
    `pip`: what installs it, if not its own name."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken package may raise anything, and says nothing about ours
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            how = f": pip install '{pip}'" if pip else ""
            raise Skipped(f"{name} is not installed{how}") from None
        raise Skipped(f"{name} cannot be imported ({type(error).__name__}: {error})") from None


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
