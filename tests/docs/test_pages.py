"""Every command and code block of the README, the quickstart and the guides: parsed by default, run
in the slow tests, each page from top to bottom in a folder of its own.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hub import SERVED, hub
from pages import (
    OTHER_PROGRAMS,
    PAGES,
    PROJECT,
    Command,
    blocks,
    commands,
    table_commands,
    write_texts,
)

from lmsmith import cli
from lmsmith.config.presets import preset
from lmsmith.machine import products
from lmsmith.train.hooks import sample

# What makes a run end in seconds: for every kind of model, for Transformers, for recurrent networks.
QUICK = ["--train.threads=1", "--train.matmul=default", "--train.dtype=float32"]
SMALL = ["--train.batch_size=4", "--model.context_length=32"]
GPT = ["--model.n_layer=1", "--model.d_model=32", "--model.n_head=2", "--model.d_head=16"]


def named(page: Path) -> str:
    return str(page.relative_to(PROJECT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_blocks_parse(
    page: Path, unchanged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMSMITH_EXTENSIONS", str(PROJECT / "examples" / "lion.py"))
    found = blocks(page)
    assert found
    for block in found:
        if block.language == "python":
            compile(block.code, block.where, "exec")
        elif block.language == "toml":
            tomllib.loads(block.code)
        elif block.language == "sh":
            for command in commands(block):
                check_words(command)
        else:
            assert block.language == "text", f"{block.where}: say what language this is"
    for command in table_commands(page):
        check_words(command)


def check_words(command: Command) -> None:
    if command.program == "lmsmith":
        cli.parse(command.words)
        return
    assert command.program in OTHER_PROGRAMS, command
    if command.program == "make":
        makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
        assert f"\n{command.words[-1]}:" in makefile, command


def test_a_wrong_option_is_found(tmp_path: Path) -> None:
    from pages import Block

    block = Block(PROJECT / "README.md", 1, "sh", "lmsmith train book.txt --no-such 3\n")
    with pytest.raises(Exception, match="no option '--no-such'"):
        check_words(next(commands(block)))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_page_runs(
    page: Path, lmsmith: Any, unchanged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shorter: `--minutes` becomes a few steps, and models that a command leaves open are tiny."""
    folder = lmsmith.cwd
    write_texts(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sample, "SAMPLE_TOKENS", 5)
    monkeypatch.setattr(products, "SHAPE", (64, 64, 64))
    if any(server in page.read_text(encoding="utf-8") for server in SERVED):
        pytest.importorskip("huggingface_hub")
        with hub(folder, lmsmith) as environment:
            run_blocks(page, lmsmith, environment)
    else:
        run_blocks(page, lmsmith, {})


def run_blocks(page: Path, lmsmith: Any, environment: dict[str, str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "toml" and (name := re.match(r"# (\S+\.toml)\n", block.code)):
            (lmsmith.cwd / name[1]).write_text(block.code, encoding="utf-8")
        elif block.language == "python" and page.name != "README.md":  # test_readme.py has it
            exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
        elif block.language == "sh":
            for command in commands(block):
                run(command, lmsmith, environment)
    for command in table_commands(page):
        run(command, lmsmith, environment)


def run(command: Command, lmsmith: Any, environment: dict[str, str]) -> None:
    if command.program == "export":
        environment |= dict(word.split("=", 1) for word in command.words)
    if command.program != "lmsmith" or not command.runs:
        return
    words = shorter(list(command.words))
    if command.launcher:
        torchrun = [sys.executable, "-m", "torch.distributed.run", *command.launcher]
        done = subprocess.run(
            [*torchrun, "-m", "lmsmith", *words],
            cwd=lmsmith.cwd,
            env=lmsmith.environment | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (command, done.stderr)
        return
    ended = lmsmith(*words, environment=environment)
    assert ended.status == 0, (command, ended.err)


def shorter(words: list[str]) -> list[str]:
    """The command with less to do."""
    if words[0] == "compare":
        return [*words, "--minutes=0.1"] if "--train" in words else words
    if words[:2] == ["bench", "train"]:
        return [*words, "--n=1", *QUICK, *SMALL, "--model.n_layer=1"]
    if words[0] not in ("train", "resume"):
        return words
    for option in ("--minutes", "--steps"):
        if option in words:
            at = words.index(option)
            most = 600 if words[0] == "resume" else 100
            steps = min(int(words[at + 1]), most) if option == "--steps" else 8
            steps = most if words[0] == "resume" and option == "--minutes" else steps
            words[at : at + 2] = [f"--steps={steps}"]
    if words[0] == "train" and not any(word.startswith("--steps") for word in words):
        words.append("--steps=8")
    if words[0] == "resume" or "--from" in words:
        return words
    name = words[words.index("--preset") + 1] if "--preset" in words else "modern"
    kind = preset(name).model.kind
    words += QUICK
    if kind == "gpt":
        words += [w for w in GPT if w.partition("=")[0] not in words]
    if kind != "ngram":
        words += [w for w in SMALL if w.partition("=")[0] not in words]
    return words


def test_every_guide_is_in_the_navigation() -> None:
    index = (PROJECT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f"({page.relative_to(PROJECT / 'docs')})" in index


def test_the_install_lines_name_one_address() -> None:
    """The forge's address is stated in pyproject.toml; pages may only repeat it."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    address = project["project"]["urls"]["Source"]
    found = {
        command.words[1]
        for page in PAGES
        for block in blocks(page)
        if block.language == "sh"
        for command in commands(block)
        if command.program == "git"
    }
    assert found == {address}
    assert shutil.which("git")
