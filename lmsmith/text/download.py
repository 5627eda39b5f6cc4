"""Downloads one file from a URL to a path; the file appears there only when complete and verified.

    download("https://.../input.txt", Path("input.txt"), checksum="sha256:86c4...")

Data is written to NAME.part in the same folder; NAME.part.json records the version of the file that
it belongs to (ETag or Last-Modified, and length). A broken download resumes where it broke, in this
process or a later one, with a Range request (RFC 9110, section 14). If the server sends the full
file, or the file has changed, the download starts over. The finished part is checked against its
checksum, flushed to disk and renamed.

Uses urllib because pooch cannot resume a broken download. Proxies come from the environment.

Limits: one file at a time, one connection per file. Two processes must not download to the same
path at the same time: the caller ensures that (`store.py` holds a lock).
"""

import contextlib
import hashlib
import http.client
import json
import logging
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmsmith import __version__, atomic
from lmsmith.errors import DataError, StorageError
from lmsmith.hashes import sha256_of
from lmsmith.strict_json import to_json
from lmsmith.text.corpora import format_size

CHUNK = 1 << 20  # bytes read at once
TIMEOUT = 30.0  # seconds without a byte, after which a connection counts as broken
# Seconds between attempts. Before the first byte only one retry, so that a machine without
# network fails soon.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
LONGEST_PAUSE = 300.0  # seconds; the longest Retry-After that is honoured
PASSING = (408, 425, 429, 500, 502, 503, 504)  # temporary errors: worth retrying

logger = logging.getLogger(__name__)


def download(
    url: str,
    path: Path,
    *,
    checksum: str | None = None,
    n_bytes: int | None = None,
    headers: Mapping[str, str] | None = None,
    patient: bool = False,
    progress: Callable[[int], None] = lambda n: None,
) -> str:
    """Downloads `url` to `path`, replacing the old file, and returns the checksum.

    `checksum`: "sha256:..." or "git:...", see corpora.py; None if unknown. `n_bytes`: the length,
    if known. `headers` go to the first server only, not to servers it redirects to (a token is for
    the first server alone). `patient`: keep trying for two minutes even before the first byte.
    `progress` is called with the number of bytes received, and with a negative number when bytes
    received before are discarded.

    Raises DataError and StorageError; `path` is then unchanged. Received bytes are kept for the
    next call, or removed if they were wrong.
    """
    part = path.with_name(f"{path.name}.part")
    resumed = _fetch(url, part, checksum, n_bytes, headers or {}, patient, progress)
    actual = checksum_of(part, checksum or "sha256:")
    if checksum not in (None, actual) and resumed:
        logger.warning(
            "%s: the file joined from several downloads has another checksum; downloading it again "
            "in full",
            url,
        )
        progress(-part.stat().st_size)
        _forget(part)
        _fetch(url, part, checksum, n_bytes, headers or {}, patient, progress)
        actual = checksum_of(part, checksum or "sha256:")
    if checksum not in (None, actual):
        length = part.stat().st_size
        _forget(part)
        raise DataError(
            f"the download from {url} is not the expected file: found {actual} ({length:,} bytes), "
            f"expected {checksum}. A proxy may have altered it, or the file at this address has "
            f"changed; the download was deleted."
        )
    atomic.settle(part, path)
    _forget(part)
    return actual


def checksum_of(path: Path, like: str) -> str:
    """Returns the checksum of a file, of the kind that `like` begins with: "sha256:" or "git:"."""
    kind = like.partition(":")[0]
    assert kind in ("sha256", "git"), like
    if kind == "sha256":
        return f"sha256:{sha256_of(path)}"
    with path.open("rb") as file:
        state = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        while chunk := file.read(CHUNK):
            state.update(chunk)
    return f"git:{state.hexdigest()}"


def part_bytes(path: Path) -> int:
    """Bytes of the file for `path` that earlier, broken downloads have left."""
    return _length(path.with_name(f"{path.name}.part"))


def _fetch(
    url: str,
    part: Path,
    checksum: str | None,
    n_bytes: int | None,
    headers: Mapping[str, str],
    patient: bool,
    progress: Callable[[int], None],
) -> bool:
    """Completes `part`, over as many connections as needed. Returns whether it took more than
    one.
    """
    received = 0

    def count(n: int) -> None:
        nonlocal received
        received += max(n, 0)
        progress(n)

    before = _length(part)
    failures = 0
    while True:
        received_before = received
        try:
            _transfer(url, part, checksum is not None, n_bytes, headers, count)
            return before > 0 or failures > 0
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in PASSING:
                raise DataError(_refused(url, error)) from error
            if url.startswith("file:"):
                raise DataError(f"cannot read {url}: {_reason(error)}.") from error
            failures = 1 if received > received_before else failures + 1
            pauses = PAUSES if patient or received else PAUSES[:1]
            reason = _reason(error)
            if failures > len(pauses):
                kept_note = (
                    f" {format_size(_length(part))} were downloaded and are kept."
                    if _length(part)
                    else ""
                )
                raise DataError(
                    f"cannot download {url}: {reason}. Check the network and try again.{kept_note}"
                ) from error
            pause = max(pauses[failures - 1], _retry_after(error))
        logger.warning("%s: %s; retrying in %.3g s", url, reason, pause)
        time.sleep(pause)


