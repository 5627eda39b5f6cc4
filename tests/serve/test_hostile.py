"""Hostile input: a 4xx each, and the server still answers. All of it goes to 127.0.0.1."""

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")

from running import Server, memory_grows_by_at_most, serving, wait_until

from lmsmith.api import LM
from lmsmith.serve.sampling import Limits

COMPLETE = b'{"model": "run", "prompt": "A", "max_tokens": 2}'


def works(server: Server) -> bool:
    return server.complete(prompt="A", max_tokens=2).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"model": "run", "prompt": "\xff\xfe"}', 400),
        (b'{"model": "run", "prompt": "\\ud800"}', 400),
        (b'{"model": "run", "temperature": NaN, "prompt": "A"}', 400),
        (b'{"model": "run", "temperature": 1e999, "prompt": "A"}', 400),
        (b'{"model": "run", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "run", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
        (b'{"model": "../../etc/passwd", "prompt": "A"}', 404),
        (b'{"model": "run\\u0000", "prompt": "A"}', 404),
        (json.dumps({"model": "run", "prompt": "A", "stop": ["x"] * 5000}).encode(), 400),
        (json.dumps({"model": "run", "prompt": "A", "stop": ["x" * 5000]}).encode(), 400),
        (b'{"model": "run", "prompt": "A", "n": 1000000}', 400),
        (b'{"model": "run", "prompt": "A", "best_of": 1000000}', 400),
        (b'{"model": "run", "prompt": "A", "max_tokens": 1000000000}', 400),
        (b'{"model": "run", "prompt": [99999999]}', 400),
        (b'{"model": "run", "prompt": [-1]}', 400),
        (b'{"model": "run", "prompt": "A", "logit_bias": {"99999999": 1}}', 400),
        (b'{"model": "run", "prompt": "A", "logit_bias": {"-1": 1}}', 400),
        (b'{"model": "run", "prompt": "A", "suffix": "B"}', 400),
        (b'{"model": "run", "prompt": "A", "stream_options": {}}', 400),
        (b'{"model": "run", "prompt": ' + json.dumps(["A"] * 1000).encode() + b"}", 400),
        (b'{"model": "run", "prompt": ' + json.dumps([1] * 200_000).encode() + b"}", 400),
        (b"x" * (5 << 20), 413),
    ],
)
def test_bad_bodies(server: Server, body: bytes, status: int) -> None:
    answer = server.send("/v1/completions", body)
    assert (answer.status, len(answer.error["message"]) < 1000) == (status, True)
    assert works(server)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from([-1, 0, 1, 1e308, -1e308, 1 << 63]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
FIELDS = [
    *(
        "model",
        "prompt",
        "messages",
        "echo",
        "logprobs",
        "n",
        "best_of",
        "stop",
        "seed",
        "logit_bias",
    ),
    *("suffix", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "max_tokens"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "user", "response_format"),
    *("tools", "top_logprobs", "max_completion_tokens", "return_token_ids", "tool_choice", "none"),
    *("functions", "function_call", "modalities", "audio", "reasoning_effort", "metadata", "store"),
]
OF_MESSAGES = ["role", "content", "name", "tool_calls", "refusal", "none"]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    st.sampled_from(["completions", "chat/completions"]),
    st.sampled_from([*FIELDS, *(f"messages.{name}" for name in OF_MESSAGES)]),
    VALUES,
)
def test_any_value_in_any_field(server: Server, route: str, field: str, value: Any) -> None:
    body: dict[str, Any] = {"model": "run", "max_tokens": 2}
    if route == "completions":
        body["prompt"] = "A"
    else:
        body["messages"] = [{"role": "user", "content": "A"}]
    if field.startswith("messages."):
        body["messages"] = [{"role": "user", "content": "A", field.partition(".")[2]: value}]
    elif not (isinstance(value, int) and 50 < value <= 1 << 20):
        body[field] = value
    answer = server.send(f"/v1/{route}", body)
    assert answer.status in (200, 400, 404), (body, answer.body)
    if answer.status != 200:
        assert answer.error["message"]


def raw(server: Server, content: bytes, *, wait: float = 5) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        connection.sendall(content)
        got = b""
        try:
            while part := connection.recv(65536):
                got += part
        except (TimeoutError, ConnectionResetError):
            pass
        return got


def head(host: str = "127.0.0.1", more: str = "", path: str = "/v1/models") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n".encode()


def status_of(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8000", 200),
        ("LOCALHOST.", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:80", 421),
        ("evil.example@127.0.0.1", 200),  # a browser never sends it; the name is 127.0.0.1
        ("", 421),
        ("[::1", 421),
    ],
)
def test_only_names_of_this_server_are_answered(server: Server, host: str, status: int) -> None:
    assert status_of(raw(server, head(host))) == status


