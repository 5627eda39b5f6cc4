"""A Transformer as an ONNX graph with a KV cache, for onnxruntime.

    inputs   input_ids (B, T), past_key_values.I.key and .value (B, G, P, K) of each layer I, and
             past_ids (B, P) if the model has n-gram tables
    outputs  logits (B, T, V), present.I.key and .value (B, G, P + T, K), present_ids (B, P + T)

B, T and P are dynamic; P is 0 for the first tokens of a text. The outputs `present...` are the
inputs `past...` of the next call. Rows have no padding: texts of different lengths cannot be in one
batch. Layers with a sliding window cache all tokens and mask the older ones.

The graph computes in float32. `torch.onnx.export` traces `Step`, whose attention is written with
operations that have dynamic shapes; the other layers are the model's own.

Shapes: B batch, T new tokens, P past tokens, S = P + T, H query heads, G key-value heads, K d_head.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmsmith.config import ModelConfig
from lmsmith.errors import ConfigError, UsageError
from lmsmith.interop import custom
from lmsmith.models.attention import QK_NORM_EPS, Attention
from lmsmith.models.gpt import GPT, Block
from lmsmith.models.gpt_config import GPTConfig

FILE_NAME = "model.onnx"
OPSET = 18
_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


def check(config: ModelConfig) -> None:
    """Raises ConfigError for a model that the graph does not compute, UsageError if a library is
    missing.
    """
    if not isinstance(config, GPTConfig):
        raise ConfigError(
            f"ONNX export supports Transformers, not models of kind {config.kind}: train with "
            "--preset modern, llama or gpt2."
        )
    if unknown := custom.unknown_settings(custom.CUSTOM[0], config):
        raise ConfigError(f"ONNX export does not support {', '.join(unknown)}.")
    missing = [name for name in _LIBRARIES if not importlib.util.find_spec(name)]
    if missing:
        raise UsageError(f"--to onnx needs {' and '.join(missing)}: pip install 'lmsmith[onnx]'.")


class Step(nn.Module):
    """Logits of some tokens and the KV cache after them, as a function of the cache before."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model, config = model, model.config
        self.cos: Tensor
        self.sin: Tensor
        self.has_ids = model.ngram_embedding is not None
        self.windows = [config.window_of(i) for i in range(config.n_layer)]
        if model.rotary is not None:
            turns = torch.view_as_real(model.rotary.turns).float().squeeze(1)  # (context, K/2, 2)
            self.register_buffer("cos", turns[..., 0].contiguous())
            self.register_buffer("sin", turns[..., 1].contiguous())

    def forward(self, ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """`past` and the results after the logits are in the order of `names`."""
        model, T = self.model, ids.size(1)
        keys_and_values = past[: 2 * len(model.blocks)]
        S = keys_and_values[0].size(2) + T
        at = torch.arange(S, device=ids.device)
        positions = at[S - T :]
        x = model.token_embedding(ids)
        present: list[Tensor] = []
        all_ids = ids
        if model.ngram_embedding is not None:
            all_ids = torch.cat([past[-1], ids], dim=1)
            x = x + self._ngrams(all_ids, T)
        if model.position_embedding is not None:
            x = x + model.position_embedding(positions)
        if model.embedding_norm is not None:
            x = model.embedding_norm(x)
        embedded = x
        for i, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            if model.residual_scale is not None and model.input_scale is not None:
                x = model.residual_scale[i] * x + model.input_scale[i] * embedded
            gated = block.attention.value_gate is not None
            values = model.value_embeddings[str(i)](ids) if gated else None
            before = keys_and_values[2 * i : 2 * i + 2]
            y = block.norm_attention(x) if block.placement == "pre" else x
            y, after = self._attention(block.attention, y, before, at, positions, values, i)
            present += after
            if block.placement == "post":
                x = block.norm_attention(x + y)
                x = block.norm_feed_forward(x + block.feed_forward(x))
            elif block.placement == "output":
                x = x + block.norm_attention(y)
                x = x + block.norm_feed_forward(block.feed_forward(x))
            else:
                x = x + y
                x = x + block.feed_forward(block.norm_feed_forward(x))
        x = x if model.final_norm is None else model.final_norm(x)
        return (model.logits(x), *present, *([all_ids] if self.has_ids else []))

    def _attention(
        self,
        layer: Attention,
        x: Tensor,
        before: list[Tensor],
        at: Tensor,
        positions: Tensor,
        values: Tensor | None,
        index: int,
    ) -> tuple[Tensor, list[Tensor]]:
        """The attention output, and keys and values of all tokens."""
        B, T, _ = x.shape
        H, G, K = layer.n_head, layer.n_kv, layer.d_head
        both, v = layer.qkv(x).view(B, T, -1, K).split((H + G, G), dim=2)
        if layer.qk_gain is not None:
            both = both * torch.rsqrt(both.square().mean(dim=-1, keepdim=True) + QK_NORM_EPS)
        if self.model.rotary is not None:
            cos, sin = (t[positions].unsqueeze(1) for t in (self.cos, self.sin))  # (T, 1, K/2)
            a, b = both.unflatten(-1, (K // 2, 2)).unbind(-1)
            both = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
        q, k = both.split((H, G), dim=2)
        if layer.qk_gain is not None:
            q = q * layer.qk_gain.unsqueeze(-1)
        if layer.value_gate is not None and values is not None:
            gate = 2 * torch.sigmoid(layer.value_gate(x[..., : layer.value_gate.in_features]))
            v = v + gate.unsqueeze(-1) * values.view(B, T, G, K)
        k, v = (
            torch.cat([old, new.transpose(1, 2)], dim=2)
            for old, new in zip(before, (k, v), strict=True)
        )
        q = q.transpose(1, 2).reshape(B, G, (H // G) * T, K)  # query heads of a group, in turn
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(K)  # (B, G, H/G T, S)
        hidden = at > positions.unsqueeze(1)  # (T, S)
        if self.windows[index]:
            hidden = hidden | (at <= positions.unsqueeze(1) - self.windows[index])
        scores = scores.view(B, G, H // G, T, -1).masked_fill(hidden, -math.inf)
        y = torch.softmax(scores, dim=-1).view(B, G, (H // G) * T, -1) @ v
        y = y.view(B, H, T, K).transpose(1, 2).reshape(B, T, H * K)
        return layer.out(y), [k, v]

    def _ngrams(self, ids: Tensor, T: int) -> Tensor:
        """n-gram embeddings of the last T of all tokens."""
        tables = self.model.ngram_embedding
        assert tables is not None
        n = tables.n_before
        none = torch.full((1, n), tables.nothing, dtype=ids.dtype, device=ids.device)
        padded = torch.cat([none.expand(ids.size(0), n), ids], dim=1)
        return tables(padded[:, -T:], padded[:, : padded.size(1) - T][:, -n:])


def names(config: GPTConfig) -> tuple[list[str], list[str]]:
    """Names of the graph's inputs and outputs, in order."""
    parts = [f"{i}.{part}" for i in range(config.n_layer) for part in ("key", "value")]
    ids = bool(config.ngram_tables)
    return (
        ["input_ids", *(f"past_key_values.{part}" for part in parts), *(["past_ids"] * ids)],
        ["logits", *(f"present.{part}" for part in parts), *(["present_ids"] * ids)],
    )


def write(path: Path, model: GPT) -> None:
    """Writes the graph and its weights (in model.onnx.data if they are large). Raises OSError."""
    config = model.config
    B, T, P = 2, 3, 5
    heads = torch.zeros(B, config.n_kv, P, config.width_head)
    ids = torch.zeros(B, T, dtype=torch.int64)
    past = [heads.clone() for _ in range(2 * config.n_layer)]
    Dim = torch.export.Dim
    batch, new, before = Dim("batch"), Dim("new", min=1), Dim("past", min=0)
    dynamic: list[dict[int, Any]] = [{0: batch, 2: before} for _ in past]
    if config.ngram_tables:
        past.append(torch.zeros(B, P, dtype=torch.int64))
        dynamic.append({0: batch, 1: before})
    inputs, outputs = names(config)
    with _quiet():
        torch.onnx.export(
            Step(model).float().eval(),
            (ids, past),
            str(path),
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes=({0: batch, 1: new}, dynamic),
            dynamo=True,
            external_data=sum(p.numel() for p in model.parameters()) > 1 << 28,
        )


class Session:
    """A graph written by `write`, run by onnxruntime on CPUs."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = self.session.get_inputs()
        self.past: dict[str, Any] = {}

    def logits(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V) of `ids`, which follow the tokens of earlier calls."""
        import numpy as np

        if not self.past:
            for entry in self.inputs[1:]:
                shape = [size if isinstance(size, int) else 0 for size in entry.shape]
                shape[0] = ids.size(0)
                kind = np.int64 if entry.name == "past_ids" else np.float32
                self.past[entry.name] = np.zeros(shape, kind)
        results = self.session.run(None, {"input_ids": ids.numpy(), **self.past})
        self.past = dict(zip(self.past, results[1:], strict=True))
        return torch.from_numpy(results[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns about its own use of PyTorch."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
