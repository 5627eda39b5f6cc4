"""The chunked loss against F.cross_entropy on all logits, in value and gradient."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmsmith import loss
from lmsmith.loss import summed_cross_entropy, token_log_probabilities
from lmsmith.targets import IGNORED

N, D, V = 23, 5, 11


def plain(
    hidden: Tensor, head: Tensor, targets: Tensor, *, vocab_size: int = V, softcap: float = 0.0
) -> Tensor:
    logits = hidden @ head[:vocab_size].T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def ours(
    hidden: Tensor, head: Tensor, targets: Tensor, *, vocab_size: int = V, softcap: float = 0.0
) -> Tensor:
    return summed_cross_entropy(hidden, head, targets, vocab_size=vocab_size, softcap=softcap)[0]


def drawn(
    n: int = N, rows: int = V, *, ignored: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and targets, of which `ignored` random ones do not count."""
    generator = torch.Generator().manual_seed(n + rows)
    hidden, head = (
        torch.randn(r, D, generator=generator, dtype=torch.float64).to(dtype) for r in (n, rows)
    )
    targets = torch.randint(0, V, (n,), generator=generator)
    targets[torch.randperm(n, generator=generator)[:ignored]] = IGNORED
    return hidden.requires_grad_(), head.requires_grad_(), targets


def value_and_gradients(
    function: Callable[..., Tensor], *inputs: Tensor, **options: float
) -> list[Tensor]:
    total = function(*inputs, **options)
    return [total.detach(), *torch.autograd.grad(total / 7, inputs[:2])]


