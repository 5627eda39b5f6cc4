"""The tape of a Transformer: what a forward pass of `models/gpt.py` allocates and saves.

Every operation is written down in the order in which the model computes it, with the tensors that
PyTorch's autograd saves for it. Two implementations differ:

- CPU: attention keeps the weights of each block of queries (`models/kernels.py`), GELU keeps its
  slope, dropout keeps its mask as numbers of the input's type.
- GPU: fused attention keeps queries, keys, values and one number per query; masks of dropout take
  one byte.

In mixed precision, matrix products have 2 bytes per number, and the residual stream, norms and
softmax 4. autocast keeps a copy of each weight in 2 bytes while the blocks run.

Shapes: N tokens of a micro-batch, T context length, D d_model, H query heads, G key-value heads, K
d_head, F d_ff, P rows of the head.
"""

from __future__ import annotations

from lmsmith.config import RunConfig
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.plan.layers import (
    ATTENTION,
    FEED_FORWARD,
    LOSS,
    RESIDUAL,
    Layers,
    Setup,
)
from lmsmith.plan.tape import Tape, Tensor

# `lmsmith/loss.py`: the most logits of a chunk, the multiple of its rows, and the most logits of a
# part on a CPU.
CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS, CHUNK_ROWS, PART_ELEMENTS = 1 << 23, 1 << 27, 128, 1 << 20


def write_tape(config: RunConfig, setup: Setup) -> Tape:
    """The tape of one micro-batch of `setup.n_rows` rows."""
    model = GPTConfig.of(config.model)
    return _Writer(config, model, setup).written()


