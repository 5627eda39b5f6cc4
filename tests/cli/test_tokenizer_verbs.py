"""`lmsmith tokenizer ...` and `lmsmith bench tokenizer`, as users type them."""

import json
import re
from pathlib import Path

import pytest
from conftest import TEXT, Lmsmith
from tokenizers import Tokenizer as HuggingFace
from tokenizers import models, pre_tokenizers

from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.files import load_tokenizer
from lmsmith.tokens.ranks import save_tiktoken


@pytest.fixture
def bpe(lmsmith: Lmsmith) -> Path:
    done = lmsmith("tokenizer", "train", "book.txt", "--vocab-size", 300, "--out", "bpe")
    assert done.status == 0, done.err
    return lmsmith.cwd / "bpe"


def ids(out: str) -> list[int]:
    return [int(word) for word in out.split()]


def test_train_learns_the_same_merges_as_the_library(bpe: Path) -> None:
    assert load_tokenizer(bpe).fingerprint == learn_bpe([TEXT], 300).fingerprint


def test_train_prints_the_result(lmsmith: Lmsmith) -> None:
    done = lmsmith("tokenizer", "train", "book.txt", "--vocab-size", 300, "--out", "my bpe")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[-2:] == [
        "wrote my bpe: 300 tokens",
        "try      lmsmith tokenizer inspect 'my bpe'",
    ]


def test_train_that_ends_early_prints_a_note(lmsmith: Lmsmith) -> None:
    done = lmsmith("tokenizer", "train", "book.txt", "--vocab-size", 9000, "--out", "bpe")
    size = load_tokenizer(lmsmith.cwd / "bpe").vocab_size
    assert done.status == 0
    assert f"the vocabulary has {size} entries instead of 9000" in done.err
    assert f"wrote bpe: {size:,} tokens" in done.out


def test_special_tokens_and_no_special_tokens(lmsmith: Lmsmith) -> None:
    for name, options in {
        "two": ["--special", "<a>", "--special", "<b>"],
        "none": ["--no-special"],
    }.items():
        assert (
            lmsmith(
                "tokenizer", "train", "book.txt", "--vocab-size", 260, *options, "--out", name
            ).status
            == 0
        )
    two, none = (load_tokenizer(lmsmith.cwd / name) for name in ("two", "none"))
    assert two.special_tokens == {"<a>": 258, "<b>": 259}  # type: ignore[attr-defined]
    assert none.special_tokens == {}  # type: ignore[attr-defined]
    assert ids(lmsmith("tokenizer", "encode", "two", "--special", "<b><a>").out) == [259, 258]
    assert ids(lmsmith("tokenizer", "encode", "two", "<b>").out) != [259]


def test_the_end_of_text_token_is_known_by_name(lmsmith: Lmsmith) -> None:
    words = (
        "tokenizer",
        "train",
        "book.txt",
        "--vocab-size",
        260,
        "--special",
        "<a>",
        "--special",
        "<b>",
    )
    assert lmsmith(*words, "--eos-token", "<a>", "--out", "named").status == 0
    assert load_tokenizer(lmsmith.cwd / "named").end_of_text == 258
    assert "end of text  <a>" in lmsmith("tokenizer", "inspect", "named").out
    done = lmsmith(*words, "--eos-token", "<c>", "--out", "other")
    assert (done.status, (lmsmith.cwd / "other").exists()) == (1, False)
    assert "'<c>' cannot be the end-of-text token" in done.err


def test_patterns_by_name(lmsmith: Lmsmith) -> None:
    words = ("tokenizer", "train", "book.txt", "--vocab-size", 260, "--out", "bpe", "--pattern")
    done = lmsmith(*words, "nosuch")
    assert done.status == 1
    assert "no pattern 'nosuch'" in done.err
    assert lmsmith(*words, r"\p{L}+|\P{L}").status == 0
    assert "has the prefix regex:" in " ".join(lmsmith("tokenizer", "train", "--help").out.split())


