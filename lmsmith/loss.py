"""Cross-entropy summed over tokens, computed in chunks so that a batch's logits never fill memory.

The loss of a batch is a sum over tokens plus the number of tokens that count; the caller divides
once, by the global count. Logits are computed for a few thousand tokens at a time, together with
their gradient: since the loss is a sum, the gradient of a chunk does not depend on other chunks and
is only scaled afterwards. So the head costs the usual three matrix products and the memory of one
chunk.

On CPUs, positions that do not count are skipped if they are the majority, as in fine-tuning on the
answers of conversations. On GPUs their number would have to be read back first.

Matrix products use the dtype of `hidden`. Logits, log-probabilities and the head's gradient are in
float32 or better; the loss is summed in float64. The gradient itself cannot be differentiated.

Between the matrix products are a dozen passes over the logits, which on a GPU cost as much as the
products. Compiled, they are two.

Shapes: N tokens of a batch, n tokens of a chunk, D d_model, P rows of the head (the vocabulary plus
padding).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lmsmith.targets import IGNORED

CHUNK_ELEMENTS = 1 << 23
"""The most logits in memory at once on a CPU: 32 MB in float32."""

PART_ELEMENTS = 1 << 20
"""Logits of a chunk on a CPU that go through the operations between the products together: 4 MB in
float32.
"""

GPU_CHUNK_ELEMENTS = 1 << 27
"""The same on a GPU: 512 MB. Log-probabilities and the slope of the soft cap take as much again
each. With a vocabulary of 50,304 that is 2,560 rows, enough for full speed.
"""

ROWS = 128
"""Chunks have a multiple of this many rows if possible: the tile size of GPU matrix products."""


def summed_cross_entropy(
    hidden: Float[Tensor, "N D"],
    head: Float[Tensor, "P D"],
    targets: Int[Tensor, " N"],
    *,
    vocab_size: int,
    softcap: float = 0.0,
    compiled: bool = False,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Returns the sum over tokens of -log p(target) in nats, and the number of tokens that count.

    Rows of `head` beyond `vocab_size` are padding and are never predicted. With a `softcap` c,
    logits are c tanh(z / c). Targets equal to IGNORED do not count. `compiled` compiles the
    operations between the matrix products.
    """
    if not torch.is_grad_enabled():
        # A Function's needs_input_grad ignores no_grad: without this, it would compute gradients.
        hidden, head = hidden.detach(), head.detach()
    counted = targets != IGNORED
    n_counted = counted.sum()
    rows = None
    if hidden.device.type == "cpu" and not compiled and 2 * n_counted < len(targets):
        rows = counted.nonzero().squeeze(1)
    total = _ChunkedCrossEntropy.apply(hidden, head, targets, rows, vocab_size, softcap, compiled)
    return total, n_counted


