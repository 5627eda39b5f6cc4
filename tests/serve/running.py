"""A server in this process on a free port of 127.0.0.1, and a client that sends raw requests."""

import contextlib
import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.serve import server as servers
from lmsmith.serve.app import Serving, make_app
from lmsmith.serve.metrics import Metrics
from lmsmith.serve.models import Models
from lmsmith.serve.options import Options
from lmsmith.serve.sampling import Limits
from lmsmith.serve.scheduler import Scheduler


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The objects of an event stream, without [DONE], which must come last."""
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line[6:]) for line in lines[:-1]]

    @property
    def error(self) -> dict[str, Any]:
        error = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error


@dataclass
class Server:
    port: int
    serving: Serving
    uvicorn: Any

    def send(
        self,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        method: str | None = None,
        timeout: float = 60,
    ) -> Answer:
        """`body`: bytes, or a value that is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            method = method or ("GET" if body is None else "POST")
            connection.request(method, path, content, headers or {})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())

    def complete(self, **fields: Any) -> Answer:
        return self.send("/v1/completions", {"model": "run", **fields})

    def chat(self, **fields: Any) -> Answer:
        fields = {"messages": [{"role": "user", "content": "The cat"}], **fields}
        return self.send("/v1/chat/completions", {"model": "run", **fields})


@contextlib.contextmanager
def serving(runs: list[Path], **options: Any) -> Iterator[Server]:
    """A running server, which is drained at the end."""
    limits = options.pop("limits", Limits(max_tokens=1 << 20, seconds=60))
    names = ("n_slots", "max_waiting", "metrics", "prefix_bytes")
    of_scheduler = {name: options.pop(name) for name in names if name in options}
    metrics = Metrics()
    scheduler = Scheduler(metrics=metrics, **of_scheduler)
    of_models = {name: options.pop(name) for name in ("max_bytes", "draft") if name in options}
    models = Models(runs, scheduler, **of_models)
    scheduler.start()
    models.load_first()
    state = Serving(models, scheduler, metrics, limits, **options)
    listener = servers._listen("127.0.0.1", 0)
    started = threading.Event()
    made: list[Any] = []

    def run() -> None:
        settings = Options(runs, limits=limits, drain_seconds=5)
        servers._run(make_app(state), state, listener, settings, lambda _: started.set(), made)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield Server(listener.getsockname()[1], state, made[0])
    finally:
        made[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"
        scheduler.stop()


def wait_until(seen: Any, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < until
        time.sleep(0.005)


@contextlib.contextmanager
def memory_grows_by_at_most(n_bytes: int) -> Iterator[None]:
    """Compares the peak of this process's memory in the context with its memory before. Measures
    on Linux only; elsewhere it does nothing.
    """
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        yield
        return

    def kilobytes(name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1])

    reset.write_text("5")  # the peak begins at the current size
    before = kilobytes("VmRSS")
    yield
    grown = (kilobytes("VmHWM") - before) << 10
    assert grown <= n_bytes, f"{grown / (1 << 20):.1f} MiB"
