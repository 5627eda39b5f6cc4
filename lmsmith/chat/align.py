"""Preference training: DPO, IPO, SimPO and KTO (`lmsmith align`).

    folder, summary = align(Path("runs/chat"), ["pairs.jsonl"], {}, out=None, console=console)

It is a run of `lmsmith.train` with the objective `Preferences`. The reference is the model that
the run starts from (with LoRA: the model without adapters). Its log-probabilities are computed once
before the first step and kept in the run's folder:

    RUN/tokens/train.reference.npy, val.reference.npy     (conversations,) float64, in nats
    RUN/tokens/reference/                                 finished blocks, until all are there
"""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor

from lmsmith.chat.pairs import prepare_pairs
from lmsmith.chat.preferences import Losses, dpo, ipo, kto, kto_kl, row_sums, simpo
from lmsmith.chat.prepare import gather
from lmsmith.config import LENGTH, AlignConfig, RunConfig, read_toml
from lmsmith.data.batches.pairs import PairBatches
from lmsmith.data.conversations import Conversations, save_array
from lmsmith.data.corpus import Corpus
from lmsmith.distributed.ranks import FOREVER
from lmsmith.distributed.shard import SummedLoss
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.loss import token_log_probabilities
from lmsmith.targets import IGNORED
from lmsmith.text.files import plural
from lmsmith.train.hooks.hook import Context, Hook
from lmsmith.train.objective import Described, Evaluation, Objective
from lmsmith.train.request import COMMAND_LINE
from lmsmith.train.start import train

if TYPE_CHECKING:
    from lmsmith.train.replica import Replica

EPOCHS = 3.0
"""Passes over the pairs, unless a length is set. One pass over a small file is only about 30
steps, which hardly change the model (`docs/performance.md`).
"""
BLOCK = 256  # conversations whose reference log-probabilities are written at a time
ROWS = 16  # conversations in a forward pass without gradients
STEPS_AN_EPOCH, MOST_PAIRS = 30, 32


def align(
    run: Path,
    sources: Sequence[str],
    changes: Mapping[str, Any],
    *,
    out: Path | None,
    console: Console,
    started: float | None = None,
    hooks: Sequence[Hook] = (),
    where: str = COMMAND_LINE,
) -> tuple[Path, dict[str, Any]]:
    """Trains the model of `run` on preferences; returns the new run's folder and summary.

    Arguments as in `lmsmith.chat.sft.tune`. Raises LmsmithError of every kind.
    """
    fixed = {
        "train.init_from": str(run),
        "data.documents": "conversations",
        "train.objective": "preferences",
    }
    for name, value in fixed.items():
        if changes.get(name, value) != value:
            raise ConfigError(
                f"{name} = {changes[name]!r} in {where}: `align` sets it to {value!r}. Leave it "
                "out."
            )
    recipes = [read_toml(Path(source)) for source in sources if source.endswith(".toml")]
    given = {*changes, *itertools.chain.from_iterable(recipes)}
    length = {} if given & set(LENGTH) else {"train.epochs": EPOCHS}
    return train(
        sources,
        {**length, **changes, **fixed},
        out=out,
        console=console,
        started=started,
        hooks=hooks,
        where=where,
        gather=functools.partial(gather, prepare_tokens=prepare_pairs),
    )


