"""Data sets of the Hugging Face Hub: lists their files, finds download addresses, and reads files
remotely.

    commit, files = list_files("HuggingFaceFW/fineweb-edu", ["sample/10BT/*.parquet"])
    find_remote("hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT/*.parquet")
    with open_remote(path) as stream: ...

huggingface_hub (the extra `hf`) queries the Hub and reads remote files; it honours HF_ENDPOINT,
HF_TOKEN and HF_HUB_OFFLINE. Files that are kept are downloaded by `download.py`, like all others:
it checks them against the SHA-256 that the Hub lists, which huggingface_hub does not. The library
`datasets` is not needed: pyarrow reads Parquet.

A remote file has a path, "hf:/datasets/OWNER/NAME@COMMIT/FILE", that can be used like the path of a
local file. Because it contains the commit, every read returns the same bytes.
"""

import contextlib
import fnmatch
import functools
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lmsmith.errors import DataError

SCHEME = "hf://"
MAGIC = set("*?[")


@dataclass(frozen=True)
class HubFile:
    name: str
    n_bytes: int
    checksum: str


def list_files(
    repo: str, patterns: Iterable[str], revision: str = "main"
) -> tuple[str, list[HubFile]]:
    """Returns the commit of `revision`, and its files that match: in the order of the patterns,
    sorted within each. The list may be empty.

    In a pattern, `*` matches any part of a path, including slashes. Raises DataError.
    """
    files: dict[str, HubFile] = {}
    with _explained(f"the data set {repo}"):
        api = _library().HfApi(endpoint=_endpoint(), library_name="lmsmith")
        commit = api.repo_info(repo, repo_type="dataset", revision=revision, expand=["sha"]).sha
        for pattern in patterns:
            tree = api.list_repo_tree(
                repo,
                _folder_of(pattern) or None,
                recursive=True,
                revision=commit,
                repo_type="dataset",
            )
            for entry in sorted(tree, key=lambda entry: entry.path):
                if hasattr(entry, "size") and fnmatch.fnmatchcase(entry.path, pattern):
                    checksum = f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}"
                    files.setdefault(entry.path, HubFile(entry.path, entry.size, checksum))
    assert commit
    return commit, list(files.values())


def address(repo: str, commit: str, name: str) -> tuple[str, dict[str, str]]:
    """Returns the download URL of a file, and the headers that authenticate the user."""
    hub = _library()
    url = hub.hf_hub_url(repo, name, repo_type="dataset", revision=commit, endpoint=_endpoint())
    headers = hub.utils.build_hf_headers()
    return url, {name: value for name, value in headers.items() if name.lower() == "authorization"}


def is_remote(source: str | os.PathLike[str]) -> bool:
    return Path(source).parts[:1] == ("hf:",)


def find_remote(source: str) -> list[Path]:
    """Returns the files that "hf://datasets/OWNER/NAME[@REVISION]/PATTERN" matches, as paths for
    `open_remote`. Raises DataError.

    A slash in REVISION is written as %2F.
    """
    words = source.replace(os.sep, "/").removeprefix("hf:").lstrip("/").split("/", 3)
    if len(words) < 4 or words[0] != "datasets" or not all(words):
        raise DataError(
            f"{source} is not a valid Hub path: expected hf://datasets/OWNER/NAME/PATTERN, as in "
            "hf://datasets/roneneldan/TinyStories/data/*.parquet."
        )
    _, owner, name, pattern = words
    name, _, revision = name.partition("@")
    repo = f"{owner}/{name}"
    commit, files = list_files(repo, [pattern], revision.replace("%2F", "/") or "main")
    if not files:
        raise DataError(
            f"the data set {repo} on the Hub has no file {pattern}; see "
            f"https://huggingface.co/datasets/{repo}."
        )
    return [Path(f"{SCHEME}datasets/{repo}@{commit}/{file.name}") for file in files]


def n_bytes_of(path: Path) -> int:
    """Returns the length of a file that `find_remote` returned. Raises DataError."""
    _, _, owner, name, *rest = path.parts
    name, _, commit = name.partition("@")
    lengths = _lengths(f"{owner}/{name}", commit, "/".join(rest[:-1]))
    if "/".join(rest) not in lengths:
        raise DataError(f"there is no {path.as_posix()} on the Hub.")
    return lengths["/".join(rest)]


@functools.lru_cache(maxsize=256)
def _lengths(repo: str, commit: str, folder: str) -> dict[str, int]:
    """Returns the lengths of all files in a folder. Queried once, because a commit does not
    change.
    """
    return {
        file.name: file.n_bytes
        for file in list_files(repo, [f"{folder}/*" if folder else "*"], commit)[1]
    }


@contextlib.contextmanager
def open_remote(path: Path) -> Iterator[BinaryIO]:
    """Opens a file on the Hub for reading and seeking; only the parts that are read are downloaded.
    Raises DataError, also while reading.
    """
    what = path.as_posix()
    with _explained(what):
        files = _library().HfFileSystem(endpoint=_endpoint())
        remote = files.open(what.removeprefix("hf:/"), "rb")
    with remote, io.BufferedReader(_Remote(remote, what), CHUNK) as stream:
        yield stream


CHUNK = 1 << 18  # bytes read ahead; the library's default is 5 MB


class _Remote(io.RawIOBase):
    """A remote file of huggingface_hub, whose errors become DataErrors."""

    def __init__(self, file: Any, what: str) -> None:
        self._file, self._what = file, what

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _explained(self._what):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.utils
    except ImportError as error:
        raise DataError(
            "the Hugging Face Hub needs one more library: `pip install 'lmsmith[hf]'`."
        ) from error
    return huggingface_hub


def _endpoint() -> str | None:
    """Returns the Hub's address. Read at each call, because the library reads it only at import."""
    return os.environ.get("HF_ENDPOINT") or None


def _folder_of(pattern: str) -> str:
    """Returns the folder that contains all matches: the parts of the pattern before the first with
    a wildcard.
    """
    parts = pattern.split("/")[:-1]
    first = next((n for n, part in enumerate(parts) if MAGIC & set(part)), len(parts))
    return "/".join(parts[:first])


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns errors of the library and of its network client into DataError."""
    _library()
    from huggingface_hub import errors

    endpoint = _endpoint() or "https://huggingface.co"
    # The library's network client differs between versions; HfHubHTTPError always derives from the
    # client's errors.
    network: tuple[type[Exception], ...]
    network = (
        OSError,
        *(kind for kind in errors.HfHubHTTPError.__mro__ if not issubclass(Exception, kind)),
    )
    try:
        yield
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise DataError(
            f"{endpoint} does not provide {what}: the name is wrong, or it requires an account "
            f"whose token is in HF_TOKEN."
        ) from error
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError, FileNotFoundError) as error:
        raise DataError(
            f"{what} at {endpoint} has changed: a file or revision is missing ({_reason(error)}). "
            f"Name a file or revision that the Hub lists."
        ) from error
    except errors.HFValidationError as error:
        raise DataError(f"{what} is not a valid name on the Hub: {_reason(error)}") from error
    except network as error:
        raise DataError(
            f"cannot read {what} at {endpoint}: {_reason(error)}. Check the network, or set "
            f"HF_ENDPOINT to a mirror."
        ) from error


def _reason(error: Exception) -> str:
    """Returns the useful part of an error that may be wrapped several times: the system's message,
    or the first line.
    """
    system = re.search(r"\[Errno -?\d+\] ([\w ,]+)", str(error))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (system[1] if system else lines[0]).rstrip(".")
