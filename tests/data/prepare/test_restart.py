"""Preparation that is killed, refused, or out of disk space: it resumes, and the result is the
same.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from lmsmith.data.prepare import assemble, build, encode, engines, plan
from lmsmith.data.prepare.build import build_shards
from lmsmith.errors import ConfigError, DataError, LmsmithError, StorageError

N_FILES = 120


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small units, added as they come; skips fsync."""
    monkeypatch.setattr(os, "fsync", lambda number: None)
    monkeypatch.setattr(plan, "OPENING", 0)
    monkeypatch.setattr(plan, "UNIT_BYTES", (600, 600))
    monkeypatch.setattr(assemble, "SYNC_SECONDS", 0.0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(N_FILES):
        repeated = i % 17  # some are equal
        (folder / f"{i:03}.txt").write_text(
            f"text number {repeated or i} " * (3 + repeated or i % 40), encoding="utf-8"
        )
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def prepare(source: Path, out: Path, **options) -> None:
    settings = {
        "tokenizer": "byte",
        "shard_tokens": 1500,
        "validation_fraction": 0.2,
        "workers": 2,
        "dedup": "exact",
    }
    build_shards([str(source)], out, **{**settings, **options})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_killed_at_any_moment(source, tmp_path, monkeypatch):
    """Until it is complete: the same folder, and no finished unit is done again."""
    prepare(source, tmp_path / "wanted")
    wanted = contents(tmp_path / "wanted")
    log = tmp_path / "log"

    def logged(job, number, unit):
        with log.open("a") as file:
            file.write(f"begun {number}\n")
        time.sleep(0.005)
        encode_unit(job, number, unit)
        with log.open("a") as file:
            file.write(f"done {number}\n")

    encode_unit = encode.encode_unit
    monkeypatch.setattr(build, "encode_unit", logged)
    chance, out = random.Random(4), tmp_path / "out"
    n_killed = n_lines = 0
    log.touch()
    while not out.exists():
        workers, seconds_between = chance.choice([1, 2, 3]), chance.choice([0.0, 0.05, 1e9])
        child = os.fork()
        if child == 0:
            assemble.SYNC_SECONDS = seconds_between
            try:
                prepare(source, out, workers=workers)
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        n_lines += chance.randrange(25)  # how far it gets
        until = time.monotonic() + 60
        while (
            log.read_text().count("\n") < n_lines and not out.exists() and time.monotonic() < until
        ):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        n_killed += status != 0
    assert contents(out) == wanted
    assert n_killed > 3
    done = set()
    for line in log.read_text().splitlines():
        what, number = line.split()
        assert number not in done, f"unit {number} was finished, and was encoded again"
        if what == "done":
            done.add(number)
    assert len(done) > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out", "texts", "wanted"]


def stopped(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int, **options
) -> None:
    """Prepares until a number of units are encoded."""
    n_done = 0

    def limited(job, number, unit):
        nonlocal n_done
        if n_done == after:
            raise KeyboardInterrupt
        n_done += 1
        encode.encode_unit(job, number, unit)

    with monkeypatch.context() as patch:
        patch.setattr(build, "encode_unit", limited)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, out, workers=1, **options)


def test_resuming_with_other_settings_is_refused(source, tmp_path, monkeypatch):
    stopped(source, tmp_path / "out", monkeypatch, 5)
    for options, told in [
        ({"shard_tokens": 2000}, "shard_tokens was 1500 and is 2000"),
        ({"dedup": "none"}, "dedup was 'exact' and is 'none'"),
        ({"tokenizer": "bpe:300"}, "tokenizer was "),
        ({"validation_fraction": 0.3}, "validation_fraction was 0.2 and is 0.3"),
    ]:
        with pytest.raises(ConfigError, match="was started with other settings") as caught:
            prepare(source, tmp_path / "out", **options)
        assert told in str(caught.value)
    (source / "new.txt").write_text("and one more")
    with pytest.raises(DataError, match="files were added, removed or modified"):
        prepare(source, tmp_path / "out")
    (source / "new.txt").unlink()
    # The number of workers and skip_bad may change.
    prepare(source, tmp_path / "out", workers=3, skip_bad=True)
    with pytest.raises(StorageError, match="already exists and is not overwritten"):
        prepare(source, tmp_path / "out")


