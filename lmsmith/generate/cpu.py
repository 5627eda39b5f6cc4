"""The CPU decoder of Transformers: prefill by PyTorch, then one token per sequence at a time in
compiled code.

    decoder = CpuDecoder(model, n_slots=8)
    logits = decoder.prefill(0, ids)          # slot 0 now holds the keys and values of `ids`
    logits = decoder.step([0], [next_id])     # reads one more token

A slot is the place of one sequence in the KV cache. A step takes any set of slots, each at its own
position. Its logits for a slot do not depend on the other slots, to the last bit (`kernels.py`),
and a prompt is always read alone, so a sequence never depends on its neighbours.

While other programs keep cores busy, steps use fewer threads if that is faster
(`machine/threads.py`); no bit changes.

Weights are those of the model: float32, float64, or packed by `weights.py` to bfloat16 or int8.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmsmith.evaluate.likelihood import inference
from lmsmith.generate import kernels
from lmsmith.generate.cache import SlotCache
from lmsmith.generate.prefix import PrefixCache, read_prompt
from lmsmith.generate.vectors import LANES, padded
from lmsmith.generate.weights import arithmetic, matrix_of
from lmsmith.machine.threads import StepThreads
from lmsmith.models.attention import QK_NORM_EPS, Attention
from lmsmith.models.gpt import GPT, Block
from lmsmith.models.layers import Norm

Array = npt.NDArray[Any]

MAX_REWIND = 8
"""Tokens that a slot can forget again."""


class CpuDecoder:
    """Decodes up to `n_slots` sequences at once with a Transformer on the CPU."""

    def __init__(self, model: GPT, n_slots: int, n_rows: int = 0, prefix_bytes: int = 0) -> None:
        """`n_rows`: tokens that one step reads, if more than one per slot. `prefix_bytes`: memory
        for prefixes that prompts share (`prefix.py`).
        """
        self.prefixes = PrefixCache(prefix_bytes) if prefix_bytes else None
        config = model.config
        # As many threads as PyTorch has: a run or a test may have lowered them.
        most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
        threads = torch.get_num_threads()
        self.threads = StepThreads(min(threads, most), numba.set_num_threads)
        # The first call starts numba's threads, which sets OpenMP's number of threads for PyTorch
        # too. Without the second line, a run would continue with more threads and other last bits.
        numba.set_num_threads(min(threads, most))
        torch.set_num_threads(threads)
        self.model, self.config, self.n_slots = model, config, n_slots
        self.n_rows = max(n_rows, n_slots)
        self.number = np.float64 if arithmetic(model) == torch.float64 else np.float32
        self.positions = np.zeros(n_slots, np.int64)
        # The last tokens of each slot, for n-gram tables; some more, so that `rewind` finds them.
        self.n_before = model.ngram_embedding.n_before if model.ngram_embedding else 0
        kept = self.n_before + MAX_REWIND if self.n_before else 0
        self.before = np.full((n_slots, kept), config.vocab_size, np.int64)
        self.turns = self.zeros(0, 0, 0)
        if model.rotary is not None:
            turns = torch.view_as_real(model.rotary.turns).squeeze(1)
            self.turns = turns.numpy().astype(self.number)
        blocks = cast(Iterable[Block], model.blocks)
        self.layers = [_Layer(self, block, i) for i, block in enumerate(blocks)]
        self.residual = _numbers(self, model.residual_scale)
        self.input = _numbers(self, model.input_scale)
        self.embedding_norm = _norm(self, model.embedding_norm)
        self.final_norm = _norm(self, model.final_norm)
        self.head = _Linear(self, model.head or model.token_embedding)
        self._make_buffers()

    def _make_buffers(self) -> None:
        config, S = self.config, self.n_rows
        heads = (config.n_head + 2 * config.n_kv) * config.width_head
        up = config.width_ff * (2 if config.gated else 1)
        widest = max(cache.capacity for cache in (layer.cache for layer in self.layers))
        self.x, self.h, self.sublayer = (self.zeros(S, padded(config.d_model)) for _ in range(3))
        self.qkv = self.zeros(S, heads)
        self.q = self.zeros(S * config.n_head, padded(config.width_head))
        self.scores = self.zeros(S * config.n_head, widest)
        self.attended = self.zeros(S, padded(config.n_head * config.width_head))
        self.up = self.zeros(S, up)
        self.activated = self.zeros(S, padded(config.width_ff))
        self.logits = self.zeros(S, config.padded_vocab_size)
        self.products = self.zeros(S, max(heads, up, config.d_model))
        self.gates = self.zeros(S, config.n_kv)
        self.squares = self.zeros(S, S)
        self.ones = self.zeros(1, padded(config.d_model))
        self.ones[:, : config.d_model] = 1

    def zeros(self, *shape: int) -> Array:
        """In the decoder's precision."""
        return np.zeros(shape, self.number)

    def prefill(self, slot: int, ids: Sequence[int]) -> Float[Tensor, " V"]:
        """Reads a prompt of 1 to `context_length` tokens into a slot, in place of what was there.

        Returns the logits of the next token; they are valid until the next call.
        """
        model, T = self.model, len(ids)
        assert 1 <= T <= self.config.context_length
        self.free(slot)
        with inference(model):
            hidden, state = read_prompt(model, ids, self.prefixes)
        for layer, read in zip(self.layers, state.layers, strict=True):
            layer.cache.fill(slot, read.keys[0, :, :T].numpy(), read.values[0, :, :T].numpy())
        self.positions[slot] = T
        if self.n_before:
            self.before[slot, -self.n_before :] = state.before[0].numpy()
        self.h[0, : self.config.d_model] = hidden[0, -1].numpy()
        return self._logits(1)[0]

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> Float[Tensor, "B V"]:
        """Reads one more token in each of B slots; gives the logits of the next ones.

        A slot that is named several times reads its tokens one after the other. The logits are
        valid until the next call.
        """
        B, config = len(slots), self.config
        where = np.asarray(slots, np.int64)
        at = self.positions[where]
        if len(set(slots)) < B:
            at += [sum(slot == other for other in slots[:i]) for i, slot in enumerate(slots)]
        assert (at < config.context_length).all()
        began = self.threads.begin()
        self._embed(where, np.asarray(ids, np.int64), at)
        embedded = self.x[:B].copy() if config.residual_scalars else self.x
        for i, layer in enumerate(self.layers):
            if config.residual_scalars:
                self.x[:B] = self.residual[i] * self.x[:B] + self.input[i] * embedded
            layer(self, B, at, where, ids)
        self.positions[where] = at + 1
        if self.final_norm is None:
            self.h[:B] = self.x[:B]
        else:
            self.final_norm(self, B, self.x, self.h)
        logits = self._logits(B)
        self.threads.end(began, B)
        return logits

    def rewind(self, slot: int, n: int) -> None:
        """Forgets the last n tokens of a slot, at most MAX_REWIND. Not for sliding windows, whose
        older positions were overwritten.
        """
        assert n <= MAX_REWIND
        assert not self.config.window
        self.positions[slot] -= n
        if n and self.n_before:
            self.before[slot, n:] = self.before[slot, :-n].copy()

    def copy(self, source: int, target: int) -> None:
        """Makes slot `target` equal to slot `source`."""
        n = int(self.positions[source])
        for layer in self.layers:
            layer.cache.copy(source, target, n)
        self.positions[target], self.before[target] = n, self.before[source]

    def free(self, slot: int) -> None:
        """Empties a slot and gives its memory back."""
        for layer in self.layers:
            layer.cache.free(slot, int(self.positions[slot]))
        self.positions[slot] = 0

    def _embed(self, slots: Array, ids: Array, at: Array) -> None:
        """The input of the first layer, in self.x."""
        model, B, D = self.model, len(slots), self.config.d_model
        with torch.no_grad():
            x = model.token_embedding(torch.from_numpy(ids))
            if model.ngram_embedding is not None:
                before = torch.from_numpy(self._read_before(slots, ids))
                x = x + model.ngram_embedding(torch.from_numpy(ids)[:, None], before)[:, 0]
            if model.position_embedding is not None:
                x = x + model.position_embedding(torch.from_numpy(at))
        self.x[:B, :D] = x.numpy()
        if self.embedding_norm is not None:
            self.embedding_norm(self, B, self.x, self.x)

    def _read_before(self, slots: Array, ids: Array) -> Array:
        """The `n_before` tokens before each id; the id is then the last one of its slot."""
        rows = []
        for slot, id in zip(slots, ids, strict=True):
            rows.append(self.before[slot, -self.n_before :].copy())
            self.before[slot, :-1] = self.before[slot, 1:].copy()
            self.before[slot, -1] = id
        return np.stack(rows)

    def _logits(self, B: int) -> Float[Tensor, "B V"]:
        """The head on self.h."""
        V, cap = self.config.vocab_size, self.config.logit_softcap
        self.head(self, B, self.h, self.logits)
        if cap:
            kernels.soft_cap(self.logits, B, V, self.number(cap))
        return torch.from_numpy(self.logits)[:B, :V]


