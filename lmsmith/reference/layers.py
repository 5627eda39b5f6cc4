"""GPT-2's layers on arrays: the forward and backward function of each, side by side.

Forward functions write their result to `out`. Backward functions take `dout`, the gradient of the
loss with respect to the output. They add to the gradients of parameters (`dw`, `db`), because other
layers or batches may add to them too, and overwrite the gradient of the input (`dx`), unless the
docstring says that they add to it. Docstrings give the formulas; vectors are rows, one per token.

Each function makes few passes over memory and allocates almost nothing: results go to existing
arrays, and intermediate values to `scratch`, in chunks of rows that stay in the processor's cache.
Matrix products are BLAS calls.

Shapes: B batch, T time, D and E widths, H heads, K width of a head, V vocabulary, N = B T rows.
"""

import math
from collections.abc import Iterator

import numpy as np

from lmsmith.targets import IGNORED

EPS = 1e-5
"""Added to the variance in LayerNorm, as in GPT-2."""

GELU_U, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715

CHUNK = 2**16
"""Elements that elementwise functions process at a time: with scratch, they fit a cache of a
megabyte.
"""

BLOCK = 64
"""Positions that attention processes at a time. It skips blocks of keys after the block of queries:
almost half of them.

With heads of 64 numbers, matrix products of this size are just small enough for OpenBLAS to use one
thread. Such small products gain little from two threads, and on a busy machine, where one thread
waits for the other, they take many times as long.
"""


def encoder_forward(out: np.ndarray, ids: np.ndarray, wte: np.ndarray, wpe: np.ndarray) -> None:
    """out = wte[id] + wpe[position]; ids (B, T), out (B, T, D)."""
    # The ids have been checked. mode="raise" would write to a buffer first.
    np.take(wte, ids, axis=0, out=out, mode="clip")
    out += wpe[: ids.shape[1]]


def encoder_backward(dout: np.ndarray, ids: np.ndarray, dwte: np.ndarray, dwpe: np.ndarray) -> None:
    """Adds to each row of a table the gradients of all tokens that used it."""
    B, T, D = dout.shape
    for text in dout:
        dwpe[:T] += text
    flat = ids.ravel()
    # Sorting makes tokens of the same id adjacent, so one reduceat sums them.
    order = np.argsort(flat, kind="stable")
    rows, starts = np.unique(flat[order], return_index=True)
    dwte[rows] += np.add.reduceat(dout.reshape(B * T, D)[order], starts, axis=0)


def layernorm_forward(
    out: np.ndarray, mean: np.ndarray, rstd: np.ndarray, x: np.ndarray, w: np.ndarray, b: np.ndarray
) -> None:
    """out = (x - mean) rstd w + b with rstd = 1 / sqrt(variance + EPS).

    x and out (N, D), mean and rstd (N,).
    """
    D = x.shape[1]
    for rows in chunks(x):
        part = out[rows]
        np.mean(x[rows], axis=1, out=mean[rows])
        np.subtract(x[rows], mean[rows, None], out=part)
        np.einsum("ij,ij->i", part, part, out=rstd[rows])
        part *= inverse_root(rstd[rows], D)[:, None]
        part *= w
        part += b


def inverse_root(squares: np.ndarray, D: int) -> np.ndarray:
    """Turns sums of D squares into 1 / sqrt(mean + EPS), in place."""
    squares /= D
    squares += EPS
    np.sqrt(squares, out=squares)
    return np.reciprocal(squares, out=squares)


