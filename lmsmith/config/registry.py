"""Names that other people can add to: model kinds, optimizers, schedules, presets, corpora, tasks.

    OPTIMIZERS: Registry[OptimizerFactory] = Registry("optimizer", "lmsmith.optimizers", {...})
    OPTIMIZERS.register("lion", lion)        # from Python
    OPTIMIZERS.get("lion")

A name is looked up in three places: what lmsmith has built in, what was registered from Python, and
the entry points of installed packages (group `lmsmith.optimizers` and so on). `LMSMITH_EXTENSIONS`
names modules or .py files, separated by commas, that are imported before a name counts as unknown:
with it a single file extends the command line.

Built-in values may be given as "module:attribute". They are imported when they are first used, so a
registry that lies low in the layering can name what lies above it, and `lmsmith --help` stays fast.
"""

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lmsmith.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

EXTENSIONS = "LMSMITH_EXTENSIONS"

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to things of one type."""

    def __init__(self, what: str, group: str, built_in: Mapping[str, T | str]) -> None:
        """`what` names one entry in messages ("optimizer"); `group` is the entry-point group."""
        self.what, self.group = what, group
        self._built_in = frozenset(built_in)
        self.known: dict[str, T | str] = dict(built_in)
        """What is registered so far; a "module:attribute" is imported by `get`."""

    def register(self, name: str, value: T) -> T:
        """Adds a name and returns the value. Raises ConfigError if the name is taken.

        The same class or function may be registered again, as a notebook does when a cell is run
        twice: the newer one counts.
        """
        if name in self._built_in or (
            name in self.known and _origin(self.known[name]) != _origin(value)
        ):
            raise ConfigError(
                f"the {self.what} {name!r} is already registered"
                f"{' by lmsmith itself' if name in self._built_in else ''}: choose another name."
            )
        self.known[name] = value
        return value

    def get(self, name: str) -> T:
        """The value of a name. Raises ConfigError for an unknown name, with the nearest ones."""
        if name not in self.known:
            self._load_extensions()
        if name not in self.known:
            raise ConfigError(self.unknown(name))
        value = self.known[name]
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            value = self.known[name] = getattr(importlib.import_module(module), attribute)
        return value

    def names(self) -> tuple[str, ...]:
        """All names, those of lmsmith first."""
        self._load_extensions()
        return tuple(self.known)

    def values(self) -> list[T]:
        """All values, in the order of their names."""
        return [self.get(name) for name in self.names()]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        if name not in self.known:
            self._load_extensions()
        return name in self.known

    def unknown(self, name: str) -> str:
        """What to say about a name that is not registered."""
        near = difflib.get_close_matches(name, self.names(), n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return (
            f"there is no {self.what} {name!r}.{hint} There are: {', '.join(self.names())}. If an "
            "extension provides it, install its package, import its module before this call, or "
            f"name the module or .py file in the environment variable {EXTENSIONS}."
        )

    def _load_extensions(self) -> None:
        import_extensions()
        for entry in _entry_points(self.group):
            if entry.name not in self.known:
                self.known[entry.name] = _load(entry)


@functools.cache
def _entry_points(group: str) -> "tuple[EntryPoint, ...]":
    from importlib.metadata import entry_points  # takes as long as the rest of `--help`

    return tuple(entry_points(group=group))


def import_extensions() -> None:
    """Imports what LMSMITH_EXTENSIONS names, each once. Raises ConfigError with the reason."""
    import importlib.util

    for name in filter(None, (part.strip() for part in os.environ.get(EXTENSIONS, "").split(","))):
        key = Path(name).stem if name.endswith(".py") else name
        if key in sys.modules:
            continue
        try:
            if name.endswith(".py"):
                spec = importlib.util.spec_from_file_location(key, Path(name).resolve())
                assert spec is not None
                assert spec.loader is not None
                module = sys.modules[key] = importlib.util.module_from_spec(spec)
                try:
                    spec.loader.exec_module(module)
                except BaseException:
                    del sys.modules[key]
                    raise
            else:
                importlib.import_module(name)
        except Exception as error:
            raise ConfigError(
                f"the extension {name!r} of {EXTENSIONS} cannot be imported "
                f"({type(error).__name__}: {error}). Correct the variable, or unset it."
            ) from error


def _load(entry: "EntryPoint") -> Any:
    try:
        return entry.load()
    except Exception as error:
        package = entry.dist.name if entry.dist else "an installed package"
        raise ConfigError(
            f"{entry.name!r} of {package} cannot be loaded ({type(error).__name__}: {error}). "
            "Reinstall or remove that package."
        ) from error


def _origin(value: Any) -> Any:
    """Where a class or function is defined; another value stands for itself."""
    name = getattr(value, "__qualname__", None)
    return (getattr(value, "__module__", None), name) if name else value
