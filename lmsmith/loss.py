"""Summed cross-entropy and token count, without the logits of a whole batch in memory.

The loss of a batch is a sum over tokens and the number of tokens that count; whoever steps divides once, by the global
count. Logits are made for a few thousand tokens at a time, and their gradient at once with them: since the loss is a
sum, the gradient of each chunk needs nothing from the others and is only scaled afterwards. So the head costs the same
three matrix products as usual and its memory is one chunk.

Products are in the dtype of `hidden`; logits, log-probabilities and the head's gradient in float32 or better, their sum
in float64. First derivatives alone: the gradient is not itself differentiable.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -1
"""A target that costs no loss: padding, or a position that is masked out."""

CHUNK_ELEMENTS = 1 << 23
"""Logits in memory at once on a CPU: 32 MB in float32, log-probabilities and a soft cap's slope are as large."""

GPU_CHUNK_ELEMENTS = 1 << 27
"""The same on a GPU: 512 MB. Of a vocabulary of 50,304 that is 2,668 rows: products at full speed."""


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
    if not torch.is_grad_enabled():  # a Function is not told, and would make gradients for nobody
        hidden, head = hidden.detach(), head.detach()
    total = _ChunkedCrossEntropy.apply(hidden, head, targets, vocab_size, softcap)
    return total, (targets != IGNORED).sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Forward makes the gradients with the loss; backward scales them by the incoming gradient, a scalar."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, vocab_size: int, softcap: float) -> Tensor:
        precision = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        exact = torch.float32 if hidden.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        total = torch.zeros((), dtype=exact, device=hidden.device)
        weight = head.to(hidden.dtype)
        gradients = None
        if any(ctx.needs_input_grad):
            gradients = torch.empty_like(hidden), torch.zeros_like(head, dtype=precision)
            ctx.save_for_backward(*gradients)
            ctx.dtypes = hidden.dtype, head.dtype
        n_rows = max(1, (CHUNK_ELEMENTS if hidden.device.type == "cpu" else GPU_CHUNK_ELEMENTS) // head.size(0))
        for start in range(0, hidden.size(0), n_rows):
            rows, goal = hidden[start : start + n_rows], targets[start : start + n_rows]
            logits = (rows @ weight.T).to(precision)
            slope = None
            if softcap:
                logits.div_(softcap).tanh_()
                slope = logits.square().neg_().add_(1)  # d capped / d raw
                logits.mul_(softcap)
            if head.size(0) > vocab_size:
                logits[:, vocab_size:] = float("-inf")
            counted = (goal != IGNORED).unsqueeze(1)
            goal = goal.clamp(min=0).unsqueeze(1)
            log_p = F.log_softmax(logits, -1)
            total -= (log_p.gather(1, goal) * counted).sum(dtype=exact)
            if gradients is None:
                continue
            d_hidden, d_head = gradients
            d_logits = log_p.exp_()  # p - [token is target], nothing where it does not count
            d_logits.scatter_add_(1, goal, torch.full_like(goal, -1, dtype=precision)).mul_(counted)
            if slope is not None:
                d_logits.mul_(slope)
            d_logits = d_logits.to(hidden.dtype)
            torch.mm(d_logits, weight, out=d_hidden[start : start + n_rows])
            if hidden.dtype == precision:
                d_head.addmm_(d_logits.T, rows)
            else:
                d_head += d_logits.T @ rows
        return total.to(precision)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (scale,) = grads
        d_hidden, d_head = (
            (gradient * scale).to(dtype) for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return d_hidden, d_head, None, None, None
