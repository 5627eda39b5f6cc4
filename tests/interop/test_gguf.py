"""GGUF files: written by `export`, read by the library gguf; damaged ones refused."""

import json
import random
import re
import struct
import time
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_runs import MODELS, TEXT, run, tokenizer

import lmsmith
from lmsmith.errors import CheckpointError, ConfigError, LmsmithError, TokenizerError, UsageError
from lmsmith.interop import (
    gguf_file,
    gguf_importing,
    gguf_llama_cpp,
    gguf_models,
    gguf_quants,
    gguf_tokenizer,
)
from lmsmith.run_folder import load_for_use
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer

gguf = pytest.importorskip("gguf")

IDS = torch.randint(300, (2, 90), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_llama_cpp, "LIBRARY", "no_such_module")


def logits(lm: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = lm.model(IDS)[..., : lm.model.config.vocab_size]
    return found


# ---- tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(gguf_quants.BLOCKS))
def test_dequantizes_as_gguf_does(kind: str) -> None:
    """All bit patterns of a block that are finite numbers, not only those that quantizing gives."""
    n_bytes = gguf_quants.BLOCKS[kind][1]
    raw = np.random.default_rng(0).integers(0, 256, (999, n_bytes), dtype=np.uint8)
    if kind not in ("F32", "F16", "BF16"):
        raw[:, 1] &= 0x3F  # the scale is a half: not infinite, and not NaN
        raw[:, 3] &= 0x3F if kind == "Q4_1" else 0xFF
    wanted = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).reshape(-1)
    found = np.empty(len(wanted), np.float32)
    gguf_quants.dequantize(raw.reshape(-1), kind, found)
    assert np.array_equal(found, wanted, equal_nan=True)


def test_names_of_types_are_those_of_gguf() -> None:
    assert {kind.value: kind.name for kind in gguf.GGMLQuantizationType} == gguf_quants.NAMES


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS))
def test_there_and_back(name: str, tmp_path: Path) -> None:
    source = run(tmp_path / "run", name)
    before = lmsmith.load(source)
    out = lmsmith.export(source, to="gguf")
    assert out.path == tmp_path / "run-gguf"
    assert out.receipt["checked"]["llama.cpp"] is None
    assert json.loads((out.path / "receipt.json").read_text()) == out.receipt

    lm = lmsmith.load(out.path / "model.gguf")
    imported = lmsmith.import_model(out.path / "model.gguf", out=tmp_path / "again")
    again = lmsmith.load(imported)
    assert torch.equal(logits(lm), logits(again))
    assert (logits(lm) - logits(before)).abs().max() < 1e-5
    assert lm.tokenizer.to_dict() == before.tokenizer.to_dict()  # type: ignore[attr-defined]
    assert lm.writer.begin == before.writer.begin
    assert lm.writer.ends == before.writer.ends
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 9}
    assert lm.generate("It was", **greedy) == before.generate("It was", **greedy)
    summary = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert summary["imported"]["form"] == "gguf"


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: Any) -> None:
    out = lmsmith.export(run(tmp_path / "run"), to="gguf")
    read = gguf_importing.Content.tensor
    seen: list[Any] = []

    def tensor(content: Any, name: str) -> torch.Tensor:
        assert all(one() is None for one in seen)
        found = read(content, name)
        seen.append(weakref.ref(found))
        return found

    monkeypatch.setattr(gguf_importing.Content, "tensor", tensor)
    lmsmith.import_model(out.path / "model.gguf", out=tmp_path / "again")
    assert len(seen) == len(dict(lmsmith.load(tmp_path / "again").module.named_parameters()))


