"""One training step against PyTorch's own loss, gradients and norm."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import lmsmith.train.step
from lmsmith.config import RunConfig
from lmsmith.data.batches.windows import Batches
from lmsmith.data.corpus import Corpus
from lmsmith.distributed.ranks import Ranks
from lmsmith.errors import TrainingError
from lmsmith.models.gpt import GPT
from lmsmith.optim.scaling import GradientScale
from lmsmith.optim.schedule import learning_rate_share
from lmsmith.train.replica import Replica
from lmsmith.train.step import _fits, clip, dropout_seed, norm_of, train_step

N_STEPS = 10


class Setup:
    """A float64 model without zero weights, and everything that a step needs."""

    def __init__(self, config: RunConfig, corpus: Corpus, **changes: object) -> None:
        self.config = config.changed(
            {"train.dtype": "float64", "optim.name": "adamw"} | changes, where="a test"
        )
        self.model = GPT(self.config.model).double()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in self.model.parameters():
                p.normal_(0, 0.3, generator=generator)
        self.replica = Replica(self.model, self.config)
        self.optimizers = self.replica.optimizers
        model, train = self.config.model, self.config.train
        self.batches = Batches(
            corpus.train,
            context_length=model.context_length,
            batch_size=train.batch_size,
            seed=train.seed,
        )

    def step(self, step: int) -> dict[str, float]:
        return train_step(self.replica, self.batches, step, N_STEPS)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


def test_loss_norm_and_learning_rate_equal_a_plain_loops(config: RunConfig, corpus: Corpus) -> None:
    ours, oracle = (
        Setup(config, corpus, **{"optim.clip_norm": 0.1, "schedule.warmup_steps": 4})
        for _ in range(2)
    )
    plain = torch.optim.AdamW(oracle.optimizers.all[0].param_groups)
    for step in range(3):
        found = ours.step(step)
        batch = oracle.batches.rows(step)
        logits = oracle.model(torch.from_numpy(batch.inputs))
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
        plain.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(oracle.model.parameters(), 0.1)
        share = learning_rate_share(step, N_STEPS, oracle.config.schedule)
        for group in plain.param_groups:
            group["lr"] = group["peak"] * share
        plain.step()
        assert found["loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert found["grad_norm"] == pytest.approx(norm.item(), rel=1e-9)
        assert found["learning_rate"] == oracle.config.optim.learning_rate * (step + 1) / 4
        rates = {found[name] for name in found if name.endswith("learning_rate")}
        assert rates == {
            group["lr"] for optimizer in ours.optimizers.all for group in optimizer.param_groups
        }
    for name, weight in ours.weights().items():
        torch.testing.assert_close(weight, oracle.weights()[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_micro_batches_change_only_rounding(config: RunConfig, corpus: Corpus, rows: int) -> None:
    """Four rows at once, against micro-batches of 1, of 2, and of 3 and 1."""
    full, parts = Setup(config, corpus), Setup(config, corpus, **{"train.micro_batch_size": rows})
    for step in range(2):
        one, other = full.step(step), parts.step(step)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-12)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-12)
    for name, weight in full.weights().items():
        torch.testing.assert_close(parts.weights()[name], weight, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "dropout", ["model.dropout", "model.attention_dropout", "model.ngram_dropout"]
)
def test_dropout_is_a_function_of_seed_and_step(
    config: RunConfig, corpus: Corpus, dropout: str
) -> None:
    changes = {dropout: 0.5, "model.ngram_tables": (2,)}
    losses = {}
    for name, seed, step in (
        ("one", 1, 5),
        ("same", 1, 5),
        ("other step", 1, 6),
        ("other seed", 2, 5),
    ):
        setup = Setup(config, corpus, **changes, **{"train.seed": seed})
        setup.batches = Batches(
            corpus.train, context_length=16, batch_size=4, seed=1
        )  # the same text for both seeds
        rows = setup.batches.rows(5)
        setup.batches.rows = lambda *_, rows=rows: rows  # type: ignore[method-assign, misc] - and for both steps
        torch.manual_seed(len(losses))  # the global generator has no effect
        losses[name] = setup.step(step)["loss"]
    assert losses["one"] == losses["same"]
    assert len(set(losses.values())) == 3


def test_the_global_generator_is_unchanged(config: RunConfig, corpus: Corpus) -> None:
    setup = Setup(config, corpus, **{"model.dropout": 0.5})
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    setup.step(0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_with_a_loss_that_is_not_finite_is_not_applied(
    config: RunConfig, corpus: Corpus, value: float
) -> None:
    setup = Setup(config, corpus)
    with torch.no_grad():
        setup.model.token_embedding.weight[:] = value
    before = setup.weights()
    with pytest.raises(TrainingError, match=r"step 4: the loss is nan .* the step was not applied"):
        setup.step(3)
    assert all(
        np.array_equal(weight, before[name], equal_nan=True)
        for name, weight in setup.weights().items()
    )
    assert setup.optimizers.state() == {}


def test_clipping_equals_pytorchs() -> None:
    for largest in (0.0, 0.5, 1e9):
        ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
        for layer in (ours, theirs):
            layer.weight.grad = torch.arange(15.0).reshape(3, 5)
            layer.bias.grad = None if largest == 0.5 else torch.ones(3)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), largest or math.inf)
        assert float(norm_of(ours)) == pytest.approx(float(norm))
        clip(ours, float(norm), largest)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def scaled(setup: Setup, value: float) -> Setup:
    """The same setup with a loss scale, as float16 has."""
    setup.replica.scale = GradientScale(True, value=value)
    return setup


def test_a_loss_scale_changes_nothing(config: RunConfig, corpus: Corpus) -> None:
    """A power of two: loss, norm (taken after unscaling), clipping and weights are the same bits."""
    changes = {"optim.clip_norm": 0.1}
    plain, other = Setup(config, corpus, **changes), Setup(config, corpus, **changes)
    scaled(other, 2.0**16)
    for step in range(2):
        assert other.step(step) == plain.step(step)
        gradients = [[p.grad for p in s.model.parameters()] for s in (plain, other)]
        assert all(a is None or torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(torch.equal(w, plain.weights()[name]) for name, w in other.weights().items())


def test_overflowed_gradients_do_not_reach_the_next_step(config: RunConfig, corpus: Corpus) -> None:
    """The step is skipped, the scale halved, and the gradients are cleared."""
    plain, other = Setup(config, corpus), scaled(Setup(config, corpus), 2.0**16)
    overflow = other.model.token_embedding.weight.register_hook(lambda grad: grad * math.inf)
    assert not math.isfinite(other.step(0)["grad_norm"])
    assert other.replica.scale.value == 2.0**15
    assert all(p.grad is None or not p.grad.any() for p in other.model.parameters())
    overflow.remove()
    assert other.step(1)["grad_norm"] == plain.step(1)["grad_norm"]
    assert all(torch.equal(w, plain.weights()[name]) for name, w in other.weights().items())


class SecondOf(Ranks):
    """Rank 1 of a run, without the other ranks: its rows are all rows."""

    def rows(self, batch_size: int) -> tuple[int, int]:
        return 0, batch_size


def test_each_rank_draws_its_own_dropout_masks(config: RunConfig, corpus: Corpus) -> None:
    """Rank 1's masks come from (seed, step, 1), as docs/scale.md says."""
    first, second = (Setup(config, corpus, **{"model.dropout": 0.5}) for _ in range(2))
    second.replica.ranks = SecondOf(rank=1)
    found = [setup.step(5)["loss"] for setup in (first, second)]
    expected = []
    for rank in (0, 1):
        oracle = Setup(config, corpus, **{"model.dropout": 0.5})
        torch.manual_seed(dropout_seed(oracle.config.train.seed, 5, rank))
        batch = oracle.batches.rows(5)
        logits = oracle.model.train()(torch.from_numpy(batch.inputs)).flatten(0, 1)
        expected.append(F.cross_entropy(logits, torch.from_numpy(batch.targets).flatten()).item())
    assert found == pytest.approx(expected, rel=1e-9)
    assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_metrics_of_the_objective_are_those_of_the_step(
    config: RunConfig, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradient(replica: Replica, *_: Any) -> tuple[float, float]:
        replica.metrics = {"margin": 0.25}
        return 2.0, 3.0

    monkeypatch.setattr(lmsmith.train.step, "gradient", gradient)
    found = Setup(config, corpus).step(0)
    assert (found["loss"], found["grad_norm"], found["margin"]) == (2.0, 3.0, 0.25)


class Cramped(nn.parallel.DistributedDataParallel):
    """Has memory for micro-batches of this many rows."""

    rows = 0

    def forward(self, *given: Any, **options: Any) -> Any:
        if len(given[0]) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(*given, **options)


@pytest.fixture
def process_group() -> Iterator[None]:
    """One process that talks to itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_micro_batch_is_tried_before_the_processes_communicate(
    config: RunConfig, corpus: Corpus
) -> None:
    """Each size is tried twice, and leaves no gradients. A size that does not fit is not noted."""
    setup = Setup(config, corpus)
    replica = setup.replica
    replica.summed_loss = cramped = Cramped(replica.summed_loss)
    n = replica.rows_at_once
    assert not _fits(replica, setup.batches, 0)
    assert replica.rows_that_fitted == []
    cramped.rows = n
    for times in (1, 2, 2):
        assert _fits(replica, setup.batches, 0)
        assert replica.rows_that_fitted == [n] * times
        assert all(p.grad is None for p in setup.model.parameters())
