"""Muon: momentum, made orthogonal, for the matrices inside blocks (Jordan et al. 2024).

The Nesterov momentum of each matrix is replaced by about the nearest semi-orthogonal matrix, found
by iterating an odd quintic that needs only matrix products: Jordan's one polynomial
(`newton_schulz`), or in each iteration the best one for what those before have left
(`polar_express`). Matrices of one shape are stacked and iterated together: one batched product in
place of many small ones. A fused query-key-value matrix is several maps and is orthogonalised part
by part.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Quintic = tuple[float, float, float]
"""a, b, c of a x + b x³ + c x⁵."""

OfStack = Callable[[Tensor], Tensor]
"""What takes a stack of matrices (N, R, C), each by itself, to another of that shape."""

# The quintic of Jordan et al.: not convergent to 1 but fast. In five iterations every singular
# value of at least 0.002 of the matrix's norm lands between 0.68 and 1.21; smaller ones grow by
# 3.44 an iteration.
COEFFICIENTS: Quintic = (3.4445, -4.7750, 2.0315)

AT_ONCE = (
    1 << 27
)  # numbers, of matrices that are updated together; doing so holds five times as many

LEAST = (
    1e-3  # singular values of at least this share of the norm are brought to 1 by `polar_express`
)
SAFETY = 1.01  # rounding in bfloat16 may carry a singular value past the end of the interval


def newton_schulz(n_iterations: int) -> list[Quintic]:
    return [COEFFICIENTS] * n_iterations


@functools.cache
def polar_express(n_iterations: int) -> list[Quintic]:
    """The quintics whose composition is nearest to 1 over [LEAST, 1] (Amsel et al. 2025,
    arXiv:2505.16932, theorem 1).

    Greedily: each is the best for the interval that the ones before map to, and all but the last
    see their argument divided by SAFETY.
    """
    low, high, found = LEAST, 1.0, list[Quintic]()
    for last in [False] * (n_iterations - 1) + [True]:
        a, b, c = best_quintic(low, high)
        low = a * low + b * low**3 + c * low**5
        high = 2 - low  # it swings as far above 1 as below
        s = 1.0 if last else SAFETY
        found.append((a / s, b / s**3, c / s**5))
    return found


def best_quintic(low: float, high: float) -> Quintic:
    """The odd quintic with the least greatest distance from 1 over [low, high], by Remez's
    exchange.

    At the best one the distance is greatest, with alternating sign, at four points: the ends and
    two between.
    """
    if 1 - low < 1e-3:  # close enough to the limit, whose value and two derivatives at 1 are right
        return 15 / 8, -10 / 8, 3 / 8
    points = low + (high - low) * np.array([0.0, 0.25, 0.75, 1.0])
    for _ in range(100):
        signs = np.array([1.0, -1.0, 1.0, -1.0])  # 1 - p is e, -e, e, -e there
        system = np.stack([points, points**3, points**5, signs], axis=1)
        a, b, c, _ = np.linalg.solve(system, np.ones(4))
        turns = np.sqrt(
            np.sort(np.roots([5 * c, 3 * b, a]).real)
        )  # where p' = a + 3 b x² + 5 c x⁴ is zero
        if np.allclose(points[1:3], turns, rtol=1e-12, atol=0):
            break
        points[1:3] = turns
    return float(a), float(b), float(c)


def orthogonalise(
    g: Float[Tensor, "N R C"], quintics: Sequence[Quintic], dtype: torch.dtype | None = None
) -> Float[Tensor, "N R C"]:
    """About U Vᵀ of each g = U S Vᵀ, for R <= C, with products in `dtype` (g's own if None); the
    result is as g.
    """
    x = g / (torch.linalg.matrix_norm(g, keepdim=True) * 1.01 + 1e-7)  # spectral norm below 1
    x = x.to(dtype or g.dtype)
    for a, b, c in quintics:
        square = torch.bmm(x, x.mT)  # (N, R, R)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.to(g.dtype)


class Muon(torch.optim.Optimizer):
    """`params`: matrices (out, in). `parts[p]` of a matrix's rows are maps of their own (3 for
    fused q, k, v).

    `dtype` is that of the products; bfloat16 does, as Jordan et al. found: the iteration corrects
    its own rounding.
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
        over_ranks: Callable[[OfStack], OfStack] | None = None,
    ) -> None:
        super().__init__(
            list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )
        self.parts = parts

        def plainly(stack: Tensor) -> Tensor:
            return orthogonalise(stack, quintics, dtype)

        self._orthogonalise = over_ranks(plainly) if over_ranks else plainly

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update. The scale max(1, rows/columns)**0.5 gives every map an update of about the
        same RMS gain.
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
        apart: list[
            tuple[Tensor, Tensor]
        ] = []  # shards of parameters, and what is to be added to the whole ones
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
                sharded: Any = update
                update = sharded.full_tensor()
                target = torch.zeros_like(update)
                apart.append((p, target))
            for part, part_update in zip(target.split(sizes), update.split(sizes), strict=True):
                wide = part_update if part.size(0) <= part.size(1) else part_update.mT
                same_shape.setdefault(tuple(wide.shape), []).append((part, wide))
        for pieces in same_shape.values():
            found = self._orthogonalise(torch.stack([wide for _, wide in pieces]))
            for (part, _), direction in zip(pieces, found, strict=True):
                tall = part.size(0) > part.size(1)
                scale = max(1.0, part.size(0) / part.size(1)) ** 0.5
                part.add_(direction.mT if tall else direction, alpha=-lr * scale)
        for p, change in apart:
            p.add_(_share_of(change, p))


def _share_of(whole: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
