"""`lm_eval --model local-completions` on a server: the numbers are those of `lmsmith eval`."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")

from conftest import TEXT, TINY
from harness_tasks import write_tasks
from other_versions import python_with
from running import serving

import lmsmith
from lmsmith.train.hooks import sample

N = 8
TASKS = ("hellaswag", "piqa", "lambada")
CONTINUE = """
task: local_continue
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{context}}}}"
doc_to_target: ""
generation_kwargs: {{until: ["e"], max_gen_toks: 9, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> lmsmith.LM:
    """A small model with merges, whose context has room for every item."""
    place = tmp_path_factory.mktemp("harness")
    (place / "book.txt").write_text(TEXT, encoding="utf-8")
    settings = TINY | {"model.context_length": 1024, "train.batch_size": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "SAMPLE_TOKENS", 5)
        lmsmith.train(
            place / "book.txt", out=place / "run", steps=3, tokenizer="bpe:300", settings=settings
        )
    return lmsmith.load(place / "run")


@pytest.mark.slow
def test_the_harness_gets_the_numbers_of_lmsmith_eval(
    request: pytest.FixtureRequest, lm: lmsmith.LM, test_data: Path, tmp_path: Path
) -> None:
    python = python_with("lm-eval", request)
    options: dict[str, Any] = {"task_data": test_data / "tasks", "limit": N, "bos": False}
    ours = lmsmith.evaluate(lm, tasks=TASKS, **options)
    assert not any(result.n_cut for result in ours)
    write_tasks(ours, tmp_path)
    (tmp_path / "continue.yaml").write_text(CONTINUE.format(path=tmp_path / "piqa.jsonl"))
    lmsmith.export(lm.path, to="hf", out=tmp_path / "hf")
    names = ",".join(f"local_{name}" for name in (*TASKS, "continue"))
    with serving([lm.path]) as server:
        arguments = (
            f"model={lm.path.name},base_url=http://127.0.0.1:{server.port}/v1/completions,"
            f"tokenizer={tmp_path / 'hf'},max_length=1024,num_concurrent=4"
        )
        command = [
            *(python, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments),
            *("--tasks", names, "--include_path", tmp_path, "--log_samples"),
            *("--output_path", tmp_path / "results"),
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=200,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(next((tmp_path / "results").rglob("results_*.json")).read_text())["results"]
    for mine in ours:
        other = theirs[f"local_{mine.task}"]
        assert other["acc,none"] == mine.metrics["acc"]
        if mine.task == "lambada":
            assert other["perplexity,none"] == pytest.approx(mine.metrics["perplexity"], rel=1e-4)
        else:
            assert other["acc_norm,none"] == mine.metrics["acc_norm"]
        for item, logged in zip(mine.items, samples(tmp_path, mine.task), strict=True):
            found = [(float(p), greedy in (True, "True")) for p, greedy in logged["filtered_resps"]]
            assert [p for p, _ in found] == pytest.approx(
                [answer.log_likelihood for answer in item.answers], abs=1e-4
            )
            assert [greedy for _, greedy in found] == [answer.greedy for answer in item.answers]
    for logged in samples(tmp_path, "continue"):
        context = logged["doc"]["context"]
        expected = lm.generate(context, max_tokens=9, temperature=0, stop="e")
        assert logged["resps"][0][0] == expected


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    path = next((folder / "results").rglob(f"samples_local_{task}_*.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["doc_id"])
