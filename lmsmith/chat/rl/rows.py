"""A rollout as tensors: the batches of `lmsmith rl`.

Each row is a prompt with one answer, padded on the right. What belongs to the tokens of answers is
flat, row after row, so that no memory is spent on prompts and padding.

Shapes: N answers; L tokens of the longest prompt with its answer; n tokens of all answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lmsmith.chat.rl.rollouts import Group
from lmsmith.targets import IGNORED


@dataclass
class Rows:
    """Some answers with what their loss needs. All are tensors on the CPU.

    inputs, targets   (N, L - 1); targets outside answers are IGNORED
    n_tokens          (N,) tokens of each answer
    finished          (N,) whether it ended with an end token
    old               (n,) log-probabilities under the policy that sampled, float64
    kept              (n, bytes) ids that truncation kept, as bits; (n, 0) without truncation
    advantages        (N,); weights: (N,), of each token of an answer
    reference         (n,) log-probabilities under the reference; (0,) without a KL term
    """

    inputs: Tensor
    targets: Tensor
    n_tokens: Tensor
    finished: Tensor
    old: Tensor
    kept: Tensor
    advantages: Tensor
    weights: Tensor
    reference: Tensor

    @classmethod
    def of(cls, groups: Sequence[Group], pad: int = 0) -> Self:
        """Groups as rows, with advantages and weights of zero.

        `pad`: the id behind the answers; no answer depends on it.
        """
        pairs = [(group.prompt, answer) for group in groups for answer in group.answers]
        answers = [answer for _, answer in pairs]
        N, L = len(pairs), max(len(prompt) + len(answer.ids) for prompt, answer in pairs)
        inputs = torch.full((N, L - 1), pad, dtype=torch.int64)
        targets = torch.full((N, L - 1), IGNORED, dtype=torch.int64)
        for row, (prompt, answer) in enumerate(pairs):
            ids = torch.tensor([*prompt, *answer.ids])
            inputs[row, : len(ids) - 1] = ids[:-1]
            targets[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
        n_tokens = torch.tensor([len(answer.ids) for answer in answers])
        bits = [answer.kept for answer in answers if answer.kept is not None]
        kept = np.concatenate(bits) if bits else np.zeros((int(n_tokens.sum()), 0), np.uint8)
        return cls(
            inputs,
            targets,
            n_tokens,
            torch.tensor([answer.finished for answer in answers]),
            torch.tensor([p for answer in answers for p in answer.log_probabilities]).double(),
            torch.from_numpy(kept),
            torch.zeros(N, dtype=torch.float64),
            torch.zeros(N, dtype=torch.float64),
            torch.zeros(0, dtype=torch.float64),
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of `vars`."""
        return cls(**{field.name: state[field.name] for field in fields(cls)})

    def part(self, start: int, end: int) -> Rows:
        """Rows `start` to `end`."""
        edges = torch.cat([torch.zeros(1, dtype=torch.int64), self.n_tokens.cumsum(0)])
        tokens = slice(int(edges[start]), int(edges[end]))
        rows = slice(start, end)
        return Rows(
            self.inputs[rows],
            self.targets[rows],
            self.n_tokens[rows],
            self.finished[rows],
            self.old[tokens],
            self.kept[tokens],
            self.advantages[rows],
            self.weights[rows],
            self.reference[tokens] if len(self.reference) else self.reference,
        )

    def per_token(self, values: Tensor) -> Tensor:
        """(N,) -> (n,): the value of its answer for each token."""
        return values.repeat_interleave(self.n_tokens)

    def arrays(self) -> list[Any]:
        """The arguments of `PolicyLoss`."""
        tensors = (
            *(self.inputs, self.targets, self.old, self.per_token(self.advantages)),
            *(self.per_token(self.weights), self.reference, self.kept),
        )
        return [tensor.numpy() for tensor in tensors]
