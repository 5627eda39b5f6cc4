"""The documents that a batch reports, and the boundaries between them."""

import numpy as np
import pytest

from lmsmith.config import RunConfig
from lmsmith.data.batches.packing import Packed, batches_of, boundary_of
from lmsmith.data.batches.rows import Rows
from lmsmith.data.batches.windows import Batches
from lmsmith.errors import ConfigError
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer

IDS = (
    np.random.default_rng(0).integers(0, 6, 400).astype(np.uint16)
)  # 0 stands before each document


def test_windows_are_unchanged_and_documents_begin_at_boundaries() -> None:
    stream = Batches(IDS, context_length=12, batch_size=5, seed=3)
    packed = Packed(stream, 0)
    assert packed.tokens_per_batch == packed.n_targets(7) == 60
    for step in range(20):
        plain, found = stream.rows(step), packed.rows(step)
        assert np.array_equal(found.inputs, plain.inputs)
        assert np.array_equal(found.targets, plain.targets)
        assert found.documents is not None
        assert found.documents.dtype == np.int32
        for ids, documents in zip(found.inputs.tolist(), found.documents.tolist(), strict=True):
            number = 0
            for id, document in zip(ids, documents, strict=True):
                number += id == 0
                assert document == number
        part = packed.rows(step, 1, 3).documents
        assert part is not None
        assert np.array_equal(part, found.documents[1:3])


TEXT = ["ab\ncd\n", "b a\n"]
WITH_END: list[Tokenizer] = [
    ByteTokenizer(True),
    CharTokenizer.learn(TEXT, True),
    WordTokenizer.learn(TEXT, True),
]
WITHOUT: list[Tokenizer] = [
    ByteTokenizer(False),
    CharTokenizer.learn(TEXT, False),
    WordTokenizer.learn(TEXT, False),
]


@pytest.mark.parametrize("tokenizer", WITH_END, ids=lambda tokenizer: tokenizer.kind)
def test_end_of_text_is_the_boundary(tokenizer: Tokenizer) -> None:
    assert boundary_of("stream", tokenizer) is None
    assert (
        boundary_of("packed", tokenizer) == boundary_of("rows", tokenizer) == tokenizer.end_of_text
    )


@pytest.mark.parametrize("tokenizer", WITHOUT, ids=lambda tokenizer: tokenizer.kind)
def test_lines_of_a_single_document(tokenizer: Tokenizer) -> None:
    boundary = boundary_of("rows", tokenizer)
    assert boundary is not None
    assert tokenizer.decode([boundary]) == "\n"
    with pytest.raises(
        ConfigError, match="'packed' separates documents, but this text is a single one"
    ):
        boundary_of("packed", tokenizer)


@pytest.mark.parametrize("texts", [["no line end"], []])
def test_lines_that_cannot_be_separated(texts: list[str]) -> None:
    tokenizer: Tokenizer = CharTokenizer.learn(texts or TEXT, False)
    if not texts:  # as after BPE merges: some line breaks are within longer tokens
        tokenizer = WordTokenizer([*WordTokenizer.learn(TEXT, False).words, "\n\n"], False)
    n = 0 if texts else 2
    with pytest.raises(
        ConfigError,
        match=f"needs one document per row.* its lines: {n} of them contain a line break",
    ):
        boundary_of("rows", tokenizer)


@pytest.mark.parametrize(
    ("documents", "kind"), [("stream", Batches), ("packed", Packed), ("rows", Rows)]
)
def test_the_config_chooses_the_class(documents: str, kind: type) -> None:
    changes = {
        "data.documents": documents,
        "model.context_length": 16,
        "train.batch_size": 3,
        "train.seed": 9,
    }
    config = RunConfig().changed(changes, where="here")
    tokenizer = WITH_END[1]
    assert tokenizer.end_of_text is not None
    ids = np.concatenate(
        [[tokenizer.end_of_text], *[tokenizer.encode(t) for t in TEXT * 50]]
    ).astype(np.uint16)
    found = batches_of(config, ids, tokenizer)
    assert type(found) is kind
    assert found.rows(0).inputs.shape[0] == 3
    assert (found.rows(0).documents is not None) == (documents == "packed")
    other = batches_of(config.changed({"train.seed": 10}, where="here"), ids, tokenizer)
    assert documents == "rows" or not np.array_equal(found.rows(0).inputs, other.rows(0).inputs)
