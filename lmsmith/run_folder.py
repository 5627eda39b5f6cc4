"""Run folders: naming, creating, opening and reading them.

    config.toml metrics.jsonl summary.json samples.md report.html tokens/ checkpoints/ model/

A run folder appears atomically, with its config and tokens, so every run folder can be resumed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lmsmith import atomic, foreign_json
from lmsmith.checkpoint import available, load_model, open_model
from lmsmith.config import (
    MODEL_KINDS,
    OPTIMIZERS,
    REWARDS,
    RL_TASKS,
    SCHEDULES,
    ModelConfig,
    RunConfig,
    flatten,
    read_toml,
    settings,
)
from lmsmith.config.aliases import OF_EVERY_KIND, RENAMED
from lmsmith.data.batches.exposure import Exposure, exposure
from lmsmith.data.batches.packing import batches_of, boundary_of
from lmsmith.data.corpus import Corpus, load
from lmsmith.errors import CheckpointError, DataError, StorageError, TokenizerError, UsageError
from lmsmith.evaluate.likelihood import Score, checked, score_ids
from lmsmith.models.interface import LanguageModel
from lmsmith.reference.llmc import MAGIC as LLMC_MAGIC
from lmsmith.strict_json import to_json
from lmsmith.tokens.files import FILE_NAME, load_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer
from lmsmith.weights_file import WeightsFile


def new_run_path(out: Path | None, name: str) -> Path:
    """Returns the path for a new run: `out`, which must be empty or not exist, or runs/NAME-1,
    runs/NAME-2, ...

    Raises UsageError if the path is taken, StorageError if it cannot be read.
    """
    if out is None:
        # replaces the "*" of a pattern, spaces, colons
        name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "text"
        number = 1
        while os.path.lexists(place := Path("runs") / f"{name}-{number}"):
            number += 1
        return place
    try:
        if out.absolute() == Path.cwd():
            raise UsageError(
                f"--out {out} is the current folder. Name a new one, such as --out {out / 'run'}."
            )
        if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
            if (out / "config.toml").exists():
                raise UsageError(
                    f"{out} already holds a run; nothing was changed. Resume it with `lmsmith "
                    f"resume {shlex.quote(str(out))}`, or choose another --out."
                )
            raise UsageError(
                f"{out} already exists and is not an empty folder; nothing was changed. Choose "
                "another --out."
            )
    except OSError as error:
        raise StorageError(atomic.explain(error, out)) from error
    return out


def create(
    place: Path, fill: Callable[[Path], tuple[RunConfig, Corpus]]
) -> tuple[RunConfig, Corpus]:
    """Creates the run folder. `fill` writes the tokens into a temporary folder and returns the
    resolved config.

    The folder appears at `place` only when it is complete; if `fill` fails, nothing is left behind.
    Raises what `fill` raises, and StorageError.
    """
    empty = place.is_dir()
    missing = [parent for parent in place.parents if not parent.exists()]  # innermost first
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if empty:  # made by the user; rmdir fails if another process has started a run there
            place.rmdir()
    except OSError as error:
        raise StorageError(atomic.explain(error, place)) from error
    atomic.sweep(place.parent)
    try:
        with atomic.folder(place) as partial:
            try:
                config, corpus = fill(partial)
            except StorageError as error:
                raise StorageError(str(error).replace(str(partial), str(place))) from error
            (partial / "config.toml").write_text(config.to_toml(), encoding="utf-8")
            _keep_extensions(partial, config)
    except BaseException:
        if empty:
            place.mkdir(exist_ok=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # another run has started there
                parent.rmdir()
        raise
    return config, corpus


def open_run(place: Path) -> tuple[RunConfig, Corpus]:
    """Returns the config and tokens of a run. Raises UsageError if there is no run."""
    config = place / "config.toml"
    if not config.is_file():
        refuse_other_formats(place)
        raise UsageError(
            f"{place} is not a run: it does not exist. `lmsmith train TEXT --out {place}` "
            "creates one."
            if not place.exists()
            else f"{place} is not a run: it has no config.toml. Name a folder that `lmsmith "
            "train` wrote."
        )
    if "imported" in summary_of(place):
        raise UsageError(
            f"{place} is an imported model: it has no training text and no checkpoint to resume "
            "from."
        )
    _require_extensions(place)
    return RunConfig().changed(read_toml(config), where=str(config)), load(place / "tokens")


def _is_rl(config: RunConfig) -> bool:
    """Whether the run's source is a task of reinforcement learning."""
    return config.train.objective == "rl"


