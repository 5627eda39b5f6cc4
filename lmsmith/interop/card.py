"""The model card of an exported model: README.md, in the form of the Hugging Face Hub.

It says what the run's files record: the model, the training text, settings and scores. What they
do not record is left to fill in, above all the licence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith import __version__, foreign_json
from lmsmith.config import read_toml
from lmsmith.errors import ConfigError
from lmsmith.run_folder import summary_of

FILE_NAME = "README.md"
_SETTINGS = (
    *("preset", "optim.name", "optim.learning_rate", "optim.weight_decay", "schedule.shape"),
    *("train.batch_size", "train.dtype", "train.seed"),
)
_SCORES = {
    "val_loss": "validation loss, nats per token",
    "val_bits_per_byte": "validation loss, bits per byte",
    "best_val_loss": "best validation loss, nats per token",
    "best_val_bits_per_byte": "best validation loss, bits per byte",
}
_AMOUNTS = {"steps": "steps", "tokens_seen": "tokens seen", "n_train_tokens": "training tokens"}


@dataclass(frozen=True)
class Exported:
    """What a model card needs to know of the exported model."""

    name: str
    architecture: str
    description: str
    n_params: int
    dtype: str
    context_length: int | None
    vocab_size: int
    tokenizer: str | None
    code: str | None
    """The name of the modeling file that the folder holds, if any."""


def write(folder: Path, run: Path, model: Exported) -> None:
    """Writes README.md for the model of `run`. Raises OSError."""
    (folder / FILE_NAME).write_text(text(run, model), encoding="utf-8")


def text(run: Path, model: Exported) -> str:
    """The model card."""
    summary, settings = summary_of(run), _settings_of(run)
    parts = [
        _front_matter(),
        f"# {model.name}\n",
        f"A language model made with lmsmith {__version__}: {model.description}.\n",
        "## Model\n",
        _table(
            {
                "architecture": model.architecture,
                "parameters": f"{model.n_params:,}",
                "precision": model.dtype,
                "context length": _number(model.context_length) or "any",
                "vocabulary": f"{model.vocab_size:,} tokens",
                "tokenizer": model.tokenizer or "none",
            }
        ),
        _use(model),
        "## Training\n",
        _training(run, summary, settings),
        "## Scores\n",
        _scores(summary),
        "## Licence and limits\n",
        "Fill in: the licence of the weights (also at the top of this file), the licence of the "
        "training text, what the model is for, and what it must not be used for.\n",
    ]
    return "\n".join(parts)


def _front_matter() -> str:
    return (
        "---\n"
        "license: unknown # fill in, such as apache-2.0\n"
        "library_name: transformers\n"
        "pipeline_tag: text-generation\n"
        "tags:\n- lmsmith\n"
        "---\n"
    )


def _use(model: Exported) -> str:
    trust = ", trust_remote_code=True" if model.code else ""
    lines = [
        "## Use\n",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n",
        f'folder = "{_escaped(model.name)}"  # this folder, or its name on the Hub',
        f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})",
        f"model = AutoModelForCausalLM.from_pretrained(folder{trust})",
        'inputs = tokenizer("Once upon a time", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))",
        "```\n",
    ]
    if model.tokenizer is None:
        lines = [line for line in lines if "okenizer.from" not in line]
        lines[-3:-1] = ["model.generate(ids, max_new_tokens=40)  # ids: a tensor of token ids"]
        lines[2] = "from transformers import AutoModelForCausalLM\n"
    if model.code:
        lines.append(
            f"transformers has no class for this model: `{model.code}` in this folder computes it, "
            "and `trust_remote_code=True` lets transformers run that file.\n"
        )
    return "\n".join(lines)


def _training(run: Path, summary: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    imported = summary.get("imported")
    if isinstance(imported, dict):
        return f"Imported from `{imported.get('from')}` ({imported.get('form')}), not trained.\n"
    rows = {words: _number(summary.get(name)) for name, words in _AMOUNTS.items()}
    rows |= {name: _number(settings.get(name)) for name in _SETTINGS}
    found = _data(run, settings)
    lines = [found] if found else ["Fill in: the training text.\n"]
    return "\n".join([*lines, _table(rows)])


def _data(run: Path, settings: Mapping[str, Any]) -> str:
    """The names of the sources (without their folders), and the notes that the run recorded."""
    lines = [f"source: `{Path(str(source)).name}`" for source in settings.get("data.sources", ())]
    # A copied model folder has no tokens.
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        lines += foreign_json.read(run / "tokens" / "corpus.json").get("notes") or []
    return "".join(f"- {line}\n" for line in lines)


def _scores(summary: Mapping[str, Any]) -> str:
    rows = {
        words: f"{summary[name]:.4f}"
        for name, words in _SCORES.items()
        if isinstance(summary.get(name), float)
    }
    if not rows:
        return "Fill in: the run recorded no scores.\n"
    return _table(rows) + "\nOn the held-out part of the training text.\n"


def _settings_of(run: Path) -> dict[str, Any]:
    try:
        return dict(read_toml(run / "config.toml"))
    except (ConfigError, OSError):
        return {}


def _table(rows: Mapping[str, Any]) -> str:
    found = {name: value for name, value in rows.items() if value not in (None, "")}
    lines = [f"| {name} | {str(value).replace('|', ' ')} |" for name, value in found.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _number(value: Any) -> str | None:
    if value is None:
        return None
    return f"{value:,}" if type(value) is int else str(value)


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')