def test_the_file_as_gguf_reads_it(tmp_path: Path) -> None:
    words = tokenizer()
    source = run(tmp_path / "run", "llama", words)
    lmsmith.export(source, to="gguf")
    read = gguf.GGUFReader(tmp_path / "run-gguf" / "model.gguf")
    said = {key: field.contents() for key, field in read.fields.items()}
    assert said["general.architecture"] == "llama"
    assert said["llama.attention.head_count_kv"] == 2
    assert said["llama.context_length"] == 96
    assert said["llama.rope.dimension_count"] == 16
    assert said["tokenizer.ggml.model"] == "gpt2"
    assert said["tokenizer.ggml.pre"] == "smaug-bpe"
    assert said["tokenizer.ggml.tokens"][-1] == "<|endoftext|>"
    assert said["tokenizer.ggml.token_type"] == [1] * (words.vocab_size - 1) + [3]
    assert said["tokenizer.ggml.bos_token_id"] == said["tokenizer.ggml.eos_token_id"]
    assert said["tokenizer.ggml.add_bos_token"] is True
    tensors = {tensor.name: tensor.data for tensor in read.tensors}
    ours = dict(lmsmith.load(source).module.named_parameters())
    qkv = ours["blocks.1.attention.qkv.weight"].detach().numpy()
    assert np.array_equal(tensors["blk.1.attn_q.weight"], qkv[:64])
    assert np.array_equal(tensors["blk.1.attn_k.weight"], qkv[64:96])
    assert np.array_equal(tensors["blk.1.attn_v.weight"], qkv[96:])
    up = ours["blocks.0.feed_forward.up.weight"].detach().numpy()
    assert np.array_equal(tensors["blk.0.ffn_gate.weight"], up[:96])
    assert "output.weight" not in tensors


@pytest.mark.parametrize(("kind", "most"), [("f16", 3e-3), ("bf16", 3e-2), ("q8_0", 8e-2)])
def test_other_types(kind: Any, most: float, tmp_path: Path) -> None:
    source = run(tmp_path / "run")
    out = lmsmith.export(source, to="gguf", type=kind)
    read = gguf.GGUFReader(out.path / "model.gguf")
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in read.tensors}
    assert types["token_embd.weight"] == types["blk.0.attn_q.weight"] == kind
    assert types["blk.0.attn_norm.weight"] == "f32"
    wanted, found = logits(lmsmith.load(source)), logits(lmsmith.load(out.path / "model.gguf"))
    assert 0 < (found - wanted).norm() / wanted.norm() < most


def test_the_type_is_that_of_the_weights(tmp_path: Path) -> None:
    out = lmsmith.export(run(tmp_path / "run", dtype=torch.bfloat16), to="gguf")
    assert out.receipt["dtype"] == "bf16"
    with pytest.raises(UsageError, match="dtype"):
        lmsmith.export(tmp_path / "run", to="gguf", dtype="float32")
    with pytest.raises(UsageError, match="type"):
        lmsmith.export(tmp_path / "run", to="hf", type="f32")


def test_rows_that_are_no_multiple_of_a_block(tmp_path: Path) -> None:
    source = run(tmp_path / "run", "llama, all biases")  # 4 heads of 20 into the residual stream
    out = lmsmith.export(source, to="gguf", type="q8_0")
    assert out.receipt["types"]["f16"] == 2
    assert out.receipt["types"]["q8_0"] > 2


def test_rotary_pairs_of_qwen2(tmp_path: Path) -> None:
    """The same model with its rows in the order of llama.cpp's qwen2."""
    source = run(tmp_path / "run", "llama, untied, biases")
    out = lmsmith.export(source, to="gguf")
    read = gguf.GGUFReader(out.path / "model.gguf")
    writer = gguf.GGUFWriter(tmp_path / "qwen.gguf", "qwen2")
    for key, field in read.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kinds = field.types
            kind = kinds[0]
            value = field.contents()
            sub = {"sub_type": kinds[-1]} if kind == gguf.GGUFValueType.ARRAY else {}
            writer.add_key_value(key.replace("llama.", "qwen2."), value, kind, **sub)
    for tensor in read.tensors:
        data = np.array(tensor.data)
        if "attn_q." in tensor.name or "attn_k." in tensor.name:
            heads = data.reshape(-1, 8, 2, *data.shape[1:])
            data = heads.swapaxes(1, 2).reshape(data.shape).copy()
        writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, wanted = lmsmith.load(tmp_path / "qwen.gguf"), lmsmith.load(source)
    assert (logits(found) - logits(wanted)).abs().max() < 1e-5


# ---- tokenizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "pre"),
    [("gpt2", "gpt-2"), ("gpt4", "smaug-bpe"), ("llama3", "smaug-bpe"), ("qwen2", "qwen2")],
)
def test_names_of_patterns(pattern: str, pre: str) -> None:
    words = tokenizer(pattern)
    said = gguf_tokenizer.metadata_of(words, words.vocab_size, begin=None, ends=[], kept=None)
    assert said["tokenizer.ggml.pre"] == pre


@pytest.mark.parametrize("pattern", ["o200k", "nanochat", r"\S+|\s+"])
def test_patterns_that_llama_cpp_does_not_have(pattern: str) -> None:
    with pytest.raises(TokenizerError, match=r"llama\.cpp does not have.*--pattern llama3"):
        gguf_tokenizer.metadata_of(tokenizer(pattern), 400, begin=None, ends=[], kept=None)


