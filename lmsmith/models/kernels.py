"""Elementwise functions and attention with hand-written backward passes that save memory traffic.

Small models on CPUs are limited by memory traffic and by the overhead of operations as much as by
arithmetic. PyTorch's composite RMSNorm and squared ReLU make three to six passes over their input
in the backward pass, and its CPU FlashAttention is slow at short contexts. Each function here
equals its plain form (`tests/models/test_kernels.py` compares them in float64) and costs about
half.

The docstrings give the formulas of the gradients. Gradients cannot be differentiated again. Under
torch.compile the plain forms are used: the compiler fuses them with the surrounding operations in
both passes. Outputs have the input's dtype, also in reduced precision.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

layer_norm_threads = 0
"""Number of threads whose LayerNorm gradients are reproduced bit for bit when fewer threads run; 0:
PyTorch's own kernel.

PyTorch sums the gradients of gain and bias in one part per thread, so their last bits depend on the
number of threads.
"""


def layer_norm(
    x: Float[Tensor, "*batch D"],
    gain: Float[Tensor, " D"] | None,
    bias: Float[Tensor, " D"] | None,
    eps: float,
) -> Float[Tensor, "*batch D"]:
    """(x - mean(x)) / sqrt(var(x) + eps), times gain and plus bias (Ba et al. 2016, eq. 4)."""
    if layer_norm_threads and gain is not None and gain.requires_grad and torch.is_grad_enabled():
        return _LayerNorm.apply(x, gain, bias, eps, layer_norm_threads)
    return F.layer_norm(x, (x.size(-1),), gain, bias, eps)


def rms_norm(
    x: Float[Tensor, "*batch D"], gain: Float[Tensor, " D"] | None, eps: float
) -> Float[Tensor, "*batch D"]:
    """x / sqrt(mean(x²) + eps), times gain if given (Zhang and Sennrich 2019, eq. 4)."""
    y = (
        F.rms_norm(x, (x.size(-1),), eps=eps)
        if torch.compiler.is_compiling()
        else _RMSNorm.apply(x, eps)
    )
    return y if gain is None else y * gain.to(y.dtype)


def relu2(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """max(x, 0)² (So et al. 2021, Primer)."""
    return F.relu(x).square() if torch.compiler.is_compiling() else _ReLU2.apply(x)


def gelu_tanh(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """GPT-2's GELU: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))) (Hendrycks and Gimpel 2016)."""
    plain = x.device.type != "cpu" or torch.compiler.is_compiling()
    if not plain and x.dtype in (torch.float32, torch.float64) and x.requires_grad:
        return _GELUTanh.apply(x)
    return F.gelu(x, approximate="tanh")


def causal_attention(
    q: Float[Tensor, "N T K"],
    k: Float[Tensor, "N T K"],
    v: Float[Tensor, "N T K"],
    scale: float,
    dropout: float,
    first: Int[Tensor, "B T"] | None = None,
    blocks: "list[Block] | None" = None,
) -> Float[Tensor, "N T K"]:
    """softmax(scale q kᵀ + causal mask) v, computed in blocks of queries.

    A block of 128 queries is multiplied only with the keys up to its end, so at long contexts
    nearly half of the products are skipped. If a gradient is needed, the weights are saved for the
    backward pass: at most N T² floats.

    `first` is the earliest key that each query sees, at or before its own position. Without it,
    every query sees from the first key on. N / B consecutive rows of q share one row of `first`.
    Keys before the earliest one of a block are skipped. `blocks` are `blocks_of(q.size(1), first,
    q.dtype)`, for callers that use them for several layers.
    """
    if blocks is None:
        blocks = blocks_of(q.size(1), first, q.dtype)
    return _CausalAttention.apply(q, k, v, scale, dropout, blocks)


@dataclass(frozen=True)
class Block:
    """Queries from `start` to `end`, which see keys from `low` on. `bias` is added to their scores:
    0 for the keys that a query sees, -inf for the others. None: each sees all keys up to its own.
    """

    start: int
    end: int
    low: int
    bias: Float[Tensor, "B 1 n m"] | None = None