def token_log_probabilities(
    hidden: Float[Tensor, "N D"],
    head: Float[Tensor, "P D"],
    targets: Int[Tensor, " N"],
    *,
    vocab_size: int,
    softcap: float = 0.0,
) -> Float[Tensor, " N"]:
    """Returns ln p of each target, which must not be IGNORED, in float32 or better.

    For losses that are functions of the log-probabilities of texts. Large inputs are computed in
    chunks, whose logits are recomputed in the backward pass.
    """
    n_elements = CHUNK_ELEMENTS if hidden.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    n_rows = max(1, n_elements // head.size(0))
    arguments = head.to(hidden.dtype), vocab_size, softcap
    if hidden.size(0) <= n_rows:
        return _log_p(hidden, targets, *arguments)
    return torch.cat(
        [
            checkpoint(_log_p, rows, goal, *arguments, use_reentrant=False)
            for rows, goal in zip(hidden.split(n_rows), targets.split(n_rows), strict=True)
        ]
    )


def _log_p(
    hidden: Tensor, targets: Tensor, weight: Tensor, vocab_size: int, softcap: float
) -> Tensor:
    logits = F.linear(hidden, weight)[:, :vocab_size]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return -F.cross_entropy(logits, targets, reduction="none")


class _ChunkedCrossEntropy(torch.autograd.Function):
    """`forward` computes loss and gradients; `backward` scales them by the incoming gradient.

    `rows`: the positions to compute; None: all. The others must not count.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        rows: Tensor | None,
        vocab_size: int,
        softcap: float,
        compiled: bool,
    ) -> Tensor:
        all_hidden = hidden
        if rows is not None:
            hidden, targets = hidden[rows], targets[rows]
        precision = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        # Apple's GPUs have no float64.
        exact = torch.float32 if hidden.device.type == "mps" else torch.float64
        total = torch.zeros((), dtype=exact, device=hidden.device)
        weight = head.to(hidden.dtype)
        gradients = None
        if any(ctx.needs_input_grad):
            gradients = torch.empty_like(hidden), torch.zeros_like(head, dtype=precision)
            ctx.dtypes = hidden.dtype, head.dtype
        of_logits = loss_and_gradient if hidden.device.type != "cpu" else in_parts
        if compiled and gradients is not None:
            of_logits = _fused()
        n_elements = CHUNK_ELEMENTS if hidden.device.type == "cpu" else GPU_CHUNK_ELEMENTS
        n_rows = max(1, n_elements // head.size(0))
        n_rows = n_rows // ROWS * ROWS or n_rows
        for start in range(0, hidden.size(0), n_rows):
            part = hidden[start : start + n_rows]
            goal = targets[start : start + n_rows].unsqueeze(1)
            losses, d_logits = of_logits(
                part @ weight.T, goal, vocab_size, softcap, gradients is not None
            )
            total += losses.sum(dtype=exact)
            if gradients is None:
                del d_logits
                continue
            d_hidden, d_head = gradients
            torch.mm(d_logits, weight, out=d_hidden[start : start + n_rows])
            if hidden.dtype == precision:
                d_head.addmm_(d_logits.T, part)
            else:
                d_head += d_logits.T @ part
            del d_logits  # free it before the next chunk's logits are computed
        if gradients is not None:
            d_hidden, d_head = gradients
            if rows is not None:
                d_hidden = torch.zeros_like(all_hidden).index_copy_(0, rows, d_hidden)
            ctx.save_for_backward(d_hidden, d_head)
        return total.to(precision)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        d_hidden, d_head = (
            (gradient * scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return d_hidden, d_head, None, None, None, None, None


def loss_and_gradient(
    logits: Float[Tensor, "n P"],
    goal: Int[Tensor, "n 1"],
    vocab_size: int,
    softcap: float,
    with_gradient: bool,
) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n P"]]:
    """Returns each row's loss, and the gradient of their sum with respect to the logits.

    The gradient has the dtype of `logits` and may reuse their memory. Without `with_gradient`, the
    second result is meaningless.
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
    d_logits = log_p.exp_()  # becomes p - [token is target]; zero for tokens that do not count
    d_logits.scatter_add_(1, goal, torch.full_like(goal, -1, dtype=d_logits.dtype)).mul_(counted)
    if slope is not None:
        d_logits.mul_(slope)
    return losses, d_logits.to(dtype)


def in_parts(
    logits: Float[Tensor, "n P"],
    goal: Int[Tensor, "n 1"],
    vocab_size: int,
    softcap: float,
    with_gradient: bool,
) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n P"]]:
    """Same as `loss_and_gradient`, for PART_ELEMENTS logits at a time. Rows are independent, so the
    bits are the same. The gradient replaces the logits in their memory.
    """
    n_rows = max(1, PART_ELEMENTS // logits.size(1))
    if len(logits) <= n_rows:
        return loss_and_gradient(logits, goal, vocab_size, softcap, with_gradient)
    losses = []
    for part, of_part in zip(logits.split(n_rows), goal.split(n_rows), strict=True):
        loss, d_logits = loss_and_gradient(part, of_part, vocab_size, softcap, with_gradient)
        losses.append(loss)
        if with_gradient:
            part.copy_(d_logits)
        del d_logits  # free it before the next part
    return torch.cat(losses), logits


def at_once(
    logits: Float[Tensor, "n P"],
    goal: Int[Tensor, "n 1"],
    vocab_size: int,
    softcap: float,
    with_gradient: bool,
) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n P"]]:
    """Same as `loss_and_gradient`, in a form for torch.compile: one reduction per row, then
    elementwise.
    """
    dtype = logits.dtype
    z = logits.to(torch.float64 if dtype == torch.float64 else torch.float32)
    tanh = torch.tanh(z / softcap) if softcap else z
    capped = tanh * softcap if softcap else z
    column = torch.arange(z.size(1), device=z.device)
    capped = torch.where(column < vocab_size, capped, float("-inf"))
    log_p = capped - capped.logsumexp(1, keepdim=True)
    counted = goal != IGNORED
    losses = -(log_p.gather(1, goal.clamp(min=0)) * counted)
    d_logits = torch.where(column == goal, log_p.exp() - 1, log_p.exp()) * counted
    return losses, (d_logits * (1 - tanh * tanh) if softcap else d_logits).to(dtype)


@functools.cache
def _fused() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(at_once)
