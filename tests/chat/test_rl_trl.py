"""GRPO's losses and gradients are those of TRL, computed by its GRPOTrainer in its own environment."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import MACHINE, QUIET, make_base
from other_versions import python_with

from lmsmith.chat.rl.options import options_of
from lmsmith.chat.rl.run import rl
from lmsmith.chat.rl.tasks import ARITHMETIC
from lmsmith.chat.sft import tune
from lmsmith.checkpoint import load_model
from lmsmith.interop.architectures import architecture_for
from lmsmith.run_folder import open_run
from lmsmith.train.replica import Replica
from lmsmith.train.step import gradient

SCRIPT = Path(__file__).with_name("use_trl.py")

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({}, {"loss_type": "grpo", "epsilon_high": 0.2}),
    "dr-grpo": (
        {"rl.method": "dr-grpo"},
        {"loss_type": "dr_grpo", "scale_rewards": False, "epsilon_high": 0.2},
    ),
    "dapo": (
        {"rl.method": "dapo", "rl.overlong": "keep", "rl.dynamic": "no"},
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    "with KL": (
        {"rl.kl_weight": 0.2},
        {"loss_type": "grpo", "beta": 0.2, "epsilon_high": 0.2},
    ),
    "masked": (
        {"rl.overlong": "mask"},
        {"loss_type": "grpo", "mask_truncated_completions": True, "epsilon_high": 0.2},
    ),
}


def two_steps(run: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Our loss and gradients for the second step on one rollout, where ratios are not 1."""
    config, corpus = open_run(run)
    fixed = {"rl.steps_per_rollout": 2, "train.dtype": "float64", "rl.rewards": "digits"}
    config = config.changed(settings | fixed, where="the test")
    model = config.neural.build().double()
    model.load_state_dict(load_model(run / "model")[0])
    replica = Replica(model, config)
    batches: Any = replica.objective.batches(corpus)
    replica.objective.start(run, corpus, replica, batches, lambda message: None)
    replica.objective.before_gradient(replica, batches, 0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    loss, _ = gradient(replica, batches, 1)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {
        "loss": loss,
        "gradients": gradients,
        "weights": weights,
        "rows": batches.current,
        "clipped": replica.metrics["clip_fraction"],
        "model": config.model,
    }


def as_their_inputs(rows: Any) -> dict[str, torch.Tensor]:
    """Our rows as TRL's padded tensors. All prompts have the same length."""
    starts = (rows.targets >= 0).int().argmax(1)
    assert len(set(starts.tolist())) == 1
    n = int(starts[0]) + 1
    A = int(rows.n_tokens.max())
    mask = torch.arange(A) < rows.n_tokens[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    old, reference = torch.zeros(mask.shape).double(), torch.zeros(mask.shape).double()
    ids[mask] = rows.targets[rows.targets >= 0]
    old[mask] = rows.old
    if len(rows.reference):
        reference[mask] = rows.reference
    counted = mask & (rows.weights > 0)[:, None]
    return {
        "prompt_ids": rows.inputs[:, :n],
        "prompt_mask": torch.ones(len(ids), n, dtype=torch.int64),
        "completion_ids": ids,
        "completion_mask": counted.int(),
        "advantages": rows.advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": rows.n_tokens.sum(),
    }


@pytest.mark.slow
def test_losses_and_gradients_equal_those_of_trl(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make_base(tmp_path)
    sums = tmp_path / "sums.jsonl"
    with sums.open("w") as file:
        for number in range(40):
            one = ARITHMETIC.problem(9, number)
            file.write(f'{{"prompt": "{one.question}", "completion": "{one.truth}"}}\n')
    short = MACHINE | {"train.steps": 40, "train.batch_size": 2, "optim.learning_rate": 3e-3}
    tune(tmp_path / "base", [str(sums)], short, out=tmp_path / "sft", console=QUIET)
    options = MACHINE | {
        "train.steps": 1,
        "train.batch_size": 16,
        "rl.group_size": 4,
        "rl.rewards": "digits",
        "rl.temperature": 1.3,
        "rl.kl_weight": 0.2,
        "optim.learning_rate": 1e-9,
    }
    run, _ = rl(tmp_path / "sft", "arithmetic", options, out=tmp_path / "rl", console=QUIET)
    ours = {
        name: two_steps(run, {"rl.kl_weight": 0.0} | settings)
        for name, (settings, _) in CASES.items()
    }
    architecture = architecture_for(ours["grpo"]["model"])
    config = ours["grpo"]["model"]
    common = {"temperature": 1.3, "max_completion_length": options_of(open_run(run)[0]).max_tokens}
    given = [
        {
            "settings": architecture.write_settings(config),
            "tensors": architecture.to_theirs(config, found["weights"]),
            "trainer": "GRPO",
            "options": CASES[name][1] | common | {"num_generations": 4},
            "inputs": as_their_inputs(found["rows"]),
        }
        for name, found in ours.items()
    ]
    torch.save(given, tmp_path / "given.pt")
    python = python_with("trl", request)
    subprocess.run([python, SCRIPT, tmp_path / "given.pt", tmp_path / "found.pt"], check=True)
    theirs = torch.load(tmp_path / "found.pt")
    for (name, found), case in zip(ours.items(), theirs, strict=True):
        assert found["clipped"] > 0, name
        assert found["loss"] == pytest.approx(case["loss"], rel=1e-5, abs=1e-9), name
        wanted = architecture.to_ours(config, case["gradients"], run)
        assert set(wanted) == set(found["gradients"])
        for parameter, value in wanted.items():
            torch.testing.assert_close(found["gradients"][parameter], value, rtol=1e-5, atol=1e-9)
