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

from conftest import TINY

import lmsmith

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
        assert server.wait(40) == 0
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
        assert server.wait(40) == 0
        assert time.monotonic() - began < 25
    finally:
        server.kill()
        server.communicate()


COUNT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from running import serving

def compiled():
    found = {}
    for name, module in list(sys.modules.items()):
        for each in vars(module).values() if name.startswith("lmsmith.") else ():
            if hasattr(each, "dispatcher"):
                found[each.__name__] = len(each.dispatcher.signatures)
    return found

with serving([Path(sys.argv[2])]) as server:
    before = compiled()
    for sampling in ({"temperature": 0}, {"top_p": 0.9, "top_k": 5, "min_p": 0.1}, {"n": 3}):
        assert server.complete(prompt="The cat", logprobs=2, **sampling).status == 200
        assert server.chat(logprobs=True, top_logprobs=2, **sampling).status == 200
    assert server.complete(prompt="The", echo=True, logprobs=2, max_tokens=0).status == 200
    assert before == compiled(), (before, compiled())
    print(sum(before.values()))
"""


def test_the_first_requests_compile_nothing(folder: Path, tmp_path: Path) -> None:
    """All compiled functions are loaded when the model is: none inside a request."""
    settings = TINY | {"model.context_length": 256}
    options: dict[str, Any] = {"steps": 1, "tokenizer": "bpe:280", "settings": settings}
    lmsmith.train(folder / "book.txt", out=tmp_path / "run", **options)
    command = [sys.executable, "-c", COUNT, Path(__file__).parent, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8
