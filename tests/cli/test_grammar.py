"""How a command line is parsed: `--`, words that begin with a dash, names from other programs."""

from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Lmsmith

from lmsmith.cli import parse
from lmsmith.errors import UsageError


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["train", "--", "-x.txt"], {"source": ["-x.txt"]}),
        (
            ["train", "--steps", "2", "--", "-x.txt", "b.txt"],
            {"source": ["-x.txt", "b.txt"], "train.steps": "2"},
        ),
        (["train", "a.txt", "--steps", "2", "--", "--steps"], None),
        (["generate", "run", "--n", "3", "--", "-x"], {"run": Path("run"), "prompt": "-x", "n": 3}),
        (["generate", "--", "-run", "-x"], {"run": Path("-run"), "prompt": "-x"}),
        (["generate", "run", "--", "--n"], {"prompt": "--n"}),
        (["generate", "run", "--", "--"], {"prompt": "--"}),
        (["generate", "run", "--", ""], {"prompt": ""}),
        (["generate", "run", "--"], {"prompt": None}),
        (["generate", "run", "- a list"], {"prompt": "- a list"}),
        (["generate", "run", "--stop=-x"], {"stop": ["-x"]}),
        (
            ["tokenizer", "encode", "--show", "gpt2", "--", "--help"],
            {"which": "gpt2", "text": "--help"},
        ),
        (["tokenizer", "decode", "gpt2", "--", "5"], {"ids": ["5"]}),
        (
            ["data", "prepare", "--out", "d", "--", "-a", "-b"],
            {"source": ["-a", "-b"], "out": Path("d")},
        ),
        (["eval", "run", "--text", "--", "-a.txt"], {"run": Path("run"), "text": ["-a.txt"]}),
        (["resume", "--", "-r"], {"run": Path("-r")}),
    ],
)
def test_words_after_a_double_dash_are_names_or_texts(
    words: list[str], found: dict[str, Any] | None
) -> None:
    if found is None:
        with pytest.raises(
            UsageError, match=r"'--steps' comes after the --, .* put options before the --\."
        ):
            parse(words)
        return
    options = vars(parse(words))
    assert {name: options[name] for name in found} == found
    assert "\0" not in str(options)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["generate", "run", "--", "-x", "--max-tokens", "3"],
            "'--max-tokens' comes after the --",
        ),
        (["train", "--", "-x.txt", "--steps", "2"], "'--steps' comes after the --"),
        (["generate", "run", "--", "-x", "-y"], "'-y' is one argument too many."),
        (["generate", "run", "-x"], "no option '-x'. Write a text that begins with - after a --."),
        (
            ["generate", "run", "--stop", "-x"],
            "Write a value that begins with - after an =: --stop=VALUE.",
        ),
        (["generate", "run", "--stop", "--n", "3"], "argument --stop: expected one argument. `"),
        (
            ["train", "--layers", "3"],
            "no option '--layers'. Did you mean --model.n_layer? `lmsmith train --help`",
        ),
        (
            ["train", "a.txt", "--batch-size=8"],
            "no option '--batch-size=8'. Did you mean --train.batch_size?",
        ),
        (["train", "a.txt", "--rope"], "no option '--rope'. Did you mean --model.positions rope?"),
        (
            ["train", "--input", "a.txt"],
            "Give the text after the command: `lmsmith train book.txt`.",
        ),
        (["sample", "run"], "no command 'sample'. `lmsmith generate RUN` continues a text."),
        (["talk", "run"], "no command 'talk'. `lmsmith chat RUN` talks to a tuned model."),
        (["deploy", "run"], "`lmsmith serve RUN` starts a server"),
        (
            ["finetune", "run"],
            "`lmsmith train TEXT --from RUN` fine-tunes a model on other text, and",
        ),
        (
            ["tokenizer", "tokenize", "x"],
            "no command 'tokenizer tokenize'. Use `lmsmith tokenizer encode`.",
        ),
    ],
)
def test_unknown_words_are_explained(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(words)
    assert said in str(error.value)


def test_a_file_whose_name_begins_with_a_dash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-x.txt").write_text("text")
    with pytest.raises(
        UsageError, match=r"no option '-x\.txt'\. Write a name that begins with - after a --\."
    ):
        parse(["train", "-x.txt"])


def test_train_on_a_file_whose_name_begins_with_a_dash(lmsmith: Lmsmith) -> None:
    (lmsmith.cwd / "book.txt").rename(lmsmith.cwd / "-x.txt")
    done = lmsmith(
        "train", "--epochs", "0.01", "--tokenizer", "byte", *TINY, "--out", "r", "--", "-x.txt"
    )
    assert done.status == 0, done.err
    assert "(0.01" in done.out
    done = lmsmith("generate", "r", "--max-tokens", "3", "--", "-x")
    assert (done.status, done.out[:2]) == (0, "-x")


@pytest.mark.parametrize("option", ["--train.seed", "--seed", "--model.d_model", "--model.cell"])
def test_resume_says_what_cannot_change(option: str) -> None:
    with pytest.raises(UsageError, match=f"^{option} cannot change when a run is resumed: "):
        parse(["resume", "run", option, "5"])
    for other, here in {"--batch-size": "train.batch_size", "--layers": "model.n_layer"}.items():
        with pytest.raises(UsageError, match=rf"^{other} \(here --{here}\) cannot change"):
            parse(["resume", "run", other, "5"])
    with pytest.raises(UsageError, match=r"no option '--lr'\. Did you mean --learning-rate"):
        parse(["resume", "run", "--lr", "5"])


def test_errors_do_not_blame_other_kinds_for_a_setting() -> None:
    with pytest.raises(UsageError) as error:
        parse(["resume", "run", "--train.seed=5"])
    assert "model.kind" not in str(error.value)
