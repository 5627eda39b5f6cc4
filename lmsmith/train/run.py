"""A run folder: where it lies, what is in it, how it begins and how it is found again.

    config.toml metrics.jsonl summary.json samples.md report.html tokens/ checkpoints/ model/

A run folder appears at once with its config and tokens in it, so what is there can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmsmith import atomic
from lmsmith.checkpoint import load_model
from lmsmith.config import ModelConfig, RunConfig, flatten, read_toml
from lmsmith.data.prepare import Corpus, load
from lmsmith.errors import CheckpointError, UsageError
from lmsmith.evaluate.likelihood import Score, score_ids
from lmsmith.models.gpt import GPT
from lmsmith.tokens.files import load_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer


def free_place(out: Path | None, name: str) -> Path:
    """Where a new run goes: `out`, which must hold nothing yet, or runs/NAME-1, runs/NAME-2, ..."""
    if out is None:
        number = 1
        while (place := Path("runs") / f"{name}-{number}").exists():
            number += 1
        return place
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds a run already" if (out / "config.toml").exists() else "is there already and not empty"
        raise UsageError(
            f"{out} {what}; nothing was changed. Go on with it by `lmsmith resume {out}`, or choose another --out."
            if "run" in what
            else f"{out} {what}; nothing was changed. Choose another --out."
        )
    return out


def create(place: Path, fill: Callable[[Path], tuple[RunConfig, Corpus]]) -> tuple[RunConfig, Corpus]:
    """Makes the run folder: `fill` writes the tokens into a folder beside and resolves the config."""
    place.parent.mkdir(parents=True, exist_ok=True)
    atomic.sweep(place.parent)
    if place.is_dir():  # an empty one that the user made
        place.rmdir()
    with atomic.folder(place) as partial:
        config, corpus = fill(partial)
        (partial / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    return config, corpus


def open_run(place: Path) -> tuple[RunConfig, Corpus]:
    """Config and tokens of a run. Raises UsageError where there is none."""
    config = place / "config.toml"
    if not config.is_file():
        raise UsageError(
            f"{place} is not a run: it has no config.toml. `lmsmith train TEXT --out {place}` would make one."
            if not place.exists()
            else f"{place} is not a run: it has no config.toml. Name the folder that `lmsmith train` said it wrote."
        )
    return RunConfig().changed(read_toml(config), where=str(config)), load(place / "tokens")


def load_for_use(place: Path) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """Model, tokenizer and config from RUN or RUN/model. Raises CheckpointError, TokenizerError."""
    folder = place / "model" if (place / "model").is_dir() else place
    if not (folder / "model.safetensors").exists():
        if (place / "config.toml").exists():
            raise CheckpointError(
                f"{place} has no model yet: its training has not reached the first save. `lmsmith resume {place}` goes on."
            )
        raise UsageError(f"{place} is not a run: there is no model in it. Name a folder that `lmsmith train` wrote.")
    tensors, content = load_model(folder)
    model = GPT(_model_config(content["model"]))
    model.load_state_dict(tensors)
    return model.eval(), load_tokenizer(folder), content


def _model_config(values: dict[str, Any]) -> ModelConfig:
    return RunConfig().changed(flatten({"model": values}), where="the model's config.json").model


def score_validation(place: Path, model: GPT, *, stride: int | None) -> Score:
    """The score of a run's own validation split."""
    corpus = load(place / "tokens")
    return score_ids(
        model,
        corpus.validation,
        n_bytes=corpus.counts.n_val_bytes,
        n_unknown=corpus.counts.n_val_unknown,
        n_unknown_bytes=corpus.counts.n_val_unknown_bytes,
        first_given=corpus.first_given,
        stride=stride,
    )
