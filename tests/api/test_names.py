"""The public names: which there are, what importing them costs, and that they match the command
line.
"""

import argparse
import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest

import lmsmith
from lmsmith import api
from lmsmith.api.training import SHORT
from lmsmith.cli import verbs
from lmsmith.cli.grammar import OFTEN, TOGETHER
from lmsmith.config import CHANGEABLE, LENGTH, settings
from lmsmith.tokens.tokenizer import END_OF_TEXT, Tokenizer

ALL = verbs()
SETTINGS = dict(settings())
NOT_IN_PYTHON = {"help", "json"}  # options for printing
PYTHON_ONLY = {
    "progress": "how much is printed",
    "started": "the process's start, which the command line knows",
    "index": "number of the sample; --n counts through it",
    "settings": "every option --SECTION.NAME",
    "hooks": "Python objects",
    "logit_bias": "token ids",
    "banned": "token ids",
    "messages": "what a terminal reads",
}

CALLS: dict[str, tuple[Any, dict[str, str]]] = {
    "demo": (api.demo, {}),
    # Reading messages, and what a terminal shows, are the command's.
    "chat": (api.LM.chat, {"run": "", "system": ""}),
    "report": (api.report, {}),
    "generate": (
        api.LM.generate,
        {"run": "", "weights": "", "draft": ""}  # load
        | {"n": ""}  # generate_batch
        | {"show_probs": "", "beams": "", "length_penalty": "", "speed": ""}  # tokens, beam_search
        | {"no_bos": "bos"},
    ),
    "eval": (api.evaluate, {"run": "model", "no_bos": "bos"}),
    "compare": (api.compare, {}),
    "inspect": (api.LM.inspect, {"run": ""}),
    "import": (api.import_model, {}),
    "export": (api.export, {}),
    "data prepare": (api.prepare, {"source": "sources"}),
    "tokenizer train": (Tokenizer.train, {"source": "sources", "no_special": ""}),  # special=()
    "tokenizer import": (Tokenizer.load, {"which": "source", "out": ""}),  # save
}
"""Verb -> its call, and arguments that have another name there ("": another call's)."""

SETTING_VERBS = {"train": api.train, "resume": api.resume}

OTHER_CALLS = {
    "tune": "lmsmith.api:tune",
    "align": "lmsmith.api:align",
    "rl": "lmsmith.api:rl",
    "replay": "lmsmith.train.replay:replay",
    "serve": "lmsmith.serve.server:run",
    "verify": "lmsmith.verify:run",
    "bench train": "lmsmith.train.ladder:time_steps",
    "bench generate": "lmsmith.generate.bench:decode_speed",
    "bench ladder": "lmsmith.train.ladder:climb",
    "bench tokenizer": "lmsmith.tokens.bench:bench_encoding",
    "data list": "lmsmith.text.corpora:CORPORA",
    "data download": "lmsmith.text.store:fetch",
    "data inspect": "lmsmith.data.audit:inspect",
    "tokenizer encode": "lmsmith.tokens.tokenizer:Tokenizer.encode",
    "tokenizer decode": "lmsmith.tokens.tokenizer:Tokenizer.decode",
    "tokenizer inspect": "lmsmith.tokens.measure:inspect_tokenizer",
    "tokenizer compare": "lmsmith.tokens.measure:compare_tokenizers",
}


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_lmsmith_is_fast_and_does_not_import_torch() -> None:
    program = (
        "import sys, time\nbegan = time.process_time()\nimport lmsmith\n"
        "print(time.process_time() - began)\n"
        "lmsmith.train, lmsmith.load, lmsmith.LM, lmsmith.Run, lmsmith.errors.LmsmithError\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    assert min(float(python(program)) for _ in range(2)) < 0.1


def test_at_most_eighteen_public_names_and_all_exist() -> None:
    assert len(lmsmith.__all__) == len(set(lmsmith.__all__)) <= 18
    assert set(lmsmith.__all__) <= set(dir(lmsmith))
    for name in lmsmith.__all__:
        assert getattr(lmsmith, name) is not None
    assert {name for name in api.__all__ if name in lmsmith.__all__} | {
        *("Tokenizer", "errors", "extend")
    } == set(lmsmith.__all__)
    assert lmsmith.__version__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        lmsmith.trian  # noqa: B018


def test_a_submodule_of_the_same_name_does_not_hide_the_function() -> None:
    program = (
        "import inspect\nimport lmsmith.train.loop, lmsmith.evaluate.texts, lmsmith.demo\n"
        "from lmsmith import api\n"
        "for name in ('train', 'evaluate', 'demo'):\n"
        "    assert inspect.signature(getattr(lmsmith, name)) == inspect.signature(getattr(api, "
        "name))\n"
        "assert lmsmith.train.loop.Training\n"
        "try:\n    lmsmith.train([], steps=1)\nexcept lmsmith.errors.UsageError as error:\n    "
        "print(error)"
    )
    assert "no text to train on" in python(program)


def test_every_command_has_a_call() -> None:
    assert set(ALL.found) == {*CALLS, *SETTING_VERBS, *OTHER_CALLS}
    for place in OTHER_CALLS.values():
        module, _, name = place.partition(":")
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)


