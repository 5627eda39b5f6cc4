"""Starts real lmsmith processes without the two seconds that importing torch takes: this server
imports it once, and forks for each process. Linux only.

It reads commands from standard input, one JSON object per line. {"arguments": [...], "cwd": ...,
"stdin": ..., "stdout": ..., "stderr": ..., "environment": {}, "file_bytes": largest file or null,
"user": uid or null, "slow": {"os:fsync": 0.01}} starts a process and replies with its id; the
functions in "slow" take longer by these seconds. {"wait": id} replies with the exit status, negative
for a signal, or null while the process runs.
"""

import codecs
import functools
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any

# Imports of the commands. (PyTorch's optimizers import torch._dynamo when they are created, which
# takes a second.)
IMPORTED = [
    "torch._dynamo",
    "lmsmith.cli",
    "lmsmith.demo",
    "lmsmith.train.start",
    "lmsmith.evaluate.texts",
    "lmsmith.generate.decode",
    "lmsmith.report.runs",
]


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    for encoding in (
        "utf-8-sig",
        "utf-32-le",
    ):  # a process under another user may not be able to import them later
        codecs.lookup(encoding)
    measure: Any = sys.modules["lmsmith.machine.products"]
    measure.SHAPE = (
        64,
        64,
        64,
    )  # each process measures the machine; its speed is not tested
    sample: Any = sys.modules["lmsmith.train.hooks.sample"]
    sample.SAMPLE_TOKENS = 20  # otherwise a short run spends most of its time on samples
    bpe_train: Any = importlib.import_module("lmsmith.tokens.bpe_train")
    bpe_train.learn_bpe(["compiled here, if it is not yet"], 300).encode(
        "so that no command says that it compiles"
    )
    # otherwise garbage collection in a child copies all pages that it shares with this process
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            found, status = os.waitpid(order["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if found else None
        else:
            answer = os.fork()
            if answer == 0:
                os._exit(command(order))
        print(json.dumps(answer), flush=True)


def command(order: dict[str, Any]) -> int:
    """Sets up what the shell, the system and Python set up for a new process."""
    os.setsid()
    os.chdir(order["cwd"])
    os.environ.update(order["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A terminal that a session leader opens becomes its controlling terminal.
    for number, path, flags in (
        (0, order["stdin"], os.O_RDONLY),
        (1, order["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, order["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(path, flags, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    # New streams: a stream remembers whether it is a terminal and whether it can seek.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    if order["file_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"], resource.RLIM_INFINITY))
    if order["user"] is not None:
        os.setgroups([])
        os.setgid(order["user"])
        os.setuid(order["user"])
    for name, seconds in order["slow"].items():
        make_slow(*name.split(":"), seconds)
    from lmsmith.cli import run

    try:
        status = run(order["arguments"], started=time.monotonic())
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        return 1
    return status


def make_slow(module: str, name: str, seconds: float) -> None:
    function = getattr(importlib.import_module(module), name)

    @functools.wraps(function)
    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return function(*arguments, **options)

    setattr(importlib.import_module(module), name, slow)


if __name__ == "__main__":
    serve()
