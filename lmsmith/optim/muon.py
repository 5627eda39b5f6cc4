"""Muon: orthogonalized momentum for the matrices inside blocks (Jordan et al. 2024).

The Nesterov momentum of each matrix is replaced by approximately the nearest semi-orthogonal
matrix. It is computed by iterating an odd quintic polynomial, which needs only matrix products.
`newton_schulz` repeats Jordan's polynomial; `polar_express` uses in each iteration the best
polynomial for the result of the previous ones. Matrices of the same shape are stacked and iterated
together: one batched product instead of many small ones. A fused query-key-value matrix is several
maps, and each map is orthogonalized separately.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lmsmith.optim.eager import Eager

Quintic = tuple[float, float, float]
"""(a, b, c) of a x + b x³ + c x⁵."""

StackFunction = Callable[[Tensor], Tensor]
"""Maps a stack of matrices (N, R, C), each independently, to a stack of the same shape."""

# The quintic of Jordan et al. does not converge to 1, but it is fast. Five iterations map every
# singular value of at least 0.002 of the matrix's norm to between 0.68 and 1.21; smaller ones grow
# by a factor of 3.44 per iteration.
COEFFICIENTS: Quintic = (3.4445, -4.7750, 2.0315)

AT_ONCE = 1 << 27
"""The most elements of matrices that are updated together. Five times as many are in memory."""

LEAST = 1e-3  # `polar_express` maps singular values of at least this share of the norm to 1
SAFETY = 1.01  # bfloat16 rounding can push a singular value past the end of the interval


def newton_schulz(n_iterations: int) -> list[Quintic]:
    """Jordan's polynomial, repeated."""
    return [COEFFICIENTS] * n_iterations


@functools.cache
def polar_express(n_iterations: int) -> list[Quintic]:
    """Returns the polynomials whose composition is closest to 1 on [LEAST, 1].

    Source: Amsel et al. 2025, arXiv:2505.16932, theorem 1. The choice is greedy: each polynomial is
    the best one for the interval that the previous ones map to. All but the last divide their
    argument by SAFETY.
    """
    low, high, quintics = LEAST, 1.0, list[Quintic]()
    for last in [False] * (n_iterations - 1) + [True]:
        a, b, c = best_quintic(low, high)
        low = a * low + b * low**3 + c * low**5
        high = 2 - low  # it swings as far above 1 as below
        s = 1.0 if last else SAFETY
        quintics.append((a / s, b / s**3, c / s**5))
    return quintics


def best_quintic(low: float, high: float) -> Quintic:
    """Returns the odd quintic with the least maximum distance from 1 on [low, high] (Remez exchange
    algorithm).

    For the best one, the distance takes its maximum with alternating sign at four points: both ends
    and two points in between.
    """
    if 1 - low < 1e-3:
        # Close to the limit for low -> 1, which has p(1) = 1 and p'(1) = p''(1) = 0.
        return 15 / 8, -10 / 8, 3 / 8
    points = low + (high - low) * np.array([0.0, 0.25, 0.75, 1.0])
    for _ in range(100):
        signs = np.array([1.0, -1.0, 1.0, -1.0])  # 1 - p is e, -e, e, -e at the points
        system = np.stack([points, points**3, points**5, signs], axis=1)
        a, b, c, _ = np.linalg.solve(system, np.ones(4))
        # Where p' = a + 3 b x² + 5 c x⁴ is zero.
        extrema = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a]).real))
        if np.allclose(points[1:3], extrema, rtol=1e-12, atol=0):
            break
        points[1:3] = extrema
    return float(a), float(b), float(c)


def orthogonalise(
    g: Float[Tensor, "N R C"], quintics: Sequence[Quintic], dtype: torch.dtype | None = None
) -> Float[Tensor, "N R C"]:
    """Approximately U Vᵀ of each g = U S Vᵀ, for R <= C. Matrix products are in `dtype` (None: that
    of g). The result has the dtype of g.
    """
    x = g / (torch.linalg.matrix_norm(g, keepdim=True) * 1.01 + 1e-7)  # spectral norm below 1
    x = x.to(dtype or g.dtype)
    for a, b, c in quintics:
        square = torch.bmm(x, x.mT)  # (N, R, R)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.to(g.dtype)


class Muon(Eager):
    """Muon for `params`, matrices of shape (out, in). The rows of p split into maps of parts[p]
    rows (3 maps for fused q, k, v).

    `dtype` is that of the matrix products. bfloat16 is enough, as Jordan et al. found: the
    iteration corrects its own rounding errors.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        quintics: Sequence[Quintic],
        dtype: torch.dtype | None = None,
        parts: dict[Tensor, list[int]],
        distribute: Callable[[StackFunction], StackFunction] | None = None,
    ) -> None:
        super().__init__(
            list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )
        self.parts = parts

        def on_one_rank(stack: Tensor) -> Tensor:
            return orthogonalise(stack, quintics, dtype)

        self._orthogonalise = distribute(on_one_rank) if distribute else on_one_rank

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One optimizer step. The scale max(1, rows/columns)**0.5 gives every map about the same
        RMS gain.
        """
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            while params:
                n, numbers = 1, params[0].numel()
                while n < len(params) and numbers + params[n].numel() <= AT_ONCE:
                    numbers += params[n].numel()
                    n += 1
                self._update(params[:n], group)
                params = params[n:]

    def _update(self, params: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        same_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        sharded: list[tuple[Tensor, Tensor]] = []  # parameter shard, change of the full parameter
        for p in params:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            average = state["momentum"].lerp_(p.grad, 1 - momentum)
            update = p.grad.lerp(average, momentum)
            if group["weight_decay"]:
                p.mul_(1 - lr * group["weight_decay"])
            target, sizes = p, self.parts.get(p) or [p.size(0)]
            if hasattr(p, "full_tensor"):  # a DTensor, whose module takes half a second to import
                update_shard: Any = update
                update = update_shard.full_tensor()
                target = torch.zeros_like(update)
                sharded.append((p, target))
            for part, part_update in zip(target.split(sizes), update.split(sizes), strict=True):
                wide = part_update if part.size(0) <= part.size(1) else part_update.mT
                same_shape.setdefault(tuple(wide.shape), []).append((part, wide))
        for pieces in same_shape.values():
            directions = self._orthogonalise(torch.stack([wide for _, wide in pieces]))
            for (part, _), direction in zip(pieces, directions, strict=True):
                tall = part.size(0) > part.size(1)
                scale = max(1.0, part.size(0) / part.size(1)) ** 0.5
                part.add_(direction.mT if tall else direction, alpha=-lr * scale)
        for p, change in sharded:
            p.add_(_shard_of(change, p))


def _shard_of(full: Tensor, p: Any) -> Tensor:
    """This rank's shard of a full tensor, sharded as the DTensor `p` is."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, p.device_mesh, p.placements, src_data_rank=None)
