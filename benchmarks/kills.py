"""Kills runs at random moments and checks that their weights equal, bit for bit, those of an
undisturbed run.

    python benchmarks/kills.py --kills 100 --processes 2
    python benchmarks/kills.py --kills 20 --within-saves        # GPT-2 124M: 15 GB of disk, half an hour on two cores

SIGKILLs all processes of a run of a few seconds, at times drawn uniformly over its length, or while
a checkpoint is half written. The run is then resumed, and killed again, until it completes.
Compares the SHA-256 of the tensors in model/model.safetensors. Linux only.
"""

import argparse
import contextlib
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

SMALL = """--model.n_layer 2 --model.d_model 32 --model.n_head 2 --model.context_length 32 --model.ngram_table_size 512
    --train.batch_size 4 --train.eval_every 60 --train.save_every 25 --steps 400"""
GPT2 = """--preset gpt2 --model.context_length 32 --model.vocab_multiple 50304 --train.batch_size 1
    --train.eval_every 99 --train.save_every 1 --steps 12"""
EXACT = "--train.matmul default --train.threads 1 --train.dtype float32"
WORDS = (
    "the",
    "a",
    "one",
    "cat",
    "dog",
    "bird",
    "saw",
    "took",
    "lost",
    "hat",
    "ball",
    "at home",
    "again",
    ".",
    ".",
)


def command(n: int, *words: str) -> list[str]:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)] if n > 1 else []
    )
    return [sys.executable, *launcher, "-m", "lmsmith", *words]


def weights(run: Path) -> str:
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for name, array in sorted(load_file(run / "model" / "model.safetensors").items()):
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()


def children(process: int) -> list[int]:
    """torchrun's workers, which run in sessions of their own."""
    done = subprocess.run(
        ["pgrep", "-P", str(process)], capture_output=True, text=True, check=False
    )
    return [int(number) for number in done.stdout.split()]


def half_written(run: Path) -> list[Path]:
    """Temporary folders of checkpoints; complete checkpoints have another name."""
    with contextlib.suppress(FileNotFoundError):
        return [
            folder
            for folder in run.glob("checkpoints/.*.partial")
            if any(folder.glob("*.safetensors"))
        ]
    return []


def wait_for_save(process: "subprocess.Popen[bytes]", run: Path, seconds: float) -> None:
    """Waits until a save of `run` has lasted `seconds` or has ended, or the process has ended."""
    earlier = set(half_written(run))
    while process.poll() is None and not set(half_written(run)) - earlier:
        time.sleep(0.01)
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until and half_written(run):
        time.sleep(0.005)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument(
        "--within-saves",
        action="store_true",
        help="train GPT-2 124M, and kill only while a checkpoint is being written",
    )
    chosen = options.parse_args()
    rng = random.Random(chosen.seed)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    settings = ((GPT2 if chosen.within_saves else SMALL) + " " + EXACT).split()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "text.txt").write_text(
            " ".join(rng.choice(WORDS) for _ in range(6000)), encoding="utf-8"
        )

        def start(*what: str) -> "subprocess.Popen[bytes]":
            return subprocess.Popen(
                command(chosen.processes, *what),
                cwd=scratch,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

        began = time.monotonic()
        assert start("train", "text.txt", *settings, "--out", "alone").wait() == 0
        run_seconds = time.monotonic() - began
        expected = weights(scratch / "alone")
        shutil.rmtree(scratch / "alone")
        print(f"undisturbed it takes {run_seconds:.0f} s", flush=True)
        run = scratch / "run"
        n_kills = n_runs = n_before = n_within = 0
        while n_kills < chosen.kills:
            shutil.rmtree(run, ignore_errors=True)
            while True:
                what = (
                    ["resume", "run"]
                    if run.exists()
                    else ["train", "text.txt", *settings, "--out", "run"]
                )
                process, begun = start(*what), time.monotonic()
                if n_kills < chosen.kills and chosen.within_saves:
                    if rng.random() < 0.5:
                        wait_for_save(process, run, 60)  # waits for its end
                    wait_for_save(process, run, rng.uniform(0, 2.5))
                elif n_kills < chosen.kills:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=rng.uniform(0.3, 1.0) * run_seconds)
                else:
                    process.wait()
                if process.poll() is not None:
                    # the shortest time, because other programs may slow some runs
                    run_seconds = min(run_seconds, time.monotonic() - begun)
                    break
                n_before += not run.exists()
                for number in (*children(process.pid), process.pid):
                    os.kill(number, signal.SIGKILL)
                process.wait()
                within = bool(half_written(run))
                n_within += within
                n_kills += within or not chosen.within_saves
                print(f"{n_kills} kills, {n_within} during a save", flush=True)
            assert process.returncode == 0, process.returncode
            n_runs += 1
            assert weights(run) == expected, f"after {n_kills} kills the weights differ"
            print(f"{n_kills} kills, {n_runs} runs: identical weights", flush=True)
    print(
        f"{n_kills} kills of {chosen.processes} processes, {n_before} before the run folder "
        f"existed, {n_within} during a save; {n_runs} runs, one hash"
    )


if __name__ == "__main__":
    main()
