"""A small base model, conversations about its text, and the settings of a run within a second."""

import json
import random
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith.train.start import train

WORDS = ["The", "cat", "bird", "Nobody", "saw", "hid", "lost", "x", "y", "z"]
QUIET = Console(quiet=True)
MACHINE: dict[str, Any] = {
    "train.threads": 1,
    "train.device": "cpu",
    "train.dtype": "float32",
    "train.matmul": "default",
    "train.log_every": 1,
}
SHORT = MACHINE | {
    "train.steps": 10,
    "train.eval_every": 5,
    "train.save_every": 5,
    "train.keep": 9,
    "train.batch_size": 2,
}
MODEL = {
    "model.n_layer": 1,
    "model.d_model": 16,
    "model.n_head": 2,
    "model.context_length": 64,
}


def write_chats(path: Path, n: int = 60, seed: int = 0) -> None:
    """Short conversations of one or two exchanges."""
    draw = random.Random(seed)

    def say(role: str) -> dict[str, str]:
        return {"role": role, "content": " ".join(draw.choices(WORDS, k=draw.randint(1, 3)))}

    with path.open("w") as file:
        for _ in range(n):
            turns = [say(role) for role in ["user", "assistant"] * draw.randint(1, 2)]
            file.write(json.dumps({"messages": turns}) + "\n")


def make_base(folder: Path, *, preset: str = "llama", **changes: Any) -> Path:
    """A run of a few steps, at `folder`/base."""
    text = folder / "book.txt"
    text.write_text(
        "".join(f"{a} {b} {c}.\n" for a in WORDS[:4] for b in WORDS[4:7] for c in "xyz") * 20
    )
    settings = MODEL | SHORT | {"preset": preset, "tokenizer": "byte", "train.batch_size": 4}
    if preset == "modern":
        settings["model.ngram_table_size"] = 64
    train([str(text)], settings | changes, out=folder / "base", console=QUIET)
    return folder / "base"
