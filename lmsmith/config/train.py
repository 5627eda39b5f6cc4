"""Settings of training: run length, batch size, intervals, devices and precision."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from lmsmith.config.registry import Registry
from lmsmith.config.settings import check, setting

OBJECTIVES: Registry[Any] = Registry(
    "objective",
    "lmsmith.objectives",
    {
        "cross-entropy": "lmsmith.train.objective:Objective",
        "preferences": "lmsmith.chat.align:Preferences",
        "rl": "lmsmith.chat.rl.objective:RL",
    },
)
"""What a run minimizes: classes derived from `lmsmith.train.objective.Objective`."""


@dataclass(frozen=True)
class TrainConfig:
    """Run length, batch size, intervals, devices and precision."""

    steps: int = setting(
        0, "number of optimizer steps; auto: from --minutes, --tokens or --epochs", zero="auto"
    )
    minutes: float = setting(
        0.0,
        "time limit: the command finishes within this many minutes; auto: 10, unless --steps, "
        "--tokens or --epochs sets the length",
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
    max_epochs: float = setting(
        0.0,
        "with --minutes: end after this many passes over the training tokens, even if time is "
        "left; none: no limit",
        zero="none",
    )
    batch_size: int = setting(32, "global batch size: sequences per optimizer step")
    batch_tokens: int = setting(
        0,
        "global batch size in tokens, rounded to full sequences; none: use train.batch_size",
        zero="none",
    )
    initial_batch_size: int = setting(
        0,
        "batch-size warm-up: sequences in the first step, growing to train.batch_size; none: no "
        "warm-up",
        zero="none",
    )
    batch_warmup_fraction: float = setting(
        0.5,
        "batch-size warm-up: fraction of the steps in which the batch grows linearly from "
        "train.initial_batch_size",
    )
    micro_batch_size: int = setting(
        0,
        "gradient accumulation: sequences per forward and backward pass; auto: the full batch",
        zero="auto",
    )
    objective: str = setting(
        "cross-entropy",
        "what is minimized: the cross-entropy of the text; other objectives have commands of their "
        "own",
        choices=OBJECTIVES.names,
    )
    truncated_bptt: bool = setting(
        False,
        "truncated BPTT (recurrent networks): carry the hidden state from each batch to the next, "
        "without gradients",
    )
    init_from: str = setting(
        "",
        "fine-tuning: start from the weights and tokenizer of this run, trained here or imported",
        zero="none",
    )
    seed: int = setting(1, "random seed of the initial weights, the data order and dropout")
    eval_every: int = setting(
        0,
        "steps between evaluations on the full validation set; auto: about ten per run",
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
    average_fraction: float = setting(
        0.0,
        "weight averaging: at the end, also evaluate the mean of the weights over this last "
        "fraction of the steps, and keep it if its validation loss is lower",
    )
    save_every: int = setting(
        0, "steps between checkpoints; auto: about one per minute", zero="auto"
    )
    log_every: int = setting(
        0, "steps between lines of metrics.jsonl; auto: about two hundred per run", zero="auto"
    )
    keep: int = setting(2, "number of latest checkpoints to keep, besides the best one")
    track: tuple[Literal["tensorboard", "wandb"], ...] = setting(
        (), "experiment tracking: also send the metrics to tensorboard or wandb"
    )
    on_spike: Literal["no", "stop", "skip", "rewind"] = setting(
        "no",
        "what to do on a loss or gradient-norm spike: no: continue; stop: end the run and record "
        "the spike; skip: skip that step; rewind: return to the last checkpoint and skip that "
        "step",
    )
    spike_z: float = setting(
        6.0,
        "spike threshold: standard deviations of log loss or log gradient norm above the running "
        "mean",
    )
    stop_at_val_loss: float = setting(
        0.0,
        "early stopping: end at the first evaluation with a validation loss at or below this",
        zero="none",
    )
    engine: Literal["torch", "reference"] = setting(
        "torch",
        "torch: PyTorch; reference (GPT-2 only): NumPy, with every gradient written by hand",
    )
    device: str = setting(
        "auto",
        "device to train on, as PyTorch names it; auto: the first available of cuda, mps, cpu",
    )
    threads: int = setting(
        0, "number of CPU threads; auto: OMP_NUM_THREADS if set, else one per core", zero="auto"
    )
    yield_cores: Literal["auto", "yes", "no"] = setting(
        "auto",
        "use fewer CPU threads while other programs keep cores busy, if results stay "
        "bit-identical; auto: yes, unless train.threads or OMP_NUM_THREADS is set",
    )
    dtype: Literal["auto", "float32", "tf32", "bfloat16", "float16", "float64"] = setting(
        "auto",
        "mixed precision: dtype of matrix multiplications; auto: bfloat16 (float16 on GPUs without "
        "it) if it measures faster, else float32",
    )
    compile: Literal["auto", "yes", "no"] = setting(
        "auto", "torch.compile the blocks; auto: if it saves time in this run"
    )
    activation_checkpointing: bool = setting(
        False,
        "activation checkpointing: recompute the blocks' activations in the backward pass; uses "
        "less memory",
    )
    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp",
        "data parallelism under torchrun: ddp: replicate the model on each rank; fsdp: shard it "
        "over the ranks",
    )
    matmul: Literal["auto", "default", "onednn"] = setting(
        "auto",
        "library for float32 matrix multiplications on CPUs; auto: the faster one, by measurement",
    )

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1")
        check(self.keep >= 1, "train.keep", self.keep, "at least 1")
        check(self.task_limit >= 1, "train.task_limit", self.task_limit, "at least 1")
        for name in (
            *(
                "steps",
                "minutes",
                "tokens",
                "epochs",
                "max_epochs",
                "batch_tokens",
                "initial_batch_size",
            ),
            *("micro_batch_size", "eval_every", "save_every", "log_every", "threads"),
            "task_every",
            "stop_at_val_loss",
        ):
            good = 0 <= getattr(self, name) < math.inf
            check(good, f"train.{name}", getattr(self, name), "0 or more")
        fraction = self.batch_warmup_fraction
        good = 0 < fraction <= 1
        check(good, "train.batch_warmup_fraction", fraction, "above 0 and at most 1")
        fraction = self.average_fraction
        check(0 <= fraction <= 1, "train.average_fraction", fraction, "between 0 and 1")
        check(0 < self.spike_z < math.inf, "train.spike_z", self.spike_z, "above 0")
        # PyTorch's CPU generators use 32 bits of a seed: larger seeds could give equal weights.
        check(0 <= self.seed < 2**32, "train.seed", self.seed, "0 to 4,294,967,295")

    def rows_of(self, step: int) -> int:
        """Batch size, in sequences, of step `step` (counted from 0).

        While the batch grows, its size is a multiple of the greatest common divisor of the
        initial and the final size: a number of ranks that divides both also divides every size
        between them.
        """
        n_growing = math.ceil(self.batch_warmup_fraction * self.steps)
        if not self.initial_batch_size or step >= n_growing:
            return self.batch_size
        unit = math.gcd(self.initial_batch_size, self.batch_size)
        grown = (self.batch_size - self.initial_batch_size) * step // n_growing // unit * unit
        return self.initial_batch_size + grown
