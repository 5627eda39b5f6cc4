"""Run folders: names, creation, opening."""

import json
import os
from pathlib import Path

import pytest
import torch

from lmsmith.config import ModelConfig, RunConfig
from lmsmith.data.corpus import Corpus, load
from lmsmith.data.prepare.run_text import prepare_text
from lmsmith.errors import CheckpointError, ConfigError, DataError, StorageError, UsageError
from lmsmith.evaluate.likelihood import score_ids
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.ngram_config import NgramConfig
from lmsmith.models.rnn import RNN
from lmsmith.models.rnn_config import RNNConfig
from lmsmith.run_folder import (
    create,
    empty_prompt,
    load_for_use,
    model_config,
    new_run_path,
    open_run,
    score_validation,
    summary_of,
)
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_folders_are_numbered() -> None:
    assert new_run_path(None, "book") == Path("runs/book-1")
    Path("runs/book-1").mkdir(parents=True)
    Path("runs/book-2").symlink_to("nowhere")  # taken, too
    assert new_run_path(None, "book") == Path("runs/book-3")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("*", "text-1"),
        ("", "text-1"),
        ("..", "text-1"),
        ("my book", "my-book-1"),
        ("a:b?c", "a-b-c-1"),
        ("čaj", "čaj-1"),
    ],
)
def test_names_are_valid_on_every_system(name: str, wanted: str) -> None:
    assert new_run_path(None, name) == Path("runs") / wanted


def test_a_folder_that_is_taken() -> None:
    assert new_run_path(Path("new/run"), "book") == Path("new/run")
    Path("empty").mkdir()
    assert new_run_path(Path("empty"), "book") == Path("empty")
    Path("full").mkdir()
    Path("full/a.txt").write_text("a")
    with pytest.raises(
        UsageError, match="full already exists and is not an empty folder; nothing was changed"
    ):
        new_run_path(Path("full"), "book")
    with pytest.raises(UsageError, match=r"full/a\.txt already exists"):
        new_run_path(Path("full/a.txt"), "book")
    Path("full/config.toml").write_text("")
    with pytest.raises(UsageError, match=r"full already holds a run; .*`lmsmith resume full`"):
        new_run_path(Path("full"), "book")
    for here in (".", str(Path.cwd())):
        with pytest.raises(UsageError, match="the current folder"):
            new_run_path(Path(here), "book")


def test_a_run_appears_complete_or_not_at_all(corpus: Corpus, config: RunConfig) -> None:
    place = Path("runs/book-1")

    def fill(partial: Path) -> tuple[RunConfig, Corpus]:
        assert not place.exists()
        (partial / "tokens").mkdir()
        return config, corpus

    assert create(place, fill) == (config, corpus)
    assert sorted(os.listdir(place)) == ["config.toml", "tokens"]
    assert os.listdir("runs") == ["book-1"]

    def fail(partial: Path) -> tuple[RunConfig, Corpus]:
        (partial / "half").write_text("written")
        raise StorageError(f"No room for {partial / 'half'}.")

    with pytest.raises(StorageError, match=r"No room for runs/book-2/half\."):
        create(Path("runs/book-2"), fail)
    assert os.listdir("runs") == ["book-1"]


def test_an_empty_folder_becomes_the_run_and_stays_after_a_failure(
    corpus: Corpus, config: RunConfig
) -> None:
    Path("mine").mkdir()

    def fail(partial: Path) -> tuple[RunConfig, Corpus]:
        raise DataError("no text")

    with pytest.raises(DataError):
        create(Path("mine"), fail)
    assert os.listdir() == ["mine"]
    create(Path("mine"), lambda partial: (config, corpus))
    assert os.listdir("mine") == ["config.toml"]


def test_leftovers_of_dead_processes_are_removed(corpus: Corpus, config: RunConfig) -> None:
    Path("runs/.book-1.99999999.partial/tokens").mkdir(parents=True)
    create(Path("runs/book-1"), lambda partial: (config, corpus))
    assert os.listdir("runs") == ["book-1"]


