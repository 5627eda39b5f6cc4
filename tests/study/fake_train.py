"""Stands in for `lmsmith train` and `lmsmith resume` in tests of the runner: it writes what a run
leaves behind, in milliseconds. Its learning rate says what happens: 0.1 diverges, 0.5 fails, 0.05
waits for a file `go` beside the runs, and saves if it is told to stop."""

import json
import signal
import sys
import time
import tomllib
from pathlib import Path

recipe, run = map(Path, sys.argv[1:])
settings = tomllib.loads(recipe.read_text())
rate, seed = settings["optim"]["learning_rate"], settings["train"]["seed"]
study = run.parent.parent
with (study / "starts").open("a") as file:
    file.write(f"{run.name}{' again' if (run / 'saved').exists() else ''}\n")
run.mkdir(exist_ok=True)
(run / "config.toml").write_text(recipe.read_text())


def summary(**more):
    row = {"finished": "tokens", "signal": None, "steps": 9, "tokens_seen": 900, "n_params": 50}
    (run / "summary.json").write_text(json.dumps(row | {"train_seconds": 0.1} | more))


def stop(*_):
    (run / "saved").touch()
    summary(finished="signal", signal="SIGTERM")
    sys.exit(143)


signal.signal(signal.SIGTERM, stop)
if rate == 0.05:
    (run / "started").touch()
    while not (study / "go").exists():
        time.sleep(0.01)
if rate == 0.1:
    sys.exit("lmsmith: step 3: the validation loss is nan, so training has diverged. Lower it.")
if rate == 0.5:
    sys.exit("lmsmith: no text")
value = 2 + 0.1 * ((seed * 7919) % 13) / 13 + 0.3 * rate * (1 + 0.1 * (seed % 3))
with (run / "metrics.jsonl").open("w") as file:
    for step in (3, 6, 9):
        row = {"kind": "eval", "step": step, "tokens": 100 * step, "seconds": step / 90}
        more = {"val_loss": value * 5 / step, "val_bits_per_byte": value + 1 / step}
        file.write(json.dumps(row | more) + "\n")
(run / "samples.md").write_text("## step 9\n\n```\nOnce <b>upon\n```\n")
summary(val_bits_per_byte=value, val_loss=value * 0.7)
