"""Muon: momentum, made orthogonal, for the matrices inside blocks (Jordan et al. 2024).

The Nesterov momentum of each matrix is replaced by about the nearest semi-orthogonal matrix, found by Newton-Schulz
iterations that need only matrix products. Matrices of one shape are stacked and iterated together: one batched product
in place of many small ones. A fused query-key-value matrix is several maps and is orthogonalised part by part.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

# The quintic of Jordan et al.: not convergent to 1 but fast. In five iterations every singular value of at least 0.002
# of the matrix's norm lands between 0.68 and 1.21; smaller ones grow by 3.44 an iteration.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(
    g: Float[Tensor, "N R C"], n_iterations: int, dtype: torch.dtype | None = None
) -> Float[Tensor, "N R C"]:
    """About U Vᵀ of each g = U S Vᵀ, for R <= C, with products in `dtype` (g's own if None); the result is as g."""
    a, b, c = COEFFICIENTS
    x = g / (torch.linalg.matrix_norm(g, keepdim=True) * 1.01 + 1e-7)  # spectral norm below 1
    x = x.to(dtype or g.dtype)
    for _ in range(n_iterations):
        square = torch.bmm(x, x.mT)  # (N, R, R)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.to(g.dtype)


class Muon(torch.optim.Optimizer):
    """`params`: matrices (out, in). `parts[p]` of a matrix's rows are maps of their own (3 for fused q, k, v).

    `dtype` is that of the products; bfloat16 does, as Jordan et al. found: the iteration corrects its own rounding.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        n_iterations: int,
        dtype: torch.dtype | None = None,
        parts: dict[Tensor, list[int]],
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.n_iterations, self.dtype, self.parts = n_iterations, dtype, parts

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update. The scale max(1, rows/columns)**0.5 gives every map an update of about the same RMS gain."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            same_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                average = state["momentum"].lerp_(p.grad, 1 - momentum)
                update = p.grad.lerp(average, momentum)
                if group["weight_decay"]:
                    p.mul_(1 - lr * group["weight_decay"])
                sizes = self.parts.get(p) or [p.size(0)]
                for part, part_update in zip(p.split(sizes), update.split(sizes), strict=True):
                    wide = part_update if part.size(0) <= part.size(1) else part_update.mT
                    same_shape.setdefault(tuple(wide.shape), []).append((part, wide))
            for pieces in same_shape.values():
                found = orthogonalise(torch.stack([wide for _, wide in pieces]), self.n_iterations, self.dtype)
                for (part, _), direction in zip(pieces, found, strict=True):
                    tall = part.size(0) > part.size(1)
                    scale = max(1.0, part.size(0) / part.size(1)) ** 0.5
                    part.add_(direction.mT if tall else direction, alpha=-lr * scale)
