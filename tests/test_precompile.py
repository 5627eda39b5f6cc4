"""`python -m lmsmith.precompile`: later commands compile nothing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith.checkpoint import save_model
from lmsmith.config.presets import preset
from lmsmith.tokens.ahead import HELPER
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer

COMMANDS = {
    ("split", "cut", "count", "learn", "encode"): [
        *("tokenizer", "train", "text.txt", "--vocab-size", "300", "--out", "tokens"),
    ],
    ("matrices", "attention", "activation", "sampling"): [
        *("generate", "run", "Once", "--max-tokens", "4"),
    ],
}


def lmsmith(folder: Path, *arguments: str, module: str = "lmsmith") -> str:
    """Runs a command with a cache of its own; gives what it writes on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache"), HELPER: "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def make_model(folder: Path) -> None:
    sizes = {"vocab_size": 257, "n_layer": 1, "n_head": 1, "d_model": 16, "context_length": 16}
    changes = {f"model.{name}": value for name, value in sizes.items()}
    config: Any = preset("llama").changed(changes, where="here").model
    model = config.build()
    model.initialise(torch.Generator().manual_seed(1))
    save_model(folder, dict(model.named_parameters()), {"model": vars(config)})
    save_tokenizer(ByteTokenizer(True), folder)


def files(folder: Path) -> set[Path]:
    return set((folder / "cache").rglob("*.nb?"))


@pytest.mark.slow
@pytest.mark.parametrize("parts", COMMANDS)
def test_a_command_finds_everything_compiled(tmp_path: Path, parts: tuple[str, ...]) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time there was a dog. " * 99)
    make_model(tmp_path / "run")
    lmsmith(tmp_path, *parts, module="lmsmith.precompile")
    compiled = files(tmp_path)
    assert compiled
    assert "compiling" not in lmsmith(tmp_path, *COMMANDS[parts])
    assert files(tmp_path) == compiled


def test_an_unknown_part_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lmsmith.precompile", "nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("nothing: expected parts of learn, split, ")
