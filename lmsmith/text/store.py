"""Named corpora on this machine: where they lie, what of them is here, and fetching the rest.

    paths = obtain(corpora.get("hellaswag"))          fetched first if it is small and not here

    plan = make_plan(corpora.get("fineweb-edu-10BT"), n_files=2)
    fetch(plan)

They lie in $LMSMITH_DATA, else in $XDG_CACHE_HOME/lmsmith/corpora, else in
~/.cache/lmsmith/corpora, a folder each. A folder's `corpus.json` lists the corpus's files with
their lengths and checksums as they were when it was first looked at: what comes later is held to
that list, so that files fetched a year apart belong together. A file has its own name only when it
is whole and checked; a copy put there by hand is checked when it is first met.
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
from lmsmith.text.corpora import Corpus, HubFiles, size_in_words
from lmsmith.text.download import checksum_of, download, part_bytes
from lmsmith.text.files import plural

FORMAT = 1
SMALL = 100_000_000  # bytes that are fetched without being asked for

logger = logging.getLogger(__name__)


@dataclass
class Entry:
    """A file as the list has it. `n_bytes` is about its length until `checked`: until it was
    here, whole.
    """

    n_bytes: int
    exact: bool
    checksum: str | None
    checked: bool = False


@dataclass(frozen=True)
class Plan:
    """What is wanted of a corpus, in `folder`, and which of it is `missing`."""

    corpus: Corpus
    folder: Path
    revision: str
    """The commit on the Hub; empty for fixed addresses."""
    entries: dict[str, Entry]
    """Every file there is, by its path under `folder`, in order."""
    wanted: list[str]
    missing: list[str]

    @property
    def n_bytes(self) -> int:
        """What is still to come. Of a file that came in part, the rest."""
        return sum(
            max(0, self.entries[name].n_bytes - part_bytes(self.folder / name))
            for name in self.missing
        )

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name in self.wanted]


def data_folder() -> Path:
    named = os.environ.get("LMSMITH_DATA")
    if named:
        return Path(named).expanduser()
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
        / "lmsmith"
        / "corpora"
    )


def folder_of(corpus: Corpus) -> Path:
    return data_folder() / corpus.name


def here(corpus: Corpus) -> tuple[list[Path], int]:
    """The files that are here, whole, and how many there are; 0: nobody has looked. Opens no
    file and no connection.
    """
    folder = folder_of(corpus)
    entries = _read_list(corpus, folder)[1]
    return [
        folder / name for name, entry in entries.items() if _is_whole(folder / name, entry)
    ], len(entries)


def obtain(corpus: Corpus) -> list[Path]:
    """The files of a corpus as far as they are here; a small one is fetched first. Raises
    DataError, StorageError.
    """
    found, n_there = here(corpus)
    if found:
        if len(found) < n_there:
            logger.warning(
                "%s: %d of its %s are here", corpus.name, len(found), plural(n_there, "file")
            )
        return found
    if corpus.n_bytes > SMALL:
        raise DataError(
            f"the corpus {corpus.name} ({corpus.size}) is not on this machine. `lmsmith data "
            f"download {corpus.name}` "
            f"fetches it, with --files N its first N files{_from_afar(corpus)}."
        )
    plan = make_plan(corpus)
    if plan.missing:
        logger.warning("fetching %s (%s) from %s", corpus.name, corpus.size, corpus.where)
        fetch(plan)
    return plan.paths


def make_plan(corpus: Corpus, folder: Path | None = None, n_files: int = 0) -> Plan:
    """Which files of the corpus are to be in `folder` (its own), and which are missing. `n_files`
    0: all.

    Asks the Hub for its list, once: later plans are made from the list that is kept. Raises
    DataError.
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
                f"{corpus.where} has no file {' or '.join(corpus.source.patterns)} any more: look "
                f"at "
                f"https://huggingface.co/datasets/{corpus.source.repo} and name files by "
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
        ):  # a folder that cannot be written to: they are checked each time
            _write_list(plan)
    return plan


