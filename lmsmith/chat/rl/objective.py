"""The objective of `lmsmith rl`: rollouts by the live weights, and the loss of `grpo.py`.

For each rollout, `before_gradient` samples groups of answers with the weights of that step, judges
them, and turns rewards into advantages. The next `rl.steps_per_rollout` steps use them. Rollouts
are functions of (weights, seed, number), so nothing of them is saved, except with several steps per
rollout: a checkpoint between two of these steps has the answers.

Metrics of a step: `reward` and `reward_std` over all answers, `no_signal_share` (of groups, those
with equal rewards), `answer_tokens`, `longest_answer`, `finished_share` (of answers, those with an
end token), `clip_fraction`, `kl`, and `sampler_gap`: the mean difference between log-probabilities
of the sampler and the trainer in the first step of a rollout, where both have the same weights.

An evaluation answers held-out problems greedily. Its loss is 1 - the mean reward, so the best
weights are those with the highest reward; if the reward is 1 for a right answer and else 0, the
loss is the share of wrong answers. RUN/reference has the starting weights if the loss has a
KL term.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmsmith.chat.prepare import own_speaker
from lmsmith.chat.rl import grpo
from lmsmith.chat.rl.options import Options, opened_task, options_of
from lmsmith.chat.rl.rollouts import Group, Rollout, Sampler, judged, random_rollout, roll_out
from lmsmith.chat.rl.rows import Rows
from lmsmith.chat.session import ends_of
from lmsmith.checkpoint import load_model
from lmsmith.config import RunConfig
from lmsmith.data.batches.windows import AnyBatches
from lmsmith.data.corpus import Corpus
from lmsmith.distributed.shard import SummedLoss
from lmsmith.errors import ConfigError
from lmsmith.evaluate.likelihood import inference
from lmsmith.generate.decode import unused_tokens
from lmsmith.generate.sampling import Sampling
from lmsmith.generate.text_model import TextModel
from lmsmith.models.gpt import GPT
from lmsmith.models.interface import NeuralModel
from lmsmith.models.lora import merged
from lmsmith.train.init_from import saved_special_ids
from lmsmith.train.log import add_samples
from lmsmith.train.objective import Described, Evaluation, Objective
from lmsmith.train.replica import uncompiled

if TYPE_CHECKING:
    from lmsmith.train.hooks.hook import Context
    from lmsmith.train.replica import Replica

REFERENCE = "reference"  # the folder of the starting weights
BATCH_SIZE = 64
N_SAMPLES = 5  # answers of an evaluation that samples.md shows


class PolicyLoss(SummedLoss):
    """The loss of some answers, and sums for the metrics."""

    def __init__(self, model: NeuralModel, options: Options, head_dtype: Any = None) -> None:
        super().__init__(model, head_dtype)
        self.options = options

    def forward(  # type: ignore[override]
        self,
        inputs: Tensor,
        targets: Tensor,
        old: Tensor,
        advantages: Tensor,
        weights: Tensor,
        reference: Tensor,
        kept: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Arguments: those of `Rows.arrays`."""
        log_p = self.options.log_probabilities(self.model, inputs, targets, kept)
        with torch.autocast(inputs.device.type, enabled=False):
            number = log_p.dtype
            loss, sums = grpo.policy_loss(
                log_p,
                old.to(number),
                advantages.to(number),
                weights.to(number),
                self.options.clipping,
                reference.to(number) if len(reference) else None,
                self.options.kl_weight,
            )
            sums["gap"] = (log_p.detach() - old.to(number)).abs().sum()
        return loss, sums


class RolloutBatches:
    """The batch of the current rollout, as the training loop reads batches."""

    def __init__(self, size: int, tokens_per_batch: int) -> None:
        self.size, self.tokens_per_batch = size, tokens_per_batch
        self.current: Rows | None = None

    def rows(self, step: int, start: int = 0, end: int | None = None) -> Any:
        """Answers `start` to `end` of the current rollout."""
        assert self.current is not None
        return self.current.part(start, self.size if end is None else end)

    def n_targets(self, step: int) -> int:
        """Tokens of all answers."""
        if self.current is None:
            return self.tokens_per_batch
        return int(self.current.n_tokens.sum())


