"""Rotary settings of a config.json of transformers, in the forms of its versions 4 and 5.

| version | base | scaling |
|---|---|---|
| 4 | `rope_theta` | `rope_scaling`, with the kind in `rope_type`, or `type` in older files |
| 5 | `rope_parameters.rope_theta`, or `rope_theta` | `rope_parameters`, or the `rope_scaling` of version 4 |

`flat` gives one form, which the tables of `architectures.py` name: `rope_theta` and
`rope_scaling.NAME`. `nested` is its inverse: it writes the form of version 4, which both versions
read. Version 4 does not know `rope_parameters`, so version 5's reading of them holds. Where
`rope_scaling` means one thing to version 4 and another to version 5, it is refused: there is no
telling which of the two its weights were trained with.

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
    """`found`, the content of `path`, with its rotary settings in one form.

    Raises ConfigError for a kind of scaling that lmsmith does not compute, and for settings that
    contradict each other.
    """
    settings = {name: value for name, value in found.items() if not name.startswith("rope_")}
    where, said = _said(found, path)
    kind = _kind(where, said, path)
    base = _base(where, said, found, path)
    if base is not None:
        settings["rope_theta"] = base
    for partial in (said.get(_PARTIAL), found.get(_PARTIAL)):
        if partial not in (None, 1):
            raise ConfigError(
                f"{path} has {_PARTIAL} = {shown(partial)}, and lmsmith turns all of a head: "
                f"expected 1.0."
            )
    if kind != "default":
        used: dict[str, Any] = {"rope_type": kind} | {
            name: said.get(name) for name in _SCALING[kind]
        }
        if _ORIGINAL in used:
            used[_ORIGINAL] = _original_context(where, said, found, path)
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


def _said(found: Mapping[str, Any], path: Path) -> tuple[str, Mapping[str, Any]]:
    """The object that holds the settings, and its name. Both versions prefer `rope_scaling`
    where it is not empty.
    """
    for name in ("rope_scaling", "rope_parameters"):
        value = found.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{path} has {name} = {shown(value)}: expected an object or null.")
        if value:
            inner = next((key for key, part in value.items() if isinstance(part, Mapping)), None)
            if inner is not None:
                raise ConfigError(
                    f"{path} has settings of its own for {inner!r} in {name}: lmsmith has one for "
                    f"all."
                )
            return name, value
    return "rope_parameters", {}


def _kind(where: str, said: Mapping[str, Any], path: Path) -> str:
    new, old = said.get("rope_type"), said.get("type")
    if new is not None and old is not None and new != old:
        raise ConfigError(
            f"{path} has rope_type = {shown(new)} and type = {shown(old)} in {where}. "
            f"transformers 4 reads the second "
            "and transformers 5 the first: remove the wrong one."
        )
    kind = new if new is not None else old
    if kind is None:
        return "default"
    if kind != "default" and kind not in tuple(_SCALING):
        raise ConfigError(
            f"{path} has {where} = {shown(said)}, which lmsmith's model cannot compute: expected "
            f"a rope_type of "
            f"default, {' or '.join(_SCALING)}."
        )
    return str(kind)


def _base(where: str, said: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> Any:
    """The base of the wavelengths, or None where the file does not say it."""
    inside, beside = said.get("rope_theta"), found.get("rope_theta")
    if where == "rope_scaling" and inside is not None and beside is not None and inside != beside:
        raise ConfigError(
            f"{path} has rope_theta = {shown(inside)} in rope_scaling and {shown(beside)} beside "
            f"it. transformers 4 "
            "reads the second and transformers 5 the first: remove the wrong one."
        )
    return beside if inside is None else inside


def _original_context(
    where: str, said: Mapping[str, Any], found: Mapping[str, Any], path: Path
) -> Any:
    """Tokens of context before the scaling. Version 5 takes the whole context where the file
    does not say it.
    """
    inside, beside = said.get(_ORIGINAL), found.get(_ORIGINAL)
    if inside is not None and beside is not None and inside != beside:
        raise ConfigError(
            f"{path} has {_ORIGINAL} = {shown(inside)} in {where} and {shown(beside)} beside it. "
            f"transformers 4 reads "
            "the first and transformers 5 the second: remove the wrong one."
        )
    if inside is not None or beside is not None:
        return beside if inside is None else inside
    return found.get("max_position_embeddings")
