"""Checkpoints against the safetensors library and hashlib, with processes that are really
killed.
"""

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

import lmsmith
from lmsmith import checkpoint
from lmsmith.checkpoint import available, load_checkpoint, load_model, save_checkpoint, save_model
from lmsmith.errors import CheckpointError, StorageError
from lmsmith.weights_file import WeightsFile

can_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or sys.platform == "darwin", reason="forks a process with torch"
)
Groups = dict[str, dict[str, torch.Tensor]]


def groups_of(step: int) -> Groups:
    """Tensors that depend only on the step, so that a mixture of two checkpoints shows."""
    weights = torch.arange(500, dtype=torch.float32) + step
    return {
        "model": {"w": weights, "b": weights[:3].double()},
        "optimizer": {"m": weights * 2, "t": torch.tensor(step)},
    }


def save(run: Path, step: int, *, keep: int = 9, best_step: int | None = None) -> Path:
    return save_checkpoint(run, step, groups_of(step), {"is": step}, keep=keep, best_step=best_step)


def assert_same(found: Groups, wanted: Groups) -> None:
    assert {group: set(named) for group, named in found.items()} == {
        g: set(named) for g, named in wanted.items()
    }
    for group, named in wanted.items():
        for name, tensor in named.items():
            other = found[group][name]
            assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), name
            assert raw(other) == raw(tensor), name


