"""The data of a run from folders of shards and from texts, against the ids and bytes that were put
there.
"""

import json
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from lmsmith.config import DataConfig, DataSource
from lmsmith.data.batches.windows import Batches, Sources
from lmsmith.data.corpus import Corpus, load
from lmsmith.data.manifest import (
    Manifest,
    ShardRecord,
    SplitRecord,
    TokenizerRecord,
    read_manifest,
    write_manifest,
)
from lmsmith.data.prepare.build import build_shards
from lmsmith.data.prepare.run_sources import prepare_run
from lmsmith.data.prepare.run_text import prepare_text
from lmsmith.data.prepare.source_tokens import MOST_TEXT
from lmsmith.data.ready import find_shard_folder, open_shard_folder
from lmsmith.data.shards import Shards, write_shard
from lmsmith.errors import CheckpointError, ConfigError, DataError, LmsmithError, TokenizerError
from lmsmith.text import store
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

BYTES = ByteTokenizer(True)
END = 256


def ids_of(*texts: str, tokenizer: Tokenizer = BYTES) -> np.ndarray:
    parts = [[tokenizer.end_of_text, *tokenizer.encode(text).tolist()] for text in texts]
    return np.concatenate([np.array(part, dtype=np.uint16) for part in parts])


TRAIN = [ids_of("One day a cat sat down. ", "The end came soon. ") for _ in range(3)]
VALIDATION = [ids_of("Nobody knew. "), ids_of("Später nicht mehr.")]


def prepared(
    folder: Path, train: list[np.ndarray] = TRAIN, validation: list[np.ndarray] = VALIDATION
) -> Path:
    """A folder as `lmsmith data prepare` makes it."""
    folder.mkdir(parents=True)
    splits = {}
    for split, shards in (("train", train), ("val", validation)):
        records = []
        for number, ids in enumerate(shards):
            name = f"{split}_{number:06}.bin"
            write_shard(folder / name, ids, BYTES.vocab_size)
            n_ends = int((ids == END).sum())
            records.append(ShardRecord(name, len(ids), n_ends, len(ids) - n_ends, "0" * 64))
        sums = [
            sum(getattr(r, key) for r in records) for key in ("n_tokens", "n_documents", "n_bytes")
        ]
        splits[split] = SplitRecord(*sums, tuple(records))
    write_manifest(
        folder, Manifest(TokenizerRecord.of(BYTES), splits, notes=("two documents were skipped",))
    )
    save_tokenizer(BYTES, folder)
    return folder


def foreign(folder: Path, name: str = "fineweb_{split}_{number:06}.bin") -> Path:
    """A folder of shards as other programs make it."""
    folder.mkdir(parents=True)
    for split, shards in (("train", TRAIN), ("val", VALIDATION)):
        for number, ids in enumerate(shards):
            write_shard(
                folder / name.format(split=split, number=number + (split == "train")), ids, 50257
            )
    return folder


def prepared_run(data: DataConfig, folder: Path, tokenizer: str = "auto") -> Corpus:
    """Prepares a run's data; checks that loading gives the same."""
    found, again = prepare_run(data, tokenizer, folder), load(folder)
    assert again.tokenizer == found.tokenizer
    assert again.counts == found.counts
    for one, other in ((found, again), (again, found)):
        assert np.array_equal(one.validation[:], other.validation[:])
        parts = [
            corpus.train.ids if isinstance(corpus.train, Sources) else [corpus.train]
            for corpus in (one, other)
        ]
        assert all(np.array_equal(a[:], b[:]) for a, b in zip(*parts, strict=True))
    assert found.counts.n_train_tokens == len(found.train)
    assert found.counts.n_val_tokens == len(found.validation)
    return found


