"""The scheduler alone: fair between clients, and its memory stays flat."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")

from running import Server, wait_until

from lmsmith.api import LM
from lmsmith.generate.engine import Request
from lmsmith.serve import queue
from lmsmith.serve.errors import ApiError
from lmsmith.serve.jobs import Job
from lmsmith.serve.pieces import Piece, Pieces
from lmsmith.serve.scheduler import Scheduler


def job(lm: LM, client: str, done: list[str], deadline: float = 60.0) -> Job:
    def deliver(piece: Piece) -> None:
        if piece.finish:
            done.append(client if piece.error is None else str(piece.error))

    request = Request(lm.writer.encode("A"), 3, seed=len(done))
    pieces = Pieces(lm.writer, (), False)
    return Job(lm.writer, request, pieces, client, deliver, time.monotonic() + deadline)


def test_clients_take_turns(lm: LM) -> None:
    scheduler, done = Scheduler(n_slots=1), []  # type: ignore[var-annotated]
    scheduler.submit([job(lm, "many", done) for _ in range(6)])
    scheduler.submit([job(lm, "few", done) for _ in range(2)])
    scheduler.start()
    wait_until(lambda: len(done) == 8)
    scheduler.stop()
    assert done[:4] == ["many", "few", "many", "few"]


def test_an_address_with_many_users_has_one_turn(lm: LM) -> None:
    scheduler, done = Scheduler(n_slots=1), []  # type: ignore[var-annotated]
    users = [f"a {i}" for i in range(6)]
    scheduler.submit([job(lm, user, done) for user in users])
    scheduler.submit([job(lm, "b x", done) for _ in range(2)])
    scheduler.start()
    wait_until(lambda: len(done) == 8)
    scheduler.stop()
    assert done == ["a 0", "b x", "a 1", "b x", "a 2", "a 3", "a 4", "a 5"]


def test_no_client_fills_the_queue(lm: LM) -> None:
    """A client may have as many places as are free, whatever its users are called."""
    scheduler = Scheduler(max_waiting=8)  # not started: all jobs wait

    def fill(client: str) -> int:
        for n in range(100):
            try:
                scheduler.submit([job(lm, f"{client} user{n}", [])])
            except ApiError as refused:
                return n if refused.status == 429 and "retry-after" in refused.headers else -1
        return 100

    assert [fill(client) for client in "abcde"] == [4, 2, 1, 1, 0]
    scheduler = Scheduler(max_waiting=8)
    scheduler.submit([job(lm, "a", []) for _ in range(8)])  # one large request alone
    with pytest.raises(ApiError, match="0 free places of 8"):
        scheduler.submit([job(lm, "b", [])])


def test_no_client_fills_the_queue_with_long_prompts(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MOST_TOKENS", 100)
    scheduler = Scheduler()
    place = [replace(job(lm, c, []), request=Request([1] * n, 1)) for c, n in LONG]
    for each in place[:2]:
        scheduler.submit([each])
    with pytest.raises(ApiError, match="prompts that wait are long"):
        scheduler.submit([place[2]])
    scheduler.submit([place[3]])


LONG = [("a", 20), ("a", 30), ("a", 1), ("b", 40)]


def test_no_client_fills_the_queue_of_scores(lm: LM) -> None:
    scheduler = Scheduler(max_waiting=4)
    for client, n in (("a", 2), ("b", 1), ("c", 1)):
        for _ in range(n):
            scheduler.call(lambda: None, client)
        with pytest.raises(ApiError, match="many requests wait"):
            scheduler.call(lambda: None, client)


def test_cancelled_and_late_jobs_leave_the_queue(lm: LM) -> None:
    scheduler, done = Scheduler(n_slots=1), []  # type: ignore[var-annotated]
    jobs = [job(lm, "a", done), job(lm, "b", done), job(lm, "c", done, -1.0)]
    scheduler.submit(jobs)
    scheduler.cancel([jobs[0]])
    scheduler.start()
    wait_until(lambda: len(done) == 2)
    assert sorted(done) == ["b", "the request took longer than its time limit."]
    wait_until(lambda: scheduler.n_waiting == scheduler.n_running == 0)
    scheduler.stop()


def test_a_failing_step_ends_its_requests_and_the_next_ones_work(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsmith.generate import engine

    scheduler, done = Scheduler(), []  # type: ignore[var-annotated]
    scheduler.start()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "choose", lambda *_, **__: 1 / 0)
        scheduler.submit([job(lm, "a", done)])
        wait_until(lambda: done == ["division by zero"])
    scheduler.submit([job(lm, "b", done)])
    wait_until(lambda: done[1:] == ["b"])
    scheduler.stop()


def _resident() -> int:
    """Bytes of memory that this process uses. Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_requests(server: Server) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("memory is measured on Linux only")

    def some(n: int) -> None:
        for i in range(n):
            stream, prompt = i % 2 == 0, "The cat " + "x" * (i % 7)
            answer = server.complete(prompt=prompt, max_tokens=4, stream=stream, n=1 + i % 3)
            assert answer.status == 200

    def round_of(n: int) -> int:
        threads = [threading.Thread(target=some, args=(n // 8,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return _resident()

    first = round_of(2000)
    last = max(round_of(2000) for _ in range(4))
    assert last - first < 8 << 20
