"""Tokens per second and time to first token of `lmsmith serve`, with one client and with several.

    python benchmarks/serve.py RUN [--clients 8] [--requests 6] [--tokens 100] [--weights int8]
        [--distinct] [--llama-cpp MODEL.gguf] [--llama-cpp-python PYTHON]

Starts a server on a free port of 127.0.0.1 and sends streamed completions from threads that each
wait for an answer before they send the next request. Every answer has the same number of tokens.
All requests have the same prompt, which a server may read once; with `--distinct` each has another
one, of the same words.
`--llama-cpp` starts llama.cpp's server, too, and the two take turns: `lmsmith export --to gguf`
writes the file, and PYTHON is an interpreter that has xllamacpp. Measure on an idle machine.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SLOTS = 16
LLAMA_CPP = """
import sys, time, xllamacpp
options = xllamacpp.CommonParams()
options.model.path, options.n_parallel, options.n_ctx = sys.argv[1], {slots}, {slots} * 512
options.cpuparams.n_threads = options.cpuparams_batch.n_threads = {threads}
options.port, options.n_gpu_layers = 0, 0
server = xllamacpp.Server(options)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def one(
    port: int, model: str, prompt: str, n_tokens: int, seed: int, more: dict[str, Any]
) -> tuple[float, float, int]:
    """A request: seconds to the first token, seconds in all, tokens."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": n_tokens,
        "temperature": 1.0,
        "stream": True,
        "seed": seed,
        "stream_options": {"include_usage": True},
        **more,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    began, first, n = time.perf_counter(), 0.0, 0
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    response = connection.getresponse()
    assert response.status == 200, response.read()
    for line in response:
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - began
            if usage := json.loads(line[6:]).get("usage"):
                n = usage["completion_tokens"]
    connection.close()
    assert n == n_tokens, f"{n} tokens of {n_tokens}"
    return first, time.perf_counter() - began, n


class Measured:
    """A server, and what it has shown so far: (clients, seconds, requests) for each round."""

    def __init__(self, name: str, port: int, model: str, more: dict[str, Any]) -> None:
        self.name, self.port, self.model, self.more = name, port, model, more
        self.rates: dict[int, list[float]] = {}
        self.firsts: dict[int, list[float]] = {}

    def warm_up(self, options: argparse.Namespace) -> None:
        one(self.port, self.model, options.prompt, 10, 0, self.more)

    def round(self, n_clients: int, options: argparse.Namespace) -> None:
        done: list[tuple[float, float, int]] = []

        def client(number: int) -> None:
            for seed in range(1000 * number, 1000 * number + options.requests):
                prompt = options.prompt
                if options.distinct:
                    words = prompt.split()
                    prompt = " ".join(random.Random(seed).choices(words, k=len(words)))
                asked = (prompt, options.tokens, seed, self.more)
                done.append(one(self.port, self.model, *asked))

        threads = [threading.Thread(target=client, args=(i,)) for i in range(n_clients)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        self.rates.setdefault(n_clients, []).append(sum(n for _, _, n in done) / seconds)
        self.firsts.setdefault(n_clients, []).extend(first for first, _, _ in done)

    def p95(self, n_clients: int) -> float:
        firsts = sorted(self.firsts[n_clients])
        return firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))]

    def show(self) -> None:
        for n, rates in self.rates.items():
            print(
                f"{self.name:24} {n:>8} {statistics.median(rates):>10.1f} "
                f"{1000 * statistics.median(self.firsts[n]):>16.1f} {1000 * self.p95(n):>8.1f}"
            )


@contextlib.contextmanager
def lmsmith_server(run: Path, weights: str) -> Iterator[Measured]:
    command = [sys.executable, "-m", "lmsmith", "serve", run, "--port", "0", "--weights", weights]
    command += ["--slots", str(SLOTS)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        port = 0
        while not port:
            line = server.stdout.readline()
            assert line, "the server did not start"
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
                port = int(found[1])
        yield Measured(f"lmsmith {weights}", port, run.resolve().name, {"logit_bias": ends(run)})
    finally:
        server.terminate()
        server.wait(60)


def ends(run: Path) -> dict[str, float]:
    """Biases that keep a text from ending early; llama.cpp's `ignore_eos` does the same."""
    from lmsmith.generate.text_model import TextModel

    writer, _ = TextModel.load(run)
    return {str(id): -100.0 for id in writer.ends}


@contextlib.contextmanager
def llama_cpp_server(python: str, model: Path) -> Iterator[Measured]:
    program = LLAMA_CPP.format(slots=SLOTS, threads=len(os.sched_getaffinity(0)))
    server = subprocess.Popen(
        [python, "-c", program, model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = 0
        for line in server.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
                break
        assert port, "llama.cpp's server did not start"
        yield Measured(f"llama.cpp {model.stem}", port, "model", {"ignore_eos": True})
    finally:
        server.terminate()
        server.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=6, help="per client and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--weights", default="fp32")
    parser.add_argument("--prompt", default="Once upon a time there was a little")
    parser.add_argument("--distinct", action="store_true", help="another prompt for each request")
    parser.add_argument("--llama-cpp", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--llama-cpp-python", default=sys.executable, metavar="PYTHON")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(lmsmith_server(options.run, options.weights))]
        if options.llama_cpp:
            python = options.llama_cpp_python
            servers.append(stack.enter_context(llama_cpp_server(python, options.llama_cpp)))
        for server in servers:
            server.warm_up(options)
        for _ in range(options.rounds):
            for n in (1, options.clients):
                for server in servers:
                    server.round(n, options)
    print(f"{'server':24} {'clients':>8} {'tokens/s':>10} {'first token, ms':>16} {'p95':>8}")
    for server in servers:
        server.show()
    for server in servers:
        rates, n = server.rates, options.clients
        more = statistics.median(rates[n]) / statistics.median(rates[1])
        print(f"{server.name}: throughput x {more:.2f}, p95 x {server.p95(n) / server.p95(1):.2f}")


if __name__ == "__main__":
    main()
