"""Summed cross-entropy and token count, without the logits of a whole batch in memory.

The loss of a batch is a sum over tokens and the number of tokens that count; whoever steps divides
once, by the global count. Logits are made for a few thousand tokens at a time, and their gradient
at once with them: since the loss is a sum, the gradient of each chunk needs nothing from the others
and is only scaled afterwards. So the head costs the same three matrix products as usual and its
memory is one chunk.

Products are in the dtype of `hidden`; logits, log-probabilities and the head's gradient in float32
or better, their sum in float64. First derivatives alone: the gradient is not itself differentiable.

Between the products stand a dozen passes over the logits, which on a GPU cost as much as the
products do. Compiled they are two.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lmsmith.targets import IGNORED

CHUNK_ELEMENTS = 1 << 23
"""Logits in memory at once on a CPU: 32 MB in float32, log-probabilities and a soft cap's slope
are as large.
"""

GPU_CHUNK_ELEMENTS = 1 << 27
"""The same on a GPU: 512 MB. Of a vocabulary of 50,304 that is 2,560 rows: products at full
speed.
"""

ROWS = 128
"""Rows of a chunk are a multiple of it, where there are as many: what GPUs' products are cut
into.
"""


def summed_cross_entropy(
    hidden: Float[Tensor, "N D"],
    head: Float[Tensor, "P D"],
    targets: Int[Tensor, " N"],
    *,
    vocab_size: int,
    softcap: float = 0.0,
    compiled: bool = False,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum over tokens of -log p(target) in nats, and how many tokens counted.

    `head` may have more rows than `vocab_size`; the padded ones are never predicted. `softcap` c
    gives logits c tanh(z / c). Targets equal to IGNORED count for nothing. `compiled`: what stands
    between the products.
    """
    if not torch.is_grad_enabled():  # a Function is not told, and would make gradients for nobody
        hidden, head = hidden.detach(), head.detach()
    total = _ChunkedCrossEntropy.apply(hidden, head, targets, vocab_size, softcap, compiled)
    return total, (targets != IGNORED).sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Forward makes the gradients with the loss; backward scales them by the incoming gradient,
    a scalar.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        vocab_size: int,
        softcap: float,
        compiled: bool,
    ) -> Tensor:
        precision = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        exact = (
            torch.float32 if hidden.device.type == "mps" else torch.float64
        )  # Apple's GPUs have no float64
        total = torch.zeros((), dtype=exact, device=hidden.device)
        weight = head.to(hidden.dtype)
        gradients = None
        if any(ctx.needs_input_grad):
            gradients = torch.empty_like(hidden), torch.zeros_like(head, dtype=precision)
            ctx.save_for_backward(*gradients)
            ctx.dtypes = hidden.dtype, head.dtype
        of_logits = _fused() if compiled and gradients is not None else in_passes
        n_rows = max(
            1,
            (CHUNK_ELEMENTS if hidden.device.type == "cpu" else GPU_CHUNK_ELEMENTS) // head.size(0),
        )
        n_rows = n_rows // ROWS * ROWS or n_rows
        for start in range(0, hidden.size(0), n_rows):
            rows, goal = (
                hidden[start : start + n_rows],
                targets[start : start + n_rows].unsqueeze(1),
            )
            losses, d_logits = of_logits(
                rows @ weight.T, goal, vocab_size, softcap, gradients is not None
            )
            total += losses.sum(dtype=exact)
            if gradients is None:
                del d_logits
                continue
            d_hidden, d_head = gradients
            torch.mm(d_logits, weight, out=d_hidden[start : start + n_rows])
            if hidden.dtype == precision:
                d_head.addmm_(d_logits.T, rows)
            else:
                d_head += d_logits.T @ rows
            del d_logits  # before the next chunk's are made
        return total.to(precision)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        d_hidden, d_head = (
            (gradient * scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return d_hidden, d_head, None, None, None, None


def in_passes(
    logits: Float[Tensor, "n P"],
    goal: Int[Tensor, "n 1"],
    vocab_size: int,
    softcap: float,
    with_gradient: bool,
) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n P"]]:
    """Each row's loss, and the gradient of their sum by the logits, in the logits' dtype and
    perhaps their memory.
    """
    dtype = logits.dtype
    logits = logits.to(torch.float64 if dtype == torch.float64 else torch.float32)
    slope = None
    if softcap:
        logits.div_(softcap).tanh_()
        slope = logits.square().neg_().add_(1)  # d capped / d raw
        logits.mul_(softcap)
    if logits.size(1) > vocab_size:
        logits[:, vocab_size:] = float("-inf")
    counted = goal != IGNORED
    goal = goal.clamp(min=0)
    log_p = F.log_softmax(logits, -1)
    losses = -(log_p.gather(1, goal) * counted)
    if not with_gradient:
        return losses, log_p
    d_logits = log_p.exp_()  # p - [token is target], nothing where it does not count
    d_logits.scatter_add_(1, goal, torch.full_like(goal, -1, dtype=d_logits.dtype)).mul_(counted)
    if slope is not None:
        d_logits.mul_(slope)
    return losses, d_logits.to(dtype)


def at_once(
    logits: Float[Tensor, "n P"],
    goal: Int[Tensor, "n 1"],
    vocab_size: int,
    softcap: float,
    with_gradient: bool,
) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n P"]]:
    """The same as `in_passes`, written for a compiler: a sum over each row, then each number by
    itself.
    """
    dtype = logits.dtype
    z = logits.to(torch.float64 if dtype == torch.float64 else torch.float32)
    bent = torch.tanh(z / softcap) if softcap else z
    capped = bent * softcap if softcap else z
    column = torch.arange(z.size(1), device=z.device)
    capped = torch.where(column < vocab_size, capped, float("-inf"))
    log_p = capped - capped.logsumexp(1, keepdim=True)
    counted = goal != IGNORED
    losses = -(log_p.gather(1, goal.clamp(min=0)) * counted)
    d_logits = torch.where(column == goal, log_p.exp() - 1, log_p.exp()) * counted
    return losses, (d_logits * (1 - bent * bent) if softcap else d_logits).to(dtype)


@functools.cache
def _fused() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(at_once)