def _keep_extensions(folder: Path, config: RunConfig) -> None:
    """Writes extensions.json, if the run uses extensions. Raises OSError."""
    sources = (
        MODEL_KINDS.source(config.model.kind),
        OPTIMIZERS.source(config.optim.name),
        SCHEDULES.source(config.schedule.shape),
        *(RL_TASKS.source(name) for name in config.data.sources if _is_rl(config)),
        *(REWARDS.source(name.partition("=")[0]) for name in config.rl.rewards),
    )
    if used := [source for source in sources if source]:
        content = to_json({"extensions": used}, indent=1) + "\n"
        (folder / "extensions.json").write_text(content, encoding="utf-8")


def _require_extensions(place: Path) -> None:
    """Raises ConfigError if an extension that the run uses is not installed."""
    try:
        sources = foreign_json.read(place / "extensions.json")["extensions"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # most runs have none; if one is lost, reading the config reports the unknown name
    for source in sources:
        for registry in (MODEL_KINDS, OPTIMIZERS, SCHEDULES, RL_TASKS, REWARDS):
            if source.get("what") == registry.what:
                registry.require(source["name"], source, str(place))


def run_exposure(place: Path) -> tuple[int, list[tuple[str, Exposure]]]:
    """Returns the number of steps a run has made, and for each of its sources how often the tokens
    were seen.

    Raises UsageError if there is no run or it has drawn no text from sources, CheckpointError if
    its shards have changed.
    """
    config, corpus = open_run(place)
    if _is_rl(config):
        raise UsageError(
            f"{place} was trained on its own answers by `lmsmith rl`: no text was read from "
            f"sources. Its start is {config.train.init_from or 'another run'}; inspect that run."
        )
    # After a kill, the summary may be older than the checkpoints.
    steps = [summary_of(place).get("steps") or 0, *available(place)]
    exposures = exposure(batches_of(config, corpus.train, corpus.tokenizer), max(steps))
    names = config.data.paths if config.data.mixture else [", ".join(config.data.paths)]
    return max(steps), list(zip(names, exposures, strict=True))


def summary_of(place: Path) -> dict[str, Any]:
    """Returns the run's summary.json; empty if there is none yet or it cannot be read."""
    try:
        summary = foreign_json.read(place / "summary.json")
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def load_for_use(place: Path) -> tuple[LanguageModel, Tokenizer, dict[str, Any]]:
    """Returns the model, tokenizer and config of RUN or RUN/model. Raises UsageError,
    CheckpointError, TokenizerError.
    """
    model, content = restored(model_folder(place))
    return model, tokenizer_of(place), content


def tokenizer_of(place: Path) -> Tokenizer:
    """Returns the tokenizer of RUN or RUN/model. Raises UsageError, TokenizerError."""
    folder = model_folder(place)
    if not (folder / FILE_NAME).is_file():
        raise TokenizerError(
            f"{place} has no tokenizer, so it cannot read or write text. If only its weights "
            "were imported, import them again with --tokenizer FOLDER."
        )
    return load_tokenizer(folder)


def load_weights(folder: Path) -> tuple[LanguageModel, dict[str, Tensor], dict[str, Any]]:
    """Returns the model, its tensors in their stored precision, and its config, from a model
    folder. Model and tensors may share memory. Raises CheckpointError.
    """
    tensors, content = load_model(folder)
    return _restored(folder, tensors, content), tensors, content


def restored(
    folder: Path, restore: Callable[[ModelConfig, WeightsFile], LanguageModel] | None = None
) -> tuple[LanguageModel, dict[str, Any]]:
    """Returns the model in a model folder, and its config. Reads one tensor at a time.

    `restore` builds the model from its settings and the file of its weights; default:
    `ModelConfig.restore`. Raises CheckpointError.
    """
    file, content = open_model(folder)
    try:
        return _restored(folder, file, content, restore), content
    finally:
        file.close()


def _restored(
    folder: Path,
    tensors: Any,
    content: Mapping[str, Any],
    restore: Callable[[ModelConfig, Any], LanguageModel] | None = None,
) -> LanguageModel:
    try:
        config = config_of(content, folder)
        return config.restore(tensors) if restore is None else restore(config, tensors)
    # RuntimeError: names or shapes differ
    except (KeyError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"The model in {folder} cannot be loaded: config.json and model.safetensors do not "
            f"match ({str(error).splitlines()[0]}). Copy both again from their source, or resume "
            "the run."
        ) from error


def model_folder(place: Path) -> Path:
    """RUN/model, or `place` itself if it is a model folder. Raises UsageError, CheckpointError."""
    folder = place / "model" if (place / "model").is_dir() else place
    if folder == place:
        refuse_other_formats(place)
    if not (folder / "model.safetensors").exists():
        if (place / "config.toml").exists():
            raise CheckpointError(
                f"{place} has no model yet: its training has not reached the first save. "
                f"`lmsmith resume {shlex.quote(str(place))}` continues it."
            )
        raise UsageError(
            f"{place} is not a run: there is no model in it. Name a folder that `lmsmith train` "
            "wrote."
        )
    return folder


def refuse_other_formats(place: Path) -> None:
    """Raises UsageError if `place` is a checkpoint of another program; the message names `lmsmith
    import`.
    """
    if form := _form_of_another_program(place):
        raise UsageError(
            f"{place} is {form}, not a run. Convert it with `lmsmith import "
            f"{shlex.quote(str(place))} --out RUN`, then use RUN here."
        )


def _form_of_another_program(place: Path) -> str | None:
    """Returns a description of a checkpoint that `lmsmith import` reads; None for anything else."""
    try:
        for path in (place, place / "model.bin"):
            if path.is_file():
                with path.open("rb") as file:
                    magic = file.read(4)
                if magic == LLMC_MAGIC.to_bytes(4, "little"):
                    return "an llm.c checkpoint"
                if magic == b"GGUF":
                    return "a GGUF file"
        config = foreign_json.read(place / "config.json")
    except (OSError, ValueError):
        return None
    ours = not isinstance(config, dict) or "format_version" in config
    return (
        None
        if ours or not {"architectures", "model_type"} & config.keys()
        else "a Hugging Face checkpoint"
    )


def empty_prompt(tokenizer: Tokenizer) -> str:
    """Returns the prompt to use if the user gives none: empty with an end-of-text token, else a
    line break.
    """
    return "" if tokenizer.end_of_text is not None else "\n"


def config_of(content: Mapping[str, Any], folder: Path) -> ModelConfig:
    """Returns the model config in the content of a config.json. `folder` is for errors.

    Raises ConfigError, also if the model kind needs an extension that is missing; KeyError.
    """
    if source := content.get("extension"):
        MODEL_KINDS.require(source["name"], source, str(folder))
    return model_config(content["model"])


def model_config(values: dict[str, Any]) -> ModelConfig:
    """Returns the model config from the "model" object of config.json. Raises ConfigError."""
    where = "the model's config.json"
    kind = values.get("kind", "gpt")
    base = RunConfig().changed({"model.kind": kind}, where=where)
    own = {name for name, _ in settings(type(base.model))}
    own |= {old for old, name in RENAMED.items() if name in own}
    # Early versions wrote the settings of every model kind, such as "cell" of recurrent networks.
    of_one_class = {"size", "cell"} <= values.keys()
    others = OF_EVERY_KIND - {name.removeprefix("model.") for name in own} if of_one_class else ()
    known = {name: value for name, value in values.items() if name not in others}
    return base.changed(flatten({"model": known}), where=where).model


def score_validation(place: Path, model: LanguageModel, *, stride: int | None) -> Score:
    """Scores a model on a run's own validation split. Raises DataError if the run has none."""
    if not (place / "tokens").is_dir():
        raise DataError(f"{place} has no validation text of its own. Name a text with --text FILE.")
    config, corpus = open_run(place)
    score = score_ids(
        model,
        corpus.validation,
        n_bytes=corpus.counts.n_val_bytes,
        n_unknown=corpus.counts.n_val_unknown,
        n_unknown_bytes=corpus.counts.n_val_unknown_bytes,
        left_out=corpus.tokenizer.skips_unknown,
        starts_with_end_of_text=corpus.starts_with_end_of_text,
        stride=stride,
        boundary=boundary_of(config.data.documents, corpus.tokenizer),
    )
    return checked(score)
