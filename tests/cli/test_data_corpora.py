"""`lmsmith data list` and `data download`, and corpora named where text is wanted, as users type
them.
"""

import io
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import TEXT, TINY, Lmsmith
from rich.console import Console
from web_server import Web, serving

from lmsmith.cli import data, parse
from lmsmith.text.corpora import CORPORA

pytest.importorskip("huggingface_hub")

STORIES = [f"{TEXT[n * 40 : n * 40 + 300]} That was story {n}." for n in range(60)]


@pytest.fixture
def web(lmsmith: Lmsmith) -> Iterator[Web]:
    """A local Hub with the validation part of TinyStories and some shards, made smaller."""
    path = lmsmith.cwd / "made"
    pyarrow.parquet.write_table(pyarrow.table({"text": STORIES}), path, compression="none")
    with serving() as web:
        web.add_dataset("roneneldan/TinyStories", {"data/validation-0.parquet": path.read_bytes()})
        shards = {f"fineweb_train_{n}.bin": bytes([n]) * 200_000 for n in (1, 2, 3)}
        web.add_dataset("kjj0/fineweb10B-gpt2", {**shards, "fineweb_val_0.bin": b"v" * 1000})
        yield web
    path.unlink()


@pytest.fixture
def there(web: Web, lmsmith: Lmsmith) -> dict[str, str]:
    return {"HF_ENDPOINT": web.url, "LMSMITH_DATA": str(lmsmith.cwd / "data"), "no_proxy": "*"}


def on_disk(folder: Path) -> list[str]:
    return sorted(
        path.name
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "corpus.json")
    )


def test_list_shows_all_corpora_and_which_are_downloaded(
    lmsmith: Lmsmith, web: Web, there: dict[str, str]
) -> None:
    done = lmsmith("data", "download", "fineweb10B-gpt2", "--files", 2, environment=there)
    assert done.status == 0, done.err
    done = lmsmith("data", "list", environment=there | {"COLUMNS": "200"})
    rows = {
        line.split()[0]: re.split("  +", line.strip())
        for line in done.out.splitlines()
        if line.strip()
    }
    for corpus in CORPORA.values():
        size = corpus.size.replace("about ", "~")
        here = "2 of 4" if corpus.name == "fineweb10B-gpt2" else "no"
        assert rows[corpus.name] == [corpus.name, size, here, corpus.licence, corpus.what]
    listed = {
        row["name"]: row
        for row in json.loads(lmsmith("data", "list", "--json", environment=there).out)
    }
    assert list(listed) == [corpus.name for corpus in CORPORA.values()]
    assert listed["tinyshakespeare"]["n_bytes"] == 1_115_394
    assert listed["fineweb10B-gpt2"]["n_files"] == 4
    assert [Path(path).name for path in listed["fineweb10B-gpt2"]["files_here"]] == [
        "fineweb_val_0.bin",
        "fineweb_train_1.bin",
    ]
    narrow = lmsmith("data", "list", environment=there).out.splitlines()
    assert max(map(len, narrow[:-1])) <= 80


def test_download_twice(lmsmith: Lmsmith, web: Web, there: dict[str, str]) -> None:
    done = lmsmith("data", "download", "tinystories-validation", environment=there)
    size = len(web.datasets["roneneldan/TinyStories"]["data/validation-0.parquet"]) / 1000
    assert (done.status, done.err) == (0, "")
    folder = lmsmith.cwd / "data" / "tinystories-validation"
    last = [
        f"{folder} has all 1 file of tinystories-validation, complete, checksums verified",
        "licence  CDLA-Sharing-1.0; https://arxiv.org/abs/2305.07759",
        "try      lmsmith train tinystories-validation --minutes 10",
    ]
    assert done.out.splitlines() == [
        f"tinystories-validation: 1 file, {size:.0f} kB, from the data set roneneldan/TinyStories "
        f"of the Hugging Face "
        "Hub",
        *last,
    ]
    assert on_disk(folder) == ["validation-0.parquet"]
    n_asked = len(web.tokens)
    assert (
        lmsmith("data", "download", "tinystories-validation", environment=there).out.splitlines()
        == last
    )
    assert len(web.tokens) == n_asked


