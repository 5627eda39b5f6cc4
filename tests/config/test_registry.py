"""Names that extensions add: how they are found, and the errors."""

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmsmith.config import MODEL_KINDS, OPTIMIZERS, SCHEDULES, RunConfig
from lmsmith.config import registry as registry_module
from lmsmith.config.presets import PRESETS, preset
from lmsmith.config.registry import Registry
from lmsmith.errors import ConfigError
from lmsmith.text.corpora import CORPORA

Write = Callable[[str, str], Path]


def one(*_: Any) -> str:
    return "one"


def two(*_: Any) -> str:
    return "two"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undoes what a test registers, imports or installs."""
    for registry in (MODEL_KINDS, OPTIMIZERS, SCHEDULES, PRESETS, CORPORA):
        monkeypatch.setattr(registry, "known", dict(registry.known))
        monkeypatch.setattr(registry, "_owners", dict(registry._owners))
    before = set(sys.modules)
    registry_module._entry_points.cache_clear()
    yield
    registry_module._entry_points.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith(("ext_", "pack")):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write("pack/a.py", text)`: a file in the test's folder."""

    def made(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return made


@pytest.fixture
def install(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a package with entry points like pip: a folder and its dist-info."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(package: str, code: str, entries: str) -> None:
        write(f"{package}/__init__.py", code)
        about = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        write(f"{package}-1.0.dist-info/METADATA", about)
        write(f"{package}-1.0.dist-info/entry_points.txt", entries)
        importlib.invalidate_caches()

    return made


def test_a_name_that_is_taken() -> None:
    found: Registry[Any] = Registry("thing", "lmsmith.test", {"ours": one})
    with pytest.raises(ConfigError, match="'ours' is already registered by lmsmith itself: choose"):
        found.register("ours", one)
    found.register("theirs", one)
    with pytest.raises(ConfigError, match=rf"already registered by {__name__}:one: choose another"):
        found.register("theirs", two)
    assert found.get("theirs") is one
    assert found.added() == ("theirs",)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("register_optimizer('adamw', print)", "the optimizer 'adamw'"),
        ("register_schedule('cosine', print)", "the schedule 'cosine'"),
        ("register_preset('llama', {})", "the preset 'llama'"),
        ("register_corpus(Corpus('TinyStories', 'text', '', '', '', ()))", "corpus 'tinystories'"),
        ("register_model(type(RunConfig().model))", "the model kind 'gpt'"),
    ],
)
def test_built_in_names_are_taken(call: str, words: str) -> None:
    import lmsmith.extend

    with pytest.raises(ConfigError, match=f"{words} is already registered by lmsmith itself"):
        eval(call, vars(lmsmith.extend) | {"RunConfig": RunConfig})


CELL = """
from dataclasses import dataclass
from lmsmith.extend import *

@dataclass(frozen=True)
class Config(NeuralConfig):
    kind: str = setting("mine", "the kind")
    width: int = setting({n}, "its width")

register_model(Config, preset={{"optim.learning_rate": 0.00{n}}})
register_optimizer("mine", lambda groups, config: {n})
register_schedule("mine", lambda step, n_steps, config: 0.{n})
register_preset("mine-too", {{"train.steps": {n}}})
register_corpus(Corpus("mine", "text", "number {n}", "", "", ()))
"""


def test_a_notebook_cell_that_runs_twice() -> None:
    notebook: dict[str, Any] = {"__name__": "a_notebook"}
    module = sys.modules["a_notebook"] = type(sys)("a_notebook")
    try:
        for n in (1, 2):
            exec(CELL.format(n=n), vars(module) | notebook)
    finally:
        del sys.modules["a_notebook"]
    config = preset("mine")
    assert (config.model.width, config.optim.learning_rate) == (2, 0.002)  # type: ignore[attr-defined]
    assert OPTIMIZERS.get("mine")([], config.optim) == 2  # type: ignore[comparison-overlap]
    assert SCHEDULES.get("mine")(0, 1, config.schedule) == 0.2
    assert preset("mine-too").train.steps == 2
    assert CORPORA.get("mine").what == "number 2"
    with pytest.raises(ConfigError, match="preset 'mine-too' is already registered by a_notebook"):
        exec(
            "from lmsmith.extend import register_preset\nregister_preset('mine-too', {})",
            {"__name__": "another"},
        )


