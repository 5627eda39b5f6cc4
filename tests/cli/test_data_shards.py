"""Training on token shards, mixing sources, looking at both: as users run it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXT, TINY, Lmsmith

from lmsmith.data.prepare.build import build_shards
from lmsmith.data.shards import write_shard
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer

STEPS = ["--steps", 12, *TINY, "--train.save_every", 6]


@pytest.fixture(scope="module")
def _shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text as one training shard and as many, and byte shards of another program."""
    place = tmp_path_factory.mktemp("shards")
    lines = "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines())
    (place / "lines.jsonl").write_text(lines, encoding="utf-8")
    for name, n in (("one", 10**8), ("many", 700)):
        build_shards(
            [str(place / "lines.jsonl")], place / name, tokenizer="char", shard_tokens=n, workers=1
        )
    (place / "bytes").mkdir()
    for name, text in (
        ("train_000001", TEXT[:9000]),
        ("train_000002", TEXT[9000:12000]),
        ("val_000000", TEXT[12000:]),
    ):
        write_shard(
            place / "bytes" / f"fineweb_{name}.bin",
            np.append([256], ByteTokenizer(True).encode(text)),
            257,
        )
    return place


@pytest.fixture
def shards(_shards: Path, lmsmith: Lmsmith) -> Path:
    """In the test's folder: one/, many/, bytes/."""
    shutil.copytree(_shards, lmsmith.cwd, dirs_exist_ok=True)
    return lmsmith.cwd


def summary(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "summary.json").read_text())
    return found


def test_a_run_on_shards(lmsmith: Lmsmith, shards: Path) -> None:
    """One shard or many give the same run, which is scored, inspected and resumed without a copy of
    the tokens.
    """
    for name in ("one", "many"):
        done = lmsmith("train", name, *STEPS, "--out", f"run-{name}")
        assert (done.status, done.err) == (0, "")
    assert len(list((shards / "many").glob("train_*.bin"))) > 5
    assert not list((shards / "run-many").rglob("*.bin"))
    one, many = summary(shards / "run-one"), summary(shards / "run-many")
    assert (many["val_loss"], many["val_bits_per_byte"]) == (
        one["val_loss"],
        one["val_bits_per_byte"],
    )
    assert many["n_train_tokens"] == one["n_train_tokens"]
    assert many["baselines"].keys() == {"gzip", "xz"}  # type: ignore[attr-defined]
    scored = json.loads(lmsmith("eval", "run-many", "--json").out)
    assert scored["nats_per_token"] == pytest.approx(one["val_loss"], rel=1e-6)
    assert scored["bits_per_byte"] == pytest.approx(one["val_bits_per_byte"], rel=1e-6)
    assert lmsmith("generate", "run-many", "The", "--max-tokens", 5).status == 0

    found = json.loads(lmsmith("data", "inspect", "--exposure", "run-many", "--json").out)
    ((name, source),) = found["sources"].items()
    assert (name, found["steps"]) == ("many", 12)
    assert sum(times * n for times, n in enumerate(source["times"])) == 12 * 4 * 16
    assert sum(source["times"]) == source["n_tokens"] == one["n_train_tokens"]
    shown = lmsmith("data", "inspect", "--exposure", "run-many").out
    assert shown.startswith("run-many: after 12 steps\n")
    assert "never seen" in shown

    (shards / "run-many" / "summary.json").unlink()
    shutil.rmtree(shards / "run-many" / "checkpoints" / "step-00000012")
    assert (
        json.loads(lmsmith("data", "inspect", "--exposure", "run-many", "--json").out)["steps"] == 6
    )
    manifest = shards / "many" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(before.replace('"notes": [', '"notes": ["other",'))
    done = lmsmith("resume", "run-many")
    assert done.status == 1
    assert "have changed since the run began: the manifest differs" in done.err
    manifest.write_text(before)
    assert lmsmith("resume", "run-many").status == 0
    assert summary(shards / "run-many")["val_loss"] == one["val_loss"]


