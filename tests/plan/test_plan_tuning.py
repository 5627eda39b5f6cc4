"""FLOPs and memory of DPO, KTO and GRPO, against PyTorch's count of the code that trains."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_plan_flops import SIZE as SMALL
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmsmith.chat import align
from lmsmith.chat.align import PairLoss
from lmsmith.chat.rl import objective, rollouts
from lmsmith.chat.rl import run as rl_run
from lmsmith.chat.rl.objective import RolloutBatches
from lmsmith.chat.rl.policy import log_probabilities
from lmsmith.chat.rl.rollouts import Answer, Group
from lmsmith.chat.rl.rows import Rows
from lmsmith.chat.rl.task import Problem
from lmsmith.config import RunConfig
from lmsmith.data.batches.pairs import PairBatches
from lmsmith.data.conversations import Conversations
from lmsmith.generate.decoders import StateDecoder
from lmsmith.machine.allocations import allocations
from lmsmith.models.gpt import GPT
from lmsmith.models.lora import add_adapters
from lmsmith.plan import tuned
from lmsmith.plan.devices import Device
from lmsmith.plan.predict import config_for
from lmsmith.plan.tuned import predict_tuning
from lmsmith.plan.tuning import Answers, cost, with_method
from lmsmith.targets import IGNORED
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step

P, A = 5, 7
ANSWERS = Answers(P, A)
SIZE = SMALL | {
    "train.batch_size": 4,
    "rl.group_size": 2,
    "rl.kl_weight": 0.1,
}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {}),
    ("llama", {"model.n_kv_head": 2, "lora.rank": 3}),
    ("modern", {"model.window": 4, "model.window_pattern": "SL", "model.tied_head": True}),
    ("llama", {"lora.rank": 2, "lora.embeddings": "yes"}),
]


def config_of(name: str, changes: dict[str, Any], method: str) -> RunConfig:
    config, _ = config_for(None, {"preset": name, **SIZE, **changes}, "here")
    return with_method(config, method)


def built(config: RunConfig, device: str = "meta") -> GPT:
    with torch.device(device):
        model = GPT(config.model)
        if device != "meta":
            model.initialise(torch.Generator())
        if config.lora.rank:
            add_adapters(model, config.lora, torch.Generator())
    return model


@contextlib.contextmanager
def counting() -> Iterator[FlopCounterMode]:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def rows(n: int, device: str = "meta") -> tuple[torch.Tensor, torch.Tensor]:
    """`n` prompts with answers: inputs, and targets that learn the answers alone."""
    inputs = torch.zeros(n, P + A - 1, dtype=torch.int64, device=device)
    targets = inputs.clone()
    targets[:, : P - 1] = IGNORED
    return inputs, targets


@pytest.mark.parametrize(
    ("name", "changes", "method"),
    [*((*each, "dpo") for each in MODELS), (*MODELS[1], "simpo"), (*MODELS[1], "kto")],
)
def test_preferences(name: str, changes: dict[str, Any], method: str) -> None:
    """On the CPU, because the marks of answers are values; such short rows are one block."""
    config = config_of(name, changes, method)
    found = cost(config, ANSWERS, "blocks", gpu=False)
    module = PairLoss(built(config, "cpu"))
    module.settings, n = config.align, config.train.batch_size
    module.kl = torch.zeros(())
    inputs, targets = rows(2 * n, "cpu")
    extra: Any = {torch.ops.aten.baddbmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2]}
    with FlopCounterMode(display=False, custom_mapping=extra) as counter:
        loss, _ = module(inputs, targets, torch.zeros(2 * n), torch.ones(n, dtype=torch.bool))
        loss.backward()
    assert found.parts["policy"] == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.row_log_probabilities(inputs, targets)
    forward = counter.get_total_flops()
    assert found.parts.get("reference model", 0) == (forward if method != "simpo" else 0)
    assert found.parts.get("KL estimate", 0) == (forward / 2 if method == "kto" else 0)
    twice = config.changed({"train.epochs": 2.0}, where="here")
    again = cost(twice, ANSWERS, "blocks", gpu=False).parts.get("reference model", 0)
    assert again == found.parts.get("reference model", 0) / 2  # computed once, read twice
    assert not found.extra_bytes


@pytest.mark.parametrize(("name", "changes"), MODELS[:3])
def test_policy_gradients(name: str, changes: dict[str, Any]) -> None:
    config = config_of(name, changes, "grpo")
    found = cost(config, ANSWERS, "full", gpu=False)
    n, group = config.train.batch_size, config.rl.group_size
    live, plain = (
        built(each, "cpu") for each in (config, config.changed({"lora.rank": 0}, where=""))
    )
    extra: Any = {torch.ops.aten.baddbmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2]}
    inputs, targets = rows(n, "cpu")
    with FlopCounterMode(display=False, custom_mapping=extra) as counter:
        log_probabilities(live, inputs, targets, 1.0).sum().backward()
    assert found.parts["policy"] == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        log_probabilities(plain, inputs, targets, 1.0)
    assert found.parts["reference model"] == counter.get_total_flops()

    decoder = StateDecoder(plain, n)
    with counting() as counter:
        for slot in range(0, n, group):
            decoder.prefill(slot, [1] * P)
    assert found.parts["rollout: prompts"] == counter.get_total_flops()
    for slot in range(n):
        decoder.copy(slot // group * group, slot)
    with counting() as counter:
        for _ in range(A - 1):
            decoder.step(list(range(n)), [2] * n)
    assert found.parts["rollout: answers"] == counter.get_total_flops()

    several = config.changed({"rl.steps_per_rollout": 3}, where="here")
    parts = cost(several, ANSWERS, "full", gpu=False).parts
    assert parts["policy"] == found.parts["policy"]
    assert parts["rollout: answers"] == pytest.approx(found.parts["rollout: answers"] / 3)
    n_bytes = sum(p.nbytes for p in plain.parameters())
    assert found.extra_bytes["reference model"] == n_bytes
    assert ("merged weights of the rollout" in found.extra_bytes) == bool(config.lora.rank)


CPU = Device("cpu", "a machine", {"float32": 1e11}, 8e9, 1e10, gpu=False)
WIDER = {
    "model.d_model": 64,
    "model.context_length": 160,
    "model.vocab_size": 2000,
    "rl.kl_weight": 0.0,
    "train.batch_size": 4,
    "train.threads": 1,
    "train.dtype": "float32",
}


def pairs() -> PairBatches:
    """Pairs of conversations with P + A tokens, of which A are learned."""
    ids, learned = np.zeros(33 + 96, np.uint16), np.zeros(33 + 96, np.bool_)
    learned[33:] = True
    found = Conversations.join([(ids, learned)] * 40, np.uint16)
    return PairBatches(found, context_length=128, batch_size=4, seed=1)


def rollout() -> Rows:
    """Two prompts of 33 tokens, each with two answers of 96."""
    answer = Answer((1,) * 96, "", (-1.0,) * 96, finished=True)
    group = Group(Problem.of("", ""), (1,) * 33, (answer, answer), (0.0, 1.0))
    rows = Rows.of([group, group])
    rows.advantages += 1
    rows.weights += 1
    return rows


@pytest.mark.parametrize(
    ("name", "method", "changes"),
    [
        ("gpt2", "dpo", {}),
        ("llama", "dpo", {"train.micro_batch_size": 2}),
        ("llama", "grpo", {}),
        ("gpt2", "grpo", {"lora.rank": 4}),
    ],
)
def test_peak_memory_of_a_step(name: str, method: str, changes: dict[str, Any]) -> None:
    """Without the merged weights, which the sampler adds."""
    given = {**WIDER, **changes, "rl.steps_per_rollout": 2}
    config = config_of(name, given, method)
    if method == "grpo":
        config = config.changed({"data.sources": ("arithmetic",)}, where="here")
    lengths = {"prompt_tokens": 33, "answer_tokens": 96}
    plan = predict_tuning(config, set(given), CPU, 1, **lengths)
    batches = pairs() if method == "dpo" else RolloutBatches(4, 4 * 48)
    with allocations(torch.device("cpu")) as found:
        model = built(config, "cpu")
        model.train()
        replica = Replica(model, config)
        if method == "grpo":
            replica.objective._current = 0, rollout()  # type: ignore[attr-defined]
        for step in range(2):
            train_step(replica, batches, step, 10)
    assert plan.tuning is not None
    expected = plan.memory.n_bytes - sum(plan.tuning.extra_bytes.values())
    assert expected == pytest.approx(found.peak, rel=0.05)
    assert sum(plan.memory.by_kind.values()) == pytest.approx(plan.memory.n_bytes)


def test_defaults_are_those_of_the_commands() -> None:
    assert (align.MOST_PAIRS, objective.BATCH_SIZE) == (
        tuned.PAIRS_PER_STEP,
        tuned.ANSWERS_PER_STEP,
    )
    assert (tuned.STEPS["rl"], tuned.AT_ONCE) == (rl_run.STEPS, rollouts.N_SLOTS)
    assert rl_run.DEFAULTS["train.dtype"] == "float32"
    pairs_config, rl_config = (config_of("gpt2", {}, method) for method in ("dpo", "grpo"))
    given = {"rl.group_size"}
    found = [predict_tuning(each, given, CPU, 1) for each in (pairs_config, rl_config)]
    assert [plan.config.train.batch_size for plan in found] == [32, 64]
    assert [plan.steps for plan in found] == [100, 500]
    assert "no number of steps given: 500" in found[1].notes


def test_time_has_the_rollout_and_the_reference() -> None:
    config = config_of("gpt2", {"train.steps": 7}, "grpo")
    plan = predict_tuning(config, {"train.steps", *SIZE}, CPU, 1, prompt_tokens=P, answer_tokens=A)
    assert list(plan.step.parts) == [
        *("policy", "reference model", "rollout: prompts", "rollout: answers")
    ]
    assert plan.steps == 7
    assert plan.tuning is not None
    assert plan.total_flops == 7 * (plan.tuning.flops + plan.flops["causal"].optimizer)
    assert plan.step.low < plan.step.seconds < plan.step.high
    text = str(plan)
    assert "a step of grpo: 2 prompts x 2 answers of 5 + 7 tokens" in text
    assert plan.as_dict()["tuning"]["parts"].keys() == plan.tuning.parts.keys()
