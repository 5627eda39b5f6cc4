"""The files in deploy/: their commands work, and they agree with each other and with the server."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")

from lmsmith.serve.options import Options

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, its text) for each instruction."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


def only(name: str) -> str:
    (found,) = [rest for word, rest in dockerfile() if word == name]
    return found


def unit() -> dict[str, str]:
    lines = (DEPLOY / "lmsmith.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")


def test_the_files_agree() -> None:
    yaml = pytest.importorskip("yaml")
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["lmsmith"]
    build = service["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    port = only("EXPOSE").strip()
    assert json.loads(only("ENTRYPOINT"))[-2:] == ["--port", port]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"127.0.0.1:{port}/health" in only("HEALTHCHECK")
    uid = re.search(r"--uid (\d+)", " ".join(rest for word, rest in dockerfile() if word == "RUN"))
    assert uid is not None
    assert service["tmpfs"][1] == f"{only('ENV').split('=')[1]}:exec,uid={uid[1]}"
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert min(grace, int(unit()["TimeoutStopSec"])) > Options([Path("x")]).drain_seconds
    copied = {name for word, rest in dockerfile() if word == "COPY" for name in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in kept if line.startswith("!")} == copied
    assert f"/var/cache/{unit()['CacheDirectory']}" == unit()["Environment"].split("=")[1]


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed")
    program = shlex.split(unit()["ExecStart"])[0]
    text = (DEPLOY / "lmsmith.service").read_text().replace(program, shutil.which("true") or "")
    (tmp_path / "lmsmith.service").write_text(text)
    command = ["systemd-analyze", "verify", tmp_path / "lmsmith.service"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def free_port() -> int:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment in which the Dockerfile's pip commands ran. PyTorch
    comes from the package index, in the version of constraints.txt.
    """
    place, source = tmp_path_factory.mktemp("image"), tmp_path_factory.mktemp("src")
    venv.create(place, with_pip=True)
    ran = []
    for word, rest in dockerfile():
        if word == "COPY":
            *names, target = rest.split()
            for name in names:
                to = source / Path(target).relative_to("/src")
                copy: Any = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, to)
        elif word == "RUN" and rest.startswith("pip "):
            words = shlex.split(rest.partition(" && ")[0].replace("/src", str(source)))[1:]
            if "--index-url" in words:
                del words[words.index("--index-url") :]
                words += ["--constraint", str(ROOT / "constraints.txt")]
            subprocess.run([place / "bin/python", "-m", "pip", *words, "--quiet"], check=True)
            ran.append(words[-1])
    assert len(ran) == 2
    assert ran[1] == f"{source}[serve,hf]"
    return place / "bin"


@contextmanager
def started(
    command: list[str], port: int, environment: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """The server of a command, with --port changed. It must end with status 0 after SIGTERM."""
    command[command.index("--port") + 1] = str(port)
    full = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment}
    with subprocess.Popen(command, env=full, cwd="/", stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        until = time.monotonic() + 120
        while "/v1" not in (line := server.stdout.readline()):
            assert line, "the server has ended"
            assert time.monotonic() < until
        yield server
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


@pytest.mark.slow
def test_the_commands_of_the_dockerfile(installed: Path, folder: Path, tmp_path: Path) -> None:
    entry = json.loads(only("ENTRYPOINT"))
    assert entry[0] == "lmsmith"
    program = [str(installed / "lmsmith"), *entry[1:]]
    shown = subprocess.run([*program, *json.loads(only("CMD"))], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "--api-key" in shown.stdout
    name = only("ENV").split("=")[0]
    port = free_port()
    with started([*program, str(folder / "run")], port, {name: str(tmp_path)}):
        check = json.loads(only("HEALTHCHECK").partition("CMD ")[2])
        code = check[2].replace(":8000/", f":{port}/")
        assert check[:2] == ["python", "-c"]
        assert subprocess.run([installed / "python", "-c", code]).returncode == 0
    assert list(tmp_path.rglob("*.nbi"))  # compiled kernels are cached there
    assert only("STOPSIGNAL") == "SIGTERM"
    assert subprocess.run([installed / "python", "-c", code], capture_output=True).returncode == 1


@pytest.mark.slow
def test_the_start_line_of_the_unit(installed: Path, folder: Path, tmp_path: Path) -> None:
    """`$RUNS` without braces: systemd makes one argument of each word."""
    runs = f"{folder / 'run'} {folder / 'ngram'}"
    given = {"LMSMITH_API_KEY": "secret", "RUNS": runs, "NUMBA_CACHE_DIR": str(tmp_path)}
    words = shlex.split(unit()["ExecStart"])
    assert words[0] == "/opt/lmsmith/bin/lmsmith"
    command = [str(installed / "lmsmith")]
    for word in words[1:]:
        command += runs.split() if word == "$RUNS" else [word]
    port = free_port()
    with started(command, port, given):
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/models", headers={"Authorization": "Bearer secret"}
        )
        with urllib.request.urlopen(asked) as answer:
            assert [each["id"] for each in json.load(answer)["data"]] == ["run", "ngram"]
