"""Clients cannot fill the server's memory: slow readers, long bodies, stalled connections."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")

from running import Server, memory_grows_by_at_most, wait_until

from lmsmith.api import LM
from lmsmith.serve import answers, backlog

ENDLESS: dict[str, Any] = {"model": "run", "prompt": "A", "max_tokens": 1 << 20, "stream": True}


@contextlib.contextmanager
def asking(server: Server, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A connection with a small receive buffer, on which a completion has been asked for."""
    content = json.dumps(body).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
        )
        yield connection


def text_of(raw: bytes) -> str:
    """The text of a streamed completion, from the response with its chunked encoding."""
    lines = [line for line in raw.decode().splitlines() if line.startswith("data: {")]
    return "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines)


def test_a_slow_reader_gets_the_whole_text(server: Server, lm: LM) -> None:
    options: dict[str, Any] = {"max_tokens": 1500, "temperature": 0.9, "seed": 3}
    with asking(server, {**ENDLESS, **options}) as connection:
        raw = b""
        while part := connection.recv(4096):
            raw += part
            time.sleep(0.001)
    assert text_of(raw) == lm.generate("A", **options)
    assert answers._BACKLOG.n_bytes == 0


def test_a_client_that_does_not_read_is_cancelled(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's socket buffers fill first, then the backlog."""
    monkeypatch.setattr(backlog, "MOST_BYTES", 1 << 20)
    scheduler = server.serving.scheduler
    most = 0
    with asking(server, {**ENDLESS, "n": 4, "logprobs": 20, "max_tokens": 6000}) as connection:
        wait_until(lambda: scheduler.n_running == 4)
        while scheduler.n_running:
            most = max(most, answers._BACKLOG.n_bytes)
            assert server.complete(prompt="A", max_tokens=2).status == 200
        raw = b""
        while part := connection.recv(1 << 20):
            raw += part
    assert b'"code": "slow_client"' in raw or b'"code":"slow_client"' in raw
    assert most <= 2 << 20
    assert answers._BACKLOG.n_bytes == 0


def test_too_many_log_probabilities_are_refused(server: Server) -> None:
    for answer in (
        server.complete(prompt="A", n=128, logprobs=20, max_tokens=4096),
        server.chat(n=128, logprobs=True, top_logprobs=20, model="ngram", max_tokens=4096),
    ):
        assert (answer.status, answer.error["param"]) == (400, "logprobs")


def test_a_draft_changes_no_text(folder: Path, lm: LM) -> None:
    from running import serving

    sampled: dict[str, Any] = {"max_tokens": 80, "temperature": 0.8}
    with serving([folder / "run"], draft=folder / "ngram") as server:
        for seed in range(3):
            answer = server.complete(prompt="The cat", n=3, seed=seed, **sampled)
            expected = lm.generate_batch(["The cat"], n=3, seed=seed, **sampled)[0]
            assert [choice["text"] for choice in answer.json["choices"]] == expected
            for stop in ("a", ".", "w "):  # tokens of a draft may follow a stop string
                asked = {"prompt": "The", "stop": stop, "seed": seed, **sampled}
                events = server.complete(**asked, stream=True).events
                streamed = "".join(e["choices"][0]["text"] for e in events)
                assert streamed == lm.generate("The", stop=stop, seed=seed, **sampled)
        with asking(server, ENDLESS) as connection:
            connection.recv(100)
        wait_until(lambda: server.serving.scheduler.n_running == 0)


N = 50 << 20


def test_fifty_megabytes_are_refused_by_their_length_and_by_counting(server: Server) -> None:
    with memory_grows_by_at_most(16 << 20):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
            connection.putrequest("POST", "/v1/completions")
            connection.putheader("Content-Length", str(N))
            connection.endheaders()
            began = time.monotonic()  # answered before the body is sent
            assert connection.getresponse().status == 413
            assert time.monotonic() - began < 1
        for chunked in (False, True):
            assert status_of_fifty_megabytes(server, chunked) in (413, "closed")
    assert server.serving.n_body_bytes == 0
    assert server.complete(prompt="A", max_tokens=2).status == 200


def status_of_fifty_megabytes(server: Server, chunked: bool) -> int | str:
    def parts() -> Iterator[bytes]:
        for _ in range(N >> 20):
            yield b" " * (1 << 20)

    length = {} if chunked else {"Content-Length": str(N)}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        try:
            connection.request("POST", "/v1/completions", parts(), length, encode_chunked=chunked)
            return connection.getresponse().status
        except ConnectionError:
            return "closed"  # while the client was still sending
