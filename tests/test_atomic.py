"""Atomic writes: complete or not at all, whatever fails in between, with useful error messages."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lmsmith import atomic
from lmsmith.errors import StorageError

not_windows = pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and limits")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_write_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    atomic.write(path, b"\x00\r\n\xff")
    assert path.read_bytes() == b"\x00\r\n\xff"
    atomic.write(path, "Grüße\n")
    assert path.read_bytes() == b"Gr\xc3\xbc\xc3\x9fe\n"
    assert names(tmp_path) == ["config.toml"]


def test_a_file_of_another_kind_is_not_replaceable(tmp_path: Path) -> None:
    book, empty, page = tmp_path / "book.txt", tmp_path / "empty", tmp_path / "page.html"
    book.write_text("It was late.")
    empty.touch()
    page.write_text("<!doctype html><p>old")
    for path in (empty, page, tmp_path / "new", tmp_path):
        atomic.check_replaceable(path, "<!doctype html>")
    with pytest.raises(StorageError, match=r"book\.txt exists and is not a result of this command"):
        atomic.check_replaceable(book, "<!doctype html>")


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    atomic.write(path, "old")

    def interrupted() -> None:
        with atomic.file(path) as half:
            half.write(b"n" * 100_000)
            assert len(names(tmp_path)) == 2  # the temporary file is in the same folder
            assert path.read_text(encoding="utf-8") == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["train.bin"]


def test_folder_appears_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer"
    with atomic.folder(path) as partial:
        assert partial.parent == tmp_path
        (partial / "a").write_bytes(b"1")
        (partial / "deep").mkdir()
        (partial / "deep" / "b").write_bytes(b"2")
        assert not path.exists()
    assert names(tmp_path) == ["tokenizer"]
    assert names(path) == ["a", "deep"]
    assert (path / "deep" / "b").read_bytes() == b"2"


def test_a_folder_that_fails_half_way_does_not_appear(tmp_path: Path) -> None:

    def failing() -> None:
        with atomic.folder(tmp_path / "new") as partial:
            (partial / "a").write_bytes(b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert names(tmp_path) == []


def test_an_existing_folder_is_refused_unless_replace(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "precious").write_bytes(b"")
    with (
        pytest.raises(StorageError, match="run already exists and is not overwritten"),
        atomic.folder(path),
    ):
        raise AssertionError("the block must not be entered")
    assert names(path) == ["precious"]

    with pytest.raises(ZeroDivisionError), atomic.folder(path, replace=True):
        raise ZeroDivisionError
    assert names(path) == ["precious"]

    with atomic.folder(path, replace=True) as partial:
        (partial / "next").write_bytes(b"")
        assert names(path) == ["precious"]
    assert names(path) == ["next"]
    assert names(tmp_path) == ["run"]


def test_a_kill_between_the_two_renames_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    path = tmp_path / "step"
    path.mkdir()
    (path / "old").write_bytes(b"")
    rename = Path.rename

    def dying_rename(self: Path, target: Path) -> Path:
        if target == path:
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dying_rename)
    with pytest.raises(Killed), atomic.folder(path, replace=True):
        pass
    assert not path.exists()
    assert names(atomic.replaced(path)) == ["old"]

    monkeypatch.undo()
    with atomic.folder(path, replace=True) as partial:
        (partial / "new").write_bytes(b"")
    assert names(tmp_path) == ["step"]
    assert names(path) == ["new"]


def test_a_full_disk_keeps_the_old_file_and_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    atomic.write(path, "old")
    with (
        pytest.raises(StorageError, match=r"No space left on the disk for .*train\.bin: free some"),
        atomic.file(path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StorageError, match="quota"), atomic.folder(tmp_path / "new"):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["train.bin"]


def test_unrelated_errors_pass_through(tmp_path: Path) -> None:
    """A missing source file is not an error of the file written from it."""
    with pytest.raises(FileNotFoundError), atomic.file(tmp_path / "out"):
        (tmp_path / "source").read_bytes()
    with pytest.raises(FileNotFoundError), atomic.folder(tmp_path / "out"):
        (tmp_path / "source").read_bytes()
    assert names(tmp_path) == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from lmsmith import atomic
from lmsmith.errors import StorageError
for size in (4000, 4_000_000):  # one stays in the buffer until the file is closed, one does not
    try:
        atomic.write(Path(sys.argv[1]), b"n" * size)
    except StorageError as error:
        print(error)
"""


@not_windows
def test_file_size_limit_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    atomic.write(path, "old")
    answer = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    assert (
        answer.stdout.splitlines()
        == [
            f"{path} exceeds the largest file size allowed here: raise the limit (`ulimit -f`) "
            f"or choose another disk."
        ]
        * 2
    )
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["train.bin"]


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no folder .*absent: create it"):
        atomic.write(tmp_path / "absent" / "a", "")
    with (
        pytest.raises(StorageError, match=r"there is no folder .*absent: create it"),
        atomic.folder(tmp_path / "absent/a"),
    ):
        pass
    (tmp_path / "text").write_bytes(b"")
    with pytest.raises(StorageError, match=r"text.a cannot be written"):
        atomic.write(tmp_path / "text" / "a", "")
    (tmp_path / "taken").mkdir()
    with pytest.raises(
        StorageError, match=r"cannot be written, another file or folder is in the way"
    ):
        atomic.write(tmp_path / "taken", "")
    assert names(tmp_path) == ["taken", "text"]