class _Layer:
    """One Transformer block."""

    def __init__(self, decoder: CpuDecoder, block: Block, index: int) -> None:
        config, attention = decoder.config, block.attention
        self.placement, self.parallel = block.placement, block.parallel
        self.norm_attention = _norm(decoder, block.norm_attention)
        self.norm_feed_forward = _norm(decoder, block.norm_feed_forward)
        self.qkv = _Linear(decoder, attention.qkv)
        self.out = _Linear(decoder, attention.out)
        self.up = _Linear(decoder, block.feed_forward.up)
        self.down = _Linear(decoder, block.feed_forward.down)
        self.qk_eps = -1.0
        if config.qk_norm:
            self.qk_eps = QK_NORM_EPS if config.qk_gain == "head" else config.norm_eps
        self.over_heads = attention.over_heads
        self.gains = _qk_gains(decoder, attention)
        self.turns = decoder.turns if config.has_rope(index) else decoder.zeros(0, 0, 0)
        self.scale = decoder.number(attention.scale)
        gate = attention.value_gate
        self.gate = None if gate is None else _Linear(decoder, gate)
        key = str(index)
        tables = decoder.model.value_embeddings
        self.value_table = tables[key] if key in tables else None  # noqa: SIM401 - a ModuleDict
        capacity = min(config.context_length, attention.window or config.context_length)
        self.cache = SlotCache(
            decoder.n_slots, config.n_kv, capacity, config.width_head, decoder.number
        )

    def __call__(self, d: CpuDecoder, B: int, at: Array, slots: Array, ids: Sequence[int]) -> None:
        """Reads and writes d.x."""
        if self.placement == "post":
            self._attention(d, B, at, slots, ids, d.x, d.sublayer, add=False)
            d.x[:B] += d.sublayer[:B]
            self.norm_attention(d, B, d.x, d.x)
            self._feed_forward(d, B, d.x, d.sublayer, add=False)
            d.x[:B] += d.sublayer[:B]
            self.norm_feed_forward(d, B, d.x, d.x)
        elif self.placement == "output":
            d.h[:B] = d.x[:B]
            self._attention(d, B, at, slots, ids, d.x, d.sublayer, add=False)
            self.norm_attention(d, B, d.sublayer, d.sublayer)
            d.x[:B] += d.sublayer[:B]
            self._feed_forward(d, B, d.h if self.parallel else d.x, d.sublayer, add=False)
            self.norm_feed_forward(d, B, d.sublayer, d.sublayer)
            d.x[:B] += d.sublayer[:B]
        elif self.parallel:
            self.norm_attention(d, B, d.x, d.h)
            self._attention(d, B, at, slots, ids, d.h, d.sublayer, add=False)
            self.norm_feed_forward(d, B, d.x, d.h)
            d.x[:B] += d.sublayer[:B]
            self._feed_forward(d, B, d.h, d.x, add=True)
        else:
            self.norm_attention(d, B, d.x, d.h)
            self._attention(d, B, at, slots, ids, d.h, d.x, add=True)
            self.norm_feed_forward(d, B, d.x, d.h)
            self._feed_forward(d, B, d.h, d.x, add=True)

    def _attention(
        self,
        d: CpuDecoder,
        B: int,
        at: Array,
        slots: Array,
        ids: Sequence[int],
        x: Array,
        y: Array,
        *,
        add: bool,
    ) -> None:
        cache, K = self.cache, d.config.width_head
        self.qkv(d, B, x, d.qkv)
        if self.value_table is not None and self.gate is not None:
            self.gate(d, B, x, d.gates)
            gates = 2 / (1 + np.exp(-d.gates[:B, :, None]))
            table = self.value_table(torch.tensor(list(ids))).detach().numpy()
            d.qkv[:B, -cache.G * K :] += (gates * table.reshape(B, cache.G, K)).reshape(B, -1)
        norm = (self.qk_eps, self.over_heads, self.gains)
        kernels.place(d.qkv, B, K, at, slots, self.turns, *norm, d.q, cache.keys, cache.values)
        kernels.attend(
            d.q, B, K, at, slots, self.scale, cache.keys, cache.values, d.scores, d.attended
        )
        self.out(d, B, d.attended, y, add=add)

    def _feed_forward(self, d: CpuDecoder, B: int, x: Array, y: Array, *, add: bool) -> None:
        kind = kernels.ACTIVATIONS[d.config.feed_forward]
        self.up(d, B, x, d.up)
        kernels.activate(d.up, B, d.config.width_ff, kind, d.activated)
        self.down(d, B, d.activated, y, add=add)


