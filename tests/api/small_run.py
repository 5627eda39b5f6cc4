"""A text, and settings with which a run on it takes a second."""

from typing import Any

TEXT = (
    "".join(
        f"{a} {b} {c}.\n"
        for a in ("The cat", "A bird", "Nobody", "It was")
        for b in ("saw", "hid", "lost")
        for c in "xyz"
    )
    * 20
)

TINY: dict[str, Any] = {
    "model.n_layer": 1,
    "model.d_model": 16,
    "model.n_head": 2,
    "model.context_length": 16,
    "train.batch_size": 4,
    "train.threads": 1,
    "train.device": "cpu",
    "train.dtype": "float32",
    "train.matmul": "default",
    "train.eval_every": 10,
    "train.log_every": 5,
}
