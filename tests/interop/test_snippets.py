"""The usual lines of transformers' documentation, on an exported model."""

import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from other_versions import python_with
from random_models import random_model, saved, transformers
from tokenizers import AddedToken
from tokenizers import Tokenizer as TheirTokenizer
from usual_lines import TEXT, usual_lines

from lmsmith.checkpoint import save_model
from lmsmith.config import flatten
from lmsmith.config.presets import preset
from lmsmith.errors import CheckpointError, TokenizerError
from lmsmith.interop.exporting import export_model
from lmsmith.interop.importing import import_model
from lmsmith.interop.vocabulary import save
from lmsmith.models.gpt import GPT
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

OF_THE_WRITER = ("transformers_version", "_from_model_config")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


def exported(folder: Path, kind: str, tokenizer: Tokenizer) -> Path:
    """An exported model with random weights."""
    sizes = {
        "n_layer": 1,
        "n_head": 2,
        "d_model": 16,
        "vocab_size": tokenizer.vocab_size,
        "context_length": 64,
    }
    config = preset(kind).changed({f"model.{k}": v for k, v in sizes.items()}, where="here").model
    model = GPT(config)
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        p.data.normal_(
            1.0 if p.dim() == 1 and name.endswith("weight") else 0.0, 0.3, generator=generator
        )
    (folder / "run").mkdir()
    save_model(
        folder / "run" / "model",
        dict(model.named_parameters()),
        {"model": flatten(vars(config)), "step": 7},
    )
    save_tokenizer(tokenizer, folder / "run" / "model")
    export_model(folder / "run", folder / "out", to="hf")
    return folder / "out"


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """The warnings of transformers."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    yield said
    logging.getLogger("transformers").removeHandler(handler)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_usual_lines(kind: str, tmp_path: Path, warnings: list[str]) -> None:
    found = usual_lines(exported(tmp_path, kind, ByteTokenizer(True)), tmp_path / "again")
    n = len(TEXT)
    assert found["alone"][:n] == list(TEXT.encode())
    assert found["mask"] == [[1] * n, [0] * (n - 1) + [1]]
    assert found["batch"][0] == found["alone"] == found["reopened"]
    assert found["batch"][1][n - 1 :] == found["short"]
    assert found["piped"] == found["decoded"]
    of_the_pipeline = ("Device set to", "The following generation flags")
    assert [said for said in warnings if not said.startswith(of_the_pipeline)] == []

    run, _ = import_model(str(tmp_path / "again"), out=tmp_path / "run again")
    assert export_model(run, tmp_path / "third", to="hf")["checked"]["transformers"][
        "n_texts_with_equal_ids"
    ]


def test_a_tokenizer_without_special_tokens(tmp_path: Path) -> None:
    found = usual_lines(
        exported(tmp_path, "llama", CharTokenizer.learn([TEXT, "A"], False)), tmp_path / "again"
    )
    assert found["piped"] == found["decoded"]
    assert len(found["alone"]) == len(TEXT) + 8
    assert found["alone"] == found["reopened"]


@pytest.mark.slow
def test_the_usual_lines_in_version_5(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python = python_with("transformers 5", request)
    folders = []
    for kind in ("gpt2", "llama"):
        (tmp_path / kind).mkdir()
        folders.append(exported(tmp_path / kind, kind, ByteTokenizer(True)))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1"
    }
    words = [word for out in folders for word in (out, out.with_name("new"))]
    script = Path(__file__).with_name("usual_lines.py")
    ran = subprocess.run([python, script, *words], check=True, env=env, stdout=subprocess.PIPE)
    found = json.loads(ran.stdout)
    for out in folders:
        assert found[str(out)] == usual_lines(out, out.with_name("again"))
        run, _ = import_model(str(out.with_name("new")), out=out.with_name("run-5"))
        receipt = export_model(run, out.with_name("third"), to="hf")
        assert receipt["checked"]["transformers"]["n_texts_with_equal_ids"]


# ---- what an imported model said -----------------------------------------------------------------


def chat_model(folder: Path) -> Path:
    """Like a published instruction-tuned model: tokens that begin, end and pad texts, a chat
    template, sampling defaults.
    """
    theirs = random_model(
        "llama", vocab_size=261, bos_token_id=257, eos_token_id=258, pad_token_id=259
    )
    theirs.generation_config.update(
        do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=[258, 256]
    )
    saved(theirs, folder)
    save(ByteTokenizer(True), folder, context_length=224)
    tokenizer = TheirTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(
        [AddedToken(text) for text in ("<|im_start|>", "<|im_end|>", "<|pad|>", "<tool>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False},
        "pad_token": "<|pad|>",
        "additional_special_tokens": ["<tool>"],
        "padding_side": "left",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def habits(folder: Path) -> dict[str, Any]:
    """What transformers loads from it, besides the weights."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    names = (
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
        "additional_special_tokens",
        "padding_side",
    )
    generation = model.generation_config.to_diff_dict()
    talk = [{"role": "user", "content": "Hello"}]
    return {
        "tokenizer": {name: getattr(tokenizer, name) for name in names},
        "generation": {
            name: value for name, value in generation.items() if name not in OF_THE_WRITER
        },
        "config": (model.config.bos_token_id, model.config.pad_token_id),
        "chat": tokenizer.chat_template,
        "ids": tokenizer.apply_chat_template(talk, tokenize=True)
        if tokenizer.chat_template
        else None,
    }


def through_a_run(folder: Path) -> Path:
    run, _ = import_model(str(folder), out=folder.with_name("run"))
    export_model(run, folder.with_name("back"), to="hf")
    return folder.with_name("back")


def test_a_chat_models_defaults_survive(tmp_path: Path) -> None:
    before = habits(chat_model(tmp_path / "theirs"))
    assert before["generation"]["temperature"] == 0.6  # which shows that there is something to lose
    assert before["ids"][0] == 257
    assert habits(through_a_run(tmp_path / "theirs")) == before


def test_template_files_take_precedence_over_the_config(tmp_path: Path) -> None:
    folder = chat_model(tmp_path / "theirs")
    (folder / "chat_template.jinja").write_text(TEMPLATE + "!")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    before = habits(folder)
    assert before["chat"] == {"default": TEMPLATE + "!", "tool_use": "tools"}
    assert habits(through_a_run(folder)) == before


def test_names_in_special_tokens_map_count(tmp_path: Path) -> None:
    """Older models have them in special_tokens_map.json; a name without a token is skipped with a
    warning.
    """
    folder = chat_model(tmp_path / "theirs")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    moved = {name: config.pop(name) for name in ("bos_token", "pad_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(moved | {"unk_token": "<nobody>"}))
    found = habits(through_a_run(folder))["tokenizer"]
    assert (found["bos_token"], found["pad_token"], found["unk_token"]) == (
        "<|im_start|>",
        "<|pad|>",
        None,
    )


@pytest.mark.parametrize(
    "name", ["special_tokens_map.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000])
def test_errors_name_damaged_files(name: str, content: str, tmp_path: Path) -> None:
    folder = chat_model(tmp_path / "theirs")
    (folder / name).write_text(content)
    with pytest.raises((CheckpointError, TokenizerError), match=name):
        import_model(str(folder), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
