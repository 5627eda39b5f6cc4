"""`lmsmith serve` as a process: it says where it listens, drains on SIGTERM, and exits with 0."""

import http.client
import json
import re
import signal
import time
from pathlib import Path

import pytest
from conftest import Lmsmith, Process

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")


def port_of(process: Process) -> int:
    found = process.until(lambda: re.search(r"http://127\.0\.0\.1:(\d+)/v1", process.out()))
    return int(found[1])


def test_sigterm_lets_a_running_answer_finish(lmsmith: Lmsmith, run: Path) -> None:
    process = lmsmith.start("serve", run, "--port", 0, "--drain", 20)
    port = port_of(process)
    streaming = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = {"model": "run", "prompt": "The secret", "max_tokens": 1500, "stream": True, "seed": 1}
    body["logit_bias"] = {"0": 0}
    streaming.request("POST", "/v1/completions", json.dumps(body))
    response = streaming.getresponse()
    first = response.read(20)
    process.send(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(ConnectionRefusedError):  # no new connection is accepted
        http.client.HTTPConnection("127.0.0.1", port, timeout=2).connect()
    text = (first + response.read()).decode()
    assert text.endswith("data: [DONE]\n\n")
    assert '"finish_reason": "' in text
    done = process.wait()
    assert done.status == 0, done.err
    assert "POST /v1/completions 200" in done.err
    assert "secret" not in done.err + done.out
    assert "Traceback" not in done.err


def test_a_second_signal_ends_it_at_once(lmsmith: Lmsmith, run: Path) -> None:
    process = lmsmith.start("serve", run, "--port", 0, "--max-tokens", 1 << 20)
    streaming = http.client.HTTPConnection("127.0.0.1", port_of(process), timeout=30)
    body = {"model": "run", "prompt": "A", "max_tokens": 1 << 20, "stream": True, "n": 4}
    streaming.request("POST", "/v1/completions", json.dumps(body))
    streaming.getresponse().read(20)
    process.send(signal.SIGTERM)
    time.sleep(0.3)
    assert not process.ended()
    process.send(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait().status == 0
    assert time.monotonic() - began < 10


def test_mistakes_are_explained(lmsmith: Lmsmith, run: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = lmsmith("serve", run, "--port", taken.getsockname()[1])
        assert (done.status, "cannot listen" in done.err) == (2, True)
    for arguments, said in (
        (("nowhere",), "nowhere is not a run"),
        ((run, run), "two runs are called 'run'"),
        ((run, "--port", 99999), "--port 99999: expected 0 to 65535"),
        ((run, "--drain", -1), "--drain -1.0: expected 0"),
        ((run, "--max-memory", "nan"), "--max-memory nan: expected gigabytes"),
        ((run, "--prefix-cache", "inf"), "--prefix-cache inf: expected gigabytes"),
        ((run, "--api-key", ""), "API key is empty"),
    ):
        done = lmsmith("serve", *arguments)
        assert done.status == 2, arguments
        assert said in done.err
        assert "Traceback" not in done.err
