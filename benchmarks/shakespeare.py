"""Seconds from pressing return to a validation loss of 1.88 on Shakespeare by characters, beside
nanoGPT's CPU recipe.

    python benchmarks/shakespeare.py tinyshakespeare.txt --nanogpt PATH_TO_A_CLONE_OF_NANOGPT

nanoGPT (with its data prepared, as its README says) runs its own recipe for CPUs: 4 layers, width
128, context 64, batch 12, 2,000 steps. Its time of updates is the sum of the times it prints, an
iteration that evaluated counted as the median one. lmsmith runs `recipes/shakespeare-char.toml`
until its first evaluation on the whole validation split that reaches the target. Commands run one
after the other, seeds in turn; medians are printed.
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
# nanoGPT's README, "I only have a macbook"; every iteration is printed so that updates can be told
# from evaluations.
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
    for name, found in (("lmsmith", ours), ("nanoGPT", theirs)):
        for updates, whole, loss in found:
            print(
                f"{name}: {updates:.1f} s of updates, {whole:.1f} s as a whole command, val loss "
                f"{loss:.4f}"
            )
    middle = [statistics.median(values) for values in zip(*ours, strict=True)]
    print(f"lmsmith, median: {middle[0]:.1f} s of updates, {middle[1]:.1f} s as a whole command")
    if theirs:
        other = [statistics.median(values) for values in zip(*theirs, strict=True)]
        print(f"nanoGPT, median: {other[0]:.1f} s of updates, {other[1]:.1f} s as a whole command")
        print(
            f"lmsmith / nanoGPT: {middle[0] / other[0]:.3f} of the updates, "
            f"{middle[1] / other[1]:.3f} of the whole"
        )


def _lmsmith(text: Path, target: float, seed: int) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        command = (
            f"-m lmsmith train {RECIPE} {text} --stop-at-val-loss {target} --seed {seed} "
            f"--out {run}"
        )
        began = time.perf_counter()
        subprocess.run([sys.executable, *command.split()], check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - began
        summary = json.loads((run / "summary.json").read_text())
    assert summary["seconds_to_target"] is not None, (
        f"{summary['best_val_loss']} is above the target"
    )
    return summary["seconds_to_target"], whole, summary["val_loss"]


def _nanogpt(place: Path, seed: int) -> tuple[float, float, float]:
    source = (place / "train.py").read_text()
    assert "torch.manual_seed(1337 + seed_offset)" in source, (
        "another nanoGPT than the one this was written for"
    )
    seeded = place / "train_seeded.py"
    seeded.write_text(source.replace("1337 + seed_offset", f"1337 + seed_offset + {seed}"))
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, seeded.name, *NANOGPT.split()],
        cwd=place,
        check=True,
        capture_output=True,
        text=True,
    )
    whole = time.perf_counter() - began
    times = [
        float(ms) / 1000
        for ms in re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", done.stdout)
    ]
    usual = statistics.median(times)
    losses = re.findall(r"val loss ([\d.]+)", done.stdout)
    return (
        sum(t if t < 4 * usual else usual for t in times),
        whole,
        min(float(loss) for loss in losses),
    )


if __name__ == "__main__":
    main()
