"""Every `tokenizer.json` that the library `tokenizers` loads gives the same ids in lmsmith, with
lmsmith's engine or the library.
"""

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from constructions import END, OTHERS, OURS, byte_level, make, token, tokenizers
from tiktoken_oracle import REPRESENTATIVES
from tokenizers import decoders, normalizers

from lmsmith.errors import TokenizerError
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.library import LibraryTokenizer
from lmsmith.tokens.stream_decoder import StreamDecoder
from lmsmith.tokens.tokenizer import Tokenizer

ODD = [
    "", " ", "\n", "x \n ", "x\n\n  ", "if x:    return  x", "  the the quick  the", "a  <think> \n b</think>",
    f"a{END} b{END}{END}", "<a>b c<a> <s>x</s> <mask>  "
                           "<mask>", "[UNK] <unk> \u2581 Ġfoo é e\u0301", "the_the the-the",
    "THE Fox fox THEN the", "日本 quickest 中文字12345", "  12 3\n\n4 '1's 2'll ½ ² Ⅷ ٣x", "\t7\r\n8 ",
    "isn't \u017f 's 'S",
    "\ufeffzero\u200bwidth \u00a0 \u2028 \x85 \x1c "
    "\x00", "ﷺ ﬁ ǅ İ ß", "🏳\ufe0f\u200d🌈 👨\u200d👩 \U0001f1e9",
    "\U000e0001 \U0010ffff",
]  # fmt: skip


def some_texts(test_data: Path, n_characters: int, n_random: int) -> list[str]:
    draw = random.Random(3)
    files = sorted(test_data.glob("multilingual/*.txt"))
    some = [file.read_text(encoding="utf-8")[:n_characters] for file in files]
    naughty = (test_data / "naughty_strings" / "blns.txt").read_text(encoding="utf-8")
    some.append(naughty[: 10 * n_characters])
    letters = [*REPRESENTATIVES, "the", "<think>", "  ", END, "x:"]
    some += ["".join(draw.choices(letters, k=draw.randint(0, 40))) for _ in range(n_random)]
    return [*ODD, *some]


@pytest.fixture(scope="session")
def texts(test_data: Path) -> list[str]:
    return some_texts(test_data, 200, 25)


def put(content: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(
        json.dumps(content, ensure_ascii=False), encoding="utf-8"
    )
    return folder


def theirs(content: dict[str, Any], *, specials: bool) -> Any:
    engine = tokenizers.Tokenizer.from_str(json.dumps(content))
    engine.no_truncation()
    engine.no_padding()
    engine.encode_special_tokens = not specials
    return engine


def check(ours: Tokenizer, content: dict[str, Any], texts: list[str]) -> None:
    """Compares ids, with and without special tokens, and decoded text, at once and as a stream."""
    assert isinstance(ours, BpeTokenizer | LibraryTokenizer)
    with_specials, plain = theirs(content, specials=True), theirs(content, specials=False)
    for text in texts:
        ids = with_specials.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, allowed_special="all").tolist() == ids, text[:200]
        assert ours.encode(text).tolist() == plain.encode(text, add_special_tokens=False).ids, text[
            :200
        ]
        decoded = with_specials.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids) == decoded, text[:200]
        if len(text) < 300:
            stream = StreamDecoder(ours)
            assert "".join(map(stream.push, ids)) + stream.flush() == decoded, text[:200]


