"""Items of each task family, in each form of their files, and the numbers made from them."""

import copy
import dataclasses
import json
import math
import random
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
from lmsmith.evaluate.tasks.core import CoreChoice, Description
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
    for answer in (2, "2", "C"):
        write(tmp_path / "lines/mmlu.jsonl", [{**row, "answer": answer}])
        assert items_in(tmp_path / "lines", "mmlu") == [one]
    asked = {"query": f"{one.contexts[0]}", "choices": list("ABCD"), "gold": 2, "category": "x"}
    write(tmp_path / "foundry/mmlu.jsonl", [asked])
    (foundry,) = items_in(tmp_path / "foundry", "mmlu")
    assert (texts(foundry), foundry.gold, foundry.group) == (texts(one), 2, "x")
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


def test_core_compares_losses_per_token() -> None:
    task = CoreChoice(Description("two", Path("two.jsonl"), 0, "multiple_choice", " ", 0.5))
    answers = [Answer(-6.0, 3, True), Answer(-5.0, 1, True)]  # -2 and -5 per token
    grades = [task.grade(Item(("q",), (" a b c", " d"), gold), answers) for gold in (0, 1)]
    assert grades == [{"acc": 1.0}, {"acc": 0.0}]


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


def test_mmlu_takes_examples_of_the_subject(subject: Subject, tmp_path: Path) -> None:
    """The first ones of the dev files, in order; without those files, other questions."""
    row = {"choices": ["1", "2", "3", "4"], "answer": 1}
    asked = [{**row, "question": f"{s}{n}", "subject": s} for n in range(3) for s in "xy"]
    write(tmp_path / "mmlu.jsonl", asked)
    seen: list[str] = []

    class Spy(ByteTokenizer):
        def encode(self, text: str) -> Any:
            seen.append(text)
            return super().encode(text)

    reader = dataclasses.replace(subject, tokenizer=Spy(end_of_text=True))

    def contexts(shots: int) -> list[str]:
        seen.clear()
        (found,) = run_tasks(reader, ["mmlu"], shots=shots, folder=tmp_path)
        assert set(found.groups) == {"x", "y"}
        return [text for text in seen if text.endswith("Answer:")]

    for text in contexts(2):
        subject_name = text.split(" about ")[1][0]
        assert text.count(f"\n\n{subject_name}") == 3  # two examples and the question
        assert text.count(" B\n\n") == 2
    write(
        tmp_path / "mmlu_dev.jsonl",
        [{**one, "question": f"dev {one['question']}"} for one in asked],
    )
    for text in contexts(2):
        subject_name = text.split(" about ")[1][0]
        assert text.index(f"dev {subject_name}0\n") < text.index(f"dev {subject_name}1\n")
        assert text.count("dev ") == 2
    with pytest.raises(DataError, match="mmlu has 3 examples of x, and 4 shots are asked for"):
        contexts(4)