def test_import_adds_what_a_file_does_not_contain(lmsmith: Lmsmith, bpe: Path) -> None:
    save_tiktoken(learn_bpe([TEXT], 280, special_tokens=()), lmsmith.cwd / "ranks.txt")
    done = lmsmith("tokenizer", "encode", "ranks.txt", "x")
    assert done.status == 1
    assert "tokenizer import ranks.txt --pattern NAME" in done.err
    options = ("--pattern", "gpt4", "--special", "<a>=290", "--eos-token", "<a>")
    done = lmsmith("tokenizer", "import", "ranks.txt", *options, "--out", "new")
    assert (done.status, done.out.splitlines()[0]) == (0, "wrote new: 291 tokens")
    assert load_tokenizer(lmsmith.cwd / "new").end_of_text == 290
    assert (
        lmsmith("tokenizer", "import", "ranks.txt", *options, "--out", "new").status == 1
    )  # it exists already
    for wrong in (
        ("--pattern", "gpt5"),
        ("--special", "<a>"),
        ("--eos-token", "<z>", "--pattern", "gpt4"),
    ):
        done = lmsmith("tokenizer", "import", "ranks.txt", *wrong, "--out", "other")
        assert done.status in (1, 2)
        assert "Traceback" not in done.err
        assert not (lmsmith.cwd / "other").exists()


def test_decode_inverts_encode(lmsmith: Lmsmith, bpe: Path) -> None:
    text = "The old boat — naïve 🙂\n"
    encoded = lmsmith("tokenizer", "encode", "bpe", text).out
    assert ids(encoded) == load_tokenizer(bpe).encode(text).tolist()
    assert lmsmith("tokenizer", "encode", "bpe", stdin=text).out == encoded
    assert lmsmith("tokenizer", "decode", "bpe", *encoded.split()).out == text + "\n"
    assert lmsmith("tokenizer", "decode", "bpe", stdin=encoded).out == text + "\n"


def test_encode_shows_each_token(lmsmith: Lmsmith, bpe: Path) -> None:
    done = lmsmith("tokenizer", "encode", "bpe", "--show", "The cat")
    shown = [re.fullmatch(r" +(\d+) '(.+)'", line) for line in done.out.splitlines()]
    assert "".join(match[2] for match in shown if match) == "The cat"
    assert [int(match[1]) for match in shown if match] == load_tokenizer(bpe).encode(
        "The cat"
    ).tolist()


def test_the_tokenizer_of_a_run(lmsmith: Lmsmith, run: Path) -> None:
    done = lmsmith("tokenizer", "encode", "run", "The cat")
    assert ids(done.out) == load_tokenizer(run / "model").encode("The cat").tolist()


def test_gpt2_files_and_their_peers(lmsmith: Lmsmith, test_data: Path) -> None:
    found = ids(lmsmith("tokenizer", "encode", test_data / "gpt2", "Hello world, it's 2026!").out)
    vocabulary = json.loads((test_data / "gpt2" / "vocab.json").read_text(encoding="utf-8"))
    merges = (test_data / "gpt2" / "merges.txt").read_text(encoding="utf-8").splitlines()
    peer = HuggingFace(models.BPE(vocabulary, [tuple(line.split(" ")) for line in merges]))
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert found == peer.encode("Hello world, it's 2026!").ids


def test_inspect(lmsmith: Lmsmith, bpe: Path) -> None:
    (lmsmith.cwd / "other.txt").write_text("Ελληνικά " * 50, encoding="utf-8")
    done = lmsmith("tokenizer", "inspect", "bpe", "--text", "book.txt", "other.txt")
    assert done.status == 0, done.err
    assert "' old boat'" not in done.out  # a token does not cross words
    assert "book.txt" in done.out
    found = json.loads(
        lmsmith("tokenizer", "inspect", "bpe", "--text", "book.txt", "other.txt", "--json").out
    )
    longest = max(load_tokenizer(bpe).tokens, key=lambda token: len(token or b""))  # type: ignore[attr-defined]
    assert found["longest"][0]["text"].encode() == longest
    own, other = found["on_texts"]
    assert own["bytes_per_token"] == pytest.approx(
        len(TEXT) / len(load_tokenizer(bpe).encode(TEXT))
    )
    assert other["bytes_per_token"] == pytest.approx(
        1, abs=0.3
    )  # merges of English do not apply to Greek


def test_compare_refuses_a_tokenizer_before_it_learns_others(lmsmith: Lmsmith) -> None:
    done = lmsmith("tokenizer", "compare", "nowhere", "--text", "book.txt")
    assert done.status == 1
    assert "there is no tokenizer at nowhere" in done.err
    assert "merg" not in done.err