def layernorm_backward(
    dx: np.ndarray,
    dw: np.ndarray,
    db: np.ndarray,
    dout: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """With n = (x - mean) rstd and dn = dout w:  dw += sum dout n;  db += sum dout; dx += rstd (dn
    - mean(dn) - n mean(dn n)), with means over a row.

    It adds to dx because x is the residual stream, whose gradient also has other parts.
    """
    D = x.shape[1]
    for rows in chunks(x):
        n, dn = room(scratch, x[rows].shape, x[rows].shape)
        np.subtract(x[rows], mean[rows, None], out=n)
        n *= rstd[rows, None]
        np.multiply(dout[rows], n, out=dn)
        dw += np.add.reduce(dn, axis=0)
        db += np.add.reduce(dout[rows], axis=0)
        np.multiply(dout[rows], w, out=dn)
        along = np.einsum("ij,ij->i", dn, n)
        along /= D
        n *= along[:, None]
        dn -= np.mean(dn, axis=1, keepdims=True)
        dn -= n
        dn *= rstd[rows, None]
        dx[rows] += dn


def linear_forward(out: np.ndarray, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> None:
    """out = x wᵀ + b; x (N, D), w (E, D), out (N, E). Each row of w computes one element of out."""
    np.matmul(x, w.T, out=out)
    if b is not None:
        out += b


def linear_backward(
    dx: np.ndarray,
    dw: np.ndarray,
    db: np.ndarray | None,
    dout: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """dx = dout w;  dw += doutᵀ x;  db += sum dout."""
    np.matmul(dout, w, out=dx)
    for rows in chunks(w, len(scratch)):
        (product,) = room(scratch, w[rows].shape)
        np.matmul(dout[:, rows].T, x, out=product)
        dw[rows] += product
    if db is not None:
        db += np.add.reduce(dout, axis=0)


def attention_forward(
    atty: np.ndarray, preatt: np.ndarray, att: np.ndarray, qkv: np.ndarray
) -> None:
    """preatt = q kᵀ / sqrt(K);  att = softmax(preatt + causal mask);  atty = att v.

    Processes one text and each head separately: qkv (T, 3 D) -> preatt and att (H, T, T) -> atty
    (T, D). Above the diagonal att is zero. There, preatt is -inf within a block of queries and
    unused elsewhere.
    """
    n_head, T, _ = att.shape
    q, k, v = heads_of(qkv, n_head)  # each (H, T, K)
    (y,) = heads_of(atty, n_head, 1)
    q = q * (1 / math.sqrt(q.shape[2]))
    y[...] = 0
    for queries in blocks(T):
        scores, weights = preatt[:, queries, : queries.stop], att[:, queries, : queries.stop]
        for keys in blocks(queries.stop):
            np.matmul(q[:, queries], k[:, keys].swapaxes(1, 2), out=scores[:, :, keys])
        size = queries.stop - queries.start
        scores[:, :, queries] += np.triu(np.full((size, size), -np.inf, scores.dtype), 1)
        np.subtract(scores, np.max(scores, axis=2, keepdims=True), out=weights)
        np.exp(weights, out=weights)
        weights /= np.add.reduce(weights, axis=2, keepdims=True)
        for keys in blocks(queries.stop):
            y[:, queries] += weights[:, :, keys] @ v[:, keys]


def attention_backward(
    dqkv: np.ndarray, datty: np.ndarray, qkv: np.ndarray, atty: np.ndarray, att: np.ndarray
) -> None:
    """dv = attᵀ datty;  dpreatt = att (datt - sum(att datt)) with datt = datty vᵀ; dq = dpreatt k /
    sqrt(K);  dk = dpreattᵀ q / sqrt(K).

    The row sum of att datt equals that of atty datty, because atty = att v.
    """
    n_head, T, _ = att.shape
    q, k, v = heads_of(qkv, n_head)
    dq, dk, dv = heads_of(dqkv, n_head)
    (y,), (dy,) = heads_of(atty, n_head, 1), heads_of(datty, n_head, 1)
    scale = 1 / math.sqrt(q.shape[2])
    q, k = q * scale, k * scale
    along = np.einsum("htk,htk->ht", y, dy)[:, :, None]
    dqkv[...] = 0
    for queries in blocks(T):
        weights = att[:, queries, : queries.stop]
        dscores = np.empty_like(weights)
        for keys in blocks(queries.stop):
            np.matmul(dy[:, queries], v[:, keys].swapaxes(1, 2), out=dscores[:, :, keys])
        dscores -= along[:, queries]
        dscores *= weights
        for keys in blocks(queries.stop):
            dq[:, queries] += dscores[:, :, keys] @ k[:, keys]
            dk[:, keys] += dscores[:, :, keys].swapaxes(1, 2) @ q[:, queries]
            dv[:, keys] += weights[:, :, keys].swapaxes(1, 2) @ dy[:, queries]


def blocks(T: int) -> Iterator[slice]:
    """The positions 0 to T in blocks; the last one may be shorter."""
    for start in range(0, T, BLOCK):
        yield slice(start, min(start + BLOCK, T))


def heads_of(x: np.ndarray, n_head: int, n: int = 3) -> np.ndarray:
    """Views of one text's n vectors per token, head by head: (T, n D) -> (n, H, T, K)."""
    return x.reshape(len(x), n, n_head, -1).transpose(1, 2, 0, 3)


def gelu_forward(out: np.ndarray, x: np.ndarray) -> None:
    """out = x (1 + tanh(u)) / 2 with u = sqrt(2/pi) (x + 0.044715 x³).

    (Hendrycks and Gimpel 2016, the approximation that GPT-2 uses.)
    """
    for rows in chunks(x):
        part, t = x[rows], out[rows]
        np.multiply(part, part, out=t)
        t *= GELU_U * GELU_CUBE
        t += GELU_U
        t *= part
        np.tanh(t, out=t)
        t += 1
        t *= part
        t *= 0.5


def gelu_backward(dout: np.ndarray, x: np.ndarray, scratch: np.ndarray) -> None:
    """With t = tanh(u):  dx = dout (1 + t) (1/2 + (1 - t) x u'/2) and u' = sqrt(2/pi) (1 + 3
    0.044715 x²).

    dx overwrites dout.
    """
    for rows in chunks(x):
        part = x[rows]
        t, h = room(scratch, part.shape, part.shape)
        np.multiply(part, part, out=h)
        np.multiply(h, GELU_U * GELU_CUBE, out=t)
        t += GELU_U
        t *= part
        np.tanh(t, out=t)
        h *= 1.5 * GELU_U * GELU_CUBE
        h += 0.5 * GELU_U
        h *= part  # x u'/2
        t += 1
        dout[rows] *= t
        np.subtract(2, t, out=t)  # 1 - tanh(u)
        t *= h
        t += 0.5
        dout[rows] *= t


def crossentropy_forward(
    losses: np.ndarray, probs: np.ndarray, logits: np.ndarray, targets: np.ndarray, vocab_size: int
) -> None:
    """probs = softmax(logits), zero in padded columns;  loss = -log(prob of the target).

    logits and probs (N, V padded), targets and losses (N,). The loss is zero where the target is
    IGNORED. It is computed from the logits, as log(sum exp) - logit, so it is finite even if the
    probability rounds to zero.
    """
    for rows in chunks(logits):
        real, p = logits[rows, :vocab_size], probs[rows, :vocab_size]
        np.subtract(real, np.max(real, axis=1, keepdims=True), out=p)
        losses[rows] = -np.take_along_axis(p, targets[rows, None], axis=1)[:, 0]
        np.exp(p, out=p)
        total = np.add.reduce(p, axis=1, keepdims=True)
        p /= total
        losses[rows] += np.log(total)[:, 0]
        probs[rows, vocab_size:] = 0
    losses[targets == IGNORED] = 0


def crossentropy_backward(
    dlogits: np.ndarray, dloss: float, probs: np.ndarray, targets: np.ndarray
) -> None:
    """dlogits = (probs - [token is target]) dloss.

    It is zero in padded columns, where probs is zero, and in rows with an IGNORED target.
    """
    np.multiply(probs, dloss, out=dlogits)
    dlogits[np.arange(len(targets)), targets] -= dloss
    dlogits[targets == IGNORED] = 0


def chunks(x: np.ndarray, size: int = CHUNK) -> Iterator[slice]:
    """The rows of x (N, D) in slices of about `size` elements, at least one row each."""
    n_rows = max(1, size // x.shape[1])
    for start in range(0, len(x), n_rows):
        yield slice(start, start + n_rows)


def room(scratch: np.ndarray, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Arrays of these shapes in scratch memory, one after the other, uninitialized."""
    arrays, start = [], 0
    for shape in shapes:
        end = start + math.prod(shape)
        arrays.append(scratch[start:end].reshape(shape))
        start = end
    return arrays


def scratch_numbers(D: int) -> int:
    """The number of scratch elements that the layers of a GPT-2 need."""
    return max(2 * max(CHUNK, 4 * D), 4 * D * D)
