"""Every user error gives one clear message that says what to do, and exit status 1 or 2. Nothing is
overwritten.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import LINUX, TEXT, TINY, Done, Lmsmith

NOBODY = 65534


def refused(done: Done, status: int, *parts: str) -> None:
    """Checks for one message on standard error, without a traceback."""
    assert done.status == status, done.err
    assert done.err.startswith("lmsmith: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err + done.out
    for part in parts:
        assert part in done.err
    assert done.err.endswith((".\n", ".)\n", "?\n")), done.err


def content(place: Path) -> dict[str, str]:
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and not path.is_symlink()]
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def make_empty(place: Path) -> None:
    (place / "bad.txt").write_bytes(b"")


def make_blank(place: Path) -> None:
    (place / "bad.txt").write_bytes(b" \n\n\t")


def make_folder_without_text(place: Path) -> None:
    (place / "bad.txt").mkdir()
    (place / "bad.txt" / "photo.png").write_bytes(b"\x89PNG")


def make_too_short(place: Path) -> None:
    (place / "bad.txt").write_bytes(b"ab")


def make_binary(place: Path) -> None:
    (place / "bad.txt").write_bytes(b"\x7fELF\x02\x01\x01\x00" + bytes(range(256)) * 4)


def make_invalid(place: Path) -> None:
    (place / "bad.txt").write_bytes(b"first line\nsecond \xff line\n" * 30)


def make_nothing(place: Path) -> None: ...


@pytest.mark.parametrize(
    ("make", "status", "parts"),
    [
        (make_empty, 1, ["no text in bad.txt", "empty"]),
        (make_blank, 1, ["no text in bad.txt", "only white space"]),
        (make_nothing, 1, ["no file or folder bad.txt", "Did you mean"]),
        (make_folder_without_text, 1, ["folder bad.txt contains no text", "1 .png", "pattern"]),
        (make_too_short, 1, ["too short to split", "2 characters", "Add text"]),
        (make_binary, 1, ["bad.txt looks binary", "NUL byte at offset 7"]),
        (
            make_invalid,
            1,
            [
                "bad.txt is not UTF-8",
                "0xFF at offset 18, line 2",
                "`--data.errors replace` replaces it",
            ],
        ),
    ],
)
def test_unusable_text_is_refused(
    lmsmith: Lmsmith, make: Any, status: int, parts: list[str]
) -> None:
    make(lmsmith.cwd)
    (lmsmith.cwd / "bas.txt").write_text(TEXT)
    before = content(lmsmith.cwd)
    done = lmsmith("train", "bad.txt", "--steps", 5, *TINY, "--out", "run")
    refused(done, status, *parts)
    assert not (lmsmith.cwd / "run").exists()
    assert content(lmsmith.cwd) == before


@pytest.mark.parametrize("option", ["--errors", "--data.errors"])
def test_errors_replace_continues(lmsmith: Lmsmith, option: str) -> None:
    (lmsmith.cwd / "bad.txt").write_bytes(TEXT.encode() + b"\xff\xfe" * 3 + TEXT.encode())
    done = lmsmith("train", "bad.txt", "--steps", 5, *TINY, option, "replace", "--out", "run")
    assert done.status == 0, done.err
    assert "6 invalid byte sequences replaced with U+FFFD" in done.out


@pytest.mark.parametrize("how", ["command line", "recipe"])
def test_a_context_longer_than_the_text(lmsmith: Lmsmith, how: str) -> None:
    (lmsmith.cwd / "short.txt").write_text(TEXT[:1000])
    (lmsmith.cwd / "long.toml").write_text("[model]\ncontext_length = 2000\n")
    line = ["--model.context_length", 2000] if how == "command line" else ["long.toml"]
    tiny = [word for word in TINY if "context" not in word]
    done = lmsmith("train", "short.txt", "--steps", 5, *tiny, *line, "--out", "run")
    refused(
        done,
        1,
        "900 tokens",
        "context length of 2,000",
        "at least 4,000",
        "--model.context_length 112",
    )
    assert not (lmsmith.cwd / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        (
            "[model]\nn_layers = 2\n",
            ["unknown setting 'model.n_layers' in r.toml", "Did you mean 'model.n_layer'?"],
        ),
        (
            "[model]\nlayers = 2\n",
            ["unknown setting 'model.layers' in r.toml", "Did you mean 'model.n_layer'?"],
        ),
        (
            "[optimizer]\nlr = 2\n",
            ["unknown setting 'optimizer.lr' in r.toml", "Did you mean 'optim.learning_rate'?"],
        ),
        (
            "[model]\nrope = true\n",
            ["unknown setting 'model.rope'", "Did you mean 'model.positions' = 'rope'?"],
        ),
        ("[train]\nepochs = -1\n", ["train.epochs = -1"]),
        (
            "[train]\nepochs = 1\nminutes = 2\n",
            ["train.minutes and train.epochs set the run's length 2 times"],
        ),
        (
            "preset = 'ngram'\n[train]\nepochs = 3\n",
            ["train.epochs = 3", "counts its text exactly once", "--preset"],
        ),
        ("[trian]\nsteps = 2\n", ["unknown setting 'trian.steps'", "Did you mean 'train.steps'?"]),
        ("steps = 2\n", ["unknown setting 'steps'", "Did you mean 'train.steps'?"]),
        ("model = 5\n", ["unknown setting 'model'"]),
        ("[[train]]\nsteps = 2\n", ["unknown setting 'train'"]),
        ("preset = 'gpt5'\n", ["no preset 'gpt5'", "gpt2", "modern"]),
        ("preset = ['gpt2']\n", ["preset = ['gpt2'] in r.toml: expected text"]),
        ("tokenizer = 'wrod'\n", ["tokenizer = 'wrod'", "auto, byte, char, word"]),
        ("[train]\nsteps = 2.5\n", ["train.steps = 2.5 in r.toml: expected a whole number"]),
        (
            "[train]\nsteps = 2\ntokens = 5\n",
            ["train.steps and train.tokens set the run's length 2 times"],
        ),
        (
            "[model]\nn_head = 5\nd_model = 128\n",
            ["n_head = 5 does not divide model.d_model = 128", "130"],
        ),
        (
            "[optim]\nname = 'adagrad'\n",
            ["optim.name = 'adagrad' in r.toml: expected one of adamw, muon"],
        ),
        ("[train\n", ["r.toml is not TOML"]),
        ("text = '\udcff'", ["r.toml is not TOML"]),
    ],
)
def test_recipes(lmsmith: Lmsmith, recipe: str, parts: list[str]) -> None:
    (lmsmith.cwd / "r.toml").write_bytes(recipe.encode("utf-8", "surrogateescape"))
    done = lmsmith("train", "r.toml", "book.txt", "--seed", 5, "--out", "run")
    refused(done, 2, *parts)
    assert "command line" not in done.err
    assert not (lmsmith.cwd / "run").exists()


def test_errors_name_the_command_line_and_not_the_recipe(lmsmith: Lmsmith) -> None:
    (lmsmith.cwd / "r.toml").write_text("[train]\nsteps = 2\n")
    done = lmsmith("train", "r.toml", "book.txt", "--steps", "few", "--out", "run")
    refused(done, 2, "train.steps = 'few' in the command line: expected")


@pytest.mark.parametrize("verb", ["train", "data prepare", "tokenizer train"])
def test_a_run_given_as_text_is_refused(lmsmith: Lmsmith, run: Path, verb: str) -> None:
    more = ["--vocab-size", 300] if verb == "tokenizer train" else []
    done = lmsmith(*verb.split(), "run", *more, "--out", "new")
    refused(
        done,
        1,
        "run is a run, not text",
        "`lmsmith resume run`",
        "--from run",
        "`lmsmith train run/config.toml`",
    )
    done = lmsmith(*verb.split(), "run/model", *more, "--out", "new")
    refused(done, 1, "run/model is a model, not text", "--from run")
    assert not (lmsmith.cwd / "new").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["no command was given", "lmsmith demo"]),
        (["trian", "book.txt"], ["no command 'trian'", "Did you mean train?"]),
        (["frobnicate"], ["no command 'frobnicate'. `lmsmith --help`"]),
        (
            ["--verbose", "train", "book.txt"],
            ["'--verbose' comes before the command", "lmsmith COMMAND"],
        ),
        (["train"], ["SOURCE", "lmsmith train --help"]),
        (
            ["train", "book.txt", "--step", "5"],
            ["no option '--step'", "Did you mean --steps?", "lmsmith train --help"],
        ),
        (
            ["train", "book.txt", "--model.n_layers=5"],
            ["no option '--model.n_layers=5'", "Did you mean --model.n_layer?"],
        ),
        (["train", "book.txt", "--steps"], ["--steps", "expected one argument"]),
        (
            ["train", "book.txt", "--steps", "five"],
            ["train.steps = 'five' in the command line: expected a whole number"],
        ),
        (["train", "book.txt", "--steps", "-5"], ["train.steps = -5: expected 0 or more"]),
        (["train", "book.txt", "--seed", "-1"], ["train.seed = -1: expected 0 to"]),
        (["train", "book.txt", "--minutes", "inf"], ["train.minutes = 'inf'", "expected a number"]),
        (
            ["train", "book.txt", "--minutes", "1", "--steps", "5"],
            ["train.minutes and train.steps", "set only one of them"],
        ),
        (
            ["train", "book.txt", "--minutes", "0.01"],
            ["train.minutes = 0.01 leaves no time", "Set --minutes 0."],
        ),
        (
            ["train", "a.toml", "b.toml", "book.txt"],
            ["a.toml and b.toml are 2 recipes: name only one"],
        ),
        (["train", "a.toml"], ["cannot read a.toml: No such file"]),
        (["train", "empty.toml"], ["the recipe empty.toml names no text", "after it"]),
        (["train", "book.txt", "--preset", "gtp2"], ["no preset 'gtp2'", "babygpt"]),
        (
            ["train", "book.txt", "--tokenizer", "bytes"],
            ["--tokenizer bytes", "auto, byte, char, word"],
        ),
        (["train", "book.txt", "--tokenizer", "."], ["tokenizer"]),
        (
            ["train", "book.txt", "--model.n_head", "5", "--model.d_model", "64"],
            ["n_head = 5 does not divide"],
        ),
        (
            ["train", "book.txt", "--model.vocab_size", "7"],
            ["model.vocab_size = 7, but the tokenizer has"],
        ),
        (
            ["train", "book.txt", "--train.batch_tokens", "4096", "--train.batch_size", "4"],
            ["train.batch_tokens = 4096 and train.batch_size = 4 both set the batch size"],
        ),
        (
            ["train", "book.txt", "--train.device", "tpu"],
            ["train.device = 'tpu' cannot be used here", "cpu"],
        ),
        (
            ["train", "book.txt", "--data.encoding", "utf8mb4"],
            ["data.encoding = 'utf8mb4'", "Did you mean"],
        ),
        (
            ["train", "book.txt", "--steps", "3", "--out", "."],
            ["--out . is the current folder"],
        ),
        (["train", "book.txt", "--steps", "3", "--out", "book.txt"], ["book.txt already exists"]),
        (["train", "book.txt", "--steps", "3", "--out", "book.txt/run"], ["book.txt"]),
        (["resume", "nowhere"], ["nowhere is not a run", "lmsmith train TEXT --out nowhere"]),
        (["resume", "."], [". is not a run", "config.toml"]),
        (["resume", "book.txt"], ["book.txt is not a run"]),
        (["generate", "nowhere", "x"], ["nowhere is not a run"]),
        (["generate", "book.txt", "x"], ["book.txt is not a run"]),
        (["eval", "nowhere"], ["nowhere is not a run"]),
        (["report", "nowhere"], ["nowhere does not exist"]),
        (["report", "."], [". is not a run folder"]),
        (["demo", "--minutes", "soon"], ["invalid float value: 'soon'"]),
    ],
)
def test_wrong_use(lmsmith: Lmsmith, words: list[str], parts: list[str]) -> None:
    (lmsmith.cwd / "empty.toml").write_text("")
    before = content(lmsmith.cwd)
    done = lmsmith(*words)
    assert done.status in (1, 2)
    refused(done, done.status, *parts)
    assert content(lmsmith.cwd) == before


def test_a_folder_that_is_not_empty_is_not_overwritten(lmsmith: Lmsmith, run: Path) -> None:
    (lmsmith.cwd / "notes").mkdir()
    (lmsmith.cwd / "notes" / "a.txt").write_text("mine")
    before = content(lmsmith.cwd)
    done = lmsmith("train", "book.txt", "--steps", 5, *TINY, "--out", "run")
    refused(
        done,
        2,
        "run already holds a run; nothing was changed",
        "`lmsmith resume run`",
        "another --out",
    )
    done = lmsmith("train", "book.txt", "--steps", 5, *TINY, "--out", "notes")
    refused(
        done,
        2,
        "notes already exists and is not an empty folder; nothing was changed",
        "another --out",
    )
    assert content(lmsmith.cwd) == before


def test_an_empty_folder_is_used(lmsmith: Lmsmith) -> None:
    (lmsmith.cwd / "run").mkdir()
    assert lmsmith("train", "book.txt", "--steps", 2, *TINY, "--out", "run").status == 0
    assert sorted(os.listdir(lmsmith.cwd)) == ["book.txt", "run"]


def test_a_disk_that_fills_while_saving(lmsmith: Lmsmith) -> None:
    """A limit on file sizes simulates a full disk: both raise OSError in the middle of a write."""
    bytes_of = {"tokens": 20_000, "model": 60_000}  # the text fits; the optimizer's 100 kB do not
    options = [*TINY, "--model.d_model=32", "--train.save_every", 5, "--out", "run"]
    done = lmsmith("train", "book.txt", "--steps", 10, *options, file_bytes=bytes_of["model"])
    refused(done, 1, "step-00000005 exceeds the largest file size allowed here", "ulimit -f")
    assert os.listdir(lmsmith.cwd / "run" / "checkpoints") == []
    # Without the limit the run resumes.
    done = lmsmith("resume", "run")
    assert done.status == 0, done.err


def test_a_disk_that_fills_later_keeps_the_previous_checkpoint(lmsmith: Lmsmith, run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-00000030")
    (run / "summary.json").unlink()
    before = content(run / "checkpoints")
    sizes = [file.stat().st_size for file in (run / "checkpoints").rglob("*")]
    done = lmsmith("resume", "run", file_bytes=max(sizes) - 1)
    refused(
        done,
        1,
        "step-00000030 exceeds",
        "The checkpoint of step 20 is untouched: `lmsmith resume` continues from it",
    )
    assert content(run / "checkpoints") == before
    assert lmsmith("resume", "run").status == 0


@pytest.mark.skipif(
    not LINUX or os.geteuid() != 0, reason="mounting a small disk takes a Linux and its root"
)
def test_a_full_disk(lmsmith: Lmsmith) -> None:
    disk = lmsmith.cwd / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk], capture_output=True
    ).returncode:
        pytest.skip("no permission to mount")
    try:
        options = [*TINY, "--model.d_model=32", "--train.save_every", 5, "--out", "disk/run"]
        done = lmsmith("train", "book.txt", "--steps", 40, *options)
        refused(
            done, 1, "No space left on the disk for disk/run/checkpoints/step-", "free some space"
        )
        n_free = shutil.disk_usage(disk).free
        (disk / "full").write_bytes(bytes(n_free))
        done = lmsmith("train", "book.txt", "--steps", 40, *options[:-1], "disk/another")
        refused(done, 1, "No space left on the disk for disk/another/tokens/train.bin: free some")
        assert sorted(os.listdir(disk)) == ["full", "run"]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(
    not LINUX, reason="how to become a user without permissions is each system's own"
)
@pytest.mark.parametrize("command", ["train", "resume"])
def test_no_permission_to_write(lmsmith: Lmsmith, run: Path, command: str) -> None:
    # The test's folder is inside a folder that only its owner may enter.
    user = NOBODY if os.geteuid() == 0 else None
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000030")
    place = Path("/tmp") / f"lmsmith-test-{os.getpid()}"
    shutil.copytree(lmsmith.cwd, place)
    try:
        for path in [place, *place.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = content(place)
        lmsmith.cwd = place
        outputs = [place.with_name(f"{place.name}-{name}") for name in ("stdout", "stderr")]
        words = (
            ["train", "book.txt", "--steps", 5, *TINY] if command == "train" else ["resume", "run"]
        )
        done = lmsmith(
            *words, user=user, stdin=Path("/dev/null"), stdout=outputs[0], stderr=outputs[1]
        )
        refused(done, 1, "No permission to write", "change the permissions")
        assert content(place) == before
        if command == "train":
            done = lmsmith(
                *words,
                "--out",
                place / "mine",
                user=user,
                stdin=Path("/dev/null"),
                stdout=outputs[0],
                stderr=outputs[1],
            )
            refused(done, 1, f"No permission to write {place / 'mine'}")
    finally:
        for path in [place, *place.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        shutil.rmtree(place)
        for path in outputs:
            path.unlink(missing_ok=True)


@pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="another user is needed")
def test_no_permission_to_read(lmsmith: Lmsmith) -> None:
    place = Path("/tmp") / f"lmsmith-test-{os.getpid()}"
    place.mkdir()
    try:
        place.chmod(0o777)
        (place / "secret.txt").write_text(TEXT)
        (place / "secret.txt").chmod(0o600)
        lmsmith.cwd = place
        done = lmsmith(
            "train",
            "secret.txt",
            *TINY,
            user=NOBODY,
            stdin=Path("/dev/null"),
            stdout=place / "o",
            stderr=place / "e",
        )
        refused(done, 1, "no permission to read secret.txt")
    finally:
        shutil.rmtree(place)


def test_a_loss_that_is_not_finite(lmsmith: Lmsmith) -> None:
    wild = [
        "--optim.name=adamw",
        "--optim.learning_rate=1e30",
        "--model.qk_norm=no",
        "--model.logit_softcap=0",
    ]
    done = lmsmith(
        "train", "book.txt", "--steps", 50, *TINY, *wild, "--train.save_every", 1, "--out", "run"
    )
    refused(done, 1, "the gradient norm inf", "was not applied", "a lower --learning-rate")


def test_a_model_too_large_for_memory(lmsmith: Lmsmith) -> None:
    done = lmsmith("train", "book.txt", "--steps", 5, *TINY, "--model.d_ff=10000000000000")
    refused(done, 1, "out of memory", "--train.micro_batch_size")


def test_a_damaged_model_is_not_used(lmsmith: Lmsmith, run: Path) -> None:
    weights = run / "model" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    refused(
        lmsmith("generate", "run", "The"),
        1,
        "model.safetensors is not a complete safetensors file",
        "resume its run",
    )
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(lmsmith("eval", "run"), 1, "model.safetensors has SHA-256")
    weights.write_bytes(data)
    config = run / "model" / "config.json"
    config.write_text(config.read_text().replace('"d_model": 16', '"d_model": 32'))
    refused(lmsmith("generate", "run", "The"), 1, "do not match")
    (run / "model" / "tokenizer.json").write_text("{}")
    config.write_text(config.read_text().replace('"d_model": 32', '"d_model": 16'))
    refused(lmsmith("generate", "run", "The"), 1, "tokenizer.json is not a tokenizer")
    weights.unlink()
    refused(
        lmsmith("generate", "run", "The"),
        1,
        "run has no model yet",
        "`lmsmith resume run` continues",
    )


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--n", "0"], ["--n", "'0'", "1 or more"]),
        (["--temperature", "-1"], ["--temperature -1.0: ", "0 (greedy) or more"]),
        (["--temperature", "nan"], ["--temperature nan: "]),
        (["--top-k", "-1"], ["--top-k -1: "]),
        (["--top-k", "1.5"], ["--top-k", "invalid int value: '1.5'"]),
        (["--top-p", "0"], ["--top-p 0.0: "]),
        (["--min-p", "2"], ["--min-p 2.0: "]),
        (["--seed", "-3"], ["--seed -3: "]),
        (["--max-tokens", "-1"], ["--max-tokens -1: "]),
        (["--stop", ""], ["--stop ['']: "]),
        (["--tempreature", "1"], ["Did you mean --temperature?"]),
    ],
)
def test_generate(lmsmith: Lmsmith, run: Path, words: list[str], parts: list[str]) -> None:
    done = lmsmith("generate", "run", "The", *words)
    refused(done, 2, *parts)
    assert done.out == ""


@pytest.mark.parametrize(
    ("words", "status", "parts"),
    [
        (["--text", "missing.txt"], 1, ["no file or folder missing.txt"]),
        (["--text", "empty.txt"], 1, ["no text in empty.txt"]),
        (["--text", "bad.txt"], 1, ["bad.txt is not UTF-8", "--data.errors replace"]),
        (
            ["--text", "book.txt", "--stride", "0"],
            2,
            ["--stride 0: ", "1 to the model's context length, 16"],
        ),
        (["--text", "book.txt", "--stride", "17"], 2, ["--stride 17: "]),
        (["--text", "lines.jsonl"], 1, ["no field 'text'", "--data.text_field body"]),
        (["--errors", "replace"], 2, ["there is no --text"]),
    ],
)
def test_eval(lmsmith: Lmsmith, run: Path, words: list[str], status: int, parts: list[str]) -> None:
    (lmsmith.cwd / "empty.txt").write_bytes(b"")
    (lmsmith.cwd / "bad.txt").write_bytes(b"caf\xe9")
    (lmsmith.cwd / "lines.jsonl").write_text('{"body": "The cat"}\n')
    refused(lmsmith("eval", "run", *words), status, *parts)
