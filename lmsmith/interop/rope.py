"""Reads the RoPE settings in a config.json of transformers 4 or 5, and writes them.

| version | base | scaling |
|---|---|---|
| 4 | `rope_theta` | `rope_scaling`, with the kind in `rope_type`, or `type` in older files |
| 5 | `rope_parameters.rope_theta`, or `rope_theta` | `rope_parameters`, or the `rope_scaling` of version 4 |

`flat` converts both to one form, used in the tables of `families/`: `rope_theta` and
`rope_scaling.NAME`. `nested`, its inverse, writes the form of version 4, which both versions read.
`rope_parameters` are interpreted like version 5 does, because version 4 does not know them. If the
two versions interpret `rope_scaling` differently, it is an error, because the file does not tell
which of them the weights were trained with.

Two frequencies for a text, depending on its length (the two lists of longrope), are an error: our
model has one.

Source: transformers 4.57 and 5.24, `modeling_rope_utils.py` and
`models/llama/configuration_llama.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.errors import ConfigError
from lmsmith.foreign_json import shown
from lmsmith.models.rotary import (
    LLAMA3_HIGH,
    LLAMA3_LOW,
    YARN_FAST,
    YARN_SLOW,
    longrope_attention_factor,
    yarn_attention_factor,
)

_ORIGINAL = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"
_SCALING = {
    "linear": ("factor",),
    "llama3": ("factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", _ORIGINAL, "beta_fast", "beta_slow", "truncate"),
    "longrope": ("factor", _ORIGINAL),
}
_USUAL = {"beta_fast": YARN_FAST, "beta_slow": YARN_SLOW, "truncate": True}

SIZES: dict[str, tuple[str, Any]] = {
    "rope_base": ("rope_theta", 10000.0),
    "rope_scaling": ("rope_scaling.rope_type", "none"),
    "rope_factor": ("rope_scaling.factor", 1.0),
    "rope_factors": ("rope_scaling.factors", ()),
    "rope_original_context": (f"rope_scaling.{_ORIGINAL}", 0),
    "rope_attention_factor": ("rope_scaling.attention_factor", 0.0),
}
"""Our settings -> theirs in the form of `flat`, as `Architecture.sizes`"""
WANTS = {
    "rope_scaling.low_freq_factor": (LLAMA3_LOW,),
    "rope_scaling.high_freq_factor": (LLAMA3_HIGH,),
    "rope_scaling.beta_fast": (YARN_FAST,),
    "rope_scaling.beta_slow": (YARN_SLOW,),
    "rope_scaling.truncate": (True,),
}
"""The values that our model can compute, in the form of `Architecture` lists them"""


def flat(found: Mapping[str, Any], path: Path, *, partial: bool = False) -> dict[str, Any]:
    """`found`, the content of `path`, with its RoPE settings in one form. `partial`: whether the
    architecture can rotate a part of each head.

    Raises ConfigError for scaling that lmsmith does not support, and for contradictory settings.
    """
    settings = {name: value for name, value in found.items() if not name.startswith("rope_")}
    where, rope = _rope_settings(found, path)
    kind = _kind(where, rope, path)
    base = _base(where, rope, found, path)
    if base is not None:
        settings["rope_theta"] = base
    for share in (rope.get(_PARTIAL), found.get(_PARTIAL)):
        if share not in (None, 1) and not partial:
            raise ConfigError(
                f"{path} has {_PARTIAL} = {shown(share)}, but this architecture rotates all "
                "dimensions of a head: expected 1.0."
            )
    if partial and rope.get(_PARTIAL) is not None:
        settings[_PARTIAL] = rope[_PARTIAL]
    if kind != "default":
        used: dict[str, Any] = {"rope_type": kind}
        used |= {
            name: _USUAL.get(name) if rope.get(name) is None else rope[name]
            for name in _SCALING[kind]
        }
        if kind == "longrope":
            used |= _longrope(where, rope, found, path)
        elif rope.get("factor") is None:
            raise ConfigError(
                f"{path} has {where} = {shown(rope)} without a factor: expected a number of at "
                "least 1."
            )
        elif _ORIGINAL in used:
            used[_ORIGINAL] = _original_context(where, rope, found, path)
        if kind == "yarn":
            used["attention_factor"] = _yarn_attention(rope, path)
        settings |= {f"rope_scaling.{name}": value for name, value in used.items()}
    return settings


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`, in the form of version 4."""
    result = {
        name: value for name, value in settings.items() if not name.startswith("rope_scaling.")
    }
    kind = settings.get("rope_scaling.rope_type", "none")
    if kind != "none":
        scaling = result["rope_scaling"] = {"rope_type": kind} | {
            name: settings[f"rope_scaling.{name}"] for name in _SCALING[kind] if name not in _USUAL
        }
        attention = settings["rope_scaling.attention_factor"]
        if kind == "longrope":
            factors = list(settings["rope_scaling.factors"])
            scaling |= {"short_factor": factors, "long_factor": factors}
            attention = attention or longrope_attention_factor(
                scaling["factor"], scaling[_ORIGINAL]
            )
        if attention:
            scaling["attention_factor"] = attention
    return result