def test_bad_input(subject: Subject, tmp_path: Path) -> None:
    def refused(error: type[Exception], words: str, **options: Any) -> None:
        with pytest.raises(error, match=words):
            run_tasks(subject, **{"names": ["piqa"], "folder": tmp_path, **options})

    refused(DataError, "no items of piqa: expected one of piqa.jsonl")
    good = {"query": "Q", "choices": ["a", "b"], "gold": 0}
    path = write(tmp_path / "piqa.jsonl", [good])
    for line, words in (
        ("{", "it is not JSON"),
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


CORE_YAML = """\
icl_tasks:
-
  label: arc_small
  dataset_uri: world_knowledge/arc_small.jsonl
  num_fewshot: [2]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
-
  label: schema_small
  dataset_uri: language_understanding/schema_small.jsonl
  num_fewshot: [0]
  icl_task_type: schema
-
  label: lines_small
  dataset_uri: symbolic_problem_solving/lines_small.jsonl
  num_fewshot: [1]
  icl_task_type: language_modeling
  has_categories: true
"""
CORE_CSV = """\
Eval Task,Task Category,Task Type,#shots,#datapoints,Random baseline,Centered Metric?,Description
arc_small,world knowledge,multiple choice,2,16,25,,"Made, here"
schema_small,language understanding,schema,0,16,50.0,,Made here
lines_small,symbolic problem solving,language modeling,1,16,0,,Made here
"""


def core_bundle(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """A bundle in the layout of nanochat's eval_bundle.zip, with items of random letters."""
    draw = np.random.default_rng(0)
    word = lambda n: "".join(draw.choice(list("abc"), n))  # noqa: E731
    rows: dict[str, list[dict[str, Any]]] = {"arc": [], "schema": [], "lines": []}
    for _ in range(16):
        choices, gold = [word(n) for n in draw.integers(1, 5, 4)], int(draw.integers(4))
        rows["arc"].append({"query": word(4), "choices": choices, "gold": gold})
        options, gold = [word(5), word(3)], int(draw.integers(2))
        rows["schema"].append({"context_options": options, "continuation": word(4), "gold": gold})
        rows["lines"].append({"context": f" {word(4)} ", "continuation": word(1)})
    folder.mkdir()
    (folder / "core.yaml").write_text(CORE_YAML)
    (folder / "eval_meta_data.csv").write_text(CORE_CSV)
    data = folder / "eval_data"
    write(data / "world_knowledge/arc_small.jsonl", rows["arc"])
    write(data / "language_understanding/schema_small.jsonl", rows["schema"])
    write(data / "symbolic_problem_solving/lines_small.jsonl", rows["lines"])
    return rows


def test_core_on_a_small_bundle(subject: Subject, tmp_path: Path) -> None:
    """Each task and the mean of the centred accuracies against a plain computation."""
    pytest.importorskip("yaml")
    rows = core_bundle(tmp_path / "eval_bundle")
    model: Any = copy.deepcopy(subject.model)
    weight = (model.head or model.token_embedding).weight.data
    letters = weight[ord("a") : ord("d")].clone()
    weight.zero_()  # greedy decoding then writes letters that the items have
    weight[ord("a") : ord("d")] = letters
    subject = dataclasses.replace(subject, model=model)
    centred = []
    results = {
        place: run_tasks(subject, ["core"], folder=place)[0]
        for place in (tmp_path, tmp_path / "eval_bundle")
    }
    found = results[tmp_path]
    assert found.groups == results[tmp_path / "eval_bundle"].groups
    for kind, label, shots, delimiter, chance in (
        ("arc", "arc_small", 2, "\nAnswer: ", 0.25),
        ("schema", "schema_small", 0, " ", 0.5),
        ("lines", "lines_small", 1, " ", 0.0),
    ):
        accuracy = core_accuracy(subject, kind, rows[kind], shots, delimiter)
        assert found.groups[label]["acc"] == pytest.approx(accuracy)
        assert found.groups[label]["n_items"] == 16
        centred.append((accuracy - chance) / (1 - chance))
        assert found.groups[label]["centred"] == pytest.approx(centred[-1])
    assert len(set(centred)) == 3
    assert found.metrics["core"] == pytest.approx(statistics.mean(centred))
    assert {item.task for item in found.items} == set(found.groups)


def losses_from(subject: Subject, ids: list[int], start: int) -> tuple[list[float], bool]:
    """The loss of each token from `start` on, and whether all of them are the likeliest."""
    with torch.no_grad():
        logs = subject.model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    each = [-float(logs[at - 1, ids[at]]) for at in range(start, len(ids))]
    greedy = all(int(logs[at - 1].argmax()) == ids[at] for at in range(start, len(ids)))
    return each, greedy


def core_accuracy(
    subject: Subject, kind: str, rows: list[dict[str, Any]], shots: int, delimiter: str
) -> float:
    """The accuracy of one CORE task as its definition says, in a plain loop over bytes."""
    rows = list(rows)
    random.Random(1337).shuffle(rows)
    right = []
    for index, row in enumerate(rows):
        others = [other for other in range(len(rows)) if other != index]
        drawn = random.Random(1234 + index).sample(others, shots) if shots else []
        prefix = ""
        for one in (rows[other] for other in drawn):
            if kind == "arc":
                prefix += f"{one['query']}{delimiter}{one['choices'][one['gold']]}\n\n"
            else:
                prefix += f"{one['context'].strip()}{delimiter}{one['continuation']}\n\n"
        if kind == "lines":
            before = f"{prefix}{row['context'].strip()}{delimiter}".strip()
            ids = [
                256,
                *f"{prefix}{row['context'].strip()}{delimiter}{row['continuation']}".encode(),
            ]
            right.append(losses_from(subject, ids, 1 + len(before.encode()))[1])
            continue
        if kind == "arc":
            texts = [f"{prefix}{row['query']}{delimiter}{choice}" for choice in row["choices"]]
        else:
            texts = [f"{one}{delimiter}{row['continuation']}" for one in row["context_options"]]
        prompts = [[256, *text.encode()] for text in texts]
        ordered = [prompt[::-1] for prompt in prompts] if kind == "schema" else prompts
        shared = 0
        while len({tuple(prompt[: shared + 1]) for prompt in ordered}) == 1:
            shared += 1
        starts = [len(p) - shared if kind == "schema" else shared for p in prompts]
        each = [losses_from(subject, p, s)[0] for p, s in zip(prompts, starts, strict=True)]
        means = [statistics.mean(losses) for losses in each]
        right.append(means.index(min(means)) == row["gold"])
    return statistics.mean(right)
