"""The average of the weights: it is the mean of the checkpoints, and survives a kill."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from lmsmith.checkpoint import available, load_checkpoint
from lmsmith.errors import TrainingError
from lmsmith.run_folder import load_for_use
from lmsmith.train.start import resume, train

PROJECT = Path(__file__).resolve().parents[2]
TEXT = "The cat saw a bird.\nA bird hid.\nNobody lost the cat.\n" * 40
CHANGES = {
    "tokenizer": "char",
    "model.n_layer": 1,
    "model.d_model": 16,
    "model.n_head": 2,
    "model.context_length": 16,
    "model.ngram_table_size": 64,
    "train.batch_size": 4,
    "train.threads": 1,
    "train.dtype": "float32",
    "train.matmul": "default",
    "train.device": "cpu",
    "train.steps": 20,
    "train.keep": 99,
}

# Trains until the hook's 17th step and dies there, two steps after the average began.
KILLED = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from weight_average import WeightAverage
from lmsmith.train.start import train

class Deadly(WeightAverage):
    def after_step(self, context):
        super().after_step(context)
        if context.step == 18:
            os.kill(os.getpid(), signal.SIGKILL)

train(["book.txt"], {changes!r}, out=Path("run"), console=Console(quiet=True), hooks=[Deadly()])
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmsmith.train.hooks.sample.SAMPLE_TOKENS", 5)
    monkeypatch.setattr("lmsmith.machine.products.SHAPE", (64, 64, 64))
    Path("book.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def trained(out: str, save_every: int, hook: Any) -> Path:
    changes = CHANGES | {"train.save_every": save_every}
    run, _ = train(["book.txt"], changes, out=Path(out), console=Console(quiet=True), hooks=[hook])
    return run


def test_the_average_is_the_mean_of_the_checkpoints(
    place: Path, example: Callable[[str], ModuleType]
) -> None:
    run = trained("run", 1, example("weight_average").WeightAverage(share=0.25))
    steps = [step for step in available(run) if step >= 15]
    assert steps == [15, 16, 17, 18, 19, 20]
    kept = [load_checkpoint(run, step).tensors["model"] for step in steps]
    found = load_file(run / "average/model.safetensors")
    assert found.keys() == kept[0].keys()
    for name, average in found.items():
        mean = torch.stack([weights[name].double() for weights in kept]).mean(0)
        torch.testing.assert_close(average.double(), mean, rtol=1e-5, atol=1e-7)
        assert not average.is_floating_point() or average.dtype == torch.float32
    model, tokenizer, _ = load_for_use(run / "average")
    ids = torch.from_numpy(tokenizer.encode("The").astype("int64"))[None]
    logits = model.next_logits(ids, model.new_state(1))
    assert logits.isfinite().all()


def test_killed_and_resumed(place: Path, example: Callable[[str], ModuleType]) -> None:
    average = example("weight_average").WeightAverage
    whole = trained("whole", 4, average())
    path = os.pathsep.join([str(PROJECT), str(PROJECT / "examples")])
    died = subprocess.run(
        [sys.executable, "-c", KILLED.format(changes=CHANGES | {"train.save_every": 4})],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert died.returncode == -9, died.stderr
    assert available(Path("run"))[-1] == 16
    assert not Path("run/average").exists()
    resume(Path("run"), console=Console(quiet=True), hooks=[average()])
    for name in ("model", "average"):
        one, other = (run / name / "model.safetensors" for run in (Path("run"), whole))
        assert one.read_bytes() == other.read_bytes(), name


def test_if_the_hook_raises_the_message_names_it(
    place: Path, example: Callable[[str], ModuleType]
) -> None:
    class Broken(example("weight_average").WeightAverage):  # type: ignore[misc]
        def after_step(self, context: Any) -> None:
            super().after_step(context)
            if context.step == 17:
                raise ValueError("no more")

    words = r"the hook 'weight_average' raised ValueError \(no more\) in after_step at step 17"
    with pytest.raises(TrainingError, match=words):
        trained("run", 4, Broken())
    assert available(Path("run"))[-1] == 17
    resume(
        Path("run"), console=Console(quiet=True), hooks=[example("weight_average").WeightAverage()]
    )
    assert Path("run/average/model.safetensors").is_file()
