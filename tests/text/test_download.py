"""Downloads from a server on this machine, with every kind of failure."""

import errno
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from web_server import Web, serving, tag_of

from lmsmith.errors import DataError, StorageError
from lmsmith.text import download as module
from lmsmith.text.download import checksum_of, download

CONTENT = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as web:
        yield web


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.01,) * 7)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.bin"


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def broken(web: Web, path: Path, after: int, **how: object) -> None:
    """A download that broke after `after` bytes in an earlier process: its part remains."""
    web.cut_after = [after, 0, 0, 0, 0, 0, 0, 0, 0]
    with pytest.raises(DataError, match="are kept"):
        download(web.url + "/file", path, **how)  # type: ignore[arg-type]
    assert names(path) == ["file.bin.part", "file.bin.part.json"]
    assert path.with_name("file.bin.part").stat().st_size == after
    web.cut_after = []
    web.asked.clear()


def test_download(web: Web, path: Path) -> None:
    came: list[int] = []
    assert download(web.add("/file", CONTENT), path, progress=came.append) == SHA256
    assert path.read_bytes() == CONTENT
    assert names(path) == ["file.bin"]
    assert sum(came) == len(CONTENT)


def test_checksums_match_git_and_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert checksum_of(tmp_path / "hello", "git:") == "git:ce013625030ba8dba906f756967f9e9ca394464a"
    wanted = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert checksum_of(tmp_path / "hello", "sha256:") == wanted


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_a_matching_and_a_wrong_checksum(web: Web, path: Path, kind: str) -> None:
    url = web.add("/file", CONTENT)
    path.write_bytes(CONTENT)
    fits = checksum_of(path, kind)
    path.write_bytes(b"what was there before")
    with pytest.raises(DataError, match=f"found {fits} .300,000 bytes.*expected {kind}:00"):
        download(url, path, checksum=f"{kind}:00")
    assert path.read_bytes() == b"what was there before"
    assert names(path) == ["file.bin"]
    assert download(url, path, checksum=fits) == fits
    assert path.read_bytes() == CONTENT


def test_a_broken_connection_resumes_where_it_broke(web: Web, path: Path) -> None:
    web.cut_after = [100_000, 70_000]
    came: list[int] = []
    download(web.add("/file", CONTENT), path, checksum=SHA256, progress=came.append)
    assert [ranged for _, ranged in web.asked] == ["", "bytes=100000-", "bytes=170000-"]
    assert path.read_bytes() == CONTENT
    assert sum(came) == len(CONTENT)
    assert min(came) > 0


def test_frequent_breaks_do_not_stop_a_download_that_makes_progress(web: Web, path: Path) -> None:
    web.cut_after = [10_000] * 20
    download(web.add("/file", CONTENT), path)
    assert path.read_bytes() == CONTENT
    assert len(web.asked) == 21


@pytest.mark.parametrize("checksum", [SHA256, None])
def test_a_later_process_resumes(web: Web, path: Path, checksum: str | None) -> None:
    url = web.add("/file", CONTENT)
    broken(web, path, 120_000, checksum=checksum)
    came: list[int] = []
    assert download(url, path, checksum=checksum, progress=came.append) == SHA256
    assert web.asked == [("/file", "bytes=120000-")]
    assert path.read_bytes() == CONTENT
    assert sum(came) == len(CONTENT) - 120_000
    assert names(path) == ["file.bin"]


def test_without_ranges_it_starts_over(web: Web, path: Path) -> None:
    url = web.add("/file", CONTENT)
    broken(web, path, 120_000)
    web.honours_range = False
    came: list[int] = []
    download(url, path, progress=came.append)
    assert len(web.asked) == 1
    assert path.read_bytes() == CONTENT
    assert sum(came) == len(CONTENT) - 120_000
    assert came[0] == -120_000


def test_a_range_that_was_not_requested_is_refused(web: Web, path: Path) -> None:
    url = web.add("/file", CONTENT)
    web.statuses = [(206, {"Content-Range": f"bytes 5-9/{len(CONTENT)}"})] * 2000
    with pytest.raises(DataError, match="sent a part of the file that was not requested"):
        download(url, path)
    assert len(web.asked) == 1
    assert names(path) == []


