"""Validation text named by the user: it is never trained on, and documents in both splits are
reported.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from lmsmith.config import DataConfig, DataSource, RunConfig, read_toml
from lmsmith.data.corpus import Corpus, load
from lmsmith.data.prepare.build import build_shards
from lmsmith.data.prepare.run_sources import prepare_run
from lmsmith.data.ready import open_shard_folder
from lmsmith.errors import ConfigError, DataError
from lmsmith.tokens.tokenizer import ByteTokenizer

ROOT = Path(__file__).parents[3]
TRAIN = [f"training document {n}, of its own. " * 5 for n in range(70)]
HELD_OUT = [f"held out {n}, and nowhere else. " * 5 for n in range(60)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("train.jsonl", TRAIN)
    write("val.jsonl", HELD_OUT)
    return tmp_path


def write(name: str, texts: list[str]) -> None:
    Path(name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def ids_of(texts: list[str]) -> list[int]:
    tokenizer = ByteTokenizer(end_of_text=True)
    return [
        id for text in texts for id in (tokenizer.end_of_text, *tokenizer.encode(text).tolist())
    ]


def gathered(place: Path, tokenizer: str = "byte", **data: object) -> Corpus:
    made = prepare_run(DataConfig(**data), tokenizer, place / "run")  # type: ignore[arg-type]
    again = load(place / "run")
    assert again.validation[:].tolist() == made.validation[:].tolist()
    assert len(again.train) == len(made.train)
    return made


def test_text(place: Path) -> None:
    found = gathered(place, sources=("train.jsonl",), validation=("val.jsonl",))
    assert found.train[:].tolist() == ids_of(TRAIN)  # type: ignore[index]
    assert found.validation[:].tolist() == ids_of(HELD_OUT)
    assert found.counts.n_val_bytes == sum(map(len, HELD_OUT))
    assert (place / "run" / "validation.txt").read_text() == "".join(HELD_OUT)
    assert [note for note in found.counts.notes if "word for word" in note] == []


def test_documents_in_both_splits_are_reported(place: Path) -> None:
    write("val.jsonl", [HELD_OUT[0], TRAIN[7], TRAIN[3]])
    (note,) = (
        n
        for n in gathered(place, sources=("train.jsonl",), validation=("val.jsonl",)).counts.notes
        if "word" in n
    )
    assert "2 of 3 validation documents are also in the training text" in note
    assert "val.jsonl:2 is train.jsonl:8" in note
    made = build_shards(
        ["train.jsonl"], place / "out", tokenizer="byte", validation=["val.jsonl"], workers=1
    )
    assert made.notes[0].startswith("2 of 3 validation documents are also in the training text")
    assert "training document 7" in made.notes[0]
    made = build_shards(
        ["train.jsonl"],
        place / "apart",
        tokenizer="byte",
        validation=["val.jsonl"],
        dedup="exact",
        workers=1,
    )
    assert made.splits["train"].n_documents == 68  # the copies in training are dropped
    assert made.splits["val"].n_documents == 3


@pytest.mark.parametrize("other", ["train.jsonl", "./train.jsonl", "linked.jsonl", "hard.jsonl"])
def test_a_file_in_both_splits_is_refused(place: Path, other: str) -> None:
    Path("linked.jsonl").symlink_to("train.jsonl")
    Path("hard.jsonl").hardlink_to("train.jsonl")
    with pytest.raises(
        ConfigError, match=r"train\.jsonl is named for both training and validation"
    ):
        prepare_run(
            DataConfig(sources=("train.jsonl",), validation=(other,)), "byte", place / "run"
        )
    with pytest.raises(
        ConfigError, match=r"train\.jsonl is named for both training and validation"
    ):
        build_shards(["train.jsonl"], place / "out", tokenizer="byte", validation=[other])
    assert not (place / "out.partial").exists()


def test_validation_and_validation_fraction_exclude_each_other(place: Path) -> None:
    both = DataConfig(sources=("train.jsonl",), validation=("val.jsonl",), validation_fraction=0.1)
    with pytest.raises(ConfigError, match="Set only one of them"):
        prepare_run(both, "byte", place / "run")
    with pytest.raises(ConfigError, match="Use only one of them"):
        build_shards(
            ["train.jsonl"], place / "out", validation=["val.jsonl"], validation_fraction=0.1
        )
    write("val.jsonl", [" "])
    with pytest.raises(DataError, match="there is no text in"):
        prepare_run(
            DataConfig(sources=("train.jsonl",), validation=("val.jsonl",)), "byte", place / "run"
        )


def test_shards(place: Path) -> None:
    build_shards(
        ["train.jsonl"], place / "a", tokenizer="byte", validation=["val.jsonl"], workers=1
    )
    ready = open_shard_folder(place / "a")
    assert ready.open_train(None)[:].tolist() == ids_of(TRAIN)
    assert ready.open_validation(None)[:].tolist() == ids_of(HELD_OUT)
    # A folder is used completely for the split that it was named for.
    others = [f"another text, the {n}th. " * 3 for n in range(60)]
    write("more.jsonl", others)
    found = gathered(place, "auto", sources=("a",), validation=("more.jsonl",))
    assert found.train[:].tolist() == ids_of(TRAIN + HELD_OUT)  # type: ignore[index]
    assert found.validation[:].tolist() == ids_of(others)
    shards = tuple(f"a/{split}_000000.bin" for split in ("train", "val"))
    found = gathered(place, sources=shards[:1], validation=shards[1:])
    assert found.train[:].tolist() == ids_of(TRAIN)  # type: ignore[index]
    assert found.validation[:].tolist() == ids_of(HELD_OUT)
    assert found.counts.n_val_bytes == sum(map(len, HELD_OUT))
    write("more.jsonl", [*others, HELD_OUT[5]])
    notes = gathered(place, "auto", sources=("a",), validation=("more.jsonl",)).counts.notes
    assert any(
        "(document 61 of the validation tokens is document 76 of the training tokens)" in note
        for note in notes
    )
    with pytest.raises(
        ConfigError, match=r"train_000000\.bin is named for both training and validation"
    ):
        prepare_run(DataConfig(sources=("a",), validation=("a",)), "auto", place / "run")


def test_sources_by_weight(place: Path) -> None:
    write("more.jsonl", TRAIN[:10])
    mixed = (DataSource("train.jsonl", 3.0), DataSource("more.jsonl", 1.0))
    found = gathered(place, mixture=mixed, validation=("val.jsonl",))
    assert [part[:].tolist() for part in found.train.ids] == [ids_of(TRAIN), ids_of(TRAIN[:10])]  # type: ignore[union-attr]
    assert found.validation[:].tolist() == ids_of(HELD_OUT)
    assert (
        "of the training rows, 0.75 are from train.jsonl, 0.25 are from more.jsonl"
        in found.counts.notes
    )


def test_the_recipe_of_a_mixture(place: Path) -> None:
    from rich.console import Console

    from lmsmith.train.start import train

    recipe = ROOT / "recipes" / "mixture.toml"
    config = RunConfig().changed(read_toml(recipe), where=str(recipe))
    for path in (*config.data.paths, *config.data.validation):
        if path.endswith("/"):
            Path(path).mkdir()
            Path(path, "a.txt").write_text("<|endoftext|>".join(TRAIN))
        elif path.endswith(".jsonl"):
            write(path, [f"web page {n}. " * 9 for n in range(9)])
        else:
            Path(path).write_text("<|endoftext|>".join(HELD_OUT))
    small = {"model.n_layer": 1, "model.n_head": 1, "model.d_model": 16, "model.context_length": 16}
    tiny = {
        "tokenizer": "byte",
        "train.batch_tokens": 64,
        "train.steps": 2,
        "train.threads": 1,
        "train.matmul": "default",
    }
    _, summary = train([str(recipe)], small | tiny, out=place / "run", console=Console(quiet=True))
    assert summary["steps"] == 2
    assert np.isfinite(summary["val_loss"] if "val_loss" in summary else summary["best_val_loss"])
