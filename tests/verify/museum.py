"""A museum of bugs that happened in public training code.

Each exhibit injects one of them into lmsmith at run time and names the equivalences of `lmsmith
verify` that must notice. `docs/museum.md` tells the stories; a test keeps the two in step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lmsmith.chat.masks as masks
import lmsmith.chat.rl.policy as policy
import lmsmith.data.batches.rows as rows
import lmsmith.data.batches.windows as windows
import lmsmith.data.prepare.run_text as run_text
import lmsmith.distributed.shard as shard
import lmsmith.evaluate.likelihood as likelihood
import lmsmith.evaluate.texts as texts
import lmsmith.generate.cpu as cpu
import lmsmith.generate.sampling as sampling
import lmsmith.models.attention as attention
import lmsmith.models.kernels as kernels
import lmsmith.models.rotary as rotary
import lmsmith.optim.groups as groups
import lmsmith.tokens.bpe_train as bpe_train
import lmsmith.train.hooks.evaluate as evaluate
import lmsmith.train.step as step
from lmsmith.targets import IGNORED

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Exhibit:
    """`source`: where it happened, in public. `caught_by`: names of equivalences."""

    name: str
    source: str
    caught_by: tuple[str, ...]
    inject: Patch


EXHIBITS: list[Exhibit] = []


def exhibit(name: str, source: str, *caught_by: str) -> Callable[[Patch], Patch]:
    def add(inject: Patch) -> Patch:
        EXHIBITS.append(Exhibit(name, source, caught_by, inject))
        return inject

    return add


def wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replaces `owner.name` by `make(the original)`."""
    patch.setattr(owner, name, make(getattr(owner, name)))


# ---- the training step ---------------------------------------------------------------------------


