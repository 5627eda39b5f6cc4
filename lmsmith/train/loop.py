"""When to step, evaluate, sample and save.

Everything an uninterrupted run would carry from one step to the next is in the checkpoint: weights, optimiser, step,
schedule, best weights so far. Batches and dropout are functions of (seed, step), so nothing else is needed for a resumed
run to reach the same weights, bit for bit.

With `--minutes` the number of steps is an estimate that is corrected while the run goes, from the time updates take;
the learning rate follows it. With `--steps` or `--tokens` nothing depends on the clock.
"""

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from lmsmith import atomic
from lmsmith.accounting.measure import use_matmul
from lmsmith.accounting.predict import train_flops_per_token
from lmsmith.checkpoint import load_checkpoint, save_checkpoint, save_model
from lmsmith.config import RunConfig, flatten
from lmsmith.data.batches import Batches
from lmsmith.data.prepare import Corpus
from lmsmith.evaluate.likelihood import Score, score_ids
from lmsmith.generate.decode import continue_text
from lmsmith.generate.sampling import Sampling
from lmsmith.models.gpt import GPT
from lmsmith.optim.groups import Optimisers
from lmsmith.tokens.files import save_tokenizer
from lmsmith.train.log import MetricsFile, Progress
from lmsmith.train.step import update

SAVE_SECONDS = 60.0
SAMPLE_SECONDS = 20.0  # between samples drawn while training
SAMPLE_TOKENS = 300
TOO_FAR = 0.02  # a plan that is off by this share of the steps is corrected


@dataclass
class Progressed:
    """How far a run is: what its checkpoint carries besides tensors."""

    step: int = 0
    n_steps: int = 0
    tokens_seen: int = 0
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    best_val_loss: float = math.inf
    best_val_bits_per_byte: float = math.inf
    best_step: int = 0
    val_loss: float = math.inf
    val_bits_per_byte: float = math.inf
    seconds_to_target: float | None = None
    n_corrections: int = 0