def test_settings_may_change_before_any_work_is_done(source, tmp_path):
    with pytest.raises(LmsmithError, match="vocabulary of 100 is too small"):
        prepare(source, tmp_path / "out", tokenizer="bpe:100")
    prepare(source, tmp_path / "wanted", tokenizer="bpe:300")
    prepare(source, tmp_path / "out", tokenizer="bpe:300")
    assert contents(tmp_path / "out") == contents(tmp_path / "wanted")


def test_a_file_that_changes_during_preparation(source, tmp_path, monkeypatch):
    def changing(job, number, unit):
        encode.encode_unit(job, number, unit)
        (source / "003.txt").write_text("other than it was")

    monkeypatch.setattr(build, "encode_unit", changing)
    with pytest.raises(DataError, match=r"003\.txt changed while it was being prepared"):
        prepare(source, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_units_damaged_by_a_power_cut_are_done_again(source, tmp_path, monkeypatch):
    prepare(source, tmp_path / "wanted")
    monkeypatch.setattr(assemble, "SYNC_SECONDS", 1e9)
    stopped(source, tmp_path / "out", monkeypatch, 9)
    units = tmp_path / "out.partial" / "work" / "units"
    assert len(list(units.glob("*.ids"))) == 9
    spoilt = bytearray((units / "0000004.ids").read_bytes())
    spoilt[10:20] = bytes(10)
    (units / "0000004.ids").write_bytes(spoilt)
    (units / "0000005.json").write_text("")
    (units / "0000006.records").unlink()
    begun = []

    def logged(job, number, unit):
        begun.append(number)
        encode.encode_unit(job, number, unit)

    monkeypatch.setattr(build, "encode_unit", logged)
    prepare(source, tmp_path / "out", workers=1)
    assert begun[:4] == [4, 5, 6, 9]
    assert contents(tmp_path / "out") == contents(tmp_path / "wanted")


def test_a_full_disk_can_be_resumed(source, tmp_path, monkeypatch):
    """The disk is full when a unit or a shard is written; with free space, it resumes."""
    prepare(source, tmp_path / "wanted")
    full = OSError(28, "No space left on device")

    def failing(*_):
        raise full

    for target, name in (
        (encode._Output, "write"),
        (assemble.ShardWriter, "append"),
        (assemble.ShardWriter, "sync"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, failing)
            with pytest.raises(StorageError, match="No space left on the disk") as caught:
                prepare(source, tmp_path / "out")
        assert "the same command continues from there" in str(caught.value)
        assert not (tmp_path / "out").exists()
    prepare(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "wanted")


def test_two_processes_at_the_same_time(source, tmp_path, monkeypatch):
    def second(job, number, unit):
        with pytest.raises(StorageError, match="another process is working"):
            prepare(source, tmp_path / "out")
        raise DataError("it was refused")

    monkeypatch.setattr(build, "encode_unit", second)
    with pytest.raises(LmsmithError, match="it was refused"):
        prepare(source, tmp_path / "out", workers=1)


def test_another_process_finishes_during_planning(source, tmp_path, monkeypatch):
    def slowly(*given, **options):
        made = plan.make_plan(*given, **options)
        monkeypatch.undo()
        prepare(source, tmp_path / "out")
        return made

    monkeypatch.setattr(build, "make_plan", slowly)
    with pytest.raises(StorageError, match="already exists and is not overwritten"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def _die(job, number, unit):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_killed_for_its_memory(source, tmp_path, monkeypatch):
    prepare(source, tmp_path / "wanted")
    monkeypatch.setattr(engines, "MANY_BYTES", 0)
    with monkeypatch.context() as patch:
        patch.setattr(build, "encode_unit", _die)
        with pytest.raises(
            DataError, match=r"an encoding process was killed.*fewer --workers than 2"
        ):
            prepare(source, tmp_path / "out")
    prepare(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "wanted")


def test_a_folder_within_its_source(tmp_path, monkeypatch):
    """Finished and unfinished preparations are not read as text of the folder that
    contains them.
    """
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name} text " * 90)
    stopped(tmp_path, tmp_path / "one", monkeypatch, 2)
    for name in ("one", "two"):
        prepare(tmp_path, tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
