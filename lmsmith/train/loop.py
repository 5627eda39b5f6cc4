"""When to step, evaluate, sample and save.

Everything an uninterrupted run would carry from one step to the next is in the checkpoint: weights, optimiser, step,
schedule, best weights so far, and whether that step has been evaluated. Batches and dropout are functions of (seed,
step), so nothing else is needed for a resumed run to reach the same weights, bit for bit.

With a deadline (`--minutes`) the number of steps is an estimate that is corrected while the run goes, from the time
updates take (`plan.py`); the learning rate follows it. Without one nothing depends on the clock but when to save.
"""

import logging
import math
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from lmsmith.accounting.measure import use_matmul
from lmsmith.checkpoint import Checkpoint, available, load_checkpoint, save_checkpoint, save_model
from lmsmith.config import RunConfig, flatten
from lmsmith.data.batches.packing import batches_of, boundary_of
from lmsmith.data.batches.read_ahead import ReadAhead
from lmsmith.data.corpus import Corpus
from lmsmith.errors import TrainingError
from lmsmith.evaluate.likelihood import Ids, Score, inference, score_ids
from lmsmith.generate.decode import generate
from lmsmith.generate.sampling import Sampling
from lmsmith.models.interface import LanguageModel, NeuralModel
from lmsmith.parallel.process import LONG, Ranks
from lmsmith.parallel.shard import Scored, as_sharded
from lmsmith.strict_json import finite
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer
from lmsmith.train.crew import Crew
from lmsmith.train.flight import write_record
from lmsmith.train.guard import Guard, SpikeError, check_not_diverged
from lmsmith.train.init_from import ends_kept, weights_to_begin_with
from lmsmith.train.lock import check_held
from lmsmith.train.log import MetricsFile, Progress, add_samples
from lmsmith.train.plan import (
    Pace,
    Stopwatch,
    corrected_steps,
    look_due,
    steps_to_continue,
    too_few_steps,
)
from lmsmith.train.replica import Replica, all_whole
from lmsmith.train.run import empty_prompt
from lmsmith.train.same_numbers import use_threads
from lmsmith.train.save import Groups, Saver
from lmsmith.train.step import is_out_of_memory, update
from lmsmith.train.stop import Noted, Stopped, noted
from lmsmith.train.trackers import trackers

log = logging.getLogger(__name__)

SAVE_SECONDS = 60.0  # between two checkpoints, unless train.save_every says it in steps
SAVE_PAUSE = (
    10.0  # times what writing one takes, if that is longer: a slow disk is not to hold training up
)
SAMPLE_SECONDS = 20.0  # between two samples drawn while training
SAMPLE_SHARE = 0.02  # of the time, at most, goes into them
SAMPLE_TOKENS = 300
LAST_SAMPLE_SECONDS = 2.0  # with a deadline, for the samples at the end
DISK_BYTES_A_SECOND, BYTES_A_PARAMETER = 2e8, 16  # of a checkpoint, until one has been measured
WORTH_SAYING = 0.1  # a change of the plan, as a share of it
TRIAL_TOKENS, TRIAL_SHARE = (
    4096,
    1 / 32,
)  # at most, of the validation text: to measure what scoring it takes
MUCH_TIME = 0.1  # of a run's time: to end with more left needs more than a guess
RECENT = 20  # updates whose mean is the rate in metrics.jsonl