@pytest.mark.parametrize("checksum", [SHA256, None])
def test_another_version_starts_over(web: Web, path: Path, checksum: str | None) -> None:
    """Half of another file is not kept, with or without a checksum."""
    url = web.add("/file", OTHER)
    broken(web, path, 120_000, checksum=checksum)
    web.add("/file", CONTENT)
    assert download(url, path, checksum=checksum) == SHA256
    assert path.read_bytes() == CONTENT
    assert [ranged for _, ranged in web.asked] == ["bytes=120000-", ""]


def test_the_file_changes_between_two_connections(web: Web, path: Path) -> None:
    web.cut_after = [50_000]
    url = web.add("/file", OTHER)
    web.before = lambda _: web.add("/file", CONTENT) and None if web.asked[1:] else None
    download(url, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("how", ["none", "weak"])
def test_an_unnamed_version_resumes_only_with_a_checksum(web: Web, path: Path, how: str) -> None:
    url = web.add("/file", CONTENT)
    web.names_version, web.weak = how != "none", how == "weak"
    for checksum, asked in ((None, ["bytes=120000-", ""]), (SHA256, ["bytes=120000-"])):
        broken(web, path, 120_000, checksum=SHA256)
        download(url, path, checksum=checksum)
        assert [ranged for _, ranged in web.asked] == asked
        assert path.read_bytes() == CONTENT
        path.unlink()


def test_parts_that_do_not_fit_are_downloaded_again_in_full(web: Web, path: Path) -> None:
    web.names_version = False
    url = web.add("/file", OTHER)
    broken(web, path, 120_000, checksum=SHA256)
    web.add("/file", CONTENT)
    came: list[int] = []
    assert download(url, path, checksum=SHA256, progress=came.append) == SHA256
    assert [ranged for _, ranged in web.asked] == ["bytes=120000-", ""]
    assert path.read_bytes() == CONTENT
    assert sum(came) == len(CONTENT) - 120_000


def test_stopped_after_the_last_byte(web: Web, path: Path) -> None:
    """The process ended after the last byte and before the rename: nothing is downloaded again."""
    url = web.add("/file", CONTENT)
    part = path.with_name("file.bin.part")
    part.write_bytes(CONTENT)
    part.with_name("file.bin.part.json").write_text(
        json.dumps({"tag": tag_of(CONTENT), "n_bytes": len(CONTENT)})
    )
    assert download(url, path) == SHA256
    assert web.asked == []
    assert names(path) == ["file.bin"]


@pytest.mark.parametrize("beside", [None, "", "[]", '{"tag": 1}'])
def test_a_part_of_unknown_origin_is_not_used(web: Web, path: Path, beside: str | None) -> None:
    path.with_name("file.bin.part").write_bytes(OTHER[:1000])
    if beside is not None:
        path.with_name("file.bin.part.json").write_text(beside)
    download(web.add("/file", CONTENT), path)
    assert web.asked == [("/file", "")]
    assert path.read_bytes() == CONTENT


def test_a_part_longer_than_the_file(web: Web, path: Path) -> None:
    path.with_name("file.bin.part").write_bytes(CONTENT + b"more")
    beside = {"tag": tag_of(CONTENT), "n_bytes": len(CONTENT) + 9}
    path.with_name("file.bin.part.json").write_text(json.dumps(beside))
    download(web.add("/file", CONTENT), path)
    assert path.read_bytes() == CONTENT


def test_a_body_that_is_always_truncated_is_an_error(web: Web, path: Path) -> None:
    url = web.add("/file", CONTENT)
    web.cut_after = [1000] + [0] * 20
    with pytest.raises(
        DataError, match=r"ended after 1,000 of 300,000 bytes.*1\.0 kB were downloaded and are kept"
    ):
        download(url, path)
    assert len(web.asked) == 1 + 7
    assert not path.exists()


@pytest.mark.parametrize("cut", [None, 100_000])
def test_chunks_without_a_length(web: Web, path: Path, cut: int | None) -> None:
    web.chunked = True
    web.cut_after = [cut] if cut else []
    download(web.add("/file", CONTENT), path)
    assert path.read_bytes() == CONTENT
    assert len(web.asked) == (3 if cut else 1)  # the first response has no length, the second does


def test_without_a_length_a_checksum_is_required(web: Web, path: Path) -> None:
    web.says_length = False
    url = web.add("/file", CONTENT)
    with pytest.raises(DataError, match="does not report its length"):
        download(url, path)
    assert names(path) == []
    download(url, path, checksum=SHA256)
    assert path.read_bytes() == CONTENT


def test_another_length_is_refused_before_the_download(web: Web, path: Path) -> None:
    with pytest.raises(DataError, match="is 300,000 bytes long, expected 299,999"):
        download(web.add("/file", CONTENT), path, n_bytes=299_999)
    assert names(path) == []


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "does not exist any more.*404"), (403, "account"), (418, "answers 418")],
)
def test_refused_downloads_are_not_retried(web: Web, path: Path, status: int, message: str) -> None:
    web.statuses = [(status, {})]
    with pytest.raises(DataError, match=message):
        download(web.add("/file", CONTENT), path)
    assert len(web.asked) == 1
    assert names(path) == []


