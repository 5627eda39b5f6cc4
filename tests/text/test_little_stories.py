"""Little stories against a reader of their text: answers follow from the sentences alone."""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lmsmith.text.little_questions import (
    KINDS,
    TEXTS,
    little_conversation,
    little_question,
    write_little_conversations,
    write_little_pairs,
)
from lmsmith.text.little_stories import little_story
from lmsmith.text.story_questions import NEXT, correct, is_held_out

EVENT = re.compile(
    r"(?:One \w+,|Then) (\w+) (put|found|bought|took|gave) the (\w+) (?:in|to)(?: the)? (\w+)\."
)
PAST = {"put away": "put", "find": "found", "buy": "bought", "take": "took", "give away": "gave"}


def answers(text: str, question: str) -> list[str]:
    """All answers to a question, read from the text with patterns; the last is true at the end."""
    events = EVENT.findall(text)
    assert len(events) == text.count(".")
    if found := re.fullmatch(r"Who (\w+) the (\w+)(?: away| now)?\?", question):
        verb, thing = found.groups()
        if verb != "has":
            return [who for who, did, what, _ in events if (did, what) == (verb, thing)]
        return [(to if did == "gave" else who) for who, did, what, to in events if what == thing]
    if found := re.fullmatch(r"What did (\w+) ([a-z ]+)\?", question):
        who, verb = found.groups()
        return [f"the {what}" for one, did, what, _ in events if (one, did) == (who, PAST[verb])]
    if found := re.fullmatch(r"Where did (\w+) (\w+) the (\w+)\?", question):
        who, verb, thing = found.groups()
        return [f"in the {to}" for e in [(who, PAST[verb], thing)] for *one, to in events
                if tuple(one) == e]  # fmt: skip
    if found := re.fullmatch(r"What is in the (\w+) now\?", question):
        last = {what: to for _, did, what, to in events if did in "put took"}
        return [f"the {what}" for what, to in last.items() if to == found[1]]
    found = re.fullmatch(r"Where is the (\w+) now\?", question)
    assert found, question
    return [f"in the {to}" for _, did, what, to in events if what == found[1] and did in "put took"]


def sentence(question: str, answer: str) -> str:
    """The answer as a sentence that repeats the question."""
    did = re.compile("|".join(PAST)).search(question)
    past = PAST[did[0]] if did else ""
    away = " away" if "away" in question else ""
    patterns = {
        r"Who has the (\w+) now\?": "{answer} has the {0}.",
        r"Who (.+)\?": "{answer} {0}.",
        r"What did (\w+) .+\?": "{0} {past} {answer}{away}.",
        r"What is in the (\w+) now\?": "{answer} is in the {0}.",
        r"Where did (\w+) \w+ the (\w+)\?": "{0} {past} the {1} {answer}.",
        r"Where is the (\w+) now\?": "The {0} is {answer}.",
    }
    for pattern, form in patterns.items():
        if found := re.fullmatch(pattern, question):
            text = form.format(*found.groups(), answer=answer, past=past, away=away)
            return text[0].upper() + text[1:]
    raise AssertionError(question)


@pytest.mark.parametrize("kind", ["who", "what", "where"])
def test_answers_follow_from_the_text(kind: str) -> None:
    for index in range(200):
        asked = little_question(kind, 3, index)
        question = asked.messages[0]["content"].split("\n\n")[1]
        found = answers(asked.passage, question)
        assert found[-1] == asked.short, (asked.passage, question)
        assert asked.answer == sentence(question, found[-1])
        if " now?" not in question:
            assert len(found) == 1
        assert correct(asked, asked.answer)
        assert correct(asked, asked.short)
        assert not correct(asked, asked.wrong)