def test_inspecting(lmsmith: Lmsmith, shards: Path) -> None:
    done = lmsmith("data", "inspect", "many", "--verify")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("many: prepared by lmsmith from 1 file\ntokenizer  char, ")
    assert "train starts with  '<|endoftext|>The cat saw the ball" in done.out
    assert done.out.endswith("verified: every byte matches the manifest\n")
    path = shards / "many" / "train_000002.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    done = lmsmith("data", "inspect", "many", "--verify")
    assert done.status == 1
    assert "train_000002.bin has changed: its SHA-256 is" in done.out
    assert "has id" in done.out
    assert (
        "lmsmith: many is damaged (2 problems, listed above): copy or prepare it again." in done.err
    )
    assert lmsmith("data", "inspect", "many").status == 0
    one = json.loads(lmsmith("data", "inspect", "bytes/fineweb_train_000001.bin", "--json").out)
    assert (one["splits"][0]["n_tokens"], one["prepared"]) == (9001, False)
    save_tokenizer(ByteTokenizer(True), shards / "byte")
    for words, told in (
        ([], "verified: lengths; "),
        (["--tokenizer", "byte"], "verified: ids and lengths"),
    ):
        assert told in lmsmith("data", "inspect", "bytes", "--verify", *words).out
    for words in ([], ["many", "--exposure", "run"]):
        done = lmsmith("data", "inspect", *words)
        assert done.status == 2
        assert "either a folder of shards, or a run after --exposure" in done.err


def test_unusable_shards_are_refused(lmsmith: Lmsmith, shards: Path) -> None:
    """Each gives an error in one sentence, and no run folder is created."""
    save_tokenizer(ByteTokenizer(True), shards / "other")
    cases = [
        (["one", "--tokenizer", "other"], "one was made with another tokenizer (char, "),
        (["bytes"], "does not say which tokenizer made its shards. Name it: --tokenizer gpt2"),
        (["bytes", "one", "--tokenizer", "byte"], "one was made with another tokenizer (char, "),
        (["bytes/fineweb_val_000000.bin"], "is a single shard. Name its folder, bytes"),
    ]
    (shards / "bytes" / "fineweb_train_000002.bin").write_bytes(b"")
    cases += [
        (
            ["bytes", "--tokenizer", "byte"],
            "fineweb_train_000002.bin is not a shard: it has 0 bytes",
        )
    ]
    for words, message in cases:
        done = lmsmith("train", *words, *STEPS, "--out", "run")
        assert done.status in (1, 2), words
        assert message in done.err
        assert "Traceback" not in done.err
        assert not (shards / "run").exists()
    write_shard(shards / "bytes" / "fineweb_train_000002.bin", np.full(3000, 999), 65536)
    done = lmsmith("train", "bytes", "--tokenizer", "byte", "--steps", 500, *TINY, "--out", "run")
    assert done.status == 1
    assert "fineweb_train_000002.bin has id 999 at position" in done.err
    assert "Traceback" not in done.err


def test_a_recipe_that_mixes(lmsmith: Lmsmith, shards: Path) -> None:
    """Text, and another program's shards with the same tokenizer; the run's config repeats the mix."""
    (shards / "mix.toml").write_text(
        'tokenizer = "byte"\n[train]\nsteps = 10\n'
        '[[data.mixture]]\npath = "book.txt"\nweight = 3\n[[data.mixture]]\npath = '
        '"bytes"\nweight = 1\n',
        encoding="utf-8",
    )
    done = lmsmith("train", "mix.toml", *TINY, "--out", "run")
    assert (done.status, done.err) == (0, "")
    assert "of the training rows, 0.75 are from book.txt, 0.25 are from bytes" in " ".join(
        done.out.split()
    )
    assert "has no manifest" in done.out
    found = json.loads(lmsmith("data", "inspect", "--exposure", "run", "--json").out)["sources"]
    predicted = {
        name: sum(k * n for k, n in enumerate(source["times"])) for name, source in found.items()
    }
    assert predicted == {"book.txt": 30 * 16, "bytes": 10 * 16}
    assert lmsmith("train", "run/config.toml", "--out", "again").status == 0
    assert summary(shards / "again")["val_loss"] == summary(shards / "run")["val_loss"]
    (shards / "book.txt").unlink()  # the run has a copy of its tokens
    assert lmsmith("eval", "run").status == 0
    assert lmsmith("report", "run").status == 0


def test_a_file_in_two_sources_is_refused(lmsmith: Lmsmith) -> None:
    """Otherwise its end would be held out of one source and trained on in the other."""
    (lmsmith.cwd / "folder").mkdir()
    (lmsmith.cwd / "folder" / "book.txt").write_text(TEXT, encoding="utf-8")
    recipe = (
        '[[data.mixture]]\npath = "folder"\nweight = 1\n[[data.mixture]]\npath = '
        '"folder/book.txt"\nweight = 1\n'
    )
    (lmsmith.cwd / "mix.toml").write_text(recipe, encoding="utf-8")
    done = lmsmith("train", "mix.toml", "--steps", 2, *TINY)
    assert done.status == 2
    assert "book.txt is in two sources" in done.err
