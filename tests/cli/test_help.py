"""Help texts and `--version`."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TEXT, TINY, Lmsmith

from lmsmith.cli import parse, verbs
from lmsmith.config import MODEL_KINDS, settings

VERBS = sorted(verbs().found)


def python(lmsmith: Lmsmith, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a new Python process, as a shell does."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=lmsmith.cwd,
        env=lmsmith.environment,
        capture_output=True,
        text=True,
    )


def processor_seconds() -> float:
    """Processor seconds of child processes that have ended. (Windows does not count them.)"""
    found = os.times()
    return found.children_user + found.children_system


def test_help_takes_less_than_half_a_second(lmsmith: Lmsmith) -> None:
    """In processor time, which equals the waiting time on an idle machine."""
    took = []
    for _ in range(3):
        began = processor_seconds()
        done = python(lmsmith, "-m", "lmsmith", "--help")
        took.append(processor_seconds() - began)
        assert done.returncode == 0, done.stderr
        assert {verb.split()[0] for verb in VERBS} <= set(
            re.findall(r"^    (\w+)  ", done.stdout, re.MULTILINE)
        )
    assert min(took) < 0.5
    assert min(took) > 0 or sys.platform == "win32"


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["generate", "--help"], ["--version"], ["trian"]]
)
def test_help_does_not_import_torch(lmsmith: Lmsmith, words: list[str]) -> None:
    program = (
        "import sys\nfrom lmsmith.cli import run\n"
        f"status = run({words!r}, started=0.0)\n"
        "print([name for name in ('torch', 'numpy', 'numba', 'pyarrow', 'matplotlib') if name in "
        "sys.modules])\n"
        "sys.exit(status)"
    )
    done = python(lmsmith, "-c", program)
    assert done.returncode == (2 if words == ["trian"] else 0)
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_command(lmsmith: Lmsmith, verb: str) -> None:
    done = lmsmith(*verb.split(), "--help")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"usage: lmsmith {verb} ")
    assert max(map(len, done.out.splitlines())) <= 80
    *_, before, example = done.out.splitlines()
    assert before == "example:"
    assert example.startswith(f"  lmsmith {verb}")
    parse(shlex.split(example)[1:])


def test_every_setting_is_an_option_of_train_with_its_meaning(lmsmith: Lmsmith) -> None:
    shown = lmsmith("train", "--help").out
    words = " ".join(shown.split()).replace("- ", "-")  # lines also break after hyphens
    for name, leaf in settings():
        if name not in ("data.sources", "data.mixture"):  # the arguments; tables of a recipe
            assert f"--{name} " in shown
            assert leaf.meaning.replace("- ", "-") in words


@pytest.mark.parametrize(
    ("words", "kind"),
    [(["--preset", "lstm"], "rnn"), (["--preset=ngram"], "ngram"), (["--model.kind=rnn"], "rnn")],
)
def test_help_of_a_preset_lists_the_settings_of_its_kind(
    lmsmith: Lmsmith, words: list[str], kind: str
) -> None:
    shown = lmsmith("train", *words, "--help").out
    config = MODEL_KINDS.get(kind)
    wanted = {name for name, _ in settings(config) if name.startswith("model.")}
    assert set(re.findall(r"--(model\.\w+)", shown)) == wanted
    assert f"settings of kind {kind} ({config.description})" in " ".join(shown.split())
    assert "model.n_head" not in wanted


def test_the_examples_run_one_after_the_other(lmsmith: Lmsmith, run: Path) -> None:
    """They follow `lmsmith demo`, which takes two minutes; a tiny run replaces it here."""
    demo = lmsmith.cwd / "demo"
    demo.mkdir()
    lines = "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines())
    (demo / "stories.jsonl").write_text(lines)
    chats = [{"prompt": "a", "completion": letter} for letter in "bcdefgh"]
    (demo / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    pairs = [{"prompt": letter, "chosen": "a", "rejected": "zz"} for letter in "bcdefgh"]
    (demo / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    shutil.move(run, demo / "run-1")
    examples = {
        verb: shlex.split(lmsmith(*verb.split(), "--help").out.splitlines()[-1])[1:]
        for verb in VERBS
    }
    assert examples.pop("demo") == ["demo"]
    examples = {
        verb: words for verb, words in examples.items() if not verb.startswith("bench")
    }  # these take minutes
    for verb in ("import", "export"):  # need a model from the network: tests/interop/test_runs.py
        del examples[verb]
    del examples["data download"]  # needs the network: tests/cli/test_data_corpora.py
    del examples["serve"]  # runs until a signal: tests/cli/test_serve.py
    del examples["replay"]  # needs a spike record: tests/train/test_guard.py
    del examples["rl"]  # needs a longer context than the tiny run has: tests/chat/test_rl.py
    del examples["study"]  # needs a study file: tests/study/test_study_run.py
    first = [
        "train",
        "resume",
        "tokenizer train",
        "tune",
    ]  # their results are the inputs of the others
    for verb in [*first, *sorted(examples.keys() - set(first))]:
        words = (
            [*examples[verb], "--minutes=auto", "--steps=5", *TINY]
            if verb == "train"
            else examples[verb]
        )
        done = lmsmith(*words)
        assert (done.status, "lmsmith:" in done.err) == (0, False), (
            verb,
            done.err,
            done.out,
        )


def test_version(lmsmith: Lmsmith) -> None:
    from lmsmith import __version__

    done = lmsmith("--version")
    assert (done.status, done.out) == (0, f"lmsmith {__version__}\n")