def test_download_to_a_folder(lmsmith: Lmsmith, there: dict[str, str]) -> None:
    done = lmsmith(
        "data", "download", "tinystories-validation", "--out", "my data", environment=there
    )
    assert done.status == 0, done.err
    assert "try      lmsmith train 'my data' --minutes 10" in done.out
    assert on_disk(lmsmith.cwd / "my data") == ["validation-0.parquet"]
    assert not (lmsmith.cwd / "data").exists()
    done = lmsmith("data", "download", "piqa", "--out", "my data", environment=there)
    assert done.status == 1
    assert "lists tinystories-validation" in done.err


def test_train_on_a_corpus_by_name(lmsmith: Lmsmith, web: Web, there: dict[str, str]) -> None:
    command = ["train", "tinystories-validation", "--steps", 3, *TINY]
    done = lmsmith(*command, "--out", "first", environment=there)
    assert done.status == 0, done.err
    assert (
        "downloading tinystories-validation (about 10 MB) from the data set roneneldan/TinyStories"
        in done.err
    )
    n_asked = len(web.tokens)
    assert "downloading" not in lmsmith(*command, "--out", "second", environment=there).err
    assert len(web.tokens) == n_asked
    texts = [
        json.loads((lmsmith.cwd / run / "tokens" / "corpus.json").read_text())
        for run in ("first", "second")
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("stop", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_an_interrupted_download_resumes(
    lmsmith: Lmsmith, web: Web, there: dict[str, str], stop: signal.Signals, status: int
) -> None:
    import threading

    stopped = threading.Event()
    sent = web.datasets["kjj0/fineweb10B-gpt2"]["fineweb_train_2.bin"]
    web.cut_after = [1000, 200_000, 100_000]  # the third response is cut short; the fourth waits

    def wait(_: str) -> None:
        if len(web.asked) == 4:
            stopped.wait(60)

    web.before = wait
    process = lmsmith.start("data", "download", "fineweb10B-gpt2", environment=there)
    folder = lmsmith.cwd / "data" / "fineweb10B-gpt2"
    process.until(lambda: len(web.asked) == 4)
    process.send(stop)
    done = process.wait()
    stopped.set()
    assert done.status == status
    assert "Traceback" not in done.err
    part = folder / "fineweb_train_2.bin.part"
    assert on_disk(folder) == [
        "fineweb_train_1.bin",
        part.name,
        f"{part.name}.json",
        "fineweb_val_0.bin",
    ]
    assert part.stat().st_size == 100_000
    web.asked.clear()
    web.cut_after = []
    done = lmsmith("data", "download", "fineweb10B-gpt2", environment=there)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("fineweb10B-gpt2: 2 files, 300 kB, from ")
    assert done.out.endswith(
        "try      lmsmith train fineweb10B-gpt2 --tokenizer gpt2 --minutes 10\n"
    )
    assert [ranged for _, ranged in web.asked] == ["bytes=100000-", ""]
    assert (folder / "fineweb_train_2.bin").read_bytes() == sent
    assert len(on_disk(folder)) == 4


def test_corpora_that_are_not_available(lmsmith: Lmsmith, web: Web, there: dict[str, str]) -> None:
    for words, message in {
        ("tinystory",): "there is no corpus 'tinystory'. Did you mean tinystories?",
        ("fineweb10B-gpt2", "--files", 0): "expected a whole number, 1 or more",
        ("tinystories",): "has no file data/train-*.parquet any more",
        ("openwebtext",): "the name is wrong, or it requires an account",
    }.items():
        done = lmsmith("data", "download", *words, environment=there)
        assert done.status == (2 if "--files" in words else 1)
        assert message in done.err
        assert "Traceback" not in done.err
    done = lmsmith("train", "fineweb-edu-10BT", *TINY, environment=there)
    assert done.status == 1
    assert "`lmsmith data download fineweb-edu-10BT` downloads it" in done.err
    assert on_disk(lmsmith.cwd / "data") == []


def test_a_live_bar_on_a_terminal(
    web: Web, there: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    assert data._download(parse(["data", "download", "fineweb10B-gpt2"]), console, 0.0) == 0
    assert re.search(r"fineweb10B-gpt2 .*━.* 1 of 1 MB", shown.getvalue())
