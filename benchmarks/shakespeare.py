"""Time from start to a validation loss of 1.88 on Shakespeare by characters: lmsmith, and nanoGPT's
CPU recipe.

    python benchmarks/shakespeare.py tinyshakespeare.txt --nanogpt PATH_TO_A_CLONE_OF_NANOGPT

nanoGPT (with its data prepared, as its README says) runs its own recipe for CPUs: 4 layers, width
128, context 64, batch 12, 2,000 steps. Its training time is the sum of the times it prints, with
the median in place of iterations that evaluate. lmsmith runs `recipes/shakespeare-char.toml` until
an evaluation on the full validation split reaches the target. Commands run one after the other, for
each seed in turn. Reports medians.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = Path(__file__).parent.parent / "recipes" / "shakespeare-char.toml"
# From nanoGPT's README, "I only have a macbook". Every iteration is printed, to separate training
# from evaluation.
NANOGPT = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=1 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("text", type=Path)
    options.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    options.add_argument("--target", type=float, default=1.88)
    options.add_argument("--seeds", type=int, default=3)
    given = options.parse_args()
    ours, theirs = [], []
    for seed in range(1, given.seeds + 1):
        ours.append(_lmsmith(given.text, given.target, seed))
        if given.nanogpt:
            theirs.append(_nanogpt(given.nanogpt, seed))
    for name, results in (("lmsmith", ours), ("nanoGPT", theirs)):
        for training, total, loss in results:
            print(
                f"{name}: {training:.1f} s of training, {total:.1f} s for the complete command, "
                f"val loss {loss:.4f}"
            )
    median = [statistics.median(values) for values in zip(*ours, strict=True)]
    print(
        f"lmsmith, median: {median[0]:.1f} s of training, {median[1]:.1f} s for the complete "
        "command"
    )
    if theirs:
        nanogpt_median = [statistics.median(values) for values in zip(*theirs, strict=True)]
        print(
            f"nanoGPT, median: {nanogpt_median[0]:.1f} s of training, {nanogpt_median[1]:.1f} s for the complete "
            "command"
        )
        print(
            f"lmsmith / nanoGPT: {median[0] / nanogpt_median[0]:.3f} of the training time, "
            f"{median[1] / nanogpt_median[1]:.3f} of the complete command's"
        )


def _lmsmith(text: Path, target: float, seed: int) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = (
            f"-m lmsmith train {RECIPE} {text} --stop-at-val-loss {target} --seed {seed} "
            f"--out {run}"
        )
        start = time.perf_counter()
        subprocess.run([sys.executable, *command.split()], check=True, stdout=subprocess.DEVNULL)
        total = time.perf_counter() - start
        summary = json.loads((run / "summary.json").read_text())
    assert summary["seconds_to_target"] is not None, (
        f"{summary['best_val_loss']} is above the target"
    )
    return summary["seconds_to_target"], total, summary["val_loss"]


def _nanogpt(folder: Path, seed: int) -> tuple[float, float, float]:
    source = (folder / "train.py").read_text()
    assert "torch.manual_seed(1337 + seed_offset)" in source, (
        "this version of nanoGPT is not supported: its train.py sets its seed differently"
    )
    seeded = folder / "train_seeded.py"
    seeded.write_text(source.replace("1337 + seed_offset", f"1337 + seed_offset + {seed}"))
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, seeded.name, *NANOGPT.split()],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    total = time.perf_counter() - start
    times = [
        float(ms) / 1000
        for ms in re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", result.stdout)
    ]
    usual = statistics.median(times)
    losses = re.findall(r"val loss ([\d.]+)", result.stdout)
    return (
        sum(t if t < 4 * usual else usual for t in times),
        total,
        min(float(loss) for loss in losses),
    )


if __name__ == "__main__":
    main()