@exhibit(
    "loss averaged per micro-batch",
    "https://github.com/meta-pytorch/torchtune/pull/1875",
    "training step",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(forward: Any) -> Any:
        def mean(self: Any, inputs: Any, targets: Any, *rest: Any, **named: Any) -> Any:
            n = (targets != IGNORED).sum()
            return forward(self, inputs, targets, *rest, **named) / n * 9 * len(inputs)

        return mean

    wrap(patch, shard.SummedLoss, "forward", make)


@exhibit(
    "labels shifted twice",
    "https://github.com/huggingface/transformers/issues/47394",
    "training step",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(forward: Any) -> Any:
        def shifted(self: Any, inputs: Any, targets: Any, *rest: Any, **named: Any) -> Any:
            targets = F.pad(targets[:, 1:], (0, 1), value=IGNORED)
            return forward(self, inputs, targets, *rest, **named)

        return shifted

    wrap(patch, shard.SummedLoss, "forward", make)


@exhibit(
    "weight decay on norms and biases",
    "https://github.com/Lightning-AI/lit-llama/issues/254",
    "training step",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(adamw: Any) -> Any:
        def decayed(parameters: Any, config: Any) -> Any:
            return adamw(
                [group | {"weight_decay": config.weight_decay} for group in parameters], config
            )

        return decayed

    wrap(patch, groups, "adamw", make)
    patch.setattr(groups.OPTIMIZERS, "get", lambda name: groups.adamw)


@exhibit(
    "L2 regularization instead of weight decay",
    "https://arxiv.org/abs/1711.05101",
    "training step",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def adam(parameters: Any, config: Any) -> Any:
        betas = (config.beta1, config.beta2)
        return torch.optim.Adam(parameters, betas=betas, eps=config.eps)

    patch.setattr(groups.OPTIMIZERS, "get", lambda name: adam)


@exhibit(
    "gradients clipped before they are unscaled",
    "https://github.com/milesial/Pytorch-UNet/issues/468",
    "training step",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(norm_of: Any) -> Any:
        def scaled_norm(model: Any, scale: float = 1.0) -> Any:
            return norm_of(model, scale) * scale

        return scaled_norm

    wrap(patch, step, "norm_of", make)


@exhibit(
    "gradients never cleared",
    "https://github.com/meta-pytorch/torchforge/pull/71",
    "training step",
)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(groups.Optimizers, "clear", lambda self: None)


# ---- resuming ------------------------------------------------------------------------------------


@exhibit(
    "learning rate off by one step after a resume",
    "https://github.com/Lightning-AI/pytorch-lightning/issues/1772",
    "resume",
)
def _(patch: pytest.MonkeyPatch) -> None:
    resumed: list[bool] = []

    def restore(original: Any) -> Any:
        def made(*arguments: Any, **named: Any) -> Any:
            resumed.append(True)
            return original.__func__(*arguments, **named)

        return classmethod(made)

    from lmsmith.train.state import TrainState

    patch.setattr(TrainState, "from_checkpoint", restore(TrainState.__dict__["from_checkpoint"]))
    wrap(
        patch,
        step,
        "learning_rate_share",
        lambda share: lambda n, *rest: share(max(0, n - len(resumed)), *rest),
    )


@exhibit(
    "optimizer state lost on resume",
    "https://github.com/EvolvingLMMs-Lab/OneVision-Encoder/pull/65",
    "resume",
)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(groups.Optimizers, "load_state", lambda self, *rest: None)


@exhibit(
    "random state not restored on resume",
    "https://github.com/huggingface/transformers/issues/17032",
    "resume",
    "determinism",
)
def _(patch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()
    patch.setattr(step, "dropout_seed", lambda *key: next(numbers))


@exhibit(
    "best weights kept by reference",
    "https://github.com/pytorch/tutorials/pull/188",
    "best weights",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def keep(original: Any) -> Any:
        def by_reference(self: Any, context: Any) -> None:
            original(self, context)
            context.state.best = context.replica.weights(copy=False)

        return by_reference

    wrap(patch, evaluate.Evaluate, "_keep_best", keep)


# ---- data ----------------------------------------------------------------------------------------


@exhibit(
    "padding counted in the loss",
    "https://github.com/axolotl-ai-cloud/axolotl/pull/3988",
    "rows",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(read: Any) -> Any:
        def padded(self: Any, *place: Any) -> Any:
            batch = read(self, *place)
            return replace(batch, targets=np.where(batch.targets == IGNORED, 0, batch.targets))

        return padded

    wrap(patch, rows.Rows, "rows", make)


@exhibit(
    "every rank reads the same rows",
    "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/5944",
    "windows",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(read: Any) -> Any:
        def first_rows(self: Any, step: int, start: int = 0, end: int | None = None) -> Any:
            return read(self, step, 0, end if end is None else end - start)

        return first_rows

    wrap(patch, windows.Batches, "rows", make)


@exhibit(
    "validation documents in the training text",
    "https://github.com/openai/parameter-golf/issues/2127",
    "held-out text",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(split: Any) -> Any:
        def leaking(*arguments: Any) -> Any:
            found = split(*arguments)
            return replace(found, train=[*found.train, *found.validation])

        return leaking

    wrap(patch, run_text, "split_documents", make)


@exhibit(
    "attention across packed documents",
    "https://github.com/huggingface/trl/issues/784",
    "packed documents",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(original: Any) -> Any:
        def without_masks(cls: Any, config: Any, T: int, device: Any, documents: Any) -> Any:
            layout = original.__func__(cls, config, T, device, documents)
            plain = original.__func__(cls, config, T, device, None)
            return layout and replace(layout, masks=plain.masks if plain else {})

        return classmethod(without_masks)

    patch.setattr(attention.Layout, "of", make(attention.Layout.__dict__["of"]))


@exhibit(
    "positions not reset in packed documents",
    "https://github.com/huggingface/nanoVLM/issues/201",
    "packed documents",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(original: Any) -> Any:
        def in_the_row(cls: Any, config: Any, T: int, device: Any, documents: Any) -> Any:
            layout = original.__func__(cls, config, T, device, documents)
            return layout and replace(layout, positions=None)

        return classmethod(in_the_row)

    patch.setattr(attention.Layout, "of", make(attention.Layout.__dict__["of"]))


# ---- the model -----------------------------------------------------------------------------------


@exhibit(
    "rotary embedding of halves instead of pairs",
    "https://github.com/jzhang38/TinyLlama/issues/24",
    "attention",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(turn: Any) -> Any:
        def halves(self: Any, x: Any, *place: Any) -> Any:
            n = x.size(-1) // 2
            paired = torch.stack([x[..., :n], x[..., n:]], -1).flatten(-2)
            turned = turn(self, paired, *place).unflatten(-1, (-1, 2))
            return torch.cat([turned[..., 0], turned[..., 1]], -1)

        return halves

    wrap(patch, rotary.Rotary, "__call__", make)


@exhibit(
    "key-value heads repeated in the wrong order",
    "https://github.com/onnx/onnx/pull/7274",
    "attention",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def tiled(self: Any, x: Any) -> Any:
        return x.repeat(1, self.n_head // self.n_kv, 1, 1)

    patch.setattr(attention.Attention, "_for_each_head", tiled)


@exhibit(
    "sliding window one token too wide",
    "https://github.com/huggingface/transformers/issues/39408",
    "attention",
)
def _(patch: pytest.MonkeyPatch) -> None:
    wrap(
        patch,
        attention,
        "_window_mask",
        lambda mask: lambda window, *rest: mask(window + 1, *rest),
    )


@exhibit(
    "exact GELU where the weights need the tanh form",
    "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/4661",
    "feed-forward",
    "gradients",
)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kernels, "gelu_tanh", F.gelu)


# ---- decoding ------------------------------------------------------------------------------------


@exhibit(
    "position in the KV cache off by one",
    "https://github.com/ml-explore/mlx-lm/pull/93",
    "cached decoding",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(turn: Any) -> Any:
        return lambda self, x, start, positions=None: turn(self, x, max(0, start - 1), positions)

    wrap(patch, rotary.Rotary, "__call__", make)


@exhibit(
    "one position for all sequences of a batch",
    "https://github.com/unslothai/unsloth/pull/4078",
    "cached decoding",
    "batch invariance",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(embed: Any) -> Any:
        def same_position(self: Any, slots: Any, ids: Any, at: Any) -> None:
            at[:] = at.max()
            embed(self, slots, ids, at)

        return same_position

    wrap(patch, cpu.CpuDecoder, "_embed", make)


@exhibit(
    "top-p drops the token that crosses the threshold",
    "https://github.com/fishaudio/fish-speech/pull/1171",
    "sampling",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(pick: Any) -> Any:
        def fewer(sampler: Any, scratch: Any, row: Any, u: float, p: Any) -> int:
            id = pick(sampler, scratch, row, u, p)
            if sampler.sampling.top_p < 1 and (p > 0).sum() > 1:
                p[np.where(p > 0, p, np.inf).argmin()] = 0
                p /= p.sum()
            return int(id)

        return fewer

    wrap(patch, sampling, "_pick", make)


@exhibit(
    "sampler's truncation missing in the trainer's log-probabilities",
    "https://github.com/huggingface/trl/issues/6789",
    "rollouts",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(compute: Any) -> Any:
        def over_all(model: Any, inputs: Any, targets: Any, temperature: float, *rest: Any) -> Any:
            return compute(model, inputs, targets, temperature)

        return over_all

    wrap(patch, policy, "log_probabilities", make)


@exhibit(
    "temperature missing in the trainer's log-probabilities",
    "https://github.com/modelscope/ms-swift/pull/8427",
    "rollouts",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(compute: Any) -> Any:
        def at_one(model: Any, inputs: Any, targets: Any, temperature: float, *rest: Any) -> Any:
            return compute(model, inputs, targets, 1.0, *rest)

        return at_one

    wrap(patch, policy, "log_probabilities", make)


# ---- evaluation ----------------------------------------------------------------------------------


@exhibit(
    "dropout active during evaluation",
    "https://github.com/wolny/pytorch-3dunet/issues/53",
    "likelihood",
    "validation loss",
)
def _(patch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    @contextmanager
    def without_eval(model: Any) -> Any:
        with torch.no_grad():
            yield

    patch.setattr(likelihood, "inference", without_eval)


@exhibit(
    "bits per byte over characters",
    "https://github.com/facebookresearch/adaptive-span/issues/17",
    "bits per byte",
)
def _(patch: pytest.MonkeyPatch) -> None:
    wrap(
        patch,
        texts,
        "encode_documents",
        lambda encode: (
            lambda tokenizer, documents, *rest, **named: replace(
                encode(tokenizer, documents, *rest, **named), n_bytes=sum(map(len, documents))
            )
        ),
    )


@exhibit(
    "bits per byte without the division by ln 2",
    "https://github.com/EleutherAI/lm-evaluation-harness/pull/242",
    "bits per byte",
)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        likelihood.Score, "bits_per_byte", property(lambda score: score.nats / score.n_bytes)
    )


@exhibit(
    "tokens between windows never scored, or twice",
    "https://github.com/huggingface/transformers/issues/30975",
    "likelihood",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(cut: Any) -> Any:
        def one_more(ids: Any, T: int, stride: int, n: int) -> Any:
            for tokens, given, places in cut(ids, T, stride, n):
                yield tokens, given + 1 if isinstance(given, int) and given > 1 else given, places

        return one_more

    wrap(patch, likelihood, "_windows", make)


# ---- tokenizers and chats ------------------------------------------------------------------------


@exhibit(
    "equally frequent pairs merged in another order",
    "https://github.com/karpathy/minbpe/pull/90",
    "learned merges",
)
def _(patch: pytest.MonkeyPatch) -> None:
    wrap(
        patch,
        bpe_train,
        "learn_merges",
        lambda learn: lambda counts, n, ties, progress: learn(counts, n, "ids", progress),
    )


@exhibit(
    "special tokens typed by a user become control tokens",
    "https://github.com/huggingface/transformers/issues/29279",
    "typed special tokens",
    "chat masks",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def make(encode: Any) -> Any:
        def parsed(tokenizer: Any, part: Any) -> Any:
            if part[1]:
                return encode(tokenizer, part)
            return tokenizer.encode(part[0], allowed_special="all")

        return parsed

    wrap(patch, masks, "encode_part", make)


@exhibit(
    "a chat's mask is all ones",
    "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/3927",
    "chat masks",
)
def _(patch: pytest.MonkeyPatch) -> None:
    wrap(
        patch,
        masks,
        "learned_parts",
        lambda parts: lambda *given: [(text, special, True) for text, special, _ in parts(*given)],
    )
