"""Attention weights, activations and the logit lens, against direct computations."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lmsmith.inspect.trace import trace
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.ngram import Ngram
from lmsmith.models.ngram_config import NgramConfig
from lmsmith.models.rnn import RNN
from lmsmith.models.rnn_config import RNNConfig

V, T = 19, 12
IDS = np.random.default_rng(0).integers(0, V, T)
NONE = np.empty(0, np.int64)
GPTS: dict[str, dict[str, Any]] = {
    "modern": {"ngram_tables": (2, 3), "ngram_table_size": 64, "residual_scalars": True},
    "gpt2": {
        "positions": "learned", "norm": "layernorm", "bias": True, "tied_head": True,
        "feed_forward": "gelu-tanh", "qk_norm": False, "embedding_norm": False, "norm_gain": True,
    },
    "post-norm": {"norm_placement": "post", "norm_gain": True, "value_embedding_every": 2},
    "grouped, windows": {"n_kv_head": 1, "window": 4, "window_pattern": "SL"},
}  # fmt: skip


def gpt(name: str) -> GPT:
    config = GPTConfig(n_layer=2, n_head=2, d_model=16, context_length=16, vocab_size=V)
    torch.manual_seed(0)
    model = GPT(replace(config, **GPTS[name]))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0.1, 0.4)
    return model.double().eval()


@pytest.mark.parametrize("name", GPTS)
def test_attention_is_the_models_own(name: str) -> None:
    """Rows add up to one, later and distant keys have no weight, and the weights times the values
    of the model give the output of its attention layers.
    """
    model = gpt(name)
    found = trace(model, IDS, NONE).attention
    assert found is not None
    assert found.shape == (2, 2, T, T)
    assert found.sum(-1) == pytest.approx(1.0, abs=1e-6)
    assert (np.triu(found, 1) == 0).all()
    if "window" in GPTS[name]:
        assert (np.tril(found[0], -4) == 0).all()
        assert (np.tril(found[1], -4) > 0).any()
    calls = []
    handles = [
        block.attention.register_forward_hook(lambda m, given, out: calls.append((given, out)))
        for block in model.blocks
    ]
    with torch.no_grad():
        model.hidden(torch.from_numpy(IDS)[None])
    for handle in handles:
        handle.remove()
    for layer, ((x, rotary, _, _, layout, values), out) in enumerate(calls):
        attention = model.blocks[layer].attention
        _, _, v = attention._queries_keys_values(x, rotary, 0, layout, values)
        y = torch.from_numpy(found[layer]).double() @ attention._for_each_head(v)[0]
        again = attention.out(y.transpose(0, 1).reshape(1, T, -1))
        assert again.detach().numpy() == pytest.approx(out.detach().numpy(), abs=1e-5)


def test_attention_equals_a_plain_softmax() -> None:
    """GPT-2's attention of the first layer, written out for one query at a time."""
    model = gpt("gpt2")
    found = trace(model, IDS, NONE).attention
    assert found is not None
    block, ids = model.blocks[0], torch.from_numpy(IDS)
    with torch.no_grad():
        x = model.token_embedding(ids) + model.position_embedding.weight[:T]
        norm = block.norm_attention
        x = torch.nn.functional.layer_norm(x, (16,), norm.weight, norm.bias, norm.eps)
        q, k, _ = np.split(block.attention.qkv(x).numpy(), 3, axis=1)
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        for t in range(T):
            scores = [math.exp(q[t, part] @ k[s, part] / math.sqrt(8)) for s in range(t + 1)]
            wanted = np.array(scores) / sum(scores)
            assert found[0, head, t, : t + 1] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", GPTS)
def test_the_lens_of_the_last_layer_is_the_prediction(name: str) -> None:
    model = gpt(name)
    lens = trace(model, IDS, NONE).lens
    assert lens.depths == ("embedding", "layer 1", "layer 2")
    with torch.no_grad():
        p = model(torch.from_numpy(IDS)[None])[0].softmax(-1).numpy()
    assert (lens.ids[-1] == p.argmax(-1)).all()
    assert lens.probabilities[-1] == pytest.approx(p.max(-1), rel=1e-4)
    # A model that is cut off after a layer predicts what the lens shows there.
    for n_layer in (0, 1):
        cut = gpt(name)
        cut.blocks = cut.blocks[:n_layer]
        with torch.no_grad():
            p = cut(torch.from_numpy(IDS)[None])[0].softmax(-1).numpy()
        assert lens.probabilities[n_layer] == pytest.approx(p.max(-1), rel=1e-4)


def test_sizes_of_activations() -> None:
    model = gpt("gpt2")
    found = trace(model, IDS, NONE).activations
    assert set(found) == {"residual stream", "attention output", "feed-forward output"}
    with torch.no_grad():
        x = model._embed(torch.from_numpy(IDS)[None], None, None)
        for layer, block in enumerate(model.blocks):
            a = block.attention(block.norm_attention(x), None, None, 0)
            f = block.feed_forward(block.norm_feed_forward(x + a))
            x = x + a + f
            for name, part in (
                ("residual stream", x), ("attention output", a), ("feed-forward output", f),
            ):  # fmt: skip
                wanted = np.sqrt((part[0].numpy() ** 2).mean(-1)).mean()
                assert found[name][layer] == pytest.approx(wanted, rel=1e-5)


def test_other_models_show_what_they_have() -> None:
    rnn = RNN(RNNConfig(cell="gru", n_layer=2, d_model=8, vocab_size=V))
    rnn.initialise(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(rnn.head_weight)
    found = trace(rnn, IDS, NONE)
    assert found.attention is None
    assert found.activations["hidden state"].shape == (2,)
    assert found.lens.depths == ("layer 2",)
    with torch.no_grad():
        p = rnn(torch.from_numpy(IDS)[None])[0].softmax(-1).numpy()
    assert found.lens.probabilities[0] == pytest.approx(p.max(-1), rel=1e-5)
    counts = Ngram.learn(NgramConfig(vocab_size=V, order=2), IDS.astype(np.uint16))
    found = trace(counts, IDS, NONE)
    state = counts.new_state(1)
    p = counts.next_logits(torch.from_numpy(IDS[None]), state).exp()[0].numpy()
    assert found.lens.depths == ("model",)
    assert found.lens.probabilities[0, -1] == pytest.approx(p.max())
    assert not found.activations


def test_unused_ids_are_never_the_prediction() -> None:
    model = gpt("gpt2")
    best = trace(model, IDS, NONE).lens.ids[-1]
    without = trace(model, IDS, np.unique(best)).lens.ids[-1]
    assert not set(best) & set(without)
