"""Settings of one run: its length, batch, rhythm and machine."""

import math
from dataclasses import dataclass
from typing import Literal

from lmsmith.config.settings import check, setting


@dataclass(frozen=True)
class TrainConfig:
    """One run's length, batch, rhythm and machine."""

    steps: int = setting(
        0, "number of optimizer steps; auto: from --minutes, --tokens or --epochs", zero="auto"
    )
    minutes: float = setting(
        0.0,
        "the whole command ends within this; auto: 10, unless --steps, --tokens or --epochs give "
        "the length",
        zero="auto",
    )
    tokens: int = setting(
        0, "number of training tokens; auto: from --steps, --minutes or --epochs", zero="auto"
    )
    epochs: float = setting(
        0.0,
        "passes over the training tokens of all sources; auto: from --steps, --minutes or --tokens",
        zero="auto",
    )
    batch_size: int = setting(32, "sequences per step")
    batch_tokens: int = setting(
        0,
        "tokens per step, instead of batch_size: rounded to whole sequences; none: use batch_size",
        zero="none",
    )
    initial_batch_size: int = setting(
        0,
        "batch-size warm-up: sequences of the first step, growing to batch_size; none: no warm-up",
        zero="none",
    )
    batch_warmup_fraction: float = setting(
        0.5, "with initial_batch_size: share of the steps over which the batch grows, linearly"
    )
    micro_batch_size: int = setting(
        0,
        "gradient accumulation: sequences per forward and backward pass; auto: the whole batch",
        zero="auto",
    )
    truncated_bptt: bool = setting(
        False,
        "recurrent networks: each sequence starts from the state in which the previous batch "
        "ended it; gradients stop there",
    )
    init_from: str = setting(
        "",
        "fine-tune: start from the weights and tokenizer of this run, trained here or imported",
        zero="none",
    )
    seed: int = setting(1, "determines initial weights, data order and dropout")
    eval_every: int = setting(
        0,
        "steps between evaluations on the whole validation split; auto: about ten per run",
        zero="auto",
    )
    tasks: tuple[str, ...] = setting(
        (), "benchmark tasks to run while training and at the end, such as hellaswag"
    )
    task_every: int = setting(
        0, "with tasks: steps between them; auto: after each evaluation", zero="auto"
    )
    task_limit: int = setting(200, "with tasks: only the first N items of each")
    task_data: str = setting(
        "", "with tasks: the folder with their items; none: they are downloaded", zero="none"
    )
    save_every: int = setting(
        0, "steps between checkpoints; auto: about one per minute", zero="auto"
    )
    log_every: int = setting(
        0, "steps between lines of metrics; auto: about two hundred per run", zero="auto"
    )
    keep: int = setting(2, "number of checkpoints kept (the best one is kept as well)")
    track: tuple[Literal["tensorboard", "wandb"], ...] = setting(
        (), "also send the numbers of metrics.jsonl to tensorboard or wandb"
    )
    on_spike: Literal["no", "stop", "skip", "rewind"] = setting(
        "no",
        "what to do on a loss or gradient-norm spike: stop with a record; skip that step; or "
        "rewind to the last checkpoint and skip it",
    )
    spike_z: float = setting(
        6.0, "a spike is this many standard deviations above the running mean of the logarithm"
    )
    stop_at_val_loss: float = setting(
        0.0, "stop at the first evaluation at or below this", zero="none"
    )
    engine: Literal["torch", "reference"] = setting(
        "torch", "torch; or for GPT-2, reference: every gradient by hand in NumPy"
    )
    device: str = setting("auto", "auto: cuda, mps or cpu, in that order")
    threads: int = setting(
        0, "CPU threads; auto: OMP_NUM_THREADS if it is set, else one per core", zero="auto"
    )
    yield_cores: Literal["auto", "yes", "no"] = setting(
        "auto",
        "use fewer threads while other programs keep cores busy, if results stay the same bit for "
        "bit; auto: unless threads or OMP_NUM_THREADS are set",
    )
    dtype: Literal["auto", "float32", "tf32", "bfloat16", "float16", "float64"] = setting(
        "auto",
        "mixed precision: the precision of matrix products; auto: bfloat16 if it measures faster",
    )
    compile: Literal["auto", "yes", "no"] = setting(
        "auto", "torch.compile of the blocks; auto: if it saves time in this run"
    )
    activation_checkpointing: bool = setting(
        False, "recompute activations of the blocks in the backward pass: less memory"
    )
    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp", "under torchrun: replicate the model (ddp), or shard it over the ranks (fsdp)"
    )
    matmul: Literal["auto", "default", "onednn"] = setting(
        "auto", "library for float32 matrix products on CPUs; auto: the one that measures faster"
    )

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1")
        check(self.keep >= 1, "train.keep", self.keep, "at least 1")
        check(self.task_limit >= 1, "train.task_limit", self.task_limit, "at least 1")
        for name in (
            *("steps", "minutes", "tokens", "epochs", "batch_tokens", "initial_batch_size"),
            *("micro_batch_size", "eval_every", "save_every", "log_every", "threads"),
            "task_every",
            "stop_at_val_loss",
        ):
            good = 0 <= getattr(self, name) < math.inf
            check(good, f"train.{name}", getattr(self, name), "0 or more")
        fraction = self.batch_warmup_fraction
        good = 0 < fraction <= 1
        check(good, "train.batch_warmup_fraction", fraction, "above 0 and at most 1")
        check(0 < self.spike_z < math.inf, "train.spike_z", self.spike_z, "above 0")
        # PyTorch's CPU generators take 32 bits of a seed: larger ones could give equal weights.
        check(0 <= self.seed < 2**32, "train.seed", self.seed, "0 to 4,294,967,295")

    def rows_of(self, step: int) -> int:
        """Sequences of step `step` (from 0).

        While the batch grows, a multiple of the greatest common divisor of its first and last
        size: any number of ranks that divides both divides every batch between.
        """
        n_growing = math.ceil(self.batch_warmup_fraction * self.steps)
        if not self.initial_batch_size or step >= n_growing:
            return self.batch_size
        unit = math.gcd(self.initial_batch_size, self.batch_size)
        grown = (self.batch_size - self.initial_batch_size) * step // n_growing // unit * unit
        return self.initial_batch_size + grown
