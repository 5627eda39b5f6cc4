"""Named corpora on this machine: where they are stored, which files are present, and downloading
the rest.

    paths = obtain(corpora.get("hellaswag"))          downloads it first if it is small

    plan = make_plan(corpora.get("fineweb-edu-10BT"), n_files=2)
    fetch(plan)

Each corpus has a folder in $LMSMITH_DATA, else in $XDG_CACHE_HOME/lmsmith/corpora, else in
~/.cache/lmsmith/corpora. `corpus.json` in that folder lists the corpus's files with their lengths
and checksums, as they were when it was first queried. Later downloads are checked against that
list, so that files downloaded a year apart belong together. A file has its final name only when it
is complete and verified. A copy that a user puts there is verified when it is first used.
"""

import contextlib
import logging
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lmsmith import atomic, foreign_json
from lmsmith.errors import DataError, StorageError
from lmsmith.strict_json import write_json
from lmsmith.text import hub
from lmsmith.text.corpora import Corpus, HubFiles, format_size
from lmsmith.text.download import checksum_of, download, part_bytes
from lmsmith.text.files import plural

FORMAT = 1
SMALL = 100_000_000  # bytes; smaller corpora are downloaded automatically

logger = logging.getLogger(__name__)


@dataclass
class Entry:
    """A file in the list. `exact`: `n_bytes` is exact. `checked`: the file was here before,
    complete and verified.
    """

    n_bytes: int
    exact: bool
    checksum: str | None
    checked: bool = False


@dataclass(frozen=True)
class Plan:
    """The requested files of a corpus in `folder`, and the `missing` ones among them."""

    corpus: Corpus
    folder: Path
    revision: str
    """The commit on the Hub; empty for fixed addresses."""
    entries: dict[str, Entry]
    """All files of the corpus, by path under `folder`, in order."""
    wanted: list[str]
    missing: list[str]

    @property
    def n_bytes(self) -> int:
        """Bytes still to download. For a file that is partly downloaded, the rest."""
        return sum(
            max(0, self.entries[name].n_bytes - part_bytes(self.folder / name))
            for name in self.missing
        )

    @property
    def paths(self) -> list[Path]:
        """The paths of the requested files."""
        return [self.folder / name for name in self.wanted]


def data_folder() -> Path:
    """Returns the folder of all corpora: $LMSMITH_DATA, or the user's cache folder."""
    named = os.environ.get("LMSMITH_DATA")
    if named:
        return Path(named).expanduser()
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
        / "lmsmith"
        / "corpora"
    )


def folder_of(corpus: Corpus) -> Path:
    """Returns the folder of one corpus."""
    return data_folder() / corpus.name


def here(corpus: Corpus) -> tuple[list[Path], int]:
    """Returns the complete files on this machine, and how many files the corpus has; 0 if it was
    never queried. Opens no data file and no connection.
    """
    folder = folder_of(corpus)
    entries = _read_list(corpus, folder)[1]
    return [
        folder / name for name, entry in entries.items() if _is_complete(folder / name, entry)
    ], len(entries)


def obtain(corpus: Corpus) -> list[Path]:
    """Returns the files of a corpus that are on this machine; a small corpus is downloaded first.
    Raises DataError, StorageError.
    """
    paths, n_files = here(corpus)
    if paths:
        if len(paths) < n_files:
            logger.warning(
                "%s: %d of its %s are on this machine",
                corpus.name,
                len(paths),
                plural(n_files, "file"),
            )
        return paths
    if corpus.n_bytes > SMALL:
        raise DataError(
            f"the corpus {corpus.name} ({corpus.size}) is not on this machine. `lmsmith data "
            f"download {corpus.name}` "
            f"downloads it, with --files N only its first N files{_remote_hint(corpus)}."
        )
    plan = make_plan(corpus)
    if plan.missing:
        logger.warning("downloading %s (%s) from %s", corpus.name, corpus.size, corpus.where)
        fetch(plan)
    return plan.paths


def make_plan(corpus: Corpus, folder: Path | None = None, n_files: int = 0) -> Plan:
    """Lists the files of the corpus to download to `folder` (default: the corpus's own), and those
    that are missing there. `n_files` 0: all.

    Queries the Hub once; later plans use the saved list. Raises DataError.
    """
    folder = folder or folder_of(corpus)
    revision, entries = _read_list(corpus, folder)
    if isinstance(corpus.source, HubFiles) and not entries:
        try:
            revision, files = hub.list_files(
                corpus.source.repo, corpus.source.patterns, corpus.source.revision
            )
        except DataError as error:
            raise DataError(f"{error} {_by_hand(corpus, folder)}") from error
        if not files:
            raise DataError(
                f"{corpus.where} has no file {' or '.join(corpus.source.patterns)} any more: see "
                f"https://huggingface.co/datasets/{corpus.source.repo} and name files as "
                f"hf://datasets/... instead."
            )
        entries = {file.name: Entry(file.n_bytes, True, file.checksum) for file in files}
    wanted = list(entries)[: n_files or None]
    n_checked = sum(entry.checked for entry in entries.values())
    missing = [name for name in wanted if not _is_here(folder / name, entries[name])]
    plan = Plan(corpus, folder, revision, entries, wanted, missing)
    if n_checked < sum(entry.checked for entry in entries.values()):
        with contextlib.suppress(
            StorageError
        ):  # a read-only folder: files are then checked each time
            _write_list(plan)
    return plan