def raw(tensor: torch.Tensor) -> list[int]:
    """Bits, so that NaN equals NaN and 0 differs from -0."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).tolist()


def assert_is(found: checkpoint.Checkpoint, step: int) -> None:
    assert found.step == step
    assert found.state == {"is": step}
    assert_same(found.tensors, groups_of(step))


def names(place: Path) -> list[str]:
    return sorted(entry.name for entry in place.iterdir())


def every_kind() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    odd = torch.tensor(
        [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 5e-324, 1e-40, 1 / 3],
        dtype=torch.float64,
    )
    return {
        "float64": odd,
        "float32": odd.float(),
        "float16": odd.half(),
        "bfloat16": odd.bfloat16(),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "int32": torch.tensor([-(2**31), 7], dtype=torch.int32),
        "int16": torch.tensor([[-5], [5]], dtype=torch.int16),
        "int8": torch.tensor([-128], dtype=torch.int8),
        "bool": torch.tensor([True, False, True]),
        "random state": generator.get_state(),
        "scalar": torch.tensor(0.1),
        "scalar bool": torch.tensor(True),
        "none": torch.zeros(0, dtype=torch.int64),
        "none of many": torch.zeros(3, 0, 5, dtype=torch.bfloat16),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "every second": torch.arange(7)[::2],
        "needs gradient": torch.ones(2, 2, requires_grad=True),
        "parameter": torch.nn.Parameter(torch.full((3,), 0.5)),
        'Ж "quoted"\n': torch.ones(1),
    }


def test_every_dtype_round_trips_exactly(tmp_path: Path) -> None:
    groups: Groups = {"model": every_kind(), "optimizer": {}, "rng": {"cpu": torch.get_rng_state()}}
    state = {
        "seconds": 0.1 + 0.2,
        "best": float("inf"),
        "nested": {"list": [1, None, True, "ü"]},
        "tiny": 5e-324,
    }
    folder = save_checkpoint(tmp_path, 1000, groups, state, keep=1)
    assert folder == tmp_path / "checkpoints" / "step-00001000"
    loaded = load_checkpoint(tmp_path)
    assert (loaded.step, loaded.state) == (1000, state | {"best": None})  # JSON has no infinity
    assert_same(loaded.tensors, groups)
    for group in groups:  # the library that defines the format reads the same
        assert_same(
            {group: safetensors.torch.load_file(folder / f"{group}.safetensors")},
            {group: groups[group]},
        )


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_weights_that_are_not_finite_are_refused_by_name(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = torch.finfo(dtype)
    good = {
        "largest": torch.tensor([[limits.max, limits.min], [limits.tiny, -0.0]], dtype=dtype),
        "none": torch.zeros(0, 3, dtype=dtype),
        "scalar": torch.tensor(limits.max, dtype=dtype),
        "counts": torch.tensor([2**62]),
    }
    save_model(tmp_path, good, {})
    assert_same({"model": load_model(tmp_path)[0]}, {"model": good})
    weight = torch.zeros(5000, 3, dtype=dtype)
    weight[4999, 1:], weight[7, 0] = float("nan"), -float("inf")
    bad = good | {"blocks.0.weight": weight, "scalar": torch.tensor(float("inf"), dtype=dtype)}
    save_model(tmp_path, bad, {})
    closed, close = list[bool](), WeightsFile.close
    monkeypatch.setattr(WeightsFile, "close", lambda self: closed.append(True) or close(self))
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"The model in {tmp_path} has weights that are not finite numbers: ")
    assert "blocks.0.weight (2 NaN and 1 infinite of 15,000 values)" in message
    assert closed == [True]  # else Windows could not replace the file
    assert "scalar (1 infinite of 1 values)" in message
    assert "largest" not in message
    many = {f"bad {i}": torch.tensor([float("nan")], dtype=dtype) for i in range(9)}
    save_model(tmp_path, many, {})
    with pytest.raises(CheckpointError, match="and 6 more tensors"):
        load_model(tmp_path)


def test_tensors_are_aligned_as_the_library_aligns_them(tmp_path: Path) -> None:
    tensors = {
        "a": torch.ones(3, dtype=torch.uint8),
        "b": torch.ones(3, dtype=torch.float64),
        "c": torch.ones(1),
    }
    data = (
        save_checkpoint(tmp_path, 1, {"model": tensors}, {}, keep=1) / "model.safetensors"
    ).read_bytes()
    assert len(data) == len(safetensors.torch.save(tensors))
    header = int.from_bytes(data[:8], "little")
    assert header % 8 == 0
    for entry in json.loads(data[8 : 8 + header]).values():
        size = {"U8": 1, "F32": 4, "F64": 8}[entry["dtype"]]
        assert entry["data_offsets"][0] % size == 0


def test_the_manifest_lists_the_files(tmp_path: Path) -> None:
    folder = save(tmp_path, 20)
    assert names(folder) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["format_version"], manifest["lmsmith"]) == (1, lmsmith.__version__)
    assert (manifest["torch"], manifest["step"]) == (torch.__version__, 20)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        data = (folder / name).read_bytes()
        assert manifest["files"].pop(name) == {
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    assert manifest["files"] == {}


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = save(tmp_path, 1)
        save_model(tmp_path / "model", {"w": torch.ones(1)}, {})
    finally:
        os.umask(before)
    for path in (folder / "model.safetensors", tmp_path / "model" / "model.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_tied_tensor_given_twice_is_refused(tmp_path: Path) -> None:
    table = torch.ones(4, 3)
    with pytest.raises(AssertionError, match=r"model\.head shares memory with model\.table"):
        save_checkpoint(
            tmp_path, 1, {"model": {"table": table, "head": table.view(3, 4)}}, {}, keep=1
        )
    with pytest.raises(AssertionError, match=r"ema\.table shares memory with model\.table"):
        save_checkpoint(
            tmp_path, 1, {"model": {"table": table}, "ema": {"table": table}}, {}, keep=1
        )
    save_checkpoint(
        tmp_path,
        1,
        {"model": {"table": table[:2], "rest": table[2:], "none": table[:0]}},
        {},
        keep=1,
    )
    assert_same(
        load_checkpoint(tmp_path).tensors,
        {"model": {"table": table[:2], "rest": table[2:], "none": table[:0]}},
    )


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25):
        save(tmp_path, step, keep=2, best_step=10 if step >= 10 else 5)
    assert available(tmp_path) == [10, 20, 25]
    save(tmp_path, 30, keep=2, best_step=30)
    assert available(tmp_path) == [25, 30]
    save(tmp_path, 100_000_000, keep=1)
    assert available(tmp_path) == [100_000_000]
    assert names(tmp_path / "checkpoints") == ["step-100000000"]
    assert_is(load_checkpoint(tmp_path), 100_000_000)


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 7):
        save(tmp_path, step)
    assert available(tmp_path) == [7, 99_999_999, 100_000_000]
    assert_is(load_checkpoint(tmp_path), 100_000_000)
    assert_is(load_checkpoint(tmp_path, 7), 7)


def test_a_new_checkpoint_is_never_removed_for_later_ones(tmp_path: Path) -> None:
    """A run goes back to step 10 because 20 and 30 are damaged, and is killed before it reaches
    them again.
    """
    for step in (10, 20, 30):
        save(tmp_path, step)
    save(tmp_path, 12, keep=1)
    assert available(tmp_path) == [12, 20, 30]
    save(tmp_path, 20, keep=1)
    assert available(tmp_path) == [20, 30]


def test_a_step_may_be_saved_again(tmp_path: Path) -> None:
    save_checkpoint(
        tmp_path, 10, {"model": {"w": torch.zeros(9)}, "old": {}}, {"was": "different"}, keep=1
    )
    save(tmp_path, 10, keep=1)
    assert_is(load_checkpoint(tmp_path), 10)
    assert names(tmp_path / "checkpoints") == ["step-00000010"]


def test_leftovers_of_killed_saves_are_removed(tmp_path: Path) -> None:
    half = tmp_path / "checkpoints" / f".step-00000005.{os.getpid()}.partial"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert available(tmp_path) == []
    save(tmp_path, 10)
    assert not half.exists()


def test_the_old_checkpoint_is_used_until_it_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    save_checkpoint(tmp_path, 10, {"model": {"w": torch.zeros(9)}}, {"is": "old"}, keep=1)
    (place / "step-00000010").rename(
        place / "step-00000010.replaced"
    )  # state after a kill between the two renames
    assert available(tmp_path) == [10]
    assert load_checkpoint(tmp_path).state == {"is": "old"}
    save(tmp_path, 20)
    assert load_checkpoint(tmp_path, 10).state == {"is": "old"}
    shutil.copytree(
        place / "step-00000020", place / "step-00000020.replaced"
    )  # state after a kill after the second rename
    flip(place / "step-00000020" / "state.json")
    assert_is(load_checkpoint(tmp_path), 20)
    save(tmp_path, 20)
    old = save_checkpoint(tmp_path / "checkpoints", 20, {"model": {}}, {"is": "old"}, keep=1)
    shutil.move(old, place / "step-00000020.replaced")
    old.parent.rmdir()
    assert_is(load_checkpoint(tmp_path), 20)
    save(tmp_path, 30)
    assert names(place) == ["step-00000010.replaced", "step-00000020", "step-00000030"]
    save(tmp_path, 10)
    assert names(place) == ["step-00000010", "step-00000020", "step-00000030"]


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda at: flip(at / "model.safetensors"),
        r"model\.safetensors has SHA-256 \w{12}\.\.\., expected \w{12}\.\.\.",
    ),
    (lambda at: flip(at / "state.json", 10), r"state\.json has SHA-256"),
    (
        lambda at: cut(at / "optimizer.safetensors"),
        r"optimizer\.safetensors has [\d,]+ bytes, expected [\d,]+",
    ),
    (
        lambda at: (at / "optimizer.safetensors").write_bytes(b""),
        r"optimizer\.safetensors has 0 bytes, expected 2,\d+",
    ),
    (lambda at: (at / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    (lambda at: (at / "manifest.json").unlink(), r"manifest\.json is missing"),
    (lambda at: cut(at / "manifest.json"), r"manifest\.json is not JSON"),
    (lambda at: (at / "manifest.json").write_bytes(b"\xff\xfe"), r"manifest\.json is not JSON"),
    (
        lambda at: (at / "manifest.json").write_bytes(b"[]"),
        r"manifest\.json holds a list, expected an object",
    ),
    (
        lambda at: (at / "manifest.json").write_bytes(b"{}"),
        r"format_version None, expected a number",
    ),
    (
        lambda at: replace(at / "manifest.json", '"files"', '"fires"'),
        r"not valid .*'files'",
    ),
    (
        lambda at: replace(at / "manifest.json", '"step": 20', '"step": 21'),
        r"is for step 21, expected 20",
    ),
    (
        lambda at: replace(at / "manifest.json", "optimizer.safe", "momentum.safe"),
        r"momentum\.safetensors is missing",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], message: str
) -> None:
    save(tmp_path, 10)
    folder = save(tmp_path, 20)
    damage(folder)
    with caplog.at_level(logging.WARNING):
        assert_is(load_checkpoint(tmp_path), 10)
    (warning,) = caplog.messages
    assert "step-00000020 is damaged: " in warning
    caplog.clear()
    with pytest.raises(
        CheckpointError, match=rf"No checkpoint of step 20 .*step-00000020: .*{message}"
    ):
        load_checkpoint(tmp_path, 20)
    damage_all = pytest.raises(
        CheckpointError,
        match=rf"is complete\. step-00000020: .*{message}.*step-00000010: state\.json",
    )
    flip(tmp_path / "checkpoints" / "step-00000010" / "state.json")
    with damage_all:
        load_checkpoint(tmp_path)


def test_every_byte_counts(tmp_path: Path) -> None:
    """A flip of any single bit in the verified files is detected."""
    folder = save_checkpoint(tmp_path, 1, {"model": {"w": torch.ones(2)}}, {"a": 1}, keep=1)
    for name in ("model.safetensors", "state.json"):
        whole = (folder / name).read_bytes()
        for at in range(len(whole)):
            flip(folder / name, at)
            with pytest.raises(CheckpointError, match=f"{name} has SHA-256"):
                load_checkpoint(tmp_path)
            (folder / name).write_bytes(whole)
    assert load_checkpoint(tmp_path).step == 1


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 10)
    manifest = save(tmp_path, 20) / "manifest.json"
    replace(manifest, '"format_version": 1', '"format_version": 2')
    replace(manifest, f'"lmsmith": "{lmsmith.__version__}"', '"lmsmith": "9.1.0"')
    with pytest.raises(
        CheckpointError,
        match=r"step-00000020 was written by lmsmith 9\.1\.0 in format 2, .* Upgrade it",
    ):
        load_checkpoint(tmp_path)
    assert_is(load_checkpoint(tmp_path, 10), 10)


def test_another_torch_version_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = save(tmp_path, 20) / "manifest.json"
    replace(manifest, f'"torch": "{torch.__version__}"', '"torch": "1.13.1"')
    assert_is(load_checkpoint(tmp_path), 20)
    assert "was written with torch 1.13.1, and this is" in caplog.text


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no checkpoint: .* Start the run again"):
        load_checkpoint(tmp_path / "absent")
    save(tmp_path, 10)
    save(tmp_path, 20)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of step 15\. It has checkpoints of training 10, 20\."
    ):
        load_checkpoint(tmp_path, 15)


def test_an_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"checkpoints cannot be written because there is no folder .*absent"
    ):
        save(tmp_path / "absent", 10)
    (tmp_path / "checkpoints").write_bytes(b"")
    with pytest.raises(
        StorageError, match=r"checkpoints cannot be written, another file or folder is in the way"
    ):
        save(tmp_path, 10)
    with pytest.raises(StorageError, match=r"no folder"):
        save_model(tmp_path / "absent" / "model", {}, {})


class FullDisk:
    """Replaces a file opened for writing: accepts `room` bytes, then fails like a full disk."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: Any) -> None:
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.file.write(data)


