"""Tokens that are delivered together: what arrives, in which order, and how late."""

import time
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")

from running import Server, wait_until

from lmsmith.api import LM
from lmsmith.generate.engine import Request
from lmsmith.serve import answers, jobs
from lmsmith.serve.jobs import Job, Outbox
from lmsmith.serve.pieces import Piece, Pieces
from lmsmith.serve.scheduler import Scheduler

Deliveries = list[list[tuple[Job, Piece]]]


def job(lm: LM, n_tokens: int, stop: Sequence[str] = ()) -> Job:
    request = Request(lm.writer.encode("The cat"), n_tokens, seed=1)
    pieces = Pieces(lm.writer, stop, False)
    return Job(lm.writer, request, pieces, "a", lambda piece: None, time.monotonic() + 60)


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch) -> Deliveries:
    """What each delivery holds. Pieces may wait for an hour."""
    found: Deliveries = []
    monkeypatch.setattr(jobs, "DELIVERY_SECONDS", 3600.0)
    monkeypatch.setattr(jobs, "deliver", lambda pieces: found.append(list(pieces)))
    return found


def texts(delivered: Deliveries, of: Job) -> str:
    return "".join(piece.text for some in delivered for job, piece in some if job is of)


def test_the_first_and_the_last_token_are_delivered_at_once(lm: LM, delivered: Deliveries) -> None:
    scheduler, one = Scheduler(), job(lm, 40)
    scheduler.submit([one])
    scheduler.start()
    wait_until(lambda: one.done and len(delivered) == 2)
    scheduler.stop()
    assert [len(some) for some in delivered] == [1, 39]
    assert texts(delivered, one) == lm.generate("The cat", max_tokens=40, temperature=1, seed=1)


def test_nothing_waits_for_a_prompt(lm: LM, delivered: Deliveries) -> None:
    """The next step takes longer than the last one, so waiting pieces are delivered before it."""
    scheduler, first, second = Scheduler(), job(lm, 1 << 20), job(lm, 3)
    scheduler.submit([first])
    scheduler.start()
    wait_until(lambda: first.n_tokens > 5)
    scheduler.submit([second])
    wait_until(lambda: second.done)
    scheduler.stop()
    with_second = next(i for i, some in enumerate(delivered) if any(j is second for j, _ in some))
    assert with_second >= 2  # the first token of `first`, and those that waited
    assert all(j is first for j, _ in delivered[with_second - 1])


def test_an_error_comes_after_the_tokens_before_it(
    lm: LM, delivered: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsmith.generate import engine

    scheduler, one = Scheduler(), job(lm, 1 << 20)
    scheduler.submit([one])
    scheduler.start()
    wait_until(lambda: one.n_tokens > 5)
    monkeypatch.setattr(engine, "choose", lambda *_, **__: 1 / 0)
    wait_until(lambda: one.done)
    scheduler.stop()
    pieces = [piece for some in delivered for _, piece in some]
    assert len(pieces) == one.n_tokens + 1
    assert [piece.error is not None for piece in pieces] == [False] * one.n_tokens + [True]


def test_how_long_pieces_wait(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    now: list[float] = [100.0]
    found: list[int] = []
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(jobs, "deliver", lambda pieces: found.append(len(pieces)))
    outbox, one = Outbox(), job(lm, 9)
    one.n_tokens = 5
    outbox.add(one, Piece("a"))
    assert not outbox.is_due(0.009)
    assert outbox.is_due(0.011)  # a large model's next token: this one is not kept back
    now[0] += 0.008
    outbox.add(one, Piece("b"))
    assert outbox.is_due(0.003)
    outbox.flush()
    outbox.flush()
    assert found == [2]
    outbox.add(one, Piece("c"))
    assert not outbox.is_due(0.009)
    outbox.add(one, Piece("d", finish="stop"))
    assert outbox.is_due(0.0)


@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_has_the_same_events_however_they_are_written(
    server: Server, chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[bytes] = []

    def body(seconds: float, longest: int) -> list[Any]:
        monkeypatch.setattr(jobs, "DELIVERY_SECONDS", seconds)
        monkeypatch.setattr(answers, "LONG_PART", longest)
        fields = {"max_tokens": 40, "seed": 1, "stop": ["zz", "saw z"], "n": 2, "stream": True}
        fields["stream_options"] = {"include_usage": True}
        answer = server.chat(**fields) if chat else server.complete(prompt="The cat", **fields)
        found = []
        for event in answer.events:
            assert event.pop("id")
            assert event.pop("created")
            found.append(event)
        parts.append(answer.body)
        by_choice = [
            [e for e in found if e["choices"] and e["choices"][0]["index"] == i] for i in (0, 1)
        ]
        return [*by_choice, found[-1]]

    token_by_token = body(-1.0, 0)
    assert len(parts[0].split(b"\n\n")) > 20
    assert body(3600.0, 1 << 16) == body(0.01, 1 << 16) == token_by_token
