"""Muon against singular value decompositions and against a plain implementation of the step."""

import math

import pytest
import torch
from torch import Tensor

from lmsmith.optim import muon
from lmsmith.optim.muon import (
    COEFFICIENTS,
    LEAST,
    SAFETY,
    Muon,
    best_quintic,
    newton_schulz,
    orthogonalise,
    polar_express,
)

BAND = (0.68, 1.21)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def with_singular_values(
    values: Tensor, columns: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """U, V and U S Vᵀ with random singular vectors."""
    U, _ = torch.linalg.qr(numbers(len(values), len(values), seed=seed))
    V, _ = torch.linalg.qr(numbers(columns, len(values), seed=seed + 1))
    return U, V, U * values @ V.T


def quintic(s: float, n: int) -> float:
    a, b, c = COEFFICIENTS
    for _ in range(n):
        s = a * s + b * s**3 + c * s**5
    return s


@pytest.mark.parametrize("n", [1, 3, 5, 7])
def test_singular_vectors_stay_and_values_go_through_the_quintic(n: int) -> None:
    values = torch.tensor([3.0, 2.0, 0.5, 0.1, 0.01, 0.0], dtype=torch.float64)
    U, V, g = with_singular_values(values, 9)
    found = U.T @ orthogonalise(g[None], newton_schulz(n))[0] @ V
    scaled = values / (1.01 * values.norm() + 1e-7)
    wanted = torch.diag(torch.tensor([quintic(float(s), n) for s in scaled], dtype=torch.float64))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_singular_values_land_in_the_band(scale: float) -> None:
    """All that are at least 0.002 of the matrix's norm, whatever its size."""
    values = scale * torch.logspace(0, -2.5, 40, dtype=torch.float64)
    values = values[values > 0.002 * 1.02 * values.norm()]
    assert len(values) > 30
    _, _, g = with_singular_values(values, 50)
    found = torch.linalg.svdvals(orthogonalise(g[None], newton_schulz(5))[0])
    assert BAND[0] < float(found.min()) < float(found.max()) < BAND[1]
    for s in torch.linspace(0.002 / 1.02, 1.0, 20_000).tolist():
        assert BAND[0] < quintic(s / 1.01, 5) < BAND[1]


def test_random_matrices_become_nearly_orthogonal() -> None:
    g = numbers(3, 8, 32)
    U, _, Vh = torch.linalg.svd(g, full_matrices=False)
    nearest = U @ Vh
    found = orthogonalise(g, newton_schulz(5))
    assert float((found - nearest).norm() / nearest.norm()) < 0.25
    assert (found * nearest).sum() / (found.norm() * nearest.norm()) > 0.97


def test_zeros_stay_zero_and_tiny_ones_finite() -> None:
    assert not orthogonalise(torch.zeros(2, 3, 4), newton_schulz(5)).any()
    assert torch.isfinite(
        orthogonalise(numbers(1, 3, 4, dtype=torch.float32) * 1e-30, newton_schulz(5))
    ).all()


def test_matrices_of_a_stack_are_independent() -> None:
    g = numbers(4, 5, 7)
    torch.testing.assert_close(
        orthogonalise(g, newton_schulz(5))[2],
        orthogonalise(g[2:3], newton_schulz(5))[0],
        rtol=1e-12,
        atol=1e-12,
    )


def test_bfloat16_products_are_precise_enough() -> None:
    g = numbers(2, 16, 48, dtype=torch.float32)
    found = orthogonalise(g, newton_schulz(5), torch.bfloat16)
    assert found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3
    exact = orthogonalise(g, newton_schulz(5))
    assert (found * exact).sum() / (found.norm() * exact.norm()) > 0.99


def reference(weight: Tensor, gradients: list[Tensor], sizes: list[int], **o: float) -> Tensor:
    """Muon in a few lines: orthogonalization applies the quintic to singular values."""
    weight, momentum = weight.clone(), torch.zeros_like(weight)
    for gradient in gradients:
        momentum = o["momentum"] * momentum + (1 - o["momentum"]) * gradient
        update = o["momentum"] * momentum + (1 - o["momentum"]) * gradient  # Nesterov
        directions = []
        for part in update.split(sizes):
            U, S, Vh = torch.linalg.svd(part, full_matrices=False)
            scaled = S / (1.01 * part.norm() + 1e-7)
            S = torch.tensor([quintic(float(s), 5) for s in scaled], dtype=torch.float64)
            directions.append(math.sqrt(max(1, part.size(0) / part.size(1))) * (U * S) @ Vh)
        weight = (1 - o["lr"] * o["weight_decay"]) * weight - o["lr"] * torch.cat(directions)
    return weight


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("at_once", [1, 90, muon.AT_ONCE])
def test_steps_equal_the_reference(
    weight_decay: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide, square and tall matrices, one of them cut into parts; several steps, so that momentum
    matters.

    Matrices are updated one by one, in groups, and all together.
    """
    monkeypatch.setattr(muon, "AT_ONCE", at_once)
    shapes = {(4, 9): [4], (6, 6): [6], (10, 4): [10], (12, 5): [5, 4, 3], (8, 3): [4, 4]}
    weights = [torch.nn.Parameter(numbers(*shape, seed=i)) for i, shape in enumerate(shapes)]
    before = [w.detach().clone() for w in weights]
    parts = {w: sizes for w, sizes in zip(weights, shapes.values(), strict=True) if len(sizes) > 1}
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": weight_decay}
    optimizer = Muon(weights, **options, quintics=newton_schulz(5), parts=parts)  # type: ignore[arg-type]
    gradients = [
        [numbers(*shape, seed=100 * step + i) for i, shape in enumerate(shapes)]
        for step in range(3)
    ]
    for step in gradients:
        for w, gradient in zip(weights, step, strict=True):
            w.grad = gradient.clone()
        optimizer.step()
        for w, gradient in zip(weights, step, strict=True):
            assert torch.equal(w.grad, gradient)  # a gradient is read, not changed
    for i, (w, sizes) in enumerate(zip(weights, shapes.values(), strict=True)):
        wanted = reference(before[i], [step[i] for step in gradients], sizes, **options)
        torch.testing.assert_close(w.detach(), wanted, rtol=1e-9, atol=1e-10)


def test_maps_of_a_fused_matrix_do_not_mix() -> None:
    """A gradient in one map of a fused matrix moves no other map; without parts they would share
    singular vectors.
    """
    w = torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
    optimizer = Muon(
        [w], lr=1.0, momentum=0.5, weight_decay=0.0, quintics=newton_schulz(5), parts={w: [2, 2, 2]}
    )
    w.grad = torch.zeros_like(w)
    w.grad[2:4] = numbers(2, 4)
    optimizer.step()
    assert not w[:2].any()
    assert not w[4:].any()
    values = torch.linalg.svdvals(w[2:4].detach())
    assert BAND[0] < float(values.min()) < float(values.max()) < BAND[1]


def test_the_scale_makes_the_gain_independent_of_the_shape() -> None:
    """A step at rate 1 maps a random vector of RMS 1 to one of RMS about 1, wide or tall."""
    for shape in ((16, 256), (64, 64), (256, 16)):
        w = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        w.grad = numbers(*shape)
        Muon(
            [w], lr=1.0, momentum=0.0, weight_decay=0.0, quintics=newton_schulz(5), parts={}
        ).step()
        out = numbers(1000, shape[1], seed=3) @ w.detach().T
        assert 0.7 < float(out.square().mean().sqrt()) < 1.2


def test_a_matrix_without_a_gradient_is_unchanged() -> None:
    w = torch.nn.Parameter(numbers(3, 3))
    before = w.detach().clone()
    Muon([w], lr=1.0, momentum=0.5, weight_decay=0.5, quintics=newton_schulz(5), parts={}).step()
    assert torch.equal(w.detach(), before)


def test_the_best_quintic_is_better_than_any_close_to_it() -> None:
    """Against a fine grid of other coefficients, and by equal errors at its four worst points
    (Chebyshev).
    """
    x = torch.linspace(0.1, 1.0, 2_000, dtype=torch.float64)
    odd = torch.stack([x, x**3, x**5])
    best = torch.tensor(best_quintic(0.1, 1.0), dtype=torch.float64)
    away = 1 - best @ odd
    worst = float(away.abs().max())
    assert [round(float(away[i] / worst), 3) for i in (0, -1)] == [1.0, -1.0]
    assert float(away.max()) == pytest.approx(-float(away.min()), rel=1e-4)
    steps = torch.cartesian_prod(*[torch.linspace(-0.05, 0.05, 11, dtype=torch.float64)] * 3)
    others = (best + steps) @ odd
    assert float((1 - others).abs().amax(1).min()) >= worst * (1 - 1e-6)


@pytest.mark.parametrize(("n", "off"), [(5, 0.13), (6, 0.02), (8, 1e-6)])
def test_polar_express_maps_singular_values_to_one(n: int, off: float) -> None:
    values = torch.logspace(0, math.log10(2 * LEAST), 60, dtype=torch.float64)
    x = values.clone()
    for a, b, c in polar_express(n):
        x = a * x + b * x**3 + c * x**5
    assert float((x - 1).abs().max()) < off
    assert len(polar_express(n)) == n


def test_polar_express_is_closer_than_newton_schulz_with_as_many_products() -> None:
    g = numbers(4, 48, 64)
    U, _, Vh = torch.linalg.svd(g, full_matrices=False)
    apart = {
        name: float((orthogonalise(g, quintics) - U @ Vh).norm() / (U @ Vh).norm())
        for name, quintics in {"jordan": newton_schulz(5), "polar": polar_express(5)}.items()
    }
    assert apart["polar"] < 0.5 * apart["jordan"]
    assert orthogonalise(g, polar_express(5), torch.bfloat16).isfinite().all()
    assert SAFETY > 1
