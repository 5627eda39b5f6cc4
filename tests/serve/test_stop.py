"""The command itself: ready soon, SIGTERM while a stream runs, and logs without texts."""

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")

pytestmark = pytest.mark.slow


def start(*arguments: Any) -> tuple[subprocess.Popen[str], int]:
    """A server and its port."""
    command = [sys.executable, "-m", "lmsmith", "serve", "--port", "0", *map(str, arguments)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    server = subprocess.Popen(command, **pipes)
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"127\.0\.0\.1:(\d+)/v1", line):
            return server, int(found[1])
    raise AssertionError(server.communicate())


def stream(port: int, n: int) -> http.client.HTTPResponse:
    """A streamed completion whose first bytes have arrived."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"model": "run", "prompt": "Nobody hid x", "max_tokens": n, "stream": True, "seed": 1}
    connection.request("POST", "/v1/completions", json.dumps(body))
    response = connection.getresponse()
    assert response.readline().startswith(b"data: {")
    return response


def test_a_running_stream_is_finished_after_sigterm(folder: Path) -> None:
    server, port = start(folder / "run", "--max-tokens", 100_000)
    try:
        running = stream(port, 3000)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(ConnectionRefusedError):
            stream(port, 1)
        assert running.read().endswith(b"data: [DONE]\n\n")
        assert server.wait(20) == 0
        assert server.stderr is not None
        log = server.stderr.read()
        assert "Nobody" not in log
        assert re.search(r"model run: loaded in \d", log)
        (ready,) = re.findall(r"model run: ready ([\d.]+) s later", log)
        assert float(ready) < 30  # seconds; docs/performance.md has a measurement
        assert re.search(r"POST /v1/completions 200", log)
    finally:
        server.kill()
        server.communicate()


def test_what_does_not_finish_in_time_is_cancelled(folder: Path) -> None:
    server, port = start(folder / "run", "--max-tokens", 10_000_000, "--drain", 0.5)
    try:
        running = stream(port, 10_000_000)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            running.read()
        assert server.wait(20) == 0
        assert time.monotonic() - began < 10
    finally:
        server.kill()
        server.communicate()
