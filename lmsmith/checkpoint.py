"""Checkpoints: written atomically, and verified when they are loaded.

    RUN/checkpoints/step-00001000/
        model.safetensors, optimizer.safetensors, ...   one file per group of tensors
        state.json                                      all state that is not tensors
        manifest.json                                   format version, versions of lmsmith and
                                                        torch, size and SHA-256 of each file;
                                                        `about`: the run's config and legs
    RUN/model/
        model.safetensors, config.json                  the weights alone, for inference

A checkpoint is written into a temporary folder beside it and renamed (`lmsmith.atomic`), so a kill
at any moment leaves either the old one or the new one. Because disks can still corrupt data,
loading checks every file against the manifest, names what is damaged, and falls back to the
previous checkpoint.

The tensors are in safetensors files (`weights_file.py`).

`lmsmith.train` decides what a checkpoint must hold for a resumed run to reach the same weights.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from lmsmith import __version__, atomic, foreign_json
from lmsmith.config import MODEL_KINDS
from lmsmith.errors import CheckpointError, StorageError
from lmsmith.hashes import sha256_of, write_hashed
from lmsmith.strict_json import to_json
from lmsmith.weights_file import WeightsFile, check_finite, write_tensors, write_with_hash

FORMAT_VERSION = 1
logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"step-(\d{8,})(\.replaced)?")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint: `tensors` by group and name, on the CPU; `state` and `about` as parsed
    JSON.

    The tensors are memory-mapped from the files. Copy them before the checkpoint is removed; on
    Windows it cannot be removed while they are mapped.
    """

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int,
    best_step: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Saves a checkpoint of `step`, replacing one of the same step, then removes old ones. Returns
    its folder.

    `tensors`: groups ("model", "optimizer") of named tensors on any device; pass a tied tensor
    once. `state`: JSON values. Keys are loaded as strings and tuples as lists; floats are exact,
    except that NaN and infinity are loaded as None. `about`: the run's config and legs (ranges of
    steps, `train/legs.py`), which `newest` reads without the tensors.

    Of the checkpoints up to `step`, the newest `keep` and the one of `best_step` are kept.
    Checkpoints after `step`, of a run that went back, are kept until the run reaches them again.

    Raises StorageError if it cannot be written; the earlier checkpoints are then intact.
    """
    assert step >= 0
    assert keep >= 1
    _assert_given_once(tensors)
    folder = run / "checkpoints"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, folder)) from error
    atomic.sweep(folder)

    path = folder / _name(step)
    try:
        with atomic.folder(path, replace=True) as partial:
            files = {}
            for group, named in tensors.items():
                name = f"{group}.safetensors"
                files[name] = write_tensors(partial / name, named)
            files["state.json"] = write_hashed(partial / "state.json", [_json(dict(state))])
            manifest = _signed({"step": step, "files": files, "about": dict(about or {})})
            write_hashed(partial / "manifest.json", [_json(manifest)])
    except StorageError as error:
        earlier = available(run)
        if not earlier:
            raise
        raise StorageError(
            f"{error} The checkpoint of step {earlier[-1]} is untouched: `lmsmith resume` "
            "continues from it."
        ) from error
    _prune(run, step, keep, best_step)
    return path


def load_checkpoint(run: Path, step: int | None = None) -> Checkpoint:
    """Loads the newest intact checkpoint of a run, or the one of `step`. Logs a warning for each
    damaged one it skips.

    Raises CheckpointError if there is none, if none is intact, or if one has a newer format than
    this version of lmsmith reads.
    """
    folders = [(found, folder) for found, folder in _folders(run) if step is None or found == step]
    if not folders:
        if step is not None and available(run):
            steps = ", ".join(map(str, available(run)))
            raise CheckpointError(
                f"{run} has no checkpoint of step {step}. It has checkpoints of training {steps}."
            )
        raise CheckpointError(
            f"{run} has no checkpoint: {run / 'checkpoints'} is empty or missing. Start the run "
            "again."
        )
    problems = []
    for found, folder in folders:
        try:
            return _read(folder, found)
        except _DamagedError as damage:
            logger.warning(
                "The checkpoint %s is damaged: %s. Trying the one before it.", folder, damage
            )
            problems.append(f"{folder.name}: {damage}.")
    which = "" if step is None else f" of step {step}"
    raise CheckpointError(
        f"No checkpoint{which} in {run / 'checkpoints'} is complete. {' '.join(problems)} "
        f"{'Restore one from a copy, or start the run again.' if step is None else 'Choose another step.'}"
    )


def newest(run: Path) -> Checkpoint | None:
    """Returns the newest readable checkpoint without its tensors: step, state and `about`. None if
    there is none.

    Does not check the tensors: if they are damaged, `load_checkpoint` falls back to an older
    checkpoint.
    """
    for step, folder in _folders(run):
        try:
            manifest, state = (
                _read_json(folder / "manifest.json"),
                _read_json(folder / "state.json"),
            )
            _check_version(manifest, folder)
            return Checkpoint(step, {}, state, _about(manifest))
        except _DamagedError:
            continue
    return None


def _about(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `about` of a checkpoint; empty for checkpoints of earlier versions."""
    about = manifest.get("about")
    return about if isinstance(about, dict) else {}