@not_windows
def test_no_permission() -> None:
    user = os.geteuid()
    with (
        tempfile.TemporaryDirectory() as name
    ):  # not tmp_path: only its owner may enter the folder it is in
        folder = Path(name)
        folder.chmod(0o555)
        try:
            if user == 0:  # root may write everywhere
                os.seteuid(65534)
            with pytest.raises(
                StorageError, match=r"No permission to write .*/a: change the permissions of"
            ):
                atomic.write(folder / "a", "")
            with (
                pytest.raises(StorageError, match=r"No permission to write .*/a: change"),
                atomic.folder(folder / "a"),
            ):
                pass
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def test_sweep_removes_leftovers_of_dead_processes(tmp_path: Path) -> None:
    gone, alive = dead_process(), os.getppid()
    for name in (
        f".a.{gone}.partial",
        f".b.{os.getpid()}.partial",
        f".c.{alive}.partial",
        "d.1.partial",
        ".e.partial",
    ):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f".step-00000010.{gone}.partial").mkdir()
    (tmp_path / f".step-00000010.{gone}.partial" / "model.safetensors").write_bytes(b"half")
    atomic.sweep(tmp_path)
    remaining = [f".c.{alive}.partial", "d.1.partial", ".e.partial"]
    if os.name == "nt":
        remaining += [f".a.{gone}.partial", f".step-00000010.{gone}.partial"]
    assert names(tmp_path) == sorted(remaining)
    atomic.sweep(tmp_path / "absent")  # nothing to sweep


def test_leftovers_of_another_machine_are_kept_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines share a disk; process ids of one mean nothing to the other."""
    monkeypatch.setattr(atomic.platform, "node", lambda: "elsewhere")
    new, old = (atomic._partial(tmp_path / name) for name in ("new", "old"))
    for path in (new, old):
        path.mkdir()
        (path / "half").write_bytes(b"")
    monkeypatch.undo()
    for path in (old / "half", old):
        os.utime(path, (0, 0))
    (tmp_path / f".gone.{atomic._host()}.{dead_process()}.partial").write_bytes(b"")
    atomic.sweep(tmp_path)
    assert set(names(tmp_path)) - {
        name for name in names(tmp_path) if os.name == "nt" and "gone" in name
    } == {new.name}
    os.utime(new / "half", (0, 0))
    os.utime(new, (0, 0))
    atomic.sweep(tmp_path)
    assert new.name not in names(tmp_path)


def test_leftovers_with_our_own_process_id_do_no_harm(tmp_path: Path) -> None:
    """In a container, a new process often has the id of the one that was killed."""
    atomic._partial(tmp_path / "a").write_bytes(b"x" * 1000)
    atomic._partial(tmp_path / "f").mkdir()
    (atomic._partial(tmp_path / "f") / "half").write_bytes(b"")
    atomic.write(tmp_path / "a", "short")
    with atomic.folder(tmp_path / "f") as partial:
        (partial / "whole").write_bytes(b"")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "short"
    assert names(tmp_path / "f") == ["whole"]
    assert names(tmp_path) == ["a", "f"]


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_bytes(b"")
    atomic.remove(tmp_path / "f")
    atomic.remove(tmp_path / "f")
    assert names(tmp_path) == []


class Disk:
    """Records fsync, rename and replace in their order, by the names of files and folders."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = list[tuple[str, str]]()
        fsync, replace, rename = os.fsync, os.replace, os.rename

        def synced(descriptor: int) -> None:
            name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
            self.calls.append(("fsync", "partial" if name.endswith(".partial") else name))
            fsync(descriptor)

        def moved(old: str | Path, new: str | Path) -> None:
            self.calls.append(("rename", Path(new).name))
            (replace if Path(new).is_file() else rename)(old, new)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", moved)
        monkeypatch.setattr(os, "rename", moved)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads names of open files in /proc")
def test_content_reaches_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure, a new name must not show a file without its content."""
    place = tmp_path / "place"
    place.mkdir()
    disk = Disk(monkeypatch)
    atomic.write(place / "config.toml", "text")
    assert disk.calls == [("fsync", "partial"), ("rename", "config.toml"), ("fsync", "place")]
    disk.calls.clear()
    with atomic.folder(place / "model") as partial:
        (partial / "weights").write_text("text")
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text("text")
    before = disk.calls[: disk.calls.index(("rename", "model"))]
    assert sorted(before) == [("fsync", name) for name in ("deep", "file", "partial", "weights")]
    assert disk.calls[len(before) :] == [("rename", "model"), ("fsync", "place")]
    disk.calls.clear()
    (place / "half").mkdir()
    atomic.settle_folder(place / "half", place / "shards")
    assert disk.calls == [("fsync", "half"), ("rename", "shards"), ("fsync", "place")]
