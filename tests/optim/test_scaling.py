"""Loss scaling against PyTorch's GradScaler."""

import pytest
import torch

from lmsmith.optim import scaling
from lmsmith.optim.scaling import GradientScale


def test_the_scale_follows_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through steps that overflow and steps that do not; three good steps in a row double the
    scale.
    """
    monkeypatch.setattr(scaling, "PATIENCE", 3)
    ours = GradientScale(True)
    theirs = torch.amp.GradScaler("cpu", init_scale=scaling.START, growth_interval=3)
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.0)
    for finite in [
        True,
        True,
        False,
        True,
        True,
        True,
        True,
        False,
        False,
        True,
        True,
        True,
        True,
        True,
        True,
    ]:
        w.grad = torch.full((2,), 1.0 if finite else float("inf"))
        theirs.scale(w.sum() * 0)  # it counts from its first use
        theirs.step(optimizer)
        theirs.update()
        assert ours.found(finite) == (not finite)
        assert ours.value == theirs.get_scale()


def test_the_defaults_are_pytorchs_and_the_scale_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs, ours = torch.amp.GradScaler("cpu"), GradientScale(True)
    assert (ours.value, scaling.PATIENCE) == (theirs.get_scale(), theirs.get_growth_interval())
    monkeypatch.setattr(scaling, "PATIENCE", 1)
    values = []
    for _ in range(12):
        ours.found(True)
        values.append(ours.value)
    assert values == [2.0 ** min(n, 24) for n in range(17, 29)]


def test_without_scaling_it_stays_one() -> None:
    scale = GradientScale(False)
    for finite in (True, False) * 3:
        assert not scale.found(finite)
    assert scale.value == 1


def test_overflow_without_scaling_is_ignored() -> None:
    scale = GradientScale(True)
    n = 0
    while scale.found(False):
        n += 1
    assert n == 16
    assert scale.value < 1
