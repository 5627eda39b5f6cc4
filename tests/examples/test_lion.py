"""Lion against the paper's formulas, and resumed bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/lion.py"
LOADED = {"LMSMITH_EXTENSIONS": str(EXAMPLE)}


def test_the_formulas_of_the_paper(example: Callable[[str], ModuleType]) -> None:
    """Chen et al. 2023, algorithm 2, in NumPy, with a rate that changes from step to step."""
    rng = np.random.default_rng(1)
    wanted = [rng.normal(size=(4, 3)), rng.normal(size=5)]
    momenta = [np.zeros_like(weight) for weight in wanted]
    found = [torch.tensor(weight, requires_grad=True) for weight in wanted]
    decays, (beta1, beta2) = (0.1, 0.0), (0.9, 0.95)
    groups = [
        {"params": [weight], "lr": 0.1, "weight_decay": decay}
        for weight, decay in zip(found, decays, strict=True)
    ]
    lion = example("lion").Lion(groups, beta1, beta2)
    for step in range(20):
        rate = 0.1 / (1 + step)
        for at, (weight, momentum, decay) in enumerate(zip(wanted, momenta, decays, strict=True)):
            gradient = rng.normal(size=weight.shape)
            update = np.sign(beta1 * momentum + (1 - beta1) * gradient)
            weight -= rate * (update + decay * weight)
            momenta[at][...] = beta2 * momentum + (1 - beta2) * gradient
            found[at].grad = torch.tensor(gradient)
        for group in lion.param_groups:
            group["lr"] = rate
        lion.step()
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other, rtol=1e-12)


def test_trained_killed_and_resumed(lmsmith: Any) -> None:
    train = ["train", "book.txt", "--preset=gru", "--optim.name=lion", "--tokenizer=char"]
    train += ["--optim.learning_rate=1e-2", "--model.d_model=16", "--model.context_length=16"]
    train += ["--train.batch_size=8", "--train.threads=1", "--train.matmul=default", "--steps=40"]
    train += ["--train.save_every=10", "--train.log_every=1", "--out"]
    whole = lmsmith(*train, "whole", environment=LOADED)
    assert whole.status == 0, whole.err
    lines = (lmsmith.cwd / "whole/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert losses[-1] < 0.9 * losses[0]
    killed = lmsmith.start(*train, "run", environment=LOADED, slow={"os:fsync": 0.02})
    killed.until((lmsmith.cwd / "run/checkpoints/step-00000020").is_dir)
    killed.send(9)
    assert killed.wait().status == -9
    missing = lmsmith("resume", "run")
    assert missing.status == 2
    said = " ".join(missing.err.split())
    assert f"run needs the optimizer 'lion' of an extension from {EXAMPLE}, which is not" in said
    resumed = lmsmith("resume", "run", environment=LOADED)
    assert resumed.status == 0, resumed.err
    for name in ("model/model.safetensors", "checkpoints/step-00000040/optimizer.safetensors"):
        one, other = (lmsmith.cwd / run / name for run in ("run", "whole"))
        assert one.read_bytes() == other.read_bytes(), name
    # A trained model does not need its optimizer.
    assert lmsmith("generate", "run", "The", "--max-tokens=5").status == 0


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (
            "lambda groups, config: None",
            "optim.name = 'odd' returned a NoneType, expected a torch.optim",
        ),
        (
            "Counting",
            "the optimizer Counting keeps a value of type int in its state (n/blocks.0.kernel.",
        ),
    ],
)
def test_an_optimizer_that_cannot_be_used(lmsmith: Any, factory: str, words: str) -> None:
    code = f"""
import torch
from lmsmith.extend import register_optimizer
class Counting(torch.optim.Optimizer):
    def __init__(self, groups, config):
        super().__init__(groups, {{}})
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["n"] = 1
register_optimizer("odd", {factory})
"""
    (lmsmith.cwd / "odd_optimizer.py").write_text(code, encoding="utf-8")
    done = lmsmith(
        *("train", "book.txt", "--preset=gru", "--optim.name=odd", "--tokenizer=char"),
        *("--model.d_model=16", "--model.context_length=16", "--train.batch_size=8"),
        *("--train.threads=1", "--train.matmul=default", "--steps=2"),
        environment={"LMSMITH_EXTENSIONS": "odd_optimizer.py"},
    )
    assert done.status != 0
    assert words in " ".join(done.err.split())
    assert "Traceback" not in done.err