class Training:
    """One run from its config and corpus to its summary."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        run: Path,
        console: Console,
        *,
        device: torch.device,
        peak_flops: float,
        deadline: float | None = None,
    ) -> None:
        """`deadline`: time.monotonic() by which updates, last evaluation and save must be over."""
        self.config, self.corpus, self.run, self.console = config, corpus, run, console
        self.device, self.peak_flops, self.deadline = device, peak_flops, deadline
        use_matmul(config.train.matmul)
        torch.set_num_threads(config.train.threads)
        self.model = GPT(config.model)
        self.model.initialise(torch.Generator().manual_seed(config.train.seed))
        self.model.to(device, torch.float64 if config.train.dtype == "float64" else torch.float32)
        self.optimisers = Optimisers(self.model, config.optim)
        self.batches = Batches(
            corpus.train,
            context_length=config.model.context_length,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
        )
        self.so_far = Progressed(n_steps=config.train.steps)
        self.best: dict[str, Tensor] = {}
        self.eval_seconds = self.save_seconds = 0.0
        self._last_save = self._last_sample = self._began = time.monotonic()
        self._wall_before = 0.0
        self._model_saved_at = -1

    def restore(self) -> bool:
        """Goes on from the newest whole checkpoint; False where there is none and the run begins at step 0."""
        if not (self.run / "checkpoints").is_dir():
            return False
        found = load_checkpoint(self.run)
        self.model.load_state_dict(found.tensors["model"])
        self.optimisers.load_state(found.tensors["optimizer"])
        self.so_far = Progressed(**{k: math.inf if v is None else v for k, v in found.state["finite"].items()})
        self.so_far.seconds_to_target = found.state["seconds_to_target"]
        self.best = found.tensors.get("best", {}) or self._weights()
        self._wall_before = self.so_far.wall_seconds
        return True

    def go(self) -> dict[str, Any]:
        """Trains to the end, or to a signal, and returns the summary. Everything is on disk when it returns."""
        so_far, config = self.so_far, self.config
        first_step = so_far.step
        metrics = MetricsFile(self.run / "metrics.jsonl", from_step=first_step)
        progress = Progress(self.console, so_far.n_steps, self.batches.tokens_per_batch)
        flops_per_step = train_flops_per_token(config.model) * self.batches.tokens_per_batch
        finished = "steps"
        self.model.train()
        self._began = self._last_save = self._last_sample = time.monotonic()
        recent: list[float] = []
        with stop_signals() as stop:
            try:
                while so_far.step < so_far.n_steps:
                    began = time.perf_counter()
                    result = update(self.model, self.optimisers, self.batches, config, so_far.step, so_far.n_steps)
                    seconds = time.perf_counter() - began
                    so_far.step += 1
                    so_far.train_seconds += seconds
                    so_far.tokens_seen += self.batches.tokens_per_batch
                    recent = [*recent[-19:], seconds]
                    progress.update(so_far.step, result["loss"])
                    last = so_far.step >= so_far.n_steps
                    if so_far.step % config.train.log_every == 0 or last or so_far.step == 1:
                        rate = len(recent) / sum(recent)
                        metrics.write(
                            kind="train",
                            step=so_far.step,
                            **result,
                            tokens=so_far.tokens_seen,
                            seconds=so_far.train_seconds,
                            tokens_per_second=rate * self.batches.tokens_per_batch,
                            mfu=rate * flops_per_step / self.peak_flops,
                        )
                    if stop.received:
                        finished = "signal"
                        break
                    if so_far.step % config.train.eval_every == 0 or last:
                        self._evaluate(metrics, progress)
                        if so_far.val_loss <= config.train.stop_at_val_loss:
                            so_far.seconds_to_target = so_far.train_seconds
                            finished = "target"
                            break
                    if self.deadline is not None and not last:
                        self._correct_plan(sorted(recent)[len(recent) // 2], metrics, progress)
                        if so_far.step >= so_far.n_steps:  # the time was up before the plan was
                            finished = "time"
                            self._evaluate(metrics, progress)
                    if self._save_due():
                        self._save()
                if self.deadline is not None and finished == "steps":
                    finished = "time"
                progress.close()
                if finished == "signal":
                    self.console.print(
                        f"stopped by {stop.received.name if stop.received else ''}: saving step {so_far.step}"
                    )
                self._save()
            finally:
                progress.close()
                metrics.close()
            if finished != "signal":
                self._sample(self.so_far.step, n=3)
        return self._summary(finished, first_step, stop.received)

    def _evaluate(self, metrics: MetricsFile, progress: Progress) -> None:
        """The loss on the whole validation split; keeps the weights if they are the best so far."""
        so_far, began = self.so_far, time.monotonic()
        score = self.score()
        so_far.val_loss, so_far.val_bits_per_byte = score.nats_per_token, score.bits_per_byte
        if so_far.val_loss < so_far.best_val_loss:
            so_far.best_val_loss, so_far.best_val_bits_per_byte = so_far.val_loss, so_far.val_bits_per_byte
            so_far.best_step = so_far.step
            self.best = self._weights()
        metrics.write(
            kind="eval",
            step=so_far.step,
            val_loss=so_far.val_loss,
            val_bits_per_byte=so_far.val_bits_per_byte,
            tokens=so_far.tokens_seen,
            seconds=so_far.train_seconds,
        )
        progress.evaluated(so_far.step, so_far.val_loss, so_far.val_bits_per_byte)
        if time.monotonic() - self._last_sample > SAMPLE_SECONDS:
            self._sample(so_far.step, n=1)
        self.eval_seconds = max(self.eval_seconds, time.monotonic() - began)

    def score(self) -> Score:
        counts = self.corpus.counts
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.dtype == "bfloat16"):
            return score_ids(
                self.model,
                self.corpus.validation,
                n_bytes=counts.n_val_bytes,
                n_unknown=counts.n_val_unknown,
                n_unknown_bytes=counts.n_val_unknown_bytes,
                first_given=self.corpus.first_given,
                rows_per_batch=max(1, 4096 // self.config.model.context_length),  # activations stay in the cache
            )

    def _correct_plan(self, seconds_a_step: float, metrics: MetricsFile, progress: Progress) -> None:
        """Sets the number of steps to what fits before the deadline, if the plan is off by more than TOO_FAR."""
        assert self.deadline is not None
        so_far, every = self.so_far, self.config.train.eval_every
        left = self.deadline - time.monotonic() - self.save_seconds - self.eval_seconds
        n_evals = max(0, so_far.n_steps // every - so_far.step // every)
        left -= n_evals * self.eval_seconds
        fits = so_far.step + max(0, int(left / seconds_a_step))
        if so_far.step < 5 or abs(fits - so_far.n_steps) <= max(1, TOO_FAR * so_far.n_steps):
            if fits >= so_far.n_steps or so_far.n_steps - so_far.step > 20:
                return
        if fits == so_far.n_steps or so_far.step < 5:
            return
        metrics.write(
            kind="event", step=so_far.step, message=f"steps corrected from {so_far.n_steps} to {fits}: time measured"
        )
        so_far.n_corrections += 1
        so_far.n_steps = progress.n_steps = fits

    def _save_due(self) -> bool:
        every = self.config.train.save_every
        return self.so_far.step % every == 0 if every else time.monotonic() - self._last_save > SAVE_SECONDS

    def _save(self) -> None:
        began, so_far = time.monotonic(), self.so_far
        so_far.wall_seconds = self._wall_before + began - self._began
        tensors = {"model": self._weights(copy=False), "optimizer": self.optimisers.state()}
        if self.best and so_far.best_step != so_far.step:
            tensors["best"] = self.best
        finite = {k: v for k, v in vars(so_far).items() if k != "seconds_to_target"}
        state = {
            "finite": {k: None if v == math.inf else v for k, v in finite.items()},
            "seconds_to_target": so_far.seconds_to_target,
        }
        save_checkpoint(self.run, so_far.step, tensors, state, keep=self.config.train.keep)
        if self._model_saved_at != so_far.best_step or not self.best:
            config = {"model": flatten(vars(self.config.model)), "step": so_far.best_step}
            save_model(self.run / "model", self.best or self._weights(copy=False), config)
            save_tokenizer(self.corpus.tokenizer, self.run / "model")
            self._model_saved_at = so_far.best_step
        self._last_save = time.monotonic()
        self.save_seconds = self._last_save - began

    def _weights(self, *, copy: bool = True) -> dict[str, Tensor]:
        return {n: p.detach().clone() if copy else p.detach() for n, p in self.model.named_parameters()}

    def _sample(self, step: int, *, n: int) -> None:
        """Appends continuations of a line's beginning to samples.md."""
        prompt = "\n" if self.corpus.tokenizer.end_of_text is None else ""
        if not prompt or len(self.corpus.tokenizer.encode(prompt)):
            texts = continue_text(
                self.model,
                self.corpus.tokenizer,
                prompt,
                max_tokens=SAMPLE_TOKENS,
                n=n,
                sampling=Sampling(temperature=0.8),
                seed=self.config.train.seed,
            )
            blocks = "".join(f"```\n{text.strip()}\n```\n\n" for text in texts)
            with (self.run / "samples.md").open("a", encoding="utf-8") as file:
                file.write(f"## step {step}\n\n{blocks}")
        self._last_sample = time.monotonic()

    def _summary(self, finished: str, first_step: int, stopped_by: signal.Signals | None) -> dict[str, Any]:
        so_far, counts = self.so_far, self.corpus.counts
        so_far.wall_seconds = self._wall_before + time.monotonic() - self._began
        rate = so_far.tokens_seen / so_far.train_seconds if so_far.train_seconds else math.nan
        summary = {
            "n_params": self.model.n_parameters(),
            "steps": so_far.step,
            "tokens_seen": so_far.tokens_seen,
            "val_loss": so_far.val_loss,
            "val_bits_per_byte": so_far.val_bits_per_byte,
            "best_val_loss": so_far.best_val_loss,
            "best_val_bits_per_byte": so_far.best_val_bits_per_byte,
            "best_step": so_far.best_step,
            "train_seconds": so_far.train_seconds,
            "wall_seconds": so_far.wall_seconds,
            "seconds_to_target": so_far.seconds_to_target,
            "tokens_per_second": rate,
            "mfu": rate * train_flops_per_token(self.config.model) / self.peak_flops,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "device": str(self.device),
            "dtype": self.config.train.dtype,
            "threads": self.config.train.threads,
            "finished": finished,
            "signal": stopped_by.name if stopped_by and finished == "signal" else None,
            "planned_steps": so_far.n_steps,
            "n_corrections": so_far.n_corrections,
            "resumed_from_step": first_step or None,
            "tokenizer": self.corpus.tokenizer.kind,
            "vocab_size": self.config.model.vocab_size,
            "n_train_tokens": counts.n_train_tokens,
            "n_val_tokens": counts.n_val_tokens,
            "n_val_bytes": counts.n_val_bytes,
            "n_val_unknown": counts.n_val_unknown,
        }
        summary = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
        atomic.write(self.run / "summary.json", json.dumps(summary, indent=1) + "\n")
        if self.deadline is not None and finished == "time":  # what repeats this run without a clock
            repeat = replace(self.config, train=replace(self.config.train, steps=so_far.n_steps))
            atomic.write(self.run / "config.toml", repeat.to_toml())
        return summary


class StopRequest:
    """Whether a signal has asked the run to stop."""

    received: signal.Signals | None = None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """SIGINT and SIGTERM ask for a stop after the update at hand; a second SIGINT interrupts at once."""
    request = StopRequest()

    def ask(number: int, frame: object) -> None:
        if request.received is not None:
            raise KeyboardInterrupt
        request.received = signal.Signals(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of the device where it has its own, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such count
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
