"""The held-out text, compared with an independent statement of the rule, nanoGPT's split, and
itself when documents are added.
"""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.errors import DataError
from lmsmith.text.documents import Document, Documents
from lmsmith.text.held_out import (
    PREPARED_SHARE,
    default_share,
    held_out_share,
    is_held_out,
    split_documents,
)


def documents_of(*texts: str) -> list[Document]:
    return [Document(text, f"{number}") for number, text in enumerate(texts)]


def test_one_text_is_split_as_nanogpt_splits_it(test_data):
    path = test_data / "tinyshakespeare" / "input.txt"
    data = path.read_text(encoding="utf-8")
    split = split_documents(Documents([path]), 0.1)
    assert len(data) == 1_115_394
    assert split.train == [data[: int(len(data) * 0.9)]] == [data[:1_003_854]]
    assert split.validation == [data[int(len(data) * 0.9) :]]
    assert not split.has_boundaries
    assert split.description == (
        "the last 10% of the text is held out for validation: 1,003,854 characters for training, "
        "111,540 held out (10.0%)"
    )


@settings(deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=60
    ),
    fraction=st.sampled_from([0.001, 0.1, 0.3, 0.5, 0.9]),
)
def test_the_ends_of_few_documents_are_held_out(texts, fraction):
    distinct = list(dict.fromkeys(texts))[:49]
    texts = [text for text in texts if text in distinct]
    n_train = sum(math.floor(round(len(text) * (1 - fraction), 9)) for text in distinct)
    if min(n_train, sum(map(len, distinct)) - n_train) < 2:
        with pytest.raises(DataError, match="too short to split"):
            split_documents(documents_of(*texts), fraction)
        return
    split = split_documents(documents_of(*texts), fraction)
    assert sum(map(len, split.train)) == n_train
    assert "" not in split.train + split.validation
    validation = iter([*split.validation, ""])
    pieces = iter([*split.train, ""])
    train, tail = next(pieces), next(validation)
    for text in distinct:  # each text has a training part, then a tail
        cut = math.floor(round(len(text) * (1 - fraction), 9))
        assert text == text[:cut] + text[cut:]
        if cut > 0:
            assert train == text[:cut]
            train = next(pieces)
        if cut < len(text):
            assert tail == text[cut:]
            tail = next(validation)
    assert split.has_boundaries == (len(distinct) > 1)
    assert split.n_duplicates == len(texts) - len(distinct)
    assert ("duplicate" in split.description) == (split.n_duplicates > 0)


def test_many_documents_are_held_out_complete():
    texts = [f"Document {number}." for number in range(4000)]
    split = split_documents(documents_of(*texts), 0.1)
    assert sorted(split.train + split.validation) == sorted(texts)
    assert split.train == sorted(split.train, key=texts.index)
    assert len(split.validation) == pytest.approx(
        400, abs=4 * math.sqrt(4000 * 0.1 * 0.9)
    )  # binomial
    assert split.has_boundaries
    assert (
        "of 4,000 documents, chosen by a hash of their content, are held out for validation"
        in split.description
    )
    # With more documents, another order and duplicates, no document changes sides.
    more = [f"Another {number}." for number in range(1000)]
    again = split_documents(documents_of(*more, *reversed(texts), *texts[:100]), 0.1)
    assert set(split.train) <= set(again.train)
    assert set(split.validation) <= set(again.validation)
    assert not set(again.train) & set(again.validation)
    assert len(again.train) + len(again.validation) == 5100
    assert set(split.validation) < set(split_documents(documents_of(*texts), 0.2).validation)


def test_the_split_is_the_same_on_every_machine():
    split = split_documents(documents_of(*(f"Document {number}." for number in range(60))), 0.1)
    assert split.validation == [f"Document {number}." for number in (5, 20, 34, 46, 51, 56)]


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_neither_split_of_many_documents_is_empty(fraction):
    split = split_documents(
        documents_of(*(f"Document {number}." for number in range(50))), fraction
    )
    assert split.train
    assert split.validation
    assert len(split.train) + len(split.validation) == 50


def test_many_copies_of_few_documents_count_as_few():
    split = split_documents(documents_of(*["Once upon a time.", "The end, at last."] * 40), 0.5)
    assert split.train == ["Once upo", "The end,"]
    assert split.validation == ["n a time.", " at last."]
    assert split.n_duplicates == 78
    assert split.description.endswith("; 78 exact duplicates dropped")


@pytest.mark.parametrize("text", ["", "a", "abc"])
def test_a_text_too_short_to_split(text):
    documents = documents_of(text) if text else []
    with pytest.raises(
        DataError,
        match=rf"too short to split: of {len(text)} character.*expected at least 2 for each",
    ):
        split_documents(documents, 0.1)


def test_four_characters_can_be_split():
    assert split_documents(documents_of("abcd"), 0.5).validation == ["cd"]


def test_by_default_a_tenth_is_held_out_and_less_of_a_large_text():
    small, large = Document("a" * 1_000, "small"), Document("b" * 10_000_000, "large")
    assert len(split_documents([small]).validation[0]) == 100
    assert len(split_documents([large]).validation[0]) == pytest.approx(250_000, abs=1)


def test_by_default_documents_change_sides_only_when_the_text_grows_threefold():
    """And then only from validation to training: text held out of the larger text was also held out
    of the smaller one.
    """
    texts = [f"Document {number}: {'x' * 1000}" for number in range(4_000)]
    sides = {
        n: set(split_documents(documents_of(*texts[:n])).validation)
        for n in (250, 1000, 2000, 2400, 2600, 4000)
    }
    assert sides[2600] == sides[4000] & set(texts[:2600])
    assert sides[1000] & sides[4000] == sides[4000] & set(texts[:1000])
    assert sides[4000] & set(texts[:2400]) < sides[2400]
    for n, held_out in sides.items():
        assert 0 < sum(map(len, held_out)) < 300_000, n


@pytest.mark.parametrize("n", [10**3, 10**6, 10**8, 10**11])
def test_the_default_share_is_fast_to_evaluate(n):
    share = default_share(n)
    assert share * n <= 250_000
    assert share == 0.1 or share * n > 70_000


def test_one_rule_gives_the_share_of_runs_and_of_prepared_folders():
    for n in (0, 1_000, 10**7):
        assert held_out_share(0.3, many=True, n_characters=n, of_many=PREPARED_SHARE) == 0.3
        assert held_out_share(0.3, many=False, n_characters=n) == 0.3
        assert held_out_share(0, many=True, n_characters=n) == default_share(n)
        assert held_out_share(0, many=True, n_characters=n, of_many=PREPARED_SHARE) == 0.05
        few = held_out_share(0, many=False, n_characters=n, of_many=PREPARED_SHARE)
        assert few == (0.1 if n < 10**7 else 0.025)


def test_is_held_out_agrees_with_the_split():
    texts = [f"Document {number}." for number in range(200)]
    validation = split_documents(documents_of(*texts), 0.2).validation
    assert [text for text in texts if is_held_out([text.encode()], 0.2)] == validation
    assert [text for text in texts if is_held_out([c.encode() for c in text], 0.2)] == validation
