"""A group's corpus: fetched once from its shared folder, then known by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/shared_corpus.py"
TINY = [
    *("--preset=gru", "--tokenizer=char", "--model.d_model=8", "--model.context_length=16"),
    *("--train.batch_size=4", "--train.threads=1", "--train.matmul=default", "--steps=2"),
]


@pytest.fixture
def lab(tmp_path: Path) -> dict[str, str]:
    """The environment of a command that knows the corpus."""
    folder = tmp_path / "shared disk"
    folder.mkdir()
    lines = (json.dumps({"text": f"Day {n}: the pump ran, {n} litres."}) for n in range(120))
    (folder / "notes.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {
        "LAB_CORPORA": str(folder),
        "LMSMITH_DATA": str(tmp_path / "store"),
        "LMSMITH_EXTENSIONS": str(EXAMPLE),
    }


def test_trained_on_by_name(lmsmith: Any, lab: dict[str, str]) -> None:
    done = lmsmith("train", "lab-notes", *TINY, "--out=one", environment=lab)
    assert done.status == 0, done.err
    copy = Path(lab["LMSMITH_DATA"], "lab-notes/notes.jsonl")
    original = Path(lab["LAB_CORPORA"], "notes.jsonl")
    assert copy.read_bytes() == original.read_bytes()
    assert "lab-notes" in lmsmith("data", "list", environment=lab).out
    # Without the shared disk the corpus is the same.
    shutil.rmtree(lab["LAB_CORPORA"])
    done = lmsmith("train", "lab-notes", *TINY, "--out=two", environment=lab)
    assert done.status == 0, done.err
    one, other = (lmsmith.cwd / run / "model/model.safetensors" for run in ("one", "two"))
    assert one.read_bytes() == other.read_bytes()


def test_the_shared_disk_is_missing(lmsmith: Any, lab: dict[str, str]) -> None:
    shutil.rmtree(lab["LAB_CORPORA"])
    done = lmsmith("train", "lab-notes", *TINY, environment=lab)
    said = " ".join(done.err.split())
    assert done.status != 0
    assert "cannot read file://" in said
    assert "shared%20disk/notes.jsonl: No such file or directory." in said
    assert "network" not in said
    assert not (lmsmith.cwd / "runs").exists()


def test_without_the_extension_the_name_is_unknown(lmsmith: Any) -> None:
    done = lmsmith("train", "lab-notes", *TINY)
    assert done.status != 0
    assert "lab-notes" in done.err
    assert "Traceback" not in done.err
