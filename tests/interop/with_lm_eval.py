"""lm-evaluation-harness on our runs: the same items, log-likelihoods and accuracies.

`test_harness.py` runs this file in an environment that has lm-eval.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness_run import TASKS, N, lm, ours  # noqa: F401 - fixtures
from harness_tasks import write_tasks

import lmsmith
from lmsmith.errors import ConfigError


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_the_harness_agrees_with_our_tasks(
    offline: None,
    ours: Any,  # noqa: F811
    lm: lmsmith.LM,  # noqa: F811
    tmp_path: Path,
) -> None:
    write_tasks(ours, tmp_path)
    names = [f"local_{name}" for name in TASKS]
    theirs = lmsmith.evaluate(lm, harness=names, task_data=tmp_path, bos=False)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.task == f"local_{mine.task}"
        assert other.n_items == N
        assert other.metrics["acc"] == mine.metrics["acc"]
        if "acc_norm" in mine.metrics:
            assert other.metrics["acc_norm"] == mine.metrics["acc_norm"]
            wanted = mine.metrics["acc_stderr"]
            assert other.metrics["acc_stderr"] == pytest.approx(wanted)
        else:
            assert other.metrics["perplexity"] == pytest.approx(mine.metrics["perplexity"])
        for item, sample in zip(mine.items, other.samples, strict=True):
            found = [float(response[0]) for response in sample["filtered_resps"]]
            wanted = [answer.log_likelihood for answer in item.answers]
            assert found == pytest.approx(wanted, abs=1e-4)


def test_an_unknown_task_of_the_harness(
    offline: None,
    lm: lmsmith.LM,  # noqa: F811
) -> None:
    with pytest.raises(ConfigError, match="has no task 'helaswag'"):
        lmsmith.evaluate(lm, harness="helaswag")


def test_rolling_likelihood_and_generation(
    offline: None,
    lm: lmsmith.LM,  # noqa: F811
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    from lmsmith.interop.harness import HarnessLM

    assert get_model("lmsmith") is HarnessLM
    model = HarnessLM.create_from_arg_string(f"run={lm.path}")
    text = "It was a dark and stormy night. " * 12
    (nats,) = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert -nats == pytest.approx(lm.score(text).nats)
    options = {"until": ["e"], "max_gen_toks": 9, "do_sample": False}
    asked = [Instance("generate_until", {}, (p, options), 0) for p in ("It", "A dog")]
    wanted = [lm.generate(p, max_tokens=9, temperature=0, stop="e") for p in ("It", "A dog")]
    assert model.generate_until(asked) == wanted


def test_the_command_line_of_the_harness(
    offline: None,
    ours: Any,  # noqa: F811
    lm: lmsmith.LM,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The line that the documentation has."""
    write_tasks(ours, tmp_path)
    words = ["run", "--model", "lmsmith", "--model_args", f"run={lm.path},bos=false"]
    words += [
        "--tasks",
        "local_piqa",
        "--include_path",
        tmp_path,
        "--output_path",
        tmp_path / "out",
    ]
    command = [sys.executable, "-m", "lmsmith.interop.harness", *map(str, words)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(file.read_text())["results"]["local_piqa"]
    assert found["acc,none"] == ours["piqa"].metrics["acc"]
    assert found["acc_norm,none"] == ours["piqa"].metrics["acc_norm"]
