"""End to end: a model of transformers is imported as a run, used, and exported to transformers
again.
"""

import hashlib
import http.server
import json
import logging
import math
import shlex
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import logits, random_ids, random_model, saved, transformers

from lmsmith.checkpoint import load_model, save_model
from lmsmith.cli import run as command
from lmsmith.cli import verbs
from lmsmith.config import flatten, read_toml
from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, ConfigError, TokenizerError, UsageError
from lmsmith.evaluate.comparison import Text
from lmsmith.interop import vocabulary
from lmsmith.interop.exporting import export_model
from lmsmith.interop.importing import import_model
from lmsmith.interop.vocabulary import save
from lmsmith.models.gpt import GPT
from lmsmith.report.comparison import compare_runs
from lmsmith.run_folder import load_for_use
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer
from lmsmith.train.start import asked

TEXT = "Don't  the naïve cats hat? 中文 😀\r\n\n\tdef f(x): return x  \n"

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": False,
    "use_regex": True,
}


def lmsmith(*words: object) -> int:
    return command([str(word) for word in words], started=0.0)


def with_bytes(folder: Path, kind: str = "llama", **settings: Any) -> Any:
    """A model of transformers that reads bytes, saved with its tokenizer."""
    theirs = random_model(
        kind, **{"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256} | settings
    )
    saved(theirs, folder)
    save(ByteTokenizer(True), folder, context_length=224)
    return theirs


def trained(folder: Path, tokenizer: Any, name: str = "gpt2", **changes: Any) -> GPT:
    """A run's model, as after training."""
    sizes = {
        "n_layer": 2,
        "n_head": 6,
        "d_model": 36,
        "vocab_size": tokenizer.vocab_size,
        "context_length": 64,
    }
    config = (
        preset(name)
        .changed({f"model.{k}": v for k, v in (sizes | changes).items()}, where="here")
        .model
    )
    model = GPT(config).eval()
    model.initialise(torch.Generator().manual_seed(0))
    folder.mkdir()
    save_model(
        folder / "model",
        dict(model.named_parameters()),
        {"model": flatten(vars(config)), "step": 7},
    )
    save_tokenizer(tokenizer, folder / "model")
    return model


# ---- import --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_imported_run_can_be_used(kind: str, tmp_path: Path, capsys: Any) -> None:
    theirs = with_bytes(tmp_path / "theirs", kind)
    assert lmsmith("import", tmp_path / "theirs", "--out", tmp_path / "run") == 0
    assert (
        f"{theirs.num_parameters():,} parameters in float32, a bpe tokenizer"
        in capsys.readouterr().out
    )
    model, tokenizer, _ = load_for_use(tmp_path / "run")
    ids = random_ids(V=257)
    assert (logits(model, ids) - logits(theirs, ids)).abs().max() < 1e-5
    assert tokenizer.encode(TEXT).tolist() == list(TEXT.encode())
    assert tokenizer.end_of_text == 256
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    weights = (tmp_path / "theirs" / "model.safetensors").read_bytes()
    assert summary["imported"]["sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert summary["n_params"] == theirs.num_parameters()
    assert read_toml(tmp_path / "run" / "config.toml")["model.n_layer"] == 2

    assert lmsmith("generate", tmp_path / "run", "The", "--temperature=0", "--max-tokens=9") == 0
    prompt = torch.tensor([[256, *b"The"]])
    wanted = theirs.generate(prompt, max_new_tokens=9, do_sample=False)[0, 1:].tolist()
    assert capsys.readouterr().out == tokenizer.decode([id for id in wanted if id != 256]) + "\n"

    (tmp_path / "text.txt").write_text("the cats", encoding="utf-8")
    assert lmsmith("eval", tmp_path / "run", "--text", tmp_path / "text.txt", "--json") == 0
    ids = torch.tensor([[256, *b"the cats"]])
    with torch.no_grad():
        nats = float(theirs(ids, labels=ids).loss)
    assert json.loads(capsys.readouterr().out)["nats_per_token"] == pytest.approx(nats, rel=1e-5)


def test_without_a_token_before_the_text(tmp_path: Path, capsys: Any) -> None:
    """As transformers scores a text with GPT-2's tokenizer. The first token costs as much as under
    a uniform guess.
    """
    theirs = with_bytes(tmp_path / "theirs", "gpt2", tie_word_embeddings=False)
    import_model(str(tmp_path / "theirs"), out=tmp_path / "run")
    run = tmp_path / "run"
    greedy = ("--temperature=0", "--max-tokens=9")
    assert lmsmith("generate", run, "The", *greedy, "--no-bos") == 0
    wanted = theirs.generate(
        torch.tensor([[*b"The"]]), max_new_tokens=9, do_sample=False, pad_token_id=256
    )[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    found = capsys.readouterr().out
    assert found == tokenizer.decode(wanted, skip_special_tokens=True) + "\n"
    assert lmsmith("generate", run, "The", *greedy) == 0
    assert capsys.readouterr().out != found
    assert lmsmith("generate", run, "", *greedy, "--no-bos") == 2
    assert "the prompt has no character" in capsys.readouterr().err

    (tmp_path / "text.txt").write_text("the cats", encoding="utf-8")
    assert lmsmith("eval", run, "--text", tmp_path / "text.txt", "--no-bos", "--json") == 0
    ids = torch.tensor([[*b"the cats"]])
    with torch.no_grad():
        nats = float(theirs(ids, labels=ids).loss) * 7 + math.log(257)
    assert json.loads(capsys.readouterr().out)["nats_per_token"] == pytest.approx(
        nats / 8, rel=1e-5
    )
    (tmp_path / "two.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    assert lmsmith("eval", run, "--text", tmp_path / "two.jsonl", "--no-bos") == 1
    assert "omits the token between documents" in capsys.readouterr().err
    assert lmsmith("eval", run, "--no-bos") == 2
    assert "there is no --text" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", ["generate", "eval", "train", "compare", "export", "resume", "report"]
)
@pytest.mark.parametrize("form", ["huggingface", "shards", "llm.c", "llm.c folder"])
def test_a_model_that_is_not_imported_yet(
    verb: str, form: str, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "some model"
    named = folder
    if form.startswith("llm.c"):
        folder.mkdir()
        (folder / "model.bin").write_bytes((20240326).to_bytes(4, "little") + bytes(2000))
        named = folder if form == "llm.c folder" else folder / "model.bin"
    else:
        saved(
            random_model("llama"),
            folder,
            **({"max_shard_size": "20KB"} if form == "shards" else {}),
        )
    (tmp_path / "text.txt").write_text("the cats", encoding="utf-8")
    words = {
        "generate": [named, "The"],
        "eval": [named, "--text", tmp_path / "text.txt"],
        "train": [tmp_path / "text.txt", "--from", named],
        "compare": [named, "--text", tmp_path / "text.txt"],
        "export": [named, "--to", "hf", "--out", tmp_path / "out"],
        "resume": [named],
        "report": [named],
    }
    assert lmsmith(verb, *words[verb]) == 2
    told = capsys.readouterr().err
    assert (
        f"{named} is {'a Hugging Face' if 'llm' not in form else 'an llm.c'} checkpoint, not "
        f"a run" in told
    )
    assert f"`lmsmith import '{named}' --out RUN`" in told


def test_texts_begin_and_end_as_in_transformers(tmp_path: Path, capsys: Any) -> None:
    """As in Llama 3: one special token before a text, several that end it, none of them
    <|endoftext|>.
    """
    folder = tmp_path / "theirs"
    theirs = random_model("llama", vocab_size=260, bos_token_id=256, eos_token_id=[257, 258])
    with torch.no_grad():  # greedily, 258 comes in the place of what would have come fifth
        fifth = theirs.generate(torch.tensor([[256, *b"The"]]), max_new_tokens=5, do_sample=False)[
            0, -1
        ]
        theirs.lm_head.weight[258] = 1.5 * theirs.lm_head.weight[fifth]
    saved(theirs, folder)
    special = {"<|begin_of_text|>": 256, "<|end_of_text|>": 257, "<|eot_id|>": 258}
    tokens = [*(bytes([byte]) for byte in range(256)), *([None] * 3)]
    save(
        BpeTokenizer(tokens, [], "gpt4", special), folder, context_length=224, begin=256, ends=[257]
    )
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "Sequence",
        "processors": [BYTE_LEVEL, content["post_processor"]],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    prompt = transformers.AutoTokenizer.from_pretrained(folder)("The", return_tensors="pt")[
        "input_ids"
    ]
    assert prompt.tolist() == [[256, *b"The"]]

    run, _ = import_model(str(folder), out=tmp_path / "run")
    wanted = theirs.generate(prompt, max_new_tokens=50, do_sample=False)[0].tolist()
    assert wanted[-1] == 258
    assert lmsmith("generate", run, "The", "--temperature=0", "--max-tokens=50") == 0
    assert capsys.readouterr().out == load_for_use(run)[1].decode(wanted[1:-1]) + "\n"
    (tmp_path / "text.txt").write_text("the cats", encoding="utf-8")
    ids = torch.tensor([[256, *b"the cats"]])
    with torch.no_grad():
        nats = float(theirs(ids, labels=ids).loss)
    assert lmsmith("eval", run, "--text", tmp_path / "text.txt", "--json") == 0
    assert json.loads(capsys.readouterr().out)["nats_per_token"] == pytest.approx(nats, rel=1e-5)
    assert lmsmith("compare", run, "--text", tmp_path / "text.txt", "--json") == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["run"]["bits_per_byte"] == pytest.approx(nats / math.log(2), rel=1e-5)

    export_model(run, tmp_path / "back", to="hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    for said in (again.config, again.generation_config):
        assert (said.bos_token_id, said.eos_token_id) == (256, [257, 258])
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert opened("The")["input_ids"] == prompt[0].tolist()
    assert opened("The", "He")["input_ids"] == [256, *b"The", 256, *b"He"]
    assert (opened.bos_token, opened.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")


@pytest.mark.parametrize("engine", ["ours", "library"])
def test_an_added_token_that_is_not_special_can_end_texts(engine: str, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    with_bytes(folder, vocab_size=258, eos_token_id=[256, 257])
    content = json.loads((folder / "tokenizer.json").read_text())
    turn = content["added_tokens"][0] | {"id": 257, "content": "<turn>", "special": False}
    content["added_tokens"].append(turn)
    if engine == "library":
        content["normalizer"] = {"type": "NFD"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    run, _ = import_model(str(folder), out=tmp_path / "run")
    assert load_for_use(run)[2]["ends"] == [256, 257]
    export_model(run, tmp_path / "back", to="hf")
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert opened.generation_config.eos_token_id == [256, 257]


def test_text_that_a_normalizer_changes_is_not_reported_as_skipped(
    tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "theirs"
    with_bytes(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    run, _ = import_model(str(folder), out=tmp_path / "run")
    assert lmsmith("generate", run, "The cat", "--max-tokens", "1") == 0
    told = capsys.readouterr().err
    assert "tokenizer changes or does not know 1 of the prompt's words or spaces" in told
    assert "the model reads: the cat" in told
    (tmp_path / "text.txt").write_text("The cat", encoding="utf-8")
    assert lmsmith("eval", run, "--text", tmp_path / "text.txt") == 0
    assert (
        "1 units of the text are changed by the tokenizer or not in the vocabulary"
        in capsys.readouterr().out
    )


def put(content: dict[str, Any], folder: Path, **config: Any) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def as_qwen(folder: Path) -> dict[str, Any]:
    """A model whose tokenizer, like Qwen's, normalizes and has added tokens that are not special."""
    with_bytes(folder, vocab_size=259, eos_token_id=258)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "NFC"}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"] += [
        {"id": 257, "content": "<think>", "special": False} | flags,
        {"id": 258, "content": "<|im_end|>", "special": True} | flags,
    ]
    eos = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    put(content, folder, **eos)
    return content


QWEN = "e\u0301 <think>\n"


def test_a_round_trip_of_a_library_tokenizer(tmp_path: Path, capsys: Any) -> None:
    content = as_qwen(tmp_path / "theirs")
    run = tmp_path / "run"
    assert lmsmith("import", tmp_path / "theirs", "--out", run) == 0
    assert "a library tokenizer" in capsys.readouterr().out
    assert load_for_use(run)[1].end_of_text == 258
    assert lmsmith("tokenizer", "encode", run, QWEN, "--special") == 0
    assert capsys.readouterr().out == "195 169 32 257 10\n"
    check_export(run, tmp_path / "back", content)


def check_export(run: Path, folder: Path, content: dict[str, Any]) -> None:
    export_model(run, folder, to="hf")
    assert json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) == content
    opened = transformers.AutoTokenizer.from_pretrained(folder)
    assert opened(QWEN)["input_ids"] == [*"é ".encode(), 257, 10]
    assert opened.eos_token == "<|im_end|>"


@pytest.mark.slow
def test_a_library_tokenizer_works_everywhere(tmp_path: Path) -> None:
    content = as_qwen(tmp_path / "theirs")
    run, more, text = tmp_path / "run", tmp_path / "more", tmp_path / "text.txt"
    import_model(str(tmp_path / "theirs"), out=run)
    text.write_text(QWEN * 300, encoding="utf-8")
    documents = tmp_path / "documents.jsonl"
    documents.write_text(
        "".join(json.dumps({"text": QWEN * n}) + "\n" for n in range(1, 9)), encoding="utf-8"
    )
    prepared = tmp_path / "shards"
    words = ("--tokenizer", tmp_path / "theirs", "--workers", 2)
    assert lmsmith("data", "prepare", documents, "--out", prepared, *words) == 0
    assert load_tokenizer(prepared) == load_for_use(run)[1]
    assert lmsmith("train", text, "--from", run, "--steps", 1, "--out", more) == 0
    assert lmsmith("generate", more, "é", "--max-tokens", 5) == 0
    assert lmsmith("eval", more) == 0
    check_export(more, tmp_path / "back", content)


def test_the_eos_token_can_be_named(tmp_path: Path) -> None:
    as_qwen(tmp_path / "theirs")
    run, _ = import_model(str(tmp_path / "theirs"), out=tmp_path / "run", eos_token="<|endoftext|>")
    assert load_for_use(run)[1].end_of_text == 256
    with pytest.raises(TokenizerError, match="'<no>' cannot be the end-of-text token"):
        import_model(str(tmp_path / "theirs"), out=tmp_path / "other", eos_token="<no>")


def test_special_tokens_before_and_after_texts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in transformers: by the post-processor, or by tokenizer_config.json."""
    content = as_qwen(tmp_path)
    (tmp_path / "config.json").unlink()
    end, think = (
        {"SpecialToken": {"id": name, "type_id": 0}} for name in ("<|endoftext|>", "<|im_end|>")
    )
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    ids = {
        name: {"id": name, "ids": [i], "tokens": [name]}
        for name, i in (("<|endoftext|>", 256), ("<|im_end|>", 258))
    }

    def template(*parts: Any) -> dict[str, Any]:
        return {
            "type": "TemplateProcessing",
            "single": list(parts),
            "pair": [],
            "special_tokens": ids,
        }

    roberta = {
        "type": "RobertaProcessing",
        "cls": ["<|endoftext|>", 256],
        "sep": ["<|im_end|>", 258],
    }
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    for after, config in (
        (None, {}),
        (template(end, sequence), {}),
        (template(end, sequence, think), {}),
        (template(end, think, sequence), {}),
        (template(sequence, think), {}),
        (roberta | {"trim_offsets": False, "add_prefix_space": False}, {}),
        (None, {"tokenizer_class": "LlamaTokenizerFast"}),
        (
            None,
            {
                "tokenizer_class": "LlamaTokenizerFast",
                "add_bos_token": False,
                "add_eos_token": True,
            },
        ),
        (template(sequence, think), {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}),
    ):
        put(
            content | {"post_processor": after},
            tmp_path,
            **names | {"tokenizer_class": "PreTrainedTokenizerFast"} | config,
        )
        tokenizer = vocabulary.load(tmp_path)
        before, behind = vocabulary.around(tmp_path, tokenizer)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)("<think>é")["input_ids"]
        assert [*before, *tokenizer.encode("<think>é").tolist(), *behind] == theirs, (after, config)
        if len(before) > 1:
            with pytest.raises(TokenizerError, match="puts 2 special tokens before every text"):
                vocabulary.begin_of(tmp_path, tokenizer)
        else:
            assert vocabulary.begin_of(tmp_path, tokenizer) == (before[0] if before else None)
    assert "'<|im_end|>' after every text, which lmsmith does not" in caplog.text


def test_ids_that_are_not_special_tokens_do_not_end_texts(tmp_path: Path) -> None:
    """LlamaConfig defaults to 1 and 2."""
    saved(
        random_model("llama", vocab_size=257, bos_token_id=1, eos_token_id=2), tmp_path / "theirs"
    )
    save(ByteTokenizer(True), tmp_path / "theirs", context_length=224)
    run, _ = import_model(str(tmp_path / "theirs"), out=tmp_path / "run")
    assert not {"begin", "ends"} & set(load_for_use(run)[2])
    export_model(run, tmp_path / "back", to="hf")
    assert (
        json.loads((tmp_path / "back" / "generation_config.json").read_text())["eos_token_id"]
        == 256
    )


def test_an_imported_run_can_be_moved(tmp_path: Path, monkeypatch: Any) -> None:
    """Its config.toml, which is also a recipe, names its tokenizer by a path relative to the run."""
    with_bytes(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), out=tmp_path / "run")
    (tmp_path / "moved").mkdir()
    run = (tmp_path / "run").rename(tmp_path / "moved" / "run")
    assert str(tmp_path) not in (run / "config.toml").read_text()
    assert read_toml(run / "config.toml")["tokenizer"] == "model"
    monkeypatch.chdir(tmp_path)
    config, _ = asked(["moved/run/config.toml", "text.txt"], {})
    assert load_tokenizer(config.tokenizer) == load_for_use(run)[1]


def test_unsupported_commands_explain_why(tmp_path: Path, capsys: Any) -> None:
    with_bytes(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), out=tmp_path / "run")
    assert lmsmith("resume", tmp_path / "run") == 2
    assert lmsmith("eval", tmp_path / "run") == 1
    told = capsys.readouterr().err
    assert "is an imported model" in told
    assert "--text FILE" in told
    assert lmsmith("report", tmp_path / "run") == 0


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    theirs = with_bytes(tmp_path / "theirs")
    theirs.model.layers[1].mlp.up_proj.weight.data[3, 5] = math.nan
    saved(theirs, tmp_path / "theirs")
    with pytest.raises(
        CheckpointError, match=r"not finite numbers: blocks\.1\.feed_forward\.\S+ \(1 NaN of"
    ):
        import_model(str(tmp_path / "theirs"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    large = trained(tmp_path / "large", ByteTokenizer(True)).double()
    large.token_embedding.weight.data[0, 0] = 1e300
    _, content = load_model(tmp_path / "large" / "model")
    save_model(tmp_path / "large" / "model", dict(large.named_parameters()), content)
    with pytest.raises(
        CheckpointError, match=r"token_embedding.weight \(1 infinite of .* choose another --dtype"
    ):
        export_model(tmp_path / "large", tmp_path / "hf", to="hf", dtype="float32")
    assert not (tmp_path / "hf").exists()


def test_weights_without_a_tokenizer(tmp_path: Path, caplog: Any) -> None:
    saved(random_model("llama"), tmp_path / "theirs")
    _, summary = import_model(str(tmp_path / "theirs"), out=tmp_path / "run")
    assert "has no tokenizer" in caplog.text
    assert summary["tokenizer"] is None
    with pytest.raises(TokenizerError, match="again with --tokenizer FOLDER"):
        load_for_use(tmp_path / "run")
    with pytest.raises(TokenizerError, match="again with --tokenizer FOLDER"):
        compare_runs([tmp_path / "run"], Text("it", b"it", ("it",)))
    receipt = export_model(tmp_path / "run", tmp_path / "back", to="hf")
    assert receipt["tokenizer"] is None
    assert not (tmp_path / "back" / "tokenizer.json").exists()


def test_another_tokenizer(tmp_path: Path) -> None:
    saved(random_model("llama", vocab_size=300), tmp_path / "theirs")
    save_tokenizer(ByteTokenizer(True), tmp_path / "bytes")
    run, _ = import_model(
        str(tmp_path / "theirs"), out=tmp_path / "run", tokenizer=str(tmp_path / "bytes")
    )
    assert load_for_use(run)[1] == ByteTokenizer(True)
    saved(random_model("llama"), tmp_path / "small")
    with pytest.raises(ConfigError, match="257 ids, but the model's embedding table has 97 rows"):
        import_model(
            str(tmp_path / "small"), out=tmp_path / "other", tokenizer=str(tmp_path / "bytes")
        )
    (tmp_path / "small" / "tokenizer.json").write_text(
        '{"model": {"type": "Unigram"}, "pre_tokenizer": null}'
    )
    with pytest.raises(TokenizerError, match="--tokenizer none"):
        import_model(str(tmp_path / "small"), out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    import_model(str(tmp_path / "small"), out=tmp_path / "other", tokenizer="none")


def test_rows_without_a_token(tmp_path: Path) -> None:
    """A padded embedding table: its rows stay in the softmax, but have no token."""
    saved(random_model("gpt2", vocab_size=320), tmp_path / "theirs")
    save(ByteTokenizer(True), tmp_path / "theirs", context_length=224)
    run, _ = import_model(str(tmp_path / "theirs"), out=tmp_path / "run")
    model, tokenizer, _ = load_for_use(run)
    assert tokenizer.vocab_size == model.config.vocab_size == 320
    assert tokenizer.encode("hé").tolist() == list("hé".encode())
    export_model(run, tmp_path / "back", to="hf")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "back")("hé")["input_ids"] == list(
        "hé".encode()
    )


def test_the_tokenizer_of_gpt2(tmp_path: Path, test_data: Path) -> None:
    theirs = random_model("gpt2", vocab_size=50257)
    saved(theirs, tmp_path / "theirs")
    shutil.copy(test_data / "gpt2" / "vocab.json", tmp_path / "theirs")
    merges = (test_data / "gpt2" / "merges.txt").read_text(encoding="utf-8")
    (tmp_path / "theirs" / "merges.txt").write_text(
        "#version: 0.2\n" + merges, encoding="utf-8"
    )  # it skips a line
    run, _ = import_model(str(tmp_path / "theirs"), out=tmp_path / "run")
    export_model(run, tmp_path / "back", to="hf")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    own = transformers.GPT2TokenizerFast(
        tmp_path / "theirs" / "vocab.json", tmp_path / "theirs" / "merges.txt"
    )
    for text in (TEXT, TEXT * 3, "\n\n\n", "   x", "<|endoftext|>"):
        assert opened(text)["input_ids"] == own(text)["input_ids"]
        if "endoftext" not in text:
            assert load_for_use(run)[1].encode(text).tolist() == own(text)["input_ids"]
    assert opened.eos_token_id == 50256
    assert (
        transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "back"
        ).generation_config.eos_token_id
        == 50256
    )


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "a/b/c", "..", "model.bin/"])
def test_missing_sources(source: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, CheckpointError)):
        import_model(source, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_run_of_lmsmith_is_not_imported(tmp_path: Path) -> None:
    trained(tmp_path / "run", ByteTokenizer(True))
    for place in ("run", "run/model"):
        with pytest.raises(CheckpointError, match="nothing to import"):
            import_model(str(tmp_path / place), out=tmp_path / "other")


# ---- by name -------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hub that its library uses: files of a model at a revision, by name."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool = False) -> None:
        if self.path == "/":
            self.send_response(200)
            self.end_headers()
            return
        name, _, rest = self.path.strip("/").partition("/resolve/")
        revision, file = rest.split("/")
        assert revision in ("main", COMMIT)
        self.asked.append(f"{self.command} {file}")
        path = self.folder / file
        known = name in ("somebody/tiny", "gpt2")
        if not known or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *words: Any) -> None: ...


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: Any) -> Iterator[type[Hub]]:
    constants = pytest.importorskip("huggingface_hub").constants
    serving = type("Serving", (Hub,), {"folder": tmp_path / "served", "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serving)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    yield serving
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("how", [{}, {"max_shard_size": "20KB"}])
def test_a_model_by_name(hub: type[Hub], tmp_path: Path, how: dict[str, str], capsys: Any) -> None:
    theirs = with_bytes(hub.folder)
    if how:
        (hub.folder / "model.safetensors").unlink()
        saved(theirs, hub.folder, **how)
    assert lmsmith("import", "somebody/tiny") == 0
    run = Path("runs") / "tiny-1"
    assert str(run) in capsys.readouterr().out
    ids = random_ids(V=257)
    assert (logits(load_for_use(run)[0], ids) - logits(theirs, ids)).abs().max() < 1e-5
    assert not any("pytorch" in asked for asked in hub.asked)

    hub.asked.clear()
    assert lmsmith("import", "somebody/tiny") == 0  # from the cache
    assert not [asked for asked in hub.asked if asked.startswith("GET")]


def test_the_examples_run_one_after_the_other(hub: type[Hub], tmp_path: Path) -> None:
    with_bytes(hub.folder, "gpt2")
    (tmp_path / "demo").mkdir()
    for verb in ("import", "export"):
        example = verbs().found[verb].format_help().splitlines()[-1]
        assert command(shlex.split(example)[1:], started=0.0) == 0
    assert (tmp_path / "demo" / "gpt2-hf" / "receipt.json").is_file()


def test_the_ids_that_end_texts_are_imported(hub: type[Hub]) -> None:
    with_bytes(hub.folder, vocab_size=260)
    special = {"<|end_of_text|>": 257, "<|eot_id|>": 258}
    tokens = [*(bytes([byte]) for byte in range(256)), *([None] * 3)]
    save(BpeTokenizer(tokens, [], "gpt4", special), hub.folder, context_length=224)
    (hub.folder / "generation_config.json").write_text(
        '{"bos_token_id": null, "eos_token_id": [257, 258]}'
    )
    assert load_for_use(import_model("somebody/tiny")[0])[2]["ends"] == [257, 258]


def test_missing_names_and_damaged_files(hub: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model of this name.*openai-community/gpt2"):
        import_model("somebody/nothing")
    hub.folder.mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        import_model("somebody/tiny")
    with_bytes(hub.folder)
    (hub.folder / "model.safetensors").rename(hub.folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        import_model("somebody/tiny")
    assert not Path("runs").exists()


def test_a_download_is_checked_against_its_hash(hub: type[Hub]) -> None:
    """Another file of the same size, which the library accepts."""
    with_bytes(hub.folder)
    import_model("somebody/tiny")
    cached = next(
        Path("cache").glob("models--somebody--tiny/snapshots/*/model.safetensors")
    ).resolve()
    data = bytearray(cached.read_bytes())
    data[-1] ^= 1
    cached.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        import_model("somebody/tiny")


def test_without_a_network_the_error_says_what_to_copy(hub: type[Hub], monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError,
        match=r"no file or folder "
        r"gpt2.*config\.json.*model\.safetensors.*tokenizer\.json.*lmsmith import",
    ):
        import_model("gpt2")


@pytest.mark.parametrize("how", [{}, {"max_shard_size": "20KB"}])
def test_without_a_network_the_cache_is_used(
    hub: type[Hub], how: dict[str, str], monkeypatch: Any
) -> None:
    saved(random_model("llama"), hub.folder, **how)
    import_model("somebody/tiny", out=Path("first"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    import_model("somebody/tiny", out=Path("second"))
    first, second = (load_model(Path(run) / "model")[0] for run in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install 'lmsmith\[hf\]'"):
        import_model("gpt2")


# ---- export --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(True), CharTokenizer.learn([TEXT, "a"], False)]
)
def test_a_run_opens_in_transformers(
    name: str, tokenizer: Any, tmp_path: Path, capsys: Any
) -> None:
    model = trained(tmp_path / "run", tokenizer, name, vocab_multiple=64)
    assert lmsmith("export", tmp_path / "run", "--to", "hf", "--out", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "loaded with lmsmith: logits differ by at most 0" in shown
    assert "loaded with transformers" in shown
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert opened(TEXT)["input_ids"] == tokenizer.encode(TEXT).tolist()
    ids = torch.tensor([tokenizer.encode(TEXT).tolist()])
    assert (logits(model, ids) - logits(theirs, ids)).abs().max() < 1e-5
    assert (
        theirs.generation_config.eos_token_id == theirs.config.eos_token_id == tokenizer.end_of_text
    )

    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    files = {file.name for file in (tmp_path / "out").iterdir()}
    wanted = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert files == wanted | {"receipt.json"}
    assert set(receipt["sha256"]) == wanted
    for file, sha256 in receipt["sha256"].items():
        assert hashlib.sha256((tmp_path / "out" / file).read_bytes()).hexdigest() == sha256
    assert receipt["n_params"] == model.n_parameters()
    assert receipt["checked"]["transformers"]["max_logit_difference"] < 1e-5

    run, _ = import_model(str(tmp_path / "out"), out=tmp_path / "again")
    assert load_for_use(run)[1].encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    back = load_for_use(run)[0]
    assert (logits(back, ids) - logits(model, ids)).abs().max() < 1e-5


def test_a_short_context_prints_no_warnings(tmp_path: Path) -> None:
    """transformers would warn about texts that are longer than the context."""
    trained(tmp_path / "run", ByteTokenizer(True), context_length=8)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        export_model(tmp_path / "run", tmp_path / "out", to="hf")
        assert said == []
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT)
        assert "longer than" in said[0]  # which shows that we would have heard
    finally:
        logging.getLogger("transformers").removeHandler(handler)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision(dtype: Any, tmp_path: Path) -> None:
    model = trained(tmp_path / "run", ByteTokenizer(True))
    receipt = export_model(tmp_path / "run", tmp_path / "out", to="hf", dtype=dtype)
    assert receipt["dtype"] == dtype
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert theirs.dtype == getattr(torch, dtype)
    assert torch.equal(theirs.transformer.wte.weight, model.token_embedding.weight.to(theirs.dtype))


def test_weights_that_cannot_be_exported(tmp_path: Path) -> None:
    """Too large for the precision, or not finite."""
    trained(tmp_path / "run", ByteTokenizer(True))
    tensors, content = load_model(tmp_path / "run" / "model")
    tensors["final_norm.bias"][0] = 1e6
    save_model(tmp_path / "run" / "model", tensors, content)
    with pytest.raises(CheckpointError, match=r"float16.*final_norm.bias.*another --dtype"):
        export_model(tmp_path / "run", tmp_path / "out", to="hf", dtype="float16")
    with pytest.raises(UsageError, match="dtype = 'int8': expected one of auto, float32"):
        export_model(tmp_path / "run", tmp_path / "out", to="hf", dtype="int8")  # type: ignore[arg-type]
    tensors["final_norm.bias"][0] = math.nan
    save_model(tmp_path / "run" / "model", tensors, content)
    with pytest.raises(CheckpointError, match=r"final_norm.bias \(1 NaN"):
        export_model(tmp_path / "run", tmp_path / "out", to="hf")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_in_float64(name: str, tmp_path: Path, capsys: Any) -> None:
    """As trained with `--train.dtype float64`: a round trip keeps the bits of the weights."""
    model = trained(tmp_path / "run", ByteTokenizer(True), name)
    tensors = {name: p.detach().double() + 1e-12 for name, p in model.named_parameters()}
    save_model(tmp_path / "run" / "model", tensors, load_for_use(tmp_path / "run")[2])
    assert export_model(tmp_path / "run", tmp_path / "out", to="hf")["dtype"] == "float64"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="auto"
    ).eval()
    assert theirs.dtype == torch.float64
    import_model(str(tmp_path / "out"), out=tmp_path / "again")
    again, _ = load_model(tmp_path / "again" / "model")
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    ids = random_ids(V=257)
    assert (logits(model, ids) - logits(theirs, ids)).abs().max() < 1e-5
    if name == "gpt2":
        assert lmsmith("export", tmp_path / "run", "--to", "llmc", "--out", tmp_path / "llmc") == 2
        assert (
            "llm.c does not support float64 weights: export with --dtype float32"
            in capsys.readouterr().err
        )


def test_models_that_cannot_be_exported(tmp_path: Path, capsys: Any) -> None:
    trained(tmp_path / "llama", ByteTokenizer(True), "llama")
    assert lmsmith("export", tmp_path / "llama", "--to", "llmc", "--out", tmp_path / "out") == 2
    assert "model.norm = rmsnorm" in capsys.readouterr().err
    assert lmsmith("export", tmp_path / "nowhere", "--to", "hf", "--out", tmp_path / "out") == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    assert lmsmith("export", tmp_path / "llama", "--to", "hf", "--out", tmp_path / "full") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "llama"]


def test_a_model_that_is_read_differently_is_not_written(tmp_path: Path, monkeypatch: Any) -> None:
    model = trained(tmp_path / "run", ByteTokenizer(True), "llama")
    tensors = {
        name: p.detach() * (1e-3 if name == "head.weight" else 1)
        for name, p in model.named_parameters()
    }
    save_model(
        tmp_path / "run" / "model", tensors, load_for_use(tmp_path / "run")[2]
    )  # small logits are no excuse
    from lmsmith.interop.pieces import Piece

    monkeypatch.setattr(Piece, "to_ours", lambda piece, x: x)
    monkeypatch.setattr(Piece, "to_theirs", lambda piece, x: x)  # the same mistake in both ways
    with pytest.raises(CheckpointError, match="read by transformers, gives logits that differ"):
        export_model(tmp_path / "run", tmp_path / "out", to="hf")
    monkeypatch.undo()
    monkeypatch.setattr(Piece, "to_theirs", lambda piece, x: x)
    with pytest.raises(CheckpointError, match="read by lmsmith, gives logits that differ"):
        export_model(tmp_path / "run", tmp_path / "out", to="hf")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_weights_that_do_not_fit_their_config(tmp_path: Path) -> None:
    trained(tmp_path / "run", ByteTokenizer(True))
    tensors, content = load_model(tmp_path / "run" / "model")
    del tensors["final_norm.bias"]
    save_model(tmp_path / "run" / "model", tensors, {"model": content["model"]})
    with pytest.raises(CheckpointError, match="do not match"):
        export_model(tmp_path / "run", tmp_path / "out", to="hf")


def test_tokenizers_are_unchanged_by_import_and_export(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.learn([TEXT], True)
    trained(tmp_path / "run", tokenizer)
    export_model(tmp_path / "run", tmp_path / "out", to="hf")
    import_model(str(tmp_path / "out"), out=tmp_path / "again")
    assert load_tokenizer(tmp_path / "again" / "model") == tokenizer
