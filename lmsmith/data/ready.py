"""Folders of token shards, ready to be trained on: prepared by lmsmith, or made elsewhere.

    manifest.json, tokenizer.json, train_000000.bin, ..., val_000000.bin, ...     `lmsmith data prepare`
    fineweb_train_000001.bin, ..., fineweb_val_000000.bin                         llm.c, modded-nanogpt

With a manifest, what it lists is what there is, and its tokenizer is the folder's. Without one,
shards are told by their names (the part before the number ends in train or val) and the first
bytes, and who trains on them has to say which tokenizer made them.
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
    """A folder of shards: which files hold training tokens, which validation tokens, in order.

    `shard`: the one file that was named instead of its folder.
    """

    folder: Path
    manifest: Manifest | None
    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    shard: Path | None = None

    @property
    def place(self) -> Path:
        """What was named."""
        return self.shard or self.folder

    def open_all(self, vocab_size: int | None) -> Shards:
        """Training and validation tokens as one, for who was told that all of it is on one side."""
        return Shards.join([self.open_train(vocab_size), self.open_validation(vocab_size)])

    def open_train(self, vocab_size: int | None) -> Shards:
        return self._open("train", self.train, vocab_size)

    def open_validation(self, vocab_size: int | None) -> Shards:
        return self._open("val", self.validation, vocab_size)

    def _open(self, split: str, paths: tuple[Path, ...], vocab_size: int | None) -> Shards:
        """Raises DataError for shards that are missing, damaged, or not those of the manifest."""
        found = Shards.open(paths, vocab_size)
        if self.manifest is not None:
            for path, n_tokens, record in zip(
                paths, found.lengths, self.manifest.splits[split].shards, strict=True
            ):
                if n_tokens != record.n_tokens:
                    raise DataError(
                        f"the shard {path} has {n_tokens:,} tokens, and the manifest beside it "
                        f"says "
                        f"{record.n_tokens:,}: they do not belong together. Prepare or copy the "
                        f"folder again."
                    )
        return found

    @property
    def fingerprint(self) -> str | None:
        """Of the tokenizer that made the shards; None where nobody has said it."""
        return self.manifest.tokenizer.fingerprint if self.manifest else None

    def own_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that lies beside the shards. Raises TokenizerError where it is not that
        of the manifest.
        """
        if self.manifest is None and not (self.folder / tokenizer_files.FILE_NAME).is_file():
            return None
        found = load_tokenizer(self.folder)
        if self.fingerprint not in (None, found.fingerprint):
            raise TokenizerError(
                f"{self.folder / tokenizer_files.FILE_NAME} is not the tokenizer that made the "
                f"shards beside it: the "
                f"manifest says {self.fingerprint}, and it is {found.fingerprint}. Prepare or "
                f"copy the folder again."
            )
        return found

    def identity(self) -> dict[str, Any]:
        """What tells, later, whether the folder holds the same: the manifest's hash, else names
        and sizes of shards.
        """
        if self.manifest is not None:
            content = (self.folder / manifest.FILE_NAME).read_bytes()
            return {"manifest_sha256": hashlib.sha256(content).hexdigest()}
        return {
            "shards_bytes": {
                path.name: path.stat().st_size for path in (*self.train, *self.validation)
            }
        }


def find_ready(source: str, *, one_sided: bool = False) -> Path | None:
    """The folder of shards that `source` names, itself or as a corpus; None where it names
    something else, as text.

    `one_sided`: the user says which shards are for validation, so that a single one can be named.
    Raises DataError for a single shard otherwise, and for a corpus of shards that is not here.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        # A manifest alone may be anybody's: many programs have a file of that name.
        ours = (path / manifest.FILE_NAME).is_file() and (
            path / tokenizer_files.FILE_NAME
        ).is_file()
        return path if ours or any(map(is_shard, _named(path))) else None
    if path.is_file():
        if is_shard(path) and not one_sided:
            raise DataError(
                f"{path} is one shard: name its folder, {path.parent}, for training and "
                f"validation shards; or name "
                "both, as in `lmsmith train TRAIN.bin --validation VAL.bin`."
            )
        return path if is_shard(path) else None
    corpus = corpora.find(source)
    if corpus is None or corpus.kind != "shards":
        return None
    if not store.here(corpus)[0]:
        raise DataError(
            f"the shards of {corpus.name} ({corpus.size}) are not on this machine. `lmsmith data "
            f"download "
            f"{corpus.name}` fetches them, with --files N the first N of them."
        )
    return store.folder_of(corpus)


def open_ready(folder: Path, *, one_sided: bool = False) -> Ready:
    """What there is in a folder of shards. Raises DataError where shards are missing.

    `one_sided`: it may be a single shard, or a folder without training or without validation
    shards.
    """
    folder = folder.absolute()
    if folder.is_file():
        return Ready(folder.parent, None, (folder,), (), shard=folder)
    if folder.name.endswith(".partial") and (folder / "work").is_dir():
        raise DataError(
            f"{folder} is being prepared, or was left before the end: `lmsmith data prepare` with "
            f"the same settings "
            f"goes on, and makes {folder.with_suffix('')} of it."
        )
    if (folder / manifest.FILE_NAME).is_file():
        found = read_manifest(folder)
        train, validation = (
            tuple(folder / shard.file for shard in found.splits[split].shards)
            for split in manifest.SPLITS
        )
        missing = [path.name for path in (*train, *validation) if not path.is_file()]
        if missing:
            raise DataError(
                f"{folder} is not whole: its manifest lists {missing[0]}"
                + (
                    f" and {len(missing) - 1:,} more shards that are"
                    if len(missing) > 1
                    else ", which is"
                )
                + " not there. Prepare or copy the folder again."
            )
        return Ready(folder, found, train, validation)
    named = _named(folder)
    if not named:
        raise DataError(
            f"{folder} holds no token shards: wanted a manifest.json and its shards, or files "
            f"such as "
            "fineweb_train_000000.bin and fineweb_val_000000.bin. `lmsmith data prepare` makes "
            "shards of text; which "
            "a run was trained on says its config.toml."
        )
    split_of = {path: _NAME.fullmatch(path.name)[1].lower() for path in named}  # type: ignore[index]
    train, validation = (
        tuple(path for path in named if split_of[path] == split) for split in manifest.SPLITS
    )
    for split, paths, what in (("train", train, "trained on"), ("val", validation, "scored")):
        if not paths and not one_sided:
            raise DataError(
                f"{folder} holds no {split} shard, so nothing could be {what}: wanted files such "
                f"as "
                f"fineweb_{split}_000000.bin. Found {', '.join(path.name for path in named)}."
            )
    return Ready(folder, None, train, validation)


def _named(folder: Path) -> list[Path]:
    """Files of the folder that have a shard's name, in order."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read: {error.strerror}.") from error
    return [folder / name for name in names if _NAME.fullmatch(name)]