def test_compare_prints_a_table_and_writes_a_page(lmsmith: Lmsmith, bpe: Path) -> None:
    done = lmsmith(
        "tokenizer",
        "compare",
        "bpe",
        "--text",
        "book.txt",
        "--sizes",
        "270,290",
        "--out",
        "page.html",
    )
    assert done.status == 0, done.err
    for name in ("bytes", "characters", "words", "BPE 270", "BPE 290", "bpe"):
        assert re.search(rf"^{name} ", done.out, re.MULTILINE), name
    page = (lmsmith.cwd / "page.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "BPE 290" in page
    rows = json.loads(
        lmsmith("tokenizer", "compare", "--text", "book.txt", "--sizes", "270", "--json").out
    )
    assert {row["kind"]: row["bytes_per_token"] for row in rows}["byte"] == 1


@pytest.mark.parametrize(
    ("words", "status", "parts"),
    [
        (
            ["train", "book.txt", "--vocab-size", "256", "--out", "x"],
            1,
            ["vocabulary of 256", "need 257"],
        ),
        (
            ["train", "book.txt", "--vocab-size", "300", "--special", "", "--out", "x"],
            1,
            ["special token is empty"],
        ),
        (
            ["train", "book.txt", "--vocab-size", "300", *["--special", "<a>"] * 2, "--out", "x"],
            1,
            ["given twice"],
        ),
        (
            ["train", "book.txt", "--vocab-size", "300", "--out", "bpe"],
            1,
            ["bpe already contains a tokenizer"],
        ),
        (["train", "none.txt", "--vocab-size", "300", "--out", "x"], 1, ["none.txt"]),
        (
            ["train", "book.txt", "--vocab-size", "300", "--pattern", "(", "--out", "x"],
            1,
            ["pattern"],
        ),
        (
            ["train", "book.txt", "--vocab-size", "many", "--out", "x"],
            2,
            ["'many'", "whole number"],
        ),
        (
            ["train", "book.txt", "--vocab-size", "300", "--max-memory", "much", "--out", "x"],
            2,
            ["'much'", "2GB"],
        ),
        (["train", "book.txt"], 2, ["--vocab-size", "--out"]),
        (["encode", "none", "text"], 1, ["no tokenizer at none"]),
        (["decode", "bpe", "300"], 1, ["300", "vocabulary"]),
        (["decode", "bpe", "9" * 30], 1, ["9" * 30, "vocabulary"]),
        (["decode", "bpe", "one"], 2, ["'one' is not a token id"]),
        (
            ["encode", "bpe", "--specials", "text"],
            2,
            ["no option '--specials'", "Did you mean --special?"],
        ),
        (["tran"], 2, ["no command 'tokenizer tran'", "Did you mean train?"]),
        ([], 2, ["one of train, import, encode, decode, inspect, compare"]),
        (["compare", "--text", "book.txt", "--sizes", "a"], 2, ["512,2048"]),
    ],
)
def test_wrong_use_is_one_clear_error(
    lmsmith: Lmsmith, bpe: Path, words: list[str], status: int, parts: list[str]
) -> None:
    done = lmsmith("tokenizer", *words)
    assert (done.status, "Traceback" in done.err) == (status, False), done.err
    assert done.err.startswith("lmsmith: ")
    assert all(part in done.err for part in parts), done.err
    assert not (lmsmith.cwd / "x").exists()


def test_a_damaged_folder(lmsmith: Lmsmith, bpe: Path) -> None:
    file = bpe / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("gpt4", "gpt2"), encoding="utf-8")
    done = lmsmith("tokenizer", "encode", "bpe", "text")
    assert (done.status, done.out) == (1, "")
    assert "is damaged" in done.err


def test_a_merges_file_with_a_broken_line(lmsmith: Lmsmith, test_data: Path) -> None:
    lmsmith("tokenizer", "train", "book.txt", "--vocab-size", 300, "--out", "bpe")
    (lmsmith.cwd / "gpt2").mkdir()
    (lmsmith.cwd / "gpt2" / "vocab.json").write_bytes(
        (test_data / "gpt2" / "vocab.json").read_bytes()
    )
    lines = (test_data / "gpt2" / "merges.txt").read_text(encoding="utf-8").splitlines()
    lines[4] = "broken"
    (lmsmith.cwd / "gpt2" / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = lmsmith("tokenizer", "encode", "./gpt2", "text")
    assert done.status == 1
    assert re.search(r"line 5\b", done.err), done.err


@pytest.mark.slow
def test_bench(lmsmith: Lmsmith) -> None:
    done = lmsmith("bench", "tokenizer", "book.txt", "--vocab-size", 300, "--rounds", 1)
    assert done.status == 0, done.err
    for name in ("lmsmith", "tiktoken", "Hugging Face", "rustbpe"):
        assert re.search(rf"^{name} +[\d.]+ ", done.out, re.MULTILINE), name
    assert "from import to the first ids" in done.out