def test_somebody_takes_a_thing_home_unless_somebody_else_holds_it() -> None:
    for index in range(100):
        asked = little_question("continue", 3, index)
        events = EVENT.findall(asked.passage)
        expected = set()
        for thing in {event[2] for event in events}:
            who, did, _, to = [event for event in events if event[2] == thing][-1]
            people = {event[0] for event in events}
            if did in ("found", "bought", "gave"):
                people = {to if did == "gave" else who}
            expected |= {f"Then {person} took the {thing} home." for person in people}
        assert asked.answer in expected
        assert set(asked.accepted) == expected
        assert all(correct(asked, sentence) for sentence in expected)
        assert not correct(asked, asked.wrong)


def conversation(index: int, **options: Any) -> tuple[str, dict[str, str]]:
    """The story of a conversation, "" if it has none, and its questions with their answers."""
    messages = little_conversation(1, index, **options)
    story, _, first = messages[0]["content"].rpartition("\n\n")
    asked = {first: messages[1]["content"]}
    return story, asked | {
        messages[n]["content"]: messages[n + 1]["content"] for n in range(2, len(messages), 2)
    }


def test_most_conversations_ask_once_about_each_thing() -> None:
    """Then no answer can be read from earlier questions and answers."""
    n_questions = Counter[int]()
    for index in range(400):
        story, asked = conversation(index)
        about = [question for question in asked if question not in NEXT]
        if not story:
            continue
        n_questions[min(3, len(about))] += 1
        for question in about:
            assert asked[question] == sentence(question, answers(story, question)[-1])
        if len(about) == 2:
            things = {event[2] for event in EVENT.findall(story)}
            mentioned = [
                things & set(re.findall(r"\w+", f"{question} {asked[question]}"))
                for question in about
            ]
            assert mentioned[0] != mentioned[1]
            assert [len(some) for some in mentioned] == [1, 1]
    assert set(n_questions) == {2, 3}
    assert n_questions[2] > 5 * n_questions[3]


def test_base_texts_ask_everything_about_a_story_in_different_orders() -> None:
    firsts, kinds = set(), set()
    for index in range(60):
        story, asked = conversation(index, mixture=TEXTS)
        if not story:
            assert all(re.fullmatch(r"\d+", answer) for answer in asked.values())
            continue
        events = EVENT.findall(story)
        # Two questions about each event, a third one where something was found or bought, one about
        # each thing now, and one about each spot that still holds what was put there.
        about = [question for question in asked if question not in NEXT]
        last = {event[2]: event for event in events}.values()
        n_put = sum(did == "put" for _, did, *_ in last)
        n_found = sum(did in ("found", "bought") for _, did, *_ in events)
        assert len(about) == 2 * len(events) + n_found + 2 + n_put
        for question in about:
            assert asked[question] == sentence(question, answers(story, question)[-1])
        firsts.add(next(iter(asked)).split()[0])
        kinds.add(len(asked) - len(about))
    assert firsts >= {"Who", "What", "Where"}
    assert kinds == {0, 1}


def test_held_out_stories_are_never_in_training() -> None:
    for kind in KINDS[:-1]:
        for index in range(30):
            assert is_held_out(little_question(kind, 1, index, held_out=True).passage)
    for index in range(60):
        first = little_conversation(1, index)[0]["content"]
        if "\n\n" in first:
            assert not is_held_out(first.split("\n\n")[0])


def test_a_story_is_a_function_of_its_seed() -> None:
    assert little_story(Random(4)) == little_story(Random(4))
    assert little_question("who", 1, 2) == little_question("who", 1, 2)
    assert little_question("who", 1, 2) != little_question("who", 2, 2)
    with pytest.raises(ValueError, match="no questions of kind 'why'"):
        little_question("why", 1, 1)


def test_files_hold_conversations_and_pairs(tmp_path: Path) -> None:
    write_little_conversations(tmp_path / "chats.jsonl", 7, 1)
    rows = [json.loads(row) for row in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert [row["messages"] for row in rows] == [little_conversation(1, n) for n in range(7)]
    roles = [message["role"] for message in rows[0]["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    write_little_pairs(tmp_path / "pairs.jsonl", 10, 1)
    pairs = [json.loads(row) for row in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 10
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