@pytest.mark.parametrize("verb", CALLS)
def test_a_call_has_the_arguments_and_defaults_of_its_command(verb: str) -> None:
    call, renamed = CALLS[verb]
    parameters = dict(inspect.signature(call).parameters)
    parameters.pop("self", None)
    seen = set(PYTHON_ONLY)
    for action in ALL.found[verb]._actions:
        option = action.dest.rpartition(".")[2]
        name = renamed.get(option, option)
        if option in NOT_IN_PYTHON or not name:
            continue
        assert name in parameters, f"{verb}: {option}"
        seen.add(name)
        wanted, found = default_of(action), parameters[name].default
        if name == "bos":
            wanted = not wanted
        if not action.required and action.option_strings:
            assert same(found, wanted), f"{verb}: {name} = {found!r}, the command has {wanted!r}"
    assert set(parameters) <= seen


def default_of(action: argparse.Action) -> Any:
    if action.default is argparse.SUPPRESS:
        leaf = SETTINGS[action.dest]
        return leaf.default
    return action.default


def same(found: Any, wanted: Any) -> bool:
    """Treats None, "", () and 0 as the same, and paths as their text."""
    empty = (None, (), [], "text", False)  # without `--special-tokens` they are text
    if wanted is None and found == (END_OF_TEXT,):  # `--special` not given
        return True
    as_list = list(found) if isinstance(found, tuple) else found
    return (
        as_list == wanted
        or str(found) == str(wanted)
        or (found in empty and wanted in empty)
        or (
            found is None and wanted in ("auto", 1)  # compare's tokenizer and seed: the preset's
        )
    )


def test_train_and_resume_have_the_short_options_as_arguments() -> None:
    short = {name.rpartition(".")[2]: name for name in OFTEN}
    both = short | {
        TOGETHER: TOGETHER,
        "validation": "data.validation",
        "skip_bad": "data.skip_bad",
    }
    assert both == SHORT
    parameters = inspect.signature(api.train).parameters
    python_only = {"settings", "hooks", "progress", "started"}
    assert set(parameters) == {*SHORT, "sources", "out", *python_only}
    assert all(parameters[name].default is None for name in SHORT)
    resumable = {
        name for name, dotted in SHORT.items() if dotted in {*LENGTH, *CHANGEABLE, TOGETHER}
    }
    resumed = set(inspect.signature(api.resume).parameters)
    assert resumed == {*resumable, "run", "settings", "hooks", "without_hooks", "progress"}


@pytest.mark.parametrize("name", sorted(set(SHORT) - {TOGETHER}))
def test_an_argument_has_the_settings_type(name: str) -> None:
    leaf = SETTINGS[SHORT[name]]
    annotation = str(inspect.signature(api.train).parameters[name].annotation)
    if leaf.choices and name != "preset":
        assert all(repr(choice) in annotation for choice in leaf.choices)
    else:
        words = {int: "int", float: "float", bool: "bool", str: "str"}
        wanted = words.get(leaf.kind, "Sequence")
        assert wanted in annotation.replace("Folder", "str")
    assert annotation.endswith("None")
