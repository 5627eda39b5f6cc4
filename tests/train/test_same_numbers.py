"""Fewer threads, the same numbers: the check, and runs whose number of threads changes."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import lmsmith.train.crew
import lmsmith.train.same_numbers
from lmsmith.errors import StorageError
from lmsmith.machine.allocations import allocations
from lmsmith.machine.threads import Change, ThreadChoice
from lmsmith.models import kernels
from lmsmith.train.crew import Crew
from lmsmith.train.loop import Training
from lmsmith.train.same_numbers import can_be_checked, digest, same_numbers, use_threads
from lmsmith.train.step import train_step

Make = Callable[..., Training]

# Large enough that PyTorch divides the work among threads.
WIDE = {"model.d_model": 64, "model.context_length": 64, "train.batch_size": 16, "train.threads": 2}
GPT2 = {
    "model.norm": "layernorm",
    "model.norm_gain": True,
    "model.bias": True,
    "optim.name": "adamw",
}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return digest([a]) == digest([b])


def score_of_end(run: Training) -> Callable[[], float]:
    return lambda: run.hooks.evaluate.score_end(run.context).nats


def products_agree(rows: int) -> bool:
    """Whether PyTorch's gradients of matrices from `rows` positions have the same bits with one and two
    threads. MKL on Intel's processors sums the rows of each thread apart if there are many.
    """
    draws = torch.Generator().manual_seed(0)
    x, grad = torch.randn(rows, 64, generator=draws), torch.randn(rows, 256, generator=draws)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(digest([grad[:, :n].t() @ x for n in (64, 192, 256)]))
    torch.set_num_threads(before)
    return found[0] == found[1]


def checked(run: Training, score: Callable[[], float]) -> bool:
    """Whether step 3 gives the same numbers with one and two threads."""
    context = run.context
    return same_numbers(context.replica, context.batches, 3, 10, (1, 2), score, context.run)


@pytest.fixture(autouse=True)
def _no_threads_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(kernels, "layer_norm_threads", 0)


class Alternating(ThreadChoice):
    """Changes the number of threads every step."""

    def add(self, seconds: float, now: float, others: float | None) -> Change | None:
        rng = random.Random(now)
        self._before, self.threads = self.threads, rng.randint(1, self.most)
        return Change(self.threads, final=True)


@pytest.mark.parametrize("changes", [{}, GPT2, {"train.micro_batch_size": 6}])
def test_a_run_whose_threads_change_has_the_same_weights(
    training: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    changes = WIDE | {"train.steps": 8} | changes
    alone = training(changes | {"train.yield_cores": "no"}, run="alone")
    alone.go()
    monkeypatch.setattr(lmsmith.train.crew, "ThreadChoice", Alternating)
    run = training(changes | {"train.yield_cores": "yes"})
    summary = run.go()
    crew = run.hooks.threads.crew
    agree = products_agree(64 * changes.get("train.micro_batch_size", 16))
    assert crew._checked == ({1} if agree else set()), "it has run with one thread"
    assert bool(crew._choice.refused) != agree
    for one, other in (
        (alone.context.replica.weights(copy=False), run.context.replica.weights(copy=False)),
        (alone.state.best, run.state.best),
    ):
        assert all(same_bits(one[name], other[name]) for name in one)
    events = [
        line
        for line in (run.context.run / "metrics.jsonl").read_text().splitlines()
        if '"event"' in line
    ]
    said = "continuing with 1 thread; the results stay bit-identical" if agree else "It keeps 2"
    assert any(said in event for event in events)
    assert summary["val_loss"] == alone.state.val_loss


def test_a_check_leaves_the_run_as_it_was(training: Make) -> None:
    run = training(WIDE | {"train.steps": 3, "model.dropout": 0.1})
    run.go()
    state = [
        *run.context.replica.weights(copy=True).values(),
        *(v.clone() for v in run.context.replica.optimizers.state().values()),
    ]
    random_state = torch.get_rng_state()
    assert checked(run, score_of_end(run)) == products_agree(rows=16 * 64)
    after = [
        *run.context.replica.weights(copy=False).values(),
        *run.context.replica.optimizers.state().values(),
    ]
    assert all(map(same_bits, state, after))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == 2
    assert all(p.grad is None for p in run.context.model.parameters())


@pytest.mark.parametrize("where", ["gradient", "score"])
def test_numbers_that_depend_on_threads_are_detected(
    training: Make, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = training(WIDE | {"train.steps": 3})
    run.go()
    score: Callable[[], float] = lambda: float(where == "score" and torch.get_num_threads())  # noqa: E731
    if where == "gradient":
        weight = next(p for p in run.context.model.parameters() if p.dim() == 2)
        weight.register_hook(lambda grad: grad * (1 + 1e-6 * torch.get_num_threads()))
    assert not checked(run, score)
    assert torch.get_num_threads() == 2


def test_a_run_whose_numbers_would_change_keeps_its_threads(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmsmith.train.crew, "ThreadChoice", Alternating)
    monkeypatch.setattr(lmsmith.train.crew, "same_numbers", lambda *_: False)
    run = training(WIDE | {"train.steps": 8, "train.yield_cores": "yes"})
    run.go()
    assert torch.get_num_threads() == 2
    assert "It keeps 2 threads" in (run.context.run / "metrics.jsonl").read_text()


def test_results_count_as_changed_if_the_disk_is_full(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(WIDE | {"train.steps": 3})
    run.go()
    weights = run.context.replica.weights(copy=True)

    def full(*, dir: Path) -> Any:
        assert dir == run.context.run
        return Path("/dev/full").open("w+b")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert not checked(run, score_of_end(run))
    after = run.context.replica.weights(copy=False)
    assert all(same_bits(weights[name], after[name]) for name in weights)


def test_a_state_that_cannot_be_read_back_ends_the_run(
    training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(WIDE | {"train.steps": 3})
    run.go()

    def damage() -> float:
        file.truncate(100)
        return 0.0

    file = tempfile.TemporaryFile(dir=run.context.run)  # noqa: SIM115 - same_numbers closes it
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: file)
    with pytest.raises(StorageError, match="shorter than what was written"):
        checked(run, damage)


def test_a_check_keeps_no_copy_of_the_state_in_memory(training: Make) -> None:
    wide = {"model.d_ff": 8_000, "train.batch_size": 1, "model.context_length": 16}
    run = training(WIDE | {"train.steps": 3} | wide)
    run.go()
    n_bytes = sum(p.nbytes for p in run.context.model.parameters())
    assert n_bytes > 4e6  # much more than the activations

    context = run.context
    with allocations(context.device) as step:
        train_step(context.replica, context.batches, 3, 10)
    with allocations(context.device) as check:
        checked(run, lambda: 0.0)
    assert check.peak < step.peak + 0.5 * n_bytes, "a copy has at least 2 * n_bytes"


@pytest.mark.parametrize(
    ("changes", "variable", "may"),
    [
        ({}, "", True),
        ({"train.yield_cores": "yes"}, "", True),
        ({"train.yield_cores": "no"}, "", False),
        ({"train.threads": 1}, "", False),
        ({"train.initial_batch_size": 4}, "", False),
        ({}, "2", False),
    ],
)
def test_when_threads_may_change(
    training: Make,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    variable: str,
    may: bool,
) -> None:
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    run = training(WIDE | changes)
    crew = Crew(run.context.replica, run.context.batches, lambda: 0.0, run.context.run)
    assert (crew._others is not None) is may


def test_runs_with_other_state_or_shapes_cannot_be_checked(training: Make) -> None:
    assert can_be_checked(training(WIDE).context.replica)
    replica, config = training(WIDE).context.replica, training(WIDE).context.config
    for documents in ("packed", "rows"):  # steps of several shapes
        replica.config = config.changed({"data.documents": documents}, where="a test")
        assert not can_be_checked(replica)
    replica.config = config
    replica.carried = object()  # type: ignore[assignment]
    assert not can_be_checked(replica)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_parts", [2, 3, 7])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_layer_norm_computes_as_with_more_threads(
    monkeypatch: pytest.MonkeyPatch, bias: bool, n_parts: int, n_threads: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(8, 129, 48, generator=generator) for _ in range(2))
    gain, shift = (torch.randn(48, generator=generator) for _ in range(2))

    def gradients(function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        leaves = [
            tensor.clone().requires_grad_() for tensor in ([x, gain, shift] if bias else [x, gain])
        ]
        y = function(*leaves, *([] if bias else [None]))
        y.backward(dy)
        return [y, *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    use_threads(n_parts, n_parts)
    expected = gradients(lambda x, gain, shift: F.layer_norm(x, (48,), gain, shift, 1e-5))
    use_threads(n_threads, n_parts)
    found = gradients(lambda x, gain, shift: kernels.layer_norm(x, gain, shift, 1e-5))
    assert len(found) == len(expected) == 3 + bias
    assert all(map(same_bits, found, expected))
    assert torch.get_num_threads() == n_threads


def test_bits_are_compared_not_values() -> None:
    assert same_bits(torch.tensor(float("nan")), torch.tensor(float("nan")))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]))


def test_messages_are_limited(training: Make, tmp_path: Path) -> None:
    run = training(WIDE)
    crew = Crew(run.context.replica, run.context.batches, lambda: 0.0, run.context.run)
    assert crew.say_now()
    assert not crew.say_now()
