"""Duplicates: hashes against Python's sets, MinHash against exact Jaccard similarities."""

import functools
import itertools
import json
import os
import random
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from lmsmith.data.prepare import dedup, plan
from lmsmith.data.prepare.build import build_shards
from lmsmith.data.prepare.dedup import (
    SIGNATURE,
    SIMILAR,
    Seen,
    content_hash,
    near_duplicates,
    signatures,
)
from lmsmith.data.prepare.units import TRAIN, VALIDATION
from lmsmith.errors import ConfigError
from lmsmith.tokens.tokenizer import ByteTokenizer

VOCABULARY = [f"w{i}" for i in range(2000)]


def text_of(seed: int, n: int = 400) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=n)


def edited(words: list[str], n_edits: int, seed: int) -> list[str]:
    chance, found = random.Random(seed), list(words)
    for place in chance.sample(range(len(found)), n_edits):
        found[place] = f"other{chance.random()}".replace(".", "")
    return found


@functools.cache
def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def jaccard(left: str, right: str) -> float:
    """Of the sets of runs of five words."""
    return len(runs(left) & runs(right)) / len(runs(left) | runs(right))


@settings(max_examples=50, deadline=None)
@given(some.lists(some.lists(some.integers(0, 40), max_size=60), max_size=8))
def test_seen_behaves_like_a_python_set(batches):
    seen, known = Seen(), set()
    seen._table = np.zeros((4, 2), dtype=np.uint64)  # so that the table grows
    for batch in batches:
        hashes = np.array(
            [[number % 7, number << 1 | 1] for number in batch], dtype=np.uint64
        ).reshape(-1, 2)
        wanted = []
        for number in batch:
            wanted.append(number not in known)
            known.add(number)
        assert seen.are_new(hashes).tolist() == wanted


def test_hashes_depend_only_on_the_text():
    assert (
        content_hash([b"one ", b"text"])
        == content_hash([b"one text"])
        != content_hash([b"one texT"])
    )
    assert content_hash([b""]) != bytes(16)


def test_signatures_estimate_similarity():
    base = text_of(0)
    texts = [" ".join(edited(base, n, n)) for n in (0, 0, 1, 2, 5, 9, 20, 50)] + [
        " ".join(text_of(1))
    ]
    found = signatures(texts)
    assert found.shape == (9, 128)
    for i, text in enumerate(texts):
        estimate, similarity = (found[0] == found[i]).mean(), jaccard(texts[0], text)
        assert abs(estimate - similarity) <= 4 * (similarity * (1 - similarity) / 128) ** 0.5
    assert np.array_equal(found, np.concatenate([signatures([text]) for text in texts]))
    assert np.array_equal(
        found[0], signatures([texts[0].upper().replace(" ", ",\n")])[0]
    )  # only words count


def test_signatures_of_odd_texts():
    """Few words, none, and scripts without spaces."""
    found = signatures(
        [
            "one two",
            "two one",
            "one two",
            "?!",
            "?",
            "夏目漱石の小説である" * 9,
            "夏目漱石の小説だった" * 9,
        ]
    )
    same = (found[:, None] == found[None]).mean(axis=2)
    assert same[0, 2] == 1
    assert same[0, 1] < 0.1
    assert same[3, 4] < 0.1
    assert 0.1 < same[5, 6] < 0.9


def rows(texts: list[str], splits: list[int]) -> np.ndarray:
    found = np.zeros(len(texts), SIGNATURE)
    found["split"], found["numbers"] = splits, signatures(texts)
    return found


def test_one_of_several_similar_documents_is_kept():
    """Groups of documents that differ in a few words; the first in validation is kept, or else the
    first.
    """
    chance = random.Random(3)
    texts, groups, splits = [], [], []
    for group in range(40):
        base = text_of(group)
        for copy in range(chance.choice([1, 1, 2, 3, 6])):
            texts.append(" ".join(edited(base, copy % 3, copy)))
            groups.append(group)
            splits.append(VALIDATION if chance.random() < 0.3 else TRAIN)
    order = list(range(len(texts)))
    chance.shuffle(order)
    texts, groups, splits = ([each[i] for i in order] for each in (texts, groups, splits))
    for left, right in itertools.combinations(range(len(texts)), 2):
        similarity = jaccard(texts[left], texts[right])
        assert similarity > 0.87 if groups[left] == groups[right] else similarity < 0.1
    dropped, n_for_validation = near_duplicates(rows(texts, splits))
    kept = {}
    for i, (group, split) in enumerate(zip(groups, splits, strict=True)):
        if group not in kept or (split == VALIDATION and splits[kept[group]] == TRAIN):
            kept[group] = i
    assert sorted(np.flatnonzero(~dropped)) == sorted(kept.values())
    assert n_for_validation == sum(
        splits[i] == TRAIN and splits[kept[group]] == VALIDATION for i, group in enumerate(groups)
    )
    assert n_for_validation > 3


