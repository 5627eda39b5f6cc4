"""Runs that are killed at random moments, again and again, against one left alone: the same weights, bit by bit.

    python benchmarks/kills.py --kills 100 --processes 2

Kills (SIGKILL of all processes of a run) come at times drawn evenly from start to end of a run of some seconds; it is
then resumed, and killed again, until it comes through. The SHA-256 of model/model.safetensors's tensors is compared.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = [
    *("--model.n_layer", "2", "--model.d_model", "32", "--model.n_head", "2", "--model.context_length", "32"),
    *(
        "--model.ngram_table_size",
        "512",
        "--train.batch_size",
        "4",
        "--train.matmul",
        "default",
        "--train.threads",
        "1",
    ),
    *(
        "--train.dtype",
        "float32",
        "--train.eval_every",
        "60",
        "--train.save_every",
        "25",
        "--steps",
        "400",
        "--train.threads",
        "1",
    ),
]
WORDS = ("the", "a", "one", "cat", "dog", "bird", "saw", "took", "lost", "hat", "ball", "at home", "again", ".", ".")


def command(n: int, *words: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)] if n > 1 else []
    return [sys.executable, *launcher, "-m", "lmsmith", *words]


def weights(run: Path) -> str:
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for name, array in sorted(load_file(run / "model" / "model.safetensors").items()):
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()


def children(process: int) -> list[int]:
    """torchrun's workers, which are in sessions of their own. Linux."""
    done = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)
    return [int(number) for number in done.stdout.split()]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    rng = random.Random(chosen.seed)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "text.txt").write_text(" ".join(rng.choice(WORDS) for _ in range(6000)), encoding="utf-8")

        def start(*what: str) -> "subprocess.Popen[bytes]":
            return subprocess.Popen(
                command(chosen.processes, *what),
                cwd=place,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

        began = time.monotonic()
        assert start("train", "text.txt", *SETTINGS, "--out", "alone").wait() == 0
        whole = time.monotonic() - began
        wanted = weights(place / "alone")
        n_kills = n_runs = n_before = 0
        while n_kills < chosen.kills:
            run = place / "run"
            shutil.rmtree(run, ignore_errors=True)
            while True:
                process = (
                    start("resume", "run") if run.exists() else start("train", "text.txt", *SETTINGS, "--out", "run")
                )
                try:
                    process.wait(timeout=rng.uniform(0.3, 1.0) * whole if n_kills < chosen.kills else None)
                except subprocess.TimeoutExpired:
                    n_before += not run.exists()
                    for number in (*children(process.pid), process.pid):
                        os.kill(number, signal.SIGKILL)
                    process.wait()
                    n_kills += 1
                    continue
                assert process.returncode == 0, process.returncode
                break
            n_runs += 1
            assert weights(run) == wanted, f"after {n_kills} kills the weights are others"
            print(f"{n_kills} kills, {n_runs} runs: the same weights", flush=True)
    early = f"{n_before} before the run was there"
    print(f"{n_kills} kills of {chosen.processes} processes, {early}; {n_runs} runs, one hash")


if __name__ == "__main__":
    main()