def assert_equal(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-13) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("softcap", [0.0, 1.5, 15.0])
@pytest.mark.parametrize("rows", [V, V + 1, 64])
@pytest.mark.parametrize("ignored", [0, 9, 17, N])
@pytest.mark.parametrize("chunk_rows", [1, 7, N - 1, N, 1000])
def test_equals_cross_entropy(
    softcap: float, rows: int, ignored: int, chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of one row, chunks with a remainder, a single chunk; with and without padded rows,
    soft cap and ignored targets.
    """
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", chunk_rows * rows)
    inputs = drawn(rows=rows, ignored=ignored)
    assert_equal(
        value_and_gradients(ours, *inputs, softcap=softcap),
        value_and_gradients(plain, *inputs, softcap=softcap),
    )
    assert summed_cross_entropy(*inputs, vocab_size=V)[1] == N - ignored


@pytest.mark.parametrize("softcap", [0.0, 15.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("n", "columns"), [(700, 65), (130, 257), (256, 512)])
def test_parts_give_the_bits_of_the_complete_chunk(
    n: int, columns: int, dtype: torch.dtype, softcap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of 50 rows, with a remainder, padded columns and ignored targets; on one thread and
    two.
    """
    generator = torch.Generator().manual_seed(n)
    logits = (6 * torch.randn(n, columns, generator=generator)).to(dtype)
    goal = torch.randint(0, columns - 3, (n, 1), generator=generator)
    goal[::7] = IGNORED
    sizes, compute = list[int](), loss.loss_and_gradient
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            wanted = loss.loss_and_gradient(logits.clone(), goal, columns - 3, softcap, True)
            monkeypatch.setattr(loss, "PART_ELEMENTS", 50 * columns)
            sizes.clear()
            with monkeypatch.context() as patch:
                patch.setattr(
                    loss,
                    "loss_and_gradient",
                    lambda x, *rest: [sizes.append(len(x)), compute(x, *rest)][1],
                )
                found = loss.in_parts(logits.clone(), goal, columns - 3, softcap, True)
            assert sizes == [50] * (n // 50) + [n % 50] * (n % 50 > 0)
            assert torch.equal(found[0], wanted[0])
            assert torch.equal(found[1], wanted[1])
            losses, _ = loss.in_parts(logits.clone(), goal, columns - 3, softcap, False)
            assert torch.equal(losses, wanted[0])
    finally:
        torch.set_num_threads(threads)


def test_chunks_stay_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 4 * V)
    sizes = []
    log_softmax = F.log_softmax
    monkeypatch.setattr(
        loss.F, "log_softmax", lambda x, dim: sizes.append(x.numel()) or log_softmax(x, dim)
    )
    ours(*drawn())
    assert sizes == [4 * V] * 5 + [3 * V]
    monkeypatch.setattr(loss, "GPU_CHUNK_ELEMENTS", 10 * V)
    ours(*(x.to("meta") for x in drawn()))  # not the CPU, so the GPU's chunk size applies
    assert sizes[6:] == [10 * V] * 2 + [3 * V]


def test_a_majority_that_does_not_count_costs_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the positions are computed with the others; fewer are taken out on a CPU."""
    sizes, log_softmax = [], F.log_softmax
    monkeypatch.setattr(
        loss.F, "log_softmax", lambda x, dim: sizes.append(len(x)) or log_softmax(x, dim)
    )
    for ignored in (N // 2, N // 2 + 1, N - 1):
        ours(*drawn(ignored=ignored))
    assert sizes == [N, N // 2, 1]
    with torch.no_grad():
        inputs = drawn(ignored=N - 2)
        assert_equal([ours(*inputs)], [plain(*inputs)])
    assert sizes[3:] == [2]


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize(("n_at_once", "sizes"), [(1, [1] * N), (6, [6, 6, 6, 5]), (N, [N])])
def test_log_probabilities_of_targets(
    softcap: float, n_at_once: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, gradients, and that a chunk is as large as the limit allows."""
    hidden, head, targets = drawn(rows=V + 2)
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", n_at_once * len(head) + 1)
    chunks, compute = [], loss._log_p
    monkeypatch.setattr(
        loss, "_log_p", lambda x, *rest: [chunks.append(len(x)), compute(x, *rest)][1]
    )
    log_p = token_log_probabilities(hidden, head, targets, vocab_size=V, softcap=softcap)
    assert chunks == sizes
    logits = hidden @ head[:V].T
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    wanted = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    uneven = torch.arange(N, dtype=torch.float64)  # a different gradient for each target
    assert_equal(
        [log_p.detach(), *torch.autograd.grad(log_p @ uneven, (hidden, head))],
        [wanted.detach(), *torch.autograd.grad(wanted @ uneven, (hidden, head))],
        1e-12,
    )


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_gradcheck(softcap: float) -> None:
    hidden, head, targets = drawn(6, V + 2, ignored=2)
    assert torch.autograd.gradcheck(
        lambda h, w: ours(h, w, targets, softcap=softcap), (hidden, head)
    )


def test_padded_rows_do_not_change_the_loss() -> None:
    hidden, head, targets = drawn(rows=V + 5)
    with torch.no_grad():
        head[V:] = 1e3 * hidden[:5]
    found = value_and_gradients(ours, hidden, head, targets)
    assert_equal(found[:2], value_and_gradients(plain, hidden, head, targets)[:2])
    assert not found[2][V:].any()


def test_a_tied_head_also_gets_its_gradient_as_an_embedding() -> None:
    _, table, targets = drawn()
    ids = torch.arange(N) % V

    def tied(function: Callable[..., Tensor]) -> list[Tensor]:
        total = function(torch.tanh(F.embedding(ids, table)), table, targets)
        return [total.detach(), *torch.autograd.grad(total, table)]

    assert_equal(tied(ours), tied(plain))


def test_non_contiguous_inputs() -> None:
    hidden, head, targets = drawn()
    wide = torch.randn(
        D, 2 * N, dtype=torch.float64
    ).T.requires_grad_()  # (2 N, D), columns adjacent
    cases = [
        (wide[::2], head, targets),
        (
            hidden.detach().T.contiguous().T.requires_grad_(),
            head.detach().T.contiguous().T.requires_grad_(),
            targets,
        ),
        (hidden[:1].expand(N, D), head, targets),
        (hidden, head, torch.stack([targets, targets]).T[:, 0]),
        (hidden.flip(0), head[::2].repeat_interleave(2, 0)[:V], targets),
    ]
    for case in cases:
        assert_equal(value_and_gradients(ours, *case), value_and_gradients(plain, *case))


def test_all_targets_ignored() -> None:
    hidden, head, targets = drawn(ignored=N)
    total, d_hidden, d_head = value_and_gradients(ours, hidden, head, targets)
    assert (float(total), bool(d_hidden.any()), bool(d_head.any())) == (0.0, False, False)
    assert summed_cross_entropy(hidden, head, targets, vocab_size=V)[1] == 0
    none = value_and_gradients(ours, hidden[:0], head, targets[:0])
    assert (float(none[0]), none[1].shape, bool(none[2].any())) == (0.0, (0, D), False)


def test_a_zero_head_costs_ln_v_per_token() -> None:
    hidden, head, targets = drawn(rows=V + 3)
    assert float(ours(hidden, head * 0, targets).detach()) == pytest.approx(
        N * math.log(V), rel=1e-14
    )


def test_micro_batches_add_up() -> None:
    hidden, head, targets = drawn(ignored=4)
    whole = value_and_gradients(ours, hidden, head, targets)
    parts = [
        value_and_gradients(ours, hidden[a:b], head, targets[a:b]) for a, b in ((0, 9), (9, N))
    ]
    assert_equal([whole[0], whole[2]], [parts[0][0] + parts[1][0], parts[0][2] + parts[1][2]])


def test_only_one_input_needs_a_gradient() -> None:
    hidden, head, targets = drawn()
    wanted = value_and_gradients(plain, hidden, head, targets)
    for frozen in (0, 1):
        inputs = [hidden, head]
        inputs[frozen] = inputs[frozen].detach()
        (found,) = torch.autograd.grad(ours(*inputs, targets) / 7, inputs[1 - frozen])
        assert_equal([found], [wanted[2 - frozen]])


def test_without_grad_no_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, targets = drawn()
    products = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: products.append(1) or mm(*a, **k))
    with torch.no_grad():
        total = ours(hidden, head, targets)
    assert not total.requires_grad
    assert not products
    assert_equal([total], [plain(hidden, head, targets).detach()])
    ours(hidden, head, targets)
    assert products


