"""Calls about one model: evaluate, import_model, export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from lmsmith import atomic
from lmsmith.api.generation import SpecialTokens
from lmsmith.api.lm import LM, Weights, load
from lmsmith.api.run import Folder, Run, paths
from lmsmith.api.tasks import (
    TaskOptions,
    TaskResults,
    check_places,
    check_together,
    run_harness,
)
from lmsmith.api.tasks import run as run_tasks
from lmsmith.errors import UsageError
from lmsmith.strict_json import to_json

if TYPE_CHECKING:
    from lmsmith.evaluate.likelihood import Score


@overload
def evaluate(model: LM | Folder, *, tasks: str | Sequence[str], **options: Any) -> TaskResults: ...
@overload
def evaluate(
    model: LM | Folder, *, harness: str | Sequence[str], **options: Any
) -> TaskResults: ...
@overload
def evaluate(model: LM | Folder, **options: Any) -> Score: ...
def evaluate(  # type: ignore[misc] # `**options` stands for the arguments below
    model: LM | Folder,
    *,
    text: Folder | Sequence[Folder] | None = None,
    chats: Folder | Sequence[Folder] | None = None,
    tasks: str | Sequence[str] | None = None,
    harness: str | Sequence[str] | None = None,
    limit: int | None = None,
    shots: int = 0,
    task_data: Folder | None = None,
    per_item: Folder | None = None,
    per_document: Folder | None = None,
    stride: int | None = None,
    bos: bool = True,
    weights: Weights = "fp32",
    text_field: str = "text",
    encoding: str = "auto",
    errors: Literal["strict", "replace"] = "strict",
    document_separator: str = "auto",
    special_tokens: SpecialTokens = "text",
) -> Score | TaskResults:
    """Evaluates a model on text files, or runs benchmark tasks on it.

        lmsmith.evaluate("runs/a-1").bits_per_byte
        lmsmith.evaluate("runs/a-1", tasks=["hellaswag"], limit=500)["hellaswag"].metrics["acc"]

    model   a run, its folder, or an `LM`
    text    files, folders or globs (default: the run's validation text)
    chats   conversations instead of a text: the loss on the assistant's tokens, under the model's
            chat template
    stride  start a window every N tokens (default: the context length); below the context length
            windows overlap, so each token has more context
    per_document  a .jsonl file to write, with the score of each document; nats, tokens and bytes
            add up to those of the text
    weights "bf16" or "int8": score with the matrices in this format (`load`); for a folder
    tasks   names of benchmark tasks, as a list or separated by commas
    harness names of tasks that lm-evaluation-harness runs (extra `eval`); `task_data` is then a
            folder of its .yaml files
    limit   only the first N items of each task
    shots   few-shot examples in front of each item, drawn with a fixed seed
    task_data     the folder of the tasks' items (default: downloaded)
    per_item      a .jsonl file to write, with log-likelihoods and grades of each item
    bos     add a beginning-of-text token, as in training
    text_field, encoding, errors, document_separator, special_tokens
            how the files are read: the settings `data.*`

    Raises DataError for files that cannot be read, ConfigError for an unknown task, UsageError for
    a run without validation text and for arguments that do not go together, and the errors of
    `load`.
    """
    if tasks is not None and harness is not None:
        raise UsageError("tasks and harness do not go together: pass one of them.")
    asked = harness if tasks is None else tasks
    on_tasks = TaskOptions(limit=limit, shots=shots, task_data=task_data, per_item=per_item)
    check_together(asked, text, on_tasks, bos=bos, stride=stride, per_document=per_document)
    if chats is not None:
        others = {"text": text, "tasks": tasks, "harness": harness, "stride": stride,
                  "per_document": per_document, "bos": None if bos else False,
                  "weights": None if weights == "fp32" else weights}  # fmt: skip
        if given := [name for name, value in others.items() if value is not None]:
            raise UsageError(f"chats and {given[0]} do not go together: pass one of them.")
    check_places(per_item, per_document)
    if isinstance(model, LM) and weights != "fp32":
        raise UsageError(
            f"weights = {weights!r} applies when a model is loaded: pass the run's folder, or "
            f"lmsmith.load(run, weights={weights!r}) without this argument."
        )
    lm = model if isinstance(model, LM) else load(model, weights=weights)
    if chats is not None:
        return _score_chats(lm, chats)
    if asked is not None:
        runner = run_harness if tasks is None else run_tasks
        return runner(lm, asked, on_tasks, bos=bos)
    reading: dict[str, Any] = {
        "text_field": text_field,
        "encoding": encoding,
        "errors": errors,
        "document_separator": document_separator,
        "special_tokens": special_tokens,
        "bos": bos,
    }
    return _score_text(lm, text, per_document, stride=stride, **reading)


def _score_chats(lm: LM, chats: Folder | Sequence[Folder]) -> Score:
    from lmsmith.chat.held_out import score_conversations
    from lmsmith.chat.prepare import own_speaker

    return score_conversations(lm.model, own_speaker(lm.path), paths(chats))


def _score_text(
    lm: LM,
    text: Folder | Sequence[Folder] | None,
    per_document: Folder | None,
    *,
    stride: int | None,
    **reading: Any,
) -> Score:
    """Scores files, or the run's validation text, and writes the score of each document if
    `per_document` is a file.
    """
    from lmsmith.evaluate.per_document import score_each_document
    from lmsmith.evaluate.texts import score_texts
    from lmsmith.run_folder import score_validation

    if text is None:
        return score_validation(lm.path, lm.model, stride=stride)
    options = reading | {"boundaries": lm.boundaries, "begin": lm.writer.begin, "stride": stride}
    if per_document is None:
        return score_texts(lm.model, lm.tokenizer, paths(text), **options)
    score, lines = score_each_document(lm.model, lm.tokenizer, paths(text), **options)
    atomic.write(Path(per_document), "".join(to_json(line) + "\n" for line in lines))
    return score


def import_model(
    source: Folder,
    *,
    out: Folder | None = None,
    tokenizer: Folder | None = None,
    eos_token: str | None = None,
) -> Run:
    """Converts a Hugging Face, GGUF, llm.c or nanoGPT model to a run.

    source     a Hugging Face model folder, a GGUF, llm.c or nanoGPT file, or a name on the Hub
    out        the run's new folder (default: runs/NAME-1)
    tokenizer  tokenizer to use (default: the one in `source`); "none": import the weights only
    eos_token  the end-of-text token, which separates documents (default: from the model's files)

    Raises UsageError, ConfigError, CheckpointError, TokenizerError or StorageError, and writes
    nothing then.
    """
    from lmsmith.interop.importing import import_model as convert

    folder, _ = convert(
        os.fspath(source),
        out=None if out is None else Path(out),
        tokenizer=None if tokenizer is None else os.fspath(tokenizer),
        eos_token=eos_token,
    )
    return Run(folder)


@dataclass(frozen=True)
class Exported:
    """An exported model: its folder, and a receipt of the checks that it passed."""

    path: Path
    receipt: dict[str, Any]
    """The content of receipt.json: architecture, n_params, dtype, checked, sha256."""

    def __fspath__(self) -> str:
        return os.fspath(self.path)


def export(
    run: Folder,
    *,
    to: Literal["hf", "gguf", "llmc", "onnx", "peft"],
    out: Folder | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    shard_size: int | str | None = None,
    type: Literal["auto", "f32", "f16", "bf16", "q8_0"] = "auto",
) -> Exported:
    """Exports a run's model for other programs, loads the result and compares its logits.

    to          "hf" for transformers, "gguf" for llama.cpp, "llmc" for llm.c, "onnx" for
                onnxruntime, "peft" for the adapters of a run with LoRA
    out         the new folder (default: RUN-hf and so on, next to the run)
    dtype       precision of the exported weights; auto: as in the run
    shard_size  with "hf": the most bytes of a weights file, such as "2GB" (default: 5GB)
    type        with "gguf": type of the weights; auto: as in the run

    Raises ConfigError if the other program has no such architecture, CheckpointError if the
    exported model gives other logits, UsageError for a wrong argument, StorageError if `out` cannot
    be written.
    """
    from lmsmith.interop.exporting import export_model
    from lmsmith.interop.sharding import SHARD_SIZE, bytes_of

    if to not in ("hf", "gguf", "llmc", "onnx", "peft"):
        raise UsageError(f"to = {to!r}: expected 'hf', 'gguf', 'llmc', 'onnx' or 'peft'.")
    if to == "gguf" and dtype != "auto":
        raise UsageError(f"dtype = {dtype!r} is not for to = 'gguf': pass type instead.")
    if to != "gguf" and type != "auto":
        raise UsageError(f"type = {type!r} is for to = 'gguf': with {to!r}, pass dtype.")
    folder = Path(os.path.abspath(run))
    target = folder.with_name(f"{folder.name}-{to}") if out is None else Path(out)
    if shard_size is not None and to != "hf":
        raise UsageError(f"shard_size = {shard_size!r} needs to = 'hf': {to} writes one file.")
    if to == "gguf":
        from lmsmith.interop.gguf_exporting import export_gguf

        return Exported(target, export_gguf(Path(run), target, type=type))
    size = SHARD_SIZE if shard_size is None else bytes_of(shard_size)
    return Exported(target, export_model(Path(run), target, to=to, dtype=dtype, shard_size=size))