def test_a_prepared_folder_is_not_copied(tmp_path: Path) -> None:
    place = prepared(tmp_path / "ready")
    found = prepared_run(DataConfig(sources=(str(place),)), tmp_path / "tokens")
    assert isinstance(found.train, Shards)
    assert np.array_equal(found.train[:], np.concatenate(TRAIN))
    assert np.array_equal(found.validation[:], np.concatenate(VALIDATION))
    assert found.tokenizer == BYTES
    assert found.starts_with_end_of_text
    assert (found.counts.n_val_bytes, found.counts.n_val_unknown) == (len(b"Nobody knew. ") + 19, 0)
    assert found.counts.notes == (f"{place}: two documents were skipped",)
    assert (tmp_path / "tokens" / "validation.txt").read_text(
        encoding="utf-8"
    ) == "Nobody knew. Später nicht mehr."
    assert not list((tmp_path / "tokens").rglob("*.bin"))


@pytest.mark.parametrize(
    "name",
    ["fineweb_{split}_{number:06}.bin", "TinyStories_{split}{number}.bin", "{split}_{number}.bin"],
)
def test_other_programs_shards_need_a_named_tokenizer(tmp_path: Path, name: str) -> None:
    place = foreign(tmp_path / "fineweb", name)
    (place / "manifest.txt").touch()
    data = DataConfig(sources=(str(place),))
    with pytest.raises(
        ConfigError, match=r".*fineweb does not say which tokenizer .* --tokenizer gpt2"
    ):
        prepare_run(data, "auto", tmp_path / "tokens")
    save_tokenizer(BYTES, tmp_path / "own")
    for number, wanted in enumerate(("byte", str(tmp_path / "own"))):
        found = prepared_run(data, tmp_path / f"tokens-{number}", wanted)
        assert np.array_equal(found.train[:], np.concatenate(TRAIN))
        assert np.array_equal(found.validation[:], np.concatenate(VALIDATION))
        assert found.counts.n_val_bytes == len(
            "Nobody knew. Später nicht mehr.".encode()
        )  # decoded
        decoded, trusted = found.counts.notes
        assert (
            decoded
            == f"{place}: the validation text has 32 bytes, counted by decoding its 34 tokens"
        )
        assert "has no manifest: lmsmith assumes that this tokenizer made its 5 shards" in trusted
    save_tokenizer(BYTES, place)  # a tokenizer beside the shards counts as named
    assert prepared_run(data, tmp_path / "beside").tokenizer == BYTES


def test_gpt2s_shards(tmp_path: Path, test_data: Path) -> None:
    """As downloaded: GPT-2's ids, end of text first. Bytes are counted by decoding, also across
    blocks of ids.
    """
    gpt2 = load_tokenizer(test_data / "gpt2")
    place = tmp_path / "fineweb"
    place.mkdir()
    text = "Ünïcödé — 中文 and plain words. " * 3
    write_shard(place / "fineweb_train_000001.bin", ids_of(text * 9, tokenizer=gpt2), 50257)
    write_shard(place / "fineweb_val_000000.bin", ids_of(text, text, tokenizer=gpt2), 50257)
    found = prepared_run(
        DataConfig(sources=(str(place),)), tmp_path / "tokens", str(test_data / "gpt2")
    )
    assert (found.tokenizer.vocab_size, found.tokenizer.end_of_text) == (50257, 50256)
    assert found.counts.n_val_bytes == 2 * len(text.encode())
    assert found.starts_with_end_of_text


def test_a_large_validation_text_is_not_written(tmp_path: Path) -> None:
    large = [np.full(MOST_TEXT + 1, 65, dtype=np.uint16)]
    place = prepared(tmp_path / "ready", validation=large)
    found = prepared_run(DataConfig(sources=(str(place),)), tmp_path / "tokens")
    assert found.counts.n_val_bytes == MOST_TEXT + 1
    assert not found.starts_with_end_of_text  # there is no end-of-text token before it
    assert not (tmp_path / "tokens" / "validation.txt").exists()


