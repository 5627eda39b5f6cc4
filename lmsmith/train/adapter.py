"""The learned values of a run with LoRA, apart from the model: RUN/adapter.

    adapter.safetensors   A and B of each matrix, and the tables if they are learned, by our names
    adapter.json          the settings of `lora`

`RUN/model` has them merged. `lmsmith export --to peft` converts this folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lmsmith import atomic
from lmsmith.config import RunConfig, flatten
from lmsmith.models.lora import is_adapter
from lmsmith.strict_json import to_json
from lmsmith.weights_file import write_tensors

FOLDER, WEIGHTS, SETTINGS = "adapter", "adapter.safetensors", "adapter.json"
TABLES = ("token_embedding.", "value_embeddings.", "head.")


def save_adapter(run: Path, tensors: Mapping[str, Tensor], config: RunConfig) -> None:
    """Writes RUN/adapter, atomically. `tensors`: all of the run's weights. Raises StorageError."""
    tables = TABLES if config.lora.embeddings == "yes" else ()
    learned = {
        name: tensor
        for name, tensor in tensors.items()
        if is_adapter(name) or (tables and name.startswith(tables))
    }
    with atomic.folder(run / FOLDER, replace=True) as partial:
        write_tensors(partial / WEIGHTS, learned)
        content = {"format_version": 1, "lora": flatten(vars(config.lora))}
        (partial / SETTINGS).write_text(to_json(content, indent=1) + "\n", encoding="utf-8")
