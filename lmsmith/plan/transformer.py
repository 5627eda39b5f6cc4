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

import math
from dataclasses import dataclass
from typing import Literal

from lmsmith.config import RunConfig
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.gpt_costs import blocks, shapes
from lmsmith.plan.parameters import adapted
from lmsmith.plan.tape import Tape, Tensor

RESIDUAL, NORMS, ATTENTION, WEIGHTS, FEED_FORWARD, LOSS, MASKS, COPIES, ADAPTERS = (
    "residual stream",
    "norms",
    "queries, keys, values",
    "attention weights",
    "feed-forward",
    "logits and loss",
    "dropout masks",
    "weights in reduced precision",
    "adapters",
)

# `lmsmith/loss.py`: the most logits of a chunk, and the multiple of its rows.
CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS, CHUNK_ROWS = 1 << 23, 1 << 27, 128


@dataclass(frozen=True)
class Implementation:
    """How other programs compute a step, where they differ from lmsmith.

    attention   fused: FlashAttention and similar kernels; math: all weights in memory
    loss        chunked: `lmsmith/loss.py`; full: all logits at once, as `F.cross_entropy` needs
                compiled: all logits, without copies in float32
    selective   activation checkpointing that keeps the output of attention and of every second
                product, as torchtitan's does
    half        FSDP2 gathers weights in half precision; no copies by autocast
    float8      products inside blocks in float8
    """

    attention: Literal["fused", "math"] = "fused"
    loss: Literal["chunked", "full", "compiled"] = "chunked"
    selective: bool = False
    half: bool = False
    float8: bool = False


LMSMITH = Implementation()


@dataclass(frozen=True)
class Setup:
    """How a pass is computed. `full`: bytes of a number outside matrix products; `half`: inside.
    `gpu`: the kernels of GPUs; `how`: which of them.
    """

    n_rows: int
    full: int
    half: int
    gpu: bool
    how: Implementation = LMSMITH

    @property
    def mixed(self) -> bool:
        return self.half != self.full


def write_tape(config: RunConfig, setup: Setup) -> Tape:
    """The tape of one micro-batch of `setup.n_rows` rows."""
    model = GPTConfig.of(config.model)
    return _Writer(config, model, setup).written()


