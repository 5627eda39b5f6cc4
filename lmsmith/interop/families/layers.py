"""Settings of Llama-like architectures that differ between layers: sliding windows and NoPE.

Theirs are lists with an entry per layer, or rules that give one; ours are patterns of letters. The
functions that read raise ConfigError for settings that contradict each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.errors import ConfigError
from lmsmith.foreign_json import shown
from lmsmith.interop.mapping import flag, shortest
from lmsmith.models.gpt_config import GPTConfig

_LETTERS = {"sliding_attention": "S", "full_attention": "L"}


def _n_layers(found: Mapping[str, Any]) -> int:
    """The number of layers; 0 if it is not a number, which is reported later."""
    n = found.get("num_hidden_layers")
    return n if type(n) is int and n > 0 else 0


def _windows(found: Mapping[str, Any], letters: str, path: Path) -> dict[str, Any]:
    """Our settings for layers with (S) and without (L) a sliding window. Raises ConfigError."""
    if "S" not in letters:
        return {"window": 0, "window_pattern": ""}
    window = found.get("sliding_window")
    if type(window) is not int or window < 1:
        raise ConfigError(
            f"{path} has sliding_window = {shown(window)}, but its layers have sliding windows: "
            "expected a number of tokens."
        )
    return {"window": window, "window_pattern": shortest(letters, "L")}


def _typed(found: Mapping[str, Any], usual: str, path: Path) -> str:
    """One letter per layer, from `layer_types` or else `usual`. Raises ConfigError."""
    types, n = found.get("layer_types"), _n_layers(found)
    if types is None or not n:
        letters = usual
    else:
        good = isinstance(types, list) and all(kind in tuple(_LETTERS) for kind in types)
        if not good or len(types) != n:
            raise ConfigError(
                f"{path} has layer_types = {shown(types)}: expected {n} times full_attention or "
                "sliding_attention."
            )
        letters = "".join(_LETTERS[kind] for kind in types)
    if "S" in letters and not flag(found, "use_sliding_window", False, path):
        raise ConfigError(
            f"{path} has layers with sliding windows (layer_types), but use_sliding_window = "
            "false: correct one of the two."
        )
    return letters


def mistral_window(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    known = {"sliding_window": 4096} | dict(found)
    if found.get("layer_types") is not None:
        raise ConfigError(
            f"{path} has layer_types, but MistralForCausalLM has one kind of layer: use an "
            "architecture that reads them, such as Qwen3ForCausalLM."
        )
    return _windows(known, "S" if known["sliding_window"] is not None else "L", path)


def qwen_windows(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    known = {"sliding_window": 4096, "max_window_layers": 28} | dict(found)
    first = known["max_window_layers"]
    if type(first) is not int:
        raise ConfigError(
            f"{path} has max_window_layers = {shown(first)}: expected a number of layers."
        )
    slides = flag(found, "use_sliding_window", False, path) and known["sliding_window"] is not None
    usual = "".join("S" if slides and i >= first else "L" for i in range(_n_layers(found)))
    return _windows(known, _typed(found, usual, path), path)


def _written_windows(config: GPTConfig) -> dict[str, Any]:
    windows = [config.window_of(layer) for layer in range(config.n_layer)]
    return {
        "use_sliding_window": any(windows),
        "sliding_window": config.window if any(windows) else None,
        "layer_types": [f"{'sliding' if window else 'full'}_attention" for window in windows],
    }


def written_qwen_windows(config: GPTConfig) -> dict[str, Any]:
    """`max_window_layers`, for programs that do not read `layer_types`: the layers before the first
    with a window.
    """
    windows = [config.window_of(layer) > 0 for layer in range(config.n_layer)]
    first = windows.index(True) if any(windows) else config.n_layer
    return {"max_window_layers": first} | _written_windows(config)


def smollm3_layers(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The layers without RoPE, which have the sliding windows if there are any."""
    turned, every = found.get("no_rope_layers"), found.get("no_rope_layer_interval", 4)
    n = _n_layers(found)
    if turned is None:
        if type(every) is not int or every < 1:
            raise ConfigError(
                f"{path} has no_rope_layer_interval = {shown(every)}: expected a number of layers."
            )
        turned = [int((layer + 1) % every != 0) for layer in range(n)]
    good = isinstance(turned, list) and all(type(value) is int for value in turned)
    if not good or not set(turned) <= {0, 1} or len(turned) != n:
        raise ConfigError(
            f"{path} has no_rope_layers = {shown(turned)}: expected {n} times 0 (without RoPE) or "
            "1 (with RoPE)."
        )
    letters = "".join("R" if value else "N" for value in turned)
    slides = flag(found, "use_sliding_window", False, path) and found.get("sliding_window")
    usual = "".join("S" if slides and not value else "L" for value in turned)
    pattern = {"rope_pattern": shortest(letters, "R")} if letters else {}
    return pattern | _windows(found, _typed(found, usual, path), path)


def written_smollm3_layers(config: GPTConfig) -> dict[str, Any]:
    turned = [int(config.has_rope(layer)) for layer in range(config.n_layer)]
    return {"no_rope_layers": turned} | _written_windows(config)
