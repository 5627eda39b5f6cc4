"""`--engine reference`: the same command, run folder and model as by PyTorch; a killed run goes
on bit for bit.
"""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import Lmsmith
from safetensors.numpy import load_file

BY_HAND = [
    *["--engine", "reference", "--preset", "babygpt", "--tokenizer", "char"],
    *["--model.n_layer=2", "--model.d_model=24", "--model.n_head=3", "--model.context_length=16"],
    *["--train.batch_size=4", "--train.threads=1", "--train.matmul=default"],
]


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model" / "model.safetensors")


def losses(run: Path) -> dict[tuple[str, int], float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {
        (line["kind"], line["step"]): line["loss" if line["kind"] == "train" else "val_loss"]
        for line in lines
    }


def test_the_reference_engine_makes_the_same_run_as_pytorch(lmsmith: Lmsmith) -> None:
    done = lmsmith(
        "train", "book.txt", "--steps", 30, *BY_HAND, "--train.dtype=float64", "--out", "hand"
    )
    assert done.status == 0, done.err
    said = " ".join(done.out.split())
    assert (
        "has no dropout: model.dropout and model.attention_dropout of preset babygpt set to 0"
        in said
    )
    assert "by hand in NumPy" in said
    hand, torch = lmsmith.cwd / "hand", lmsmith.cwd / "torch"
    # Its config.toml is a recipe; the settings of the machine and all others but the engine stay.
    recipe = shutil.copy(hand / "config.toml", lmsmith.cwd / "recipe.toml")
    done = lmsmith("train", recipe, "--engine", "torch", "--out", "torch")
    assert done.status == 0, done.err
    assert sorted(p.name for p in hand.iterdir()) == sorted(p.name for p in torch.iterdir())
    ours, theirs = losses(hand), losses(torch)
    assert ours.keys() == theirs.keys()
    for at, loss in theirs.items():
        assert ours[at] == pytest.approx(loss, rel=1e-9), at
    summaries = [json.loads((run / "summary.json").read_text()) for run in (hand, torch)]
    assert summaries[0].keys() == summaries[1].keys()
    assert summaries[0]["n_params"] == summaries[1]["n_params"]
    for name, array in weights(torch).items():
        np.testing.assert_allclose(weights(hand)[name], array, rtol=0, atol=1e-8)

    text = [
        lmsmith("generate", run, "The", "--max-tokens", 40, "--seed", 1)
        for run in ("hand", "torch")
    ]
    assert text[0].status == 0, text[0].err
    assert text[0].out == text[1].out
    assert lmsmith("eval", "hand").status == 0


@pytest.mark.skipif(
    not hasattr(signal, "SIGKILL"), reason="Windows has no signals to other processes"
)
def test_a_killed_run_resumes_bit_for_bit(lmsmith: Lmsmith) -> None:
    command = [
        "train",
        "book.txt",
        "--steps",
        40,
        *BY_HAND,
        "--train.save_every=10",
        "--train.eval_every=20",
    ]
    assert lmsmith(*command, "--out", "whole").status == 0
    running = lmsmith.start(*command, "--train.keep=9", "--out", "killed")
    killed = lmsmith.cwd / "killed"
    running.until(lambda: (killed / "checkpoints" / "step-00000020").is_dir())
    running.send(signal.SIGKILL)
    running.wait()
    for late in ("30", "40"):  # whatever step it reached
        shutil.rmtree(killed / "checkpoints" / f"step-000000{late}", ignore_errors=True)
    shutil.rmtree(killed / "model", ignore_errors=True)
    (killed / "summary.json").unlink(missing_ok=True)
    done = lmsmith("resume", "killed")
    assert done.status == 0, done.err
    assert "at step 20" in done.out
    found = weights(killed)
    for name, array in weights(lmsmith.cwd / "whole").items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--preset", "modern"], "computes only GPT-2"),
        (["--preset", "babygpt", "--model.dropout", "0.1"], "no dropout"),
        (["--preset", "gpt2", "--train.batch_size", "100000"], "--train.micro_batch_size"),
    ],
)
def test_an_unsupported_setting_leaves_no_files(
    lmsmith: Lmsmith, words: list[str], told: str
) -> None:
    done = lmsmith(
        "train", "book.txt", "--engine", "reference", "--steps", 2, *words, "--out", "run"
    )
    assert done.status == 2
    assert told in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert not (lmsmith.cwd / "run").exists()