def _transfer(
    url: str,
    part: Path,
    checked: bool,
    n_bytes: int | None,
    headers: Mapping[str, str],
    progress: Callable[[int], None],
) -> None:
    """Opens one connection: requests the missing rest of `part` and appends it. Raises OSError or
    HTTPException if the connection breaks.

    `checked`: a checksum will verify that the parts fit together, so the server need not name the
    file's version.
    """
    version = _version_of(part)
    start = _length(part) if version else 0
    if start and start == version["n_bytes"]:
        return  # an earlier process stopped after the last byte, before the rename
    request = _request(url, headers, start)
    try:
        connection = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        progress(-start)  # the file is now shorter than the part
        _forget(part)
        return _transfer(url, part, checked, n_bytes, headers, progress)
    with connection as response:
        begins_at, total = _extent(response)
        offered = {"tag": _tag(response.headers), "n_bytes": total}
        chunked = bool(
            getattr(response, "chunked", False)
        )  # a file:// response lacks this attribute
        _check_length(url, total, n_bytes, known_complete=chunked or checked)
        if start and (begins_at != start or offered != version or not (offered["tag"] or checked)):
            logger.warning("%s cannot be resumed; the download starts over", url)
            progress(-start)
            _forget(part)
            start = 0
        if begins_at != start:
            if not request.has_header("Range"):
                raise DataError(
                    f"{url} cannot be downloaded: the server sent a part of the file that was not "
                    f"requested. Download the file with another program."
                )
            return _transfer(url, part, checked, n_bytes, headers, progress)
        with _disk(part):
            _check_space(part, 0 if total is None else total - start)
            if not start:
                _forget(part)
                atomic.write(_beside(part), to_json(offered))
        _append(response, part, progress)
    if total is not None and _length(part) != total:
        raise ConnectionError(f"the connection ended after {_length(part):,} of {total:,} bytes")


def _request(url: str, headers: Mapping[str, str], start: int) -> urllib.request.Request:
    """Returns a request for the file from byte `start` on."""
    request = urllib.request.Request(url, headers={"User-Agent": f"lmsmith/{__version__}"})
    # Without compression, offsets in the response are offsets in the file.
    request.add_header("Accept-Encoding", "identity")
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    if start:
        request.add_header("Range", f"bytes={start}-")
    return request


def _check_length(
    url: str, total: int | None, n_bytes: int | None, *, known_complete: bool
) -> None:
    """Raises DataError if the server's length is not `n_bytes`, or if the end of the file is
    unknown.

    `known_complete`: a truncated file would be detected even without a length.
    """
    if n_bytes is not None and total not in (None, n_bytes):
        raise DataError(
            f"{url} is {total:,} bytes long, expected {n_bytes:,}: this is not the expected file. "
            f"It may have changed at its source."
        )
    if total is None and not known_complete:
        raise DataError(
            f"{url} cannot be downloaded safely: the server does not report its length. "
            f"Download the file with another program."
        )


def _check_space(part: Path, n_bytes: int) -> None:
    """Raises StorageError if the disk lacks space for `n_bytes` more."""
    free = shutil.disk_usage(part.parent).free
    if free < n_bytes:
        raise StorageError(
            f"{part} needs {format_size(n_bytes)} and {format_size(free)} are free: free some "
            f"space or choose another path."
        )


def _append(response: Any, part: Path, progress: Callable[[int], None]) -> None:
    """Appends the body of the response to `part`. Disk errors become StorageError."""
    with _disk(part):
        file = part.open("ab")
    try:
        while chunk := response.read1(CHUNK):
            with _disk(part):
                file.write(chunk)
            progress(len(chunk))
    finally:
        with _disk(part):
            file.close()


def _extent(response: Any) -> tuple[int, int | None]:
    """Returns the offset at which the response begins, and the file's length; None if the server
    does not report it.
    """
    if response.status == 206:
        extent, _, total = (
            response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        )
        begin = extent.partition("-")[0]
        return int(begin) if begin.isdecimal() else -1, int(total) if total.isdecimal() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _tag(headers: Any) -> str:
    """Identifies the file's version byte for byte. A weak ETag does not: RFC 9110, section
    8.8.1.
    """
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _version_of(part: Path) -> dict[str, Any]:
    """Returns the version that `part` belongs to; empty if unknown."""
    try:
        version = json.loads(_beside(part).read_text(encoding="utf-8"))
        return {"tag": version["tag"], "n_bytes": version["n_bytes"]}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _beside(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _forget(part: Path) -> None:
    with _disk(part):
        part.unlink(missing_ok=True)
        _beside(part).unlink(missing_ok=True)


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


@contextlib.contextmanager
def _disk(part: Path) -> Iterator[None]:
    """Turns disk errors into StorageError, so that they are not taken for network errors."""
    try:
        yield
    except OSError as error:
        raise StorageError(atomic.explain(error, part)) from error


def _refused(url: str, error: urllib.error.HTTPError) -> str:
    if error.code in (404, 410):
        return (
            f"{url} does not exist any more (the server answers {error.code}). Check the address."
        )
    if error.code in (401, 403):
        return (
            f"the server denies access to {url} ({error.code}): it may require an account, or "
            f"that you accept its terms."
        )
    return (
        f"cannot download {url}: the server answers {error.code} ({error.reason}). Try again later."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} ({error.reason})"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer for {TIMEOUT:g} s"
    return str(getattr(cause, "strerror", None) or cause or type(cause).__name__)


def _retry_after(error: Exception) -> float:
    """Returns the pause that a busy server asks for (Retry-After), in seconds."""
    seconds = (
        error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    )
    return min(float(seconds), LONGEST_PAUSE) if seconds.isdecimal() else 0.0
