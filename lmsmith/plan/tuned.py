"""The plan of a step of preference optimization or reinforcement learning: memory and time too.

The passes that have a gradient are those of a run on rows of a prompt with its answer
(`tuning.as_rows`). This module adds what such a step needs beside them:

    memory   logits of the answers alone, all at once; weights of the reference model, and merged
             weights; the KV cache of the rollout, if that needs more than the passes
    time     passes without a gradient take a third of a training pass; prompts likewise; decoding
             takes what `inference.py` predicts for as many sequences at once
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from lmsmith.config import RunConfig
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.plan.devices import Device
from lmsmith.plan.flops import flops
from lmsmith.plan.inference import cache_per_token
from lmsmith.plan.layers import Implementation
from lmsmith.plan.memory import PARAMETERS, STATE, STATES, Memory, micro_batch
from lmsmith.plan.parameters import parameters
from lmsmith.plan.predict import Plan, generation, predict, with_vocabulary
from lmsmith.plan.tape import GRADIENTS
from lmsmith.plan.time import StepTime
from lmsmith.plan.transformer import CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS
from lmsmith.plan.tuning import ROLLOUTS, Answers, Tuning, as_rows, cost

PAIRS_PER_STEP, ANSWERS_PER_STEP = 32, 64  # the most and the usual, of `align` and of `rl`
STEPS = {"rl": 500, "preferences": 100}
NO_LENGTH = {"train.tokens": 0, "train.minutes": 0.0, "train.epochs": 0.0}
AT_ONCE = 128  # sequences that a rollout decodes together
POSITIONS = "position embedding"  # the group of a learned table
OF_LOGITS = ("head", "loss", "softcap")  # parts of a step's time that grow with the logits


def predict_tuning(
    config: RunConfig,
    given: Collection[str],
    device: Device,
    world: int,
    *,
    prompt_tokens: int = 0,
    answer_tokens: int = 0,
    decode_batch: int = 1,
) -> Plan:
    """The plan of a run whose `train.objective` is "preferences" or "rl".

    `given`: names of the settings that were set. Lengths of 0 are chosen and noted. Raises
    ConfigError for rows longer than the context, and for what `predict` refuses.
    """
    config, note = with_vocabulary(_with_defaults(config, given))
    answers, notes = _lengths(config, prompt_tokens, answer_tokens)
    notes += [note] if note else []
    tuning = cost(config, answers, gpu=device.gpu, world=world)
    rows = as_rows(config, answers)
    rows = rows.changed({**NO_LENGTH, "train.steps": 1}, where="the rows")
    at_once = _all_logits(rows, answers, device, world)
    share = answers.answer / answers.row
    how = Implementation(loss="full" if at_once else "chunked", logits=share)
    plan = predict(rows, device, world, how=how, batch_of_inference=decode_batch)
    if tuning.method == "dapo":
        notes.append("dynamic sampling repeats the rollout up to 3 times; here: once")
    config = config.changed({"train.dtype": plan.config.train.dtype}, where="the device")
    step = _time(config, plan, tuning, device)
    steps, note = _steps(config, tuning, step)
    return dataclasses.replace(
        plan,
        config=config,
        parameters=parameters(config),
        memory=_memory(config, plan, tuning, device),
        step=step,
        steps=steps,
        tokens=steps * step.tokens,
        tuning=tuning,
        notes=[*plan.notes, *notes, *([note] if note else [])],
    )


def _steps(config: RunConfig, tuning: Tuning, step: StepTime) -> tuple[int, str]:
    """The number of steps, and a note if it was not given."""
    train = config.train
    if train.steps:
        return train.steps, ""
    if train.tokens:  # of answers
        return max(1, round(train.tokens / (tuning.n_rows * tuning.answers.answer))), ""
    if train.minutes:
        return max(1, int(60 * train.minutes / step.seconds)), ""
    steps = STEPS[train.objective]
    return steps, f"no number of steps given: {steps}"


def _with_defaults(config: RunConfig, given: Collection[str]) -> RunConfig:
    """Batch size and precision as `align` and `rl` choose them."""
    rl = config.train.objective == "rl"
    chosen: dict[str, object] = {}
    if "train.batch_size" not in given:
        group = config.rl.group_size
        chosen["train.batch_size"] = -(-ANSWERS_PER_STEP // group) * group if rl else PAIRS_PER_STEP
    if rl and "train.dtype" not in given:
        chosen["train.dtype"] = "float32"
    if config.train.batch_tokens:
        chosen["train.batch_tokens"] = 0
    return config.changed(chosen, where="the objective")


def _lengths(config: RunConfig, prompt: int, answer: int) -> tuple[Answers, list[str]]:
    """Lengths, those of 0 from the settings or as two halves of the context."""
    if prompt < 0 or answer < 0:
        return Answers(prompt, answer), []  # `cost` refuses them
    most = config.model.context_length
    if config.train.objective == "preferences" and config.align.max_length:
        most = min(most, config.align.max_length)
    known = answer or (config.rl.max_tokens if config.train.objective == "rl" else 0)
    found = known or max(1, most - prompt if prompt else most // 2)
    answers = Answers(prompt or max(1, most - found), found)
    if prompt and answer:
        return answers, []
    return answers, [
        f"prompts of {answers.prompt:,} and answers of {answers.answer:,} tokens: set "
        "--prompt-tokens and --answer-tokens"
    ]


def _all_logits(rows: RunConfig, answers: Answers, device: Device, world: int) -> bool:
    """Whether the logits of a micro-batch's answers are in memory at once."""
    if rows.train.objective == "rl":
        return True
    assert isinstance(rows.model, GPTConfig)
    most = GPU_CHUNK_ELEMENTS if device.gpu else CHUNK_ELEMENTS
    n = micro_batch(rows, world)[0] * answers.answer
    return n <= max(1, most // rows.model.padded_vocab_size)


def _memory(config: RunConfig, plan: Plan, tuning: Tuning, device: Device) -> Memory:
    """The memory of the passes with what else is there; or of the rollout."""
    assert isinstance(config.model, GPTConfig)
    by_kind = dict(plan.memory.by_kind)
    table = _positions(config, plan)
    for kind, n_bytes in (*table.items(), *tuning.extra_bytes.items()):
        by_kind[kind] = by_kind.get(kind, 0.0) + n_bytes
    steady = {**plan.memory.steady, **tuning.extra_bytes}
    passes = Memory(sum(by_kind.values()), by_kind, plan.memory.moment, steady)
    if tuning.method not in ROLLOUTS:
        return passes
    together = min(AT_ONCE, tuning.n_rows)
    tokens = together * (tuning.answers.row + 1)
    cache = tokens * cache_per_token(config.model, 2 if device.gpu else 4)
    kinds = {**steady, "KV cache of the rollout": cache}
    rollout = Memory(sum(kinds.values()), kinds, "rollout", steady)
    return max(passes, rollout, key=lambda memory: memory.n_bytes)


def _positions(config: RunConfig, plan: Plan) -> dict[str, float]:
    """Bytes of the positions of a learned table that shorter rows do not use."""
    found: dict[str, float] = {}
    full = 8.0 if config.train.dtype == "float64" else 4.0
    for table in parameters(config):
        if table.group == POSITIONS:
            unused = full * (table.n - plan.groups[POSITIONS])
            found[PARAMETERS] = unused
            if table.learned:
                found |= {GRADIENTS: unused, STATE: STATES[table.optimizer] * unused}
    return found


def _time(config: RunConfig, plan: Plan, tuning: Tuning, device: Device) -> StepTime:
    """Seconds of the passes, of reading without gradients, and of decoding."""
    step, answers = plan.step, tuning.answers
    share = answers.answer / answers.row
    parts = {
        name: seconds * (share if name in OF_LOGITS else 1.0)
        for name, seconds in step.parts.items()
    }
    trained = flops(plan.config).per_token * step.tokens
    not_passes = ("optimizer", "exchange", "AdamW, bytes", "Muon, bytes", "Muon, products")
    of_passes = sum(seconds for name, seconds in parts.items() if name not in not_passes)
    per_flop = of_passes / trained
    found = {"policy": sum(parts.values())}
    for name in ("KL estimate", "reference model", "rollout: prompts"):
        if name in tuning.parts:
            found[name] = per_flop * tuning.parts[name]
    if tuning.decoded:
        together = min(AT_ONCE, tuning.n_rows)
        speed = generation(plan.config, device, together)
        assert speed is not None
        found["rollout: answers"] = tuning.decoded / speed.tokens_per_second
    total = sum(found.values())
    low, high = step.low / step.seconds * total, step.high / step.seconds * total
    return StepTime(found, low, high, step.tokens, step.efficiency)
