"""Kernels with hand-written gradients against PyTorch's plain operations and autograd."""

import itertools
import math
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch import Tensor

from lmsmith.models import kernels

Unary = Callable[[Tensor], Tensor]
EPS = 1e-5


def plain_rms_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def plain_gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


UNARY: dict[str, tuple[Unary, Unary]] = {
    "rms_norm": (lambda x: kernels.rms_norm(x, None, EPS), plain_rms_norm),
    "relu2": (kernels.relu2, lambda x: x.clamp(min=0) ** 2),
    "gelu_tanh": (kernels.gelu_tanh, plain_gelu),
}


def plain_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    T = q.size(1)
    scores = q @ k.mT * scale
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(later, -math.inf), -1) @ v


def numbers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def qkv(N: int, T: int, K: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [numbers(N, T, K, dtype=dtype, seed=seed) for seed in (1, 2, 3)]


def value_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The value and, for a random direction, the gradient of each input."""
    y = function(*inputs)
    direction = numbers(*y.shape, dtype=y.dtype, seed=9).detach()
    return [y.detach(), *torch.autograd.grad(y, inputs, direction)]


def assert_close(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    """Equal to within `tolerance` of the largest number in each tensor."""
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert float((a.double() - b.double()).abs().max()) <= tolerance * float(
            b.double().abs().max() + 1e-30
        )


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4, 6)])
def test_elementwise_values_and_gradients_in_float64(name: str, shape: tuple[int, ...]) -> None:
    ours, plain = UNARY[name]
    x = numbers(*shape)
    assert_close(value_and_gradients(ours, x), value_and_gradients(plain, x), 1e-13)
    assert torch.autograd.gradcheck(ours, (x,))


@pytest.mark.parametrize("name", UNARY)
def test_elementwise_gradients_add_up_over_cuts_and_views(name: str) -> None:
    """Inputs that are slices, transposed or expanded, like the parts of a fused projection."""
    ours, plain = UNARY[name]
    x = numbers(4, 5, 6)
    views: list[Unary] = [
        lambda x: x[:, 1:4],
        lambda x: x.transpose(0, 1),
        lambda x: x[:1].expand(3, 5, 6),
    ]
    for view in views:
        pair = [value_and_gradients(lambda x, f=f, view=view: f(view(x)), x) for f in (ours, plain)]
        assert_close(*pair, 1e-13)


@pytest.mark.parametrize("name", UNARY)
def test_elementwise_without_gradients_and_without_elements(name: str) -> None:
    ours, plain = UNARY[name]
    x = numbers(3, 8).detach()
    before = x.clone()
    assert_close([ours(x)], [plain(x)], 1e-13)
    assert torch.equal(x, before)  # nothing is done in place
    assert ours(numbers(0, 8)).shape == (0, 8)


@pytest.mark.parametrize("name", UNARY)
def test_elementwise_in_float32_and_bfloat16(name: str) -> None:
    ours, plain = UNARY[name]
    wanted = value_and_gradients(
        plain, numbers(64, 32, dtype=torch.float32).double().detach().requires_grad_()
    )
    assert_close(value_and_gradients(ours, numbers(64, 32, dtype=torch.float32)), wanted, 2e-6)
    found = value_and_gradients(ours, numbers(64, 32, dtype=torch.bfloat16))
    assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16]
    assert_close(found, wanted, 0.04)


def test_gelu_of_large_inputs_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and slope are exact where the sigmoid rounds to 0 or 1, whatever the part size."""
    x = torch.tensor([-1e4, -40.0, -1e-8, 0.0, 1e-8, 40.0, 1e4], requires_grad=True)
    y = kernels.gelu_tanh(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.tolist()[0] == y.tolist()[1] == 0.0
    assert y.tolist()[5:] == [40.0, 1e4]
    assert slope.tolist() == [0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0]
    if hasattr(kernels._GELUTanh, "PART"):
        monkeypatch.setattr(kernels._GELUTanh, "PART", 8)
        x = numbers(5, 7)
        assert_close(
            value_and_gradients(kernels.gelu_tanh, x), value_and_gradients(plain_gelu, x), 1e-13
        )


def test_norm_of_zeros_is_zero_with_a_finite_gradient() -> None:
    x = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    y, dx = value_and_gradients(UNARY["rms_norm"][0], x)
    assert not y.any()
    assert_close([dx], value_and_gradients(plain_rms_norm, x)[1:], 1e-13)
    assert torch.isfinite(dx).all()
    tiny = (numbers(2, 4) * 1e-4).detach().requires_grad_()  # here eps is most of the sum
    ours, plain = UNARY["rms_norm"]
    assert_close(value_and_gradients(ours, tiny), value_and_gradients(plain, tiny), 1e-13)


def test_norm_with_a_gain() -> None:
    x, gain = numbers(3, 5), numbers(5, seed=4)
    found = value_and_gradients(lambda x, g: kernels.rms_norm(x, g, EPS), x, gain)
    assert_close(found, value_and_gradients(lambda x, g: plain_rms_norm(x) * g, x, gain), 1e-13)
    half = kernels.rms_norm(x.bfloat16(), gain.float(), EPS)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("T", "block"), [(1, 4), (3, 4), (4, 4), (5, 4), (8, 4), (11, 4), (7, 1), (130, 128)]
)
def test_attention_values_and_gradients_in_float64(
    T: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths below, at and above the block size, multiples of it and not."""
    monkeypatch.setattr(kernels._CausalAttention, "BLOCK", block)
    inputs = qkv(2, T, 3)
    found = value_and_gradients(
        lambda q, k, v: kernels.causal_attention(q, k, v, 0.7, 0.0), *inputs
    )
    assert_close(
        found, value_and_gradients(lambda q, k, v: plain_attention(q, k, v, 0.7), *inputs), 1e-13
    )


@pytest.mark.parametrize(("T", "block"), [(4, 4), (7, 3), (5, 2)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_attention_gradcheck(
    T: int, block: int, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout and a fixed seed: finite differences agree only if both passes use the same
    mask.
    """
    monkeypatch.setattr(kernels._CausalAttention, "BLOCK", block)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return kernels.causal_attention(q, k, v, 0.7, dropout)

    inputs = qkv(2, T, 3)
    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)  # along random directions
    if dropout:
        assert not torch.equal(attend(*inputs), plain_attention(*inputs, 0.7))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_masked_attention_gradcheck(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first visible key is in the query's block, in the block before, or at the start; two
    texts.
    """
    monkeypatch.setattr(kernels._CausalAttention, "BLOCK", 3)
    first = torch.tensor([[0, 0, 0, 3, 3, 5, 5], [0, 1, 1, 2, 4, 4, 6]])

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return kernels.causal_attention(q, k, v, 0.7, dropout, first)

    assert torch.autograd.gradcheck(attend, qkv(6, 7, 2), fast_mode=True)  # along random directions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_attention_without_a_mask_to_apply_gives_the_same_bits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every query sees from the first key on: the bias is the causal mask alone."""
    monkeypatch.setattr(kernels._CausalAttention, "BLOCK", 3)
    q, k, v = (x.detach().to(dtype) for x in qkv(6, 7, 4))
    first = torch.zeros(2, 7, dtype=torch.int64)
    plain = kernels.causal_attention(q, k, v, 0.3, 0.0)
    assert torch.equal(kernels.causal_attention(q, k, v, 0.3, 0.0, first), plain)
    blocks = kernels.blocks_of(7, first, dtype)
    assert torch.equal(kernels.causal_attention(q, k, v, 0.3, 0.0, first, blocks), plain)


def test_blocks_say_which_keys_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels._CausalAttention, "BLOCK", 3)
    first = torch.tensor([[0, 0, 2, 3, 3], [0, 1, 1, 1, 4]])
    seen = torch.zeros(2, 5, 5, dtype=torch.bool)
    for block in kernels.blocks_of(5, first, torch.float32):
        assert block.bias is not None
        assert set(block.bias.unique().tolist()) <= {0.0, -math.inf}
        seen[:, block.start : block.end, block.low : block.end] = block.bias[:, 0] == 0
    for row, query, key in itertools.product(range(2), range(5), range(5)):
        assert seen[row, query, key] == (first[row, query] <= key <= query)


def test_attention_dropout_keeps_the_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of many draws is the value without dropout; single weights are dropped, not rows."""
    monkeypatch.setattr(kernels._CausalAttention, "BLOCK", 4)
    q, k, _ = qkv(1, 6, 3)
    v = torch.eye(6, dtype=torch.float64).unsqueeze(
        0
    )  # so that the output is the weights themselves
    q, k = F.pad(q, (0, 3)), F.pad(k, (0, 3))
    weights = plain_attention(q, k, v, 0.7).detach()
    n, rate = 2000, 0.25
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        many = kernels.causal_attention(*(x.expand(n, 6, 6) for x in (q, k, v)), 0.7, rate).detach()
    seen = weights[0] > 0
    dropped = (many == 0) & seen
    kept = torch.where(dropped, 0.0, weights / (1 - rate))
    torch.testing.assert_close(many, kept, rtol=1e-12, atol=0)
    share = dropped.double().mean(0)[seen]
    error = math.sqrt(rate * (1 - rate) / n)
    assert float((share - rate).abs().max()) < 5 * error
    together = (dropped[:, 5, 0] & dropped[:, 5, 1]).double().mean()
    assert abs(float(together) - rate**2) < 5 * math.sqrt(rate**2 / n)


def test_attention_of_zeros_is_the_mean_of_the_values_so_far() -> None:
    v = numbers(1, 5, 2)
    zeros = torch.zeros(1, 5, 2, dtype=torch.float64)
    y = kernels.causal_attention(zeros, zeros, v, 1.0, 0.0)
    wanted = v.cumsum(1) / torch.arange(1, 6, dtype=torch.float64).view(1, 5, 1)
    torch.testing.assert_close(y, wanted, rtol=1e-13, atol=1e-13)
    assert not kernels.causal_attention(zeros, zeros, zeros, 1.0, 0.0).any()


def test_attention_of_noncontiguous_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and values as slices of one fused projection, with heads before time."""
    monkeypatch.setattr(kernels._CausalAttention, "BLOCK", 4)
    fused = numbers(1, 6, 9, 4)  # (B, T, 3 H, K)

    def cut(fused: Tensor) -> list[Tensor]:
        return [part.transpose(1, 2).reshape(3, 6, 4) for part in fused.split(3, dim=2)]

    found = value_and_gradients(lambda x: kernels.causal_attention(*cut(x), 0.5, 0.0), fused)
    assert_close(found, value_and_gradients(lambda x: plain_attention(*cut(x), 0.5), fused), 1e-13)


def test_attention_in_float32_and_bfloat16() -> None:
    T = kernels._CausalAttention.BLOCK + 7
    wanted = value_and_gradients(lambda q, k, v: plain_attention(q, k, v, 0.25), *qkv(2, T, 16))
    ours = lambda q, k, v: kernels.causal_attention(q, k, v, 0.25, 0.0)  # noqa: E731
    assert_close(value_and_gradients(ours, *qkv(2, T, 16, torch.float32)), wanted, 3e-6)
    found = value_and_gradients(ours, *qkv(2, T, 16, torch.bfloat16))
    assert all(t.dtype == torch.bfloat16 for t in found)
    assert_close(found, wanted, 0.05)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_attention_saves_its_weights_only_for_a_gradient(
    with_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, scoring a text with a context of 8,192 would take 4 GB per layer."""
    monkeypatch.setattr(kernels._CausalAttention, "BLOCK", 4)
    softmax, made, most = torch.softmax, [], 0

    def watched(x: Tensor, dim: int) -> Tensor:
        nonlocal most
        p = softmax(x, dim)
        made.append(weakref.ref(p))
        most = max(most, sum(one() is not None for one in made))
        return p

    monkeypatch.setattr(torch, "softmax", watched)
    q, k, v = (x.detach().requires_grad_(with_gradient) for x in qkv(2, 40, 8))
    kernels.causal_attention(q, k, v, 0.5, 0.0)
    assert len(made) == 10
    assert most == 10 if with_gradient else most <= 2


def test_shapes_in_signatures_are_checked() -> None:
    """Keys of another length would multiply without an error, with a meaningless result."""
    q, k, v = (x.detach() for x in qkv(1, 9, 4))
    with pytest.raises(TypeCheckError, match="causal_attention"):
        kernels.causal_attention(q, k[:, :8], v[:, :8], 0.5, 0.0)


def test_attention_never_looks_ahead() -> None:
    """Later keys and values, however large, do not change earlier outputs by a bit."""
    q, k, v = (x.detach() for x in qkv(1, 9, 4))
    y = kernels.causal_attention(q, k, v, 0.5, 0.0)
    k[:, 5:], v[:, 5:] = 1e30, -1e30
    assert torch.equal(kernels.causal_attention(q, k, v, 0.5, 0.0)[:, :5], y[:, :5])
