"""One process trains a run at a time: who is refused, and who takes over from whom."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmsmith.distributed.ranks import Ranks
from lmsmith.errors import StorageError, TrainingError, UsageError
from lmsmith.train import lock
from lmsmith.train.lock import check_held, held, held_by_first, trainer


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock, "DEAD_SECONDS", 0.4)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock, "_WATCH_SECONDS", 0.01)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def quiet(_: str) -> None:
    pytest.fail("there should be no message")


def left_behind(run: Path, *, boot: str, seconds_ago: float = 0.0) -> None:
    """Writes the record of another trainer, last touched `seconds_ago`."""
    record = {
        "host": "node7",
        "boot": boot,
        "process": 4242,
        "since": "yesterday",
        "token": "theirs",
    }
    (run / "trainer.json").write_text(json.dumps(record))
    then = time.time() - seconds_ago
    os.utime(run / "trainer.json", (then, then))


@contextmanager
def touched(run: Path) -> Iterator[None]:
    """Simulates a live trainer on another machine."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.02):
            os.utime(run / "trainer.json")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_second_trainer_is_refused_and_the_first_one_named(run: Path) -> None:
    with held(run, quiet):
        wanted = (
            rf"is being trained by process {os.getpid()} on this machine, since .* Nothing "
            rf"was changed"
        )
        with pytest.raises(UsageError, match=wanted), held(run, quiet):
            pass
        assert trainer(run) is not None
    assert trainer(run) is None
    with held(run, quiet):
        pass


def test_a_killed_trainer_on_this_machine_is_replaced_at_once(run: Path) -> None:
    left_behind(run, boot=lock._boot())
    with held(run, quiet):
        found = trainer(run)
        assert found is not None
        assert found.process == os.getpid()


def test_a_live_trainer_on_another_machine_is_not_replaced(run: Path) -> None:
    left_behind(run, boot="other")
    said: list[str] = []
    with (
        touched(run),
        pytest.raises(UsageError, match="process 4242 on node7, since yesterday"),
        held(run, said.append),
    ):
        pass
    assert len(said) == 1
    assert "waiting up to" in said[0]
    found = trainer(run)
    assert found is not None
    assert found.token == "theirs"


@pytest.mark.parametrize("seconds_ago", [0.0, 3600.0])
def test_a_dead_trainer_on_another_machine_is_replaced(run: Path, seconds_ago: float) -> None:
    left_behind(run, boot="other", seconds_ago=seconds_ago)
    said: list[str] = []
    with held(run, said.append):
        check_held(run)
    assert "counts as dead" in said[-1]
    assert len(said) == (1 if seconds_ago else 2)  # an old record is not watched


@pytest.mark.parametrize("alive", [True, False])
def test_a_disk_without_locks_uses_the_record(
    run: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    monkeypatch.setattr(lock, "_system_lock", lambda run: None)
    left_behind(run, boot=lock._boot())
    if alive:
        with (
            touched(run),
            pytest.raises(UsageError, match="process 4242"),
            held(run, lambda _: None),
        ):
            pass
    else:
        with held(run, lambda _: None):
            pass


def test_the_record_is_touched_while_a_run_trains(run: Path) -> None:
    with held(run, quiet):
        before = lock._mark(run)
        until = time.monotonic() + 10
        while lock._mark(run) == before:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_replaced_trainer_ends_and_leaves_the_other_alone(run: Path) -> None:
    check_held(run)  # a run that is not held here is not checked
    with held(run, quiet):
        check_held(run)
        left_behind(run, boot="other")
        with pytest.raises(TrainingError, match="is now trained by process 4242 on node7"):
            check_held(run)
    found = trainer(run)
    assert found is not None
    assert found.token == "theirs"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"host": 1}'])
def test_a_damaged_record_is_ignored(run: Path, content: str) -> None:
    (run / "trainer.json").write_text(content)
    with held(run, quiet):
        pass


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), held(tmp_path / "file" / "run", quiet):
        pass


def test_rank_zero_holds_the_lock_for_all(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_rank_zero(self: Ranks, make: Callable[[], str], patience: object = None) -> str:
        return make() if self.first else "held"

    monkeypatch.setattr(Ranks, "on_rank_zero", on_rank_zero)
    with held_by_first(run, Ranks(0, 2), quiet), held_by_first(run, Ranks(1, 2), quiet):
        assert trainer(run) is not None
