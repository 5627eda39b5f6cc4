"""Command serve: an OpenAI-compatible server and a page."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from rich.console import Console

from lmsmith.cli.grammar import Verbs, at_least_one
from lmsmith.cli.use import compile_ahead
from lmsmith.errors import UsageError

KEY = "LMSMITH_API_KEY"


def add(verbs: Verbs) -> None:
    serve = verbs.verb(
        "serve",
        _serve,
        "serve models: an OpenAI-compatible API and a page to talk to them",
        "lmsmith serve demo/run-1 --port 8000",
    )
    serve.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folders that `lmsmith train` or `import` wrote; a folder's name is the model's name",
    )
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; 0.0.0.0: all of this machine, use an API key then (127.0.0.1)",
    )
    serve.add_argument("--port", type=int, default=8000, metavar="N", help="port (8000)")
    serve.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"key that clients must send (the environment variable {KEY}, or none); other users "
        "of the machine can see options, so prefer the variable",
    )
    serve.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name of this server that browsers may use, such as its DNS name; can be repeated",
    )
    _add_limits(serve)


def _add_limits(serve: argparse.ArgumentParser) -> None:
    """Adds the options that bound work and memory, and those of models and logs."""
    for name, default, what in (
        ("slots", 16, "sequences that are decoded at once, per model"),
        ("queue", 256, "sequences that wait; more are refused with status 429"),
        ("max-tokens", 4096, "most new tokens per answer"),
    ):
        serve.add_argument(
            f"--{name}", type=at_least_one, default=default, metavar="N", help=f"{what} ({default})"
        )
    for name, seconds, what in (
        ("timeout", 600.0, "time limit of a request in seconds, waiting included"),
        ("drain", 30.0, "after SIGTERM, running requests may take this many seconds more"),
    ):
        serve.add_argument(
            f"--{name}",
            type=float,
            default=seconds,
            metavar="SECONDS",
            help=f"{what} ({seconds:g})",
        )
    serve.add_argument(
        "--max-memory",
        type=float,
        metavar="GB",
        help="memory for the weights of loaded models: unused ones are dropped (unlimited)",
    )
    serve.add_argument(
        "--prefix-cache",
        type=float,
        default=0.25,
        metavar="GB",
        help="memory per model for prefixes that prompts share, to read them once; 0: none (0.25)",
    )
    serve.add_argument(
        "--weights",
        default="fp32",
        choices=("fp32", "bf16", "int8"),
        metavar="FORMAT",
        help="as for `lmsmith generate`: fp32, bf16 or int8 (fp32)",
    )
    serve.add_argument(
        "--draft",
        type=Path,
        metavar="RUN",
        help="an n-gram run with the same tokenizer that proposes tokens: faster, same text",
    )
    serve.add_argument(
        "--log-prompts", action="store_true", help="log the texts of requests (not logged)"
    )


def _serve(options: argparse.Namespace, console: Console, started: float) -> int:
    compile_ahead(later=["filters"])
    from lmsmith.serve.options import Options, serve
    from lmsmith.serve.sampling import Limits

    def ready(address: str) -> None:
        console.print(f"page     {address}/")
        console.print(f"API      {address}/v1")
        if options.host not in ("127.0.0.1", "::1", "localhost") and key is None:
            console.print("note: anyone who can reach this address can use it: set an API key")

    for name in ("max_memory", "prefix_cache"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(
                f"--{name.replace('_', '-')} {value:g}: expected gigabytes, 0 or more."
            )
    key = options.api_key if options.api_key is not None else os.environ.get(KEY) or None
    gigabytes = 1e9
    return serve(
        Options(
            options.runs,
            options.host,
            options.port,
            key,
            options.allowed_host,
            options.slots,
            options.queue,
            Limits(max_tokens=options.max_tokens, seconds=options.timeout),
            options.weights,
            options.draft,
            None if options.max_memory is None else int(options.max_memory * gigabytes),
            int(options.prefix_cache * gigabytes),
            options.drain,
            options.log_prompts,
        ),
        ready,
    )
