"""Opens folders of token shards: prepared by lmsmith, or by other programs.

    manifest.json, tokenizer.json, train_000000.bin, ..., val_000000.bin, ...     `lmsmith data prepare`
    fineweb_train_000001.bin, ..., fineweb_val_000000.bin                         llm.c, modded-nanogpt

With a manifest, its list of shards and its tokenizer apply. Without one, shards are recognized by
their names (the part before the number ends in train or val) and their first bytes, and the user
names the tokenizer that made them.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.data import manifest
from lmsmith.data.manifest import Manifest, read_manifest
from lmsmith.data.shards import Shards, is_shard
from lmsmith.errors import DataError, TokenizerError
from lmsmith.text import corpora, store
from lmsmith.tokens import files as tokenizer_files
from lmsmith.tokens.files import load_tokenizer
from lmsmith.tokens.tokenizer import Tokenizer

_NAME = re.compile(r"(?:.*[^a-z])?(train|val)(?:_?\d+)?\.bin", re.IGNORECASE)


@dataclass(frozen=True)
class Ready:
    """A folder of shards: its training and its validation files, in order.

    `shard`: the file that was named, if a single file was named instead of its folder.
    """

    folder: Path
    manifest: Manifest | None
    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    shard: Path | None = None

    @property
    def place(self) -> Path:
        """The path that the user named."""
        return self.shard or self.folder

    def open_all(self, vocab_size: int | None) -> Shards:
        """Opens training and validation tokens as one array, for a folder that is used for one
        split.
        """
        return Shards.join([self.open_train(vocab_size), self.open_validation(vocab_size)])

    def open_train(self, vocab_size: int | None) -> Shards:
        return self._open("train", self.train, vocab_size)

    def open_validation(self, vocab_size: int | None) -> Shards:
        return self._open("val", self.validation, vocab_size)

    def _open(self, split: str, paths: tuple[Path, ...], vocab_size: int | None) -> Shards:
        """Opens shards as one array. Raises DataError for shards that are missing or damaged or do
        not match the manifest.
        """
        shards = Shards.open(paths, vocab_size)
        if self.manifest is not None:
            for path, n_tokens, record in zip(
                paths, shards.lengths, self.manifest.splits[split].shards, strict=True
            ):
                if n_tokens != record.n_tokens:
                    raise DataError(
                        f"the shard {path} has {n_tokens:,} tokens, but the manifest beside it "
                        f"lists {record.n_tokens:,}. Prepare or copy the folder again."
                    )
        return shards

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the tokenizer that made the shards; None without a manifest."""
        return self.manifest.tokenizer.fingerprint if self.manifest else None

    def own_tokenizer(self) -> Tokenizer | None:
        """Loads the tokenizer beside the shards; None if there is none. Raises TokenizerError if it
        is not the one in the manifest.
        """
        if self.manifest is None and not (self.folder / tokenizer_files.FILE_NAME).is_file():
            return None
        tokenizer = load_tokenizer(self.folder)
        if self.fingerprint not in (None, tokenizer.fingerprint):
            raise TokenizerError(
                f"{self.folder / tokenizer_files.FILE_NAME} is not the tokenizer that made the "
                f"shards beside it: its fingerprint is {tokenizer.fingerprint}, but the manifest "
                f"lists {self.fingerprint}. Prepare or copy the folder again."
            )
        return tokenizer

    def identity(self) -> dict[str, Any]:
        """Identifies the folder's content, to detect later changes: the hash of the manifest or,
        without one, the names and sizes of the shards.
        """
        if self.manifest is not None:
            content = (self.folder / manifest.FILE_NAME).read_bytes()
            return {"manifest_sha256": hashlib.sha256(content).hexdigest()}
        return {
            "shards_bytes": {
                path.name: path.stat().st_size for path in (*self.train, *self.validation)
            }
        }


def find_shard_folder(source: str, *, one_sided: bool = False) -> Path | None:
    """Returns the folder of shards that `source` names, as a path or as a corpus; None if it names
    anything else, such as text.

    `one_sided`: the user names training and validation separately, so a single shard is allowed.
    Raises DataError for a single shard otherwise, and for a corpus of shards that is not
    downloaded.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        # A manifest alone proves nothing: many programs write a file of that name.
        prepared = (path / manifest.FILE_NAME).is_file() and (
            path / tokenizer_files.FILE_NAME
        ).is_file()
        return path if prepared or any(map(is_shard, _named(path))) else None
    if path.is_file():
        if is_shard(path) and not one_sided:
            raise DataError(
                f"{path} is a single shard. Name its folder, {path.parent}, which has training "
                "and validation shards; or name both files, as in `lmsmith train TRAIN.bin "
                "--validation VAL.bin`."
            )
        return path if is_shard(path) else None
    corpus = corpora.find(source)
    if corpus is None or corpus.kind != "shards":
        return None
    if not store.here(corpus)[0]:
        raise DataError(
            f"the shards of {corpus.name} ({corpus.size}) are not on this machine. `lmsmith data "
            f"download {corpus.name}` downloads them; with --files N, only the first N."
        )
    return store.folder_of(corpus)


def open_shard_folder(folder: Path, *, one_sided: bool = False) -> Ready:
    """Lists the shards of a folder. Raises DataError if some are missing.

    `one_sided`: allow a single shard, or a folder with training or validation shards only.
    """
    folder = folder.absolute()
    if folder.is_file():
        return Ready(folder.parent, None, (folder,), (), shard=folder)
    if folder.name.endswith(".partial") and (folder / "work").is_dir():
        raise DataError(
            f"{folder} is unfinished: it is being prepared, or `lmsmith data prepare` was "
            f"interrupted. The same command resumes it and produces {folder.with_suffix('')}."
        )
    if (folder / manifest.FILE_NAME).is_file():
        listing = read_manifest(folder)
        train, validation = (
            tuple(folder / shard.file for shard in listing.splits[split].shards)
            for split in manifest.SPLITS
        )
        missing = [path.name for path in (*train, *validation) if not path.is_file()]
        if missing:
            raise DataError(
                f"{folder} is incomplete: its manifest lists {missing[0]}"
                + (
                    f" and {len(missing) - 1:,} more shards that are"
                    if len(missing) > 1
                    else ", which is"
                )
                + " missing. Prepare or copy the folder again."
            )
        return Ready(folder, listing, train, validation)
    named = _named(folder)
    if not named:
        raise DataError(
            f"{folder} holds no token shards. Expected a manifest.json and its shards, or files "
            "such as fineweb_train_000000.bin and fineweb_val_000000.bin. `lmsmith data "
            "prepare` makes shards from text. If this is a run, its config.toml names the "
            "shards it was trained on."
        )
    split_of = {path: _NAME.fullmatch(path.name)[1].lower() for path in named}  # type: ignore[index]
    train, validation = (
        tuple(path for path in named if split_of[path] == split) for split in manifest.SPLITS
    )
    for split, paths, what in (("train", train, "trained on"), ("val", validation, "scored")):
        if not paths and not one_sided:
            raise DataError(
                f"{folder} holds no {split} shard, so nothing could be {what}. Expected files "
                f"such as fineweb_{split}_000000.bin, found "
                f"{', '.join(path.name for path in named)}."
            )
    return Ready(folder, None, train, validation)


def _named(folder: Path) -> list[Path]:
    """Files of the folder with a shard's name, sorted."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(
            f"the folder {folder} cannot be read: {error.strerror}. Check the "
            f"path and its permissions."
        ) from error
    return [folder / name for name in names if _NAME.fullmatch(name)]
