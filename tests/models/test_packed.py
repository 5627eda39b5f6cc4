"""Documents packed into rows and documents padded to rows: each behaves as if it were alone.

The oracle is the model itself on one document at a time, without mask or padding, summed over
documents.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmsmith.data.batches.rows import Rows
from lmsmith.loss import summed_cross_entropy
from lmsmith.models import kernels
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.targets import IGNORED

V, T = 13, 24
VARIANTS: dict[str, dict[str, Any]] = {
    "modern": {"ngram_tables": (2, 4), "ngram_table_size": 31},
    "gpt2": {
        "norm": "layernorm",
        "positions": "learned",
        "feed_forward": "gelu-tanh",
        "bias": True,
        "tied_head": True,
    },
    "grouped": {"n_kv_head": 2, "positions": "none"},
    "windows": {"window": 5, "window_pattern": "SL"},
    "the rest": {
        "norm_placement": "post",
        "value_embedding_every": 2,
        "residual_scalars": True,
        "bias": True,
    },
}


def model_of(name: str, dtype: torch.dtype = torch.float64) -> GPT:
    sizes: dict[str, Any] = {
        "n_layer": 3,
        "n_head": 4,
        "d_model": 16,
        "vocab_size": V,
        "context_length": T,
    }
    model = GPT(GPTConfig(**sizes, **VARIANTS[name])).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0.1, 0.4, generator=generator)
    return model


def loss_of(model: GPT, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
    hidden = model.hidden(ids, documents=documents)
    total, _ = summed_cross_entropy(
        hidden.flatten(0, 1),
        model.head_weight,
        targets.flatten(),
        vocab_size=V,
        softcap=model.config.logit_softcap,
    )
    return total


def gradients(model: GPT, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for n, p, g in zip(names, parameters, found, strict=True)
    }


def packed_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Rows of one, several and many documents."""
    rng = np.random.default_rng(1)
    ids = torch.from_numpy(rng.integers(0, V, (4, T)))
    targets = torch.from_numpy(rng.integers(0, V, (4, T)))
    starts = torch.zeros(4, T, dtype=torch.int64)
    for row, places in enumerate([[], [0, 9], [1, 2, 3, 11, T - 1], [5, 6, 20]]):
        starts[row, places] = 1
    return ids, targets, starts.cumsum(1).int()


@pytest.mark.parametrize("block", [7, 128])
@pytest.mark.parametrize("name", VARIANTS)
def test_packed_documents_behave_as_if_alone(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels._CausalAttention, "BLOCK", block)
    model, (ids, targets, documents) = model_of(name), packed_batch()
    packed = model.hidden(ids, documents=documents)
    alone = []
    for row, numbers in zip(range(4), documents, strict=True):
        for number in numbers.unique():
            own = numbers == number
            piece = ids[row, own].unsqueeze(0)
            torch.testing.assert_close(
                packed[row, own], model.hidden(piece)[0], rtol=1e-11, atol=1e-12
            )
            alone.append(loss_of(model, piece, targets[row, own].unsqueeze(0)))
    total = loss_of(model, ids, targets, documents)
    torch.testing.assert_close(total, torch.stack(alone).sum(), rtol=1e-12, atol=0)
    found, wanted = gradients(model, total), gradients(model, torch.stack(alone).sum())
    for key, gradient in wanted.items():
        assert gradient.any(), key
        assert float((found[key] - gradient).norm()) <= 1e-11 * float(gradient.norm()), key
    apart = loss_of(model, ids, targets) - total
    assert abs(float(apart.detach())) > 1e-3  # packing makes a difference


@pytest.mark.parametrize("name", VARIANTS)
def test_no_token_reaches_another_document_or_a_later_token(name: str) -> None:
    """By gradients, through every layer, hash and table. Windows may limit the reach further."""
    model, (ids, _, documents) = model_of(name), packed_batch()
    embedded: list[Tensor] = []
    hook = model.token_embedding.register_forward_hook(
        lambda *call: embedded.append(call[2].requires_grad_())
    )
    hidden = model.hidden(ids, documents=documents)
    hook.remove()
    weights = torch.linspace(1.0, 2.0, 16, dtype=torch.float64)
    for t in range(T):
        (d,) = torch.autograd.grad((hidden[:, t] * weights).sum(), embedded, retain_graph=True)
        reached = d.abs().amax(-1) > 0  # (4, T)
        may = (documents == documents[:, [t]]) & (torch.arange(T) <= t)
        assert not (reached & ~may).any()
        near = may & (torch.arange(T) > t - 5)
        assert reached[near].all()
        if name != "windows":
            assert torch.equal(reached, may)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_change_in_one_document_changes_no_bit_of_the_others(name: str) -> None:
    model, (ids, _, documents) = model_of(name), packed_batch()
    other = ids.clone()
    changed = documents == documents[:, 12:13]
    other[changed] = (other[changed] + 1) % V
    with torch.no_grad():
        before, after = (model.hidden(x, documents=documents) for x in (ids, other))
    assert torch.equal(before[~changed], after[~changed])
    assert not (before == after).all(-1)[changed].any()


