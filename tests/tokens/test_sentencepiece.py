"""SentencePiece models give the ids of the package `sentencepiece`."""

import functools
import io
import itertools
import json
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lmsmith.errors import TokenizerError
from lmsmith.interop.vocabulary import content_of
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.spm import SentencePieceTokenizer
from lmsmith.tokens.stream_decoder import StreamDecoder

spm = pytest.importorskip("sentencepiece")
tokenizers = pytest.importorskip("tokenizers")

LEARNED_FROM = (
    """The quick brown fox doesn't jump over 12,345 lazy dogs. The dogs sleep; the fox runs.
Le cœur a ses raisons que la raison ne connaît point. Ça dépend, peut-être.
Москва — столица России, город федерального значения. Города и реки.
北京是中华人民共和国的首都。 東京は日本の首都です。ひらがなカタカナ
대한민국의 수도는 서울이다. 서울은 한강을 끼고 있다.
القاهرة هي عاصمة جمهورية مصر العربية وأكبر مدنها
दिल्ली भारत की राजधानी है। नई दिल्ली एक नगर है।
\uff46\uff55\uff4c\u3000\uff57\uff49 ﬁne ½ ² Ⅷ aaaa !!!! ---- ====  two  spaces
""".splitlines()
    * 3
)
LETTERS = [
    *"abxé!-=中가कﬁ½ﷺ¨\u3000\u00a0\t\n\x01",
    *(" ", " ", "  ", "e\u0301", "é\u0301", "the", "ᄀ", "ᅡ", "\u093c", "\u200d", "👩"),
    *("\u2581", "<s>", "</s>", "<unk>", "<0x41>", "<0x0A>", "<sep>", "Москва", "\ufeff"),
]
ODD = [
    *("", " ", "   ", "\n", "\x01\x02", "\u2581", " \u2581 a", "a ", " a", "a\u2581 "),
    *(letter * n for letter in ("a", "!", " ", "=", "中", "é") for n in (2, 3, 5, 17, 40)),
]


@functools.cache
def trained(model_type: str, byte_fallback: bool, rule: str, **options: Any) -> bytes:
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(LEARNED_FROM),
        model_writer=out,
        vocab_size=700,
        hard_vocab_limit=False,
        model_type=model_type,
        byte_fallback=byte_fallback,
        normalization_rule_name=rule,
        character_coverage=0.98,  # some characters have no piece
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


def texts(n: int) -> list[str]:
    draw = random.Random(5)
    made = ["".join(draw.choices(LETTERS, k=draw.randint(1, 30))) for _ in range(n)]
    return [*LEARNED_FROM[:8], "\n".join(LEARNED_FROM[:8]), *ODD, *made]


def put(model: bytes, folder: Path) -> Path:
    (folder / "tokenizer.model").write_bytes(model)
    return folder / "tokenizer.model"


def check(model: bytes, folder: Path, some: Sequence[str]) -> None:
    theirs, ours = spm.SentencePieceProcessor(model_proto=model), load_tokenizer(put(model, folder))
    assert ours.vocab_size == theirs.get_piece_size()
    for text in some:
        expected = theirs.encode(text)
        assert ours.encode(text).tolist() == expected, (text, theirs.encode_as_pieces(text))


CASES: list[tuple[str, bool, str, dict[str, Any]]] = [
    ("unigram", True, "nmt_nfkc", {}),
    ("unigram", False, "nmt_nfkc", {"user_defined_symbols": "<sep>,中b", "pad_id": 3}),
    ("bpe", True, "identity", {"remove_extra_whitespaces": False}),
    ("bpe", False, "nfkc_cf", {"user_defined_symbols": "<sep>,中b", "add_dummy_prefix": False}),
]


@pytest.mark.parametrize(("model_type", "byte_fallback", "rule", "options"), CASES)
def test_ids_are_those_of_sentencepiece(
    model_type: str, byte_fallback: bool, rule: str, options: dict[str, Any], tmp_path: Path
) -> None:
    check(trained(model_type, byte_fallback, rule, **options), tmp_path, texts(300))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_ids_are_those_of_sentencepiece_with_all_options(
    model_type: str, tmp_path: Path, test_data: Path
) -> None:
    files = sorted(test_data.glob("multilingual/*.txt"))
    naughty = (test_data / "naughty_strings" / "blns.txt").read_text(encoding="utf-8")
    some = [file.read_text(encoding="utf-8")[:3000] for file in files]
    some += [*naughty.split("\n"), *texts(2000)]
    rules = ("identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf")
    for fallback, rule, prefix, extra, symbols in itertools.product(
        (True, False), rules, (True, False), (True, False), ("", "<sep>,中b")
    ):
        model = trained(
            model_type,
            fallback,
            rule,
            add_dummy_prefix=prefix,
            remove_extra_whitespaces=extra,
            user_defined_symbols=symbols,
        )
        check(model, tmp_path, some)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_texts_are_restored_and_the_tokenizer_is_saved(model_type: str, tmp_path: Path) -> None:
    model = trained(model_type, True, "identity", remove_extra_whitespaces=False)
    ours = load_tokenizer(put(model, tmp_path).parent)
    assert isinstance(ours, SentencePieceTokenizer)
    assert ours.special_tokens == {"<s>": 1, "</s>": 2}
    assert ours.end_of_text == 2
    again = load_tokenizer(save_tokenizer(ours, tmp_path / "again").parent)
    assert again == ours
    assert again.fingerprint == ours.fingerprint
    copy = pickle.loads(pickle.dumps(ours))
    for text in ("The fox\n\truns", "naïve 👩\u200d👩 中", " x  ", "<0x0A> and <s>"):
        ids = ours.encode(text)
        assert ours.decode(ids) == text
        assert copy.encode(text).tolist() == again.encode(text).tolist() == ids.tolist()
        stream = StreamDecoder(ours)
        parts = [stream.push(int(i)) for i in ids]
        assert "".join(parts) + stream.flush() == text
    assert ours.encode("</s>", allowed_special="all").tolist()[-1] == 2


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_the_exported_tokenizer_json_gives_the_same_ids(model_type: str, tmp_path: Path) -> None:
    ours = load_tokenizer(put(trained(model_type, True, "nmt_nfkc"), tmp_path))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content_of(ours)))
    theirs.encode_special_tokens = True
    for text in LEARNED_FROM[:8]:
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text).tolist()


def test_what_cannot_be_exact_is_refused(tmp_path: Path) -> None:
    symbols = load_tokenizer(
        put(trained("bpe", True, "identity", user_defined_symbols="<sep>"), tmp_path)
    )
    with pytest.raises(TokenizerError, match="user-defined symbols, after which"):
        content_of(symbols)
    for model, told in (
        (trained("word", False, "identity"), "has a model of type word"),
        (trained("char", False, "identity"), "has a model of type char"),
        (
            trained("bpe", False, "identity", treat_whitespace_as_suffix=True),
            "puts spaces after words",
        ),
        (trained("bpe", False, "identity")[:-7], "not a complete SentencePiece model"),
        (b"x", "not a complete SentencePiece model"),
        (b"", "has no pieces"),
    ):
        with pytest.raises(TokenizerError, match=told):
            load_tokenizer(put(model, tmp_path))
