"""Sampling defaults, special tokens and chat templates of a Hugging Face folder.

| what | read from |
|---|---|
| sampling defaults; ids that begin, end and pad a text | generation_config.json, config.json |
| names of special tokens, padding side | tokenizer_config.json, special_tokens_map.json |
| chat templates | chat_template.jinja and additional_chat_templates/, or tokenizer_config.json |

`import` saves them in RUN/model/huggingface.json, fine-tuning copies them, and `export` writes them
again. lmsmith itself does not use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmsmith import foreign_json
from lmsmith.errors import CheckpointError
from lmsmith.strict_json import write_json

FILE_NAME = "huggingface.json"
FORMAT_VERSION = 1

TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_OTHER = ("padding_side", "truncation_side", "clean_up_tokenization_spaces")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SAMPLING = (
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"),
    *("no_repeat_ngram_size", "num_beams", "max_length", "max_new_tokens", "min_length"),
)
_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class Defaults:
    """`pads_in_config`: config.json also holds the padding id, which makes transformers exclude its
    embedding row from training.
    """

    generation: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    chat_templates: dict[str, str] = field(default_factory=dict)
    pads_in_config: bool = False

    def save(self, folder: Path) -> None:
        """Writes huggingface.json to a run's model folder. Raises StorageError."""
        content = {"format_version": FORMAT_VERSION} | asdict(self)
        write_json(folder / FILE_NAME, content, ensure_ascii=False)


def load(folder: Path) -> Defaults | None:
    """Reads what `save` wrote; None for a model that was not imported. Raises CheckpointError."""
    path = folder / FILE_NAME
    try:
        content = dict(foreign_json.read(path))
        if content.pop("format_version") != FORMAT_VERSION:
            raise CheckpointError(f"{path} was written by a newer lmsmith: upgrade lmsmith.")
        return Defaults(**content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): import the model again, or remove the file."
        ) from error


def find(folder: Path, tokenizer_folder: Path | None) -> Defaults:
    """Reads the defaults of a Hugging Face folder. `tokenizer_folder`: the folder of its tokenizer,
    if there is one. Raises CheckpointError for files that cannot be read.
    """
    settings = _read(folder / "config.json")
    generation = _read(folder / "generation_config.json") or {
        name: settings[name] for name in _SAMPLING if settings.get(name) is not None
    }
    generation = {
        name: value for name, value in generation.items() if name[0] != "_" and value is not None
    }
    generation.pop("transformers_version", None)
    ids = {name: settings[name] for name in _IDS if settings.get(name) is not None}
    return Defaults(
        generation=ids | generation,
        tokenizer=_tokenizer(tokenizer_folder) if tokenizer_folder else {},
        chat_templates=_chat_templates(tokenizer_folder) if tokenizer_folder else {},
        pads_in_config="pad_token_id" in ids,
    )


def _tokenizer(folder: Path) -> dict[str, Any]:
    """Special tokens by name, and the settings in `_OTHER`."""
    content = _read(folder / "special_tokens_map.json") | _read(folder / "tokenizer_config.json")
    settings: dict[str, Any] = {
        name: text for name in TOKENS if (text := _content(content.get(name))) is not None
    }
    more = content.get("additional_special_tokens")
    texts = [_content(token) for token in more] if isinstance(more, list) else []
    if any(texts):
        settings["additional_special_tokens"] = [text for text in texts if text]
    others = {name: content[name] for name in _OTHER if isinstance(content.get(name), str | bool)}
    return settings | others


def _content(token: Any) -> str | None:
    """The text of a token, given as a string or as an object with flags."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _chat_templates(folder: Path) -> dict[str, str]:
    """Chat templates by name; "default" is the default one. Template files take precedence over
    tokenizer_config.json.
    """
    paths = {path.stem: path for path in sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))}
    if (folder / _TEMPLATE).is_file():
        paths["default"] = folder / _TEMPLATE
    if paths:
        try:
            return {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"the chat templates in {folder} cannot be read: {error}."
            ) from error
    value = _read(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    named = [part for part in value if isinstance(part, Mapping)] if isinstance(value, list) else []
    texts = {str(part.get("name")): part.get("template") for part in named}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _read(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no such file. Raises CheckpointError."""
    try:
        content = foreign_json.read(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Copy it again, or remove it."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected an object: copy it again."
        )
    return content
