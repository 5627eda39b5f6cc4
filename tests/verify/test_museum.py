"""`lmsmith verify` notices the bugs of the museum, and nothing in clean code."""

import re
from pathlib import Path

import pytest
from museum import EXHIBITS, Exhibit

from lmsmith.verify import EQUIVALENCES, run

PAGE = Path(__file__).parents[2] / "docs" / "museum.md"
NAMES = [one.name for one in EXHIBITS]


@pytest.mark.slow
@pytest.mark.parametrize("exhibit", EXHIBITS, ids=NAMES)
def test_it_is_caught(exhibit: Exhibit, monkeypatch: pytest.MonkeyPatch) -> None:
    exhibit.inject(monkeypatch)
    outcomes = list(run(exhibit.caught_by))
    assert not any(outcome.skipped for outcome in outcomes)
    assert [one.name for one in outcomes if not one.agrees] == list(exhibit.caught_by)


def test_at_least_24_different_bugs_with_their_sources() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 24
    assert {name for one in EXHIBITS for name in one.caught_by} <= set(EQUIVALENCES)
    assert all(
        re.match(r"https://(github\.com/.+/(issues|pull)/\d+|arxiv\.org/abs/)", one.source)
        for one in EXHIBITS
    )


def test_the_page_tells_every_story() -> None:
    page = PAGE.read_text(encoding="utf-8")
    told = re.findall(r"^\| (.+?) \| .+? \| \[.+?\]\((.+?)\) \| (.+?) \|$", page, re.MULTILINE)
    expected = [(one.name, one.source, ", ".join(one.caught_by)) for one in EXHIBITS]
    assert told == expected


def test_the_page_lists_every_equivalence_with_its_bound() -> None:
    page = PAGE.read_text(encoding="utf-8")
    told = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE)
    found = {
        name: 0.0 if bound == "equal" else float(bound)
        for name, bound in told
        if bound[0] in "e0123456789"
    }
    assert found == {one.name: one.bound for one in EQUIVALENCES.values()}