class RL(Objective):
    """Policy gradients on groups of sampled answers."""

    generates = True
    signed = True
    shown = ("val_reward",)
    command = "lmsmith rl"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.options = options_of(config)
        self._task = self.options.task
        self._sampler: Sampler | None = None
        self._reference: NeuralModel | None = None
        self._current: tuple[int, Rows] | None = None  # the number of the rollout
        self._numbers: dict[str, float] = {}
        self._is_first = True  # step of its rollout
        self._n_constant = 0  # rollouts in a row without any signal
        self._say: Callable[[str], None] = lambda message: None

    def check(self, world: int) -> None:
        super().check(world)
        size, group = self.config.train.batch_size, self.config.rl.group_size
        if world > 1:
            raise ConfigError("`lmsmith rl` runs in one process: start it without torchrun.")
        if size % group:
            raise ConfigError(
                f"train.batch_size = {size} answers per step are not a multiple of rl.group_size = "
                f"{group}. Set it to {max(1, round(size / group)) * group}."
            )

    def batches(self, corpus: Corpus) -> RolloutBatches:
        size = self.config.train.batch_size
        return RolloutBatches(size, size * max(1, self.options.max_tokens // 2))

    @property
    def rows_that_belong_together(self) -> int:
        return self.config.rl.group_size

    def batch_size(self, corpus: Corpus, world: int) -> int | None:
        group = self.config.rl.group_size
        return -(-BATCH_SIZE // group) * group

    def describe(self, corpus: Corpus, batches: AnyBatches) -> Described | None:
        size, group = self.config.train.batch_size, self.config.rl.group_size
        return Described(f"{size // group} prompts x {group} answers", 0.0)

    def module(
        self, model: NeuralModel, head_dtype: torch.dtype | None, *, compiled: bool
    ) -> SummedLoss:
        return PolicyLoss(model, self.options, head_dtype)

    def start(
        self,
        run: Path,
        corpus: Corpus,
        replica: Replica,
        batches: AnyBatches,
        say: Callable[[str], None],
    ) -> None:
        """Sets up the sampler. Raises UsageError, CheckpointError, DataError for a long prompt."""
        self._say, self._task = say, opened_task(self.config)
        speaker, special = own_speaker(run), saved_special_ids(run)
        model = self._actor(replica)
        writer = TextModel.of(model, speaker.tokenizer, special)
        self.options = self.options.with_forbidden(unused_tokens(model, speaker.tokenizer))
        self._set_forbidden(replica)
        self._sampler = Sampler(
            model,
            speaker,
            frozenset(ends_of(writer, speaker)),
            self.options.sampling,
            self.options.max_tokens,
            self.options.forbidden,
        )
        if self.options.kl_weight:
            self._reference = self.config.neural.build().to(model.device)
            self._reference.load_state_dict(load_model(run / REFERENCE)[0])
            self._reference.requires_grad_(requires_grad=False)

    def before_gradient(self, replica: Replica, batches: AnyBatches, step: int) -> None:
        """Samples the answers of a new rollout. Raises TrainingError, DataError."""
        assert isinstance(batches, RolloutBatches)
        number, place = divmod(step, self.config.rl.steps_per_rollout)
        self._is_first = place == 0
        if self._current is None or self._current[0] != number:
            self._current = number, self._roll_out(replica, number)
        batches.current = self._current[1]

    def divisor(self, batches: AnyBatches, step: int) -> float:
        return 1.0  # the weights of the tokens have it

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        n = max(1.0, sums["tokens"])
        found = {**self._numbers, "clip_fraction": sums["clipped"] / n}
        if self._is_first:  # later steps have other weights than the sampler had
            found["sampler_gap"] = sums["gap"] / n
        return found | ({"kl": sums["kl"] / n} if self.options.kl_weight else {})

    def evaluate(self, context: Context) -> Evaluation | None:
        """Answers held-out problems greedily, and writes some answers to samples.md."""
        if self._sampler is None:
            return None
        options = self.options
        problems = [
            self._task.problem(0, n, held_out=True) for n in range(self.config.rl.eval_problems)
        ]
        with self._deciding(context.replica):
            greedy = self._sampler.with_sampling(Sampling(temperature=0.0))
            groups = judged(greedy, options.judge, problems, 1, 0)
        rewards = [group.rewards[0] for group in groups]
        mean = sum(rewards) / len(rewards)
        lengths = [len(group.answers[0].ids) for group in groups]
        add_samples(
            context.run / "samples.md", context.step, [shown(group) for group in groups[:N_SAMPLES]]
        )
        return Evaluation(
            1 - mean, metrics={"val_reward": mean, "val_answer_tokens": sum(lengths) / len(lengths)}
        )

    def state_dict(self) -> Mapping[str, Any]:
        if self.config.rl.steps_per_rollout == 1 or self._current is None:
            return {}
        number, rows = self._current
        return {"number": number, "numbers": self._numbers, **vars(rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._current = None
        if state:
            self._current = int(state["number"]), Rows.from_state(state)
            self._numbers = dict(state["numbers"])

    # ---- rollouts --------------------------------------------------------------------------------

    def _roll_out(self, replica: Replica, number: int) -> Rows:
        options, train, rl = self.options, self.config.train, self.config.rl
        n_prompts = train.batch_size // rl.group_size
        with self._deciding(replica):
            if self._sampler is None:  # a step is measured before the run exists
                found = random_rollout(
                    self._actor(replica),
                    options.sampling,
                    n_prompts,
                    rl.group_size,
                    options.max_tokens,
                )
            else:
                found = roll_out(
                    self._sampler,
                    self._task,
                    options.judge,
                    n_prompts=n_prompts,
                    group_size=rl.group_size,
                    seed=train.seed,
                    number=number,
                    dynamic=options.dynamic,
                )
        rows = Rows.of(found.groups)
        options.weigh(rows, found.rewards)
        if self._reference is not None:
            rows.reference = self._of_reference(rows, replica)
        self._numbers = numbers_of(found, rows)
        self._note_constant(found)
        return rows

    def _of_reference(self, rows: Rows, replica: Replica) -> Tensor:
        assert self._reference is not None
        found, n = [], replica.rows_at_once
        with inference(self._reference):
            for start in range(0, len(rows.inputs), n):
                part = rows.part(start, min(start + n, len(rows.inputs)))
                device = replica.device
                found.append(
                    self.options.log_probabilities(
                        self._reference,
                        part.inputs.to(device),
                        part.targets.to(device),
                        part.kept.to(device),
                    ).cpu()
                )
        return torch.cat(found).double()

    @contextmanager
    def _deciding(self, replica: Replica) -> Iterator[None]:
        """The model in evaluation mode, with merged adapters; afterwards as it was."""
        if self._sampler is not None and self.config.lora.rank:
            assert isinstance(replica.model, GPT)
            every = merged(replica.weights(copy=False), self.config.lora, replica.model)
            actor: Any = self._sampler.model
            actor.load_state_dict(every)
        with uncompiled(self.config), inference(replica.model):
            yield

    def _actor(self, replica: Replica) -> NeuralModel:
        """The model that samples: the live one, or with LoRA one that gets merged weights."""
        if not self.config.lora.rank:
            return replica.model
        return self.config.neural.build().to(replica.device)

    def _set_forbidden(self, replica: Replica) -> None:
        module: Any = replica.summed_loss
        getattr(module, "module", module).options = self.options

    def _note_constant(self, found: Rollout) -> None:
        """Says so if no group of a rollout has a gradient; again after 10, 100, ... in a row."""
        self._n_constant = 0 if any(g.has_signal for g in found.groups) else self._n_constant + 1
        if self._sampler is None or self._n_constant not in (1, 10, 100, 1000):
            return
        rewards = sorted({reward for group in found.groups for reward in group.rewards})
        among = f"the reward {rewards[0]:g}" if len(rewards) == 1 else "equal rewards in each group"
        times = "" if self._n_constant == 1 else f" for {self._n_constant} rollouts in a row"
        self._say(
            f"note     all {len(found.answers)} answers have {among}{times}, so there is no "
            "gradient. If this continues: use easier problems, a reward with more steps, a higher "
            "rl.temperature, or tune the model on some right answers first."
        )


def numbers_of(found: Rollout, rows: Rows) -> dict[str, float]:
    """The metrics of a rollout."""
    rewards, lengths = found.rewards, rows.n_tokens.double()
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "no_signal_share": found.n_without_signal / found.n_tried,
        "answer_tokens": float(lengths.mean()),
        "longest_answer": float(lengths.max()),
        "finished_share": float(rows.finished.double().mean()),
    }


def shown(group: Group) -> str:
    """A problem with its first answer and the reward, for samples.md."""
    reward = f"{group.rewards[0]:g}"
    return f"{group.problem.question}\n> {group.answers[0].text}\n(reward {reward})"