class _Linear:
    """A linear map, or the output head."""

    def __init__(self, decoder: CpuDecoder, module: nn.Module) -> None:
        self.matrix, self.scale = matrix_of(module, LANES)
        self.bias = _numbers(decoder, getattr(module, "bias", None))

    def __call__(self, d: CpuDecoder, B: int, x: Array, y: Array, *, add: bool = False) -> None:
        """y = map(x), or y += map(x)."""
        products = d.products if add else y
        kernels.linear(self.matrix, self.scale, self.bias, x, B, products, y, add)


class _Norm:
    """LayerNorm or RMSNorm."""

    def __init__(self, decoder: CpuDecoder, module: Norm) -> None:
        self.kind, self.eps = kernels.NORMS[module.kind], module.eps
        self.gain = _numbers(decoder, module.weight)
        self.bias = _numbers(decoder, module.bias)

    def __call__(self, d: CpuDecoder, B: int, x: Array, y: Array) -> None:
        """y = norm(x); x and y may be the same."""
        if self.kind == kernels.NORMS["none"]:
            if x is not y:
                y[:B] = x[:B]
            return
        D = d.config.d_model
        kernels.norm(x, y, B, D, self.kind, self.eps, self.gain, self.bias, d.ones, d.squares)


def _norm(decoder: CpuDecoder, module: Any) -> Any:
    return None if module is None else _Norm(decoder, module)


def _qk_gains(decoder: CpuDecoder, attention: Attention) -> Array:
    """Gains of queries and keys, (H + G, K); (0, 0) for attention without QK-norm."""
    H, G, K = attention.n_head, attention.n_kv, attention.d_head
    if attention.qk_gain is None and attention.q_gain is None:
        return decoder.zeros(0, 0)
    gains = decoder.zeros(H + G, K) + 1
    if attention.qk_gain is not None:
        gains[:H] = _numbers(decoder, attention.qk_gain)[:, None]
    else:  # K numbers for all heads, or K for each
        gains[:H] = _numbers(decoder, attention.q_gain).reshape(-1, K)
        gains[H:] = _numbers(decoder, attention.k_gain).reshape(-1, K)
    return gains


def _numbers(decoder: CpuDecoder, parameter: Tensor | None) -> Array:
    """A vector of parameters; empty for None."""
    if parameter is None:
        return decoder.zeros(0)
    return parameter.detach().numpy().astype(decoder.number)