def fetch(plan: Plan, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Downloads the missing files. `progress` is called with the bytes received so far and the
    total.

    Raises DataError, StorageError; received data is kept, and the next call continues from there.
    """
    total = plan.n_bytes
    _make_folder(plan.folder)
    _check_room(plan, total)
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += max(n, 0)  # n < 0: discarded bytes are downloaded again
        progress(done, max(done, total))

    with _locked(plan.folder):
        for name in plan.missing:
            path, entry = plan.folder / name, plan.entries[name]
            if _is_here(path, entry):  # another process downloaded it while we waited
                continue
            _make_folder(path.parent)
            url, headers = _address(plan, name)
            known = entry.checksum is not None
            try:
                entry.checksum = download(
                    url,
                    path,
                    checksum=entry.checksum,
                    n_bytes=entry.n_bytes if entry.exact else None,
                    headers=headers,
                    patient=done > 0,
                    progress=count,
                )
            except DataError as error:
                raise DataError(f"{error} {_by_hand(plan.corpus, plan.folder)}") from error
            if not known:
                logger.warning(
                    "%s: no checksum is known; it is recorded now, and later downloads are checked "
                    "against it",
                    url,
                )
            entry.n_bytes, entry.exact, entry.checked = path.stat().st_size, True, True
            _write_list(plan)


def _address(plan: Plan, name: str) -> tuple[str, dict[str, str]]:
    source = plan.corpus.source
    if isinstance(source, HubFiles):
        return hub.address(source.repo, plan.revision, name)
    return next(file.url for file in source if file.name == name), {}


def _is_complete(path: Path, entry: Entry) -> bool:
    """Returns whether the file was complete and verified before and still has that length."""
    return entry.checked and path.is_file() and path.stat().st_size == entry.n_bytes


def _is_here(path: Path, entry: Entry) -> bool:
    """Like `_is_complete`, but verifies a file that exists and was not checked yet. Raises
    DataError if its checksum differs.
    """
    if _is_complete(path, entry):
        return True
    if not path.exists():
        return False
    actual = checksum_of(path, entry.checksum or "sha256:")
    if entry.checksum not in (None, actual):
        raise DataError(
            f"{path} is not the expected file: found {actual} ({path.stat().st_size:,} bytes), "
            f"expected {entry.checksum}. Remove it, or move it elsewhere."
        )
    entry.n_bytes, entry.exact, entry.checksum, entry.checked = (
        path.stat().st_size,
        True,
        actual,
        True,
    )
    return True


def _read_list(corpus: Corpus, folder: Path) -> tuple[str, dict[str, Entry]]:
    """Returns the commit and the files in `corpus.json`; without that file, those that lmsmith
    itself lists. Raises DataError.
    """
    known: dict[str, Entry] = {}
    if not isinstance(corpus.source, HubFiles):
        known = {
            file.name: Entry(file.n_bytes, file.exact, file.checksum) for file in corpus.source
        }
    path = folder / "corpus.json"
    try:
        content = foreign_json.read(path)
    except FileNotFoundError:
        return "", known
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). Remove it: the files in its folder are then checked "
            f"again."
        ) from error
    try:
        if content["format"] != FORMAT or content["corpus"] != corpus.name:
            raise DataError(
                f"{path} lists {content['corpus']} in format {content['format']}; expected "
                f"{corpus.name} in format {FORMAT}. Choose another folder."
            )
        listed = {name: Entry(**entry) for name, entry in content["files"].items()}
        revision = str(content["revision"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a list of a corpus's files ({error!r}). Choose another folder."
        ) from error
    for name, entry in known.items():  # lmsmith's own list overrides the saved one
        if name not in listed or entry.checksum not in (None, listed[name].checksum):
            listed[name] = entry
    return revision, {name: listed[name] for name in (known or listed)}


def _write_list(plan: Plan) -> None:
    content = {
        "format": FORMAT,
        "corpus": plan.corpus.name,
        "from": plan.corpus.where,
        "revision": plan.revision,
        "files": {name: asdict(entry) for name, entry in plan.entries.items()},
    }
    write_json(plan.folder / "corpus.json", content)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(atomic.explain(error, folder)) from error


def _check_room(plan: Plan, n_bytes: int) -> None:
    free = shutil.disk_usage(plan.folder).free
    if free < n_bytes:
        fewer = ", or take fewer files with --files" if len(plan.missing) > 1 else ""
        raise StorageError(
            f"{plan.corpus.name} needs {format_size(n_bytes)} more and {format_size(free)} "
            f"are free at {plan.folder}. Free some space, or choose another folder with --out or "
            f"LMSMITH_DATA{fewer}."
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process in at a time: several that start together download a corpus once."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is downloading to %s; waiting for it", folder)
        lock.acquire()
    except OSError as error:
        raise StorageError(atomic.explain(error, folder / ".lock")) from error
    try:
        yield
    finally:
        lock.release()


def _by_hand(corpus: Corpus, folder: Path) -> str:
    """Says how to get the corpus without lmsmith's downloader, for blocked networks."""
    intro = f"To get {corpus.name} ({corpus.size}) another way,"
    if not isinstance(corpus.source, HubFiles):
        return (
            f"{intro} put that file at {folder / corpus.source[0].name}; it is then checked and "
            f"used."
        )
    include = " ".join(f"--include {shlex.quote(pattern)}" for pattern in corpus.source.patterns)
    return (
        f"{intro} run `hf download {corpus.source.repo} --repo-type dataset --revision "
        f"{corpus.source.revision} {include} --local-dir {corpus.name}` on a machine with "
        f"network access and name the folder that it creates instead of the corpus."
    )


def _remote_hint(corpus: Corpus) -> str:
    if not isinstance(corpus.source, HubFiles) or corpus.kind != "text":
        return ""
    revision = "" if corpus.source.revision == "main" else f"@{corpus.source.revision}"
    source = f"hf://datasets/{corpus.source.repo}{revision}/{corpus.source.patterns[0]}"
    return f"; or read it remotely, without keeping it: {shlex.quote(source)}"
