"""Preference training: losses against a direct computation, data, a run, its resumption."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import lmsmith
from lmsmith.chat.align import PairLoss
from lmsmith.chat.pairs import preference_of
from lmsmith.chat.preferences import dpo, ipo, kto, kto_kl, simpo
from lmsmith.config import AlignConfig
from lmsmith.errors import ConfigError, DataError
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.targets import IGNORED
from lmsmith.train.start import resume

SMALL = {
    **{"model.n_layer": 1, "model.d_model": 32, "model.n_head": 2, "model.context_length": 32},
    **{"train.threads": 1, "train.dtype": "float32", "train.matmul": "default"},
}
COMMON = {name: value for name, value in SMALL.items() if name.startswith("train.")}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_losses_are_those_of_the_papers() -> None:
    pc, pr, rc, rr = -4.0, -6.5, -5.0, -6.0
    ours = [torch.tensor([x], dtype=torch.float64) for x in (pc, pr, rc, rr)]
    h = (pc - rc) - (pr - rr)
    found = dpo(*ours, beta=0.3, label_smoothing=0.1)
    wanted = -0.9 * math.log(sigmoid(0.3 * h)) - 0.1 * math.log(sigmoid(-0.3 * h))
    assert found.loss.item() == pytest.approx(wanted)
    assert (found.chosen.item(), found.rejected.item()) == pytest.approx((0.3, -0.15))
    assert ipo(*ours, beta=0.3).loss.item() == pytest.approx((h - 1 / 0.6) ** 2)
    wanted = -math.log(sigmoid(2 * (pc - pr) - 1.5))
    assert simpo(*ours[:2], beta=2.0, gamma=1.5).loss.item() == pytest.approx(wanted)
    answers, references = torch.tensor([pc, pr]), torch.tensor([rc, rr])
    kl = kto_kl(torch.tensor([-3.0, -4.0]), torch.tensor([-3.5, -4.1]))
    assert kl.item() == pytest.approx(0.3)
    assert kto_kl(answers - 9, references).item() == 0
    loss, _ = kto(answers, references, torch.tensor([True, False]), kl, beta=0.3)
    wanted = [1 - sigmoid(0.3 * (1 - 0.3)), 1 - sigmoid(-0.3 * (-0.5 - 0.3))]
    assert loss.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("method", ["dpo", "ipo", "simpo", "kto"])
def test_loss_and_every_gradient_equal_a_direct_computation(method: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    config = GPTConfig(n_layer=1, d_model=16, n_head=2, vocab_size=11, context_length=8)
    model = GPT(config).double()
    model.initialise(generator)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    ids = torch.randint(0, 11, (4, 9), generator=generator)
    targets = ids[:, 1:].clone()
    targets[:, :3] = IGNORED
    targets[1, 6:] = IGNORED
    reference = torch.tensor([-9.0, -8.0, -12.0, -11.5], dtype=torch.float64)
    labels = torch.tensor([True, False])
    module = PairLoss(model)
    module.settings = AlignConfig(method=method)
    module.kl = torch.tensor(0.7, dtype=torch.float64)
    loss, sums = module(ids[:, :-1], targets, reference, labels)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    every = torch.log_softmax(model(ids[:, :-1]), -1)
    rows = [
        [every[row, t, ids[row, t + 1]] for t in range(8) if targets[row, t] >= 0]
        for row in range(4)
    ]
    total, mean = [sum(row) for row in rows], [sum(row) / len(row) for row in rows]
    n = [len(row) for row in rows]
    wanted = torch.zeros((), dtype=torch.float64)
    for i in (0, 2):
        ratio = [total[i + k] - reference[i + k] for k in (0, 1)]
        if method == "dpo":
            wanted = wanted - torch.log(torch.sigmoid(0.1 * (ratio[0] - ratio[1])))
        elif method == "ipo":
            wanted = wanted + (ratio[0] / n[i] - ratio[1] / n[i + 1] - 5) ** 2
        elif method == "simpo":
            wanted = wanted - torch.log(torch.sigmoid(2 * (mean[i] - mean[i + 1]) - 1))
        else:
            sign = 1 if labels[i // 2] else -1
            wanted = wanted + 1 - torch.sigmoid(sign * 0.1 * (ratio[0] - 0.7))
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    assert sums["n"] == 2
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-12)


def test_forms_of_preferences() -> None:
    a, b = {"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}
    q = {"role": "user", "content": "Q"}
    forms = [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": [q], "chosen": [a], "rejected": [b]},
        {"chosen": [q, a], "rejected": [q, b]},
    ]
    found = [preference_of(form) for form in forms]
    assert {each.prompt[0]["content"] for each in found} == {"Q"}
    for each in found:
        assert [answer.messages[-1]["content"] for answer, _ in each.answers] == ["A", "B"]
        assert [good for _, good in each.answers] == [True, False]
    labelled = preference_of({"prompt": "Q", "completion": "A", "label": False})
    assert [good for _, good in labelled.answers] == [False]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "Q", "chosen": "A"}, "not a preference"),
        ({"prompt": "Q", "chosen": " ", "rejected": "B"}, "is empty"),
        ({"prompt": "Q", "chosen": [{"role": "judge", "content": "A"}], "rejected": "B"}, "judge"),
        ({"prompt": [{"role": "assistant", "content": "Q"}], "chosen": "A", "rejected": "B"},
         "starts with the assistant"),
        ({"chosen": "A", "rejected": "B"}, "no prompt"),
        ({"prompt": "Q", "chosen": [{"role": "user", "content": "A"}], "rejected": "B"},
         "assistant"),
    ],
)  # fmt: skip
def test_bad_records_are_named(record: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        preference_of(record, "pairs.jsonl:7")
    assert "pairs.jsonl:7" in str(caught.value)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("align")
    (place / "t.txt").write_text("what about 1? Very well: 1. Bad: 2.\n" * 60, encoding="utf-8")
    run = lmsmith.train(
        place / "t.txt", out=place / "base", steps=3, settings=SMALL, progress=False
    )
    return run.path


def pairs(place: Path, more: list[dict[str, Any]] | None = None) -> Path:
    records = [
        {"prompt": f"what about {i}?", "chosen": f"well: {i}", "rejected": f"Bad: {i}"}
        for i in range(40)
    ]
    path = place / "pairs.jsonl"
    lines = [json.dumps(record) for record in [*records, *(more or [])]]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_run_learns_the_preference_and_counts_bad_pairs(chat: Path, tmp_path: Path) -> None:
    long = "Bad: " + "1" * 60
    bad = [
        {"prompt": "what?", "chosen": "1", "rejected": "1"},
        {"prompt": "what a?", "chosen": long, "rejected": long + "2"},
    ]
    settings = COMMON | {"train.batch_size": 8, "learning_rate": 0.003}
    run = lmsmith.align(
        chat, pairs(tmp_path, bad), out=tmp_path / "run", epochs=10, settings=settings,
        progress=False,
    )  # fmt: skip
    lines = list(map(json.loads, (run.path / "metrics.jsonl").read_text("utf-8").splitlines()))
    first = next(line for line in lines if line["kind"] == "eval")
    assert first["val_loss"] == pytest.approx(math.log(2), abs=1e-5)  # the policy is the reference
    last = run.summary["best_val_metrics"]
    assert run.summary["best_val_loss"] < 0.6
    assert last["rewards/accuracies"] == 1
    margin = last["rewards/chosen"] - last["rewards/rejected"]
    assert last["rewards/margins"] == pytest.approx(margin)
    counts = json.loads((run.path / "tokens" / "corpus.json").read_text("utf-8"))
    notes = " ".join(counts["notes"])
    assert "the two sides are equal" in notes
    assert "equal after the cut" in notes
    reference = np.load(run.path / "tokens" / "train.reference.npy")
    assert (reference < 0).all()
    assert not (run.path / "tokens" / "reference").exists()
    train = [line for line in lines if line["kind"] == "train"]
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins"} <= train[-1].keys()


def test_labels_need_kto_and_settings_are_checked(chat: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    records = [{"prompt": f"what {i}?", "completion": "1", "label": i % 2 == 0} for i in range(9)]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    with pytest.raises(DataError, match="--method kto"):
        lmsmith.align(chat, path, out=tmp_path / "x", settings=COMMON, progress=False)
    run = lmsmith.align(
        chat, path, method="kto", out=tmp_path / "k", steps=2, settings=COMMON, progress=False
    )
    assert run.summary["val_metrics"]["kl"] >= 0
    with pytest.raises(ConfigError, match="label_smoothing"):
        lmsmith.align(
            chat, pairs(tmp_path), method="ipo", out=tmp_path / "i", progress=False,
            settings={"align.label_smoothing": 0.1},
        )  # fmt: skip


def test_a_resumed_run_is_bit_identical_and_keeps_its_reference(chat: Path, tmp_path: Path) -> None:
    source = pairs(tmp_path)
    settings = COMMON | {"train.batch_size": 8, "train.save_every": 2, "schedule.shape": "constant"}

    def weights(run: Path) -> bytes:
        return (run / "checkpoints" / "step-00000005" / "model.safetensors").read_bytes()

    for name, steps in (("whole", 5), ("parts", 3)):
        lmsmith.align(
            chat, source, out=tmp_path / name, steps=steps, settings=settings, progress=False
        )
    reference = tmp_path / "parts" / "tokens" / "train.reference.npy"
    before = reference.read_bytes()
    resume(tmp_path / "parts", {"train.steps": 5}, console=Console(file=io.StringIO()))
    assert reference.read_bytes() == before
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
