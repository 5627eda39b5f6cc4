"""Starts the ranks of a run without torchrun and without the seconds that importing torch takes:
this server imports it once, and forks for each rank. Linux only.

It reads orders from standard input, one JSON object per line: {"words": [...], "script": path or
null, "n": ranks, "cwd": ..., "said": path} runs `lmsmith WORDS` or the script with these words on n
ranks, writes their output to said.out and said.err, and replies with 0 or the first exit status that
is not 0. Like torchrun, it then ends the other ranks.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from typing import Any

# As for tests/cli/fork_server.py
IMPORTED = ["torch._dynamo", "torch.distributed.fsdp", "lmsmith.cli", "lmsmith.train.start"]


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(ranks(json.loads(line))), flush=True)


def ranks(order: dict[str, Any]) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = set()
    for rank in range(order["n"]):
        if (child := os.fork()) == 0:
            if order["n"] > 1:
                environment |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
                environment |= {
                    name: str(order["n"]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
                }
                os.environ.update(environment)
            status = 1
            try:
                status = command(order)
            finally:
                os._exit(status)
        running.add(child)
    failed = 0
    while running:
        child, code = os.wait()
        running.discard(child)
        if code and not failed:
            failed = os.waitstatus_to_exitcode(code)
            time.sleep(0.5)  # the others may be about to say what is wrong, too
            for other in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGTERM)
    return failed


def command(order: dict[str, Any]) -> int:
    os.chdir(order["cwd"])
    for number, ending in ((1, ".out"), (2, ".err")):
        opened = os.open(order["said"] + ending, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(opened, number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", closefd=False)
    sys.argv = [order["script"] or "lmsmith", *order["words"]]
    try:
        if order["script"]:
            sys.path.insert(0, os.path.dirname(order["script"]))
            runpy.run_path(order["script"], run_name="__main__")
        else:
            from lmsmith.__main__ import main

            main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    serve()
