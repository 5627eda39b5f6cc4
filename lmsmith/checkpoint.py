"""Checkpoints: saved whole or not at all, and verified before they are trusted.

    RUN/checkpoints/step-00001000/
        model.safetensors, optimizer.safetensors, ...   one file a group of tensors
        state.json                                      everything that is no tensor
        manifest.json                                   format version, who wrote it, size and
                                                        SHA-256 of each file;
                                                        `about`: the run's config and legs
    RUN/model/
        model.safetensors, config.json                  the weights alone, for whoever only uses the
                                                        model

A checkpoint is written into a temporary folder beside and renamed (`lmsmith.atomic`), so a kill at
any moment leaves the one before it or the new one. Disks lie all the same: a load holds every byte
against the manifest, names what is damaged, and takes the checkpoint before it.

The tensor files are safetensors files (https://github.com/huggingface/safetensors), read by its
library and written here: that way each tensor goes through memory alone, is hashed while it is
written, a full disk is an OSError with its number, and the file gets the permissions of every
other. The library's `save_file` has to be read again to be hashed, tells of a full disk in words
that change with its version, and makes files that only their owner may read.

What a checkpoint must hold for a run to go on to the same weights is up to `lmsmith.train`.
"""

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from lmsmith import __version__, atomic, foreign_json
from lmsmith.config import MODEL_KINDS
from lmsmith.errors import CheckpointError, StorageError
from lmsmith.hashes import sha256_of
from lmsmith.strict_json import to_json

FORMAT_VERSION = 1
logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"step-(\d{8,})(\.replaced)?")
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was saved: `tensors` by group and name, on the CPU; `state` and `about` as JSON gives
    them back.

    The tensors are a map of the files: to be copied before the checkpoint is removed, or else (on
    Windows) it stays.
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
    """Saves a checkpoint of `step`, in place of one of that step; then removes what is older, and
    returns its folder.

    `tensors`: groups ("model", "optimizer") of named tensors on any device; a tied tensor is given
    once. `state`: what JSON can hold. Keys come back as text and tuples as lists; floats come back
    bit for bit, those that are not finite as None. Of the checkpoints up to `step` the newest
    `keep` stay, and that of `best_step`. Later ones, of a run that went back, stay until it reaches
    them again. `about`: the run's config and legs, which can be read without the tensors
    (`newest`).

    Raises StorageError where it cannot be written; the checkpoints before it are whole then.
    """
    assert step >= 0
    assert keep >= 1
    _assert_given_once(tensors)
    place = run / "checkpoints"
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, place)) from error
    atomic.sweep(place)

    path = place / _name(step)
    try:
        with atomic.folder(path, replace=True) as partial:
            files = {}
            for group, named in tensors.items():
                files[f"{group}.safetensors"] = _write(
                    partial / f"{group}.safetensors", _safetensors(named)
                )
            files["state.json"] = _write(partial / "state.json", [_json(dict(state))])
            _write(
                partial / "manifest.json",
                [_json(_signed({"step": step, "files": files, "about": dict(about or {})}))],
            )
    except StorageError as error:
        before = available(run)
        if not before:
            raise
        raise StorageError(
            f"{error} The checkpoint of step {before[-1]} is untouched: resume goes on from it."
        ) from error
    _prune(run, step, keep, best_step)
    return path


def load_checkpoint(run: Path, step: int | None = None) -> Checkpoint:
    """The newest whole checkpoint of a run, or that of `step`. Damaged ones on the way to it are
    named in warnings.

    Raises CheckpointError where there is none, where none is whole, and where one is of a later
    format than we know.
    """
    folders = [(found, folder) for found, folder in _folders(run) if step is None or found == step]
    if not folders:
        if step is not None and available(run):
            steps = ", ".join(map(str, available(run)))
            raise CheckpointError(
                f"{run} holds no checkpoint of step {step}: it has those of {steps}."
            )
        raise CheckpointError(
            f"{run} holds no checkpoint ({run / 'checkpoints'} has none): start the run anew."
        )
    problems = []
    for found, folder in folders:
        try:
            return _read(folder, found)
        except _DamagedError as damage:
            logger.warning("The checkpoint %s is damaged: %s. It is passed over.", folder, damage)
            problems.append(f"{folder.name}: {damage}.")
    which = "" if step is None else f" of step {step}"
    raise CheckpointError(
        f"No checkpoint{which} in {run / 'checkpoints'} is whole. {' '.join(problems)} "
        f"{'Put back a copy of one, or start the run anew.' if step is None else 'Choose another step.'}"
    )


def newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint without its tensors: step, state and `about`; None where none can be
    read.

    Its tensors are not looked at: they may be damaged, and `load_checkpoint` would then take the
    one before it.
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
    """Empty in what earlier versions wrote."""
    about = manifest.get("about")
    return about if isinstance(about, dict) else {}


def available(run: Path) -> list[int]:
    """The steps of which a run has a checkpoint, in order; whether they are whole is seen when
    they are loaded.
    """
    return sorted({step for step, _ in _folders(run)})


def save_model(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> None:
    """Writes `folder`/model.safetensors and config.json, each whole, in place of the old; other
    files there stay.

    Raises StorageError where they cannot be written.
    """
    _assert_given_once({"model": tensors})
    if source := MODEL_KINDS.source(config.get("model", {}).get("kind", "gpt")):
        config = {**config, "extension": source}
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, folder)) from error
    atomic.sweep(folder)
    digest = hashlib.sha256()
    for name in _in_file_order(tensors):
        digest.update(_bytes(tensors[name]))
    atomic.write(folder / "config.json", _json(_signed({"config": dict(config)})))
    # One file holds the weights and their hash, so there is no moment in which the two do not fit
    # each other.
    with atomic.file(folder / "model.safetensors") as file:
        for chunk in _safetensors(tensors, {"lmsmith": __version__, "sha256": digest.hexdigest()}):
            file.write(chunk)


