"""How `CpuDecoder` reads prompts: many at once, and a part of them at a time.

The tokens of a prompt are rows of a decode step, like the last tokens of running sequences. So one
pass reads the weights once for all of them, and the kernels compute each row with the same
operations whatever else is in the pass. The logits of a prompt therefore do not depend on how it
was divided into passes or on its neighbours, to the last bit.

- PyTorch is faster for long prompts. It reads all full pieces of PIECE tokens, one piece per call,
  through the prefix cache (`prefix.py`). The rest follows as rows, at most PASS_TOKENS in a pass. A
  prompt of one piece is read as rows, which are as fast up to there.
- A prompt longer than the sliding window of a layer would overwrite positions that other rows of
  the same pass see. PyTorch reads it completely.
- A prompt copies the positions of its longest common prefix with a prompt that was read into
  another slot. They hold what it would compute: both were read by the same operations up to there.
- A prompt equal to one that is being read waits for it, and copies everything.

How a position is computed depends on the prompt's own length and tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from lmsmith.evaluate.likelihood import inference
from lmsmith.generate.decoders import Prompt
from lmsmith.generate.prefix import PIECE, read_pieces
from lmsmith.models.attention import State

if TYPE_CHECKING:
    from lmsmith.generate.cpu import CpuDecoder

PASS_TOKENS = 32
"""Tokens of prompts in one pass. The first ones cost little more than reading the weights; then the
time of a pass grows with the tokens, and running sequences wait for it.
"""


@dataclass(eq=False)
class CpuPrompt(Prompt):
    """A prompt of a `CpuDecoder`."""

    n_read: int = 0  # tokens that the slot holds
    n_pieces: int = 0  # tokens that PyTorch reads first
    n_rows: int = 0  # tokens in the next pass
    state: State | None = None  # PyTorch's
    pieces: Iterator[Tensor] | None = None
    last: Tensor | None = None  # the hidden vector (D) of the last token, if PyTorch has read it
    followers: list[CpuPrompt] = field(default_factory=list)  # equal prompts that wait for this one

    @property
    def n_left(self) -> int:
        return len(self.ids) - self.n_read


def open_prompt(decoder: CpuDecoder, slot: int, ids: Sequence[int]) -> CpuPrompt:
    """A prompt of which nothing has been read."""
    ids = list(ids)
    n_pieces = len(ids) // PIECE * PIECE if len(ids) > PIECE else 0
    return CpuPrompt(slot, ids, n_pieces=len(ids) if len(ids) > decoder.n_in_place else n_pieces)


def plan_pass(decoder: CpuDecoder, prompts: Sequence[CpuPrompt]) -> list[CpuPrompt]:
    """Prepares the next pass: sets `n_rows` of each prompt, after PyTorch's part of them.

    Returns those of the prompts that are complete after the pass, without their followers.
    """
    room = PASS_TOKENS
    may_read_piece = True
    leaders: list[CpuPrompt] = []
    for prompt in prompts:
        prompt.n_rows, prompt.followers = 0, []
        if prompt.n_read == 0 and prompt.pieces is None:
            leader = next((each for each in leaders if each.ids == prompt.ids), None)
            if leader is not None:
                leader.followers.append(prompt)
                continue
            _copy_prefix(decoder, prompt)
        leaders.append(prompt)
        if prompt.n_read < prompt.n_pieces:
            if may_read_piece:
                _read_piece(decoder, prompt)
            may_read_piece = False
        if prompt.n_read >= prompt.n_pieces:
            prompt.n_rows = min(room, prompt.n_left)
            room -= prompt.n_rows
    return [prompt for prompt in leaders if prompt.n_rows == prompt.n_left]


def _copy_prefix(decoder: CpuDecoder, prompt: CpuPrompt) -> None:
    """Copies the longest prefix that another slot holds, if there is one."""
    longest, source = prompt.n_pieces, -1
    for slot, read in decoder.prompts.items():
        if read.n_pieces != prompt.n_pieces or decoder.positions[slot] > decoder.n_in_place:
            continue
        n = _n_common(read.ids, prompt.ids, prompt.n_pieces)
        if n > longest:
            longest, source = n, slot
    if source >= 0:
        decoder.copy_prefix(source, prompt.slot, longest, prompt.ids)
        decoder.n_tokens_copied += longest
        prompt.n_read = longest


def _n_common(a: Sequence[int], b: Sequence[int], n_first: int) -> int:
    """Length of the common prefix without the last token of b, whose logits are needed; 0 if the
    first `n_first` tokens differ.
    """
    if a[:n_first] != b[:n_first]:
        return 0
    n, most = n_first, min(len(a), len(b) - 1)
    while n < most and a[n] == b[n]:
        n += 1
    return n


def _read_piece(decoder: CpuDecoder, prompt: CpuPrompt) -> None:
    """Reads one piece with PyTorch; after the last one, moves the keys and values to the slot."""
    n, model = prompt.n_pieces, decoder.model
    with inference(model):
        if prompt.pieces is None or prompt.state is None:
            prompt.state = model.new_state(1)
            n_last = 1 if n == len(prompt.ids) else 0
            ids = prompt.ids[:n]
            prompt.pieces = read_pieces(model, ids, prompt.state, decoder.prefixes, n_last=n_last)
        hidden = next(prompt.pieces, None)
        if prompt.state.position < n:
            return
        decoder.fill(prompt.slot, prompt.state)
        if n == len(prompt.ids) and hidden is not None:
            prompt.last = hidden[0, -1].clone()
    prompt.n_read = n
    prompt.pieces = prompt.state = None
