"""One file from its address to a path: whole and checked, or not there.

    download("https://.../input.txt", Path("input.txt"), checksum="sha256:86c4...")

What comes is written to NAME.part, beside the path, and NAME.part.json says of which version of the
file it is part (ETag or Last-Modified, and length). A broken connection is taken up again where it
broke, in this process or a later one, by asking for the rest (Range, RFC 9110 section 14); where
the server sends all again, or the file is another by now, it begins again. The finished part is
held against its checksum, forced to the disk, and renamed to its name.

urllib and not pooch, which cannot take a broken download up again. Proxies are those of the
environment.

What it does not do: several files at a time, several connections for one file. Two processes must
not fetch one file to one path at one time: whoever calls this sees to that (`store.py` holds a
lock).
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
from lmsmith.text.corpora import size_in_words

CHUNK = 1 << 20  # bytes read at once
TIMEOUT = 30.0  # seconds without a byte, after which a connection is broken
# Seconds between attempts. Where nothing has come yet the first alone: a machine without a network
# says so soon.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
LONGEST_PAUSE = 300.0  # that a server can ask for
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that may be others a little later

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
    """Puts the file at `url` at `path`, in place of what was there, and returns its checksum.

    `checksum`: "sha256:..." or "git:...", see corpora.py; None: none is known. `n_bytes`: its
    length, if it is known. `headers` go to the first server alone, not to where it may send us (a
    token is nobody else's). `patient`: keep trying for two minutes even if nothing has come yet.
    `progress` is called with the number of bytes that came; with a negative one when what had come
    before is of no use.

    Raises DataError, after which what has come is kept for the next call, or is gone if it was
    wrong; StorageError. `path` is then as it was.
    """
    part = path.with_name(f"{path.name}.part")
    taken_up = _fetch(url, part, checksum, n_bytes, headers or {}, patient, progress)
    found = checksum_of(part, checksum or "sha256:")
    if checksum not in (None, found) and taken_up:
        logger.warning(
            "%s: what was put together from parts has another checksum; fetching it once more, "
            "whole",
            url,
        )
        progress(-part.stat().st_size)
        _forget(part)
        _fetch(url, part, checksum, n_bytes, headers or {}, patient, progress)
        found = checksum_of(part, checksum or "sha256:")
    if checksum not in (None, found):
        length = part.stat().st_size
        _forget(part)
        raise DataError(
            f"what came from {url} is not the file that was wanted: found {found} ({length:,} "
            f"bytes), wanted "
            f"{checksum}. Something on the way changes it, or it is another by now; it is not kept."
        )
    atomic.settle(part, path)
    _forget(part)
    return found


def checksum_of(path: Path, like: str) -> str:
    """The checksum of a file, of the kind that `like` begins with: "sha256:" or "git:"."""
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
    """How much of the file for `path` has come in broken downloads before."""
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
    """Makes `part` as long as the file, over as many connections as it takes. Whether it took
    more than one.
    """
    came = 0

    def count(n: int) -> None:
        nonlocal came
        came += max(n, 0)
        progress(n)

    before = _length(part)
    failures = 0
    while True:
        came_before = came
        try:
            _transfer(url, part, checksum is not None, n_bytes, headers, count)
            return before > 0 or failures > 0
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in PASSING:
                raise DataError(_refused(url, error)) from error
            if url.startswith("file:"):
                raise DataError(f"cannot read {url}: {_reason(error)}.") from error
            failures = 1 if came > came_before else failures + 1
            pauses = PAUSES if patient or came else PAUSES[:1]
            reason = _reason(error)
            if failures > len(pauses):
                kept = (
                    f" {size_in_words(_length(part))} have come and are kept."
                    if _length(part)
                    else ""
                )
                raise DataError(
                    f"cannot fetch {url}: {reason}. Look after the network and try again.{kept}"
                ) from error
            pause = max(pauses[failures - 1], _asked_for(error))
        logger.warning("%s: %s; trying again in %.3g s", url, reason, pause)
        time.sleep(pause)


def _transfer(
    url: str,
    part: Path,
    checked: bool,
    n_bytes: int | None,
    headers: Mapping[str, str],
    progress: Callable[[int], None],
) -> None:
    """One connection: asks for what is missing of `part` and appends it. OSError or HTTPException
    where it breaks.

    `checked`: a checksum will tell whether parts fit together, so that a server need not name the
    file's version.
    """
    version = _version_of(part)
    start = _length(part) if version else 0
    if start and start == version["n_bytes"]:
        return  # stopped after the last byte and before the end
    request = _request(url, headers, start)
    try:
        opened = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        progress(-start)  # the file is shorter than what has come of it
        _forget(part)
        return _transfer(url, part, checked, n_bytes, headers, progress)
    with opened as answer:
        begins_at, total = _extent(answer)
        offered = {"tag": _tag(answer.headers), "n_bytes": total}
        chunked = bool(getattr(answer, "chunked", False))  # a file:// answer has no such field
        _check_length(url, total, n_bytes, known_complete=chunked or checked)
        if start and (begins_at != start or offered != version or not (offered["tag"] or checked)):
            logger.warning("%s cannot be taken up where it broke; it begins again", url)
            progress(-start)
            _forget(part)
            start = 0
        if begins_at != start:
            if not request.has_header("Range"):
                raise DataError(
                    f"{url} cannot be fetched: the server answers with a part of it that nobody "
                    f"asked for."
                )
            return _transfer(url, part, checked, n_bytes, headers, progress)
        with _disk(part):
            _check_space(part, 0 if total is None else total - start)
            if not start:
                _forget(part)
                atomic.write(_beside(part), to_json(offered))
        _append(answer, part, progress)
    if total is not None and _length(part) != total:
        raise ConnectionError(f"the connection ended after {_length(part):,} of {total:,} bytes")


def _request(url: str, headers: Mapping[str, str], start: int) -> urllib.request.Request:
    """A request for the file from byte `start` on."""
    request = urllib.request.Request(url, headers={"User-Agent": f"lmsmith/{__version__}"})
    # Without compression, offsets in the answer are offsets in the file.
    request.add_header("Accept-Encoding", "identity")
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    if start:
        request.add_header("Range", f"bytes={start}-")
    return request


def _check_length(
    url: str, total: int | None, n_bytes: int | None, *, known_complete: bool
) -> None:
    """Raises DataError if the server's length is not `n_bytes`, or if nothing shows the file's end.

    `known_complete`: a cut file would be noticed even if the server does not say how long it is.
    """
    if n_bytes is not None and total not in (None, n_bytes):
        raise DataError(
            f"{url} is {total:,} bytes long, wanted {n_bytes:,}: something else than the file "
            f"answers."
        )
    if total is None and not known_complete:
        raise DataError(f"{url} cannot be fetched safely: the server does not say how long it is.")


def _check_space(part: Path, n_bytes: int) -> None:
    """Raises StorageError where the disk has no room for `n_bytes` more."""
    free = shutil.disk_usage(part.parent).free
    if free < n_bytes:
        raise StorageError(
            f"{size_in_words(n_bytes)} are wanted for {part} and "
            f"{size_in_words(free)} are free: make "
            "room or choose another place."
        )


def _append(answer: Any, part: Path, progress: Callable[[int], None]) -> None:
    """Appends the answer's bytes to `part`. Errors of the disk become StorageError."""
    with _disk(part):
        file = part.open("ab")
    try:
        while chunk := answer.read1(CHUNK):
            with _disk(part):
                file.write(chunk)
            progress(len(chunk))
    finally:
        with _disk(part):
            file.close()


def _extent(answer: Any) -> tuple[int, int | None]:
    """From which byte on the answer is, and how long the file is; None where the server does not
    say.
    """
    if answer.status == 206:
        extent, _, total = (
            answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        )
        begin = extent.partition("-")[0]
        return int(begin) if begin.isdecimal() else -1, int(total) if total.isdecimal() else None
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _tag(headers: Any) -> str:
    """What names the file's version, byte for byte. A weak ETag does not: RFC 9110, section
    8.8.1.
    """
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _version_of(part: Path) -> dict[str, Any]:
    """What was offered when `part` was begun; empty where nobody knows."""
    try:
        found = json.loads(_beside(part).read_text(encoding="utf-8"))
        return {"tag": found["tag"], "n_bytes": found["n_bytes"]}
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
    """Errors of the disk as StorageError, so that they are not taken for the network's."""
    try:
        yield
    except OSError as error:
        raise StorageError(atomic.explain(error, part)) from error


def _refused(url: str, error: urllib.error.HTTPError) -> str:
    if error.code in (404, 410):
        return f"there is no {url} any more (the server answers {error.code})."
    if error.code in (401, 403):
        return (
            f"the server does not give {url} to us ({error.code}): it may want an account, or "
            f"its terms accepted."
        )
    return f"cannot fetch {url}: the server answers {error.code} ({error.reason})."


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} ({error.reason})"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer for {TIMEOUT:g} s"
    return str(getattr(cause, "strerror", None) or cause or type(cause).__name__)


def _asked_for(error: Exception) -> float:
    """The pause a busy server asks for, in seconds."""
    seconds = (
        error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    )
    return min(float(seconds), LONGEST_PAUSE) if seconds.isdecimal() else 0.0