def test_a_folder_that_cannot_be_created(corpus: Corpus, config: RunConfig) -> None:
    Path("file").write_text("")
    with pytest.raises(StorageError, match="file"):
        create(Path("file/run"), lambda partial: (config, corpus))


@pytest.fixture
def place(config: RunConfig) -> Path:
    """A run created from a text file."""
    Path("book.txt").write_text("The cat saw the hat.\n" * 50)
    changed = config.changed({"data.sources": ("book.txt",)}, where="a test")
    create(
        Path("run"),
        lambda partial: (changed, prepare_text(changed.data, "char", partial / "tokens")),
    )
    return Path("run")


def test_a_run_opens_as_it_was_created(place: Path) -> None:
    config, corpus = open_run(place)
    assert config.data.sources == ("book.txt",)
    assert corpus.tokenizer.decode(corpus.train[:20]) == "The cat saw the hat."
    assert (corpus.validation == load(place / "tokens").validation).all()


def test_a_folder_that_is_not_a_run(place: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"nowhere is not a run: .* `lmsmith train TEXT --out nowhere` creates one",
    ):
        open_run(Path("nowhere"))
    with pytest.raises(UsageError, match=r"\. is not a run: it has no config.toml"):
        open_run(Path("."))
    (place / "tokens" / "corpus.json").unlink()
    with pytest.raises(CheckpointError, match="does not hold a run's tokens"):
        open_run(place)
    with pytest.raises(
        CheckpointError, match=r"run has no model yet: .*`lmsmith resume run` continues it"
    ):
        load_for_use(place)
    with pytest.raises(UsageError, match="there is no model in it"):
        load_for_use(Path("."))


def test_summaries() -> None:
    run = Path("run")
    run.mkdir()
    assert summary_of(run) == {}
    for text, wanted in (
        ("", {}),
        ("[1]", {}),
        ('{"finished": "st', {}),
        (json.dumps({"a": 1}), {"a": 1}),
    ):
        (run / "summary.json").write_text(text)
        assert summary_of(run) == wanted


def test_the_empty_prompt() -> None:
    assert empty_prompt(ByteTokenizer(True)) == ""  # an end-of-text token precedes it
    assert empty_prompt(CharTokenizer("\na", False)) == "\n"


@pytest.mark.parametrize(
    ("kind", "wanted"), [("gpt", GPTConfig), ("rnn", RNNConfig), ("ngram", NgramConfig)]
)
def test_a_model_of_version_0_1_names_the_settings_of_every_kind(
    kind: str, wanted: type[ModelConfig]
) -> None:
    """It had one class for all kinds, with the settings of other kinds at their defaults."""
    others = {"size": 0, "cell": "lstm", "activation": "tanh", "smoothing": "kneser-ney"}
    values = {"kind": kind, "vocab_size": 7, "ngram_order": 3, "ngram_orders": [], "n_layer": 2}
    found = model_config(values | others)
    assert type(found) is wanted
    assert found.vocab_size == 7
    assert getattr(found, "n_layer", 2) == 2
    assert getattr(found, "order", 3) == 3
    with pytest.raises(ConfigError, match="cell"):  # configs of today name only their own
        model_config({"kind": "gpt", "vocab_size": 7, "ngram_tables": [], "cell": "lstm"})


def test_a_runs_own_validation(place: Path) -> None:
    corpus = load(place / "tokens")
    config = RNNConfig(n_layer=1, d_model=8, vocab_size=corpus.tokenizer.vocab_size)
    uniform = RNN(config)  # all recurrent networks start with uniform predictions
    uniform.initialise(torch.Generator())
    score = score_validation(place, uniform, stride=None)
    assert score == score_ids(uniform, corpus.validation, n_bytes=105, left_out=True)
    assert score.perplexity == pytest.approx(corpus.tokenizer.vocab_size)
    with pytest.raises(DataError, match="Name a text with --text"):
        score_validation(Path("."), uniform, stride=None)