def loss_chunk(rows_of_head: int, n_tokens: int, gpu: bool) -> int:
    """Tokens whose logits are in memory at once."""
    n = max(1, (GPU_CHUNK_ELEMENTS if gpu else CHUNK_ELEMENTS) // rows_of_head)
    return min(n // CHUNK_ROWS * CHUNK_ROWS or n, n_tokens)


class _Writer(Layers):
    def written(self) -> Tape:
        model, tape, op = self.model, self.tape, self.tape.op
        with tape.scope():
            embedded = x = self._embed()
            tape.hold(embedded)
            for layer in range(model.n_layer):
                values = None
                if model.has_value_embedding(layer):
                    width = model.n_kv * model.width_head
                    values = self._full(width, ATTENTION, learns=self.tables_learn)
                    op("value embedding", [], [values], weights=self._gradient_of_table(width))
                if model.residual_scalars:
                    x = self._scaled(x, embedded)
                before = x
                with tape.recomputed(layer), tape.scope():
                    tape.hold(before)
                    x = self._block(x, layer, values)
            if model.norm_placement != "post":
                x = self._norm(x)
        self._loss(x)
        return tape

    def _embed(self) -> Tensor:
        model, op = self.model, self.tape.op
        learns = self.tables_learn
        x = self._full(model.d_model, RESIDUAL, learns=learns)
        # A tied head's gradient waits for this one; both are then added.
        op("token embedding", [], [x], weights=self._gradient_of_table(model.d_model))
        for _ in model.ngram_tables:
            table = 0 if self.frozen else model.ngram_table_size * model.d_model * self.setup.full
            row = self._full(model.d_model, RESIDUAL, learns=not self.frozen)
            op("n-gram embedding", [], [row], weights=table)
            total = self._full(model.d_model, RESIDUAL, learns=learns or not self.frozen)
            op("addition", [x, row], [total], passes=True)
            x = total
        if model.positions == "learned":
            total = self._full(model.d_model, RESIDUAL, learns=learns)
            op(
                "addition",
                [x],
                [total],
                passes=True,
                weights=self._vector("position_embedding.weight"),
            )
            x = total
        x = self._dropout(x)
        return self._norm(x, gain=False) if model.embedding_norm else x

    def _scaled(self, x: Tensor, embedded: Tensor) -> Tensor:
        both = [self._full(self.model.d_model, RESIDUAL) for _ in range(2)]
        for source, product in zip((x, embedded), both, strict=True):
            size = product.n_bytes
            self.tape.op(
                "residual scalars", [source], [product], saved=[source], temporary_backward=size
            )
        total = self._full(self.model.d_model, RESIDUAL)
        self.tape.op("addition", both, [total], passes=True)
        return total

    def _block(self, x: Tensor, layer: int, values: Tensor | None) -> Tensor:
        placement, name = self.model.norm_placement, f"blocks.{layer}."
        first, second = f"{name}norm_attention", f"{name}norm_feed_forward"
        if placement == "post":
            x = self._norm(
                self._add(x, self._dropout(self._attention(x, layer, values))), name=first
            )
            return self._norm(
                self._add(x, self._dropout(self._feed_forward(x, layer))), name=second
            )
        if placement == "output":
            attended = self._norm(self._attention(x, layer, values), name=first)
        else:
            attended = self._attention(self._norm(x, name=first), layer, values)
        self.tape.hold(attended)
        after = self._add(x, self._dropout(attended))
        source = x if self.model.parallel_residual else after
        self.tape.hold(after)
        if placement == "output":
            fed = self._norm(self._feed_forward(source, layer), name=second)
        else:
            fed = self._feed_forward(self._norm(source, name=second), layer)
        return self._add(after, self._dropout(fed))

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        total = self._full(self.model.d_model, RESIDUAL, learns=x.learns or y.learns)
        self.tape.op("addition", [x, y], [total], passes=True)
        return total

    def _feed_forward(self, x: Tensor, layer: int) -> Tensor:
        model, name, op = self.model, f"blocks.{layer}.feed_forward", self.tape.op
        F, kind = model.width_ff, model.feed_forward
        with self.tape.scope():
            self.tape.hold(x)
            h = self._linear(x, f"{name}.up", FEED_FORWARD, layer)
            learns = h.learns
            y = self._half(F, FEED_FORWARD, learns=learns)
            if model.gated:
                gate, up = (Tensor(FEED_FORWARD, 0.0, learns) for _ in range(2))
                op("halves", [h], [gate, up], gradients=[h.n_bytes])  # views of h
                activated = self._half(F, FEED_FORWARD, learns=learns)
                sizes = [y.n_bytes] * 2
                op("activation", [gate, h], [activated], saved=[h], gradients=sizes[:1])
                op("gating", [activated, up, h], [y], saved=[activated, h], gradients=sizes)
                self.tape.hold(h, activated)
            elif kind == "relu2" or (
                kind == "gelu-tanh" and not self.setup.gpu and not self.setup.mixed
            ):
                slope = [self._half(F, FEED_FORWARD)]
                op("activation", [h], [y], saved=slope, lingers=[y] if kind != "relu2" else [])
            else:
                op("activation", [h], [y], saved=[h])
            return self._linear(y, f"{name}.down", RESIDUAL, layer)

    def _loss(self, x: Tensor) -> None:
        """Logits in chunks, with their gradient; see `lmsmith/loss.py`."""
        model, setup, op = self.model, self.setup, self.tape.op
        P, D, full, half = model.padded_vocab_size, model.d_model, setup.full, setup.half
        if setup.mixed:
            small = self._half(D, LOSS)
            op("conversion", [x], [small])
            x = small
        if setup.how.loss != "chunked":
            self._full_loss(x)
            return
        N = self.N * setup.how.logits
        n = min(loss_chunk(P, self.N, setup.gpu), N) * P
        soft = bool(model.logit_softcap)
        part = n if setup.gpu else min(n, max(1, PART_ELEMENTS // P) * P)
        if setup.mixed:
            of_part = part * max(half + full, (2 + soft) * full + half)
            temporary = P * D * half + of_part + (n * half if part < n else 0)
        else:
            temporary = n * full + part * (1 + soft) * full
        learned = self.tables_learn if model.tied_head or self.frozen else True
        head = P * D * full
        op(
            "loss",
            [x],
            [Tensor(LOSS, 0.0)],
            saved=[Tensor(LOSS, N * D * half), Tensor(LOSS, head)],
            temporary=temporary,
            weights=head * learned,
            temporary_backward=head * (setup.mixed),
        )

    def _full_loss(self, x: Tensor) -> None:
        """All logits at once; the backward pass holds log-probabilities and their gradient."""
        model, setup = self.model, self.setup
        n = self.N * setup.how.logits * model.padded_vocab_size
        logits = Tensor(LOSS, n * setup.half)
        head = model.padded_vocab_size * model.d_model * setup.full
        self.tape.op("head product", [x], [logits], saved=[x], weights=head)
        if setup.how.loss == "compiled":
            saved, traffic = [logits], 4 * n * setup.half
            self.tape.op("loss", [logits], [Tensor(LOSS, 0.0)], saved=saved, traffic=traffic)
            return
        self.tape.op(
            "loss",
            [logits],
            [Tensor(LOSS, 0.0)],
            saved=[Tensor(LOSS, n * setup.full)],
            temporary=n * setup.full * setup.mixed,
            temporary_backward=n * setup.full,
            traffic=8 * n * setup.full,
        )