def available(run: Path) -> list[int]:
    """Returns the steps that a run has checkpoints of, sorted. Does not check whether they are
    intact.
    """
    return sorted({step for step, _ in _folders(run)})


def save_model(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    load: Callable[[str], torch.Tensor] | None = None,
) -> None:
    """Writes `folder`/model.safetensors and config.json, each atomically. Keeps other files in the
    folder.

    `load` returns the tensor of a name; `tensors` are then on the meta device, so that only one
    tensor at a time is in memory. Raises StorageError if the files cannot be written.
    """
    if load is None:
        _assert_given_once({"model": tensors})
    if source := MODEL_KINDS.source(config.get("model", {}).get("kind", "gpt")):
        config = {**config, "extension": source}
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, folder)) from error
    atomic.sweep(folder)
    atomic.write(folder / "config.json", _json(_signed({"config": dict(config)})))
    with atomic.file(folder / "model.safetensors") as file:
        write_with_hash(file, tensors, {"lmsmith": __version__}, load)


def load_model(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Loads the weights, on the CPU, and the config that `save_model` wrote.

    Raises CheckpointError if they cannot be read or if weights are not finite.
    """
    file, config = open_model(folder)
    try:
        return dict(file), config
    finally:
        file.close()


def open_model(folder: Path) -> tuple[WeightsFile, dict[str, Any]]:
    """The same, with weights that are read when they are asked for. Checks all of them first.

    Raises CheckpointError as `load_model` does.
    """
    try:
        signed = _read_json(folder / "config.json")
        _check_version(signed, folder / "config.json")
        if not isinstance(config := signed.get("config"), dict):
            raise _DamagedError("config.json contains no config")
        file = _open_weights(folder / "model.safetensors")
    except _DamagedError as damage:
        raise CheckpointError(
            f"The model in {folder} cannot be loaded: {damage}. Copy it again from its source, "
            "or resume its run: the next save rewrites it."
        ) from damage
    try:
        check_finite(
            file,
            f"the model in {folder}",
            "Use another copy, or train again with a lower --learning-rate.",
        )
    except CheckpointError:
        file.close()
        raise
    return file, config


class _DamagedError(Exception):
    """A checkpoint file is damaged. The message names the file, what was found and what was
    expected.
    """


def _read(folder: Path, step: int) -> Checkpoint:
    manifest = _read_json(folder / "manifest.json")
    _check_version(manifest, folder)
    try:
        if manifest["step"] != step:
            raise _DamagedError(f"manifest.json is for step {manifest['step']}, expected {step}")
        expected = {
            name: (file["size"], file["sha256"]) for name, file in manifest["files"].items()
        }
        written_with = manifest["torch"]
    except (KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"manifest.json is not valid ({error!r})") from error
    tensors, state = {}, {}
    for name, (size, sha256) in expected.items():
        # Memory-mapped, not copied: every process would hold a copy, and under FSDP2 each needs
        # only a part.
        path = folder / name
        n_bytes, digest = _hash_of(path)
        if n_bytes != size:
            raise _DamagedError(f"{name} has {n_bytes:,} bytes, expected {size:,}")
        if digest != sha256:
            raise _DamagedError(f"{name} has SHA-256 {digest[:12]}..., expected {sha256[:12]}...")
        if name == "state.json":
            state = foreign_json.parse(_read_bytes(path))
        else:
            tensors[name.removesuffix(".safetensors")] = safetensors.torch.load_file(path)
    if written_with != str(torch.__version__):  # str: a TorchVersion compares by version numbers
        logger.warning(
            "%s was written with torch %s, and this is torch %s: results from here on may "
            "differ in their last bits.",
            folder,
            written_with,
            torch.__version__,
        )
    return Checkpoint(step, tensors, state, _about(manifest))


def _open_weights(path: Path) -> WeightsFile:
    """Opens a safetensors file and checks the SHA-256 in its metadata; without one, checks only its
    structure.
    """
    with _damage_named(path):
        try:
            file = WeightsFile(path)
        except safetensors.SafetensorError as error:
            n_bytes = path.stat().st_size
            raise _DamagedError(
                f"{path.name} is not a complete safetensors file: {n_bytes:,} bytes, {error}"
            ) from error
        expected, digest = file.metadata.get("sha256"), file.sha256()
    if expected not in (None, digest):
        file.close()
        raise _DamagedError(
            f"{path.name} has SHA-256 {digest[:12]}..., expected {expected[:12]}..."
        )
    return file


def _prune(run: Path, step: int, keep: int, best_step: int | None) -> None:
    kept_steps = {*[older for older in available(run) if older <= step][-keep:], best_step}
    for older, folder in _folders(run):
        superseded = folder.name != _name(older) and folder.with_name(_name(older)).exists()
        if (older <= step and older not in kept_steps) or superseded:
            try:
                atomic.remove(folder)
            except StorageError as error:  # the new checkpoint is saved, so the run continues
                logger.warning("The old checkpoint %s cannot be removed. %s", folder, error)


def _folders(run: Path) -> list[tuple[int, Path]]:
    """Returns all checkpoints, newest first. A leftover of a replaced checkpoint comes right after
    its replacement.
    """
    checkpoints = run / "checkpoints"
    try:
        paths = list(checkpoints.iterdir()) if checkpoints.is_dir() else []
    except OSError as error:
        raise CheckpointError(
            f"{checkpoints} cannot be read: {error.strerror}. Check its permissions."
        ) from error
    matches = [(match, path) for path in paths if (match := _FOLDER.fullmatch(path.name))]
    found = sorted(
        ((int(match[1]), match[2] is None, path) for match, path in matches), reverse=True
    )
    return [(step, path) for step, _, path in found]


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _assert_given_once(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """A tied tensor saved twice would be loaded as two separate ones."""
    seen: dict[tuple[torch.device, int], str] = {}
    for group, named in tensors.items():
        assert re.fullmatch(r"\w+", group), group
        for name, tensor in named.items():
            if tensor.numel():
                first = seen.setdefault((tensor.device, tensor.data_ptr()), f"{group}.{name}")
                assert first == f"{group}.{name}", (
                    f"{group}.{name} shares memory with {first}: pass a tied tensor once"
                )


def _json(value: Any) -> bytes:
    return (to_json(value, indent=1) + "\n").encode("utf-8")


def _signed(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "lmsmith": __version__,
        "torch": torch.__version__,
        **content,
    }


def _check_version(signed: dict[str, Any], where: Path) -> None:
    version = signed.get("format_version")
    if not isinstance(version, int):
        raise _DamagedError(
            f"the JSON in {where} has format_version {version!r}, expected a number"
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{where} was written by lmsmith {signed.get('lmsmith')} in format {version}, but "
            f"this is lmsmith {__version__}, which reads formats up to {FORMAT_VERSION}. Upgrade "
            "it: pip install --upgrade lmsmith."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = foreign_json.parse(_read_bytes(path))
    except ValueError as error:
        raise _DamagedError(f"{path.name} {str(error).removeprefix('it ')}") from error
    if not isinstance(content, dict):
        raise _DamagedError(f"{path.name} holds a {type(content).__name__}, expected an object")
    return content


def _read_bytes(path: Path) -> bytes:
    with _damage_named(path):
        return path.read_bytes()


def _hash_of(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file."""
    with _damage_named(path):
        return path.stat().st_size, sha256_of(path)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise _DamagedError(f"{path.name} is missing") from error
    except OSError as error:
        raise _DamagedError(f"{path.name} cannot be read ({error.strerror})") from error
