"""Trains GPT-2 with the NumPy gradients and AdamW of `lmsmith.reference` (`--engine reference`).

This engine replaces only PyTorch's autograd and optimizer. The PyTorch model stays, and its
parameters and gradients share memory with the NumPy arrays (`torch.from_numpy`). So evaluation,
samples, clipping, schedule, checkpoints and run folder work as for every other model.

AdamW's moments are saved under PyTorch's names. Limits: no dropout, only float32 and float64, one
process. Matrix products use the threads of NumPy's BLAS (OPENBLAS_NUM_THREADS).
"""

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.errors import ConfigError
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.reference.blocks import Sizes, activation_shapes, by_layer, n_numbers
from lmsmith.reference.gpt2 import GPT2
from lmsmith.reference.layers import EPS

# Settings that may have any value in GPT-2, or that have no effect on it.
_FREE = {
    "size",
    "n_layer",
    "n_head",
    "d_model",
    "vocab_size",
    "vocab_multiple",
    "context_length",
    "init",
    "base_width",
}
_FREE |= {"ngram_table_size", "rope_base"}
_DROPOUTS = ("dropout", "attention_dropout")
_NAMED = 3  # maximum number of differences in an error


class ReferenceEngine(nn.Module):
    """The summed loss of a batch, with the interface of `SummedLoss`, and the optimizer.

    The parameters and gradients of `model` share memory with the NumPy arrays from now on.
    """

    def __init__(self, model: GPT, config: RunConfig) -> None:
        super().__init__()
        self.optim = config.optim
        dtype = np.float64 if config.train.dtype == "float64" else np.float32
        self.gpt2 = GPT2(sizes_of(GPTConfig.of(config.model)), dtype, threads=config.train.threads)
        params, grads = by_layer(self.gpt2.params), by_layer(self.gpt2.grads)
        named = dict(model.named_parameters())
        assert named.keys() == params.keys(), named.keys() ^ params.keys()
        for name, p in named.items():
            params[name][...] = p.detach().numpy()
            p.data = torch.from_numpy(params[name])
            p.grad = torch.from_numpy(grads[name])
        self._tracked = torch.zeros((), requires_grad=True)  # makes autograd call _Loss.backward

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross-entropy over the counted targets, in nats; shape ()."""
        return _Loss.apply(self._tracked, self.gpt2, inputs.numpy(), targets.numpy())

    def step(self, share: float) -> None:
        """Makes an AdamW step at `share` of the peak learning rates and clears the gradients."""
        optim = self.optim
        tables = optim.embedding_learning_rate or optim.learning_rate
        peaks = {
            name: tables if name in ("wte", "wpe") else optim.learning_rate
            for name in self.gpt2.params
        }
        rates = {name: share * peak for name, peak in peaks.items()}
        self.gpt2.update(rates, optim.beta1, optim.beta2, optim.eps, optim.weight_decay)
        self.clear()

    def clear(self) -> None:
        """Sets the gradients to zero."""
        self.gpt2.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """AdamW's state, under the names of `Optimizers.state`."""
        means = {"exp_avg": self.gpt2.m, "exp_avg_sq": self.gpt2.v}
        found = {
            f"{key}/{name}": torch.from_numpy(array)
            for key, tensors in means.items()
            for name, array in by_layer(tensors).items()
        }
        n_updates = torch.tensor(float(self.gpt2.n_updates))
        return found | {f"step/{name}": n_updates.clone() for name in by_layer(self.gpt2.m)}

    def load_state(self, tensors: Mapping[str, Tensor], sharded: object = None) -> None:
        """Copies the tensors of `state` back. `sharded` is ignored."""
        for name, mine in self.state().items():
            if name.startswith("step/"):
                self.gpt2.n_updates = int(tensors[name])
            else:
                mine.copy_(tensors[name])


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tracked: Tensor, gpt2: GPT2, inputs: np.ndarray, targets: np.ndarray
    ) -> Tensor:
        ctx.gpt2 = gpt2
        return torch.tensor(gpt2.forward(inputs, targets) * gpt2.n_targets, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[None, ...]:
        ctx.gpt2.backward(float(slope))
        return None, None, None, None


def for_reference(config: RunConfig, given: Collection[str]) -> tuple[RunConfig, list[str]]:
    """Adapts a config to the reference engine; returns it with notes about the changes.

    `given`: settings that the user set. Raises ConfigError if one of them is not available here.
    """
    model, train = config.model, config.train
    if not isinstance(model, GPTConfig):
        raise ConfigError(
            f"the reference engine computes only GPT-2, and model.kind is {model.kind}. Add "
            f"--preset gpt2 or --preset babygpt, or use --engine torch."
        )
    changed: dict[str, Any] = {}
    notes: list[str] = []
    for name in _DROPOUTS:
        if getattr(model, name) and f"model.{name}" in given:
            raise ConfigError(
                f"model.{name} = {getattr(model, name):g}, but the reference engine has no "
                f"dropout. Set it to 0, or use --engine torch."
            )
        changed |= {f"model.{name}": 0.0} if getattr(model, name) else {}
    if changed:
        names = " and ".join(changed)
        notes.append(
            f"the reference engine has no dropout: {names} of preset {config.preset} set to 0"
        )
    if differences := _differences(model):
        more = f" and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
        raise ConfigError(
            f"the reference engine computes only GPT-2, and GPT-2 does not have "
            f"{', '.join(differences[:_NAMED])}{more}. Add "
            "--preset gpt2 or --preset babygpt, or use --engine torch."
        )
    refused: list[tuple[str, Any, Any, str]] = [
        ("optim.name", config.optim.name, ("adamw",), "adamw"),
        ("data.documents", config.data.documents, ("stream", "rows"), "stream or rows"),
        ("train.device", train.device, ("auto", "cpu"), "cpu"),
        ("train.dtype", train.dtype, ("auto", "float32", "float64"), "float32 or float64"),
        ("train.compile", train.compile, ("auto", "no"), "no"),
        ("train.activation_checkpointing", train.activation_checkpointing, (False,), "false"),
    ]
    for name, value, allowed, expected in refused:
        if value not in allowed:
            raise ConfigError(
                f"{name} = {value} is not available with --engine reference: expected {expected}."
            )
    changed["train.device"] = "cpu"
    changed["train.compile"] = "no"
    if train.dtype == "auto":
        changed["train.dtype"] = "float32"
    return config.changed(changed, where="the reference engine"), notes


def check_memory(config: RunConfig) -> None:
    """Raises ConfigError if the activations, all of which are stored, exceed physical memory."""
    batch_size, T = config.train.batch_size, config.model.context_length
    rows = min(config.train.micro_batch_size or batch_size, batch_size)
    sizes = sizes_of(GPTConfig.of(config.model))
    size = 8 if config.train.dtype == "float64" else 4
    needed = size * (n_numbers(activation_shapes(sizes, rows, T)) + 8 * sizes.n_params)
    available = _physical_memory()
    if needed > available:
        raise ConfigError(
            f"the reference engine stores all activations: {rows} x {T} tokens of this model "
            f"need {needed / 2**30:.1f} GB, and this machine has {available / 2**30:.1f} GB. Set a "
            "smaller --train.micro_batch_size (the batch size stays the same) or a smaller "
            "--model.context_length."
        )


def sizes_of(config: GPTConfig) -> Sizes:
    return Sizes(
        n_layer=config.n_layer,
        n_head=config.n_head,
        d_model=config.d_model,
        vocab_size=config.vocab_size,
        padded_vocab_size=config.padded_vocab_size,
        context_length=config.context_length,
    )


def _differences(config: GPTConfig) -> list[str]:
    """Lists the settings in which the config differs from GPT-2."""
    wanted = preset("gpt2").model
    same: dict[str, tuple[Any, ...]] = {
        "d_ff": (0, 4 * config.d_model),
        "n_kv_head": (0, config.n_head),
        "norm_eps": (EPS,),
    }
    same |= {"d_head": (0, config.d_model / config.n_head), "attention_bias": ("auto", "all")}
    return [
        f"model.{field.name} = {getattr(config, field.name)}"
        for field in dataclasses.fields(GPTConfig)
        if field.name not in _FREE | set(_DROPOUTS)
        and getattr(config, field.name) not in same.get(field.name, (getattr(wanted, field.name),))
    ]


def _physical_memory() -> float:
    """Physical memory in bytes; infinite if the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not available on Windows
        return float("inf")
