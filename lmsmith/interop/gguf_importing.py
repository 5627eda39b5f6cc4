"""A GGUF file -> a run folder, or a model in memory.

    content = read(path)         # settings, tokenizer, chat template
    content.shapes               # the weights' shapes, by our names
    content.tensor(name)         # the weights of one tensor, in float32
    model, tokenizer, config = load(path)

Quantized tensors are dequantized: float32 holds each of their numbers exactly.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmsmith.config import flatten
from lmsmith.errors import CheckpointError
from lmsmith.interop import gguf_file, gguf_models, gguf_tokenizer
from lmsmith.interop.defaults import Defaults
from lmsmith.interop.gguf_architectures import Piece
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.interface import LanguageModel
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.tokenizer import Tokenizer
from lmsmith.weights_file import check_finite

_ABOUT = ("architecture", "name", "organization", "license", "source.url", "license.link")


@dataclass(frozen=True)
class Content:
    """What a GGUF file holds besides its tensors, in our form."""

    file: gguf_file.GgufFile
    config: GPTConfig
    tokenizer: Tokenizer | None
    limits: dict[str, Any]
    """`begin` and `ends`, as a model's config.json names them."""
    defaults: Defaults | None

    @functools.cached_property
    def _pieces(self) -> dict[str, list[Piece]]:
        return gguf_models.pieces_of(self.file, self.config)

    @functools.cached_property
    def shapes(self) -> dict[str, Tensor]:
        """The weights without their values: float32 on the meta device."""
        return gguf_models.shapes(self._pieces, self.config)

    def tensor(self, name: str, out: Tensor | None = None) -> Tensor:
        """One of the weights, in float32: in new memory, or in the parameter `out`. Raises
        CheckpointError.
        """
        if out is None:
            out = torch.empty_like(self.shapes[name], device="cpu")
        gguf_models.read_tensor(self.file, self._pieces[name], out)
        check_finite({name: out}, f"the model in {self.file.path}", "Take another copy.")
        return out

    def about(self) -> dict[str, Any]:
        """Architecture, types of the tensors, and what the file says of its origin."""
        said = {name: self.file.metadata.get(f"general.{name}") for name in _ABOUT}
        return {name: value for name, value in said.items() if isinstance(value, str)} | {
            "types": sorted({tensor.kind for tensor in self.file.tensors.values()})
        }


def read(path: Path, *, tokenizer: bool = True, eos_token: str | None = None) -> Content:
    """Reads a file; without `tokenizer`, the weights alone.

    Raises CheckpointError, ConfigError or TokenizerError for a file that is damaged or that lmsmith
    has no counterpart to.
    """
    file = gguf_file.read(path)
    config = gguf_models.read_config(file)
    if not tokenizer:
        return Content(file, config, None, {}, None)
    found = gguf_tokenizer.read(file.metadata, path, eos_token)
    if found.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path} has {found.vocab_size:,} tokens and a token table of {config.vocab_size:,} "
            "rows: they do not fit each other. Download or copy the file again."
        )
    if isinstance(found, BpeTokenizer):
        found = found.changed(n_ids=config.vocab_size)
    limits = gguf_tokenizer.limits(file.metadata, found, path)
    return Content(file, config, found, limits, gguf_tokenizer.defaults(file.metadata, path))


def load(path: Path) -> tuple[LanguageModel, Tokenizer, dict[str, Any]]:
    """Model, tokenizer and the content of a model's config.json, without a run. Raises as `read`
    does.
    """
    content = read(path)
    assert content.tokenizer is not None
    model = GPT(content.config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            content.tensor(name, p.data)
    return model, content.tokenizer, {"model": flatten(vars(content.config))} | content.limits
