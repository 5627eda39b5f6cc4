"""Tokens per second and time to first token of `lmsmith serve`, with one client and with several.

    python benchmarks/serve.py RUN [--clients 8] [--requests 6] [--tokens 100]

Starts a server on a free port of 127.0.0.1, sends streamed completions from threads that each wait
for an answer before they send the next request, and stops the server. Prints a table. Measure on an
idle machine.
"""

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path


def one(port: int, model: str, prompt: str, n_tokens: int, seed: int) -> tuple[float, float, int]:
    """A request: seconds to the first token, seconds in all, tokens."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": n_tokens,
        "stream": True,
        "seed": seed,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    began, first, n = time.perf_counter(), 0.0, 0
    connection.request("POST", "/v1/completions", json.dumps(body))
    response = connection.getresponse()
    assert response.status == 200, response.read()
    for line in response:
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - began
            if usage := json.loads(line[6:]).get("usage"):
                n = usage["completion_tokens"]
    connection.close()
    return first, time.perf_counter() - began, n


def measure(port: int, model: str, n_clients: int, options: argparse.Namespace) -> dict[str, float]:
    done: list[tuple[float, float, int]] = []

    def client(number: int) -> None:
        seeds = range(1000 * number, 1000 * number + options.requests)
        done.extend(one(port, model, options.prompt, options.tokens, seed) for seed in seeds)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(n_clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    firsts = sorted(first for first, _, _ in done)
    return {
        "tokens/s": sum(n for _, _, n in done) / seconds,
        "first token, median": statistics.median(firsts),
        "first token, p95": firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=6, help="per client")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--prompt", default="Once upon a time there was a little")
    options = parser.parse_args()
    command = [sys.executable, "-m", "lmsmith", "serve", options.run, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        port = 0
        while not port:
            line = server.stdout.readline()
            assert line, "the server did not start"
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
                port = int(found[1])
        model = options.run.resolve().name
        one(port, model, options.prompt, 10, 0)
        rows = {n: measure(port, model, n, options) for n in (1, options.clients)}
    finally:
        server.terminate()
        server.wait(60)
    print(f"{'clients':>8} {'tokens/s':>10} {'first token, median':>20} {'p95':>10}")
    for n, row in rows.items():
        print(
            f"{n:>8} {row['tokens/s']:>10.1f} {row['first token, median']:>18.3f} s "
            f"{row['first token, p95']:>8.3f} s"
        )
    alone, together = rows[1], rows[options.clients]
    print(
        f"throughput x {together['tokens/s'] / alone['tokens/s']:.2f}, "
        f"p95 x {together['first token, p95'] / alone['first token, p95']:.2f}"
    )


if __name__ == "__main__":
    main()