def test_retry_after_of_a_busy_server_is_honoured(
    web: Web, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    web.statuses = [(429, {"Retry-After": "7"}), (503, {"Retry-After": "never"}), (500, {})]
    with caplog.at_level(logging.WARNING):
        download(web.add("/file", CONTENT), path, patient=True)
    assert slept == [7, 0.01, 0.01]
    assert "the server answers 429 (Too Many Requests); retrying in 7 s" in caplog.text
    assert path.read_bytes() == CONTENT


def test_without_connection_it_fails_soon_unless_patient(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as web:
        url = web.url + "/file"
    for patient, tries in ((False, 1), (True, 7)):
        caplog.clear()
        with pytest.raises(DataError, match=f"cannot download {url}: Connection refused"):
            download(url, path, patient=patient)
        assert caplog.text.count("retrying") == tries
    assert names(path) == []


def test_a_silent_server_counts_as_a_broken_connection(
    web: Web, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    waits = iter([0.5, 0.0])
    web.before = lambda _: time.sleep(next(waits))
    download(web.add("/file", CONTENT), path)
    assert path.read_bytes() == CONTENT
    assert "no answer for 0.1 s" in caplog.text


def test_a_token_goes_to_the_first_server_only(web: Web, path: Path) -> None:
    web.add("/file", CONTENT)
    web.statuses = [(302, {"Location": f"{web.url}/file"})]
    download(f"{web.url}/first", path, headers={"Authorization": "Bearer secret"})
    assert web.tokens == [("/first", "Bearer secret"), ("/file", "")]


def test_too_little_disk_space(web: Web, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match=r"needs 300 kB and 1\.0 kB are free"):
        download(web.add("/file", CONTENT), path)
    assert names(path) == []


def test_the_disk_becomes_full_during_the_download(
    web: Web, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("only Linux has /dev/full")
    url = web.add("/file", CONTENT)
    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, mode="r", **how: opened(
            Path("/dev/full") if mode == "ab" else self, mode, **how
        ),
    )
    with pytest.raises(StorageError, match="No space left on the disk"):
        download(url, path)
    assert len(web.asked) == 1  # not a network error, so no retry
    assert not path.exists()
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    download(url, path)
    assert path.read_bytes() == CONTENT


def test_a_missing_folder(web: Web, path: Path) -> None:
    with pytest.raises(StorageError, match=os.strerror(errno.ENOENT) + "|no folder|disk"):
        download(web.add("/file", CONTENT), path.parent / "none" / "file.bin")


def test_a_kill_during_the_download(web: Web, path: Path) -> None:
    """A kill leaves only the part, and the next process resumes from it."""
    content = random.Random(3).randbytes(3_000_000)
    url = web.add("/file", content)
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom lmsmith.text import "
        "download\ndownload.CHUNK = 50_000\n"
        "download.download(sys.argv[1], Path(sys.argv[2]), progress=lambda n: time.sleep(0.02))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, url, str(path)])
    part = path.with_name("file.bin.part")
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size):
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()
    assert names(path) == ["file.bin.part", "file.bin.part.json"]
    had = part.stat().st_size
    assert 0 < had < len(content)
    web.asked.clear()
    download(url, path)
    assert web.asked == [("/file", f"bytes={had}-")]
    assert path.read_bytes() == content
    assert names(path) == ["file.bin"]
