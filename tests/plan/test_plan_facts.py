"""Published figures that no other test of the plan covers, and the reasons of docs/accounting.md."""

import math
from pathlib import Path
from typing import Any

import pytest

import lmsmith
from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.plan.compute_optimal import EPOCH
from lmsmith.plan.devices import device
from lmsmith.plan.flops import flops
from lmsmith.plan.inference import inference
from lmsmith.plan.layers import Implementation, Setup
from lmsmith.plan.parameters import parameters
from lmsmith.plan.predict import predict
from lmsmith.plan.published import qwen3, retrodictions
from lmsmith.plan.transformer import write_tape

PAGE = (Path(lmsmith.__file__).parents[1] / "docs" / "accounting.md").read_text(encoding="utf-8")
L, C, NH, V, MAX_T = 12, 768, 12, 50304, 1024  # GPT-2 124M as llm.c trains it


def gpt2(changes: dict[str, Any]) -> RunConfig:
    padded = {"model.vocab_size": 50257, "model.vocab_multiple": 128, "train.dtype": "float32"}
    return preset("gpt2").changed({**padded, **changes}, where="here")


def test_llm_cs_16_parameter_tensors() -> None:
    embeddings = [V * C, MAX_T * C]
    attention = [L * C, L * C, L * 3 * C * C, L * 3 * C, L * C * C, L * C]
    feed_forward = [L * C, L * C, L * 4 * C * C, L * 4 * C, L * C * 4 * C, L * C]
    theirs = [*embeddings, *attention, *feed_forward, C, C]
    assert len(theirs) == 16
    ours: dict[str, int] = {}
    for each in parameters(gpt2({})):  # llm.c joins those of all layers
        name = ".".join(word for word in each.name.split(".") if not word.isdecimal())
        ours[name] = ours.get(name, 0) + each.n
    assert sorted(ours.values()) == sorted(theirs)
    assert sum(theirs) == 124_475_904


def test_llm_cs_23_activation_tensors() -> None:
    """llm.c prints 73,347,840 for 4 rows of 64. With all attention weights and all logits in
    memory, the tape has the same tensors but two: it scales and masks scores in place, so that
    scores and weights are one tensor, and it averages the losses. It has one more: the token
    embeddings before positions are added.
    """
    B, T = 4, 64
    N, scores = B * T, B * NH * T * T
    before = [N * C, L * N * C, L * N, L * N, L * N * 3 * C, L * N * C, L * scores, L * scores]
    after = [L * N * C, L * N * C, L * N * C, L * N, L * N, L * N * 4 * C, L * N * 4 * C]
    after += [L * N * C, L * N * C, N * C, N, N, N * V, N * V, N]
    assert len(before + after) == 23
    total = sum(before + after)
    assert total == 73_347_840
    config = gpt2({"model.context_length": T, "train.batch_size": B, "model.dropout": 0.0})
    how = Implementation(attention="math", loss="full")
    tape = write_tape(config, Setup(B, 4, 4, gpu=True, how=how))
    tensors = {tensor for op in tape.ops for tensor in (*op.outputs, *op.saved)}
    assert sum(t.n_bytes for t in tensors) == 4 * (total - L * scores - N + N * C)
    assert f"{total:,}" in PAGE


def test_nano_vllm() -> None:
    assert qwen3().neural.n_parameters() == pytest.approx(0.6e9, rel=0.01)
    row = next(row for row in retrodictions() if row.name.startswith("nano-vllm"))
    assert row.published == 1434
    assert abs(row.error) < 0.15


def test_decoding_on_two_cores() -> None:
    """transformers decodes GPT-2 at 21 tokens/s, and 80 with 8 sequences; PyTorch's matrix-vector
    products read 12 GB/s there.
    """
    model = GPTConfig.of(gpt2({"model.vocab_multiple": 1}).model)
    speeds: dict[str, Any] = {"bandwidth": 12e9 / 0.7, "peak": 2e12}
    sizes: dict[str, Any] = {"bytes_per_weight": 4, "bytes_per_key": 4}
    rates = [inference(model, batch=n, **speeds, **sizes) for n in (1, 8)]
    one, eight = (rate.tokens_per_second for rate in rates)
    assert one == pytest.approx(21, rel=0.15)
    assert f"{one:.0f} and {eight:.0f} tokens/s" in PAGE


def test_what_minimind_would_have_read() -> None:
    shape = {"model.n_layer": 8, "model.n_head": 8, "model.n_kv_head": 4, "model.d_model": 768}
    settings = {"model.d_ff": 2432, "model.vocab_size": 6400, "model.tied_head": True}
    run = {"model.context_length": 512, "train.batch_size": 32, "train.dtype": "bfloat16"}
    config = preset("llama").changed({**shape, **settings, **run}, where="minimind")
    assert config.neural.n_parameters() == pytest.approx(64e6, rel=0.005)
    rate = predict(config, device("rtx-3090")).step.tokens_per_second
    assert f"{rate:,.0f} tokens/s" in PAGE
    assert f"{1.21 * 3600 * rate / 1e9:.2f} billion tokens" in PAGE


def test_babygpt_on_an_a100() -> None:
    settings = {"model.vocab_size": 65, "train.batch_size": 64, "train.dtype": "bfloat16"}
    config = preset("babygpt").changed({**settings, "train.steps": 5000}, where="nanoGPT")
    minutes = 60 * predict(config, device("a100-40gb")).hours
    assert f"{minutes:.1f} of about 3 minutes" in PAGE


def test_llm_cs_share_of_the_peak() -> None:
    """125,000 tokens/s on an A100 of 312 TFLOP/s; llm.c says 31%."""
    model = flops(gpt2({}), "causal")
    assert f"{125_000 * model.per_token / 312e12:.1%}" in PAGE


def test_exponents_of_the_best_size() -> None:
    (n, tokens), (more, longer) = EPOCH.best(1e20), EPOCH.best(1e22)
    exponents = [math.log(more / n, 100), math.log(longer / tokens, 100)]
    assert exponents == pytest.approx([0.3658 / 0.7136, 0.3478 / 0.7136], abs=0.001)
    assert "C^{:.2f} and C^{:.2f}".format(*exponents) in PAGE