@pytest.mark.parametrize("room", [0, 600, 10**9])
def test_a_disk_that_fills_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """In the header or the tensors of the first file, or, with room for 10**9, in the last file."""
    save(tmp_path, 10, keep=1)
    save_model(tmp_path / "model", groups_of(10)["model"], {"n": 10})
    opened = Path.open

    def open_full(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = opened(self, mode, *rest, **more)
        full = "w" in mode and (room < 10**9 or self.name == "manifest.json")
        return FullDisk(file, room % 10**9) if full else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        with pytest.raises(
            StorageError, match=r"No space left .*step-00000020: free some.* step 10 is untouched"
        ):
            save(tmp_path, 20, keep=1)
        with pytest.raises(StorageError, match=r"No space left .*step-00000010: free some"):
            save(tmp_path, 10, keep=1)
        if room < 10**9:
            with pytest.raises(StorageError, match=r"No space left"):
                save_model(tmp_path / "model", groups_of(20)["model"], {"n": 20})
    assert names(tmp_path / "checkpoints") == ["step-00000010"]
    assert names(tmp_path / "model") == ["config.json", "model.safetensors"]
    assert_is(load_checkpoint(tmp_path), 10)
    assert_same({"model": load_model(tmp_path / "model")[0]}, {"model": groups_of(10)["model"]})


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    import resource

    save(tmp_path, 10, keep=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(
            StorageError,
            match=r"step-00000020 exceeds the largest file size allowed here: raise the limit",
        ):
            save(tmp_path, 20, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path / "checkpoints") == ["step-00000010"]
    assert_is(load_checkpoint(tmp_path), 10)


def killed_after(task: Callable[[], object], seconds: float | None = None) -> int:
    """Runs `task` in its own process, SIGKILLs it after a delay, and returns its exit code."""
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()

    def begin() -> None:
        begun.set()
        task()

    process = fork.Process(target=begin)
    process.start()
    if seconds is not None:
        assert begun.wait(timeout=300)
        time.sleep(seconds)
        process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@can_fork
def test_twenty_kills_at_random_moments(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def train(step: int) -> None:
        while True:  # saves the loaded step again, like a run that is stopped at once
            save(tmp_path, step, keep=2)
            save_model(tmp_path / "model", groups_of(step)["model"], {"n": 3})
            step += 1

    dice = random.Random(1)
    start = time.perf_counter()
    save(tmp_path, 1)
    save_model(tmp_path / "model", groups_of(1)["model"], {"n": 3})
    one_save = time.perf_counter() - start
    reached = [1]
    while len(reached) <= 20 or reached[-1] < 5:  # more than twenty on a busy machine
        assert (
            killed_after(lambda: train(reached[-1]), dice.uniform(0, 5 * one_save))
            == -signal.SIGKILL
        )
        loaded = load_checkpoint(tmp_path)
        assert_is(loaded, loaded.step)
        assert loaded.step >= reached[-1]
        reached.append(loaded.step)
        weights, config = load_model(tmp_path / "model")
        assert config == {"n": 3}
        assert int(weights["w"][0]) in (loaded.step, loaded.step - 1)
        assert_same({"model": weights}, {"model": groups_of(int(weights["w"][0]))["model"]})
    assert caplog.messages == [], "a kill leaves nothing damaged"
    save(tmp_path, reached[-1], keep=2)
    assert len(names(tmp_path / "checkpoints")) == 2


def moments(kill_at: int) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that kills its own process at its n-th access to the file system."""
    left = [kill_at]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in (
            "open",
            "os.rename",
            "os.mkdir",
            "os.remove",
            "os.rmdir",
            "os.listdir",
            "os.scandir",
        ):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


@can_fork
@pytest.mark.parametrize("step", [10, 20], ids=["the only one again", "the next"])
def test_a_kill_at_each_moment_of_a_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: int
) -> None:
    def dying_save(run: Path, kill_at: int) -> None:
        sys.addaudithook(moments(kill_at))
        save_checkpoint(run, step, groups_of(step), {"is": step}, keep=1)

    def runs() -> Iterator[tuple[Path, int]]:
        for kill_at in range(1, 200):
            run = tmp_path / f"{kill_at}"
            run.mkdir()
            save_checkpoint(run, 10, groups_of(10), {"is": 10, "old": True}, keep=1)
            yield run, killed_after(lambda run=run, kill_at=kill_at: dying_save(run, kill_at))

    seen = set()
    n_killed = 0
    for run, exit_code in runs():
        loaded = load_checkpoint(run)
        old = "old" in loaded.state
        seen.add(old)
        assert_same(loaded.tensors, groups_of(10 if old else step))
        assert exit_code in (0, -signal.SIGKILL)
        if exit_code == 0:
            assert not old
            break
        n_killed += 1
        save(run, 30, keep=1)  # the next save succeeds and cleans up
        assert names(run / "checkpoints") == ["step-00000030"]
    assert n_killed > 15
    assert seen == {True, False}
    assert caplog.messages == []


def test_a_model_round_trips_and_other_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(folder, every_kind(), {"kind": "gpt", "n_layer": 2})
    (folder / "tokenizer.json").write_bytes(b"{}")
    save_model(folder, {"w": torch.ones(2)}, {"kind": "gpt", "n_layer": 3})
    tensors, config = load_model(folder)
    assert config == {"kind": "gpt", "n_layer": 3}
    assert_same({"model": tensors}, {"model": {"w": torch.ones(2)}})
    assert names(folder) == ["config.json", "model.safetensors", "tokenizer.json"]
    finite = {name: tensor for name, tensor in every_kind().items() if tensor.isfinite().all()}
    save_model(folder, finite, {})
    assert_same({"model": load_model(folder)[0]}, {"model": finite})


def test_a_model_saved_by_the_library_loads(tmp_path: Path) -> None:
    save_model(tmp_path, {"w": torch.ones(2)}, {"n": 1})
    safetensors.torch.save_file({"w": torch.zeros(5)}, tmp_path / "model.safetensors")
    assert load_model(tmp_path)[0]["w"].tolist() == [0.0] * 5


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    def told(message: str) -> None:
        with pytest.raises(
            CheckpointError,
            match=rf"The model in .* cannot be loaded: {message}.* Copy it again from",
        ):
            load_model(tmp_path)

    told(r"config\.json is missing")
    save_model(tmp_path, {"w": torch.ones(2)}, {"n": 1})
    whole = (tmp_path / "model.safetensors").read_bytes()
    flip(tmp_path / "model.safetensors")
    told(r"model\.safetensors has SHA-256 \w{12}\.\.\., expected \w{12}")
    for length in range(len(whole)):
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        told(r"model\.safetensors is not a complete safetensors file")
    (tmp_path / "model.safetensors").unlink()
    told(r"model\.safetensors is missing")
    replace(tmp_path / "config.json", '"config"', '"confit"')
    told(r"config\.json contains no config")
    replace(tmp_path / "config.json", '"format_version": 1', '"format_version": 3')
    with pytest.raises(
        CheckpointError, match=r"config\.json was written by lmsmith .* in format 3, .* Upgrade it"
    ):
        load_model(tmp_path)
