"""Exports a run's model as a folder for other programs, with a receipt.

    --to hf      config.json, generation_config.json, model.safetensors (or its shards),
                 tokenizer.json, tokenizer_config.json, README.md (the model card); for models that
                 transformers has no class for also modeling_lmsmith_*.py
    --to llmc    model.bin
    --to onnx    model.onnx, and tokenizer.json and tokenizer_config.json
    --to peft    adapter_config.json, adapter_model.safetensors (`peft.py`), the tokenizer

Before the folder appears, lmsmith and, if it is installed, transformers load it again, and their
logits on fixed tokens are compared with the run's. `receipt.json` records the differences and the
SHA-256 of each file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lmsmith import __version__, atomic
from lmsmith.config import ModelConfig, NeuralConfig
from lmsmith.errors import CheckpointError, ConfigError, StorageError, UsageError
from lmsmith.evaluate.likelihood import inference
from lmsmith.hashes import sha256_of
from lmsmith.interop import card, custom, huggingface, llmc, onnx_model, peft, vocabulary
from lmsmith.interop.architectures import architecture_for
from lmsmith.interop.defaults import Defaults
from lmsmith.interop.defaults import load as load_defaults
from lmsmith.interop.sharding import SHARD_SIZE
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.interface import NeuralModel
from lmsmith.run_folder import load_weights, model_config, model_folder, new_run_path
from lmsmith.strict_json import write_json
from lmsmith.tokens.files import FILE_NAME, load_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer
from lmsmith.weights_file import check_finite

RECEIPT = "receipt.json"
Form = Literal["hf", "llmc", "onnx", "peft"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

_TOLERANCE = 1e-4  # relative to the largest absolute logit
_CHECKED_TOKENS = 512  # enough to include positions beyond a short original context
_TEXTS = (
    "The quick brown fox doesn't jump over 12,345 lazy dogs.",
    "  two  spaces,\ttabs\n\nlines \r\n and   an end  ",
    "naïve café, 中文字, العربية, हिन्दी",
    "😀 🇩🇪 e\u0301 \u200b\ufeff",
    "def f(x):\n    return x**2  # squared\n",
)


def export_model(
    run: Path,
    out: Path,
    *,
    to: Form,
    dtype: Precision = "auto",
    shard_size: int = SHARD_SIZE,
) -> dict[str, Any]:
    """Writes the folder `out` and returns its receipt. `dtype` "auto" keeps the weights' precision.
    `shard_size`: the most bytes of a safetensors file.

    Raises ConfigError, with reasons, for a model that the format cannot represent; CheckpointError
    if the run's model cannot be read or the exported one computes other logits; UsageError if `out`
    exists or `dtype` is unknown; StorageError if it cannot be written.
    """
    _check_precision(dtype, to)
    out = new_run_path(out, run.name)
    folder = model_folder(run)
    model, tensors, content = load_weights(folder)
    config = model_config(content["model"])
    name, code = _architecture(config, to)
    assert isinstance(model, NeuralModel)
    assert isinstance(config, NeuralConfig)
    dtype = "float32" if to == "onnx" else dtype
    if dtype != "auto":
        tensors = _converted(tensors, dtype)
        model.load_state_dict(tensors)  # the exported model is compared with the rounded weights
    precision = _single_precision(tensors)
    ids, logits = _expected(model, config)
    tokens = _Tokens.of(folder, content, to)
    about = card.Exported(
        name=out.name,
        architecture=name,
        description=config.describe(),
        n_params=model.n_parameters(),
        dtype=precision,
        context_length=model.context_length,
        vocab_size=config.vocab_size,
        tokenizer=tokens.tokenizer.kind if tokens.tokenizer else None,
        code=code,
    )
    receipt = _receipt(run, to, about)
    graph = model if to == "onnx" else None
    del model  # so that a large model is in memory at most twice, not four times
    _make_parent(out)
    # `new_run_path` made sure that a folder which exists is empty.
    with atomic.folder(out, replace=out.is_dir()) as partial:
        if to == "hf":
            _write_huggingface(partial, config, tensors, tokens, shard_size)
            card.write(partial, run, about)
        elif isinstance(graph, GPT):
            onnx_model.write(partial / onnx_model.FILE_NAME, graph)
            tokens.write(partial, config)
        else:
            assert isinstance(config, GPTConfig)
            if to == "peft":
                peft.write(partial, run, config, tensors)
                tokens.write(partial, config)
            else:
                llmc.write(partial / llmc.FILE_NAME, config, tensors)
        del tensors
        if to == "peft":
            receipt |= {"vocab_size": config.vocab_size, "checked": {}}
        else:
            receipt["checked"] = _checked(partial, ids, logits, tokens.tokenizer, to)
        receipt["sha256"] = {file.name: sha256_of(file) for file in sorted(partial.iterdir())}
        write_json(partial / RECEIPT, receipt)
    return receipt


@dataclass(frozen=True)
class _Tokens:
    """What an export says about tokens: the tokenizer, the ids that begin and end a text, and what
    an imported model had set.
    """

    tokenizer: Tokenizer | None
    begin: int | None
    ends: list[int]
    defaults: Defaults | None

    @classmethod
    def of(cls, folder: Path, content: Mapping[str, Any], to: Form) -> _Tokens:
        """Reads them from RUN/model, whose config.json has `content`."""
        has_tokenizer = to != "llmc" and (folder / FILE_NAME).is_file()
        tokenizer = load_tokenizer(folder) if has_tokenizer else None
        end_of_text = tokenizer.end_of_text if tokenizer else None
        ends = content.get("ends", [] if end_of_text is None else [end_of_text])
        return cls(tokenizer, content.get("begin"), ends, load_defaults(folder))

    def write(self, folder: Path, config: NeuralConfig) -> dict[str, int]:
        """Writes the tokenizer, if there is one; returns the ids of its named tokens."""
        if self.tokenizer is None:
            return {}
        return vocabulary.save(
            self.tokenizer,
            folder,
            context_length=None if config.recurrent else config.context_length,
            begin=self.begin,
            ends=self.ends,
            defaults=self.defaults,
        )


def _check_precision(dtype: str, to: Form) -> None:
    if dtype not in get_args(Precision):
        raise UsageError(f"dtype = {dtype!r}: expected one of {', '.join(get_args(Precision))}.")
    if to == "onnx" and dtype not in ("auto", "float32"):
        raise UsageError(f"dtype = {dtype!r}: the ONNX graph computes in float32.")


def _expected(model: NeuralModel, config: NeuralConfig) -> tuple[Tensor, Tensor]:
    """Some ids, and the run's logits for them."""
    shape = (1, min(_CHECKED_TOKENS, config.context_length))
    ids = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    with inference(model):
        return ids, model(ids)