def test_pages_of_other_origins_are_refused(server: Server) -> None:
    for origin, status in (
        (f"http://127.0.0.1:{server.port}", 200),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:1", 403),
    ):
        answer = server.send("/v1/completions", COMPLETE, headers={"Origin": origin})
        assert answer.status == status, origin
        assert not any(name.startswith("access-control") for name in answer.headers)
    options = server.send("/v1/completions", method="OPTIONS")
    assert options.status == 405


def test_odd_requests(server: Server) -> None:
    assert status_of(raw(server, head(more="X: y\r\n" * 20_000))) == 431
    assert status_of(raw(server, head(more="X: " + "y" * 100_000 + "\r\n"))) in (400, 431)
    assert status_of(raw(server, b"\x16\x03\x01\x00\x00garbage\r\n\r\n")) == 400
    assert status_of(raw(server, head(path="/" + "a" * 100_000))) in (400, 431)
    for path in (
        "/../etc/passwd",
        "/%2e%2e/etc/passwd",
        "//evil.example/x",
        "/v1/models/..%2f..%2fx",
    ):
        assert status_of(raw(server, head(path=path))) == 404, path
    assert status_of(raw(server, head(more="Host: evil.example\r\n"))) in (400, 421)
    assert server.send("/v1/embeddings", b"{}").error["code"] == "not_supported"
    assert server.send("/v1/completions").status == 405
    assert server.send("/health", b"x" * 100_000, method="GET").status == 200
    assert works(server)


def test_slow_heads_are_closed_and_many_stalled_clients_do_no_harm(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsmith.serve.protocol import Protocol

    monkeypatch.setattr(Protocol, "head_seconds", 1.5)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    body = b"Content-Length: 99999\r\n\r\n" + b" " * 20_000
    parts = [b"", b"GET /v1/mod", head + b"X: " + b"y" * 20_000, head + body]
    open_ones = []
    with memory_grows_by_at_most(64 << 20):  # docs/guides/serve.md: less than 300 KiB each
        for i in range(500):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            connection.sendall(parts[i % 4])
            open_ones.append(connection)
        assert works(server)
        closed = time.monotonic() + 8
        for i, connection in enumerate(open_ones):
            if i % 4 == 3:  # its body may take longer
                connection.close()
                continue
            connection.settimeout(max(0.1, closed - time.monotonic()))
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
            connection.close()
    wait_until(lambda: server.serving.n_body_bytes == 0)
    assert works(server)


def test_a_slow_body_is_ended(folder: Path) -> None:
    limits = Limits(body_seconds=0.3, seconds=60)
    with serving([folder / "run"], limits=limits) as server:
        begun = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{"
        assert status_of(raw(server, begun)) == 408
        assert works(server)


def test_the_queue_is_bounded_and_requests_time_out(folder: Path) -> None:
    limits = Limits(max_tokens=1 << 20, seconds=1.0)
    with serving([folder / "run"], n_slots=2, max_waiting=4, limits=limits) as server:
        sockets = []
        fields = {"model": "run", "prompt": "A", "max_tokens": 1 << 20, "logit_bias": {"0": 50}}
        for n, n_waiting in ((3, 1), (1, 2)):  # a client fills half of the queue
            body = json.dumps({**fields, "n": n}).encode()
            request = (
                b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: "
                + str(len(body)).encode()
                + b"\r\n\r\n"
                + body
            )
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            connection.sendall(request)
            sockets.append(connection)
            wait_until(lambda n=n_waiting: server.serving.scheduler.n_waiting == n)
        answer = server.complete(prompt="A")
        assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
        assert int(answer.headers["retry-after"]) >= 1
        for connection in sockets:
            assert status_of(connection.recv(1000)) == 504
            connection.close()
        wait_until(lambda: server.serving.scheduler.n_running == 0)
        assert server.complete(prompt="A", max_tokens=2).status == 200


def test_an_api_key(folder: Path) -> None:
    with serving([folder / "run"], api_key="sécret", allowed_hosts=["box.example"]) as server:
        for key, status in (("sécret", 200), ("secret", 401), ("", 401), ("sécret2", 401)):
            headers = {"Authorization": f"Bearer {key}".encode().decode("latin-1")}
            assert server.send("/v1/models", headers=headers).status == status
        assert server.send("/v1/models").error["code"] == "invalid_api_key"
        assert server.send("/metrics").status == 401
        assert server.send("/health").status == server.send("/").status == 200
        assert status_of(raw(server, head("box.example:1", path="/health"))) == 200


def test_metrics_and_security_headers(server: Server, lm: LM) -> None:
    answer = server.send("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in answer.body.decode().splitlines():
        assert line.startswith("# ") or len(line.split()) == 2
    assert 'route="/v1/completions",status="200"' in answer.body.decode()
    page = server.send("/")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in page.headers["content-security-policy"]
