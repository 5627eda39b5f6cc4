"""FLOPs and memory of preference optimization and reinforcement learning, beside training on text.

`lmsmith align` reads both answers of each pair. `lmsmith rl` samples a group of answers to each
prompt and learns from their rewards. Each row is a prompt with one answer, without its last token,
which is only a target. The head computes logits at the answer's tokens alone.

    dpo, ipo    forward and backward pass over both answers; the reference model reads each answer
                once per epoch, with the starting weights, before training: no memory of its own
    simpo       the same without a reference model
    kto         one answer of each pair is learned; the other is read once per step for the KL
                estimate
    grpo and    the rollout: each prompt is read once, each answer is decoded with a KV cache;
    relatives   with `rl.kl_weight` a reference model reads all answers, and its weights stay in
                memory; with LoRA the rollout uses merged weights, which also stay in memory. The
                sampler's own log-probabilities serve as the old ones: they cost no further pass.

`cost` counts a step; `tuned.py` adds its memory and time.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass

from lmsmith.config import RunConfig
from lmsmith.errors import ConfigError
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.gpt_costs import Counting, products
from lmsmith.plan.flops import flops
from lmsmith.plan.memory import micro_batch
from lmsmith.plan.parameters import ADAPTERS, parameters
from lmsmith.plan.transformer import CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS

PAIRS = ("dpo", "ipo", "simpo", "kto")
ROLLOUTS = ("grpo", "dr-grpo", "dapo", "reinforce")
METHODS = PAIRS + ROLLOUTS


@dataclass(frozen=True)
class Answers:
    """Lengths in tokens: of a prompt, with the chat template, and of an answer."""

    prompt: int
    answer: int

    @property
    def row(self) -> int:
        """Tokens that the model reads of a prompt with its answer."""
        return self.prompt + self.answer - 1


@dataclass(frozen=True)
class Tuning:
    """FLOPs of a step by part. `n_rows`: answers per step, in groups of `group_size`.

    `decoded`, `prefilled`, `read`: tokens per step that the rollout generates, that it reads as
    prompts, and that are read without a backward pass. `extra_bytes`: other weights in memory.
    """

    method: str
    answers: Answers
    n_rows: int
    group_size: int
    parts: dict[str, float]
    extra_bytes: dict[str, float]
    decoded: float = 0.0
    prefilled: float = 0.0
    read: float = 0.0

    @property
    def flops(self) -> float:
        return sum(self.parts.values())


def method_of(config: RunConfig) -> str:
    """The method of a run with an objective other than the text's cross-entropy; else ""."""
    objective = config.train.objective
    if objective == "preferences":
        return config.align.method
    return config.rl.method if objective == "rl" else ""


def with_method(config: RunConfig, method: str) -> RunConfig:
    """The config with this method. Raises ConfigError for an unknown one, naming the nearest."""
    if method not in METHODS:
        near = difflib.get_close_matches(method.lower(), METHODS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"there is no method {method!r}.{hint} Expected one of {', '.join(METHODS)}."
        )
    section, objective = ("align", "preferences") if method in PAIRS else ("rl", "rl")
    changes = {"train.objective": objective, f"{section}.method": method}
    return config.changed(changes, where="the method")


def as_rows(config: RunConfig, answers: Answers) -> RunConfig:
    """The config of the passes that have a gradient: rows as long as a prompt with its answer."""
    pairs = config.train.objective == "preferences" and config.align.method != "kto"
    each = 2 if pairs else 1
    changes = {
        "model.context_length": answers.row,
        "train.batch_size": each * config.train.batch_size,
        "train.micro_batch_size": each * config.train.micro_batch_size,
    }
    return config.changed(changes, where="the answers")