def _receipt(run: Path, to: Form, about: card.Exported) -> dict[str, Any]:
    """The receipt's beginning: what was exported."""
    return {
        "lmsmith": __version__,
        "run": str(run),
        "to": to,
        "architecture": about.architecture,
        "dtype": about.dtype,
        "n_params": about.n_params,
        "tokenizer": about.tokenizer,
        "code": about.code,
    }


def _make_parent(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, out)) from error


def _architecture(config: ModelConfig, to: Form) -> tuple[str, str | None]:
    """The name of the exported architecture, and of the modeling file that it needs, if any. Raises
    ConfigError, with reasons, for a model that the format cannot represent.
    """
    if to == "llmc":
        llmc.check(config)
        return "GPT-2", None
    if to == "onnx":
        onnx_model.check(config)
        return "ONNX graph with a KV cache", None
    if to == "peft":
        return architecture_for(config).name, None
    code = custom.needed_for(config)
    return (code.architecture, code.file) if code else (architecture_for(config).name, None)


def _converted(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The tensors in another precision. Raises CheckpointError if a weight overflows in it."""
    converted = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    check_finite(
        converted,
        f"the model in {dtype}",
        "Some weights overflow in this precision: choose another --dtype.",
    )
    return converted


def _single_precision(tensors: Mapping[str, Tensor]) -> str:
    """The name of the tensors' common dtype. Raises ConfigError if they differ."""
    precisions = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    if len(precisions) > 1:
        raise ConfigError(
            f"the weights have several dtypes, {' and '.join(sorted(precisions))}: choose one with "
            "--dtype float32."
        )
    return precisions.pop()


def _write_huggingface(
    folder: Path,
    config: NeuralConfig,
    tensors: dict[str, Tensor],
    tokens: _Tokens,
    shard_size: int,
) -> None:
    """Writes the tokenizer, if there is one, and the model in Hugging Face's format."""
    named, defaults = tokens.write(folder, config), tokens.defaults
    every = set(range(config.vocab_size))
    special = vocabulary.special_ids(tokens.tokenizer) if tokens.tokenizer else every
    huggingface.write(
        folder,
        config,
        tensors,
        begin=_kept_id("bos", tokens.begin, defaults, special, named),
        ends=tokens.ends,
        pad=_kept_id("pad", None, defaults, special, named),
        defaults=defaults,
        shard_size=shard_size,
    )


def _kept_id(
    which: str,
    first: int | None,
    defaults: Defaults | None,
    special: Collection[int],
    named: Mapping[str, int],
) -> int | None:
    """The id of the `which` token ("bos", "pad"): `first` if given; else the imported model's, if
    it is a special token; else the tokenizer's.
    """
    if first is not None:
        return first
    imported = defaults.generation.get(f"{which}_token_id") if defaults else None
    if type(imported) is int and imported in special:
        return imported
    return named.get(f"{which}_token")


def _checked(
    folder: Path, ids: Tensor, expected: Tensor, tokenizer: Tokenizer | None, to: Form
) -> dict[str, Any]:
    """Loads the exported folder again and compares its logits on `ids` with `expected`.

    Returns the largest difference by program. Raises CheckpointError if one exceeds the tolerance.
    """

    def difference(program: str, logits: Callable[[], Tensor]) -> float:
        largest = float((logits() - expected).abs().max())
        if not largest <= _TOLERANCE * float(expected.abs().max()):
            raise CheckpointError(
                f"the exported model, read by {program}, gives logits that differ by {largest:.3g} "
                "from the run's: it is not written. Please report this, with the run's config.toml."
            )
        return largest

    def by_us() -> Tensor:
        config, tensors = (
            huggingface.read(folder) if to == "hf" else llmc.read(folder / llmc.FILE_NAME)
        )
        again = config.restore(tensors)
        assert isinstance(again, NeuralModel)
        with inference(again):
            return again(ids)

    def by_transformers() -> Tensor:
        theirs = huggingface.open_in_transformers(folder).float().eval()
        with torch.no_grad():
            return theirs(ids).logits

    def by_onnxruntime() -> Tensor:
        session, half = onnx_model.Session(folder / onnx_model.FILE_NAME), ids.size(1) // 2
        return torch.cat([session.logits(part) for part in (ids[:, :half], ids[:, half:])], dim=1)

    if to == "onnx":
        largest = difference("onnxruntime", by_onnxruntime)
        return {"onnxruntime": {"max_logit_difference": largest}}
    checked: dict[str, Any] = {"lmsmith": {"max_logit_difference": difference("lmsmith", by_us)}}
    if to == "hf":
        checked["transformers"] = None
        if importlib.util.find_spec("transformers"):
            from transformers import __version__ as version

            largest = difference("transformers", by_transformers)
            checked["transformers"] = {"version": version, "max_logit_difference": largest}
            if tokenizer is not None:
                checked["transformers"]["n_texts_with_equal_ids"] = _check_tokenizer(
                    folder, tokenizer
                )
    return checked


def _check_tokenizer(folder: Path, tokenizer: Tokenizer) -> int:
    """Compares the ids that transformers gives for some texts with ours; returns their number.
    Raises CheckpointError.
    """
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in _TEXTS:
        if (
            theirs(text, verbose=False, add_special_tokens=False)["input_ids"]
            != tokenizer.encode(text).tolist()
        ):
            raise CheckpointError(
                f"the exported tokenizer, read by transformers, gives other ids for {text!r} than "
                "the run's: the model is not written. Please report this."
            )
    return len(_TEXTS)
