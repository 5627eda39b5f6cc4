"""Formats of other programs: saved files give the same ids in those programs, and loaded files give
the same ids as there.
"""

import base64
import hashlib
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiktoken_oracle import REPRESENTATIVES, gpt2_ranks

from lmsmith.errors import TokenizerError
from lmsmith.tokens import foreign, ranks
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.split import PATTERNS, pattern_of

SPECIAL = "<|endoftext|>"
LEARNED_FROM = (
    "Don't the cats' hats fit?  中文字 中文, 12345 naïve\n\n\tdef f(x): return x\r\n  и так далее… "
    * 3
)

every_pattern = pytest.mark.parametrize("name", PATTERNS)


def texts(test_data: Path) -> list[str]:
    draw = random.Random(7)
    some = [
        file.read_text(encoding="utf-8")[:15_000]
        for file in sorted(test_data.glob("multilingual/*.txt"))
    ]
    some.append((test_data / "naughty_strings" / "blns.txt").read_text(encoding="utf-8"))
    some += ["".join(draw.choices(REPRESENTATIVES, k=draw.randint(0, 60))) for _ in range(600)]
    return [*some, "", " ", "\n", "x \n ", "x\n\n  "]


@every_pattern
def test_hugging_face_gives_the_same_ids(name: str, tmp_path: Path, test_data: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    ours = learn_bpe([LEARNED_FROM], 380, pattern=name)
    foreign.save_huggingface(ours, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts(test_data):
        assert theirs.encode(text).ids == ours.encode(text).tolist(), text[:200]
    text = f"a{SPECIAL}b  "
    assert theirs.encode(text).ids == ours.encode(text, allowed_special="all").tolist()
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, BpeTokenizer)
    assert loaded == ours


def test_single_digits_first(tmp_path: Path, test_data: Path) -> None:
    """Digits before ByteLevel, as in SmolLM and other small Llama models: loaded, and saved as one
    expression.
    """
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    theirs.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=[SPECIAL]
    )
    theirs.train_from_iterator([LEARNED_FROM, "in 1 or  22 \n 333 x4y '5's"] * 9, trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert isinstance(ours, BpeTokenizer)
    (tmp_path / "again").mkdir()
    foreign.save_huggingface(ours, tmp_path / "again")
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    for text in [*texts(test_data), "a  1", "  12 3\n\n4", "'1's 2'll", "½ ² Ⅷ ٣x", "\t7\r\n8 "]:
        expected = theirs.encode(text).ids
        assert ours.encode(text).tolist() == expected, text[:200]
        assert saved.encode(text).ids == expected, text[:200]


def test_transformers_gives_the_same_ids(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = learn_bpe([LEARNED_FROM], 380)
    foreign.save_huggingface(ours, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    text = f"The cats don't{SPECIAL} fit 中文, 123456 times  \n"
    assert theirs.encode(text) == ours.encode(text, allowed_special="all").tolist()
    assert theirs.decode(theirs.encode(text)) == text
    assert theirs.eos_token_id == ours.end_of_text


@every_pattern
def test_tiktoken_gives_the_same_ids(name: str, tmp_path: Path, test_data: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    load = pytest.importorskip("tiktoken.load")
    ours = learn_bpe([LEARNED_FROM], 380, pattern=name)
    path = tmp_path / "new" / "ours.tiktoken"
    ranks.save_tiktoken(ours, path)
    theirs = tiktoken.Encoding(
        name,
        pat_str=ours.pattern.regex,
        mergeable_ranks=load.load_tiktoken_bpe(str(path)),
        special_tokens=ours.special_tokens,
    )
    loaded = ranks.load_tiktoken(path, name, ours.special_tokens)
    assert loaded.vocab_size == ours.vocab_size == theirs.n_vocab
    for text in texts(test_data):
        assert (
            theirs.encode_ordinary(text)
            == ours.encode(text).tolist()
            == loaded.encode(text).tolist()
        )


def test_gpt2_files(test_data: Path, tmp_path: Path) -> None:
    ours = load_tokenizer(test_data / "gpt2")
    assert isinstance(ours, BpeTokenizer)
    assert ours.special_tokens == {SPECIAL: 50256}
    assert {token: i for i, token in enumerate(ours.tokens) if token is not None} == gpt2_ranks(
        test_data / "gpt2"
    )
    foreign.save_gpt2_files(ours, tmp_path / "new")
    assert load_tokenizer(tmp_path / "new") == ours
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.ByteLevelBPETokenizer(
        str(tmp_path / "new" / "vocab.json"), str(tmp_path / "new" / "merges.txt")
    )
    for text in texts(test_data)[:100]:
        assert theirs.encode(text).ids == ours.encode(text).tolist()
    with pytest.raises(TokenizerError, match="GPT-2's pattern"):
        foreign.save_gpt2_files(learn_bpe(["x"], 257, pattern="gpt4"), tmp_path)


def test_ranks_saved_as_hugging_face(tmp_path: Path, test_data: Path) -> None:
    """A tiktoken file has no merges: the `tokenizer.json` gets all pairs whose concatenation is a
    token.
    """
    tokenizers = pytest.importorskip("tokenizers")
    learned = learn_bpe([LEARNED_FROM], 380)
    ranks = BpeTokenizer(learned.tokens, None, learned.pattern, learned.special_tokens)
    foreign.save_huggingface(ranks, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts(test_data):
        assert theirs.encode(text).ids == ranks.encode(text).tolist()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], "<|end_of_text|>"),
        (["<s>", "</s>", SPECIAL], SPECIAL),
        (["<unk>", "<s>"], None),
    ],
)
def test_end_of_text_by_common_names(
    names: list[str], expected: str | None, tmp_path: Path
) -> None:
    foreign.save_huggingface(learn_bpe([LEARNED_FROM], 300, special_tokens=names), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, BpeTokenizer)
    end_of_text = None if expected is None else tokenizer.special_tokens[expected]
    assert tokenizer.end_of_text == end_of_text


def test_lmsmith_format(tmp_path: Path) -> None:
    for ours in (
        learn_bpe([LEARNED_FROM], 380),
        BpeTokenizer(
            [*(bytes([b]) for b in range(256)), b"ab", None], None, r"\p{L}+|\s+", {"<s>": 257}
        ),
    ):
        path = save_tokenizer(ours, tmp_path)
        assert load_tokenizer(tmp_path) == ours
        content = json.loads(path.read_text(encoding="utf-8"))["tokenizer"]
        assert content["vocabulary"][32] == "Ġ"
    assert content["pattern"] == r"\p{L}+|\s+"
    damaged = path.read_text(encoding="utf-8").replace('"ab"', '"ba"')
    path.write_text(damaged, encoding="utf-8")
    with pytest.raises(TokenizerError, match="does not match its sha256"):
        load_tokenizer(tmp_path)


# ---- gpt2 by name --------------------------------------------------------------------------------


@pytest.fixture
def served(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[str, str]]:
    """GPT-2's files at file:// addresses, and an empty cache."""
    files = {}
    for name in ("vocab.json", "merges.txt"):
        path = (test_data / "gpt2" / name).resolve()
        files[name] = (path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(foreign, "_GPT2_FILES", files)
    monkeypatch.setenv("LMSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return files


def test_gpt2_by_name_is_downloaded_once(
    served: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    assert load_tokenizer("gpt2").vocab_size == 50257
    for name, (_, sha256) in served.items():
        served[name] = ("file:///nowhere", sha256)
    assert load_tokenizer("gpt2").vocab_size == 50257
    (tmp_path / "cache" / "gpt2" / "merges.txt").write_text("damaged")
    with pytest.raises(TokenizerError, match="cannot download"):
        load_tokenizer("gpt2")


def test_gpt2_without_a_network(served: dict[str, tuple[str, str]]) -> None:
    served["vocab.json"] = ("file:///nowhere", "")
    with pytest.raises(
        TokenizerError, match=r"Without a network: copy GPT-2's vocab.json and merges.txt"
    ):
        load_tokenizer("gpt2")


def test_gpt2_with_a_wrong_checksum_is_rejected(
    served: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    served["vocab.json"] = (served["vocab.json"][0], "0" * 64)
    with pytest.raises(TokenizerError, match="SHA-256 differs from 0"):
        load_tokenizer("gpt2")
    assert not (tmp_path / "cache").exists()


# ---- added tokens and the end-of-text token ------------------------------------------------------


def test_added_tokens_next_to_gpt2_files(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    foreign.save_gpt2_files(learn_bpe([LEARNED_FROM], 300, pattern="gpt2"), tmp_path)
    (tmp_path / "added_tokens.json").write_text(
        json.dumps({"  ": 301, "<think>": 300, "<|fim|>": 302})
    )
    (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<|fim|>"]}')
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "eos_token": SPECIAL,
        "unk_token": SPECIAL,
        "bos_token": SPECIAL,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path)
    assert isinstance(ours, BpeTokenizer)
    assert ours.special_tokens == {SPECIAL: 299, "<|fim|>": 302}
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    text = "if x:  return<think>  x <|fim|>y"
    assert ours.encode(text, allowed_special="all").tolist() == theirs(text)["input_ids"]
    assert ours.encode(text).tolist() == theirs(text, split_special_tokens=True)["input_ids"]
    assert ours.decode([301, 300, 302]) == "  <think><|fim|>"
    foreign.save_gpt2_files(ours, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "added_tokens.json").read_text()) == {
        "<think>": 300,
        "  ": 301,
    }
    exported = foreign.to_huggingface(ours)["added_tokens"]
    assert [(token["content"], token["special"]) for token in exported] == [
        (SPECIAL, True), ("<think>", False), ("  ", False), ("<|fim|>", True)
    ]  # fmt: skip
    (tmp_path / "added_tokens.json").write_text('{"x": "y"}')
    with pytest.raises(TokenizerError, match=r"added_tokens\.json is damaged"):
        load_tokenizer(tmp_path)


def test_gpt2_files_of_other_classes(tmp_path: Path, test_data: Path) -> None:
    """The same two files with another pre-tokenization: Qwen 2's is known, others are errors."""
    transformers = pytest.importorskip("transformers")
    foreign.save_gpt2_files(learn_bpe([LEARNED_FROM], 300, pattern="gpt2"), tmp_path)
    config = tmp_path / "tokenizer_config.json"
    for content in (
        {"tokenizer_class": "Qwen2Tokenizer"},
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
    ):
        config.write_text(json.dumps(content))
        ours, theirs = (
            load_tokenizer(tmp_path),
            transformers.AutoTokenizer.from_pretrained(str(tmp_path)),
        )
        for text in ("e\u0301 12345 they'RE", "  a\n\nb"):
            assert ours.encode(text).tolist() == theirs(text)["input_ids"]
    config.write_text('{"tokenizer_class": "RobertaTokenizer"}')
    with pytest.raises(
        TokenizerError, match="class RobertaTokenizer, whose pre-tokenization lmsmith does not know"
    ):
        load_tokenizer(tmp_path)


def test_end_of_text_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    foreign.save_huggingface(
        learn_bpe([LEARNED_FROM], 300, special_tokens=["<s>", "</s>", "<end>"]), tmp_path
    )
    config = tmp_path / "tokenizer_config.json"
    config.unlink()
    assert load_tokenizer(tmp_path).end_of_text == 298
    for eos in ("<end>", {"content": "<end>", "lstrip": False}):
        config.write_text(json.dumps({"eos_token": eos}))
        ours = load_tokenizer(tmp_path)
        assert ours.end_of_text == 299
        assert load_tokenizer(tmp_path / "tokenizer.json").end_of_text == 299
    assert load_tokenizer(tmp_path, end_of_text="<s>").end_of_text == 297
    saved = load_tokenizer(save_tokenizer(ours, tmp_path / "saved"))
    assert saved == ours
    assert saved.end_of_text == 299
    assert pickle.loads(pickle.dumps(saved)).end_of_text == 299
    assert saved != load_tokenizer(tmp_path, end_of_text="</s>")
    assert load_tokenizer(tmp_path / "saved", end_of_text="<s>").end_of_text == 297
    assert isinstance(saved, BpeTokenizer)
    foreign.save_huggingface(saved, tmp_path / "exported")
    assert (
        json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())["eos_token"]
        == "<end>"
    )
    with pytest.raises(
        TokenizerError, match="'<x>' cannot be the end-of-text token: it is not a special"
    ):
        load_tokenizer(tmp_path, end_of_text="<x>")
    config.write_text('{"eos_token": "<other>"}')
    assert load_tokenizer(tmp_path).end_of_text == 298
    assert "ignoring the eos_token '<other>'" in caplog.text


def test_end_of_text_becomes_a_special_token(tmp_path: Path) -> None:
    """An added token that is not special, or a token only in the vocabulary, becomes special: in a
    text it is encoded as text.
    """
    content = foreign.to_huggingface(learn_bpe([LEARNED_FROM], 300, special_tokens=["<end>"]))
    content["added_tokens"][0]["special"] = False
    for added, vocabulary in (content["added_tokens"], {}), ([], {"<end>": 299}):
        changed = content | {"added_tokens": added, "model": content["model"] | {
            "vocab": content["model"]["vocab"] | vocabulary}}  # fmt: skip
        for normalizer in (None, {"type": "NFC"}):
            (tmp_path / "tokenizer.json").write_text(
                json.dumps(changed | {"normalizer": normalizer})
            )
            ours = load_tokenizer(tmp_path, end_of_text="<end>")
            assert ours.end_of_text == 299
            assert 299 not in ours.encode("a<end>")
            assert ours.decode([299]) == "<end>"
    assert load_tokenizer(tmp_path).end_of_text is None


# ---- bad files -----------------------------------------------------------------------------------


def gpt2_folder(folder: Path, vocabulary: dict[str, Any], merges: str) -> Path:
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    return folder


def test_broken_gpt2_files(tmp_path: Path) -> None:
    learned = learn_bpe([LEARNED_FROM], 300, pattern="gpt2")
    foreign.save_gpt2_files(learned, tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8")
    lines = merges.splitlines()
    for line in ("Ġ", "Ġ t h", "q zz"):
        broken = "\n".join([*lines[:4], line, *lines[5:]])
        with pytest.raises(TokenizerError, match=rf"merges.txt, line 5: '{line}'"):
            load_tokenizer(gpt2_folder(tmp_path, vocabulary, broken))
    with pytest.raises(
        TokenizerError, match="tokens for 1 of the 256 bytes, the first of them 0x71"
    ):
        load_tokenizer(
            gpt2_folder(tmp_path, {t: i for t, i in vocabulary.items() if t != "q"}, merges)
        )
    with pytest.raises(TokenizerError, match="already belongs to another token"):
        load_tokenizer(gpt2_folder(tmp_path, vocabulary | {"q": vocabulary["r"]}, merges))
    with pytest.raises(
        TokenizerError, match=r"does not fit .*: no merge produces the token 'Ġ.*truncated"
    ):
        load_tokenizer(gpt2_folder(tmp_path, vocabulary, "\n".join(lines[:10])))
    for bad in ("x", None, -1, 10**12):
        with pytest.raises(TokenizerError, match=r"'q' has the id .*; expected a number"):
            load_tokenizer(gpt2_folder(tmp_path, vocabulary | {"q": bad}, merges))
    foreign.save_gpt2_files(learned, tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"no file .*merges\.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"vocab\.json is damaged"):
        load_tokenizer(tmp_path)


def _set(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("model", "type", value="WordPiece"), "a model of type WordPiece"),
        (_set("model", "dropout", value=0.1), r"dropout 0\.1, so the ids of a text would differ"),
        (
            _set("normalizer", value={"type": "Custom"}),
            "the library tokenizers cannot load this tokenizer",
        ),
        (_set("model", "merges", 0, value=["q", "zz"]), "Merge 1 is 'q zz'"),
        (_set("pre_tokenizer", value="x"), "damaged: it does not have the structure"),
        (_set("added_tokens", 0, value={}), "damaged: it does not have the structure"),
        (_set("model", "merges", value=5), "damaged: it does not have the structure"),
        (_set("model", "vocab", value=[]), "does not map tokens to ids"),
        (_set("added_tokens", 0, "id", value=10**12), "the id 1000000000000; expected"),
    ],
)
def test_hugging_face_files_that_cannot_be_loaded(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    content = foreign.to_huggingface(learn_bpe([LEARNED_FROM], 300))
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_broken_tiktoken_files(tmp_path: Path) -> None:
    path = tmp_path / "some.tiktoken"
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    path.write_text("\n".join(lines))
    with pytest.raises(TokenizerError, match="does not contain its pre-tokenization pattern"):
        load_tokenizer(path)
    assert ranks.load_tiktoken(path, "gpt4").vocab_size == 256
    for line in ("YQ== x", "Y 5", "YQ==", "!!! 5", "YWI= -1", "YWI= 999999999999", "AQ== 7"):
        path.write_text("\n".join([*lines[:7], line, *lines[8:]]))
        with pytest.raises(TokenizerError, match="line 8"):
            ranks.load_tiktoken(path, "gpt4")
    path.write_text("\n".join([*lines, "YWI= 5"]))
    with pytest.raises(TokenizerError, match="two tokens have the rank 5"):
        ranks.load_tiktoken(path, "gpt4")


def test_tiktoken_files_by_name(tmp_path: Path) -> None:
    """Llama 3's `tokenizer.model` gets its 256 special tokens; other names need a pattern."""
    learned = learn_bpe([LEARNED_FROM], 280, special_tokens=[])
    path = tmp_path / "tokenizer.model"
    ranks.save_tiktoken(learned, path)
    for source in (tmp_path, path):
        llama3 = load_tokenizer(source)
        assert isinstance(llama3, BpeTokenizer)
        assert llama3.pattern == PATTERNS["llama3"]
        assert llama3.vocab_size == 280 + 256
        assert llama3.end_of_text == 281
        assert llama3.special_tokens["<|begin_of_text|>"] == 280
        assert llama3.special_tokens["<|eot_id|>"] == 289
        assert llama3.special_tokens["<|reserved_special_token_250|>"] == 280 + 255
    other = path.rename(tmp_path / "other.ranks")
    with pytest.raises(TokenizerError, match=r"tokenizer import .*other\.ranks --pattern NAME"):
        load_tokenizer(other)
    given = load_tokenizer(
        other, pattern=PATTERNS["gpt4"], special_tokens={"<e>": 300}, end_of_text="<e>"
    )
    assert given.end_of_text == 300
    with pytest.raises(TokenizerError, match="may split text differently in lmsmith"):
        load_tokenizer(other, pattern=pattern_of("^a|."))
    ours = save_tokenizer(learned, tmp_path / "ours")
    with pytest.raises(TokenizerError, match="only for tiktoken files"):
        load_tokenizer(ours, pattern=PATTERNS["gpt4"])
    path.write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15")
    for source in (tmp_path, path):
        with pytest.raises(TokenizerError, match="is not a complete SentencePiece model"):
            load_tokenizer(source)


def test_expressions_that_are_not_portable_are_not_exported() -> None:
    own = learn_bpe([LEARNED_FROM], 260, pattern=r"\w+|\W", special_tokens=[])
    with pytest.raises(
        TokenizerError, match=r"may split text differently in lmsmith .* because of '\\\\w\+"
    ):
        foreign.to_huggingface(own)
    foreign.to_huggingface(
        learn_bpe([LEARNED_FROM], 260, pattern=r"\p{L}+|\P{L}", special_tokens=[])
    )


def test_openais_files_by_name(tmp_path: Path) -> None:
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (tmp_path / "cl100k_base.tiktoken").write_text("\n".join(lines))
    tokenizer = load_tokenizer(tmp_path / "cl100k_base.tiktoken")
    assert isinstance(tokenizer, BpeTokenizer)
    assert tokenizer.pattern == PATTERNS["gpt4"]
    assert tokenizer.vocab_size == 100277
    assert tokenizer.end_of_text == 100257


def test_tiktoken_files_need_ids_in_the_order_of_merges(tmp_path: Path) -> None:
    tokens = [*(bytes([b]) for b in range(256)), b"cd", b"ab"]
    with pytest.raises(TokenizerError, match="ids in the order of the merges"):
        ranks.save_tiktoken(
            BpeTokenizer(tokens, [(97, 98), (99, 100)], "gpt2"), tmp_path / "x.tiktoken"
        )