def test_huge_logits_stay_finite() -> None:
    hidden, head, targets = drawn()
    big = (hidden.detach() * 1e4).requires_grad_()
    assert_equal(
        value_and_gradients(ours, big, head, targets),
        value_and_gradients(plain, big, head, targets),
        1e-12,
    )
    assert torch.isfinite(ours(big.float(), head.float(), targets))


@pytest.mark.parametrize("softcap", [0.0, 15.0])
def test_float32_and_bfloat16(softcap: float) -> None:
    """Reduced precision rounds the products; a float32 head with bfloat16 states gets a float32
    gradient.
    """
    hidden, head, targets = drawn(200, V + 1, ignored=20, dtype=torch.float32)
    wanted = value_and_gradients(plain, hidden.double(), head.double(), targets, softcap=softcap)
    found = value_and_gradients(ours, hidden, head, targets, softcap=softcap)
    assert [t.dtype for t in found] == [torch.float32] * 3
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).norm()) <= 1e-6 * float(b.norm())
    for heads in (torch.float32, torch.bfloat16):
        half = value_and_gradients(
            ours, hidden.bfloat16(), head.to(heads), targets, softcap=softcap
        )
        assert [t.dtype for t in half] == [torch.float32, torch.bfloat16, heads]
        for a, b in zip(half, wanted, strict=True):
            assert float((a - b).norm()) <= 0.01 * float(b.norm())


def test_the_sum_of_many_float32_tokens_is_exact_to_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Chunk sums are added in float64: a running float32 sum over a million tokens would lose
    digits.
    """
    n = 1 << 20
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 1 << 14)
    total = summed_cross_entropy(
        torch.zeros(n, 1), torch.zeros(2, 1), torch.zeros(n, dtype=torch.int64), vocab_size=2
    )
    assert float(total[0]) == pytest.approx(n * math.log(2), rel=6e-8)


MEASURE = """
import resource, sys, torch
import torch.nn.functional as F
from lmsmith import loss
from lmsmith.loss import summed_cross_entropy, token_log_probabilities
loss.CHUNK_ELEMENTS, N, D, V = 1 << 21, 4096, 16, 16384
hidden, head = torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
targets = torch.arange(N)
def peak():
    try:  # what getrusage says on Linux includes the process that started this one
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
start = peak()
summed_cross_entropy(hidden, head, targets, vocab_size=V, softcap=15.0)[0].backward()
chunked = peak()
F.cross_entropy(15 * torch.tanh(hidden @ head.T / 15), targets, reduction="sum").backward()
print(chunked - start, peak() - start)
"""


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows does not count a process's peak memory this way"
)
def test_memory_is_a_few_chunks_and_not_all_logits() -> None:
    """Runs in its own process, to read its peak memory. All logits are 256 MB, a chunk is 8 MB."""
    root = Path(__file__).resolve().parent.parent
    found = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, cwd=root
    )
    chunked, plain = map(int, found.stdout.split())
    logits = 4 * 4096 * 16384
    assert chunked < 12 * 8 * 2**20 < logits / 2
    assert plain > 2 * logits  # at least logits and their gradient: the bound is not vacuous


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_compiled_form_equals_the_plain_one(softcap: float, dtype: torch.dtype) -> None:
    """Padded columns, ignored targets, a soft cap; in bfloat16 both round once, at the end."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(N, V + 3, generator=generator, dtype=torch.float64)).to(dtype)
    goal = torch.randint(0, V, (N, 1), generator=generator)
    goal[::4] = IGNORED
    wanted = loss.loss_and_gradient(logits.clone(), goal, V, softcap, True)
    found = loss.at_once(logits, goal, V, softcap, True)
    tolerance = 1e-13 if dtype == torch.float64 else 0.01
    assert_equal(list(found), list(wanted), tolerance)
    assert found[1].dtype == dtype
    assert not found[1][::4].any()


def test_chunks_are_compiled_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """`at_once` replaces what torch.compile would return."""
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 4 * V)
    monkeypatch.setattr(loss, "_fused", lambda: loss.at_once)
    monkeypatch.setattr(loss, "loss_and_gradient", None)
    hidden, head, targets = drawn(ignored=5)
    found = value_and_gradients(
        lambda *inputs: summed_cross_entropy(*inputs, vocab_size=V, compiled=True)[0],
        hidden,
        head,
        targets,
    )
    assert_equal(found, value_and_gradients(plain, hidden, head, targets))
