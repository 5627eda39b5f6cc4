"""The batched decoder against the model's own forward pass over the whole text, run eagerly."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_models import GPT2, VARIANTS, T, V, full_logits, model_of, random_texts

from lmsmith.generate import batched
from lmsmith.generate.batched import BatchedDecoder
from lmsmith.generate.cpu import CpuDecoder
from lmsmith.generate.decode import generate
from lmsmith.generate.decoders import StateDecoder, decoder_for
from lmsmith.generate.engine import Engine, Request
from lmsmith.generate.sampling import Sampling
from lmsmith.models.gpt import GPT

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache grows several times within a short text."""
    monkeypatch.setattr(batched, "FIRST_CAPACITY", 4)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_ragged_batch_equals_the_whole_text(name: str, small_cache: None) -> None:
    model = model_of(VARIANTS[name])
    texts = random_texts()
    expected = [full_logits(model, text) for text in texts]
    batch, compiled, plain = (make(model, 6) for make in (BatchedDecoder, CpuDecoder, StateDecoder))
    lengths = [1, 17, 5, 30, 9]
    slots = [4, 0, 2, 5, 1]
    for text, length, slot, logits in zip(texts, lengths, slots, expected, strict=True):
        assert (batch.prefill(slot, text[:length]) - logits[length - 1]).abs().max() < 1e-10
        compiled.prefill(slot, text[:length])
        plain.prefill(slot, text[:length])
    for t in range(T - max(lengths)):
        ids = [text[n + t] for text, n in zip(texts, lengths, strict=True)]
        got = batch.step(slots, ids)
        for row, n, logits in zip(got, lengths, expected, strict=True):
            assert (row - logits[n + t]).abs().max() < 1e-10
        assert (got - compiled.step(slots, ids)).abs().max() < 1e-10
        assert (got - plain.step(slots, ids)).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["gpt2", "modern", "window"])
def test_slots_that_rest_keep_their_texts(name: str, small_cache: None) -> None:
    """Each step reads a token in some of the slots; the others lie between them in the batch."""
    model = model_of(VARIANTS[name])
    texts = random_texts()
    expected = [full_logits(model, text) for text in texts]
    decoder = BatchedDecoder(model, 5)
    n_read = [1] * 5
    for slot, text in enumerate(texts):
        decoder.prefill(slot, text[:1])
    generator = torch.Generator().manual_seed(0)
    while any(n < T for n in n_read):
        slots = [s for s in torch.randperm(5, generator=generator).tolist() if n_read[s] < T][:2]
        got = decoder.step(slots, [texts[s][n_read[s]] for s in slots])
        for s, row in zip(slots, got, strict=True):
            assert (row - expected[s][n_read[s]]).abs().max() < 1e-10
            n_read[s] += 1


@pytest.mark.parametrize("name", ["modern", "window"])
def test_a_copied_and_a_freed_slot(name: str, small_cache: None) -> None:
    model = model_of(VARIANTS[name])
    one, other, *_ = random_texts()
    decoder = BatchedDecoder(model, 3)
    decoder.prefill(0, one[:20])
    decoder.copy(0, 2)
    decoder.step([0], [1])
    got = decoder.step([2], [one[20]])[0]
    assert (got - full_logits(model, one[:21])[-1]).abs().max() < 1e-10
    decoder.free(0)
    decoder.prefill(0, other[:3])
    got = decoder.step([0], [other[3]])[0]
    assert (got - full_logits(model, other[:4])[-1]).abs().max() < 1e-10


def test_prefixes_are_read_once() -> None:
    model = model_of(GPT2 | {"context_length": 600})
    text = torch.randint(0, V, (560,), generator=torch.Generator().manual_seed(0)).tolist()
    decoder = BatchedDecoder(model, 2, prefix_bytes=1 << 24)
    first = decoder.prefill(0, text)
    second = decoder.prefill(1, text)
    assert decoder.prefixes is not None
    assert decoder.prefixes.n_tokens_found == 512
    assert torch.equal(first, second)
    assert (first - full_logits(model, text)[-1]).abs().max() < 1e-10


def _crowd(model: GPT) -> dict[int, list[int]]:
    """Nine requests, two more at every step, in four slots; windows slide."""
    requests = [
        Request(
            [(3 * i + j) % V for j in range(1 + 17 * i % 60)],
            max_tokens=5 + 17 * i % 60,
            sampling=Sampling(temperature=[0.0, 0.7, 1.3][i % 3]),
            index=i,
        )
        for i in range(9)
    ]
    engine = Engine(model, n_slots=4)
    got = defaultdict(list)
    while engine.busy or requests:
        for request in requests[:2]:
            engine.submit(request)
        requests = requests[2:]
        for token in engine.step():
            got[token.sequence].append(token.id)
    return got


def _batched(model: GPT, n_slots: int, *_: Any) -> BatchedDecoder:
    return BatchedDecoder(model, n_slots)