def _rope_settings(found: Mapping[str, Any], path: Path) -> tuple[str, Mapping[str, Any]]:
    """The name and content of the object that holds the settings. Both versions prefer
    `rope_scaling` if it is not empty.
    """
    for name in ("rope_scaling", "rope_parameters"):
        value = found.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{path} has {name} = {shown(value)}: expected an object or null.")
        if value:
            inner = next((key for key, part in value.items() if isinstance(part, Mapping)), None)
            if inner is not None:
                raise ConfigError(
                    f"{path} has separate settings for {inner!r} in {name}, but lmsmith has the "
                    "same RoPE settings for all layers."
                )
            return name, value
    return "rope_parameters", {}


def _kind(where: str, rope: Mapping[str, Any], path: Path) -> str:
    """The kind of scaling, "default" for none. Raises ConfigError."""
    new, old = rope.get("rope_type"), rope.get("type")
    if new is not None and old is not None and new != old:
        raise ConfigError(
            f"{path} has rope_type = {shown(new)} and type = {shown(old)} in {where}. "
            "transformers 4 reads the second and transformers 5 the first: remove the wrong one."
        )
    kind = new if new is not None else old
    if kind is None:
        return "default"
    if kind != "default" and kind not in tuple(_SCALING):
        raise ConfigError(
            f"{path} has {where} = {shown(rope)}, which lmsmith's model cannot compute: expected a "
            f"rope_type of default, {' or '.join(_SCALING)}."
        )
    return str(kind)


