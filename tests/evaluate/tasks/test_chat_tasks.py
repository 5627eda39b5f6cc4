"""Tasks of chat models: prompts are conversations, and answers are graded by kind."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith.evaluate.tasks.chats import ARITHMETIC, GSM8K_CHAT, STORY_QUESTIONS
from lmsmith.evaluate.tasks.run import Subject, run_tasks
from lmsmith.text.story_questions import question
from lmsmith.tokens.tokenizer import ByteTokenizer

Asked = Sequence[Sequence[Mapping[str, str]]]


class Known:
    """A model that knows the answers to some questions; as a subject it says nothing."""

    context_length = None
    device = torch.device("cpu")

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.answers, self.asked = answers, list[Any]()

    def reply(self, asked: Asked, max_tokens: int) -> list[tuple[str, int]]:
        self.asked += asked
        return [(self.answers.get(some[-1]["content"], "No."), 0) for some in asked]

    def write(self, prompts: Sequence[Sequence[int]], n: int, stop: Sequence[str]) -> list[str]:
        texts = [bytes(ids).decode() for ids in prompts]
        return [self.answers.get(text.rstrip("\n"), "No.") for text in texts]


def subject(known: Known, *, chat: bool) -> Subject:
    found = Subject(known, ByteTokenizer(False), None, known.write)  # type: ignore[arg-type]
    return dataclasses.replace(found, reply=known.reply) if chat else found


def answers_to(kinds: Sequence[str]) -> dict[str, str]:
    rows = [row["question"] for row in STORY_QUESTIONS.rows(None)]
    return {one.messages[-1]["content"]: one.answer for one in rows if one.kind in kinds}


@pytest.mark.parametrize("chat", [True, False])
def test_story_questions_are_graded_by_kind_and_the_chance_is_stated(chat: bool) -> None:
    known = Known(answers_to(["who", "sum"]))
    (found,) = run_tasks(subject(known, chat=chat), ["story_questions"])
    assert found.n_items == 500
    assert {name: of["exact_match"] for name, of in found.groups.items()} == {
        "who": 1, "what": 0, "where": 0, "continue": 0, "sum": 1,
    }  # fmt: skip
    assert found.metrics["exact_match"] == pytest.approx(0.4)
    chances = [row["question"].chance for row in STORY_QUESTIONS.rows(None)]
    assert found.chance == pytest.approx(sum(chances) / 500)
    assert found.groups["continue"]["chance"] == 0
    assert 0.4 < found.groups["who"]["chance"] <= 0.5


def test_items_are_held_out_and_in_turn() -> None:
    rows = [row["question"] for row in STORY_QUESTIONS.rows(None)]
    assert [one.kind for one in rows[:6]] == ["who", "what", "where", "continue", "sum", "who"]
    assert rows[5] == question("who", 7_040_502, 1, held_out=True)
    assert len({one.messages[-1]["content"] for one in rows}) > 490


def test_arithmetic_is_right_when_it_is(tmp_path: Path) -> None:
    class Adds(Known):
        def reply(self, asked: Asked, max_tokens: int) -> list[tuple[str, int]]:
            sums = [some[-1]["content"].removeprefix("What is ").rstrip("?") for some in asked]
            found = [sum(map(int, text.split(" + "))) for text in sums]
            return [(f" {n}.", 0) if n % 2 else (f"{n + 1}", 0) for n in found]

    (found,) = run_tasks(subject(Adds({}), chat=True), ["arithmetic"])
    odd = [int(row["question"].short) % 2 for row in ARITHMETIC.rows(None)]
    assert found.metrics["exact_match"] == pytest.approx(sum(odd) / len(odd))
    assert found.chance == pytest.approx(1 / 90)


def test_gsm8k_under_the_template_with_earlier_turns_as_examples(tmp_path: Path) -> None:
    rows = [(f"How many is {n}?", f"It is.\n#### {n},000") for n in range(3)]
    (tmp_path / "gsm8k.jsonl").write_text(
        "".join(f'{{"question": "{a}", "answer": {b!r}}}\n'.replace("'", '"') for a, b in rows)
    )
    known = Known({rows[0][0]: "So it is $0,000.", rows[1][0]: "#### 1000"})
    (found,) = run_tasks(subject(known, chat=True), ["gsm8k_chat"], shots=1, folder=tmp_path)
    assert found.metrics["exact_match"] == pytest.approx(1 / 3)
    assert found.metrics["exact_match_last"] == pytest.approx(2 / 3)
    for asked in known.asked:
        assert [turn["role"] for turn in asked] == ["user", "assistant", "user"]
        assert asked[1]["content"].endswith("000")
        assert asked[0]["content"] != asked[2]["content"]
    item = GSM8K_CHAT.item({"question": "a?", "answer": "#### 5"})
    assert item.contexts == ("a?\n",)