def test_a_row_of_one_document_is_a_plain_row() -> None:
    for name in VARIANTS:
        model, ids = model_of(name), packed_batch()[0]
        one = torch.full((4, T), 9, dtype=torch.int32)
        torch.testing.assert_close(
            model.hidden(ids, documents=one), model.hidden(ids), rtol=1e-12, atol=1e-12
        )


def test_the_plain_path_has_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without documents and windows, no layout is computed."""
    monkeypatch.setattr(torch.Tensor, "masked_fill_", None)
    monkeypatch.setattr(torch.Tensor, "cummax", None)
    seen: list[Any] = []
    plain = kernels.causal_attention
    monkeypatch.setattr(kernels, "causal_attention", lambda *a: seen.append(a[5]) or plain(*a))
    model_of("modern").hidden(packed_batch()[0])
    assert seen == [None] * 3


# Padding


def padded(rows: list[tuple[Tensor, Tensor]], width: int, pad_id: int) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(rows), width), pad_id)
    targets = torch.full((len(rows), width), IGNORED)
    for number, (x, y) in enumerate(rows):
        ids[number, : len(x)], targets[number, : len(y)] = x, y
    return ids, targets


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_changes_neither_loss_nor_gradient(name: str) -> None:
    """Another padding id gives identical bits. Another amount of padding, and each document alone,
    give the same up to rounding.
    """
    model, rng = model_of(name), np.random.default_rng(3)
    rows = [tuple(torch.from_numpy(rng.integers(0, V, (2, n)))) for n in (1, 5, 17, 12)]
    alone = sum(loss_of(model, x.unsqueeze(0), y.unsqueeze(0)) for x, y in rows)
    assert isinstance(alone, Tensor)
    wanted = gradients(model, alone)
    by_id = []
    for width, pad_id in ((17, 0), (17, 7), (17, V - 1), (T, 0), (T, 7), (18, 3)):
        loss = loss_of(model, *padded(rows, width, pad_id))  # type: ignore[arg-type]
        found = gradients(model, loss)
        torch.testing.assert_close(loss, alone, rtol=1e-12, atol=0)
        for key, gradient in wanted.items():
            assert float((found[key] - gradient).norm()) <= 1e-12 * float(gradient.norm()), key
        by_id.append((width, loss, found))
    for width, loss, found in by_id:
        _, same_loss, same = next(other for other in by_id if other[0] == width)
        assert torch.equal(loss, same_loss)
        assert all(torch.equal(found[key], same[key]) for key in found)


def test_batches_of_rows_equal_single_documents() -> None:
    """From the token stream to the gradient, over an epoch: the loss of batches is that of
    documents.
    """
    rng = np.random.default_rng(5)
    documents = [rng.integers(1, V, n).tolist() for n in (3, 9, 1, 22, 40, 6, 2)]
    stream = np.array([id for document in documents for id in (0, *document)], np.uint16)
    model = model_of("modern")
    losses = []
    for pad_id in (0, 5):
        data = Rows(stream, 0, context_length=T, batch_size=3, seed=1, pad_id=pad_id)
        batches = [data.rows(step) for step in range(data.n_batches)]
        losses.append(
            sum(
                loss_of(model, torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets))
                for batch in batches
            )
        )
    wanted = 0.0
    for number, document in enumerate(documents):
        whole = torch.tensor([[0, *document, *([0] if number + 1 < len(documents) else [])]])[
            :, : T + 1
        ]
        wanted += float(loss_of(model, whole[:, :-1], whole[:, 1:]).detach())
    assert float(losses[0].detach()) == pytest.approx(wanted, rel=1e-12)  # type: ignore[union-attr]
    assert torch.equal(losses[0], losses[1])  # type: ignore[arg-type]
