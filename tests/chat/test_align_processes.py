"""Preference training in real processes: killed in the reference pass and in training, and on two
ranks.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from chats import QUIET, SHORT, make_base, write_chats

from lmsmith.chat.sft import tune
from lmsmith.train.start import resume

PROGRAM = """
import json, os, sys, signal
from pathlib import Path
from rich.console import Console
import lmsmith.chat.align as align
kill_after, save = int(sys.argv[5]), align.save_array
def saving(path, array):
    global kill_after
    save(path, array)
    kill_after -= 1
    if not kill_after:
        os.kill(os.getpid(), signal.SIGKILL)
align.save_array, align.BLOCK = saving, 16
align.align(Path(sys.argv[1]), [sys.argv[2]], json.loads(sys.argv[3]), out=Path(sys.argv[4]),
            console=Console(quiet=True))
"""
LORA = {"lora.rank": 4, "optim.learning_rate": 1e-2, "align.method": "kto"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run sft, and pairs.parquet."""
    folder = tmp_path_factory.mktemp("align")
    write_chats(folder / "chats.jsonl")
    base = make_base(folder)
    tune(base, [str(folder / "chats.jsonl")], SHORT, out=folder / "sft", console=QUIET)
    numbers = range(80)
    columns = {
        "prompt": [f"saw {i}?" for i in numbers],
        "chosen": [[{"role": "assistant", "content": f"x {i}"}] for i in numbers],
        "rejected": [[{"role": "assistant", "content": "y z" * (1 + i % 3)}] for i in numbers],
    }
    pyarrow.parquet.write_table(pa.table(columns), folder / "pairs.parquet")
    return folder


def words(place: Path, settings: dict[str, Any], out: Path, kill_after: int = 0) -> list[str]:
    paths = str(place / "sft"), str(place / "pairs.parquet")
    given = json.dumps(SHORT | {"train.batch_size": 8, "train.keep": 2} | settings)
    return ["-c", PROGRAM, *paths, given, str(out), str(kill_after)]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, LORA], ids=["dpo", "kto with LoRA"])
def test_a_run_killed_in_the_reference_pass_and_in_training_resumes_bit_for_bit(
    more: dict[str, Any], place: Path, tmp_path: Path
) -> None:
    long = {"train.steps": 150, "train.save_every": 10} | more
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    subprocess.run([sys.executable, *words(place, long, alone)], check=True)
    done = subprocess.run([sys.executable, *words(place, long, killed, kill_after=3)])
    assert done.returncode == -signal.SIGKILL
    blocks = sorted((killed / "tokens" / "reference").iterdir())
    assert blocks
    assert not (killed / "tokens" / "train.reference.npy").exists()
    before = {path: path.stat().st_mtime_ns for path in blocks}
    program = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "import lmsmith.chat.align as align; align.BLOCK = 16\n"
        "from lmsmith.train.start import resume\n"
        "resume(Path(sys.argv[1]), console=Console(quiet=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(killed)])
    while not list(killed.glob("checkpoints/step-0000003*")):
        assert process.poll() is None
        for path, written in before.items():  # finished blocks are not computed again
            assert not path.exists() or path.stat().st_mtime_ns == written
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "summary.json").exists()
    resume(killed, console=QUIET)
    for name in ("train.reference.npy", "val.reference.npy"):
        one, other = (np.load(run / "tokens" / name) for run in (killed, alone))
        assert np.array_equal(one, other)
    assert weights(killed) == weights(alone)


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    names = {"train": "loss", "eval": "val_loss"}
    return [line[names[line["kind"]]] for line in lines if line["kind"] in names]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_two_ranks_have_the_losses_of_one(method: str, place: Path, tmp_path: Path) -> None:
    settings = {"train.dtype": "float64", "align.method": method, "train.steps": 6}
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run([sys.executable, *words(place, settings, one)], check=True)
    (tmp_path / "program.py").write_text(PROGRAM)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(tmp_path / "program.py"), *words(place, settings, two)[2:]]
    subprocess.run([sys.executable, *command], check=True)
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
    assert len(losses(one)) >= 8
