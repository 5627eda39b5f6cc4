"""Summed cross-entropy and token count, without the logits of a whole batch in memory.

The loss of a batch is a sum over tokens and the number of tokens that count; whoever steps divides once, by the global
count. Logits are made for a few thousand tokens at a time, and their gradient at once with them: since the loss is a sum,
the gradient of each chunk needs nothing from the others and is only scaled afterwards. So the head costs the same three
matrix products as usual and its memory is one chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -1
"""A target that costs no loss: padding, or a position that is masked out."""

CHUNK_ELEMENTS = 1 << 23
"""Logits in memory at once: 32 MB in float32, with a gradient of the same size."""


def summed_cross_entropy(
    hidden: Float[Tensor, "N D"],
    head: Float[Tensor, "P D"],
    targets: Int[Tensor, " N"],
    *,
    vocab_size: int,
    softcap: float = 0.0,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum over tokens of -log p(target) in nats, and how many tokens counted.

    `head` may have more rows than `vocab_size`; the padded ones are never predicted. `softcap` c gives
    logits c tanh(z / c). Targets equal to IGNORED count for nothing.
    """
    total = _ChunkedCrossEntropy.apply(hidden, head, targets, vocab_size, softcap)
    return total, (targets != IGNORED).sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Forward makes the gradients with the loss; backward scales them by the incoming gradient, a scalar."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, vocab_size: int, softcap: float) -> Tensor:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        precision = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        weight = head[:vocab_size].to(hidden.dtype)
        d_hidden = torch.empty_like(hidden) if wanted else None
        d_head = torch.zeros_like(head, dtype=precision) if wanted else None
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        n_rows = max(1, CHUNK_ELEMENTS // vocab_size)
        for start in range(0, hidden.size(0), n_rows):
            rows, goal = hidden[start : start + n_rows], targets[start : start + n_rows]
            logits = (rows @ weight.T).to(precision)
            if softcap:
                logits.div_(softcap).tanh_()
                slope = logits.square().neg_().add_(1) if wanted else None  # d capped / d raw
                logits.mul_(softcap)
            counted = goal != IGNORED
            goal = goal.clamp(min=0)
            log_p = F.log_softmax(logits, -1)
            total += -(log_p.gather(1, goal.unsqueeze(1)).squeeze(1) * counted).sum(dtype=torch.float64)
            if d_hidden is None or d_head is None:
                continue
            d_logits = log_p.exp_()  # p - [token is target], nothing where it does not count
            d_logits.scatter_add_(1, goal.unsqueeze(1), torch.full_like(goal, -1, dtype=precision).unsqueeze(1))
            d_logits.mul_(counted.unsqueeze(1))
            if softcap:
                d_logits.mul_(slope)
            d_logits = d_logits.to(hidden.dtype)
            torch.mm(d_logits, weight, out=d_hidden[start : start + n_rows])
            d_head[:vocab_size] += d_logits.T @ rows
        if wanted:
            ctx.save_for_backward(d_hidden, d_head.to(head.dtype))
        return total.to(precision)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_head = ctx.saved_tensors
        (scale,) = grads
        return d_hidden * scale.to(d_hidden.dtype), d_head * scale.to(d_head.dtype), None, None, None
