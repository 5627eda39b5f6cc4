"""Registries, which extensions can add to: model kinds, optimizers, schedules, presets, corpora.

    OPTIMIZERS: Registry[OptimizerFactory] = Registry("optimizer", "lmsmith.optimizers", {...})
    OPTIMIZERS.register("lion", lion)        # from Python
    OPTIMIZERS.get("lion")

A registry looks a name up in three places: lmsmith's built-in names, names registered from Python,
and the entry points of installed packages (group `lmsmith.optimizers` and so on). The environment
variable `LMSMITH_EXTENSIONS` lists modules or .py files, separated by commas, that are imported
before a name counts as unknown. With it, a single file extends the command line.

A built-in value may be given as "module:attribute". It is imported on first use, so that a registry
in a low layer can refer to higher layers, and `lmsmith --help` stays fast.
"""

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeGuard, TypeVar, cast

from lmsmith.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

EXTENSIONS = "LMSMITH_EXTENSIONS"
HOW_TO_LOAD = (
    "If an extension provides it, install its package, import its module before this call, or set "
    f"the environment variable {EXTENSIONS} to its module or .py file."
)

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to values of one type."""

    def __init__(self, what: str, group: str, built_in: Mapping[str, T | str]) -> None:
        """`what`: word for an entry in messages ("optimizer"). `group`: the entry-point group."""
        self.what, self.group = what, group
        self._built_in = frozenset(built_in)
        self.known: dict[str, T | str | EntryPoint] = dict(built_in)
        """Registered values. A "module:attribute" or an entry point is imported by `get`."""
        self._owners: dict[str, Hashable] = {}

    def register(self, name: str, value: T, owner: Hashable = None) -> T:
        """Registers a value and returns it. Raises ConfigError if the name is taken.

        The owner of a name may register it again, as happens when a notebook cell is run twice; the
        newest value counts. The default `owner` is the module and qualified name of the class or
        function.
        """
        owner = owner or origin(value)
        if name in self._built_in:
            raise ConfigError(
                f"the {self.what} {name!r} is already registered by lmsmith itself: choose another "
                "name."
            )
        if name in self.known and not self._may_replace(name, owner):
            raise ConfigError(
                f"the {self.what} {name!r} is already registered by {self._whose(name)}: choose "
                "another name."
            )
        self.known[name] = value
        self._owners[name] = owner
        return value

    def get(self, name: str) -> T:
        """Returns the value of a name. Raises ConfigError, with a suggestion, for an unknown
        name.
        """
        if name not in self.known:
            self.load_extensions()
        if name not in self.known:
            raise ConfigError(self.unknown(name))
        value = self.known[name]
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            value = self.known[name] = getattr(importlib.import_module(module), attribute)
        elif _is_entry_point(value):
            loaded = _load(value)
            if self.known[name] is value:  # else its module registered the name itself
                self.known[name] = loaded
                self._owners[name] = origin(loaded) or value.value.replace(" ", "")
            value = self.known[name]
        return cast(T, value)

    def names(self) -> tuple[str, ...]:
        """Returns all names, built-in ones first."""
        self.load_extensions()
        return tuple(self.known)

    def values(self) -> list[T]:
        """Returns all values, in the order of their names."""
        return [self.get(name) for name in self.names()]

    def source(self, name: str) -> dict[str, str]:
        """Returns the extension that provides a name: `module`, and `file` or `package`; empty for
        built-in names.

        A run saves this, so that `require` can report it when the extension is missing.
        """
        if name in self._built_in or name not in self:
            return {}
        value, owner = self.get(name), self._owners.get(name)
        module = str(owner[0] if isinstance(owner, tuple) else owner)
        record = {"what": self.what, "name": name, "module": module}
        for entry in _entry_points(self.group):
            if entry.name == name and entry.dist and origin(_load(entry)) == origin(value):
                return record | {"package": entry.dist.name}
        file = getattr(sys.modules.get(module), "__file__", None)
        return record | ({"file": str(Path(file).resolve())} if file else {})

    def require(self, name: str, source: Mapping[str, str], where: str) -> None:
        """Raises ConfigError if `name` is not registered. `source`: the result of `source(name)`
        when the name was registered. `where`: the file that needs the name, for the message.
        """
        if name in self:
            return
        file, package = source.get("file", ""), source.get("package", "")
        if package:
            origin, remedy = f"the package {package}", f"Install it: `pip install {package}`"
        elif file:
            origin, remedy = file, f"Set {EXTENSIONS}={file} (or the file's present path)"
        else:
            origin, remedy = source.get("module", ""), "Register it"
        call = ", or register it before this call in Python" if file or package else ""
        raise ConfigError(
            f"{where} needs the {self.what} {name!r} of an extension from {origin}, which is not "
            f"loaded. {remedy}{call}."
        )

    def added(self) -> tuple[str, ...]:
        """Returns the names that extensions have added."""
        return tuple(name for name in self.names() if name not in self._built_in)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        if name not in self.known:
            self.load_extensions()
        return name in self.known

    def unknown(self, name: str) -> str:
        """Returns the error message for a name that is not registered."""
        near = difflib.get_close_matches(name, self.names(), n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return (
            f"there is no {self.what} {name!r}.{hint} There are: {', '.join(self.names())}. "
            f"{HOW_TO_LOAD}"
        )

    def load_extensions(self) -> None:
        """Imports the modules in LMSMITH_EXTENSIONS, and lists entry points without loading them.

        Raises ConfigError if an extension cannot be imported, or an installed package provides a
        name that is taken.
        """
        import_extensions()
        for entry in _entry_points(self.group):
            if entry.name not in self.known:
                self.known[entry.name] = entry
                self._owners[entry.name] = entry.value.replace(" ", "")
            elif not self._is_same(entry):
                raise ConfigError(
                    f"{_package(entry)} provides the {self.what} {entry.name!r}, but that name is "
                    f"already registered by {self._whose(entry.name)}. Uninstall or rename one of "
                    "the two."
                )

    def _is_same(self, entry: "EntryPoint") -> bool:
        if entry.name in self._built_in:
            return False
        known, owner = self.known[entry.name], _text(self._owners.get(entry.name))
        if known is entry or owner == entry.value.replace(" ", ""):
            return True
        if _is_entry_point(known):
            return False
        # An entry point may name an object that another module of the package registers itself.
        loaded = _load(entry)
        return loaded is known or origin(loaded) == origin(known) is not None

    def _may_replace(self, name: str, owner: Hashable) -> bool:
        known = self.known[name]
        if _is_entry_point(known):  # its package is being imported and registers the name itself
            return _text(owner).split(":")[0].split(".")[0] == known.module.split(".")[0]
        return self._owners.get(name) == owner

    def _whose(self, name: str) -> str:
        """Returns the owner of a name, for messages."""
        if name in self._built_in:
            return "lmsmith itself"
        known = self.known[name]
        return _package(known) if _is_entry_point(known) else _text(self._owners.get(name))


def origin(value: Any) -> Hashable:
    """Module and qualified name of a class or function; None for other values."""
    name = getattr(value, "__qualname__", None)
    return (getattr(value, "__module__", None), name) if name else None


def _text(owner: Hashable) -> str:
    """Returns an owner as "module:name", as entry points are written."""
    return ":".join(map(str, owner)) if isinstance(owner, tuple) else str(owner)


def _is_entry_point(value: Any) -> "TypeGuard[EntryPoint]":
    metadata = sys.modules.get("importlib.metadata")  # if not imported, no entry point was listed
    return metadata is not None and isinstance(value, metadata.EntryPoint)


@functools.cache
def _entry_points(group: str) -> "tuple[EntryPoint, ...]":
    from importlib.metadata import entry_points  # slow: takes as long as the rest of `--help`

    return tuple(entry_points(group=group))


def _package(entry: "EntryPoint") -> str:
    return f"the package {entry.dist.name}" if entry.dist else "an installed package"


def import_extensions() -> None:
    """Imports the modules and files in LMSMITH_EXTENSIONS, each once. Raises ConfigError."""
    for name in filter(None, (part.strip() for part in os.environ.get(EXTENSIONS, "").split(","))):
        try:
            if name.endswith(".py"):
                _import_file(Path(name).expanduser().resolve())
            else:
                importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"the extension {name!r} in {EXTENSIONS} cannot be imported "
                f"({type(error).__name__}: {error}). Correct the variable, or unset it."
            ) from error


def _import_file(path: Path) -> None:
    """Imports a .py file as a module named after it, unless it is already imported."""
    import importlib.util

    name = path.stem
    if (imported := sys.modules.get(name)) is not None:
        file = getattr(imported, "__file__", None)
        if file is None or Path(file).resolve() != path:
            raise ImportError(
                f"there is another module {name!r} ({file or 'built in'}): rename the file"
            )
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _load(entry: "EntryPoint") -> Any:
    try:
        return entry.load()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"the entry point {entry.name!r} of {_package(entry)} cannot be loaded "
            f"({type(error).__name__}: {error}). Reinstall or remove the package."
        ) from error