@dataclass
class Progressed:
    """How far a run is: what its checkpoint carries besides tensors. Infinite: there is none yet."""

    step: int = 0
    n_steps: int = 0
    evaluated_step: int = 0
    tokens_seen: int = 0
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    best_step: int = 0
    best_val_loss: float = math.inf
    best_val_bits_per_byte: float = math.inf
    val_loss: float = math.inf
    val_bits_per_byte: float = math.inf
    seconds_to_target: float = math.inf
    n_corrections: int = 0

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Progressed":
        values: dict[str, Any] = {k: math.inf if v is None else v for k, v in state.items()}
        return cls(**values)


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
        deadline: float = math.inf,
        ranks: Ranks | None = None,
    ) -> None:
        """`deadline`: time.monotonic() by which updates, last evaluation and save must be over.

        Of several `ranks` all make one at the same time; the first one's deadline counts.
        """
        self.ranks = ranks or Ranks()
        self.config, self.corpus, self.run, self.console = config, corpus, run, console
        self.device, self.peak_flops, self.deadline = device, peak_flops, deadline
        use_matmul(config.train.matmul, config.train.dtype)
        use_threads(config.train.threads, config.train.threads)
        self.model = config.neural.build()
        self.model.initialise(torch.Generator().manual_seed(config.train.seed))
        self.model.to(torch.float64 if config.train.dtype == "float64" else torch.float32)
        if self.ranks.world == 1 or config.train.parallel == "ddp":
            self.model.to(device)  # else it may be too large for one; each will have its share
        self.replica = Replica(self.model, config, self.ranks)
        self.batches = batches_of(config, corpus.train, corpus.tokenizer)
        self._ends = ends_kept(run) if config.train.init_from else {}
        self.so_far = Progressed(n_steps=config.train.steps)
        self.best: dict[
            str, Tensor
        ] = {}  # copies of the best weights; empty before the first evaluation
        self.took, self.pace = Stopwatch(), Pace()
        self._said_steps = config.train.steps
        self._trial_seconds: float | None = (
            None  # what an evaluation would take, measured on a part of it
        )
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)  # tokens, seconds
        self._began = self._last_save = self._last_sample = time.monotonic()
        self._wall_before = 0.0
        self._saved = (
            -1,
            -1,
        )  # the step of the newest checkpoint, and the last evaluation it knows of
        self._model_saved_at = -1
        self._said_no_samples = False
        self._saver = Saver()
        self.about: dict[str, Any] = {}  # what checkpoints say of the run: its config and legs
        self.leg_start = 0  # the step at which the newest leg began
        self.guard = Guard(config.train.on_spike, config.train.spike_z)
        self.crew = Crew(self.replica, self.batches, self._score_of_end)

    def begin(self) -> None:
        """With `--from` the weights are those of the other run, and scored first. Raises CheckpointError."""
        if self.config.train.init_from:
            self.replica.load_weights(weights_to_begin_with(self.run))
            self.so_far.evaluated_step = -1

    def restore(self) -> bool:
        """Goes on from the newest whole checkpoint; False where there is none and the run begins at step 0.

        Raises CheckpointError where there are some and none is whole, or its weights are not finite.
        """
        found: list[Checkpoint] = []

        def find() -> str:
            self._saver.wait()
            if available(self.run):
                found.append(load_checkpoint(self.run))
                check_not_diverged(self.run, found[0])
            return str(found[0].step if found else None)

        step = self.ranks.first_makes(
            find
        )  # on a disk that is shared each might see another as the newest
        if step == "None":
            return False
        self._take_up(found[0] if found else load_checkpoint(self.run, int(step)))
        self.ranks.wait(LONG)  # the first one has read it before the others began to
        return True

    def _take_up(self, found: Checkpoint) -> None:
        self.replica.load_weights(found.tensors["model"])
        self.replica.optimisers.load_state(found.tensors["optimizer"], as_sharded)
        self.replica.scale.value, self.replica.scale.n_good = found.state.pop(
            "gradient_scale", (1.0, 0)
        )
        if self.replica.carried:
            self.replica.carried.load(found.tensors["carried"])
        self.guard.load_state(found.state.pop("guard"))
        vars(self.so_far).update(vars(Progressed.from_state(found.state)))
        if self.so_far.best_val_loss < math.inf:
            weights = self.replica.weights(copy=True)
            best = found.tensors.get("best")
            self.best = (
                {n: as_sharded(best[n].to(p.device, copy=True), p) for n, p in weights.items()}
                if best
                else weights
            )
        self._wall_before = self.so_far.wall_seconds
        self._saved = (self.so_far.step, self.so_far.evaluated_step)

    def go(self) -> dict[str, Any]:
        """Trains to the end or to a signal, saves, and returns the summary.

        Raises TrainingError, StorageError; Stopped where a second Ctrl-C did not wait for the save.
        """
        so_far, first_step, config = self.so_far, self.so_far.step, self.config
        path = self.run / "metrics.jsonl"
        self.model.train()
        self._began = self._last_save = self._last_sample = time.monotonic()
        if self.deadline < math.inf:
            left = (self.deadline - self._began) / max(1, so_far.n_steps - first_step)
            self.pace = Pace(expected=left)
        at_once = (
            self.replica.rows_at_once
        )  # as it is now: where memory runs out it shrinks between two reads
        with noted() as stop:
            with (
                ReadAhead(
                    self.batches, lambda step: self.replica.micro_batches(step, at_once)
                ) as self._ahead,
                self._metrics(path, first_step) as metrics,
                trackers(
                    config.train.track if self.ranks.first else (), self.run, config, first_step
                ) as metrics.also,
                Progress(
                    self.console,
                    so_far.n_steps,
                    self.batches.tokens_per_batch,
                    step=first_step,
                    deadline=self.deadline,
                    share_per_token=config.neural.train_flops_per_token() / self.peak_flops,
                ) as progress,
            ):
                finished = self._train(metrics, progress, stop)
                if finished == "time" and (
                    problem := too_few_steps(so_far.step, so_far.train_seconds)
                ):
                    metrics.write(kind="event", step=so_far.step, message=problem)
                    if self.ranks.first:
                        log.warning("%s", problem)
                if finished == "signal" and stop.signal:
                    progress.say(f"stopped by {stop.signal.name}: saving step {so_far.step:,}")
            self._save(at_once=True)
            if finished != "signal":
                try:
                    with self._at_once(stop):
                        self._sample(
                            3, LAST_SAMPLE_SECONDS if self.deadline < math.inf else math.inf
                        )
                except Stopped:
                    finished = "signal"
        return self._summary(finished, first_step, stop)

    def _train(self, metrics: MetricsFile, progress: Progress, stop: Noted) -> str:
        """Updates until something ends it, and what that is: "steps", "time", "target" or "signal"."""
        so_far, target = self.so_far, self.config.train.stop_at_val_loss
        if so_far.seconds_to_target < math.inf:  # reached before a kill that left no summary
            return "target"
        while True:
            if self._evaluation_due():
                try:
                    with self._at_once(stop), self.took("evaluation"):
                        score = self.score()
                except Stopped:  # the resumed run begins with this evaluation
                    return "signal"
                self._evaluated(score, metrics, progress)
                if target and so_far.val_loss <= target:
                    so_far.seconds_to_target = so_far.train_seconds
                    return "target"
                if so_far.step < so_far.n_steps and self.ranks.told_by_first(self._sample_due())[0]:
                    try:
                        with self._at_once(stop):
                            self._sample(
                                1, LAST_SAMPLE_SECONDS if self.deadline < math.inf else math.inf
                            )
                    except Stopped:
                        return "signal"
            if so_far.step >= so_far.n_steps and not self._continues(metrics, progress):
                return "time" if self.deadline < math.inf else "steps"
            number, save = self.ranks.most(stop.signal or 0, self._save_due())
            if number:
                stop.signal = signal.Signals(int(number))
                return "signal"
            self._saver.check()
            if save:
                self._save()
            with self.took("update"):
                self._update(metrics, progress)
            self.pace.add(self.took.latest["update"])
            if message := self.crew.after(so_far.step, so_far.n_steps, self.took.latest["update"]):
                metrics.write(kind="event", step=so_far.step, message=message)
                if self.crew.say_now():
                    progress.say(f"step {so_far.step:>6,}  {message}")
            if self.deadline < math.inf:
                self._keep_deadline(metrics, progress)

    def _update(self, metrics: MetricsFile, progress: Progress) -> None:
        so_far, config = self.so_far, self.config
        began = time.perf_counter()
        try:
            if so_far.step in self.guard.left_out:
                raise SpikeError(f"step {so_far.step + 1} is left out.", "skip", math.nan, math.nan)
            result = update(self.replica, self._ahead, so_far.step, so_far.n_steps, self.guard)
        except SpikeError as spike:
            self._not_made(spike, metrics, progress)
            return
        seconds = time.perf_counter() - began
        n_tokens = self.batches.n_counted(so_far.step)
        so_far.tokens_seen += n_tokens
        if not self._recent and self.ranks.first and self.ranks.world == 1:
            self._saver.reserve(
                {
                    "model": self.replica.weights(copy=False),
                    "optimizer": self.replica.optimisers.state(),
                }
            )
        so_far.step += 1
        so_far.train_seconds += seconds
        self._recent.append((n_tokens, seconds))
        n_tokens, seconds = (sum(column) for column in zip(*self._recent, strict=True))
        rate = n_tokens / seconds
        if so_far.step % config.train.log_every == 0 or so_far.step in (1, so_far.n_steps):
            metrics.write(
                kind="train",
                step=so_far.step,
                **result,
                tokens=so_far.tokens_seen,
                seconds=so_far.train_seconds,
                tokens_per_second=rate,
                mfu=rate * config.neural.train_flops_per_token() / self.peak_flops,
            )
        progress.tokens_per_step = round(n_tokens / len(self._recent))  # it grows where batches do
        progress.update(so_far.step, result["loss"])

    def _not_made(self, spike: SpikeError, metrics: MetricsFile, progress: Progress) -> None:
        """Deals with an update that was judged and not made. Raises TrainingError where that is the end."""
        so_far, step = self.so_far, self.so_far.step
        if spike.verdict == "stop":
            if self.replica.carried:
                self.replica.carried.undo()
            place = write_record(
                self.run, self.replica, self.batches, self.corpus.tokenizer, step, spike
            )
            self.replica.optimisers.clear()
            self._save(at_once=True)
            record, run = (shlex.quote(str(path)) for path in (place, self.run))
            raise TrainingError(
                f"{spike} Step {step} is saved; `lmsmith replay {record}` makes this update again from its record. "
                f"`lmsmith resume {run} --on-spike skip` leaves it out. Or begin anew with a lower "
                "--learning-rate or a longer --schedule.warmup_steps."
            )
        self.replica.optimisers.clear()
        message = f"{spike} It is left out."
        so_far.step += 1
        wall_before = self._wall_before  # the time since then has passed all the same
        if spike.verdict == "rewind" and self.restore():
            self._wall_before = wall_before
            metrics.back_to(so_far.step, so_far.evaluated_step)
            message = f"{spike} Back to step {so_far.step}."
        metrics.write(kind="event", step=so_far.step, message=message)
        progress.say(f"step {step + 1:>6,}  {message}")

    def _keep_deadline(self, metrics: MetricsFile, progress: Progress) -> None:
        """Makes this the last step if the time is up; else sets, when it is due, the number of steps that fits."""
        n_steps, measure = self.ranks.told_by_first(*self._steps_that_fit())
        if measure:
            self._measure_evaluation()
            n_steps = self.ranks.told_by_first(*self._steps_that_fit())[0]
        self._set_n_steps(int(n_steps), metrics, progress)

    def _continues(self, metrics: MetricsFile, progress: Progress) -> bool:
        """Lengthens the plan of a run that has made all its steps and has time left. False: it has ended."""
        if self.deadline == math.inf or self.so_far.step == 0:
            return False
        more = steps_to_continue(self.so_far.step, self.pace.next_seconds(), self._seconds_left())
        more = int(self.ranks.told_by_first(more)[0])
        self._set_n_steps(self.so_far.step + more, metrics, progress)
        return more > 0

    def _steps_that_fit(self) -> tuple[int, bool]:
        """The number of steps, and whether to measure an evaluation before this ends the run.

        That is where only a guess says that the evaluation takes all the time that is left.
        """
        so_far, took, now = self.so_far, self.took, time.monotonic()
        if not self.ranks.first:
            return so_far.n_steps, False  # the first rank decides
        evaluation, save, left = (
            self._evaluation_seconds(),
            self._save_seconds(),
            self._seconds_left(),
        )
        aside = evaluation + self._sample_due() * took.latest.get("sample", LAST_SAMPLE_SECONDS)
        if (
            left
            < self.pace.next_seconds() + aside * self._evaluation_due() + save * self._save_due()
        ):
            guessed = "evaluation" not in took.latest and self._trial_seconds is None
            much = self.deadline - now > MUCH_TIME * (self.deadline - self._began)
            return so_far.step, guessed and much and so_far.step < so_far.n_steps
        if not (
            look_due(so_far.n_steps - self.leg_start, so_far.step - self.leg_start)
            or self.pace.stalled
        ):
            return so_far.n_steps, False
        share = (took.total["save"] + took.total["sample"]) / (now - self._began)
        step_seconds = self.pace.seconds_a_step() + evaluation / self.config.train.eval_every
        left *= 1 - share
        planned, made = so_far.n_steps - self.leg_start, so_far.step - self.leg_start
        return self.leg_start + corrected_steps(planned, made, step_seconds, left), False

    def _seconds_left(self) -> float:
        """For steps: until the deadline, without the last evaluation and save."""
        return self.deadline - time.monotonic() - self._evaluation_seconds() - self._save_seconds()

    def _evaluation_seconds(self) -> float:
        guess = self._trial_seconds
        if guess is None:  # the forward pass alone is a third of a step
            steps = len(self.corpus.validation) / self.batches.tokens_per_batch
            guess = self.pace.seconds_a_step() / 3 * steps
        return self.took.usual("evaluation", guess)

    def _save_seconds(self) -> float:
        # Until a save has been measured, the disk is taken to be an old one.
        measured = max(self._saver.seconds, self.took.latest.get("save", 0.0))
        return measured or BYTES_A_PARAMETER * self.model.n_parameters() / DISK_BYTES_A_SECOND

    def _measure_evaluation(self) -> None:
        """Sets what an evaluation is expected to take, from scoring a part of the text twice."""
        validation, times = self.corpus.validation, list[float]()
        enough = max(self.config.model.context_length + 1, int(TRIAL_SHARE * len(validation)))
        part = validation[: min(TRIAL_TOKENS, enough)]
        for _ in range(2):
            began = time.monotonic()
            self._scored(part)
            times.append(time.monotonic() - began)
        self._trial_seconds = min(times) * len(validation) / len(part)

    def _set_n_steps(self, n_steps: int, metrics: MetricsFile, progress: Progress) -> None:
        """Takes up the corrected number of steps and says so."""
        so_far = self.so_far
        if n_steps == so_far.n_steps:
            return
        seconds = self.pace.seconds_a_step()
        message = f"{n_steps:,} steps fit, not {so_far.n_steps:,}: an update takes {1000 * seconds:.3g} ms"
        metrics.write(kind="event", step=so_far.step, message=message)
        if abs(n_steps - self._said_steps) > WORTH_SAYING * self._said_steps:
            progress.say(f"step {so_far.step:>6,}  {message}")
            self._said_steps = n_steps
        so_far.n_corrections += 1
        so_far.n_steps = progress.n_steps = n_steps

    def _evaluation_due(self) -> bool:
        so_far = self.so_far
        rhythm = so_far.step % self.config.train.eval_every == 0 or so_far.step >= so_far.n_steps
        return rhythm and so_far.step > so_far.evaluated_step

    def score(self) -> Score:
        """The score of the whole validation split."""
        return self._scored(self.corpus.validation)

    def _score_of_end(self) -> float:
        """Nats of the end of the validation text, with windows of all shapes."""
        n = len(self.corpus.validation)
        return self._scored(
            self.corpus.validation[max(0, n - TRIAL_TOKENS - n % TRIAL_TOKENS) :]
        ).nats

    def _scored(self, ids: Ids) -> Score:
        counts = self.corpus.counts
        model: Any = self.model if self.ranks.world == 1 else Scored(self.replica.summed_loss)
        with self.replica.autocast():
            found = score_ids(
                model,
                ids,
                n_bytes=counts.n_val_bytes,
                n_unknown=counts.n_val_unknown,
                n_unknown_bytes=counts.n_val_unknown_bytes,
                left_out=self.corpus.tokenizer.leaves_out,
                first_given=self.corpus.first_given,
                boundary=boundary_of(self.config.data.documents, self.corpus.tokenizer),
                share=(self.ranks.rank, self.ranks.world),
            )
        nats, n_impossible = self.ranks.sum(found.nats, found.n_impossible)
        return replace(found, nats=nats, n_impossible=int(n_impossible))

    def _evaluated(self, score: Score, metrics: MetricsFile, progress: Progress) -> None:
        """Takes note of an evaluation; keeps the weights if they are the best so far."""
        so_far = self.so_far
        if not math.isfinite(score.nats):
            raise TrainingError(
                f"step {so_far.step}: the validation loss is {score.nats_per_token}: training has diverged. Lower "
                "--learning-rate or lengthen --schedule.warmup_steps."
            )
        so_far.evaluated_step = so_far.step
        so_far.val_loss, so_far.val_bits_per_byte = score.nats_per_token, score.bits_per_byte
        if so_far.val_loss < so_far.best_val_loss:
            so_far.best_val_loss, so_far.best_val_bits_per_byte = (
                so_far.val_loss,
                so_far.val_bits_per_byte,
            )
            so_far.best_step = so_far.step
            for name, weight in self.replica.weights(copy=not self.best).items():
                self.best.setdefault(name, weight).copy_(weight)  # in the memory of those before
        metrics.write(
            kind="eval",
            step=so_far.step,
            val_loss=so_far.val_loss,
            val_bits_per_byte=so_far.val_bits_per_byte,
            tokens=so_far.tokens_seen,
            seconds=so_far.train_seconds,
        )
        progress.evaluated(so_far.step, so_far.val_loss, so_far.val_bits_per_byte)

    def _save_due(self) -> bool:
        every, step = self.config.train.save_every, self.so_far.step
        if step == 0 or step == self._saved[0]:
            return False
        pause = max(SAVE_SECONDS, SAVE_PAUSE * self._saver.seconds)
        return step % every == 0 if every else time.monotonic() - self._last_save > pause

    def save_anew(self) -> None:
        """Writes the checkpoint of this step again, with another plan or `about`. Raises StorageError."""
        self._saved = (-1, -1)
        self._save(at_once=True)

    def _save(self, *, at_once: bool = False) -> None:
        """A checkpoint, and in RUN/model the best weights so far. What is on disk already is not written again.

        Of several processes all are here, for each may hold a share of the tensors; the first one writes.
        """
        so_far = self.so_far
        with self.took("save"):
            so_far.wall_seconds = self._wall_before + time.monotonic() - self._began
            groups: dict[str, dict[str, Tensor]] = {}
            if self._saved != (so_far.step, so_far.evaluated_step):
                groups |= {
                    "model": self.replica.weights(copy=False),
                    "optimizer": self.replica.optimisers.state(),
                }
                if self.best and so_far.best_step != so_far.step:
                    groups["best"] = self.best
                if self.replica.carried:
                    groups["carried"] = self.replica.carried.tensors()
            source = so_far.best_step if self.best else so_far.step
            if self._model_saved_at != source:
                groups["use"] = self.best or self.replica.weights(copy=False)
            groups = {
                group: all_whole(named, keep=self.ranks.first) for group, named in groups.items()
            }

            def save() -> str:
                self._saver.save(groups, self._writer(source), at_once=at_once)
                return "saved"

            self.ranks.first_makes(save)
            self._saved, self._model_saved_at = (so_far.step, so_far.evaluated_step), source
        self._last_save = time.monotonic()

    def _writer(self, source: int) -> Callable[[Groups], None]:
        """What writes the tensors of this moment, be it later. `source`: the step of the weights for use."""
        step, best_step, keep = self.so_far.step, self.so_far.best_step, self.config.train.keep
        scale = {"gradient_scale": (self.replica.scale.value, self.replica.scale.n_good)}
        state = finite(asdict(self.so_far)) | scale | {"guard": self.guard.state()}
        documents = {"documents": self.config.data.documents}
        config = {
            "model": flatten(vars(self.config.model)),
            "data": documents,
            "step": source,
        } | self._ends

        def write(groups: Groups) -> None:
            check_held(self.run)
            checkpoint = {group: named for group, named in groups.items() if group != "use"}
            if checkpoint:
                save_checkpoint(
                    self.run,
                    step,
                    checkpoint,
                    state,
                    keep=keep,
                    best_step=best_step,
                    about=self.about,
                )
            if "use" in groups:
                save_tokenizer(self.corpus.tokenizer, self.run / "model")
                save_model(self.run / "model", groups["use"], config)

        return write

    def _at_once(self, stop: Noted) -> AbstractContextManager[None]:
        """A signal ends what only reads, where no other process waits for this one."""
        return stop.at_once() if self.ranks.world == 1 else nullcontext()

    def _metrics(self, path: Path, step: int) -> MetricsFile:
        """One process keeps the file; what the others would write goes nowhere."""
        return MetricsFile(
            path if self.ranks.first else None, step=step, evaluated_step=self.so_far.evaluated_step
        )

    def _sample_due(self) -> bool:
        pause = max(SAMPLE_SECONDS, self.took.latest.get("sample", 0.0) / SAMPLE_SHARE)
        return time.monotonic() - self._last_sample > pause

    def _sample(self, n: int, seconds: float) -> None:
        """Adds n texts of up to SAMPLE_TOKENS to samples.md, shorter ones where `seconds` do not suffice."""
        sharded = self.ranks.world > 1 and self.config.train.parallel == "fsdp"
        weights = (
            all_whole(self.replica.weights(copy=False), keep=self.ranks.first) if sharded else {}
        )

        def write() -> str:
            try:
                model = self._rebuilt(weights) if sharded else self.model
                # Compiled blocks would be compiled again for every length of a text.
                with torch.compiler.set_stance("force_eager"):
                    texts = sample_texts(
                        model, self.corpus.tokenizer, n, seconds, self.config.train.seed
                    )
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                return "memory does not suffice for it"
            if texts:
                add_samples(self.run / "samples.md", self.so_far.step, texts)
            return "written"

        with self.took("sample"):
            done = self.ranks.first_makes(write)
        if done != "written" and not self._said_no_samples:
            self._said_no_samples = True
            log.warning("there are no samples: %s", done)
        self._last_sample = time.monotonic()

    def _rebuilt(self, weights: Mapping[str, Tensor]) -> NeuralModel:
        """A whole model, which the first process can call alone."""
        model = self.config.neural.build().to(self.device)
        model.load_state_dict(weights)
        return model

    def _summary(self, finished: str, first_step: int, stop: Noted) -> dict[str, Any]:
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
            "mfu": rate * self.config.neural.train_flops_per_token() / self.peak_flops,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "device": str(self.device),
            "dtype": self.config.train.dtype,
            "threads": self.config.train.threads,
            "finished": finished,
            "signal": stop.signal.name if stop.signal and finished == "signal" else None,
            "planned_steps": so_far.n_steps,
            "first_planned_steps": self.config.train.steps,
            "n_corrections": so_far.n_corrections,
            "resumed_from_step": first_step or None,
            "tokenizer": self.corpus.tokenizer.kind,
            "vocab_size": self.config.model.vocab_size,
            "n_train_tokens": counts.n_train_tokens,
            "n_val_tokens": counts.n_val_tokens,
            "n_val_bytes": counts.n_val_bytes,
            "n_val_unknown": counts.n_val_unknown,
        }
        return dict(finite(summary))


def sample_texts(
    model: LanguageModel, tokenizer: Tokenizer, n: int, seconds: float, seed: int
) -> list[str]:
    """n texts from their beginning on; none where there is no token that a text could begin with."""
    ids = tokenizer.encode(empty_prompt(tokenizer)).tolist()
    if tokenizer.end_of_text is not None:
        ids = [tokenizer.end_of_text]
    if not ids:
        return []
    until, rows = time.monotonic() + seconds, list[list[int]]()
    sampling, end = Sampling(temperature=0.8), tokenizer.end_of_text
    with inference(model):  # once, not at every token
        steps = generate(
            model,
            ids,
            max_tokens=SAMPLE_TOKENS,
            n=n,
            sampling=sampling,
            seed=seed,
            stop_id=end,
            tokenizer=tokenizer,
        )
        for row in steps:
            rows.append(row)
            if time.monotonic() > until:
                break
    columns = [list(column) for column in zip(*rows, strict=True)]
    return [tokenizer.decode([id for id in column if id != end]) for column in columns]


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
