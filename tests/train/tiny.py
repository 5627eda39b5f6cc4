"""A text, and settings of a model that trains on it within a second."""

TEXT = (
    "".join(
        f"{a} {b} {c}.\n"
        for a in ("The cat", "A bird", "Nobody")
        for b in ("saw", "hid", "lost")
        for c in "xyz"
    )
    * 20
)

TINY = {
    "model.n_layer": 1,
    "model.d_model": 16,
    "model.n_head": 2,
    "model.context_length": 16,
    "model.ngram_table_size": 64,
    "train.batch_size": 4,
    "train.threads": 1,
    "train.device": "cpu",
    "train.dtype": "float32",
    "train.matmul": "default",
    "train.log_every": 1,
    "train.eval_every": 5,
    "train.steps": 20,
}
