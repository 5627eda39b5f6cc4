"""The ladder: its rungs, the equivalence of the slow variants, and the printed tables."""

import itertools
import re
from typing import Any

import pytest
import torch

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.errors import ConfigError
from lmsmith.models.gpt import GPT
from lmsmith.train import ladder
from lmsmith.train.ladder import PUBLISHED, bench_config, climb, plain_attention, rungs, time_steps

TINY = {
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.d_model": 16,
    "model.vocab_size": 61,
    "model.context_length": 8,
}


def tiny(**changes: Any) -> RunConfig:
    wanted = (
        TINY
        | {"train.batch_size": 2, "train.dtype": "float32", "train.matmul": "default"}
        | changes
    )
    return preset("gpt2").changed(wanted, where="a test")


def test_plain_attention_equals_fused_attention() -> None:
    model = GPT(tiny().model).double()
    for p in model.parameters():
        p.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(p.numel()))
    ids = torch.arange(16).view(2, 8)
    fused = model(ids)
    with plain_attention():
        torch.testing.assert_close(model(ids), fused, rtol=1e-12, atol=1e-12)
        fused.sum().backward()
    torch.testing.assert_close(model(ids), fused, rtol=0, atol=0)


def test_a_gpu_has_the_published_rungs_and_a_cpu_a_subset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ladder, "has_bfloat16", lambda device: True)
    on_gpu = rungs(torch.device("cuda"), True)
    assert [rung.name for rung in on_gpu] == list(PUBLISHED)
    assert on_gpu[-1].changes == {
        "train.dtype": "bfloat16",
        "train.compile": "yes",
        "model.vocab_multiple": 128,
    }
    assert [rung.plain_attention for rung in on_gpu] == [True] * 4 + [False] * 4
    assert [rung.plain_adamw for rung in on_gpu] == [True] * 6 + [False] * 2
    names = [rung.name for rung in rungs(torch.device("cpu"), False)]
    assert names == [
        "float32",
        "fused attention",
        "padded vocabulary",
        "fused AdamW",
        "accumulation",
    ]
    monkeypatch.setattr(ladder, "has_bfloat16", lambda device: False)
    t4 = rungs(torch.device("cuda"), True)
    assert [rung.name for rung in t4] == [name for name in PUBLISHED if name != "TF32"]
    assert t4[-1].changes["train.dtype"] == "float16"


def test_each_rung_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "base_config", lambda device: tiny())
    found = list(climb(torch.device("cpu"), n=4))
    assert [rung.name for rung, _ in found][-1] == "accumulation"
    for rung, pace in found:
        assert min(pace.seconds) > 0
        assert pace.tokens == 16 * (ladder.ACCUMULATED if rung.name == "accumulation" else 1)
        assert (
            pace.tokens / max(pace.seconds)
            <= pace.tokens_per_second
            <= pace.tokens / min(pace.seconds)
        )
        assert pace.peak_memory_bytes > 1e6


def test_plain_adamw_makes_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    replica = ladder.Replica
    monkeypatch.setattr(
        ladder, "Replica", lambda *arguments: made.append(replica(*arguments)) or made[-1]
    )
    for plain in (True, False):
        time_steps(tiny(**{"train.dtype": "float64"}), torch.device("cpu"), n=2, plain_adamw=plain)
    plainly, fused = made
    assert plainly.optimizers.all[0].param_groups[0]["fused"] is False
    for name, weight in plainly.weights(copy=False).items():
        torch.testing.assert_close(weight, fused.weights(copy=False)[name], rtol=1e-10, atol=1e-12)


def test_short_steps_are_timed_for_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least `n` steps, then more until they have taken `least` seconds, up to MOST_STEPS."""
    clock = itertools.count(0, 0.5)  # seconds: a step takes half of one
    monkeypatch.setattr(ladder, "train_step", lambda *a, **b: {})

    def n_steps(n: int, least: float) -> int:
        cpu = torch.device("cpu")
        timed = ladder._seconds_of_steps(
            tiny(), cpu, n, False, least=least, clock=lambda: next(clock)
        )
        return len(timed)

    assert [n_steps(5, least) for least in (0, 1, 10)] == [5, 5, 20]
    monkeypatch.setattr(ladder, "MOST_STEPS", 9)
    assert [n_steps(5, 10), n_steps(12, 10)] == [9, 12]


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
def test_seconds_must_be_a_number(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    from lmsmith.cli import run

    assert run(["bench", "train", "--seconds", seconds], started=0.0) == 2
    assert "expected a number of seconds, 0 or more" in capsys.readouterr().err


def test_unmeasurable_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="choose --device cpu"):
        next(climb(torch.device("mps")))
    with pytest.raises(ConfigError, match="makes no training steps"):
        bench_config({"preset": "ngram"})


def test_the_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lmsmith.cli import run

    words = [f"--{name}={value}" for name, value in TINY.items()]
    assert (
        run(
            ["bench", "train", "--preset", "gpt2", "--train.batch_size=2", "--n", "2", *words],
            started=0.0,
        )
        == 0
    )
    assert re.search(r"^one step +[\d.]+ +\d+% +[\d,]+ ", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setattr(ladder, "base_config", lambda device: tiny())
    assert run(["bench", "ladder", "--device", "cpu", "--n", "4"], started=0.0) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^float32 .* 1000 +1200$", shown, re.MULTILINE)
    assert "torch " in shown
