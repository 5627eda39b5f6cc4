"""The tokens that begin and end texts, for trained and for imported models."""

import pytest
import torch
from test_decode import Fixed

from lmsmith.errors import UsageError
from lmsmith.generate.text_model import TextModel
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer
from lmsmith.train.hooks.sample import sample_texts

BEGIN, END = 0, 1  # control bytes, in the place of Llama 3's special tokens
IMPORTED = {"begin": BEGIN, "ends": [END]}


def imported() -> TextModel:
    """Says "hello" after its own begin, and then its own end."""
    tokenizer = ByteTokenizer(end_of_text=True)
    model = Fixed([BEGIN, *b"helo", END, 256, *b"xy"], tokenizer.vocab_size)
    return TextModel.of(model, tokenizer, IMPORTED)


def test_a_prompt_begins_with_the_models_begin_token() -> None:
    assert imported().encode("a") == [BEGIN, 97]
    assert imported().encode("") == [BEGIN]
    assert imported().encode("a", bos=False) == [97]
    with pytest.raises(UsageError):
        imported().encode("", bos=False)
    trained = TextModel.of(Fixed([1, 2], 257), ByteTokenizer(end_of_text=True))
    assert trained.encode("a") == [256, 97]
    plain = TextModel.of(Fixed([1, 2], 256), ByteTokenizer(end_of_text=False))
    assert (plain.encode("a"), plain.encode("")) == ([97], [10])
    with pytest.raises(UsageError):
        TextModel.of(Fixed([0, 1], 2), CharTokenizer("ab", False)).encode("")


def test_streams_batches_and_samples_begin_and_end_as_the_model_does() -> None:
    writer = imported()
    assert "".join(writer.stream("", max_tokens=50)) == "helo"
    assert writer.continuations(["", "h"], max_tokens=50, n=3) == [["helo"] * 3, ["elo"] * 3]
    # A model that is being fine-tuned keeps both.
    model = Fixed([BEGIN, *b"helo", END, *b"xy"], 257)
    assert sample_texts(model, writer.tokenizer, 2, 60.0, 1, IMPORTED) == ["helo", "helo"]
    assert torch.is_grad_enabled()