def _base(where: str, rope: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> Any:
    """The base of the wavelengths; None if the file does not give it. Raises ConfigError."""
    inside, outside = rope.get("rope_theta"), found.get("rope_theta")
    if where == "rope_scaling" and inside is not None and outside is not None and inside != outside:
        raise ConfigError(
            f"{path} has rope_theta = {shown(inside)} in rope_scaling and {shown(outside)} outside "
            "it. transformers 4 reads the second and transformers 5 the first: remove the wrong "
            "one."
        )
    return outside if inside is None else inside


def _original_context(
    where: str, rope: Mapping[str, Any], found: Mapping[str, Any], path: Path
) -> Any:
    """Context length before the scaling, in tokens. If the file does not give it, the full context
    length, as in version 5. Raises ConfigError.
    """
    inside, outside = rope.get(_ORIGINAL), found.get(_ORIGINAL)
    if inside is not None and outside is not None and inside != outside:
        raise ConfigError(
            f"{path} has {_ORIGINAL} = {shown(inside)} in {where} and {shown(outside)} outside it. "
            "transformers 4 reads the first and transformers 5 the second: remove the wrong one."
        )
    if inside is not None or outside is not None:
        return outside if inside is None else inside
    return found.get("max_position_embeddings")


def _yarn_attention(rope: Mapping[str, Any], path: Path) -> float:
    """The factor of queries and keys; 0 if it is the automatic one. Raises ConfigError."""
    factor, given = _number(rope, "factor", path), _number(rope, "attention_factor", path)
    assert factor is not None
    if factor < 1:
        return 0.0  # the factor is reported later
    own, overall = _number(rope, "mscale", path), _number(rope, "mscale_all_dim", path)
    if given is None and own and overall:
        growth = yarn_attention_factor(factor) - 1
        given = (own * growth + 1) / (overall * growth + 1)
    usual = given is None or given == yarn_attention_factor(factor)
    return 0.0 if given is None or usual else given


def _longrope(
    where: str, rope: Mapping[str, Any], found: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """The settings of longrope. Raises ConfigError.

    A text of more tokens than the original context has the frequencies of `long_factor`, another
    text those of `short_factor`. Version 4 takes the original context from outside `rope_scaling`
    only, and else the full context.
    """
    short, long = (_numbers(rope, f"{length}_factor", path) for length in ("short", "long"))
    context, original = (
        found.get("max_position_embeddings"),
        _original_context(where, rope, found, path),
    )
    if type(context) is not int or type(original) is not int or min(context, original) < 2:
        raise ConfigError(
            f"{path} has max_position_embeddings = {shown(context)} and {_ORIGINAL} = "
            f"{shown(original)}: expected numbers of tokens, at least 2."
        )
    two_versions = where == "rope_scaling" and found.get(_ORIGINAL) is None and original != context
    attention = _number(rope, "attention_factor", path)
    if two_versions and (attention is None or short != long):
        raise ConfigError(
            f"{path} has {_ORIGINAL} = {original} in rope_scaling, where transformers 4 ignores it "
            "and transformers 5 reads it: move it out of rope_scaling."
        )
    if short != long and context > original:
        raise ConfigError(
            f"{path} has longrope with two sets of frequencies: short_factor for texts of up to "
            f"{original} tokens, long_factor for longer ones. lmsmith's model has one. To import "
            f"it for short texts, set max_position_embeddings to {original}; to use long_factor "
            "for all texts, as vLLM does, copy it to short_factor."
        )
    factor = _number(rope, "factor", path)
    if found.get(_ORIGINAL) is not None:
        if factor is not None and attention is None and factor != context / original:
            raise ConfigError(
                f"{path} has a longrope factor of {factor:g}, but its context of {context} is "
                f"{context / original:g} times the original one: remove the factor or correct it."
            )
        factor = context / original if factor is None else factor
    if factor is None:
        if attention is None:
            raise ConfigError(f"{path} has longrope without a factor: expected a number.")
        factor = 1.0
    factor = max(factor, 1.0)
    usual = attention is None or attention == longrope_attention_factor(factor, original)
    return {
        "factor": factor,
        "factors": short,
        _ORIGINAL: original,
        "attention_factor": 0.0 if usual else attention,
    }


def _number(rope: Mapping[str, Any], name: str, path: Path) -> float | None:
    """A number above 0, or None if it is absent. Raises ConfigError."""
    value = rope.get(name)
    if value is None:
        return None
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    if not good:
        raise ConfigError(f"{path} has {name} = {shown(value)}: expected a number above 0.")
    return float(value)


def _numbers(rope: Mapping[str, Any], name: str, path: Path) -> list[float]:
    """A list of numbers above 0. Raises ConfigError."""
    values = rope.get(name)
    if not isinstance(values, list) or not values:
        raise ConfigError(
            f"{path} has longrope with {name} = {shown(values)}: expected a list of numbers."
        )
    return [_number({name: value}, name, path) or 0.0 for value in values]
