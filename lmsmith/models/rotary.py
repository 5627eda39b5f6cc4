"""Rotary position embedding, and the ways to stretch it for a longer context.

Shapes: B batch, T time, H heads, K d_head, R the rotated numbers of a head.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmsmith.models.gpt_config import GPTConfig

# Turns (rotations by 2 pi) within the original context, below and above which frequencies are
# treated differently.
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0
YARN_SLOW, YARN_FAST = 1.0, 32.0


@dataclass
class Rotary:
    """Rotary position embedding (Su et al. 2021, RoFormer): rotates pairs of adjacent numbers by
    the angle position * frequency.

    With `rope_fraction` below one, only the first R numbers of a head are rotated (GPT-NeoX, Black
    et al. 2022). `frequencies` describes the scaling for a longer context.
    """

    turns: Tensor = field(repr=False)  # m exp(i angle), complex128 (context_length, 1, R/2)
    # The same as cosines and sines, on the last device used: (context_length, 1, R/2, 2).
    _table: Tensor | None = field(default=None, repr=False)

    @classmethod
    def make(cls, config: GPTConfig) -> "Rotary":
        position = torch.arange(config.context_length, dtype=torch.float64)
        angle = torch.outer(position, frequencies(config))
        size = torch.full_like(angle, attention_factor(config))
        return cls(torch.polar(size, angle).unsqueeze(1))

    def __call__(
        self, x: Float[Tensor, "B T H K"], start: int, positions: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T H K"]:
        """Rotates x. Token t of a row is at position `start` + t, or at `positions` if given."""
        R = 2 * self.turns.size(-1)
        if x.size(-1) > R:
            turned = self(x[..., :R].contiguous(), start, positions)
            return torch.cat([turned, x[..., R:]], dim=-1)
        wide = x if x.dtype == torch.float64 else x.float()
        table = self.table_for(wide)
        table = table[start : start + x.size(1)] if positions is None else table[positions]
        pairs = wide.unflatten(-1, (-1, 2))
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            # One pass over memory. Compilers support only real numbers.
            turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
        else:
            (a, b), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
            turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
        return turned.flatten(-2).to(x.dtype)

    def table_for(self, x: Tensor) -> Tensor:
        """Cosines and sines on the device and in the precision of `x`.

        Call it before compiled blocks: a compiled block cannot keep the table.
        """
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if self._table is None or self._table.device != x.device or self._table.dtype != dtype:
            self._table = torch.view_as_real(self.turns).to(x.device, dtype)
        return self._table


def frequencies(config: GPTConfig) -> Float[Tensor, " n_pairs"]:
    """The angle per position of each pair, in radians; float64. n_pairs: R/2.

    To extend the context of a trained model, `rope_scaling` divides frequencies by a factor:

    - `linear`: all of them (Chen et al. 2023, "Extending Context Window ... via Positional
      Interpolation").
    - `llama3` (Llama 3.1): those of less than one turn in the original context; those of more than
      four stay, and those in between are interpolated.
    - `yarn` (Peng et al. 2023, YaRN, section 3.2): those of less than one turn; those of more than
      32 stay; a ramp over the index of the pair lies in between.
    - `longrope` (Ding et al. 2024, LongRoPE): each by its own factor, `rope_factors`.
    """
    R, base = config.width_rotary, config.rope_base
    frequency = base ** (-torch.arange(0, R, 2, dtype=torch.float64) / R)
    original = config.rope_original_context
    if config.rope_scaling == "linear":
        return frequency / config.rope_factor
    if config.rope_scaling == "longrope":
        return frequency / torch.tensor(config.rope_factors, dtype=torch.float64)
    if config.rope_scaling == "llama3":
        n_turns = original * frequency / (2 * math.pi)
        unscaled = ((n_turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW)).clamp(0, 1)
    elif config.rope_scaling == "yarn":
        # The index of the pair with this many turns, as a real number.
        low, high = (
            R * math.log(original / (n_turns * 2 * math.pi)) / (2 * math.log(base))
            for n_turns in (YARN_FAST, YARN_SLOW)
        )
        first, last = max(math.floor(low), 0), min(math.ceil(high), R - 1)
        width = last - first or 0.001
        unscaled = 1 - ((torch.arange(R // 2, dtype=torch.float64) - first) / width).clamp(0, 1)
    else:
        return frequency
    return frequency * (unscaled + (1 - unscaled) / config.rope_factor)


def attention_factor(config: GPTConfig) -> float:
    """Factor of rotated queries and keys.

    A longer context spreads attention more thinly; a factor above one sharpens it again. Automatic
    values: YaRN, eq. 22; LongRoPE, section 3.3.
    """
    if config.rope_attention_factor:
        return config.rope_attention_factor
    factor = config.rope_factor
    if config.rope_scaling == "yarn":
        return yarn_attention_factor(factor)
    if config.rope_scaling == "longrope":
        return longrope_attention_factor(factor, config.rope_original_context)
    return 1.0


def yarn_attention_factor(factor: float) -> float:
    return 0.1 * math.log(factor) + 1


def longrope_attention_factor(factor: float, original: int) -> float:
    """`original`: the context before the stretching, 2 tokens or more."""
    return math.sqrt(1 + math.log(factor) / math.log(original))
