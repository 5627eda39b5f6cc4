"""Counters of the server, in the text format that Prometheus reads."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping

_HELP = {
    "requests": "Requests that were answered, by route and status.",
    "requests_rejected": "Requests that found the queue full.",
    "tokens_generated": "Tokens that were generated.",
    "tokens_prompt": "Tokens of prompts, with those found in the prefix cache.",
    "tokens_prompt_cached": "Tokens of prompts that were found in the prefix cache.",
    "cancelled": "Requests that ended because their client disconnected.",
}
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts. All methods can be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter({name: 0 for name in _HELP if name != "requests"})
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._n_first = 0
        self._first_seconds = 0.0
        self._finished: deque[float] = deque(maxlen=64)  # when requests ended
        self.started = time.time()

    def add(self, name: str, n: int = 1) -> None:
        with self._lock:
            self._counts[name] += n

    def answered(self, route: str, status: int) -> None:
        """Counts a response. `route`: one of a fixed set."""
        with self._lock:
            self._requests[route, status] += 1
            self._finished.append(time.monotonic())

    def first_token(self, seconds: float) -> None:
        """Counts the time from a request to its first token."""
        with self._lock:
            self._n_first += 1
            self._first_seconds += seconds
            for limit in _BUCKETS:
                if seconds <= limit:
                    self._buckets[limit] += 1

    def seconds_to_wait(self, n_waiting: int) -> int:
        """An estimate of when a full queue has places again: 1 to 60 seconds."""
        with self._lock:
            if len(self._finished) < 2:
                return 1
            span = time.monotonic() - self._finished[0]
            return max(1, min(60, round(n_waiting / 4 * span / len(self._finished))))

    def text(self, gauges: Mapping[str, float]) -> str:
        """All counters and the given gauges in Prometheus' text format, version 0.0.4."""
        lines: list[str] = []
        with self._lock:
            for name, n in sorted(self._counts.items()):
                lines += _head(f"{name}_total", "counter", _HELP[name])
                lines.append(f"lmsmith_{name}_total {n}")
            lines += _head("requests_total", "counter", _HELP["requests"])
            for (route, status), n in sorted(self._requests.items()):
                lines.append(f'lmsmith_requests_total{{route="{route}",status="{status}"}} {n}')
            name = "time_to_first_token_seconds"
            lines += _head(name, "histogram", "From the request to its first token.")
            for limit in _BUCKETS:
                lines.append(f'lmsmith_{name}_bucket{{le="{limit}"}} {self._buckets[limit]}')
            lines.append(f'lmsmith_{name}_bucket{{le="+Inf"}} {self._n_first}')
            lines.append(f"lmsmith_{name}_sum {self._first_seconds:.6f}")
            lines.append(f"lmsmith_{name}_count {self._n_first}")
        for name, value in gauges.items():
            lines += _head(name, "gauge", name.replace("_", " ").capitalize() + ".")
            lines.append(f"lmsmith_{name} {value:g}")
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, meaning: str) -> list[str]:
    return [f"# HELP lmsmith_{name} {meaning}", f"# TYPE lmsmith_{name} {kind}"]