def test_similarity_is_transitive():
    """The first is similar to the second, and that to the third: one is kept, however different the
    first and third are.
    """
    words = [text_of(5, 1000)]
    for step in range(10):
        words.append(edited(words[-1], 10, step))
    texts = [" ".join(each) for each in words]
    found = rows(texts, [TRAIN] * 11)
    assert jaccard(texts[0], texts[10]) < 0.5
    assert all(
        (found["numbers"][i] == found["numbers"][i + 1]).mean() >= SIMILAR for i in range(10)
    )
    assert near_duplicates(found)[0].tolist() == [False] + [True] * 10


def test_documents_that_share_a_band_but_are_not_similar_are_kept():
    """Agreement in one band is only a candidate: the full signatures decide."""
    found = rows([" ".join(text_of(n)) for n in range(3)], [TRAIN] * 3)
    for n_equal, is_near in ((8, False), (96, False), (102, False), (103, True), (128, True)):
        found["numbers"][1] = found["numbers"][2]
        found["numbers"][1, :n_equal] = found["numbers"][0, :n_equal]
        assert ((found["numbers"][0] == found["numbers"][1]).mean() >= 0.8) == is_near
        found["numbers"][2] = ~found["numbers"][2]
        assert near_duplicates(found)[0].tolist() == [False, is_near, False]
        found["numbers"][2] = ~found["numbers"][2]


def test_no_documents():
    dropped, n = near_duplicates(np.empty(0, SIGNATURE))
    assert (len(dropped), n) == (0, 0)


def test_training_text_has_no_near_duplicates_of_validation_text(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)
    monkeypatch.setattr(plan, "OPENING", 0)
    monkeypatch.setattr(plan, "UNIT_BYTES", (9000, 9000))
    monkeypatch.setattr(dedup, "BATCH", 5000)
    chance = random.Random(7)
    texts = []
    for group in range(60):
        base = text_of(group, 150)
        texts += [" ".join(edited(base, copy, copy)) for copy in range(chance.choice([1, 2, 2]))]
    chance.shuffle(texts)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    kept = {}
    for workers in (1, 3):
        out = tmp_path / f"out{workers}"
        manifest = build_shards(
            [str(tmp_path / "a.jsonl")],
            out,
            tokenizer="byte",
            dedup="near",
            validation_fraction=0.3,
            workers=workers,
        )
        for name in ("train", "val"):
            ids = np.fromfile(out / f"{name}_000000.bin", "<u2", offset=1024)
            kept[workers, name] = ByteTokenizer(True).decode(ids[1:]).split("<|endoftext|>")
    assert kept[1, "train"] == kept[3, "train"]
    train, val = kept[1, "train"], kept[1, "val"]
    assert len(train) + len(val) == 60
    assert max(jaccard(left, right) for left in train for right in val) < 0.5
    n_near_val = sum(
        max(jaccard(text, right) for right in val) > 0.9
        for text in texts
        if text not in train + val
    )
    near = next(note for note in manifest.notes if "near duplicate" in note)
    assert near.startswith(f"{len(texts) - 60} near duplicates dropped, ")
    n_told = int(
        re.search(
            r"dropped, (\d+) of them from training because of a document in validation", near
        )[1]
    )
    assert 3 < n_told <= n_near_val


def test_without_rensa(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match=r"pip install 'lmsmith\[dedup\]'"):
        build_shards([str(tmp_path / "a.txt")], tmp_path / "out", tokenizer="byte", dedup="near")


@pytest.mark.parametrize("how", ["exact", "near"])
def test_a_large_unreadable_file_does_not_shift_documents(tmp_path, monkeypatch, how):
    """It counts as a document in every pass, and its remaining pieces do not continue another
    document.
    """
    monkeypatch.setattr(os, "fsync", lambda number: None)
    monkeypatch.setattr(plan, "LARGE", 3000)
    monkeypatch.setattr(plan, "OPENING", 0)
    monkeypatch.setattr(plan, "UNIT_BYTES", (3000, 3000))
    source = tmp_path / "source"
    source.mkdir()
    texts = [" ".join(text_of(group, 150)) for group in range(60)]
    before = [f"number {i} before all others" for i in range(20)]  # on either side
    for number, text in enumerate(before):
        (source / f"a{number}.txt").write_text(text)
    (source / "b.txt").write_bytes(b"\xff" + " ".join(f"large {i}" for i in range(900)).encode())
    lines = [text for text in texts for _ in range(2)]
    (source / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in lines))
    build_shards(
        [str(source)],
        tmp_path / "out",
        tokenizer="byte",
        dedup=how,
        validation_fraction=0.3,
        skip_bad=True,
    )
    kept = []
    for name in ("train", "val"):
        ids = np.fromfile(tmp_path / "out" / f"{name}_000000.bin", "<u2", offset=1024)
        kept += ByteTokenizer(True).decode(ids[1:]).split("<|endoftext|>")
    assert sorted(text for text in kept if "large" not in text) == sorted([*texts, *before])
    assert sum("large 899" in text for text in kept) == 1