def blocks_of(T: int, first: Int[Tensor, "B T"] | None, dtype: torch.dtype) -> list[Block]:
    """The blocks of queries for attention of T tokens whose earliest keys are `first`."""
    cuts = [
        (start, min(T, start + _CausalAttention.BLOCK))
        for start in range(0, T, _CausalAttention.BLOCK)
    ]
    if first is None:
        return [Block(start, end, 0) for start, end in cuts]
    blocks = []
    for start, end in cuts:
        earliest = first[:, start:end, None]
        low = int(earliest.min())
        key = torch.arange(low, end, device=first.device)
        seen = (key >= earliest) & (key <= torch.arange(start, end, device=first.device)[:, None])
        bias = torch.where(seen, 0.0, float("-inf")).to(dtype)
        blocks.append(Block(start, end, low, bias.unsqueeze(1)))
    return blocks


class _LayerNorm(torch.autograd.Function):
    """PyTorch's kernels, with the gradients of gain and bias summed as `n_parts` threads would."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor | None, eps: float, n_parts: int
    ) -> Tensor:
        y, mean, scale = torch.native_layer_norm(x, (x.size(-1),), gain, bias, eps)
        ctx.save_for_backward(x, mean, scale, gain, bias)
        ctx.n_parts = n_parts
        return y

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, gain, bias = ctx.saved_tensors
        D = x.size(-1)
        whole = [dys[0].reshape(-1, D), x.reshape(-1, D), mean.reshape(-1, 1), scale.reshape(-1, 1)]
        backward = torch.ops.aten.native_layer_norm_backward

        def of_rows(rows: list[Tensor], mask: list[bool]) -> tuple[Tensor | None, ...]:
            dy, x, mean, scale = rows
            return backward(dy, x, [D], mean, scale, gain, bias, mask)

        dx: Any = of_rows(whole, [True, False, False])[0]
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # one part is what one thread would sum
        try:
            size = math.ceil(len(whole[0]) / ctx.n_parts)
            parts: list[Any] = [
                of_rows(
                    [rows[start : start + size] for rows in whole], [False, True, bias is not None]
                )
                for start in range(0, len(whole[0]), size)
            ]
        finally:
            torch.set_num_threads(n_threads)
        dgain = functools.reduce(torch.add, [part[1] for part in parts])
        dbias = (
            functools.reduce(torch.add, [part[2] for part in parts]) if bias is not None else None
        )
        return dx.view(x.shape), dgain, dbias, None, None


class _RMSNorm(torch.autograd.Function):
    """y = r x with r = 1/sqrt(mean(x²) + eps);  dx = r (dy - y mean(dy y))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        y = F.rms_norm(x, (x.size(-1),), eps=eps)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        r = torch.linalg.vecdot(wide, wide).div_(x.size(-1)).add_(eps).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(y, r.to(x.dtype))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (dy,) = grads
        y, r = ctx.saved_tensors
        along = torch.linalg.vecdot(dy, y).div_(-y.size(-1)).unsqueeze(-1)
        return torch.addcmul(dy, y, along).mul_(r), None