def test_a_preset_with_a_setting_of_another_kind() -> None:
    cell = (
        CELL.format(n=1).replace('"mine"', '"odd"').replace("optim.learning_rate", "model.n_head")
    )
    with pytest.raises(
        ConfigError, match=r"preset of 'odd' = model\.n_head: expected a setting of"
    ):
        exec(cell, {"__name__": __name__})
    assert "odd" not in MODEL_KINDS


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("ext_a.py", "import lmsmith.extend\n1 +", r"\(SyntaxError: invalid syntax"),
        ("ext_b.py", "import no_such_package", r"\(ModuleNotFoundError: No module named 'no_such"),
        ("ext_c.py", "import sys\nsys.exit('usage: ...')", r"\(SystemExit: usage"),
        ("ext_d.py", None, r"\(FileNotFoundError: "),
        ("ext_e", None, r"\(ModuleNotFoundError: No module named 'ext_e'\)"),
        (
            "ext_f.py",
            "from lmsmith.extend import *\nregister_optimizer('sgd', print)",
            r"\(ConfigError: the optimizer 'sgd' is already registered by lmsmith itself",
        ),
        ("json.py", "", r"\(ImportError: there is another module 'json' \(.*rename the file\)"),
    ],
)
def test_an_extension_that_cannot_be_imported(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        write(name, text)
    monkeypatch.setenv("LMSMITH_EXTENSIONS", name)
    words = rf"the extension '{name}' in LMSMITH_EXTENSIONS cannot be imported {reason}"
    for _ in range(2):  # a second look says the same
        with pytest.raises(ConfigError, match=words) as caught:
            OPTIMIZERS.get("no-such")
        assert str(caught.value).endswith("Correct the variable, or unset it.")


def test_two_files_with_the_same_name(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(f"{folder}/ext_same.py", "X = 1") for folder in ("a", "b")]
    monkeypatch.setenv("LMSMITH_EXTENSIONS", ", ".join(map(str, files)))
    with pytest.raises(ConfigError, match=r"another module 'ext_same' \(.*a/ext_same\.py\)"):
        OPTIMIZERS.get("no-such")


PACKAGE = """
from dataclasses import dataclass
from lmsmith.extend import NeuralConfig, register_model, setting

@dataclass(frozen=True)
class Config(NeuralConfig):
    kind: str = setting("packed", "the kind")
    width: int = setting(3, "its width")
    description = "a model of a package"

def plain(groups, config): ...
def half(step, n_steps, config): return 0.5
PRESET = {"train.steps": 7}
"""
ENTRIES = """
[lmsmith.models]
packed = pack_a:Config
[lmsmith.optimizers]
plain = pack_a:plain
[lmsmith.schedules]
half = pack_a:half
[lmsmith.presets]
seven = pack_a:PRESET
"""


@pytest.mark.parametrize("registers", [False, True])
def test_entry_points(install: Callable[..., None], registers: bool) -> None:
    """Only named by the package, or also registered by its module."""
    also = "register_model(Config, preset={'train.steps': 5})\n" if registers else ""
    install("pack_a", PACKAGE + also, ENTRIES)
    assert {"plain", "adamw"} <= set(OPTIMIZERS.names())
    assert "pack_a" not in sys.modules  # names alone import nothing
    assert preset("packed").model.width == 3  # type: ignore[attr-defined]
    assert preset("packed").train.steps == (5 if registers else 0)
    assert preset("seven").train.steps == 7
    changes = {"optim.name": "plain", "schedule.shape": "half"}
    config = RunConfig().changed(changes, where="a test")
    assert SCHEDULES.get(config.schedule.shape)(0, 9, config.schedule) == 0.5
    source = MODEL_KINDS.source("packed")
    assert source["package"] == "pack_a"
    MODEL_KINDS.known.pop("packed")
    registry_module._entry_points.cache_clear()
    sys.path.pop(0)
    with pytest.raises(
        ConfigError, match=r"run needs .*'packed' of an extension from the package"
    ) as caught:
        MODEL_KINDS.require("packed", source, "run")
    assert "Install it: `pip install pack_a`" in str(caught.value)


def test_the_command_line_uses_entry_points(
    install: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lmsmith.cli import run

    monkeypatch.setenv("COLUMNS", "200")
    install("pack_a", PACKAGE, ENTRIES)
    assert run(["train", "--preset", "packed", "--help"], started=0.0) == 0
    shown = capsys.readouterr().out
    assert "settings of kind packed (a model of a package)" in shown
    assert "--model.width N" in shown
    assert "--model.n_head" not in shown
    assert "adamw|muon|adam|sgd|plain" in shown


def test_an_entry_point_that_cannot_be_loaded(install: Callable[..., None]) -> None:
    install("pack_b", "raise RuntimeError('no licence')", "[lmsmith.optimizers]\nbad = pack_b:x\n")
    with pytest.raises(
        ConfigError,
        match=r"entry point 'bad' of the package pack_b cannot be loaded \(RuntimeError: no lic",
    ):
        OPTIMIZERS.get("bad")


def test_two_packages_with_the_same_name(install: Callable[..., None]) -> None:
    for package in ("pack_c", "pack_d"):
        install(package, "def f(groups, config): ...", f"[lmsmith.optimizers]\nx = {package}:f\n")
    words = (
        r"the package pack_. provides the optimizer 'x', but that name is already registered "
        r"by the package pack_"
    )
    with pytest.raises(ConfigError, match=words):
        OPTIMIZERS.get("x")


def test_a_package_with_a_built_in_name(install: Callable[..., None]) -> None:
    install("pack_e", "def f(groups, config): ...", "[lmsmith.optimizers]\nadamw = pack_e:f\n")
    with pytest.raises(
        ConfigError,
        match=r"pack_e provides the optimizer 'adamw'.*already registered by lmsmith it",
    ):
        OPTIMIZERS.names()
