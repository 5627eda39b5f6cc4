"""Parts of a Transformer's tape: linear maps with adapters, norms, and attention.

`transformer.py` combines them, and describes what differs between implementations.
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
    logits      share of the tokens whose logits are computed
    """

    attention: Literal["fused", "math"] = "fused"
    loss: Literal["chunked", "full", "compiled"] = "chunked"
    selective: bool = False
    half: bool = False
    float8: bool = False
    logits: float = 1.0


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


class Layers:
    """Writes the operations of layers to a tape; sizes are those of one micro-batch."""

    def __init__(self, config: RunConfig, model: GPTConfig, setup: Setup) -> None:
        self.config, self.model, self.setup, self.tape = config, model, setup, Tape()
        self.N = setup.n_rows * model.context_length
        self.shapes = shapes(model)
        self.frozen, self.n_products = bool(config.lora.rank), 0
        self.tables_learn = not self.frozen or config.lora.embeddings == "yes"

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
