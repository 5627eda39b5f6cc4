"""lm-evaluation-harness on our runs, and our tasks beside it and beside transformers' model.

lm-eval has an environment of its own, which the slow tests make.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from other_versions import importable
from random_models import random_model, saved

import lmsmith
from lmsmith.errors import ConfigError
from lmsmith.tokens.tokenizer import ByteTokenizer

N = 12
TASKS = ("hellaswag", "piqa", "lambada")
YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{context}}}}"
doc_to_target: {target}
"""
CHOICE = "doc_to_choice: endings\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
WORD = "target_delimiter: ''\nmetric_list: [{metric: acc}, {metric: perplexity}]\n"


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> lmsmith.LM:
    """A GPT-2 shape that reads bytes; its context is shorter than some items."""
    folder = tmp_path_factory.mktemp("harness")
    theirs = random_model("gpt2", vocab_size=257)
    saved(theirs, folder / "hf")
    ByteTokenizer(end_of_text=True).save(folder / "bytes")
    run = lmsmith.import_model(folder / "hf", out=folder / "run", tokenizer=folder / "bytes")
    return lmsmith.load(run)


@pytest.fixture(scope="module")
def ours(lm: lmsmith.LM, test_data: Path) -> Any:
    options: dict[str, Any] = {"task_data": test_data / "tasks", "limit": N, "bos": False}
    return lmsmith.evaluate(lm, tasks=TASKS, **options)


def test_our_tasks_give_the_log_likelihoods_of_transformers(ours: Any, lm: lmsmith.LM) -> None:
    """One unpadded row for each ending, in their model."""
    theirs = random_model("gpt2", vocab_size=257)
    T, n_compared = lm.model.context_length, 0
    assert T is not None
    for result in ours:
        for item in result.items[:4]:
            for index, answer in enumerate(item.answers):
                context, ending = (text.encode() for text in item.item.pair(index))
                if len(ending) > T:
                    continue  # windows
                ids = torch.tensor([[*context, *ending][-(T + 1) :]])
                with torch.no_grad():
                    logs = theirs(ids[:, :-1]).logits[0].double().log_softmax(-1)
                logs = logs[-len(ending) :]
                wanted = logs.gather(1, ids[0, -len(ending) :, None]).sum()
                assert answer.log_likelihood == pytest.approx(float(wanted), abs=1e-4)
                assert answer.greedy == bool((logs.argmax(-1) == ids[0, -len(ending) :]).all())
                n_compared += 1
    assert n_compared > 15
    assert any(result.n_cut for result in ours)


@pytest.fixture
def offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    importable("lm-eval", request, monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def described(ours: Any, folder: Path) -> None:
    """The same texts as the harness's tasks: a .yaml and a .jsonl for each."""
    for result in ours:
        rows = [
            {
                "context": one.item.contexts[0],
                "endings": [ending.removeprefix(" ") for ending in one.item.endings],
                "gold": one.item.gold,
                "word": one.item.endings[0],
            }
            for one in result.items
        ]
        path = folder / f"{result.task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = result.task == "lambada"
        kind = "loglikelihood" if words else "multiple_choice"
        target = '"{{word}}"' if words else "gold"
        text = YAML.format(name=f"local_{result.task}", path=path, kind=kind, target=target)
        (folder / f"{result.task}.yaml").write_text(text + (WORD if words else CHOICE))


@pytest.mark.slow
def test_the_harness_agrees_with_our_tasks(
    offline: None, ours: Any, lm: lmsmith.LM, tmp_path: Path
) -> None:
    described(ours, tmp_path)
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


@pytest.mark.slow
def test_an_unknown_task_of_the_harness(offline: None, lm: lmsmith.LM) -> None:
    with pytest.raises(ConfigError, match="has no task 'helaswag'"):
        lmsmith.evaluate(lm, harness="helaswag")


@pytest.mark.slow
def test_rolling_likelihood_and_generation(offline: None, lm: lmsmith.LM) -> None:
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