class _ReLU2(torch.autograd.Function):
    """y = max(x, 0)²;  dx = 2 max(x, 0) dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = F.relu(x)
        ctx.save_for_backward(r)
        return r * r

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (dy,) = grads
        (r,) = ctx.saved_tensors
        return torch.mul(dy, r).mul_(2)


class _GELUTanh(torch.autograd.Function):
    """Uses (1 + tanh u)/2 = sigmoid(2u):  y = x s with s = sigmoid(2u), 2u = x (A + C x²).

    dy/dx = s (1 + x (1 - s) (A + 3 C x²)).

    On CPUs a sigmoid costs a tenth of PyTorch's tanh. Value and slope are computed together, in
    parts that stay in the cache. Only the slope is saved, so the backward pass is one product.
    """

    A = 2 * 0.7978845608028654  # 2 sqrt(2/pi)
    C = A * 0.044715
    PART = 1 << 16  # numbers per part: six arrays of them fit two cores' second-level caches

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        A, C = _GELUTanh.A, _GELUTanh.C
        x = x.contiguous()
        y, slope = torch.empty_like(x), torch.empty_like(x)
        part = min(_GELUTanh.PART, x.numel())
        square, inner = x.new_empty(part), x.new_empty(part)
        for x_, y_, slope_ in zip(*(t.view(-1).split(part) for t in (x, y, slope)), strict=True):
            u, v = square[: x_.numel()], inner[: x_.numel()]
            torch.mul(x_, x_, out=u)
            torch.mul(u, C, out=v).add_(A).mul_(x_).sigmoid_()  # s
            torch.mul(x_, v, out=y_)
            u.mul_(3 * C).add_(A).mul_(x_)
            u.addcmul_(u, v, value=-1).add_(1)
            torch.mul(u, v, out=slope_)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (dy,) = grads
        (slope,) = ctx.saved_tensors
        return dy * slope


class _CausalAttention(torch.autograd.Function):
    """p = softmax(scale q kᵀ), y = p v.

    dv = pᵀ dy, dp = dy vᵀ, ds = p (dp - sum(dp p)), dq = scale ds k, dk = scale dsᵀ q.
    """

    BLOCK = 128

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        dropout: float,
        blocks: list[Block],
    ) -> Tensor:
        T = q.size(1)
        later = q.new_full((min(T, _CausalAttention.BLOCK),) * 2, float("-inf")).triu_(1)
        y = torch.empty_like(q)
        weights, keeps, with_gradient = [], [], any(ctx.needs_input_grad)
        for block in blocks:
            start, end, low, bias = block.start, block.end, block.low, block.bias
            scores = torch.bmm(q[:, start:end], k[:, low:end].mT)  # (N, block, end - low)
            scores.mul_(scale)
            if bias is None:
                scores[:, :, start - low :] += later[: end - start, : end - start]
            else:
                scores.view(bias.size(0), -1, *bias.shape[2:]).add_(bias)
            p = torch.softmax(scores, -1)
            if with_gradient:
                weights.append(p)
            if dropout:
                keep = torch.empty_like(p).bernoulli_(1 - dropout).div_(1 - dropout)
                keeps.append(keep)
                p = p * keep
            if end - start == T:
                torch.bmm(p, v, out=y)
            else:
                y[:, start:end] = torch.bmm(p, v[:, low:end])
        ctx.save_for_backward(q, k, v, *weights, *keeps)
        ctx.scale, ctx.blocks = scale, [(each.start, each.end, each.low) for each in blocks]
        ctx.last_sees_all = all(each.bias is None for each in blocks)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        (dy,) = grads
        q, k, v, *saved = ctx.saved_tensors
        weights, keeps = saved[: len(ctx.blocks)], saved[len(ctx.blocks) :]
        T = q.size(1)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        if not ctx.last_sees_all:
            dk.zero_(), dv.zero_()
        # From the last block to the first: without `first` the last block sees every key, so it
        # sets dk and dv, and the other blocks add to them.
        for index, (start, end, low) in reversed(list(enumerate(ctx.blocks))):
            p, dy_block = weights[index], dy[:, start:end]
            dp = torch.bmm(dy_block, v[:, low:end].mT)
            if keeps:
                dp.mul_(keeps[index])
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(ctx.scale)
            used = p * keeps[index] if keeps else p
            if end == T and ctx.last_sees_all:
                dv.copy_(torch.bmm(used.mT, dy_block))
                dk.copy_(torch.bmm(ds.mT, q[:, start:end]))
            else:
                dv[:, low:end].baddbmm_(used.mT, dy_block)
                dk[:, low:end].baddbmm_(ds.mT, q[:, start:end])
            dq[:, start:end] = torch.bmm(ds, k[:, low:end])
        return dq, dk, dv, None, None, None
