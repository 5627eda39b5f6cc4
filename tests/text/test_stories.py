"""The story generator: exact probabilities and consistent stories."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from random import Random

import pytest
from unambiguous import ambiguities, misused

from lmsmith.text.grammar import Grammar, Record, Table
from lmsmith.text.stories import Story, generate_stories, score_story, story_grammar, write_stories

BITS_PER_STORY, BITS_PER_BYTE = 182.9, 0.1714  # as in the module's docstring


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    return list(islice(generate_stories(seed=11), 4000))


# ---- probabilities: small grammars, compared with sums computed by hand


def words(*forms: str) -> Table:
    return Table(Record({"": form}) for form in forms)


def test_probabilities_of_a_small_grammar_are_exact_and_sum_to_one() -> None:
    rules = """
start
    {a=names} met {b=names-a}[ and {a} sang|].
    {a=names} had {pet=a.pets}[, {other=pets}|, no <again>].
again
    {other?=pets}, only {pet?=pets}
"""
    pets = words("cats", "hens")
    names = Table(Record({"": name, "pets": pets}) for name in ("Al", "Bo", "Cy"))
    grammar = Grammar(rules, {"names": names, "pets": pets}, start="start")

    of_names = {"Al": 6 / 13, "Bo": 4 / 13, "Cy": 3 / 13}  # weights 1/2, 1/3, 1/4
    of_pets = {"cats": 3 / 5, "hens": 2 / 5}  # weights 1/2, 1/3, as for any two alternatives
    expected: dict[str, float] = {}
    for a, p in of_names.items():
        for b in of_names.keys() - {a}:
            q = of_names[b] / (1 - p)
            expected[f"{a} met {b} and {a} sang."] = 3 / 5 * p * q * 3 / 5
            expected[f"{a} met {b}."] = 3 / 5 * p * q * 2 / 5
        for pet, q in of_pets.items():
            for other, r in of_pets.items():
                expected[f"{a} had {pet}, {other}."] = 2 / 5 * p * q * 3 / 5 * r
                expected[f"{a} had {pet}, no {other}, only {pet}."] = 2 / 5 * p * q * 2 / 5 * r
    assert math.fsum(expected.values()) == pytest.approx(1, abs=1e-12)
    for text, p in expected.items():
        assert grammar.log_probability(text) == pytest.approx(math.log(p), abs=1e-12)
    assert grammar.log_probability("Al met Al.") == -math.inf

    random, n = Random(5), 20_000
    seen: Counter[str] = Counter()
    for _ in range(n):
        text, log_probability = grammar.generate(random)
        assert log_probability == pytest.approx(math.log(expected[text]), abs=1e-12)
        seen[text] += 1
    chi_square = sum((seen[text] - n * p) ** 2 / (n * p) for text, p in expected.items())
    degrees = len(expected) - 1
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees)
    assert not list(ambiguities(grammar))
    assert not misused(grammar)


@pytest.mark.parametrize(
    ("line", "text", "probability"),
    [
        ("[ab|a][c|bc]", "abc", 0.6 * 0.6 + 0.4 * 0.4),  # two ways of dividing it
        ("[warm|warm]", "warm", 1.0),
        (
            "[{x=ab}|{x=ba}] {x}",
            "a a",
            0.6 * 0.6 + 0.4 * 0.4,
        ),  # the two derivations reach the same state again
        (
            "[{x=ab}|a]{y=ab}",
            "aa",
            0.6 * 0.6 * 0.6 + 0.4 * 0.6,
        ),  # here they differ in their bindings
        ("[very |]{x=ab}[| indeed|]", "a", 0.4 * 0.6 * (1 - 4 / 13)),
    ],
)
def test_ambiguous_grammars_are_summed_and_detected(
    line: str, text: str, probability: float
) -> None:
    a, b = Record({"": "a"}), Record({"": "b"})
    grammar = Grammar(
        f"start\n    {line}\n", {"ab": Table([a, b]), "ba": Table([b, a])}, start="start"
    )
    assert grammar.log_probability(text) == pytest.approx(math.log(probability), abs=1e-12)
    assert list(ambiguities(grammar))


def test_names_with_a_common_prefix_are_not_ambiguous() -> None:
    grammar = Grammar(
        "start\n    {x=names}[my|] ran[, {x}|].\n",
        {"names": words("Tim", "Timmy", "Tom")},
        start="start",
    )
    assert list(ambiguities(grammar)) == ["Timmy ran."]  # Tim + my, if the name is not repeated
    clear = Grammar(
        "start\n    {x=names} ran[, {x}|].\n",
        {"names": words("Tim", "Timmy", "Tom")},
        start="start",
    )
    assert not list(ambiguities(clear))


def test_misuse_of_variables_is_detected() -> None:
    tables = {"names": words("Al", "Bo")}
    assert misused(
        Grammar("start\n    [{x=names}|] {x} {y=names}[{y=names}|]\n", tables, start="start")
    ) == {"x", "y"}


# ---- probabilities: the stories' own grammar


def test_story_grammar_is_unambiguous() -> None:
    assert list(ambiguities(story_grammar())) == []


def test_story_grammar_binds_each_variable_once_and_before_use() -> None:
    assert misused(story_grammar()) == set()


def test_recogniser_agrees_with_generator(stories: list[Story]) -> None:
    for story in stories[:300]:
        assert score_story(story.text) == pytest.approx(story.log_probability, abs=1e-9)


@pytest.mark.slow
def test_recogniser_agrees_with_generator_on_many_stories() -> None:
    for story in islice(generate_stories(seed=12), 5_000):
        assert score_story(story.text) == pytest.approx(story.log_probability, abs=1e-9)


def test_texts_outside_the_grammar_have_probability_zero(stories: list[Story]) -> None:
    for story in stories[:50]:
        text = story.text
        assert (
            score_story(text[:-1]) == score_story(text + " ") == score_story(text[1:]) == -math.inf
        )
        name = re.search(r"(?:named|called) (\w+)", text)[1]
        assert (
            score_story(text[::-1].replace(name[::-1], "adZ", 1)[::-1]) == -math.inf
        )  # the last mention of the name changed
    assert score_story("") == score_story("Zwölf") == -math.inf


def test_entropy_is_as_documented(stories: list[Story]) -> None:
    bits = [-story.log_probability / math.log(2) for story in stories]
    mean = math.fsum(bits) / len(bits)
    deviation = math.sqrt(math.fsum((b - mean) ** 2 for b in bits) / len(bits))
    error = deviation / math.sqrt(len(bits))
    assert error < 0.6  # bits a story
    assert abs(mean - BITS_PER_STORY) < 4 * error
    per_byte = math.fsum(bits) / sum(len(story.text) for story in stories)
    assert per_byte == pytest.approx(BITS_PER_BYTE, abs=0.003)


def test_stories_are_numerous(stories: list[Story]) -> None:
    assert len({story.text for story in stories}) == len(stories)
    # A lower bound on their number: probabilities sum to 1, so there are at least 1/p stories if p is
    # the largest probability.
    assert max(story.log_probability for story in stories) < math.log(1e-25)


# ---- the text


def test_text_is_clean(stories: list[Story]) -> None:
    for story in stories:
        assert story.text.isascii()
        assert not re.search(
            r"[][{}<>|=]|  | \n|\n |\n\n\n|^\s|\s$| "
            r"[.,!?]|[,!?][.,]|\.,|(?<!\.)\.\.(?!\.)|[!?.]\"[.,]",
            story.text,
        ), story.text
        for paragraph in story.text.split("\n\n"):
            assert re.fullmatch(r'["A-Z].*[.!?]"?', paragraph), paragraph
            assert paragraph.count('"') % 2 == 0, paragraph
            assert not re.search(r"[^.][.!?] [a-z]", re.sub(r'"[^"]*"', "", paragraph)), paragraph


def test_stories_are_short(stories: list[Story]) -> None:
    lengths = sorted(len(story.text.split()) for story in stories)
    assert 100 < lengths[0] < lengths[-1] < 300
    assert 150 < lengths[len(lengths) // 50] < lengths[-len(lengths) // 50] < 255


def test_articles_match_their_nouns(stories: list[Story]) -> None:
    for story in stories:
        assert not re.search(r"\b[Aa] [aeiou]", story.text), story.text
        assert not re.search(r"\b[Aa]n (?!hour|honest)[^aeiou]", story.text), story.text


def test_pronouns_match_their_heroes(stories: list[Story]) -> None:
    """The hero's first pronoun is correct; a story with only female people has no `he`, one with
    only male people no `she`.
    """
    tables = story_grammar().tables
    kinds = [*tables["children"].records, *tables["animals"].records]
    people = [
        person
        for kind in kinds
        for group in ("names", "friends", "elders")
        for person in kind.forms[group].records
    ]
    gender = {person.forms[""]: person.forms["he"] for person in people}
    pronouns = {"he": "he", "him": "he", "his": "he", "she": "she", "her": "she"}
    alike = 0
    for story in stories:
        text = re.sub(
            r"(Mrs?\.|Miss) \w+", "", story.text
        )  # a Mr. Fox has no pronoun, and nobody else has his name
        hero = re.search(r"(?:named|called) (\w+)", text)[1]
        used = [pronouns[word] for word in re.findall(r"\w+", text.lower()) if word in pronouns]
        present = {
            gender[name] for name in re.findall(r"(?:Aunt|Uncle) \w+|\w+", text) if name in gender
        }
        assert used[0] == gender[hero], text
        assert set(used) <= present, text
        alike += len(present) == 1
    assert alike > 1000


THINGS = {  # pattern that mentions a thing -> pattern that the same story must match
    "lost": (
        r"Where is my (.+?)\?\" (?!asked)",
        r" an? {} with .*the {} was .*Where is my {}\?.*my {},",
    ),
    "shared": (r"Please take half of my (.+?)\.", r" an? \w+ {}( |\.).*the \w+ {} tasted"),
    "stuck": (r"My (.+?) is stuck", r"with an? {} .* the {}\b.*My {} is.*\b[Tt]he {}\b"),
    "where it is stuck": (r"is stuck (.+?),\"", r"got stuck {}\. .*is stuck {},"),
    "broken": (
        r"\bThe ([a-z ]+) fell (?:down )?and broke",
        r" had an? {}\. .*Where is my {}\?.*\b[Tt]he {}\b",
    ),
    "wished for": (
        r"What is the price of the (.+?)\?",
        r"(saw|spotted|found) an? {} in .*(the {}\.|The {} was still)",
    ),
    "how many coins": (r"\"(\w+) coins,\"", r"There were (?i:{})!"),
    "built": (
        r"The ([a-z ]+) fell down\. Only",
        r" an? {} .*fell down.*[Tt]he {} (stood|did not|stayed|only)",
    ),
    "found": (r"Is this (.+?) yours\?", r"(saw|found|spotted|noticed) an? {}\..*My {}!"),
    "given": (
        r"Nothing,.* hid the ([a-z ]+?) (?:in|on|under|behind) ",
        r"I will make an? {}!.*looked at the {} ",
    ),
    "nursed": (
        r"oor little (\w+),\"",
        r"there (was|sat|lay) an? \w+ {}\..*the {} was .* again.*[Tt]he {} looked",
    ),
    "sounded": (r"remembered the (.+?)!", r"gave \w+ an? {}\. \"(If|When)"),
    "swapped": (
        r"And I (?:miss|want) my (.+?),",
        r" had an? {}\..*gave \w+ the {} and got.*not the {}\.",
    ),
}


@pytest.mark.parametrize(("spoken", "again"), THINGS.values(), ids=THINGS)
def test_things_are_mentioned_again_correctly(
    stories: list[Story], spoken: str, again: str
) -> None:
    n = 0
    for story in stories:
        for thing in re.findall(spoken, story.text):
            assert re.search(again.replace("{}", re.escape(thing)), story.text, re.DOTALL), (
                thing,
                story.text,
            )
            n += 1
    assert n > 30


def test_habits_are_mentioned_again(stories: list[Story]) -> None:
    """What the hero likes to do and to eat is what they do and eat in the end."""
    hobbies = {
        hobby.forms[""]: hobby.forms["past"] for hobby in story_grammar().tables["hobbies"].records
    }
    done = eaten = 0
    for story in stories:
        hobby = re.search(
            rf"(?:liked|loved|wanted|would) (?:to )?({'|'.join(hobbies)})\b", story.text
        )
        after = re.search(
            rf"(?:[Tt]hen|that|day|afternoon),? \w+ and (?:[A-Z]\w+ "
            rf")+({'|'.join(hobbies.values())})\b",
            story.text,
        )
        if hobby and after:
            done += 1
            assert after[1] == hobbies[hobby[1]], story.text
        food = re.search(
            r"(?:favorite (?:food|thing to eat) was|how \w+ (?:liked|loved)) (\w+ \w+)", story.text
        )
        supper = re.search(
            r"\b(?:ate|had|shared) (\w+ \w+)(?: with [\w ]+)? (?:together|under|at the|until|by "
            r"candle)",
            story.text,
        )
        if food and supper:
            eaten += 1
            assert supper[1] == food[1], story.text
    assert done > 30
    assert eaten > 30


# ---- determinism and files


def fingerprint(n: int, seed: int) -> str:
    stories = islice(generate_stories(seed), n)
    return hashlib.sha256(
        "".join(f"{s.text}{s.log_probability!r}" for s in stories).encode()
    ).hexdigest()


def test_same_seed_same_stories_whatever_the_hash_seed() -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]; from test_stories import fingerprint; "
        "print(fingerprint(100, 3))"
    )
    paths = [os.path.dirname(__file__), os.getcwd()]
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        found = subprocess.run(
            [sys.executable, "-c", program, *paths],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == fingerprint(100, 3)
    assert fingerprint(100, 3) != fingerprint(100, 4)


def test_write_stories(tmp_path) -> None:
    path = tmp_path / "stories.jsonl"
    n = write_stories(path, n_bytes=50_000, seed=3)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["text"], line["log_probability"]) for line in lines] == [
        (story.text, story.log_probability) for story in islice(generate_stories(3), n)
    ]
    total = sum(len(line["text"].encode()) for line in lines)
    assert total >= 50_000 > total - len(lines[-1]["text"])
    assert os.listdir(tmp_path) == ["stories.jsonl"]
