"""Special tokens in a text are encoded as text or as control tokens, with the same ids as
tiktoken.
"""

from pathlib import Path

import pytest
import tiktoken

from lmsmith.config import DataConfig
from lmsmith.data.prepare.build import build_shards
from lmsmith.data.prepare.run_text import prepare_text
from lmsmith.data.shards import read_shard
from lmsmith.errors import ConfigError
from lmsmith.evaluate.texts import encode_documents
from lmsmith.generate.decode import encode_prompt
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.control import encode_text
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer

SPECIAL = {"<|im_start|>": 256, "<|im_end|>": 257, "<|endoftext|>": 258}
OURS = BpeTokenizer(
    [*(bytes([byte]) for byte in range(256)), None, None, None], [], "gpt2", SPECIAL
)
THEIRS = tiktoken.Encoding(
    "t",
    pat_str=OURS.pattern.regex,
    mergeable_ranks={bytes([b]): b for b in range(256)},
    special_tokens=SPECIAL,
)
CHAT = "<|im_start|>user\nHi, <b>you</b><|im_end|>\n<|im_start|>assistant\n"


def test_prompts_and_scored_text(tmp_path: Path) -> None:
    as_text = THEIRS.encode(CHAT, disallowed_special=())
    as_control = THEIRS.encode(CHAT, allowed_special="all")
    assert len(as_control) < len(as_text)
    assert encode_text(OURS, CHAT).tolist() == as_text
    assert encode_text(OURS, CHAT, "control").tolist() == as_control
    assert encode_prompt(OURS, CHAT) == [258, *as_text]
    assert encode_prompt(OURS, CHAT, special_tokens="control") == [258, *as_control]
    assert encode_documents(OURS, [CHAT]).ids.tolist() == [258, *as_text]
    assert encode_documents(OURS, [CHAT], special_tokens="control").ids.tolist() == [
        258,
        *as_control,
    ]


@pytest.mark.parametrize("special_tokens", ["text", "control"])
def test_training_text(tmp_path: Path, special_tokens: str) -> None:
    texts = [f"{n}: {CHAT}" for n in range(60)]
    save_tokenizer(OURS, tmp_path / "tokenizer")
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(texts))
    (tmp_path / "v.txt").write_text("something else")
    choice = (
        {"allowed_special": "all"} if special_tokens == "control" else {"disallowed_special": ()}
    )
    # Reading removes the line break before a separator.
    texts = [text.removesuffix("\n") for text in texts[:-1]] + texts[-1:]
    expected = [id for text in texts for id in (258, *THEIRS.encode(text, **choice))]
    data = DataConfig(
        sources=(str(tmp_path / "a.txt"),),
        validation=(str(tmp_path / "v.txt"),),
        special_tokens=special_tokens,
    )
    corpus = prepare_text(data, str(tmp_path / "tokenizer"), tmp_path / "run")
    assert corpus.train[:].tolist() == expected
    build_shards(
        data.sources,
        tmp_path / "out",
        tokenizer=str(tmp_path / "tokenizer"),
        validation=data.validation,
        special_tokens=special_tokens,  # type: ignore[arg-type]
        workers=1,
    )
    assert read_shard(tmp_path / "out" / "train_000000.bin").tolist() == expected


def test_control_tokens_need_special_tokens() -> None:
    with pytest.raises(ConfigError, match="this byte tokenizer has none"):
        encode_prompt(ByteTokenizer(end_of_text=True), CHAT, special_tokens="control")