def test_white_space_at_the_end_of_a_text() -> None:
    """GPT-4's pattern is refused where it would give other ids than llama.cpp's."""
    spaces = tokenizer("gpt4").changed()
    crossing = lmsmith.tokens.bpe.BpeTokenizer(  # type: ignore[attr-defined]
        [*spaces.tokens[:256], b"\n "], [(10, 32)], "gpt4"
    )
    with pytest.raises(TokenizerError, match="gpt4"):
        gguf_tokenizer.metadata_of(crossing, 257, begin=None, ends=[], kept=None)


@pytest.mark.parametrize("words", [ByteTokenizer(True), CharTokenizer("abc", True)])
def test_tokenizers_that_are_no_bpe(words: Any, tmp_path: Path) -> None:
    source = run(tmp_path / "run", words=words)
    with pytest.raises(TokenizerError, match="--tokenizer bpe"):
        lmsmith.export(source, to="gguf")
    assert not (tmp_path / "run-gguf").exists()


def test_a_vocabulary_without_some_bytes(tmp_path: Path) -> None:
    """As SmolLM2's: the library runs it, and it is written again as it was."""
    pytest.importorskip("tokenizers")
    said = gguf_tokenizer.metadata_of(tokenizer(), 400, begin=None, ends=[], kept=None)
    gone = said["tokenizer.ggml.tokens"].index("Ā")  # byte 0
    said["tokenizer.ggml.tokens"][gone] = "[UNUSED]"
    said["tokenizer.ggml.token_type"] = np.array(said["tokenizer.ggml.token_type"])
    said["tokenizer.ggml.token_type"][gone] = 5
    words = gguf_tokenizer.read(said, tmp_path / "x.gguf")
    assert words.kind == "library"
    assert words.encode(TEXT).tolist() == tokenizer().encode(TEXT).tolist()
    again = gguf_tokenizer.metadata_of(words, 400, begin=None, ends=[], kept=None)
    for key in ("pre", "merges"):
        assert again[f"tokenizer.ggml.{key}"] == said[f"tokenizer.ggml.{key}"]


def test_models_that_llama_cpp_does_not_have(tmp_path: Path) -> None:
    config = lmsmith.load(run(tmp_path / "run")).config
    settings: dict[str, Any] = {"logit_softcap": 15.0}
    for name, value in (settings | {"qk_norm": True, "feed_forward": "relu2"}).items():
        changed = type(config)(**(vars(config) | {name: value}))
        with pytest.raises(ConfigError, match=name):
            gguf_models.architecture_for(changed)
    longrope = {
        **{"rope_scaling": "longrope", "rope_factor": 2.0, "rope_original_context": 32},
        "rope_factors": (1.5,) * 8,
    }
    with pytest.raises(ConfigError, match="rope_scaling = longrope"):
        gguf_models.architecture_for(type(config)(**(vars(config) | longrope)))
    qwen3 = lmsmith.load(run(tmp_path / "qwen3", "qwen3")).config
    changes: tuple[dict[str, Any], ...] = (
        {"window": 8, "window_pattern": "S"},
        {"attention_bias": "all"},
        {"rope_scaling": "llama3", "rope_factor": 2.0, "rope_original_context": 32},
    )
    for settings in changes:
        with pytest.raises(ConfigError, match=f"qwen3.*{next(iter(settings))}"):
            gguf_models.architecture_for(type(qwen3)(**(vars(qwen3) | settings)))


# ---- damaged and hostile files -------------------------------------------------------------------

Change = Callable[[bytearray, random.Random], bytes | bytearray]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, int]]:
    """A file, and where in it some things are."""
    folder = tmp_path_factory.mktemp("good")
    saved, gguf_llama_cpp.LIBRARY = gguf_llama_cpp.LIBRARY, "no_such_module"
    lmsmith.export(run(folder / "run"), to="gguf", type="q8_0")
    gguf_llama_cpp.LIBRARY = saved
    path = folder / "run-gguf" / "model.gguf"
    data = path.read_bytes()
    places = {key: data.index(key.encode()) + len(key) for key in KEYS}
    places["data"] = min(tensor.start for tensor in gguf_file.read(path).tensors.values())
    return data, places


