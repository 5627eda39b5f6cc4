"""Saves and restores the `state_dict`s of the user's hooks in checkpoints.

The tensors of hook NAME are the group hook_NAME. The other values are in state.json under "hooks":

    {"NAME": {"class": "module:Class", "done": 40, "values": {...}}}

RUN/hooks.json lists the hooks' classes until the first checkpoint is written. JSON has no infinity
and no NaN, so such a float is written as {"__float__": "inf"}.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lmsmith import foreign_json
from lmsmith.checkpoint import Checkpoint
from lmsmith.distributed.shard import is_sharded
from lmsmith.errors import TrainingError, UsageError
from lmsmith.strict_json import to_json

_FLOAT = "__float__"


class Stateful(Protocol):
    """The part of a hook that a checkpoint needs."""

    name: str
    collective: bool

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def pack(
    hooks: Sequence[Stateful], done: Mapping[str, int], saved: Mapping[str, Mapping[str, Tensor]]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Returns groups of tensors, and values for state.json.

    `saved`: tensors that the checkpoint saves elsewhere; if a hook's tensor shares memory with one
    of them, it is copied. Raises TrainingError, which names the hook, if a state cannot be saved.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    values: dict[str, Any] = {}
    seen = {t.data_ptr() for group in saved.values() for t in group.values() if not is_sharded(t)}
    for hook in hooks:
        try:
            state = dict(hook.state_dict())
        except Exception as error:
            raise TrainingError(
                f"the hook {hook.name!r} raised {said(error)} in state_dict, so no checkpoint of "
                "this step can be written. Correct the hook and resume the run."
            ) from error
        tensors = {key: value.detach() for key, value in state.items() if torch.is_tensor(value)}
        for key, tensor in tensors.items():
            if is_sharded(tensor):
                if not hook.collective:
                    raise _cannot(hook, key, "a shard of a tensor", "`collective = True`")
            elif tensor.numel() and tensor.data_ptr() in seen:
                tensors[key] = tensor.clone()
            else:
                seen.add(tensor.data_ptr())
        if tensors:
            groups[f"hook_{hook.name}"] = tensors
        others = {str(key): value for key, value in state.items() if key not in tensors}
        plain = {key: _to_json(value, hook, key) for key, value in others.items()}
        values[hook.name] = {
            "class": _class_of(hook),
            "done": done.get(hook.name, 0),
            "values": plain,
        }
    return groups, values


def unpack(found: Checkpoint, hooks: Sequence[Stateful]) -> dict[str, int]:
    """Gives each hook its saved state; returns the last step that each hook completed."""
    saved = found.state.get("hooks", {})
    for hook in hooks:
        if hook.name not in saved:
            continue
        tensors = found.tensors.get(f"hook_{hook.name}", {})  # memory-mapped, hence the copies
        values = {key: _from_json(value) for key, value in saved[hook.name]["values"].items()}
        try:
            hook.load_state_dict(values | {key: tensor.clone() for key, tensor in tensors.items()})
        except Exception as error:
            raise TrainingError(
                f"the hook {hook.name!r} raised {said(error)} in load_state_dict, with the state "
                f"of step {found.step}. Correct the hook and resume the run."
            ) from error
    return {name: int(of["done"]) for name, of in saved.items()}


def record(folder: Path, hooks: Sequence[Stateful]) -> None:
    """Writes hooks.json: the hooks of a run without a checkpoint yet. Raises OSError."""
    if hooks:
        content = {hook.name: _class_of(hook) for hook in hooks}
        text = to_json(content, indent=1) + "\n"
        (folder / "hooks.json").write_text(text, encoding="utf-8")


def classes_in(run: Path, found: Checkpoint | None) -> dict[str, str]:
    """Returns the class of each hook of a run, from its checkpoint or from hooks.json."""
    if found is not None:
        return {name: of["class"] for name, of in found.state.get("hooks", {}).items()}
    try:
        return dict(foreign_json.read(run / "hooks.json"))
    except (OSError, ValueError):  # most runs have no hooks
        return {}


def check_complete(
    saved: Mapping[str, str], run: Path, names: Collection[str], without: Collection[str]
) -> list[str]:
    """Returns notes about hooks that a resumed run drops or adds.

    `saved`: the classes of the run's hooks; `names`: the hooks passed; `without`: the hooks to
    drop. Raises UsageError if a hook of the run is neither passed nor dropped.
    """
    if unknown := sorted(set(without) - set(saved)):
        has = f"it has {', '.join(saved)}" if saved else "it has none"
        raise UsageError(f"{run} has no hook {unknown[0]!r} to drop: {has}.")
    missing = [name for name in saved if name not in names and name not in without]
    if missing:
        classes = [saved[name].partition(":")[::2] for name in missing]
        imports = "; ".join(f"from {module} import {kind}" for module, kind in classes)
        instances = ", ".join(f"{kind}(...)" for _, kind in classes)
        options = " ".join(f"--without-hook {name}" for name in missing)
        plural = len(missing) > 1
        raise UsageError(
            f"{run} was trained with the hook{'s' * plural} {', '.join(missing)}, which "
            f"{'are' if plural else 'is'} missing. Pass {'them' if plural else 'it'} in "
            f"Python: `import lmsmith; {imports}; "
            f"lmsmith.resume({str(run)!r}, hooks=[{instances}])`. The command line cannot pass "
            f"hooks: to resume without {'them' if plural else 'it'} and drop the state, use "
            f"`lmsmith resume {shlex.quote(str(run))} {options}`."
        )
    dropped = [f"the hook {name} and its state are dropped" for name in without]
    return dropped + [f"the hook {name} is new" for name in names if name not in saved]


def said(error: BaseException) -> str:
    """Describes an exception by its class and the first line of its message."""
    message = str(error).partition("\n")[0]
    return type(error).__name__ + (f" ({message})" if message else "")


def _class_of(hook: Stateful) -> str:
    return f"{type(hook).__module__}:{type(hook).__qualname__}"


def _to_json(value: Any, hook: Stateful, key: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_to_json(item, hook, key) for item in value]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: _to_json(item, hook, key) for name, item in value.items()}
    expected = "tensors, numbers, text, or lists and dicts of them with text as keys"
    raise _cannot(hook, key, f"a {type(value).__name__}", expected)


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {_FLOAT}:
            return float(value[_FLOAT])
        return {name: _from_json(item) for name, item in value.items()}
    return value


def _cannot(hook: Stateful, key: str, found: str, expected: str) -> TrainingError:
    return TrainingError(
        f"the state_dict of the hook {hook.name!r} holds {found} under {key!r}, which a checkpoint "
        f"cannot store. Expected: {expected}."
    )