def test_validation_on_the_first_tokens_only(tmp_path: Path) -> None:
    """Their bytes are counted by decoding, because the manifest only has the total."""
    places = prepared(tmp_path / "ready"), foreign(tmp_path / "fineweb")
    save_tokenizer(BYTES, places[1])
    for number, place in enumerate(places):
        data = DataConfig(sources=(str(place),), validation_tokens=18)
        found = prepared_run(data, tmp_path / f"tokens-{number}")
        assert np.array_equal(found.validation[:], np.concatenate(VALIDATION)[:18])
        assert found.counts.n_val_bytes == len(b"Nobody knew. Sp\xc3")
        assert (
            "the validation text has 16 bytes, counted by decoding its 18 tokens"
            in found.counts.notes[-1 - number]
        )
        more = prepared_run(replace(data, validation_tokens=10**9), tmp_path / f"more-{number}")
        assert np.array_equal(more.validation[:], np.concatenate(VALIDATION))
    (tmp_path / "a.txt").write_text("abcabc\n" * 50, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data\.validation_tokens is for folders of shards"):
        prepare_run(
            DataConfig(sources=(str(tmp_path / "a.txt"),), validation_tokens=9),
            "auto",
            tmp_path / "text",
        )
    with pytest.raises(
        ConfigError, match=r"data\.validation_fraction is for text, and shards are already split"
    ):
        prepare_run(
            DataConfig(sources=(str(places[0]),), validation_fraction=0.2),
            "auto",
            tmp_path / "split",
        )


def test_several_sources_without_weights_are_one_stream(tmp_path: Path) -> None:
    one, other = (
        prepared(tmp_path / "one"),
        prepared(tmp_path / "other", train=[ids_of("Once more.")]),
    )
    book, tale = tmp_path / "book.txt", tmp_path / "tale.txt"
    book.write_text("A longer text, of which some is held out. " * 9, encoding="utf-8")
    tale.write_text("And another one, much the same as that. " * 9, encoding="utf-8")
    found = prepared_run(
        DataConfig(sources=tuple(map(str, (one, book, other, tale)))), tmp_path / "tokens"
    )
    alone = prepare_text(DataConfig(sources=(str(book), str(tale))), str(one), tmp_path / "alone")
    assert isinstance(found.train, Shards)
    assert np.array_equal(
        found.train[:], np.concatenate([*TRAIN, ids_of("Once more."), alone.train])
    )
    assert np.array_equal(
        found.validation[:], np.concatenate([*VALIDATION, *VALIDATION, alone.validation])
    )
    assert found.counts.n_val_bytes == 2 * (13 + 19) + alone.counts.n_val_bytes
    text = (tmp_path / "tokens" / "validation.txt").read_bytes()
    assert len(text) == found.counts.n_val_bytes
    assert text.endswith((tmp_path / "alone" / "validation.txt").read_bytes())


def test_sources_with_weights_are_mixed(tmp_path: Path) -> None:
    """Two texts and shards: the rows follow the weights, and no validation token is in any."""
    for name, letter in (("a.txt", "a"), ("b.txt", "b")):
        text = "".join(f"{letter}{number:03}\n" for number in range(300))
        (tmp_path / name).write_text(text.upper() if letter == "b" else text, encoding="utf-8")
    shards = prepared(
        tmp_path / "ready", train=[np.full(99, 63, np.uint16)] * 3, validation=[ids_of("~~~~")]
    )
    data = DataConfig(
        mixture=(
            DataSource(str(tmp_path / "a.txt"), 0.5),
            DataSource(str(shards), 0.3),
            DataSource(str(tmp_path / "b.txt"), 0.2),
        )
    )
    found = prepared_run(data, tmp_path / "tokens")
    assert isinstance(found.train, Sources)
    assert found.counts.notes[-1].startswith("of the training rows, 0.5 are from ")
    decoded = [BYTES.decode(part[:]).removeprefix("<|endoftext|>") for part in found.train.ids]
    assert [text[0] for text in decoded] == ["a", "?", "B"]
    held_out = BYTES.decode(found.validation[:]).split("<|endoftext|>")[1:]
    assert held_out[0] == (tmp_path / "a.txt").read_text()[len(decoded[0]) :]
    assert held_out[1] == "~~~~"
    assert held_out[2] == (tmp_path / "b.txt").read_text()[len(decoded[2]) :]
    batches = Batches(found.train, context_length=8, batch_size=10, seed=1)
    for step in range(50):
        rows = ["".join(map(chr, row)) for row in batches.rows(step).inputs.tolist()]
        assert sum("a" in row for row in rows) == 5
        assert rows.count("?" * 8) == 3
        assert sum("B" in row for row in rows) == 2


def write_lines(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def test_a_document_in_two_mixed_texts_is_in_one_split(tmp_path: Path) -> None:
    """With few documents tails are held out, with many complete ones, but always the lowest hash:
    all that can leak.
    """
    few, more = (
        [f"{name}: the {i}th document\n" for i in range(n)]
        for name, n in (("few", 9), ("more", 200))
    )
    sources = {
        "few": write_lines(tmp_path / "few.jsonl", few),
        "many": write_lines(tmp_path / "many.jsonl", more),
        "mostly": write_lines(
            tmp_path / "mostly.jsonl", [*more[50:], *(f"other {i}" for i in range(90))]
        ),
        "again": write_lines(
            tmp_path / "again.jsonl", ["one", few[3].replace("\n", "\r\n"), "two"]
        ),
        "both": write_lines(tmp_path / "both.jsonl", [*more[:80], few[7]]),
    }

    def mixed(*names: str) -> Corpus:
        source = tuple(DataSource(sources[name]) for name in names)
        return prepared_run(
            DataConfig(mixture=source, validation_fraction=0.2), tmp_path / "-".join(names)
        )

    for one, other, where in (("few", "again", (4, 2)), ("few", "both", (8, 81))):
        told = (
            rf"1 document of the source .*{one}\.jsonl is also in .*{other}\.jsonl "
            rf"\(for example, .*{one}\.jsonl:{where[0]} is .*{other}\.jsonl:{where[1]}\)"
        )
        with pytest.raises(ConfigError, match=told):
            mixed(one, other)
    mixed("many", "few")
    found = mixed("many", "mostly")  # 150 in both, of many: on the same sides
    train, validation = (
        set(found.tokenizer.decode(ids[:]).split("<|endoftext|>")) - {""}
        for ids in (Shards.join(found.train.ids), found.validation)
    )
    assert not train & validation
    assert train | validation == {*more, *(f"other {i}" for i in range(90))}


def test_a_note_says_that_shards_are_not_compared(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("some text " * 99, encoding="utf-8")
    places = [str(prepared(tmp_path / name)) for name in ("one", "two")]
    note = (
        "a document that is in shards and in another source may be in validation in one "
        "and in training in the other"
    )
    assert (
        note
        in prepared_run(
            DataConfig(sources=(places[0], str(text))), tmp_path / "tokens-1"
        ).counts.notes
    )
    assert (
        note in prepared_run(DataConfig(sources=tuple(places)), tmp_path / "tokens-2").counts.notes
    )
    assert (
        note
        not in prepared_run(DataConfig(sources=(places[0],)), tmp_path / "tokens-3").counts.notes
    )
    for place in map(Path, places):
        settings = {"split": "documents", "validation_fraction": 0.05}
        write_manifest(place, replace(read_manifest(place), settings=settings))
    assert (
        note
        not in prepared_run(DataConfig(sources=tuple(places)), tmp_path / "tokens-4").counts.notes
    )


def test_a_document_in_shards_and_in_text_is_in_one_split(tmp_path: Path) -> None:
    """With many documents in both, for any fraction held out of the shards."""
    lines = [f"{i}: the line\n" for i in range(300)]
    one, other = (
        write_lines(tmp_path / "one.jsonl", lines[:200]),
        write_lines(tmp_path / "other.jsonl", lines[100:]),
    )
    for fraction in (0.0, 0.2):
        shards = tmp_path / f"shards-{fraction}"
        build_shards([one], shards, tokenizer="byte", validation_fraction=fraction)
        found = prepared_run(
            DataConfig(sources=(str(shards), other)), tmp_path / f"tokens-{fraction}"
        )
        train, validation = (
            set(BYTES.decode(ids[:]).split("<|endoftext|>")) - {""}
            for ids in (found.train, found.validation)
        )
        assert not train & validation
        assert train | validation == set(lines)


@hypothesis.settings(deadline=None, max_examples=8)
@given(some.data())
def test_no_validation_token_is_trained_on(
    tmp_path_factory: pytest.TempPathFactory, data: some.DataObject
) -> None:
    """For shards of any lengths, mixed or not, over several epochs."""
    place, names = tmp_path_factory.mktemp("data"), []
    for number in range(data.draw(some.integers(1, 3))):
        lengths = data.draw(
            some.lists(some.integers(1, 40), min_size=1, max_size=4).filter(lambda n: sum(n) >= 20)
        )
        train, validation = (
            [np.full(n, 10 + number) for n in lengths],
            [np.full(n, 99) for n in lengths],
        )
        names.append(str(prepared(place / str(number), train, validation)))
    weights = [data.draw(some.integers(1, 4)) for _ in names]
    mixed = tuple(DataSource(name, weight) for name, weight in zip(names, weights, strict=True))
    config = (
        DataConfig(mixture=mixed)
        if data.draw(some.booleans())
        else DataConfig(sources=tuple(names))
    )
    found = prepared_run(config, place / "tokens")
    batches = Batches(
        found.train, context_length=data.draw(some.integers(1, 10)), batch_size=8, seed=1
    )
    seen = set(np.unique([batches.rows(step).targets for step in range(60)]).tolist())
    assert seen == {10 + number for number in range(len(names))}
    assert set(np.unique(found.validation[:])) == {99}


def test_mixed_texts_share_one_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcabc\n" * 50, encoding="utf-8")
    (tmp_path / "z.txt").write_text("xyzxyz\n" * 50, encoding="utf-8")
    data = DataConfig(
        mixture=tuple(DataSource(str(tmp_path / name)) for name in ("a.txt", "z.txt"))
    )
    for wanted, kind in (("auto", "char"), ("word", "word"), ("byte", "byte")):
        found = prepared_run(data, tmp_path / wanted, wanted)
        assert found.tokenizer.kind == kind
        assert found.counts.n_val_unknown == 0
        assert found.tokenizer.count_unknown("abcabc\nxyzxyz\n") == 0


def test_text_alone_uses_the_simple_layout(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcabc\n" * 50, encoding="utf-8")
    data = DataConfig(sources=(str(tmp_path / "a.txt"),))
    found, wanted = (
        prepare_run(data, "auto", tmp_path / "one"),
        prepare_text(data, "auto", tmp_path / "other"),
    )
    assert np.array_equal(found.train[:], wanted.train[:])
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(
        path.name for path in (tmp_path / "other").iterdir()
    )
    assert load(tmp_path / "one").counts == wanted.counts


# Combinations that are refused


def test_a_tokenizer_that_did_not_make_the_shards_is_refused(tmp_path: Path) -> None:
    place = prepared(tmp_path / "ready")
    data = DataConfig(sources=(str(place),))
    save_tokenizer(CharTokenizer.learn(["abc"], True), tmp_path / "chars")
    with pytest.raises(
        TokenizerError,
        match=r"made with another tokenizer \(byte, 257 ids\) than --tokenizer .*chars",
    ):
        prepare_run(data, str(tmp_path / "chars"), tmp_path / "tokens")
    assert prepare_run(data, "byte", tmp_path / "same").tokenizer == BYTES
    for wanted in ("word", "char", "bpe:300"):
        with pytest.raises(
            ConfigError, match=r"would be learned from text, but .*ready already contains tokens"
        ):
            prepare_run(data, wanted, tmp_path / "tokens")
    save_tokenizer(CharTokenizer.learn(["abc"], True), place)  # a folder with mixed-up files
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json is not the tokenizer that made the shards beside it"
    ):
        prepare_run(data, "auto", tmp_path / "tokens")


def test_shards_of_two_tokenizers_are_not_mixed(tmp_path: Path) -> None:
    one, other = prepared(tmp_path / "one"), foreign(tmp_path / "other")
    save_tokenizer(CharTokenizer.learn(["abc"], True), other)
    with pytest.raises(
        TokenizerError, match=r"other was made with another tokenizer .* than that of .*one"
    ):
        prepare_run(DataConfig(sources=(str(one), str(other))), "auto", tmp_path / "tokens")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda place: (place / "train_000001.bin").unlink(),
            r"is incomplete: its manifest lists train_000001\.bin, which",
        ),
        (
            lambda place: [(place / f"val_00000{n}.bin").unlink() for n in (0, 1)],
            r"lists val_000000\.bin and 1 more shards that are missing",
        ),
        (
            lambda place: (place / "val_000000.bin").write_bytes(
                (place / "val_000000.bin").read_bytes()[:-3]
            ),
            r"val_000000\.bin is truncated",
        ),
        (
            lambda place: write_shard(place / "train_000000.bin", TRAIN[0][:-4], 257),
            r"train_000000\.bin has \d+ tokens, but",
        ),
        (
            lambda place: (place / "train_000002.bin").write_bytes(b"\0" * 2000),
            r"train_000002\.bin is not a shard",
        ),
        (lambda place: (place / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
        (
            lambda place: (place / "tokenizer.json").unlink(),
            r"there is no tokenizer at .*tokenizer\.json\. Give gpt2, or",
        ),
    ],
)
def test_incomplete_folders_are_refused(tmp_path: Path, spoil: object, message: str) -> None:
    place = prepared(tmp_path / "ready")
    spoil(place)  # type: ignore[operator]
    with pytest.raises(LmsmithError, match=message):
        prepare_run(DataConfig(sources=(str(place),)), "auto", tmp_path / "tokens")


def test_an_id_beyond_the_vocabulary_is_reported_when_read(tmp_path: Path) -> None:
    ids = TRAIN[1].copy()
    ids[5] = 300
    place = foreign(tmp_path / "fineweb")
    write_shard(place / "fineweb_train_000002.bin", ids, 50257)
    found = prepare_run(DataConfig(sources=(str(place),)), "byte", tmp_path / "tokens")
    batches = Batches(found.train, context_length=4, batch_size=4, seed=1)
    steps = 2 * len(found.train) // 16
    with pytest.raises(DataError, match=r"fineweb_train_000002\.bin has id 300 at position 5"):
        [batches.rows(step) for step in range(steps)]
    write_shard(place / "fineweb_val_000000.bin", np.array([299, 1]), 50257)
    with pytest.raises(DataError, match=r"fineweb_val_000000\.bin has id 299 at position 0"):
        prepare_run(DataConfig(sources=(str(place),)), "byte", tmp_path / "other")


def test_a_folder_with_one_split_is_refused(tmp_path: Path) -> None:
    place = foreign(tmp_path / "fineweb")
    for path in place.glob("*val*"):
        path.unlink()
    with pytest.raises(
        DataError,
        match=r"holds no val shard, so nothing could be scored\. .* found fineweb_train_000001",
    ):
        open_shard_folder(place)


# Changes to the shards after the run began


def test_changed_shards_are_refused(tmp_path: Path) -> None:
    place = foreign(tmp_path / "fineweb")
    prepare_run(DataConfig(sources=(str(place),)), "byte", tmp_path / "tokens")
    load(tmp_path / "tokens")
    write_shard(place / "fineweb_train_000002.bin", TRAIN[0][:-1], 50257)
    with pytest.raises(
        CheckpointError,
        match=r"fineweb_train_000002\.bin was 1,\d+ bytes and is 1,\d+ bytes\. Restore them",
    ):
        load(tmp_path / "tokens")
    (place / "fineweb_train_000002.bin").unlink()
    with pytest.raises(
        CheckpointError, match=r"fineweb_train_000002\.bin was 1,\d+ bytes and is missing"
    ):
        load(tmp_path / "tokens")
    write_shard(place / "fineweb_train_000002.bin", TRAIN[1], 50257)
    load(tmp_path / "tokens")
    write_shard(place / "fineweb_train_000004.bin", TRAIN[1], 50257)
    with pytest.raises(CheckpointError, match=r"fineweb_train_000004\.bin was missing and is"):
        load(tmp_path / "tokens")


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    place = prepared(tmp_path / "ready")
    prepare_run(DataConfig(sources=(str(place),)), "auto", tmp_path / "tokens")
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(manifest | {"notes": ["made again"]}))
    with pytest.raises(
        CheckpointError,
        match="have changed since the run began: the manifest differs",
    ):
        load(tmp_path / "tokens")


def test_the_new_path_of_a_moved_folder_can_be_set(tmp_path: Path) -> None:
    place = prepared(tmp_path / "ready")
    before = prepare_run(DataConfig(sources=(str(place),)), "auto", tmp_path / "tokens")
    train = before.train[:].tolist()
    place.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"which does not exist\. .* into .*sources\.json"):
        load(tmp_path / "tokens")
    path = tmp_path / "tokens" / "sources.json"
    path.write_text(path.read_text().replace("/ready", "/moved"))
    assert load(tmp_path / "tokens").train[:].tolist() == train
    path.write_text("[]")
    with pytest.raises(CheckpointError, match=r"sources\.json is damaged"):
        load(tmp_path / "tokens")


