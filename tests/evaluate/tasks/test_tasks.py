"""Items of each task family, in each form of their files, and the numbers made from them."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from lmsmith.errors import ConfigError, DataError
from lmsmith.evaluate.tasks.files import files_of, read_rows, to_item
from lmsmith.evaluate.tasks.run import Subject, run_tasks, task_named
from lmsmith.evaluate.tasks.task import Answer, ChoiceTask, Item, Task
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.tokens.tokenizer import ByteTokenizer

QUESTION = "Which one?"
ARC = {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def items_in(folder: Path, name: str) -> list[Item]:
    task = task_named(name)
    assert isinstance(task, Task)
    return [to_item(task, row) for row in read_rows(files_of(task, folder))]


def texts(item: Item) -> list[tuple[str, str]]:
    return [item.pair(index) for index in range(item.n_choices)]


@pytest.mark.parametrize(
    ("name", "path", "row", "wanted", "gold"),
    [
        (
            "hellaswag",
            "hellaswag.jsonl",
            {
                "activity_label": "Jumping",
                "ctx_a": "A man runs. ",
                "ctx_b": "the man",
                "endings": ["[title] stops  here.", "flies."],
                "label": 1,
            },
            ("Jumping: A man runs. The man", ["  stops here.", " flies."]),
            1,
        ),
        (
            "arc_easy",
            "x/ARC-Easy-Test.jsonl",
            {
                "question": {
                    "stem": QUESTION,
                    "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}],
                },
                "answerKey": "B",
            },
            ("Question: Which one?\nAnswer:", [" a", " b"]),
            1,
        ),
        (
            "arc_challenge",
            "arc_challenge.jsonl",
            {"question": QUESTION, "choices": ARC, "answerKey": "3"},
            ("Question: Which one?\nAnswer:", [" a", " b", " c"]),
            2,
        ),
        (
            "piqa",
            "piqa.jsonl",
            {"goal": QUESTION, "sol1": "a", "sol2": "b", "label": "1"},
            ("Question: Which one?\nAnswer:", [" a", " b"]),
            1,
        ),
        (
            "piqa",
            "piqa.jsonl",
            {"query": "Question: Which one?\n", "choices": ["a", "b"], "gold": 1},
            ("Question: Which one?\nAnswer:", [" a", " b"]),
            1,
        ),
    ],
)
def test_prompts(
    tmp_path: Path, name: str, path: str, row: dict[str, Any], wanted: Any, gold: int
) -> None:
    """The prompts of lm-evaluation-harness 0.4."""
    write(tmp_path / path, [row])
    (item,) = items_in(tmp_path, name)
    question, endings = wanted
    assert texts(item) == [(question, ending) for ending in endings]
    assert item.gold == gold
    assert item.solved == question + endings[gold]


def test_labels_beside_the_items(tmp_path: Path) -> None:
    rows = [{"goal": QUESTION, "sol1": "a", "sol2": "b"}] * 2
    write(tmp_path / "piqa/valid.jsonl", rows)
    (tmp_path / "piqa/valid-labels.lst").write_text("1\n0\n")
    assert [item.gold for item in items_in(tmp_path, "piqa")] == [1, 0]


def test_winogrande_scores_the_rest_of_the_sentence(tmp_path: Path) -> None:
    row = {"sentence": "Ann paid Bo, so _ left.", "option1": "Ann", "option2": "Bo", "answer": "2"}
    write(tmp_path / "winogrande.jsonl", [row])
    (item,) = items_in(tmp_path, "winogrande")
    assert texts(item) == [("Ann paid Bo, so Ann", " left."), ("Ann paid Bo, so Bo", " left.")]
    assert item.gold == 1


def test_lambada_takes_the_last_word(tmp_path: Path) -> None:
    write(tmp_path / "lambada.jsonl", [{"text": "It was a dark night"}])
    assert texts(items_in(tmp_path, "lambada")[0]) == [("It was a dark", " night")]


def test_mmlu_in_its_forms(tmp_path: Path) -> None:
    line = '"What is 1, 2?",one,two,three,four,C\n'
    folder = tmp_path / "csv/test"
    folder.mkdir(parents=True)
    (folder / "high_school_math_test.csv").write_text(line)
    row = {
        "question": "What is 1, 2?",
        "subject": "high_school_math",
        "choices": ["one", "two", "three", "four"],
        "answer": 2,
    }
    (tmp_path / "hub/all").mkdir(parents=True)
    table = pyarrow.Table.from_pylist([row])
    pyarrow.parquet.write_table(table, tmp_path / "hub/all/test-00000-of-00001.parquet")
    (one,), (other,) = items_in(tmp_path / "csv", "mmlu"), items_in(tmp_path / "hub", "mmlu")
    assert one == other
    assert one.intro == (
        "The following are multiple choice questions (with answers) about high school math.\n\n"
    )
    assert one.contexts == ("What is 1, 2?\nA. one\nB. two\nC. three\nD. four\nAnswer:",)
    assert (one.endings, one.gold, one.group) == ((" A", " B", " C", " D"), 2, "high_school_math")


def test_gsm8k_reads_the_number(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k.jsonl", [{"question": "How?", "answer": "3 + 4 = 7\n#### 1,007"}])
    (item,) = items_in(tmp_path, "gsm8k")
    task: Any = task_named("gsm8k")
    assert item.solved == "Question: How?\nAnswer: 3 + 4 = 7\n#### 1,007"
    for text, exact, last in (
        (" So.\n#### 1007", 1, 1),
        (" It is $1,007.", 0, 1),
        ("#### 1007 of 3", 1, 0),
        ("none", 0, 0),
    ):
        assert task.grade_text(item, text) == {"exact_match": exact, "exact_match_last": last}


def test_accuracies_and_standard_errors() -> None:
    class Two(ChoiceTask):
        name = "two"

        def item(self, row: Any) -> Item:
            return Item.choice("q", ["é", "abcd"], row["gold"])

    task = Two()
    answers = [Answer(-4.0, 1, True), Answer(-5.0, 1, False)]  # -2 and -1.25 per byte
    grades = [task.grade(task.item({"gold": gold}), answers) for gold in (0, 0, 1, 0, 0)]
    assert grades[0] == {"acc": 1.0, "acc_norm": 0.0}
    found = task.summary(grades)
    assert found["acc"] == 0.8
    wanted = statistics.stdev([1, 1, 0, 1, 1]) / math.sqrt(5)
    assert found["acc_stderr"] == pytest.approx(wanted)


# ---- on a model ----


@pytest.fixture(scope="module")
def subject() -> Subject:
    model = GPTConfig(
        vocab_size=257, d_model=16, n_layer=1, n_head=2, context_length=96, positions="learned"
    ).build()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(0, 0.5, generator=generator)
    written = lambda prompts, n, stop: ["#### 2" for _ in prompts]  # noqa: E731
    return Subject(model.eval(), ByteTokenizer(end_of_text=True), 256, written)


def test_every_family_runs(subject: Subject, test_data: Path) -> None:
    names = ["hellaswag", "arc_easy", "arc_challenge", "piqa", "winogrande", "lambada", "gsm8k"]
    for found in run_tasks(subject, names, limit=3, shots=1, folder=test_data / "tasks"):
        assert found.n_items == 3
        assert all(math.isfinite(value) for value in found.metrics.values())
        assert "/tasks/" in found.items[2].where
        assert found.items[2].where.endswith(", line 3")


def test_few_shot_examples_depend_on_the_seed_alone(subject: Subject, tmp_path: Path) -> None:
    rows = [{"query": f"Q{n}", "choices": ["a", "b"], "gold": n % 2} for n in range(9)]
    write(tmp_path / "piqa.jsonl", rows)
    one, same, limited, other = (
        run_tasks(subject, ["piqa"], shots=2, folder=tmp_path, seed=seed, limit=limit)[0]
        for seed, limit in ((1, None), (1, None), (1, 4), (2, None))
    )
    scores = [[item.answers for item in found.items] for found in (one, same, limited, other)]
    assert scores[0] == scores[1] != scores[3]
    for a, b in zip(scores[0][:4], scores[2], strict=True):  # other batches: other rounding
        assert [x.log_likelihood for x in a] == pytest.approx([x.log_likelihood for x in b])


def test_bad_input(subject: Subject, tmp_path: Path) -> None:
    def refused(error: type[Exception], words: str, **options: Any) -> None:
        with pytest.raises(error, match=words):
            run_tasks(subject, **{"names": ["piqa"], "folder": tmp_path, **options})

    refused(DataError, "no items of piqa: expected one of piqa.jsonl")
    good = {"query": "Q", "choices": ["a", "b"], "gold": 0}
    path = write(tmp_path / "piqa.jsonl", [good])
    for line, words in (
        ("{", "is not JSON"),
        ("[1]", "is not an object"),
        ('{"query": "Q", "gold": 0}', "there is no field 'choices'. It has: query, gold"),
        ('{"query": "Q", "choices": ["a"], "gold": 1}', "right answer is number 1 of 1 choices"),
        ('{"query": "Q", "choices": [1], "gold": 0}', "expected a text, found 1"),
    ):
        path.write_text(f"{json.dumps(good)}\n\n{line}\n")
        refused(DataError, f"piqa.jsonl, line 3.*{words}")
    write(path, [good])
    refused(ConfigError, "limit = 0", limit=0)
    refused(DataError, "has 1 items; 2 few-shot examples", shots=2)
    refused(ConfigError, "no task 'hella-swag'. Did you mean 'hellaswag'?", names=["hella-swag"])
    refused(DataError, "there is no folder", folder=tmp_path / "none")


def test_core_on_a_small_bundle(subject: Subject, tmp_path: Path) -> None:
    """Accuracies recomputed from each choice's loss per token; chance subtracted, the rest
    scaled.
    """
    pytest.importorskip("yaml")
    (tmp_path / "core.yaml").write_text(
        "icl_tasks:\n"
        "- {label: mc, dataset_uri: a/mc.jsonl, num_fewshot: [1], "
        "icl_task_type: multiple_choice, continuation_delimiter: ': '}\n"
        "- {label: sc, dataset_uri: a/sc.jsonl, num_fewshot: [0], icl_task_type: schema}\n"
        "- {label: lm, dataset_uri: a/lm.jsonl, num_fewshot: [2], "
        "icl_task_type: language_modeling}\n"
    )
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nmc,25\nsc,50\nlm,0\n")
    draw = np.random.default_rng(0)
    word = lambda: "".join(draw.choice(list("abc"), 4))  # noqa: E731
    data = tmp_path / "eval_data/a"
    mc = [{"query": word(), "choices": [word() for _ in "123"], "gold": 1} for _ in range(12)]
    sc = [{"context_options": [word(), word()], "continuation": word(), "gold": 0}] * 3
    write(data / "mc.jsonl", mc)
    write(data / "sc.jsonl", sc)
    write(data / "lm.jsonl", [{"context": word() + " ", "continuation": word()}] * 3)
    (found,) = run_tasks(subject, ["core"], folder=tmp_path)
    groups = found.groups
    assert set(groups) == {"mc", "sc", "lm"}
    for label, chance in (("mc", 0.25), ("sc", 0.5), ("lm", 0.0)):
        wanted = (groups[label]["acc"] - chance) / (1 - chance)
        assert groups[label]["centred"] == pytest.approx(wanted)
    mean = statistics.mean(group["centred"] for group in groups.values())
    assert found.metrics["core"] == pytest.approx(mean)
    assert groups["mc"]["acc"] == pytest.approx(core_accuracy(subject, mc))


def core_accuracy(subject: Subject, rows: list[dict[str, Any]]) -> float:
    """nanochat's multiple choice, in a plain loop: one example, ': ' before choices."""
    import random

    rows = list(rows)
    random.Random(1337).shuffle(rows)
    right = []
    for index, row in enumerate(rows):
        others = [other for other in range(len(rows)) if other != index]
        (example,) = (rows[o] for o in random.Random(1234 + index).sample(others, 1))
        shot = f"{example['query']}: {example['choices'][example['gold']]}\n\n"
        prompts = [[256, *f"{shot}{row['query']}: {choice}".encode()] for choice in row["choices"]]
        shared = 0
        while len({tuple(prompt[: shared + 1]) for prompt in prompts}) == 1:
            shared += 1
        losses = []
        for prompt in prompts:
            with torch.no_grad():
                logs = subject.model(torch.tensor([prompt[:-1]]))[0].log_softmax(-1)
            each = [-float(logs[at - 1, prompt[at]]) for at in range(shared, len(prompt))]
            losses.append(sum(each) / len(each))
        right.append(losses.index(min(losses)) == row["gold"])
    return statistics.mean(right)
