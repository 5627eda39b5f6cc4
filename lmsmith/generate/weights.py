"""Weights for use: as they are, or packed to bfloat16 or int8.

`pack(model, "int8")` replaces the matrices of a model's linear maps and token tables. The rest
(norms, biases, position tables) stays. A packed model still computes with PyTorch, unpacking one
matrix at a time, and `CpuDecoder` multiplies with the packed numbers themselves.

bf16: the nearest bfloat16, half of the memory.
int8: each row divided by its largest absolute value over 127 and rounded, a quarter of the memory
(absmax quantization per output channel; Dettmers et al. 2022, LLM.int8(), section 2.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmsmith.config import ModelConfig
from lmsmith.config.building import WithoutDraws
from lmsmith.errors import ConfigError, UsageError
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.interface import LanguageModel
from lmsmith.run_folder import restored
from lmsmith.weights_file import WeightsFile

Array = npt.NDArray[Any]
Rows = Iterable[Tensor]
"""Blocks of rows of a matrix, in order."""
Weights = Literal["fp32", "bf16", "int8"]
FORMATS = get_args(Weights)
_AT_ONCE = 1 << 18  # numbers that are packed at once


class Packed(nn.Module):
    """A linear map or a table whose matrix is stored as bfloat16 or int8 with a scale per row."""

    matrix: nn.Parameter  # (N, D); a parameter, so that it is counted and saved like one
    scale: Float[Tensor, " N"] | None

    def __init__(self, weight: Tensor, weights: Weights, rows: Rows | None = None) -> None:
        """`weight`: (N, D), or only its shape and precision if `rows` gives its blocks of rows."""
        super().__init__()
        packed = torch.bfloat16 if weights == "bf16" else torch.int8
        matrix = torch.empty(weight.shape, dtype=packed, device=weight.device)
        scale = None if weights == "bf16" else torch.empty_like(weight[:, 0])
        start = 0
        for block in rows or weight.detach().split(max(1, _AT_ONCE // weight.size(1))):
            block, end = block.to(weight.dtype), start + len(block)
            if scale is None:
                matrix[start:end] = block
            else:
                scale[start:end] = (
                    block.abs().amax(dim=1).clamp(min=torch.finfo(block.dtype).tiny) / 127
                )
                matrix[start:end] = (block / scale[start:end, None]).round_()
            start = end
        if start != len(matrix):
            raise ValueError(f"a matrix has {start} rows, expected {len(matrix)}")
        self.matrix = nn.Parameter(matrix, requires_grad=False)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Float[Tensor, "N D"]:
        """The matrix that is multiplied with, unpacked."""
        return self._unpack(self.matrix, self.scale)

    @staticmethod
    def _unpack(matrix: Tensor, scale: Tensor | None) -> Tensor:
        return matrix.float() if scale is None else matrix.to(scale.dtype) * scale[:, None]


class PackedLinear(Packed):
    def __init__(self, linear: nn.Linear, weights: Weights, rows: Rows | None = None) -> None:
        super().__init__(linear.weight, weights, rows)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch N"]:
        return F.linear(x, self.weight, self.bias)


class PackedEmbedding(Packed):
    def __init__(self, table: nn.Embedding, weights: Weights, rows: Rows | None = None) -> None:
        super().__init__(table.weight, weights, rows)

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        rows = ids.flatten()
        scale = None if self.scale is None else self.scale[rows]
        return self._unpack(self.matrix[rows], scale).view(*ids.shape, -1)


def pack(model: LanguageModel, weights: Weights) -> int:
    """Packs the matrices of a Transformer in place; returns how many. "fp32" changes nothing.

    Raises ConfigError for an unknown format, UsageError for a model of another kind.
    """
    check_format(weights)
    if weights == "fp32":
        return 0
    if not isinstance(model, GPT):
        raise UsageError(
            f"weights = {weights!r} is for Transformers; this model is of another kind. "
            "Leave the option out."
        )
    return len(_packed(model, weights))


def load_packed(folder: Path, weights: Weights) -> tuple[LanguageModel, dict[str, Any]]:
    """Loads the model in a model folder, packed, and its config. Its matrices are packed while they
    are read, so the model is never in memory unpacked.

    Raises CheckpointError, and as `pack` does.
    """

    def restore(config: ModelConfig, file: WeightsFile) -> LanguageModel:
        if weights == "fp32" or not isinstance(config, GPTConfig):
            model = config.restore(file)
            pack(model, weights)
            return model
        with WithoutDraws():
            built = GPT(config)
        shapes = {name: p.shape for name, p in built.named_parameters()}
        if shapes != {name: file.shape(name) for name in file}:
            return config.restore(file)  # raises an error that names the differences
        done = _packed(built, weights, file)
        for name, p in built.named_parameters():
            if name in shapes and name not in done:
                p.data = file[name].to(p.dtype)
        return built.eval()

    check_format(weights)
    return restored(folder, restore)


def check_format(weights: str) -> None:
    """Raises ConfigError for an unknown format."""
    if weights not in FORMATS:
        raise ConfigError(f"weights = {weights!r}: expected {', '.join(FORMATS)}.")


def _packed(model: GPT, weights: Weights, file: WeightsFile | None = None) -> list[str]:
    """Packs the matrices of a model, read from `file` if it is given; returns their names."""
    done = []
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            whole = f"{path}.{name}.weight".lstrip(".")
            rows = None if file is None else file.rows(whole)
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child, weights, rows))
            elif isinstance(child, nn.Embedding) and name == "token_embedding":
                setattr(parent, name, PackedEmbedding(child, weights, rows))
            else:
                continue
            done.append(whole)
    return done


def arithmetic(model: GPT) -> torch.dtype | None:
    """The floating-point type that the model computes in: float32 or float64; None: another one, or
    several.
    """
    packed = {id(module.matrix) for module in model.modules() if isinstance(module, Packed)}
    kinds = {p.dtype for p in model.parameters() if id(p) not in packed}
    kinds |= {
        m.scale.dtype for m in model.modules() if isinstance(m, Packed) and m.scale is not None
    }
    if packed and not kinds:
        return torch.float32
    return kinds.pop() if kinds in ({torch.float32}, {torch.float64}) else None


def has_int8(model: GPT) -> bool:
    """Whether the matrices are stored as int8."""
    return isinstance(model.token_embedding, Packed) and model.token_embedding.scale is not None


def matrix_of(module: nn.Module, multiple: int) -> tuple[Array, Array]:
    """The stored matrix (N, D) of a linear map or table, and its scale per row, empty if it has
    none.

    D is padded with zeros to a multiple of `multiple`; without padding it shares the module's
    memory. bfloat16 comes as uint16.
    """
    scale: Array = np.zeros(0, np.float32)
    matrix: Any
    if isinstance(module, Packed):
        matrix = module.matrix
        if module.scale is not None:
            scale = module.scale.numpy()
    else:
        matrix = module.weight
    matrix = matrix.detach()
    if (lacking := -matrix.shape[1] % multiple) or not matrix.is_contiguous():
        matrix = F.pad(matrix, (0, lacking)).contiguous()
    if matrix.dtype == torch.bfloat16:
        return matrix.view(torch.int16).numpy().view(np.uint16), scale
    return matrix.numpy(), scale
