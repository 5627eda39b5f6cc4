"""Story questions: the answers against what the text says, and the held-out split."""

import json
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from lmsmith.text.stories import generate_stories, score_story
from lmsmith.text.story_chats import conversation, write_conversations, write_pairs
from lmsmith.text.story_questions import (
    KINDS,
    SLOT,
    STORY_KINDS,
    Question,
    about_passage,
    asked_lines,
    correct,
    is_held_out,
    passages,
    question,
)
from lmsmith.text.story_trace import Told, trace


def text_of(asked: Question) -> str:
    return asked.messages[-1]["content"]


def test_a_trace_is_the_story_of_the_generator() -> None:
    random, stories = Random(3), generate_stories(3)
    for _ in range(20):
        assert trace(random).text == next(stories).text


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_is_a_function_of_its_seed_and_its_wrong_answer_is_wrong(kind: str) -> None:
    for index in range(25):
        asked = question(kind, 7, index)
        assert asked == question(kind, 7, index)
        assert correct(asked, asked.answer)
        assert kind == "continue" or correct(asked, f" {asked.short.upper()}. ")
        assert not correct(asked, asked.wrong)
        assert not correct(asked, "")
        assert 0 <= asked.chance <= 0.5
    assert question(kind, 7, 0) != question(kind, 8, 0)


def test_questions_do_not_depend_on_the_hash_seed() -> None:
    script = (
        "from lmsmith.text.story_questions import *\n"
        "print([question(kind, 1, i) for kind in KINDS for i in range(3)])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_the_answers_are_what_a_reader_finds_in_the_text() -> None:
    n_read = 0
    for kind in ("who", "what", "where"):
        for index in range(300):
            asked = question(kind, 5, index)
            line, passage, short = text_of(asked).split("\n\n")[-1], asked.passage, asked.short
            if line.startswith("Where are the pieces now"):
                places = re.findall(
                    r"pieces (?:are )?((?:in|on|under|behind|inside) [^.]+)\.", passage
                )
                assert set(places) == {short}
            elif (found := re.match(r"Who has the (.+) now\?", line)) and "gave" in passage:
                gave = re.search(r"So (\w+) gave (\w+) the (.+?) and got the (.+?)\.", passage)
                if gave is None or "They swapped" in passage:
                    continue
                hero, pal, first, second = gave.groups()
                assert short == {first: pal, second: hero}[found[1]]
            elif re.match(r"What did \w+ follow\?", line):
                chased = re.search(r"(?:followed|ran after|chased) ([^,]+),", passage)
                assert chased is not None
                assert short == chased[1]
            elif line.startswith("How much was"):
                price = re.search(r'"(\w+ coins),"', passage)
                assert price is not None
                assert short == price[1].lower()
            elif line.startswith("Who did not want to share"):
                assert re.search(rf"{short} (shook|hid|held)|said {short}", passage)
            elif found := re.match(r"Where is the (.+) now\?", line):
                if "They looked" in passage:
                    assert re.search(rf"(?i)\b{re.escape(short)}\b", passage.split("They ")[-1])
            else:
                continue
            n_read += 1
    assert n_read > 60


def test_every_line_of_the_table_is_asked() -> None:
    asked: dict[tuple[str, int], int] = {}
    random = Random(2)
    for _ in range(500):
        told = trace(random)
        for number, line in enumerate(asked_lines()[told.plot]):
            pattern = re.compile(SLOT.sub(".+", re.escape(line.question).replace(r"\{", "{")
                                 .replace(r"\}", "}").replace(r"\.", ".")))  # fmt: skip
            found = [
                one
                for passage in passages(told)
                for one in about_passage(passage, (line.kind,), random)
                if pattern.fullmatch(text_of(one))
            ]
            key = told.plot, number
            asked[key] = asked.get(key, 0) + len(found)
    assert len(asked) == sum(map(len, asked_lines().values()))
    assert [key for key, n in asked.items() if not n] == []


def test_held_out_stories_are_never_asked_about_in_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[str] = []

    def spy(random: Random) -> Told:
        drawn.append((told := trace(random)).text)
        return told

    monkeypatch.setattr("lmsmith.text.story_questions.trace", spy)
    monkeypatch.setattr("lmsmith.text.story_chats.trace", spy)
    stories: dict[bool, set[str]] = {False: set(), True: set()}
    for held_out in (False, True):
        for kind in STORY_KINDS:
            for index in range(15):
                drawn.clear()
                asked = question(kind, 1, index, held_out=held_out)
                stories[held_out] |= {text for text in drawn if asked.passage in text}
    for index in range(40):
        drawn.clear()
        passage = conversation(2, index, {"story": 1})[0]["content"].rpartition("\n\n")[0]
        stories[False] |= {text for text in drawn if passage in text}
    assert all(map(is_held_out, stories[True]))
    assert not any(map(is_held_out, stories[False]))
    assert len(stories[True]) == 60
    assert len(stories[False]) == 100


def test_a_held_out_pair_of_numbers_is_never_summed_in_training() -> None:
    def numbers(seed: int, index: int, *, held_out: bool) -> tuple[str, ...]:
        text = text_of(question("arithmetic", seed, index, held_out=held_out))
        return tuple(sorted(re.findall(r"\d+", text)))

    train = {numbers(seed, i, held_out=False) for seed in (1, 2) for i in range(4000)}
    held_out = {numbers(3, i, held_out=True) for i in range(1000)}
    assert not train & held_out
    assert len(held_out) > 300


def test_a_continuation_is_right_if_the_grammar_allows_it() -> None:
    for index in range(10):
        asked = question("continue", 2, index, held_out=True)
        assert correct(asked, asked.answer)
        assert not correct(asked, asked.answer[:-3])  # no sentence
        assert not correct(asked, asked.answer.replace(" ", "  ", 1) + " Amen.")
    told = trace(Random(4)).text
    assert score_story(told) > float("-inf")


@pytest.mark.parametrize("index", range(60))
def test_a_told_sum_is_right(index: int) -> None:
    asked = question("sum", 4, index)
    first, second = map(int, re.findall(r"\d+", text_of(asked)))
    result = first + second if "more" in text_of(asked) else first - second
    assert asked.short == str(result)
    assert result >= 0


def test_conversations_and_pairs_are_files_of_the_usual_forms(tmp_path: Path) -> None:
    write_conversations(tmp_path / "chats.jsonl", 40, seed=1)
    rows = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert [row["messages"] for row in rows] == [conversation(1, index) for index in range(40)]
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 2 <= len(roles) <= 8
    assert len({len(row["messages"]) for row in rows}) > 2
    write_pairs(tmp_path / "pairs.jsonl", 12, seed=1)
    for line in (tmp_path / "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["chosen"] != row["rejected"]
        assert row["prompt"][-1]["role"] == "user"