def cost(
    config: RunConfig,
    answers: Answers,
    counting: Counting = "causal",
    *,
    gpu: bool = True,
    world: int = 1,
) -> Tuning:
    """FLOPs and extra memory of a step of `config.train.batch_size` pairs or answers.

    Raises ConfigError if the model is no Transformer, or if the rows exceed its context.
    """
    model, method = config.model, method_of(config)
    _check(config, answers, world)
    assert isinstance(model, GPTConfig)
    rows = as_rows(config, answers)
    n = rows.train.batch_size
    forward, backward = _row(rows, answers, counting, again=_chunked(rows, answers, gpu, world))
    parts = {"policy": n * (forward + backward)}
    if method in PAIRS:
        read = 0
        if method == "kto":
            parts["KL estimate"], read = n * forward, n * answers.row
        if method != "simpo":
            epochs = max(1.0, float(config.train.epochs))
            both = 2 * config.train.batch_size
            parts["reference model"] = both * _base(rows, answers, counting) / epochs
            read += round(both * answers.row / epochs)
        return Tuning(method, answers, n, 2, parts, {}, read=read)
    repeats, group = config.rl.steps_per_rollout, config.rl.group_size
    n_prompts = n / group
    prompt, answer = _rollout(model, answers, counting)
    parts["rollout: prompts"] = n_prompts * prompt / repeats
    parts["rollout: answers"] = n * answer / repeats
    full = 8.0 if config.train.dtype == "float64" else 4.0
    base = full * sum(p.n for p in parameters(config) if p.group != ADAPTERS)
    extra, read = {}, 0
    if config.rl.kl_weight:
        parts["reference model"] = n * _base(rows, answers, counting) / repeats
        extra["reference model"], read = base, round(n * answers.row / repeats)
    if config.lora.rank:
        extra["merged weights of the rollout"] = base
    return Tuning(
        *(method, answers, n, group, parts, extra),
        decoded=n * (answers.answer - 1) / repeats,
        prefilled=n_prompts * answers.prompt / repeats,
        read=read,
    )


def _check(config: RunConfig, answers: Answers, world: int) -> None:
    model, group = config.model, config.rl.group_size
    if not isinstance(model, GPTConfig):
        raise ConfigError(
            "costs of preference optimization and reinforcement learning are known for "
            f"Transformers, and {config.preset} has model.kind = {model.kind!r}."
        )
    for name, value in (("prompt_tokens", answers.prompt), ("answer_tokens", answers.answer)):
        if value < 1:
            raise ConfigError(f"{name} = {value}: expected 1 or more.")
    if answers.prompt + answers.answer > model.context_length:
        raise ConfigError(
            f"a prompt of {answers.prompt:,} and an answer of {answers.answer:,} tokens exceed "
            f"model.context_length = {model.context_length:,}: set fewer prompt_tokens or "
            "answer_tokens, or a longer context."
        )
    if config.train.objective == "rl" and world > 1:
        raise ConfigError(f"devices = {world}: `lmsmith rl` runs in one process. Set 1.")
    if config.train.objective == "rl" and config.train.batch_size % group:
        raise ConfigError(
            f"train.batch_size = {config.train.batch_size} answers per step are not a multiple of "
            f"rl.group_size = {group}."
        )


def _row(
    rows: RunConfig, answers: Answers, counting: Counting, *, again: bool
) -> tuple[float, float]:
    """FLOPs of a row's forward and backward pass. `again`: the head's logits are recomputed."""
    found = flops(rows, counting)
    learned = not rows.lora.rank or rows.lora.embeddings == "yes"
    forward = backward = 0.0
    for name, part in found.parts.items():
        if name == "head":
            forward += answers.answer * part.forward
            backward += answers.answer * part.forward * (1 + learned + again)
        else:
            forward += answers.row * part.forward
            backward += answers.row * (part.backward + part.recomputed)
    return forward, backward


def _base(rows: RunConfig, answers: Answers, counting: Counting) -> float:
    """FLOPs of a row's forward pass with the starting weights. Adapters are read in preference
    optimization, where they start at zero; the reference of RL has none.
    """
    if rows.train.objective == "rl":
        rows = rows.changed({"lora.rank": 0}, where="the reference model")
    return _row(rows, answers, counting, again=False)[0]


def _chunked(rows: RunConfig, answers: Answers, gpu: bool, world: int) -> bool:
    """Whether preference losses compute their logits in chunks, twice (`lmsmith/loss.py`)."""
    if rows.train.objective != "preferences":
        return False
    assert isinstance(rows.model, GPTConfig)
    at_once = micro_batch(rows, world)[0] * answers.answer
    most = GPU_CHUNK_ELEMENTS if gpu else CHUNK_ELEMENTS
    return at_once > max(1, most // rows.model.padded_vocab_size)


def _rollout(model: GPTConfig, answers: Answers, counting: Counting) -> tuple[float, float]:
    """FLOPs of reading a prompt, and of decoding an answer behind it.

    The prompt's last position gives the first token of the answer; the last token is not read.
    """
    prompt = dataclasses.replace(model, context_length=answers.prompt)
    reading = sum(
        product.flops * (1 if product.part == "head" else answers.prompt)
        for product in products(prompt, counting)
    )
    heads = 4.0 * model.n_head * model.width_head
    matrices = sum(product.flops for product in products(model) if product.weight)
    positions = range(answers.prompt, answers.row)
    decoding = matrices * len(positions)
    for layer in range(model.n_layer):
        window = model.window_of(layer) or model.context_length
        decoding += heads * sum(min(position + 1, window) for position in positions)
    return reading, decoding
