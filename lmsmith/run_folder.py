"""A run folder: where it lies, what is in it, how it begins and how it is found again.

    config.toml metrics.jsonl summary.json samples.md report.html tokens/ checkpoints/ model/

A run folder appears at once with its config and tokens in it, so what is there can be resumed.
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
from lmsmith.checkpoint import available, load_model
from lmsmith.config import (
    MODEL_KINDS,
    OPTIMIZERS,
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


def free_place(out: Path | None, name: str) -> Path:
    """Where a new run goes: `out`, which must hold nothing yet, or runs/NAME-1, runs/NAME-2, ...

    Raises UsageError for a place that is taken, StorageError for one that cannot be looked at.
    """
    if out is None:
        name = (
            re.sub(r"[^\w.-]+", "-", name).strip("-.") or "text"
        )  # "*" of a pattern, spaces, colons
        number = 1
        while os.path.lexists(place := Path("runs") / f"{name}-{number}"):
            number += 1
        return place
    try:
        if out.absolute() == Path.cwd():
            raise UsageError(
                f"--out {out} is the folder this was started in: name a new one, such as --out "
                f"{out / 'run'}."
            )
        if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
            if (out / "config.toml").exists():
                raise UsageError(
                    f"{out} holds a run already; nothing was changed. Go on with it by "
                    f"`lmsmith resume {shlex.quote(str(out))}`, or choose another --out."
                )
            raise UsageError(
                f"{out} is there already and not empty; nothing was changed. Choose another --out."
            )
    except OSError as error:
        raise StorageError(atomic.explain(error, out)) from error
    return out


def create(
    place: Path, fill: Callable[[Path], tuple[RunConfig, Corpus]]
) -> tuple[RunConfig, Corpus]:
    """Makes the run folder: `fill` writes the tokens into a folder beside and resolves the config.

    Nothing appears at `place` before both are there, and where `fill` fails no folder stays behind.
    Raises what `fill` raises, and StorageError.
    """
    empty = place.is_dir()
    missing = [parent for parent in place.parents if not parent.exists()]  # the innermost first
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if (
            empty
        ):  # the user made it; a run that another process began there meanwhile is not removed
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
            with contextlib.suppress(OSError):  # another run has begun there meanwhile
                parent.rmdir()
        raise
    return config, corpus


def open_run(place: Path) -> tuple[RunConfig, Corpus]:
    """Config and tokens of a run. Raises UsageError where there is none."""
    config = place / "config.toml"
    if not config.is_file():
        refuse_foreign(place)
        raise UsageError(
            f"{place} is not a run: it has no config.toml. `lmsmith train TEXT --out {place}` "
            f"would make one."
            if not place.exists()
            else f"{place} is not a run: it has no config.toml. Name the folder that `lmsmith "
            f"train` said it wrote."
        )
    if "imported" in summary_of(place):
        raise UsageError(
            f"{place} is an imported model: it holds no text and no checkpoint to go on from."
        )
    _require_extensions(place)
    return RunConfig().changed(read_toml(config), where=str(config)), load(place / "tokens")


def _keep_extensions(folder: Path, config: RunConfig) -> None:
    """Writes extensions.json, if the run needs any. OSError."""
    sources = (
        MODEL_KINDS.source(config.model.kind),
        OPTIMIZERS.source(config.optim.name),
        SCHEDULES.source(config.schedule.shape),
    )
    if used := [source for source in sources if source]:
        content = to_json({"extensions": used}, indent=1) + "\n"
        (folder / "extensions.json").write_text(content, encoding="utf-8")


def _require_extensions(place: Path) -> None:
    """Raises ConfigError for an extension that the run needs and that is missing here."""
    try:
        found = foreign_json.read(place / "extensions.json")["extensions"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # most runs have none; without it, the config's error names what is missing
    for source in found:
        for registry in (MODEL_KINDS, OPTIMIZERS, SCHEDULES):
            if source.get("what") == registry.what:
                registry.require(source["name"], source, str(place))


def exposure_of(place: Path) -> tuple[int, list[tuple[str, Exposure]]]:
    """How many steps a run has made, and which share of each of its sources they have seen how
    often.

    Raises UsageError where there is no run, CheckpointError where its shards have changed.
    """
    config, corpus = open_run(place)
    steps = [
        summary_of(place).get("steps") or 0,
        *available(place),
    ]  # after a kill the summary may be the older one
    found = exposure(batches_of(config, corpus.train, corpus.tokenizer), max(steps))
    names = config.data.paths if config.data.mixture else [", ".join(config.data.paths)]
    return max(steps), list(zip(names, found, strict=True))


def summary_of(place: Path) -> dict[str, Any]:
    """The run's summary.json; empty where there is none yet or it cannot be read."""
    try:
        found = foreign_json.read(place / "summary.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def load_for_use(place: Path) -> tuple[LanguageModel, Tokenizer, dict[str, Any]]:
    """Model, tokenizer and config from RUN or RUN/model. Raises UsageError, CheckpointError,
    TokenizerError.
    """
    folder = model_folder(place)
    model, _, content = load_weights(folder)
    return model, tokenizer_of(place), content


def tokenizer_of(place: Path) -> Tokenizer:
    """Of RUN or RUN/model. Raises UsageError, TokenizerError."""
    folder = model_folder(place)
    if not (folder / FILE_NAME).is_file():
        raise TokenizerError(
            f"{place} has no tokenizer, so there is no text for it. If its weights alone were "
            f"imported, import them "
            "again with --tokenizer FOLDER."
        )
    return load_tokenizer(folder)


def load_weights(folder: Path) -> tuple[LanguageModel, dict[str, Tensor], dict[str, Any]]:
    """Model, tensors in the precision they are stored in, and config of a model's folder. Raises
    CheckpointError.
    """
    tensors, content = load_model(folder)
    try:
        model = config_of(content, folder).restore(tensors)
    except (
        KeyError,
        AttributeError,
        ValueError,
        RuntimeError,
    ) as error:  # RuntimeError: names or shapes that differ
        raise CheckpointError(
            f"The model in {folder} cannot be loaded: config.json and model.safetensors do not "
            f"fit each other "
            f"({str(error).splitlines()[0]}). Copy both from where they came from, or resume the "
            f"run."
        ) from error
    return model, tensors, content


def model_folder(place: Path) -> Path:
    """RUN/model, or RUN where that is a model's folder itself. Raises UsageError,
    CheckpointError.
    """
    folder = place / "model" if (place / "model").is_dir() else place
    if folder == place:
        refuse_foreign(place)
    if not (folder / "model.safetensors").exists():
        if (place / "config.toml").exists():
            raise CheckpointError(
                f"{place} has no model yet: its training has not come to the first save. "
                f"`lmsmith resume {shlex.quote(str(place))}` goes on."
            )
        raise UsageError(
            f"{place} is not a run: there is no model in it. Name a folder that `lmsmith train` "
            f"wrote."
        )
    return folder


def refuse_foreign(place: Path) -> None:
    """Raises UsageError, which names `lmsmith import`, for a checkpoint of another program."""
    if form := _form_of_another_program(place):
        raise UsageError(
            f"{place} is {form}, and not a run yet. `lmsmith import {shlex.quote(str(place))} "
            f"--out RUN` makes a run "
            "of it: then name RUN here."
        )


def _form_of_another_program(place: Path) -> str | None:
    """What a file or folder is that `lmsmith import` reads; None for others."""
    try:
        for path in (place, place / "model.bin"):
            if path.is_file():
                with path.open("rb") as file:
                    magic = file.read(4)
                if magic == LLMC_MAGIC.to_bytes(4, "little"):
                    return "an llm.c checkpoint"
                if magic == b"GGUF":
                    return "a GGUF file"
        found = foreign_json.read(place / "config.json")
    except (OSError, ValueError):
        return None
    ours = not isinstance(found, dict) or "format_version" in found
    return (
        None
        if ours or not {"architectures", "model_type"} & found.keys()
        else "a Hugging Face checkpoint"
    )


def empty_prompt(tokenizer: Tokenizer) -> str:
    """What to continue where there is no prompt: nothing, after an end of text; else the
    beginning of a line.
    """
    return "" if tokenizer.end_of_text is not None else "\n"


def config_of(content: Mapping[str, Any], folder: Path) -> ModelConfig:
    """The settings of the model in `folder`, from the config that its config.json holds.

    Raises ConfigError, also where the model kind is from an extension that is missing here;
    KeyError.
    """
    if source := content.get("extension"):
        MODEL_KINDS.require(source["name"], source, str(folder))
    return model_config(content["model"])


def model_config(values: dict[str, Any]) -> ModelConfig:
    """The model's settings as its config.json holds them. Raises ConfigError."""
    where = "the model's config.json"
    kind = values.get("kind", "gpt")
    base = RunConfig().changed({"model.kind": kind}, where=where)
    own = {name for name, _ in settings(type(base.model))}
    own |= {old for old, name in RENAMED.items() if name in own}
    of_one_class = {"size", "cell"} <= values.keys()  # of a Transformer and of a recurrent network
    others = OF_EVERY_KIND - {name.removeprefix("model.") for name in own} if of_one_class else ()
    kept = {name: value for name, value in values.items() if name not in others}
    return base.changed(flatten({"model": kept}), where=where).model


def score_validation(place: Path, model: LanguageModel, *, stride: int | None) -> Score:
    """The score of a run's own validation split. Raises DataError where that is not there."""
    if not (place / "tokens").is_dir():
        raise DataError(
            f"{place} holds no validation text of its own: name a text with --text FILE."
        )
    config, corpus = open_run(place)
    score = score_ids(
        model,
        corpus.validation,
        n_bytes=corpus.counts.n_val_bytes,
        n_unknown=corpus.counts.n_val_unknown,
        n_unknown_bytes=corpus.counts.n_val_unknown_bytes,
        left_out=corpus.tokenizer.leaves_out,
        first_given=corpus.first_given,
        stride=stride,
        boundary=boundary_of(config.data.documents, corpus.tokenizer),
    )
    return checked(score)