KEYS = (
    *("tokenizer.ggml.merges", "tokenizer.ggml.tokens", "llama.embedding_length"),
    *("llama.block_count", "llama.attention.head_count", "token_embd.weight"),
    *("blk.0.attn_q.weight", "general.name", "tokenizer.ggml.eos_token_id"),
    *("tokenizer.ggml.token_type", "llama.attention.layer_norm_rms_epsilon"),
)


def put(data: bytearray, at: int, form: str, value: Any) -> bytearray:
    struct.pack_into(form, data, at, value)
    return data


def string_after(data: bytes, at: int, number: int) -> int:
    """Where string `number` of an array of strings starts; `at` is the end of its key."""
    at += 16  # types and count
    for _ in range(number):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
    return at


def changes(places: dict[str, int]) -> dict[str, Change]:
    tokens, merges = places["tokenizer.ggml.tokens"], places["tokenizer.ggml.merges"]
    table = places["token_embd.weight"]  # then: dimensions, sizes, type, offset

    def twice(data: bytearray, draw: random.Random) -> bytearray:
        number = draw.randrange(40, 120)  # a letter: one byte
        first, second = (string_after(data, tokens, n) for n in (number, number + 1))
        data[second + 8 : second + 9] = data[first + 8 : first + 9]
        return data

    return {
        "truncated": lambda data, draw: data[: draw.randrange(len(data))],
        "wrong magic": lambda data, draw: put(data, draw.randrange(4), "<B", draw.randrange(65)),
        "version 1": lambda data, draw: put(data, 4, "<I", draw.choice((0, 1, 4, 99))),
        "big-endian": lambda data, draw: put(data, 4, ">I", draw.choice((2, 3))),
        "counts": lambda data, draw: put(
            data, draw.choice((8, 16)), "<Q", draw.choice((1 << 63, 1 << 40, 1 << 20, 200))
        ),
        "offset past the end": lambda data, draw: put(
            data,
            table + 24,
            "<Q",
            draw.choice((1 << 63, 1 << 40, 1 << 25)) + 32 * draw.randrange(9),
        ),
        "offset of another": lambda data, draw: put(
            data, places["blk.0.attn_q.weight"] + 24, "<Q", 32 * draw.randrange(20)
        ),
        "length of 2^63": lambda data, draw: put(
            data,
            draw.choice((24, places["general.name"] + 4, string_after(data, tokens, 9))),
            "<Q",
            draw.choice((1 << 63, (1 << 64) - 1, len(data))),
        ),
        "array of 2^60": lambda data, draw: put(
            data, draw.choice((tokens, merges)) + 8, "<Q", (1 << 60) + draw.randrange(99)
        ),
        "no merges": lambda data, draw: put(data, merges - draw.randrange(1, 6), "<B", 88),
        "merges of no tokens": lambda data, draw: put(
            data, string_after(data, merges, draw.randrange(50)) + 8, "<B", ord("~")
        ),
        "duplicate tokens": twice,
        "unknown quantization": lambda data, draw: put(
            data, table + 20, "<I", draw.choice((4, 6, 12, 14, 18, 99, 1 << 31))
        ),
        "tensor shape": lambda data, draw: put(
            data, table + 4 + 8 * draw.randrange(2), "<Q", draw.choice((0, 32, 1 << 40, 1 << 63))
        ),
        "settings": lambda data, draw: put(
            data,
            places[draw.choice(("llama.embedding_length", "llama.block_count"))] + 4,
            "<I",
            draw.choice((0, 1, 3, 1 << 11, 1 << 20, (1 << 32) - 1)),
        ),
        "number of heads": lambda data, draw: put(
            data,
            places["llama.attention.head_count"] + 4,
            "<I",
            draw.choice((0, 3, 5, 1 << 20, (1 << 32) - 1)),
        ),
        "types of settings": lambda data, draw: put(
            data, places["llama.embedding_length"], "<I", draw.choice((6, 8, 9, 13))
        ),
        "end of text": lambda data, draw: put(
            data, places["tokenizer.ggml.eos_token_id"] + 4, "<I", draw.randrange(500, 1 << 31)
        ),
        "types of tokens": lambda data, draw: put(
            data, places["tokenizer.ggml.token_type"] + 16 + 4 * draw.randrange(50), "<i", 9
        ),
        "not a number": lambda data, draw: put(
            data, places["llama.attention.layer_norm_rms_epsilon"] + 4, "<f", float("nan")
        ),
        "weights that are not finite": lambda data, draw: put(
            data, places["data"] + 34 * draw.randrange(50), "<H", 0x7C00
        ),
    }


