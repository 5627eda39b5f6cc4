"""Reading ahead against plain reading: the same rows for any requests, errors where their rows are
requested, a clean end.
"""

import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from lmsmith.data.batches.read_ahead import DEPTH, ReadAhead
from lmsmith.data.batches.windows import Batch, Batches
from lmsmith.errors import DataError

B, T = 6, 5
PARTS = [(0, 2), (2, 4), (4, 6)]


def parts(step: int) -> list[tuple[int, int]]:
    return PARTS


def batches() -> Batches:
    return Batches(np.arange(500, dtype=np.uint16), context_length=T, batch_size=B, seed=1)


class Recorded:
    """Batches that record what is read, block until released, and fail at one step."""

    def __init__(self, fails_at: int = -1) -> None:
        self.plain, self.fails_at = batches(), fails_at
        self.read: list[tuple[int, int, int | None]] = []
        self.gate = threading.Event()
        self.gate.set()

    tokens_per_batch = B * T

    def n_targets(self, step: int) -> int:
        return 10 * step

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Batch:
        assert self.gate.wait(10)
        self.read.append((step, start, end))
        if step == self.fails_at:
            raise DataError("the shard is gone")
        return self.plain.rows(step, start, end)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read ahead"]


@hypothesis.settings(deadline=None, max_examples=40)
@given(
    some.lists(some.tuples(some.integers(0, 30), some.integers(0, 7), some.booleans()), max_size=6)
)
def test_the_rows_are_those_of_the_batches(jumps: list[tuple[int, int, bool]]) -> None:
    """Ranges of training from anywhere to anywhere, with unexpected rows among them."""
    plain = batches()
    with ReadAhead(plain, parts) as ahead:
        for first, n, unforeseen in jumps:
            for step in range(first, first + n):
                for part in PARTS:
                    found, wanted = ahead.rows(step, *part), plain.rows(step, *part)
                    assert np.array_equal(found.inputs, wanted.inputs)
                    assert np.array_equal(found.targets, wanted.targets)
                if unforeseen:
                    assert np.array_equal(
                        ahead.rows(step, 1, 6).inputs, plain.rows(step, 1, 6).inputs
                    )
                    assert np.array_equal(ahead.rows(step).inputs, plain.rows(step).inputs)
    assert not readers()


def test_reads_ahead_in_order_up_to_depth() -> None:
    found = Recorded()
    with ReadAhead(found, parts) as ahead:
        ahead.rows(3, 2, 4)
        until = time.monotonic() + 10
        while len(found.read) < DEPTH + 2 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        wanted = [(3, 2, 4), (3, 4, 6), (4, 0, 2), (4, 2, 4), (4, 4, 6), (5, 0, 2)]
        assert (
            found.read == wanted[: DEPTH + 2]
        )  # one returned, DEPTH in the queue, one waiting for room
        assert ahead.n_targets(7) == 70
        assert ahead.tokens_per_batch == B * T


def test_parts_may_differ_between_steps() -> None:
    found = Recorded()
    with ReadAhead(
        found, lambda step: [(row, row + 2) for row in range(0, min(6, 2 * step), 2)]
    ) as ahead:
        for step, part in [(1, (0, 2)), (2, (0, 2)), (2, (2, 4)), *((3, part) for part in PARTS)]:
            assert np.array_equal(
                ahead.rows(step, *part).inputs, found.plain.rows(step, *part).inputs
            )
    assert len(found.read) == len(set(found.read)), "each was read once, ahead"


def test_an_error_is_raised_when_its_rows_are_requested() -> None:
    found = Recorded(fails_at=1)
    with ReadAhead(found, parts) as ahead:
        for part in PARTS:
            ahead.rows(0, *part)
        for _ in range(2):  # a repeated request reads again
            with pytest.raises(DataError, match="the shard is gone"):
                ahead.rows(1, 0, 2)
        assert not readers()
        assert np.array_equal(ahead.rows(2, 0, 2).inputs, found.plain.rows(2, 0, 2).inputs)


def test_closing_waits_only_for_the_current_read() -> None:
    """Whether the queue is full, or empty because the disk is slow."""
    full = Recorded()
    ahead = ReadAhead(full, parts)
    ahead.close()  # no thread has started
    ahead.rows(0, 0, 2)
    time.sleep(0.05)
    ahead.close()
    assert not readers()
    slow = Recorded()
    with pytest.raises(KeyboardInterrupt), ReadAhead(slow, parts) as ahead:  # noqa: PT012 - what is in between matters
        ahead.rows(0, 0, 2)
        slow.gate.clear()
        threading.Timer(0.1, slow.gate.set).start()
        raise KeyboardInterrupt
    assert not readers()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent by os.kill")
def test_a_signal_while_waiting_loses_no_rows() -> None:
    """A request that is interrupted and repeated gets its rows."""
    found = Recorded()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with ReadAhead(found, parts) as ahead:
            ahead.rows(0, 0, 2)
            time.sleep(0.02)
            for step in range(1, 4):
                found.gate.clear()
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - how many are ready is not said
                    for part in PARTS * 5:
                        ahead.rows(step, *part)
                found.gate.set()
                for part in PARTS:
                    wanted = found.plain.rows(step, *part).inputs
                    assert np.array_equal(ahead.rows(step, *part).inputs, wanted)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_rows_lost_to_a_signal_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes after they left the queue and before they are returned."""
    plain = batches()
    with ReadAhead(plain, parts) as ahead:
        ahead.rows(0, 0, 2)
        get = ahead._queue.get

        def interrupted() -> None:
            get()
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ahead._queue, "get", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ahead.rows(0, 2, 4)
        for part in PARTS[1:]:
            assert np.array_equal(ahead.rows(0, *part).inputs, plain.rows(0, *part).inputs)


def test_a_process_ends_without_close() -> None:
    code = textwrap.dedent("""
        import numpy as np
        from lmsmith.data.batches.windows import Batches
        from lmsmith.data.batches.read_ahead import ReadAhead
        plain = Batches(np.arange(500, dtype=np.uint16), context_length=5, batch_size=6, seed=1)
        ahead = ReadAhead(plain, lambda _: [(0, 6)])
        print(ahead.rows(3, 0, 6).inputs.sum())
    """)
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == batches().rows(3).inputs.sum()