def fetch(plan: Plan, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Fetches what is missing. `progress` is called with the bytes that came, and those that are to
    come in all.

    Raises DataError, StorageError; what has come by then is kept, and the next call goes on from
    there.
    """
    total = plan.n_bytes
    _make_folder(plan.folder)
    _check_room(plan, total)
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += max(n, 0)  # n < 0: what had come before is to come again
        progress(done, max(done, total))

    with _locked(plan.folder):
        for name in plan.missing:
            path, entry = plan.folder / name, plan.entries[name]
            if _is_here(path, entry):  # from another process, for which we waited
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
                    "%s: its checksum was not known; this one's is kept, later ones are held to it",
                    url,
                )
            entry.n_bytes, entry.exact, entry.checked = path.stat().st_size, True, True
            _write_list(plan)


def _address(plan: Plan, name: str) -> tuple[str, dict[str, str]]:
    source = plan.corpus.source
    if isinstance(source, HubFiles):
        return hub.address(source.repo, plan.revision, name)
    return next(file.url for file in source if file.name == name), {}


def _is_whole(path: Path, entry: Entry) -> bool:
    """Whether the file was here before, whole, and by its length still is."""
    return entry.checked and path.is_file() and path.stat().st_size == entry.n_bytes


def _is_here(path: Path, entry: Entry) -> bool:
    """The same; a file that is there and not checked yet is checked now. Raises DataError if it
    is another file.
    """
    if _is_whole(path, entry):
        return True
    if not path.exists():
        return False
    found = checksum_of(path, entry.checksum or "sha256:")
    if entry.checksum not in (None, found):
        raise DataError(
            f"{path} is there, and it is not the file that belongs there: found {found} "
            f"({path.stat().st_size:,} "
            f"bytes), wanted {entry.checksum}. Remove it, or move it elsewhere."
        )
    entry.n_bytes, entry.exact, entry.checksum, entry.checked = (
        path.stat().st_size,
        True,
        found,
        True,
    )
    return True


def _read_list(corpus: Corpus, folder: Path) -> tuple[str, dict[str, Entry]]:
    """The commit and the files of `corpus.json`; without one, those that lmsmith itself knows.
    Raises DataError.
    """
    known: dict[str, Entry] = {}
    if not isinstance(corpus.source, HubFiles):
        known = {
            file.name: Entry(file.n_bytes, file.exact, file.checksum) for file in corpus.source
        }
    path = folder / "corpus.json"
    try:
        found = foreign_json.read(path)
    except FileNotFoundError:
        return "", known
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). Remove it: the files beside it are checked anew "
            f"then."
        ) from error
    try:
        if found["format"] != FORMAT or found["corpus"] != corpus.name:
            raise DataError(
                f"{path} is about {found['corpus']} in format {found['format']}; wanted "
                f"{corpus.name} in format "
                f"{FORMAT}. Choose another folder."
            )
        listed = {name: Entry(**entry) for name, entry in found["files"].items()}
        revision = str(found["revision"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no list of a corpus's files ({error!r}). Choose another folder."
        ) from error
    for name, entry in known.items():  # what lmsmith knows wins over what was seen
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
            f"{plan.corpus.name} needs {size_in_words(n_bytes)} more and {size_in_words(free)} "
            f"are free at "
            f"{plan.folder}. Make room, or choose another place with --out or LMSMITH_DATA{fewer}."
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: several that start together fetch a corpus once."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is fetching to %s; waiting for it", folder)
        lock.acquire()
    except OSError as error:
        raise StorageError(atomic.explain(error, folder / ".lock")) from error
    try:
        yield
    finally:
        lock.release()


def _by_hand(corpus: Corpus, folder: Path) -> str:
    """How to get the corpus without our help, where the network does not let us."""
    begin = f"{corpus.name} ({corpus.size}) can come by other means:"
    if not isinstance(corpus.source, HubFiles):
        return (
            f"{begin} put that file at {folder / corpus.source[0].name}, where it is checked "
            f"and found."
        )
    include = " ".join(f"--include {shlex.quote(pattern)}" for pattern in corpus.source.patterns)
    return (
        f"{begin} on a machine with a network `hf download {corpus.source.repo} --repo-type "
        f"dataset --revision "
        f"{corpus.source.revision} {include} --local-dir {corpus.name}` makes a folder, which is "
        f"named in its place."
    )


def _from_afar(corpus: Corpus) -> str:
    if not isinstance(corpus.source, HubFiles) or corpus.kind != "text":
        return ""
    revision = "" if corpus.source.revision == "main" else f"@{corpus.source.revision}"
    source = f"hf://datasets/{corpus.source.repo}{revision}/{corpus.source.patterns[0]}"
    return f"; or read it from afar, nothing kept: {shlex.quote(source)}"