class PairLoss(SummedLoss):
    """The summed preference loss of pairs, and summed metrics. `kl`: KTO's z of the batch."""

    settings = AlignConfig()
    kl: Tensor | None = None

    def forward(  # type: ignore[override]
        self, inputs: Tensor, targets: Tensor, reference: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`inputs`, `targets`: (2B, T), chosen and rejected in turn; `reference`: (2B,)."""
        if self.settings.method == "kto":  # the second rows are only for z
            inputs, targets, reference = inputs[::2], targets[::2], reference[::2]
        log_p = self.row_log_probabilities(inputs, targets)
        lengths = (targets != IGNORED).sum(1)
        found = losses(self.settings, log_p, reference.to(log_p), lengths, labels, self.kl)
        return found[0].sum(), found[1]

    def row_log_probabilities(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The sum over each row's learned targets of ln p, in nats: (rows,)."""
        hidden = self.model.hidden(inputs, None, None)
        counted = targets != IGNORED
        with torch.autocast(inputs.device.type, enabled=False):
            log_p = token_log_probabilities(
                hidden.to(self.head_dtype or hidden.dtype)[counted],
                self.model.head_weight,
                targets[counted],
                vocab_size=self.model.config.vocab_size,
                softcap=self.model.config.logit_softcap,
            )
        return row_sums(log_p, counted.nonzero()[:, 0], len(inputs))


def losses(
    settings: AlignConfig,
    log_p: Tensor,
    reference: Tensor,
    lengths: Tensor,
    labels: Tensor,
    kl: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each pair (KTO: of each answer), and sums for `Preferences.metrics`.

    `log_p`, `reference`: (2B,) summed, in KTO (B,); `lengths`: their numbers of tokens.
    """
    beta, smoothing = settings.scale, settings.label_smoothing
    if settings.method == "kto":
        assert kl is not None
        loss, rewards = kto(log_p, reference, labels, kl.to(log_p), beta=beta)
        right = (rewards > beta * kl) == labels
        return loss, {
            "n": torch.tensor(float(len(loss))),
            "n_chosen": labels.sum(),
            "n_rejected": (~labels).sum(),
            "rewards/chosen": (rewards * labels).sum(),
            "rewards/rejected": (rewards * ~labels).sum(),
            "rewards/accuracies": right.sum(),
            "logps/chosen": (log_p.detach() * labels).sum(),
            "logps/rejected": (log_p.detach() * ~labels).sum(),
            "kl": kl * len(loss),
        }
    mean, reference_mean = log_p / lengths, reference / lengths
    found: Losses
    if settings.method == "dpo":
        found = dpo(
            *log_p.view(-1, 2).T, *reference.view(-1, 2).T, beta=beta, label_smoothing=smoothing
        )
    elif settings.method == "ipo":
        found = ipo(*mean.view(-1, 2).T, *reference_mean.view(-1, 2).T, beta=beta)
    else:
        gamma = settings.gamma
        found = simpo(*mean.view(-1, 2).T, beta=beta, gamma=gamma, label_smoothing=smoothing)
    n = torch.tensor(float(len(found.loss)))
    chosen, rejected = log_p.detach().view(-1, 2).T
    return found.loss, {
        **{"n": n, "n_chosen": n, "n_rejected": n},
        "rewards/chosen": found.chosen.sum(),
        "rewards/rejected": found.rejected.sum(),
        "rewards/accuracies": (found.chosen > found.rejected).sum(),
        "logps/chosen": chosen.sum(),
        "logps/rejected": rejected.sum(),
    }


class Preferences(Objective):
    """Preference losses; the divisor is the number of pairs."""

    shown = ("rewards/margins", "rewards/accuracies")
    command = "lmsmith align"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.loss: PairLoss
        self._held_out: PairBatches | None = None

    def check(self, world: int) -> None:
        super().check(world)
        settings = self.config.align
        if settings.label_smoothing and settings.method in ("ipo", "kto"):
            raise ConfigError(
                f"align.label_smoothing = {settings.label_smoothing:g} has no effect on "
                f"{settings.method}. Leave it out, or use --method dpo or simpo."
            )

    def module(self, model: Any, head_dtype: torch.dtype | None, *, compiled: bool) -> PairLoss:
        self.loss = PairLoss(model, head_dtype)
        self.loss.settings = self.config.align
        return self.loss

    def batch_size(self, corpus: Corpus, world: int) -> int:
        assert isinstance(corpus.train, Conversations)
        rows = min(MOST_PAIRS, max(1, corpus.train.n // 2 // STEPS_AN_EPOCH))
        return -(-rows // world) * world

    def describe(self, corpus: Corpus, batches: Any) -> Described:
        config = self.config.align
        what = "answer" if config.method == "kto" else "pair"
        of = f"{plural(batches.batch_size, what)}, {batches.tokens_per_batch:,} learned tokens"
        gamma = f", gamma {config.gamma:g}" if config.method == "simpo" else ""
        note = f"{config.method} with beta {config.scale:g}{gamma}"
        return Described(of, self.config.train.steps / batches.n_batches, (note,))

    def divisor(self, batches: Any, step: int) -> float:
        return float(self.config.train.batch_size)

    def start(
        self, run: Path, corpus: Corpus, replica: Replica, batches: Any, say: Callable[[str], None]
    ) -> None:
        assert isinstance(corpus.validation, Conversations)
        self._held_out = PairBatches(
            corpus.validation,
            context_length=batches.T,
            batch_size=corpus.validation.n // 2,
            seed=0,
        )
        if self.config.align.method == "simpo":
            return
        for name, some in (("train", batches), ("val", self._held_out)):
            some.reference = self._reference(run, name, some, replica, say)

    def _reference(
        self,
        run: Path,
        name: str,
        batches: PairBatches,
        replica: Replica,
        say: Callable[[str], None],
    ) -> npt.NDArray[np.float64]:
        """Loads the reference log-probabilities, or computes those that are missing."""
        path, blocks = run / "tokens" / f"{name}.reference.npy", run / "tokens" / "reference"
        n, ranks = batches.conversations.n, replica.ranks
        if not path.exists():
            if (run / "checkpoints").exists() and any((run / "checkpoints").iterdir()):
                raise CheckpointError(
                    f"{path} is missing, and the run has already changed its weights, so it cannot "
                    "be computed again. Put the file back, or start a new run."
                )
            say(f"computing the reference log-probabilities of {n:,} {name} conversations")
            blocks.mkdir(exist_ok=True)
            parts = [
                (blocks / f"{name}-{first:08d}.npy", np.arange(first, min(first + BLOCK, n)))
                for first in range(0, n, BLOCK)
            ]
            for place, members in parts[ranks.rank :: ranks.world]:
                if not place.exists():
                    save_array(place, self._log_probabilities(batches, members, replica))
            ranks.wait(FOREVER)

            def join() -> str:
                save_array(path, np.concatenate([np.load(place) for place, _ in parts]))
                if name == "val":
                    shutil.rmtree(blocks)
                return ""

            ranks.on_rank_zero(join)
        return np.asarray(np.load(path, allow_pickle=False))

    def _log_probabilities(
        self, batches: PairBatches, members: npt.NDArray[np.int64], replica: Replica
    ) -> npt.NDArray[np.float64]:
        """ln p of the learned tokens of these conversations, without dropout."""
        model, found = self.loss.model, []
        was = model.training
        model.eval()
        with torch.no_grad(), replica.autocast():
            for some in np.split(members, range(ROWS, len(members), ROWS)):
                rows = [torch.from_numpy(a).to(replica.device) for a in batches.padded(some)]
                found.append(self.loss.row_log_probabilities(*rows).double().cpu().numpy())
        model.train(was)
        return np.concatenate(found)

    def before_gradient(self, replica: Replica, batches: Any, step: int) -> None:
        """KTO: estimates the KL divergence from the full batch."""
        if self.config.align.method != "kto":
            return
        source = getattr(batches, "batches", batches)  # what is read ahead
        start, end = replica.ranks.rows(self.config.train.batch_size)
        others = 2 * source.pairs(step)[start:end] + 1
        found = self._log_probabilities(source, others, replica) - source.reference[others]
        (total,) = replica.ranks.sum(float(found.sum()))
        kl = max(0.0, total / self.config.train.batch_size)
        self.loss.kl = torch.tensor(kl, device=replica.device)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over pairs. Names as in TRL; in KTO, an answer counts as right in the accuracy if
        its reward is on its label's side of z.
        """
        divisors = {"chosen": sums["n_chosen"], "rejected": sums["n_rejected"]}
        found = {}
        for name, value in sums.items():
            if not name.startswith("n"):
                n = divisors.get(name.rpartition("/")[2], sums["n"])
                found[name] = value / n if n else 0.0
        margin = found["rewards/chosen"] - found["rewards/rejected"]
        return found | {"rewards/margins": margin}

    def evaluate(self, context: Context) -> Evaluation:
        """The loss over all held-out pairs, and its metrics."""
        held_out, ranks, settings = self._held_out, context.ranks, self.config.align
        assert held_out is not None
        members = np.arange(held_out.conversations.n)
        mine = members[ranks.rank :: ranks.world]
        log_p = np.zeros(len(members))
        if len(mine):
            log_p[mine] = self._log_probabilities(held_out, mine, context.replica)
        log_p = np.array(ranks.sum(*log_p.tolist()))
        labels = held_out.batch(members[: len(members) // 2]).labels
        rows, kl = slice(None), None
        if settings.method == "kto":
            rows = slice(None, None, 2)
            kl = kto_kl(*map(torch.from_numpy, (log_p[1::2], held_out.reference[1::2])))
        arrays = (log_p[rows], held_out.reference[rows], held_out.n_learned[rows], labels)
        tensors = [torch.from_numpy(array) for array in arrays]
        loss, sums = losses(settings, tensors[0], tensors[1], tensors[2], tensors[3], kl)
        metrics = self.metrics({name: float(value) for name, value in sums.items()})
        return Evaluation(float(loss.mean()), metrics=metrics)