@pytest.mark.parametrize("name", OURS)
def test_files_that_lmsmiths_engine_runs(name: str, tmp_path: Path, texts: list[str]) -> None:
    content = OURS[name]()
    ours = load_tokenizer(put(content, tmp_path))
    assert isinstance(ours, BpeTokenizer)
    check(ours, content, texts)
    assert pickle.loads(pickle.dumps(ours)) == ours
    save_tokenizer(ours, tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert loaded == ours
    check(loaded, content, ODD[:8])


@pytest.mark.parametrize("name", OTHERS)
def test_files_that_the_library_runs(name: str, tmp_path: Path, texts: list[str]) -> None:
    content = OTHERS[name]()
    ours = load_tokenizer(put(content, tmp_path))
    assert isinstance(ours, LibraryTokenizer)
    check(ours, content, texts)
    assert pickle.loads(pickle.dumps(ours)) == ours
    save_tokenizer(ours, tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert loaded == ours
    assert loaded.to_dict()["content"] == content
    check(loaded, content, ODD[:8])
    check_streams_of_random_ids(ours)


def check_streams_of_random_ids(ours: LibraryTokenizer) -> None:
    """An untrained model samples any ids: decoding them as a stream must give the same text."""
    draw = random.Random(1)
    for _ in range(20):
        ids = draw.choices(range(ours.vocab_size), k=30)
        stream = StreamDecoder(ours)
        parts = [stream.push(ids[:3]), stream.push([]), *map(stream.push, ids[3:]), stream.flush()]
        assert "".join(parts) == ours.decode(ids)


def test_text_that_decoding_does_not_restore_is_counted(tmp_path: Path) -> None:
    lower = load_tokenizer(put(OTHERS["normalizer Lowercase"](), tmp_path))
    text = "The cat saw The  DOG, and the cat ran."
    assert lower.decode(lower.encode(text)) == text.lower()
    assert (lower.count_unknown(text), lower.unknown_bytes(text)) == (3, len("TheTheDOG,"))
    words = load_tokenizer(put(OTHERS["wordlevel"](), tmp_path))
    text = "the quick zebra ran\n"
    assert words.decode(words.encode(text)) == "the quick [UNK] [UNK]"
    assert (words.count_unknown(text), words.unknown_bytes(text)) == (3, len("zebraran\n"))
    exact = load_tokenizer(put(OTHERS["qwen2"](), tmp_path))
    assert exact.count_unknown("zebra \ud800") == 1
    assert exact.unknown_bytes("Naïve, 中文  \n") == 0


def test_special_tokens_are_all_allowed_or_none(tmp_path: Path) -> None:
    content = make(
        pre=byte_level(), normalizer=normalizers.NFC(), added=(token("<s>", special=True),)
    )
    ours = load_tokenizer(put(content, tmp_path))
    assert isinstance(ours, LibraryTokenizer)
    end, start = ours.special_tokens[END], ours.special_tokens["<s>"]
    assert ours.end_of_text == end
    assert end not in ours.encode(f"a{END}")
    assert ours.encode(f"{END}", allowed_special={END}).tolist() == [end]
    assert ours.encode(f"{END}<s>", allowed_special="all").tolist() == [end, start]
    assert start not in ours.encode("<s>", allowed_special={END})
    with pytest.raises(TokenizerError, match="all special tokens or none"):
        ours.encode(f"{END}<s>", allowed_special={END})
    with pytest.raises(TokenizerError, match="'<s>' at character 3, where it is not allowed"):
        ours.encode("ab <s>", disallowed_special="all")
    batch = ours.encode_batch(["ab", "c d"], threads=2)
    assert [ids.tolist() for ids in batch] == [
        ours.encode("ab").tolist(),
        ours.encode("c d").tolist(),
    ]
    (ids,) = ours.encode_iter([b"\xc3", b"\xa9 x"])
    assert ids.tolist() == ours.encode("é x").tolist()


def test_reasons_in_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = OTHERS["normalizer NFC"]()
    for change, message in (
        (
            {"model": content["model"] | {"dropout": 0.5}},
            "dropout 0.5, so the ids of a text would differ",
        ),
        (
            {"added_tokens": [content["added_tokens"][0] | {"id": 900}]},
            "has the id 900 in the file, but 380 in",
        ),
        ({"normalizer": {"type": "Nothing"}}, "the library tokenizers cannot load this tokenizer"),
    ):
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(put(content | change, tmp_path))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        TokenizerError, match=r"needs the library tokenizers: run pip install 'lmsmith\[hf\]'"
    ):
        load_tokenizer(put(content, tmp_path))


def test_errors_and_panics_of_the_library(tmp_path: Path) -> None:
    content = make("wordlevel", decoder=decoders.Strip("x", 0, 1), end=False)
    content["model"]["unk_token"], content["added_tokens"] = "gone", []
    ours = load_tokenizer(put(content, tmp_path))
    with pytest.raises(TokenizerError, match="cannot encode a text of 5 characters"):
        ours.encode("zebra")
    content["model"]["vocab"] = {"": 0}
    ours = load_tokenizer(put(content, tmp_path))
    with pytest.raises(TokenizerError, match="cannot decode 1 ids"):
        ours.decode([0])


def test_ids_without_a_token(tmp_path: Path) -> None:
    content = make(pre=byte_level(), normalizer=normalizers.NFC(), end=False)
    content["model"]["vocab"] |= {"qq": 390}
    ours = load_tokenizer(put(content, tmp_path))
    assert isinstance(ours, LibraryTokenizer)
    assert (ours.vocab_size, ours.ids_without_token.tolist()) == (391, list(range(380, 390)))
    assert ours.decode([381, 70]) == ours.decode([70])


def test_another_process_gives_the_same_ids(tmp_path: Path) -> None:
    ours = load_tokenizer(put(OTHERS["qwen2"](), tmp_path))
    code = (
        "import pickle, sys; print(pickle.load(sys.stdin.buffer).encode('Naïve e\u0301 "
        "<think>').tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(ours), capture_output=True, check=True
    )
    assert json.loads(done.stdout) == ours.encode("Naïve e\u0301 <think>").tolist()
    assert not done.stderr


@pytest.mark.slow
def test_more_texts(tmp_path: Path, test_data: Path) -> None:
    texts = some_texts(test_data, 1000, 400)
    for construct in (*OURS.values(), *OTHERS.values()):
        content = construct()
        check(load_tokenizer(put(content, tmp_path)), content, texts)


def test_there_are_many_constructions() -> None:
    assert len(OURS) + len(OTHERS) >= 60