def load_model(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights, on the CPU, and the config that `save_model` wrote.

    Raises CheckpointError where they cannot be read, and for weights that are not finite.
    """
    try:
        signed = _read_json(folder / "config.json")
        _check_version(signed, folder / "config.json")
        if not isinstance(config := signed.get("config"), dict):
            raise _DamagedError("config.json has no config in it")
        tensors = _read_weights(folder / "model.safetensors")
    except _DamagedError as damage:
        raise CheckpointError(
            f"The model in {folder} cannot be loaded: {damage}. "
            "Copy it from where it came from, or resume its run: the next save writes it anew."
        ) from damage
    check_finite(
        tensors,
        f"the model in {folder}",
        "Take another copy or train again with a lower --learning-rate.",
    )
    return tensors, config


def check_finite(tensors: Mapping[str, torch.Tensor], what: str, advice: str) -> None:
    """Raises CheckpointError that names the tensors of `what` with NaN or infinity in them.

    One pass over the weights at the speed of memory, a tenth of what hashing them takes.
    """
    bad = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        named = ", ".join(_not_finite(name, tensors[name]) for name in bad[:_NAMED])
        more = f", and {len(bad) - _NAMED} more tensors" if len(bad) > _NAMED else ""
        raise CheckpointError(
            f"{what[0].upper()}{what[1:]} has weights that are not finite numbers: {named}{more}. "
            f"Its training "
            f"diverged, or the file is damaged. {advice}"
        )


_NAMED = 3  # tensors that an error names


def _is_finite(tensor: torch.Tensor) -> bool:
    if not (tensor.is_floating_point() and tensor.numel()):
        return True
    # The smallest and largest value are NaN where there is one. `isfinite().all()` takes twenty
    # times as long.
    return all(bound.isfinite().item() for bound in torch.aminmax(tensor.detach()))


def _not_finite(name: str, tensor: torch.Tensor) -> str:
    n_nan, n_infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    kinds = [f"{n:,} {kind}" for n, kind in ((n_nan, "NaN"), (n_infinite, "infinite")) if n]
    return f"{name} ({' and '.join(kinds)} of {tensor.numel():,} values)"


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Writes a safetensors file of CPU tensors; returns its size and SHA-256. Raises OSError
    where it cannot.
    """
    return _write(path, _safetensors(tensors, metadata))


class _DamagedError(Exception):
    """A checkpoint that is not what was written; says which file, what was found and what was
    wanted.
    """


def _read(folder: Path, step: int) -> Checkpoint:
    manifest = _read_json(folder / "manifest.json")
    _check_version(manifest, folder)
    try:
        if manifest["step"] != step:
            raise _DamagedError(f"manifest.json is of step {manifest['step']}, wanted {step}")
        wanted = {name: (file["size"], file["sha256"]) for name, file in manifest["files"].items()}
        written_with = manifest["torch"]
    except (KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"manifest.json is not as it was written ({error!r})") from error
    tensors, state = {}, {}
    for name, (size, sha256) in wanted.items():
        # Tensors are then a map of the file, not a copy: of many processes each would have one, and
        # of FSDP2's each needs a part.
        path = folder / name
        n_bytes, found = _hash_of(path)
        if n_bytes != size:
            raise _DamagedError(f"{name} has {n_bytes:,} bytes, wanted {size:,}")
        if found != sha256:
            raise _DamagedError(f"{name} has SHA-256 {found[:12]}..., wanted {sha256[:12]}...")
        if name == "state.json":
            state = foreign_json.parse(_read_bytes(path))
        else:
            tensors[name.removesuffix(".safetensors")] = safetensors.torch.load_file(path)
    if written_with != str(torch.__version__):  # else compared as versions
        logger.warning(
            "%s was written with torch %s, and this is %s: numbers from here on may differ in "
            "their last bits.",
            folder,
            written_with,
            torch.__version__,
        )
    return Checkpoint(step, tensors, state, _about(manifest))


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file that carries the SHA-256 of its tensors' bytes; without it the
    structure alone is checked.
    """
    data = _read_bytes(path)
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise _DamagedError(
            f"{path.name} is no whole safetensors file of {len(data):,} bytes ({error})"
        ) from error
    start = 8 + int.from_bytes(data[:8], "little")
    wanted = foreign_json.parse(data[8:start]).get("__metadata__", {}).get("sha256")
    found = hashlib.sha256(memoryview(data)[start:]).hexdigest()
    if wanted not in (None, found):
        raise _DamagedError(f"{path.name} has SHA-256 {found[:12]}..., wanted {wanted[:12]}...")
    return tensors


def _prune(run: Path, step: int, keep: int, best_step: int | None) -> None:
    kept = {*[older for older in available(run) if older <= step][-keep:], best_step}
    for older, folder in _folders(run):
        superseded = folder.name != _name(older) and folder.with_name(_name(older)).exists()
        if (older <= step and older not in kept) or superseded:
            try:
                atomic.remove(folder)
            except StorageError as error:  # what was to be saved is saved: no reason to end the run
                logger.warning("The old checkpoint %s cannot be removed. %s", folder, error)


def _folders(run: Path) -> list[tuple[int, Path]]:
    """All checkpoints, newest first; behind one that was being replaced, if it is still there,
    the one it replaces.
    """
    place = run / "checkpoints"
    try:
        paths = list(place.iterdir()) if place.is_dir() else []
    except OSError as error:
        raise CheckpointError(
            f"{place} cannot be read: {error.strerror}. Look after its permissions."
        ) from error
    matches = [(match, path) for path in paths if (match := _FOLDER.fullmatch(path.name))]
    found = sorted(
        ((int(match[1]), match[2] is None, path) for match, path in matches), reverse=True
    )
    return [(step, path) for step, _, path in found]


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _assert_given_once(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """A tied tensor saved twice would come back as two."""
    seen: dict[tuple[torch.device, int], str] = {}
    for group, named in tensors.items():
        assert re.fullmatch(r"\w+", group), group
        for name, tensor in named.items():
            if tensor.numel():
                first = seen.setdefault((tensor.device, tensor.data_ptr()), f"{group}.{name}")
                assert first == f"{group}.{name}", (
                    f"{group}.{name} lies where {first} lies: give a tied tensor once"
                )


def _safetensors(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The content of a safetensors file: length of the header, header (JSON), and each tensor's
    bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in _in_file_order(tensors):
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        header[name] = {
            "dtype": _TYPES[tensors[name].dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = to_json(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the tensors start at a multiple of 8
    yield len(text).to_bytes(8, "little") + text
    for name in _in_file_order(tensors):
        yield _bytes(tensors[name])


def _in_file_order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Widest types first: so each tensor starts at a multiple of its type's size, without gaps."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's elements, row by row, as they lie in memory. Little-endian, as is every machine
    torch is built for.
    """
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Writes a file and returns its entry in the manifest."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
        return {"size": file.tell(), "sha256": digest.hexdigest()}


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
        raise _DamagedError(f"the JSON in {where} has format_version {version!r}, wanted a number")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{where} was written by lmsmith {signed.get('lmsmith')} in format {version}, and "
            f"this is lmsmith "
            f"{__version__}, which knows formats up to {FORMAT_VERSION}: upgrade it (pip install "
            f"--upgrade lmsmith)."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = foreign_json.parse(_read_bytes(path))
    except ValueError as error:
        raise _DamagedError(f"{path.name} {str(error).removeprefix('it ')}") from error
    if not isinstance(content, dict):
        raise _DamagedError(f"{path.name} holds a {type(content).__name__}, wanted an object")
    return content


def _read_bytes(path: Path) -> bytes:
    with _damage_named(path):
        return path.read_bytes()


def _hash_of(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file."""
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