# Which folders count as shards


def test_folders_of_text_are_not_mistaken_for_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMSMITH_DATA", str(tmp_path / "corpora"))
    text = tmp_path / "shakespeare_char"  # nanoGPT's: token files without a header beside the text
    text.mkdir()
    (text / "input.txt").write_text("To be")
    np.arange(2000, dtype=np.uint16).tofile(text / "train.bin")
    assert find_shard_folder(str(text)) is None
    (text / "manifest.json").write_text('{"name": "an extension of a browser"}')
    assert find_shard_folder(str(text)) is None
    assert find_shard_folder(str(text / "input.txt")) is None
    assert find_shard_folder(str(tmp_path / "absent")) is None
    assert find_shard_folder("tinyshakespeare") is None
    place = foreign(tmp_path / "fineweb")
    assert find_shard_folder(str(place)) == place
    with pytest.raises(
        DataError, match=r"fineweb_val_000000\.bin is a single shard\. Name its folder"
    ):
        find_shard_folder(str(place / "fineweb_val_000000.bin"))


def test_a_corpus_of_shards_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMSMITH_DATA", str(tmp_path / "corpora"))
    with pytest.raises(
        DataError,
        match=r"fineweb10B-gpt2 .* not on this machine\. `lmsmith data download fineweb10B-gpt2`",
    ):
        find_shard_folder("fineweb10B-gpt2")
    place = foreign(tmp_path / "corpora" / "fineweb10B-gpt2")
    monkeypatch.setattr(store, "here", lambda corpus: (sorted(place.glob("*.bin")), 5))
    assert find_shard_folder("fineweb10B-gpt2") == place


def test_a_runs_own_tokens_can_be_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcabc\n" * 50, encoding="utf-8")
    first = prepare_run(
        DataConfig(sources=(str(tmp_path / "a.txt"),)), "auto", tmp_path / "run" / "tokens"
    )
    found = prepared_run(
        DataConfig(sources=(str(tmp_path / "run" / "tokens"),)), tmp_path / "tokens"
    )
    assert np.array_equal(found.train[:], first.train[:])
    assert replace(found.counts, notes=()) == replace(first.counts, notes=())
