"""Commands as users run them: real processes, their output, their exit status."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
LINUX = sys.platform == "linux"
PATIENCE = 120.0  # seconds; long enough for a busy machine

# A model that trains in a second.
TINY = [
    "--model.n_layer=1",
    "--model.d_model=16",
    "--model.n_head=2",
    "--model.context_length=16",
    "--model.ngram_table_size=64",
    "--train.batch_size=4",
    "--train.threads=1",
    "--train.dtype=float32",
    "--train.matmul=default",
]

TEXT = "".join(
    f"{who} {did} the {thing} {where}.\n"
    for who in ("The cat", "A bird", "My aunt", "Nobody")
    for did in ("saw", "took", "lost", "hid", "sold")
    for thing in ("ball", "egg", "hat", "old boat")
    for where in ("at home", "by the sea", "in March", "again", "with care")
)  # 400 lines


@dataclass
class Done:
    """A process that has ended; `status` is negative for a signal that killed it."""

    status: int
    out: str
    err: str


@dataclass
class Process:
    id: int
    stdout: Path
    stderr: Path
    wait_for: Callable[[], int | None]
    status: int | None = field(default=None)

    def ended(self) -> bool:
        if self.status is None:
            self.status = self.wait_for()
        return self.status is not None

    def send(self, number: signal.Signals) -> None:
        if not self.ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.id, number)

    def wait(self, patience: float = PATIENCE) -> Done:
        until = time.monotonic() + patience
        while not self.ended():
            if time.monotonic() > until:
                self.send(signal.SIGKILL)
                pytest.fail(
                    f"still running after {patience} s: {self.out()[-2000:]}{self.err()[-2000:]}"
                )
            time.sleep(0.005)
        assert self.status is not None
        return Done(self.status, self.out(), self.err())

    def until(self, seen: Callable[[], Any]) -> Any:
        """Waits until `seen()` is true; fails if the process ends before."""
        until, looks = time.monotonic() + PATIENCE, itertools.count(1)
        while not (found := seen()):
            if next(looks) % 20 == 0 and self.ended() and not (found := seen()):
                pytest.fail(f"ended with {self.status}: {self.out()[-2000:]}{self.err()[-2000:]}")
            assert time.monotonic() < until, self.out()
            time.sleep(0.0005)
        return found

    def out(self) -> str:
        return (
            self.stdout.read_text(encoding="utf-8", errors="replace")
            if self.stdout.is_file()
            else ""
        )

    def err(self) -> str:
        return (
            self.stderr.read_text(encoding="utf-8", errors="replace")
            if self.stderr.is_file()
            else ""
        )


class Lmsmith:
    """Starts `lmsmith ...` in the folder `cwd`, which the fixture sets to a new folder."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.cwd, self._n = scratch, scratch, 0
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "COLUMNS": "80",
        }
        self._server: subprocess.Popen[str] | None = None

    def __call__(self, *arguments: object, **how: Any) -> Done:
        return self.start(*arguments, **how).wait()

    def start(
        self,
        *arguments: object,
        stdin: str | bytes | Path = "",
        stdout: Path | None = None,
        stderr: Path | None = None,
        environment: dict[str, str] | None = None,
        file_bytes: int | None = None,
        user: int | None = None,
        slow: dict[str, float] | None = None,
    ) -> Process:
        self._n += 1
        place = self.scratch / str(self._n)
        place.mkdir()
        if isinstance(stdin, Path):
            source = stdin
        else:
            source = place / "stdin"
            source.write_bytes(stdin.encode() if isinstance(stdin, str) else stdin)
        out, err = stdout or place / "stdout", stderr or place / "stderr"
        words = [str(argument) for argument in arguments]
        if not LINUX:
            if file_bytes is not None or user is not None or slow:
                pytest.skip("on Linux alone processes are forked and prepared")
            return self._popen(words, source, out, err, environment or {})
        order = {
            "arguments": words,
            "cwd": str(self.cwd),
            "stdin": str(source),
            "stdout": str(out),
            "stderr": str(err),
            "environment": environment or {},
            "file_bytes": file_bytes,
            "user": user,
            "slow": slow or {},
        }
        number = self._ask(order)
        return Process(number, out, err, lambda: self._ask({"wait": number}))

    def _popen(
        self, words: list[str], source: Path, out: Path, err: Path, environment: dict[str, str]
    ) -> Process:
        with source.open("rb") as stdin, out.open("wb") as stdout, err.open("wb") as stderr:
            command = [sys.executable, "-m", "lmsmith", *words]
            all_of_it = self.environment | environment
            found = subprocess.Popen(
                command, cwd=self.cwd, stdin=stdin, stdout=stdout, stderr=stderr, env=all_of_it
            )
        return Process(found.pid, out, err, found.poll)

    def _ask(self, order: dict[str, Any]) -> Any:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self.environment,
                cwd=self.scratch,
            )
            assert self._server.stdout is not None
            assert self._server.stdout.readline() == "ready\n"
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait()


@pytest.fixture(scope="session")
def _lmsmith(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lmsmith]:
    commands = Lmsmith(tmp_path_factory.mktemp("processes"))
    yield commands
    commands.close()


@pytest.fixture
def lmsmith(_lmsmith: Lmsmith, tmp_path: Path) -> Lmsmith:
    """`lmsmith("train", "book.txt")` in a new folder that holds book.txt."""
    _lmsmith.cwd = tmp_path
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    return _lmsmith


@pytest.fixture(scope="session")
def _trained(_lmsmith: Lmsmith, tmp_path_factory: pytest.TempPathFactory) -> Path:
    _lmsmith.cwd = place = tmp_path_factory.mktemp("trained")
    (place / "book.txt").write_text(TEXT, encoding="utf-8")
    done = _lmsmith(
        "train", "book.txt", "--steps", 30, *TINY, "--train.save_every", 10, "--out", "run"
    )
    assert done.status == 0, done.err
    return place / "run"


@pytest.fixture
def run(_trained: Path, lmsmith: Lmsmith) -> Path:
    """A finished run of 30 steps with checkpoints of training 20 and 30: "run" in the test's folder."""
    return Path(shutil.copytree(_trained, lmsmith.cwd / "run"))
