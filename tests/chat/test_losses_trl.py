"""Losses and gradients of SFT, DPO, IPO, SimPO and KTO are those of TRL's trainers, which run in
their own environment, on the batches of our runs.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chats import QUIET, SHORT, make_base, write_chats
from other_versions import python_with

from lmsmith.chat.align import align
from lmsmith.chat.sft import tune
from lmsmith.checkpoint import load_model
from lmsmith.interop.architectures import architecture_for
from lmsmith.run_folder import open_run
from lmsmith.targets import IGNORED
from lmsmith.train.replica import Replica
from lmsmith.train.step import gradient

SCRIPT = Path(__file__).with_name("use_trl.py")
ONE = SHORT | {"train.steps": 1}
# our method -> our settings, TRL's trainer, its options
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "sft": ({}, "SFT", {}),
    "dpo": ({"align.beta": 0.3}, "DPO", {"beta": 0.3, "loss_type": "sigmoid"}),
    "dpo smoothed": (
        {"align.beta": 0.5, "align.label_smoothing": 0.2},
        "DPO",
        {"beta": 0.5, "loss_type": "sigmoid", "label_smoothing": 0.2},
    ),
    "ipo": ({"align.beta": 0.2}, "DPO", {"beta": 0.2, "loss_type": "ipo"}),
    "simpo": (
        {"align.beta": 2.5, "align.gamma": 0.7},
        "CPO",
        {"beta": 2.5, "simpo_gamma": 0.7, "loss_type": "simpo", "cpo_alpha": 0.0},
    ),
    "kto": ({"align.beta": 0.4}, "KTO", {"beta": 0.4, "per_device_train_batch_size": 8}),
}


def ours(run: Path, base: Path, settings: dict[str, Any], noise: float) -> dict[str, Any]:
    """Our loss, gradients and batch at the first step of `run`, with weights that have moved from
    those of the reference, `base`.
    """
    config, corpus = open_run(run)
    config = config.changed(settings | {"train.dtype": "float64"}, where="the test")
    model = config.neural.build().double()
    model.load_state_dict(load_model(base / "model")[0])
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    replica = Replica(model, config)
    batches: Any = replica.objective.batches(corpus)
    replica.objective.start(run, corpus, replica, batches, lambda message: None)
    for seed in range(20):  # in KTO, until the KL estimate is not clamped to 0
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in model.named_parameters():
                draw = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                p.copy_(start[name] + noise * draw)
        replica.objective.before_gradient(replica, batches, 0)
        if config.align.method != "kto" or float(replica.objective.loss.kl) > 0.1:  # type: ignore
            break
    loss, _ = gradient(replica, batches, 0)
    return {
        "loss": loss,
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "start": start,
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "batches": batches,
        "conversations": corpus.train,
        "metrics": replica.metrics,
        "model": config.model,
    }


def examples(found: dict[str, Any], trainer: str) -> list[dict[str, Any]]:
    """The batch, as the examples of the trainer's collator."""
    some = found["conversations"]
    if trainer == "SFT":
        spans = [slice(*some.starts[m : m + 2].tolist()) for m in found["batches"].members(0)]
        return [
            {
                "input_ids": some.ids[s].tolist(),
                "assistant_masks": some.learned[s].astype(int).tolist(),
            }
            for s in spans
        ]
    return [
        _example(found["batches"].rows(0), row, trainer)
        for row in range(0, len(found["batches"].rows(0).inputs), 2)
    ]


def _example(batch: Any, row: int, trainer: str) -> dict[str, Any]:
    parts = []
    for one in (row, row + 1):
        inputs, targets = batch.inputs[one], batch.targets[one]
        learned = np.flatnonzero(targets != IGNORED)
        first, end = int(learned[0]) + 1, int(learned[-1]) + 2
        assert len(learned) == end - first  # the answer is one piece
        ids = [*inputs[: end - 1].tolist(), int(targets[learned[-1]])]
        parts.append((ids, first))
    (chosen, n), (rejected, m) = parts
    if trainer == "DPO":
        assert chosen[:n] == rejected[:m]
        return {
            "prompt_input_ids": chosen[:n],
            "chosen_input_ids": chosen[n:],
            "rejected_input_ids": rejected[m:],
        }
    names = ("chosen", "rejected") if trainer == "CPO" else ("completion", "KL_completion")
    example: dict[str, Any] = {"label": bool(batch.labels[row // 2])} if trainer == "KTO" else {}
    for name, (ids, start) in zip(names, parts, strict=True):
        example[f"{name}_input_ids"] = ids
        example[f"{name}_attention_mask"] = [1] * len(ids)
        example[f"{name}_labels"] = [-100] * start + ids[start:]
    return example


def write_pairs(path: Path, n: int = 60) -> None:
    with path.open("w") as file:
        for i in range(n):
            record = {
                "prompt": f"saw {i}?",
                "chosen": f"x {i * i}",
                "rejected": "y z" * (1 + i % 3),
            }
            file.write(json.dumps(record) + "\n")


def write_labels(path: Path, n: int = 60) -> None:
    with path.open("w") as file:
        for i in range(n):
            record = {"prompt": f"saw {i}?", "completion": f"x {i * i}", "label": i % 3 > 0}
            file.write(json.dumps(record) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_losses_and_gradients_are_those_of_trls_trainers(
    preset: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = make_base(tmp_path, preset=preset, **{"model.n_layer": 2})
    write_chats(tmp_path / "chats.jsonl")
    write_pairs(tmp_path / "pairs.jsonl")
    write_labels(tmp_path / "labels.jsonl")
    sft, _ = tune(base, [str(tmp_path / "chats.jsonl")], ONE, out=tmp_path / "sft", console=QUIET)
    found, given = {}, []
    for name, (settings, trainer, options) in CASES.items():
        run, method = sft, name.split()[0]
        if method != "sft":
            source = tmp_path / ("labels.jsonl" if method == "kto" else "pairs.jsonl")
            given_settings = ONE | settings | {"align.method": method, "train.batch_size": 8}
            place = tmp_path / name.replace(" ", "-")
            run, _ = align(sft, [str(source)], given_settings, out=place, console=QUIET)
        one = ours(run, sft, settings if method != "sft" else {"train.batch_size": 4}, 0.03)
        architecture = architecture_for(one["model"])
        given.append(
            {
                "settings": architecture.write_settings(one["model"]),
                "tensors": architecture.to_theirs(one["model"], one["weights"]),
                "reference": architecture.to_theirs(one["model"], one["start"]),
                "trainer": trainer,
                "options": options,
                "examples": examples(one, trainer),
            }
        )
        found[name] = one
    assert found["kto"]["metrics"]["kl"] > 0
    torch.save(given, tmp_path / "given.pt")
    python = python_with("trl", request)
    subprocess.run([python, SCRIPT, tmp_path / "given.pt", tmp_path / "found.pt"], check=True)
    theirs = torch.load(tmp_path / "found.pt")
    for (name, one), case in zip(found.items(), theirs, strict=True):
        assert one["loss"] == pytest.approx(case["loss"], rel=1e-5), name
        architecture = architecture_for(one["model"])
        wanted = architecture.to_ours(one["model"], case["gradients"], tmp_path)
        assert set(wanted) == set(one["gradients"])
        for parameter, value in wanted.items():
            difference = (one["gradients"][parameter] - value).abs().max()
            assert difference <= 1e-5 * value.abs().max(), (name, parameter)
