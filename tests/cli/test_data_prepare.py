"""`lmsmith data prepare` as users run it: what it says, what stops it, and that it goes on."""

import json
import signal

import numpy as np
import pytest
from conftest import LINUX, TEXT, TINY, Lmsmith

from lmsmith.data.manifest import read_manifest
from lmsmith.tokens.tokenizer import ByteTokenizer


@pytest.fixture
def lines(lmsmith: Lmsmith) -> str:
    """One document per line."""
    text = "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines())
    (lmsmith.cwd / "lines.jsonl").write_text(text, encoding="utf-8")
    return "lines.jsonl"


def test_train_on_prepared_shards(lmsmith: Lmsmith, lines: str) -> None:
    done = lmsmith(
        "data", "prepare", lines, "--tokenizer", "byte", "--shard-tokens", 5000, "--out", "shards"
    )
    assert done.status == 0, done.err
    manifest = read_manifest(lmsmith.cwd / "shards")
    train, val = manifest.splits["train"], manifest.splits["val"]
    assert train.n_documents + val.n_documents == 400
    assert f"train  {train.n_tokens:,} tokens of {train.n_documents} documents" in done.out
    assert f"in {len(train.shards)} shards\n" in done.out
    assert f"note   {val.n_documents} of 400 documents are for validation" in done.out
    assert "wrote shards in " in done.out
    assert "lmsmith train shards --minutes 10" in done.out
    ids = [
        np.fromfile(path, "<u2", offset=1024)
        for path in sorted((lmsmith.cwd / "shards").glob("*.bin"))
    ]
    texts = ByteTokenizer(True).decode(np.concatenate(ids)[1:]).split("<|endoftext|>")
    assert sorted(texts) == sorted(TEXT.splitlines())
    done = lmsmith("train", "shards", "--steps", 3, *TINY, "--out", "run")
    assert done.status == 0, done.err


def test_as_json(lmsmith: Lmsmith, lines: str) -> None:
    done = lmsmith(
        "data",
        "prepare",
        lines,
        "--tokenizer",
        "byte",
        "--out",
        "shards",
        "--json",
        "--dedup",
        "exact",
    )
    found = json.loads(done.out)
    assert found["splits"]["train"]["shards"][0]["file"] == "train_000000.bin"
    assert found["settings"]["dedup"] == "exact"


def test_wrong_use(lmsmith: Lmsmith, lines: str) -> None:
    for words, status, told in [
        ([lines], 2, "--out"),
        ([lines, "--out", "x", "--dedup", "some"], 2, "--dedup"),
        ([lines, "--out", "x", "--tokenizer", "bites"], 2, "--tokenizer bites"),
        (["none.txt", "--out", "x"], 1, "there is no file or folder none.txt"),
        ([lines, "--out", ".", "--tokenizer", "byte"], 1, "already exists"),
        (
            [lines, "--out", "x", "--tokenizer", "byte", "--data.text_field", "body"],
            1,
            "line 1 has no field 'body'",
        ),
    ]:
        done = lmsmith("data", "prepare", *words)
        assert (done.status, done.out) == (status, ""), words
        assert told in done.err
        assert "Traceback" not in done.err
    assert not (lmsmith.cwd / "x").exists()


@pytest.mark.skipif(not LINUX, reason="processes are slowed down on Linux alone")
def test_an_interrupted_prepare_resumes(lmsmith: Lmsmith, lines: str) -> None:
    words = [
        "data",
        "prepare",
        lines,
        "--tokenizer",
        "byte",
        "--shard-tokens",
        "900",
        "--workers",
        "1",
        "--out",
    ]
    assert lmsmith(*words, "wanted").status == 0
    process = lmsmith.start(*words, "shards", slow={"lmsmith.data.prepare.build:_take_up": 0.5})
    process.until(lambda: list(lmsmith.cwd.glob("shards.partial/work/units/*.json")))
    process.send(signal.SIGTERM)
    done = process.wait()
    assert done.status == 128 + signal.SIGTERM, done.err
    assert (
        "finished work is kept in shards.partial: the same command continues from there" in done.err
    )
    assert lmsmith(*words, "shards").status == 0
    found, wanted = (
        {path.name: path.read_bytes() for path in (lmsmith.cwd / name).iterdir()}
        for name in ("shards", "wanted")
    )
    assert found == wanted


@pytest.mark.skipif(not LINUX, reason="files are kept small on Linux alone")
def test_a_full_disk_is_reported(lmsmith: Lmsmith, lines: str) -> None:
    words = ["data", "prepare", lines, "--tokenizer", "byte", "--out", "shards"]
    done = lmsmith(*words, file_bytes=20_000)
    assert done.status == 1
    assert "exceeds the largest file size allowed here" in done.err
    assert "the same command continues from there" in done.err
    assert not (lmsmith.cwd / "shards").exists()
    assert lmsmith(*words).status == 0


def test_an_unrelated_partial_folder_is_kept(lmsmith: Lmsmith) -> None:
    mine = lmsmith.cwd / "mine.partial"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work", encoding="utf-8")
    done = lmsmith("data", "prepare", "book.txt", "--tokenizer", "byte", "--out", "mine")
    assert done.status == 1
    assert "it contains thesis.txt. Nothing was changed" in done.err
    assert (mine / "thesis.txt").read_text(encoding="utf-8") == "years of work"
