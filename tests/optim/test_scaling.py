"""Gradient scaling against PyTorch's own scaler."""

import pytest
import torch

from lmsmith.optim import scaling
from lmsmith.optim.scaling import GradientScale


def test_it_moves_as_pytorchs_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through updates that overflow and updates that do not, of which every third in a row
    doubles the scale.
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


def test_where_it_is_not_wanted_it_is_one_and_stays() -> None:
    scale = GradientScale(False)
    for finite in (True, False) * 3:
        assert not scale.found(finite)
    assert scale.value == 1


def test_what_overflows_without_a_scale_is_no_business_of_its() -> None:
    scale = GradientScale(True)
    n = 0
    while scale.found(False):
        n += 1
    assert n == 16
    assert scale.value < 1
