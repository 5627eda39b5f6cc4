"""Reads the RoPE settings in a config.json of transformers 4 or 5, and writes them.

| version | base | scaling |
|---|---|---|
| 4 | `rope_theta` | `rope_scaling`, with the kind in `rope_type`, or `type` in older files |
| 5 | `rope_parameters.rope_theta`, or `rope_theta` | `rope_parameters`, or the `rope_scaling` of version 4 |

`flat` converts both to one form, used in the tables of `architectures.py`: `rope_theta` and
`rope_scaling.NAME`. `nested`, its inverse, writes the form of version 4, which both versions read.
`rope_parameters` are interpreted like version 5 does, because version 4 does not know them. If the
two versions interpret `rope_scaling` differently, it is an error, because the file does not tell
which of them the weights were trained with.

Source: transformers 4.57 and 5.24, `modeling_rope_utils.py` and
`models/llama/configuration_llama.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.errors import ConfigError
from lmsmith.foreign_json import shown

_SCALING = {
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}
_ORIGINAL = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"


def flat(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`found`, the content of `path`, with its RoPE settings in one form.

    Raises ConfigError for scaling that lmsmith does not support, and for contradictory settings.
    """
    settings = {name: value for name, value in found.items() if not name.startswith("rope_")}
    where, rope = _rope_settings(found, path)
    kind = _kind(where, rope, path)
    base = _base(where, rope, found, path)
    if base is not None:
        settings["rope_theta"] = base
    for partial in (rope.get(_PARTIAL), found.get(_PARTIAL)):
        if partial not in (None, 1):
            raise ConfigError(
                f"{path} has {_PARTIAL} = {shown(partial)}, but lmsmith rotates all dimensions of "
                "a head: expected 1.0."
            )
    if kind != "default":
        used: dict[str, Any] = {"rope_type": kind} | {
            name: rope.get(name) for name in _SCALING[kind]
        }
        if _ORIGINAL in used:
            used[_ORIGINAL] = _original_context(where, rope, found, path)
        settings |= {f"rope_scaling.{name}": value for name, value in used.items()}
    return settings


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`, in the form of version 4."""
    result = {
        name: value for name, value in settings.items() if not name.startswith("rope_scaling.")
    }
    kind = settings.get("rope_scaling.rope_type", "none")
    if kind != "none":
        result["rope_scaling"] = {"rope_type": kind} | {
            name: settings[f"rope_scaling.{name}"] for name in _SCALING[kind]
        }
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
