"""GPT-2's layers on arrays: for each, its forward and its backward function side by side.

Forward functions write their result into `out`. Backward functions are given the gradient of the
loss by it, `dout`, and add to the gradients of parameters (`dw`, `db`), which other layers or
batches may add to as well; the gradient of the input, `dx`, they write, except where the text says
that they add. The formulas are in the docstrings; vectors there are rows, one for each token.

Each function makes few passes over memory and allocates next to nothing: results go into arrays
that are there, steps between into `scratch`, in chunks of rows that stay in the processor's cache.
Products are BLAS's.

In shapes: B batch, T time, D and E widths, H heads, K width of a head, V vocabulary, N = B T rows.
"""

import math
from collections.abc import Iterator

import numpy as np

from lmsmith.targets import IGNORED

EPS = 1e-5
"""Added to the variance in LayerNorm: GPT-2's."""

GELU_U, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715

CHUNK = 2**16
"""Numbers that elementwise steps work on at once: with their scratch they fit a core's cache of
a megabyte.
"""

BLOCK = 64
"""Positions that attention takes at once. Blocks of keys behind the block of queries are never
looked at: nearly half.

With heads of 64 numbers its products are just small enough for OpenBLAS to make each on one thread.
On two, so small ones gain little, and on a busy machine, where one thread waits for the other, they
take many times as long.
"""


def encoder_forward(out: np.ndarray, ids: np.ndarray, wte: np.ndarray, wpe: np.ndarray) -> None:
    """out = wte[id] + wpe[position]; ids (B, T), out (B, T, D)."""
    np.take(
        wte, ids, axis=0, out=out, mode="clip"
    )  # checked before; "raise" would write into a copy first
    out += wpe[: ids.shape[1]]


def encoder_backward(dout: np.ndarray, ids: np.ndarray, dwte: np.ndarray, dwpe: np.ndarray) -> None:
    """Each row of a table is added the gradients of all tokens that it was looked up for."""
    B, T, D = dout.shape
    for text in dout:
        dwpe[:T] += text
    flat = ids.ravel()
    order = np.argsort(
        flat, kind="stable"
    )  # tokens of one id come to lie together and are added up in one go
    rows, starts = np.unique(flat[order], return_index=True)
    dwte[rows] += np.add.reduceat(dout.reshape(B * T, D)[order], starts, axis=0)


def layernorm_forward(
    out: np.ndarray, mean: np.ndarray, rstd: np.ndarray, x: np.ndarray, w: np.ndarray, b: np.ndarray
) -> None:
    """out = (x - mean) rstd w + b with rstd = 1 / sqrt(variance + EPS); x and out (N, D), mean
    and rstd (N,).
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
    """Sums of D squares -> 1 / sqrt(mean + EPS), in place."""
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
    """With n = (x - mean) rstd and dn = dout w:  dw += sum dout n;  db += sum dout;

    dx += rstd (dn - mean(dn) - n mean(dn n)), means over a row. It adds: x is the residual stream,
    which went on past this layer as well.
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
    """out = x wᵀ + b; x (N, D), w (E, D), out (N, E). Every row of w makes one number of out."""
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
    """preatt = q kᵀ / sqrt(K);  att = softmax(preatt), no position seeing a later one;  atty = att
                                 v.

    One text, each head by itself: qkv (T, 3 D) -> preatt and att (H, T, T) -> atty (T, D). Above
    the diagonal att is zero; preatt is -inf there within a block of queries, and is not looked at
    beyond.
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
    """dv = attᵀ datty;  dpreatt = att (datt - sum(att datt)) with datt = datty vᵀ;

    dq = dpreatt k / sqrt(K);  dk = dpreattᵀ q / sqrt(K). The sum over a row of att datt is that of
                               atty datty: atty is
    the mean of the values that att weighs.
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
    """The positions 0 to T in blocks, the last of which may be shorter."""
    for start in range(0, T, BLOCK):
        yield slice(start, min(start + BLOCK, T))


def heads_of(x: np.ndarray, n_head: int, n: int = 3) -> np.ndarray:
    """Views of one text's n vectors a token, head by head: (T, n D) -> (n, H, T, K)."""
    return x.reshape(len(x), n, n_head, -1).transpose(1, 2, 0, 3)


def gelu_forward(out: np.ndarray, x: np.ndarray) -> None:
    """out = x (1 + tanh(u)) / 2 with u = sqrt(2/pi) (x + 0.044715 x³) (Hendrycks and Gimpel
    2016).
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
    """With t = tanh(u), dx = dout (1 + t) (1/2 + (1 - t) x u'/2) and u' = sqrt(2/pi) (1 + 3
    0.044715 x²).

    dx takes dout's place.
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
    """probs = softmax(logits), zero in padded columns;  loss = -log(prob of the target), zero where
                                                         that is IGNORED.

    logits and probs (N, V padded), targets and losses (N,). The loss is taken from the logits, as
    log(sum exp) - logit, so that a probability that rounds to zero has a finite one.
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
    """dlogits = (probs - 1 at the target) dloss; zero in padded columns, as probs is, and where
    targets are IGNORED.
    """
    np.multiply(probs, dloss, out=dlogits)
    dlogits[np.arange(len(targets)), targets] -= dloss
    dlogits[targets == IGNORED] = 0


def chunks(x: np.ndarray, size: int = CHUNK) -> Iterator[slice]:
    """The rows of x (N, D) in slices of about `size` numbers, of a row at least."""
    n_rows = max(1, size // x.shape[1])
    for start in range(0, len(x), n_rows):
        yield slice(start, start + n_rows)


def room(scratch: np.ndarray, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Arrays of these shapes, one behind the other in scratch memory; what they hold is
    anything.
    """
    found, start = [], 0
    for shape in shapes:
        end = start + math.prod(shape)
        found.append(scratch[start:end].reshape(shape))
        start = end
    return found


def scratch_numbers(D: int) -> int:
    """How much scratch the layers of a GPT-2 need."""
    return max(2 * max(CHUNK, 4 * D), 4 * D * D)