@pytest.mark.parametrize("name", list(changes(dict.fromkeys((*KEYS, "data"), 0))))
def test_damage_is_one_error(name: str, good: Any, tmp_path: Path) -> None:
    """Ten variants each. Nothing is written, and memory stays within a small multiple of the
    file.
    """
    data, places = good
    path = tmp_path / "bad.gguf"
    for seed in range(10):
        draw = random.Random(seed)
        path.write_bytes(changes(places)[name](bytearray(data), draw))
        tracemalloc.start()
        try:
            with pytest.raises(LmsmithError) as raised:
                lmsmith.import_model(path, out=tmp_path / "run")
            assert tracemalloc.get_traced_memory()[1] < 20 * len(data) + (8 << 20)
        finally:
            tracemalloc.stop()
        assert str(path) in str(raised.value)
        assert not (tmp_path / "run").exists()
        begun = time.process_time()
        with pytest.raises(LmsmithError):
            lmsmith.load(path)
        assert time.process_time() - begun < 1  # it is refused before a model is built


def test_any_byte_may_be_wrong(good: Any, tmp_path: Path) -> None:
    """A changed byte of the header is an error of ours, or gives a model; never a traceback."""
    data, places = good
    path = tmp_path / "bad.gguf"
    draw = random.Random(0)
    for _ in range(60):
        bad = bytearray(data)
        bad[draw.randrange(places["data"])] = draw.randrange(256)
        path.write_bytes(bad)
        try:
            lmsmith.load(path)
        except LmsmithError:
            continue


def test_other_tokenizers_are_named(good: Any, tmp_path: Path) -> None:
    changed = good[0].replace(b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0bert")
    path = tmp_path / "bert.gguf"
    path.write_bytes(changed)
    with pytest.raises(TokenizerError, match=r'"bert".*--tokenizer none'):
        lmsmith.import_model(path, out=tmp_path / "run")
    weights = lmsmith.import_model(path, out=tmp_path / "run", tokenizer="none")
    with pytest.raises(TokenizerError, match="no tokenizer"):
        load_for_use(weights.path)


def test_the_file_itself_can_be_used(good: Any, tmp_path: Path, capsys: Any) -> None:
    from lmsmith.cli import run as command

    path = tmp_path / "model.gguf"
    path.write_bytes(good[0])
    greedy = ["--max-tokens=5", "--temperature=0"]
    assert command(["generate", str(path), "It was", *greedy], started=0.0) == 0
    wanted = lmsmith.load(path).generate("It was", max_tokens=5, temperature=0)
    assert capsys.readouterr().out == f"It was{wanted}\n"
    assert command(["resume", str(path)], started=0.0) != 0
    assert "lmsmith import" in capsys.readouterr().err
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(LmsmithError, match="empty"):
        lmsmith.load(tmp_path / "empty.gguf")


def test_llama_cpp_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process sleeps, and writes nothing."""
    program = tmp_path / "sleeps"
    program.write_text("#!/bin/sh\nexec sleep 30\n")
    program.chmod(0o755)
    monkeypatch.setattr(gguf_llama_cpp, "LIBRARY", "json")  # installed
    monkeypatch.setattr(gguf_llama_cpp, "TIME_LIMIT", 0.3)
    monkeypatch.setattr(gguf_llama_cpp.sys, "executable", str(program))
    source = run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no answer about the exported model within"):
        lmsmith.export(source, to="gguf", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- the command ---------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    from lmsmith.cli import run as command

    source = run(tmp_path / "run")
    assert command(["export", str(source), "--to", "gguf", "--type", "q8_0"], started=0.0) == 0
    said = capsys.readouterr().out
    assert ": llama, 84,288 parameters in q8_0" in said
    assert "q8_0" in said
    assert "not with llama.cpp, which is not installed: pip install xllamacpp" in said
    file = tmp_path / "run-gguf" / "model.gguf"
    assert command(["import", str(file), "--out", str(tmp_path / "b")], started=0.0) == 0
    assert "84,288 parameters in float32, a bpe tokenizer" in capsys.readouterr().out
    assert command(["import", str(file.parent), "--out", str(tmp_path / "c")], started=0.0) == 0
    capsys.readouterr()
    file.rename(file.with_name("other.gguf"))
    assert command(["import", str(file.parent), "--out", str(tmp_path / "d")], started=0.0) == 1
    assert re.search(r"import \S+other\.gguf", capsys.readouterr().err)