@pytest.mark.parametrize("name", ["gpt2", "modern", "window"])
def test_the_engine_writes_the_same_texts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(VARIANTS[name])
    expected = _crowd(model)
    monkeypatch.setattr("lmsmith.generate.engine.decoder_for", _batched)
    assert _crowd(model) == expected


def test_bfloat16_is_near() -> None:
    model = model_of(VARIANTS["llama"], torch.bfloat16)
    text = random_texts()[0]
    exact = full_logits(model_of(VARIANTS["llama"]), text)
    decoder = BatchedDecoder(model, 2)
    decoder.prefill(1, text[:8])
    got = torch.stack([decoder.step([1], [id])[0].clone() for id in text[8:]])
    theirs = full_logits(model, text)[8:]
    assert got.dtype == torch.float32
    error, usual = (got - exact[8:]).abs().mean(), (theirs - exact[8:]).abs().mean()
    assert error < 1.5 * usual


@pytest.mark.slow
def test_a_step_is_one_graph() -> None:
    """torch.compile finds nothing in a step that it has to leave to Python.

    This runs in its own process, because the shape checks that tests add cannot be compiled.
    """
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    differences = json.loads(done.stdout.splitlines()[-1])
    assert set(differences) == set(VARIANTS)
    assert max(differences.values()) < 1e-10


def compiled_differences() -> dict[str, float]:
    """The largest difference of logits between plain and compiled steps, of each variant. The
    backend runs the operations of the compiled graph as they are.
    """
    found = {}
    for name, parts in VARIANTS.items():
        torch._dynamo.reset()
        model = model_of(parts)
        plain, compiled = BatchedDecoder(model, 2), BatchedDecoder(model, 2)
        compiled._forward = torch.compile(
            compiled._logits, fullgraph=True, dynamic=False, backend="eager"
        )
        for decoder in (plain, compiled):
            decoder.prefill(0, [1, 2, 3])
            decoder.prefill(1, [4])
        found[name] = max(
            float((plain.step([0, 1], ids) - compiled.step([0, 1], ids)).abs().max())
            for ids in ([5, 6], [7, 8])
        )
    return found


def test_the_cache_has_a_fixed_size_once_it_is_full() -> None:
    """A text much longer than the context; the cache is reserved once and never again."""
    model = model_of(VARIANTS["modern"])
    decoder = BatchedDecoder(model, 1)
    decoder.prefill(0, [1])
    addresses = {layer.keys.data_ptr() for layer in decoder.layers}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmsmith.generate.engine.decoder_for", lambda *_: decoder)
        n = sum(1 for _ in generate(model, [1], max_tokens=120))
    assert n == 120
    assert {layer.keys.data_ptr() for layer in decoder.layers} == addresses
    assert all(layer.size <= T for layer in decoder.layers)


def test_which_decoder_a_gpu_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT, "device", torch.device("cuda"))
    made = []
    monkeypatch.setattr(batched, "BatchedDecoder", lambda *given: made.append(given))
    model = model_of(GPT2)
    decoder_for(model, 3, prefix_bytes=5)
    assert made == [(model, 3, 5)]


def _on_cuda(name: str, dtype: torch.dtype = torch.float32, **parts: Any) -> GPT:
    return model_of(VARIANTS[name] | parts, dtype).cuda()


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "modern", "window", "llama"])
def test_a_captured_step_equals_an_eager_one(name: str, compiled: bool, small_cache: None) -> None:
    model, texts = _on_cuda(name), random_texts()
    eager = BatchedDecoder(model, 5, graphs=False)
    captured = BatchedDecoder(model, 5, graphs=True, compiled=compiled)
    for decoder in (eager, captured):
        for slot, text in enumerate(texts):
            decoder.prefill(slot, text[: 1 + slot])
    for t in range(T - 5):
        slots = range(1 + t % 5)
        ids = [texts[slot][t] for slot in slots]
        a, b = eager.step(slots, ids), captured.step(slots, ids)
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4) if compiled else torch.equal(a, b)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_computes_what_a_cpu_does(dtype: torch.dtype) -> None:
    text = random_texts()[0]
    expected = full_logits(model_of(VARIANTS["modern"]), text)
    decoder = BatchedDecoder(_on_cuda("modern", dtype), 2)
    decoder.prefill(1, text[:1])
    got = torch.stack([decoder.step([1], [id])[0].cpu() for id in text[1:]])
    error = (got - expected[1:]).abs().max() / expected.abs().max()
    assert error < (1e-4 if dtype == torch.float32 else 0.1)


@pytest.mark.gpu
@cuda
def test_memory_stays_constant_over_ten_thousand_tokens() -> None:
    model = _on_cuda("gpt2", context_length=512)
    used: Callable[[], int] = torch.cuda.memory_allocated
    sizes = [used() for _ in generate(model, [1], max_tokens=10_000)]
    assert len(sizes) == 10_000
    assert max(sizes[5000:]) <= max(sizes[1000:5000])


if __name__ == "__main__":
    print(json.dumps(compiled_differences()))
