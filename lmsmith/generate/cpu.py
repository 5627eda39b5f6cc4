"""The CPU decoder of Transformers, in compiled code.

    decoder = CpuDecoder(model, n_slots=8)
    logits = decoder.prefill(0, ids)          # slot 0 now holds the keys and values of `ids`
    logits = decoder.step([0], [next_id])     # reads one more token
    prompt = decoder.open(1, ids)
    logits = decoder.read([prompt], [0], [next_id])   # reads prompts beside running sequences

A slot is the place of one sequence in the KV cache. A step takes any set of slots, each at its own
position. Its logits for a slot do not depend on the other slots, to the last bit (`kernels.py`).
Prompts are read by the same kernels, and long ones by PyTorch first, each alone (`prompts.py`). So
a sequence never depends on its neighbours.

While other programs keep cores busy, steps use fewer threads if that is faster
(`machine/threads.py`); no bit changes.

Weights are those of the model: float32, float64, or packed by `weights.py` to bfloat16 or int8.
With int8, what the matrices are multiplied with is rounded to 16 bits (`int8.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from lmsmith.generate import kernels
from lmsmith.generate.cpu_layers import Layer, Linear, Rounding, norm_of, numbers_of
from lmsmith.generate.prefix import PrefixCache
from lmsmith.generate.prompts import PASS_TOKENS, CpuPrompt, open_prompt, plan_pass
from lmsmith.generate.vectors import padded
from lmsmith.generate.weights import arithmetic, has_int8
from lmsmith.machine.threads import StepThreads
from lmsmith.models.attention import State
from lmsmith.models.gpt import GPT, Block

Array = npt.NDArray[Any]

MAX_REWIND = 8
"""Tokens that a slot can forget again."""


class CpuDecoder:
    """Decodes up to `n_slots` sequences at once with a Transformer on the CPU."""

    def __init__(self, model: GPT, n_slots: int, n_rows: int = 0, prefix_bytes: int = 0) -> None:
        """`n_rows`: tokens that one step reads, if more than one per slot. `prefix_bytes`: memory
        for prefixes that prompts share (`prefix.py`).
        """
        kernels.compile_ahead(
            *(["int8"] if has_int8(model) else []),
            later=["soft-cap"] if model.config.logit_softcap else [],
        )
        self.prefixes = PrefixCache(prefix_bytes) if prefix_bytes else None
        config = model.config
        # As many threads as PyTorch has: a run or a test may have lowered them.
        most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
        threads = min(torch.get_num_threads(), most)
        use_threads(threads)  # the first call starts numba's threads, before any kernel does
        self.threads = StepThreads(threads, use_threads)
        self.model, self.config, self.n_slots = model, config, n_slots
        self.n_logits = max(n_rows, n_slots)  # rows whose logits one pass gives
        self.n_rows = self.n_logits + PASS_TOKENS
        self.prompts: dict[int, CpuPrompt] = {}  # that have been read, by slot
        self.n_tokens_copied = 0  # from prompts in other slots
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
        self.rounding = Rounding(self.n_rows)  # of vectors, for int8 matrices
        self.layers = [Layer(self, block, i) for i, block in enumerate(blocks)]
        self.residual = numbers_of(self, model.residual_scale)
        self.input = numbers_of(self, model.input_scale)
        self.embedding_norm = norm_of(self, model.embedding_norm)
        self.final_norm = norm_of(self, model.final_norm)
        self.head = Linear(self, model.head or model.token_embedding)
        # A text of this length fills no ring: no position has been overwritten.
        self.n_in_place = min(layer.cache.capacity for layer in self.layers)
        self._make_buffers()

    def _make_buffers(self) -> None:
        config, S = self.config, self.n_rows
        heads = (config.n_head + 2 * config.n_kv) * config.width_head
        up = config.width_ff * (2 if config.gated else 1)
        widest = max(cache.capacity for cache in (layer.cache for layer in self.layers))
        self.x, self.h, self.sublayer = (self.zeros(S, padded(config.d_model)) for _ in range(3))
        self.qkv = self.zeros(S, heads)
        self.q = self.zeros(S * config.n_head, padded(config.width_head))
        self.n_attending = max(self.n_logits, 16)  # rows; more would need much memory
        self.scores = self.zeros(self.n_attending * config.n_head, widest)
        self.attended = self.zeros(S, padded(config.n_head * config.width_head))
        self.up = self.zeros(S, up)
        self.activated = self.zeros(S, padded(config.width_ff))
        self.last = self.zeros(self.n_logits, padded(config.d_model))
        self.logits = self.zeros(self.n_logits, config.padded_vocab_size)
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
        assert 1 <= len(ids) <= self.config.context_length
        prompt = self.open(slot, ids)
        while not prompt.done:
            logits = self.read([prompt], [], [])
        return logits[0]

    def open(self, slot: int, ids: Sequence[int]) -> CpuPrompt:
        """Empties a slot, to read a prompt of 1 to `context_length` tokens into it."""
        self.free(slot)
        return open_prompt(self, slot, ids)

    def read(
        self, prompts: Sequence[CpuPrompt], slots: Sequence[int], ids: Sequence[int]
    ) -> Float[Tensor, "B V"]:
        """Reads a part of the prompts, and one more token in each of the slots, in one pass.

        Gives the logits after each prompt that is `done` now, then those of the slots. They are
        valid until the next call.
        """
        done = plan_pass(self, prompts)
        where, tokens, ends = [*slots], [*ids], []
        for prompt in prompts:
            where += [prompt.slot] * prompt.n_rows
            tokens += prompt.ids[prompt.n_read : prompt.n_read + prompt.n_rows]
            prompt.n_read += prompt.n_rows
            if prompt in done:
                ends.append(len(where) - 1)
        if where:
            self._pass(where, tokens)
        for i, prompt in enumerate(done):
            if prompt.last is None:
                self.last[i] = self.h[ends[i]]
            else:
                self.last[i, : self.config.d_model] = prompt.last.numpy()
        n = len(done) + len(slots)
        if not n:
            return torch.empty(0, self.config.vocab_size)
        self.last[len(done) : n] = self.h[: len(slots)]
        logits = self._logits(self.last, n)
        for prompt in done:
            prompt.done, self.prompts[prompt.slot] = True, prompt
            for follower in prompt.followers:
                self.copy(prompt.slot, follower.slot)
                follower.done = True
        if not any(prompt.followers for prompt in done):
            return logits
        row_of = {id(each): i for i, p in enumerate(done) for each in (p, *p.followers)}
        rows = [row_of[id(prompt)] for prompt in prompts if prompt.done]
        return logits[[*rows, *range(len(done), n)]]

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> Float[Tensor, "B V"]:
        """Reads one more token in each of B slots; gives the logits of the next ones.

        A slot that is named several times reads its tokens one after the other. The logits are
        valid until the next call.
        """
        self._pass(slots, ids)
        return self._logits(self.h, len(slots))

    def _pass(self, slots: Sequence[int], ids: Sequence[int]) -> None:
        """Reads a token per row, and leaves what the head reads in self.h."""
        B, config = len(slots), self.config
        where = np.asarray(slots, np.int64)
        at = self.positions[where]
        if len(set(slots)) < B:
            at += _earlier_rows(slots)
        assert (at < config.context_length).all()
        assert self.n_rows >= B
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
        self.threads.end(began, B)

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
        self.prompts.pop(target, None)

    def copy_prefix(self, source: int, target: int, n: int, ids: Sequence[int]) -> None:
        """Copies the first n positions of slot `source`, which hold the first n of `ids`."""
        for layer in self.layers:
            layer.cache.copy(source, target, n)
        self.positions[target] = n
        if kept := self.before.shape[1]:
            self.before[target] = self.config.vocab_size
            last = ids[max(0, n - kept) : n]
            self.before[target, kept - len(last) :] = last

    def fill(self, slot: int, state: State) -> None:
        """Puts what PyTorch has read into a slot."""
        n = state.position
        for layer, read in zip(self.layers, state.layers, strict=True):
            layer.cache.fill(slot, read.keys[0, :, :n].numpy(), read.values[0, :, :n].numpy())
        self.positions[slot] = n
        if self.n_before:
            self.before[slot, -self.n_before :] = state.before[0].numpy()

    def free(self, slot: int) -> None:
        """Empties a slot and gives its memory back."""
        for layer in self.layers:
            layer.cache.free(slot, int(self.positions[slot]))
        self.positions[slot] = 0
        self.prompts.pop(slot, None)
        self.before[slot] = self.config.vocab_size

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

    def _logits(self, h: Array, B: int) -> Float[Tensor, "B V"]:
        """The head on the first B rows of h."""
        V, cap = self.config.vocab_size, self.config.logit_softcap
        self.head(self, B, h, self.logits)
        if cap:
            kernels.soft_cap(self.logits, B, V, self.number(cap))
        return torch.from_numpy(self.logits)[:B, :V]


def _earlier_rows(slots: Sequence[int]) -> list[int]:
    """For each row, how many rows before it have the same slot."""
    n: dict[int, int] = {}
    earlier = []
    for slot in slots:
        earlier.append(n.get(slot, 0))
        n[slot] = earlier[-1] + 1
    return earlier


def use_threads(n: int) -> None:
    """Sets the number of threads of compiled kernels.

    Where numba's threads are OpenMP's, this also sets PyTorch's number, and a run that decodes
    would continue with another number of threads and other last bits. So PyTorch's is set back.
    """
    threads = torch.get_num_threads()
    numba.set_num_threads(n)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