def loss_chunk(rows_of_head: int, n_tokens: int, gpu: bool) -> int:
    """Tokens whose logits are in memory at once."""
    n = max(1, (GPU_CHUNK_ELEMENTS if gpu else CHUNK_ELEMENTS) // rows_of_head)
    return min(n // CHUNK_ROWS * CHUNK_ROWS or n, n_tokens)


class _Writer:
    def __init__(self, config: RunConfig, model: GPTConfig, setup: Setup) -> None:
        self.config, self.model, self.setup, self.tape = config, model, setup, Tape()
        self.N = setup.n_rows * model.context_length
        self.shapes = shapes(model)
        self.frozen, self.n_products = bool(config.lora.rank), 0
        self.tables_learn = not self.frozen or config.lora.embeddings == "yes"

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

    # Tensors.

    def _full(self, width: float, kind: str, *, learns: bool = True) -> Tensor:
        return Tensor(kind, self.N * width * self.setup.full, learns)

    def _half(self, width: float, kind: str, *, learns: bool = True) -> Tensor:
        return Tensor(kind, self.N * width * self.setup.half, learns)

    def _gradient_of_table(self, width: int) -> float:
        return self.model.padded_vocab_size * width * self.setup.full * self.tables_learn

    def _vector(self, name: str) -> float:
        """Bytes of the gradient of a gain or bias."""
        shape = self.shapes.get(name)
        return 0.0 if shape is None or self.frozen else math.prod(shape) * self.setup.full

    # Parts of the model.

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

    def _dropout(self, x: Tensor) -> Tensor:
        if not self.model.dropout:
            return x
        y = Tensor(x.kind, x.n_bytes, x.learns)
        n_bytes = self.N * self.model.d_model if self.setup.gpu else x.n_bytes
        self.tape.op("dropout", [x], [y], saved=[Tensor(MASKS, n_bytes)])
        return y

    def _norm(self, x: Tensor, *, gain: bool | None = None, name: str = "final_norm") -> Tensor:
        model, N = self.model, self.N
        if model.norm == "none":
            return x
        D, full = model.d_model, self.setup.full
        gain = model.norm_gain if gain is None else gain
        y = Tensor(NORMS, N * D * full, x.learns)
        weights = self._vector(f"{name}.weight") + self._vector(f"{name}.bias") if gain else 0.0
        if model.norm == "layernorm":
            self.tape.op("norm", [x], [y], saved=[x, Tensor(NORMS, 2 * N * full)], weights=weights)
            return y
        self.tape.op(
            "norm", [x], [y], saved=[y, Tensor(NORMS, N * full)], temporary_backward=N * full
        )
        if not gain:
            return y
        scaled = Tensor(NORMS, y.n_bytes, x.learns)
        self.tape.op(
            "gain", [y], [scaled], saved=[y], weights=weights, temporary_backward=y.n_bytes
        )
        return scaled

    def _linear(self, x: Tensor, name: str, kind: str, layer: int) -> Tensor:
        """A linear map of the width that the parameter `name` has, with its adapters."""
        n_out, n_in = self.shapes[f"{name}.weight"]
        full, half = self.setup.full, self.setup.half
        rows = adapted(self.model, ".".join(name.split(".")[2:]), self.config.lora)
        matrix = n_out * n_in
        if self.setup.mixed:
            small = Tensor(x.kind, self.N * n_in * half, x.learns)
            if x.n_bytes != small.n_bytes:
                self.tape.op("conversion", [x], [small])
                x = small
        y = Tensor(kind, self.N * n_out * half, x.learns or not self.frozen)
        copies = self.setup.mixed and not self.setup.how.half
        copy = [Tensor(COPIES, matrix * half)] if copies else []
        self.n_products += 1
        self.tape.op(
            f"{name.rpartition('.')[2]} product",
            [x],
            [y, *copy],
            saved=([] if self.frozen else [x]) + copy,
            weights=0.0 if self.frozen else matrix * full + self._vector(f"{name}.bias"),
            temporary_backward=matrix * half * self.setup.mixed * (not self.frozen),
            keeps=self.setup.how.selective and self.n_products % 2 == 1,
        )
        return self._adapters(x, y, name, rows) if rows else y

    def _adapters(self, x: Tensor, y: Tensor, name: str, rows: list[int]) -> Tensor:
        n_out, n_in = self.shapes[f"{name}.weight"]
        R, full = self.config.lora.rank, self.setup.full
        op = self.tape.op
        with self.tape.scope():
            self.tape.hold(x, y)
            low = self._half(len(rows) * R, ADAPTERS)
            op("adapter A", [x], [low], saved=[x], weights=len(rows) * R * n_in * full)
            high = self._half(sum(rows), ADAPTERS)
            op("adapter B", [low], [high], saved=[low], weights=sum(rows) * R * full)
            self.tape.hold(high)
            joined, scaled = (self._half(n_out, ADAPTERS) for _ in range(2))
            op("joined adapters", [high], [joined])
            op("scaled adapters", [joined], [scaled])
            total = Tensor(y.kind, y.n_bytes)
            op("addition", [y, scaled], [total], passes=True)
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

    def _attention(self, x: Tensor, layer: int, values: Tensor | None) -> Tensor:
        model, name = self.model, f"blocks.{layer}.attention"
        H, G, K = model.n_head, model.n_kv, model.width_head
        op = self.tape.op
        with self.tape.scope():
            self.tape.hold(x)
            qkv = self._linear(x, f"{name}.qkv", ATTENTION, layer)
            learns = qkv.learns
            self.tape.hold(qkv)  # the values are a view of it
            both = qkv
            if model.qk_norm:
                both = self._qk_norm(both, name)
            if model.has_rope(layer):
                turned = self._half((H + G) * K, ATTENTION, learns=learns)
                extra = turned.n_bytes * self.setup.full / self.setup.half
                size = [extra if both is qkv else turned.n_bytes]
                op(
                    "rotation",
                    [both],
                    [turned],
                    gradients=size if learns else None,
                    temporary=extra * self.setup.mixed,
                    temporary_backward=extra,
                )
                both = turned
                self.tape.hold(both)
            q = both
            if model.qk_norm and model.qk_gain == "head":
                q = self._half(H * K, ATTENTION, learns=learns)
                op(
                    "query gain",
                    [both],
                    [q],
                    saved=[both],
                    weights=self._vector(f"{name}.qk_gain"),
                    gradients=[q.n_bytes] if learns else None,
                    temporary_backward=q.n_bytes,
                )
                self.tape.hold(q)
            v = qkv
            if values is not None:
                v = self._half(G * K, ATTENTION, learns=learns)
                gate = self.shapes[f"{name}.value_gate.weight"]
                op(
                    "value gate",
                    [qkv, values],
                    [v],
                    saved=[values, x],
                    temporary=v.n_bytes,
                    gradients=[v.n_bytes] * (learns + values.learns),
                    weights=0 if self.frozen else math.prod(gate) * self.setup.full,
                )
                self.tape.hold(v)
            y = self._within(list(dict.fromkeys([q, both, v])), layer, learns)
            self.tape.hold(y)
            out = y
            if not self.setup.gpu and H > 1:
                out = self._half(H * K, ATTENTION, learns=learns)
                op("transpose", [y], [out], passes=True)
            return self._linear(out, f"{name}.out", RESIDUAL, layer)

    def _qk_norm(self, qkv: Tensor, name: str) -> Tensor:
        """Queries and keys, normalized. With one gain per number, each has its own norm."""
        model, op, half = self.model, self.tape.op, self.setup.half
        H, G, K = model.n_head, model.n_kv, model.width_head
        y = self._half((H + G) * K, ATTENTION, learns=qkv.learns)
        stats = Tensor(ATTENTION, self.N * (H + G) * half)
        size = [y.n_bytes] if qkv.learns else None
        op("norm of queries and keys", [qkv], [y], saved=[y, stats], gradients=size)
        if model.qk_gain == "head":
            return y
        gains = self._vector(f"{name}.q_gain") + self._vector(f"{name}.k_gain")
        scaled, joined = (self._half((H + G) * K, ATTENTION, learns=y.learns) for _ in range(2))
        op("gain", [y], [scaled], saved=[y], weights=gains, temporary_backward=y.n_bytes)
        op("joined queries and keys", [scaled], [joined])
        return joined

    def _within(self, sources: list[Tensor], layer: int, learns: bool) -> Tensor:
        """Attention itself: from queries, keys and values (views of `sources`) to its output."""
        model, op, half, full = self.model, self.tape.op, self.setup.half, self.setup.full
        H, K, T, B = model.n_head, model.width_head, model.context_length, self.setup.n_rows
        y = self._half(H * K, ATTENTION, learns=learns)
        gradients = [y.n_bytes] * 3
        if self.setup.gpu and self.setup.how.attention == "math":
            return self._math_attention(sources, y)
        if self.setup.gpu:
            copied = [] if model.n_kv == H else [self._half(2 * H * K, ATTENTION, learns=learns)]
            saved = [*sources, *copied, y, Tensor(WEIGHTS, 4 * self.N * H)]
            total = Tensor(ATTENTION, 0.0, learns)
            op(
                "views",
                sources,
                [total, *copied],
                gradients=[s.n_bytes for s in sources if s.learns],
            )
            op(
                "attention",
                [total],
                [y],
                saved=saved,
                gradients=[sum(gradients)] if learns else None,
                keeps=True,
            )
            return y
        copies = self._half(3 * H * K, ATTENTION, learns=learns)
        learning = [source for source in sources if source.learns]
        op("copies per head", sources, [copies], gradients=[source.n_bytes for source in learning])
        cut = blocks(T, model.window_of(layer))
        kept = sum((end - start) * (end - low) for start, end, low in cut)
        largest = max((end - start) * (end - low) for start, end, low in cut)
        square, one = B * H * kept * full, B * H * largest * full
        saved = [copies, Tensor(WEIGHTS, square)]
        if model.attention_dropout:
            saved.append(Tensor(MASKS, square))
        op(
            "attention",
            [copies],
            [y],
            saved=saved,
            temporary=one * (2 if model.attention_dropout else 1) - one * (half > full),
            temporary_backward=(3 if model.attention_dropout else 2) * one,
        )
        return y

    def _math_attention(self, sources: list[Tensor], y: Tensor) -> Tensor:
        """All T² weights of each head, as PyTorch's operations compute them one by one: scores,
        scaled, masked, softmax in full precision, and a copy in half precision.
        """
        full, half = self.setup.full, self.setup.half
        n = self.N * self.model.n_head * self.model.context_length
        saved = [*sources, Tensor(WEIGHTS, n * (full + half * self.setup.mixed))]
        self.tape.op(
            "attention",
            sources,
            [y],
            saved=saved,
            gradients=[source.n_bytes for source in sources if source.learns],
            temporary=n * (full + half),
            temporary_backward=2 * n * full,
            traffic=2 * n * (6 * half + 4 * full if self.setup.mixed else 8 * full),
            keeps=True,
        )
        return y

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
        n = loss_chunk(P, self.N, setup.gpu) * P
        soft = bool(model.logit_softcap)
        if setup.mixed:
            temporary = P * D * half + n * max(half + full, (2 + soft) * full + half)
        else:
            temporary = n * (2 + soft) * full
        learned = self.tables_learn if model.tied_head or self.frozen else True
        head = P * D * full
        op(
            "loss",
            [x],
            [Tensor(LOSS, 0.0)],
            saved=[Tensor(LOSS, self.N * D * half), Tensor(LOSS, head)],
            temporary=temporary,
            weights=head * learned,
            temporary_backward=head * (setup.mixed),
        )

    def _full_loss(self, x: Tensor) -> None:
        """All logits at once; the backward pass holds log-probabilities and their gradient."""
        model, setup = self.model, self.setup
        n = self.N * model.padded_vocab_size
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
            temporary_backward=n * setup.full * setup.mixed,
            traffic=8 * n * setup.full,
        )
