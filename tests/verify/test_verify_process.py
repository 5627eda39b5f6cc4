"""`lmsmith verify` as a program: Ctrl-C, two at once, missing packages, and llama.cpp."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from other_versions import importable

from lmsmith.verify import resuming, run

LIMIT = 120.0  # seconds of waiting, on a busy machine

# Only equivalences that write files, so that two programs at once take seconds.
SHORT = """
import sys
from lmsmith import cli, verify
for name in [*verify.EQUIVALENCES]:
    if name not in ("resume", "best weights", "held-out text"):
        del verify.EQUIVALENCES[name]
sys.exit(cli.run(["verify", "--json"], started=0.0))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, empty at first."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def processes_with(words: str) -> list[int]:
    """The processes that have these words in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def left_in(place: Path) -> list[str]:
    """What is in the folder, without the cache that PyTorch creates there on import."""
    names = sorted(path.name for path in place.iterdir())
    return [name for name in names if not name.startswith("torchinductor_")]


def wait_until(condition: Any) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc to find processes in")
@pytest.mark.parametrize("name", ["two ranks", "resume"])
def test_ctrl_c_leaves_nothing_behind(name: str, place: Path) -> None:
    """The signal reaches this program alone, as from `kill`: it ends what it has started."""
    process = start("-m", "lmsmith", "verify", *[name] * 20)
    if name == "two ranks":
        wait_until(lambda: len(processes_with(str(place))) == 3)  # torchrun and its two
    else:
        wait_until(lambda: any(place.glob("*/one/metrics.jsonl")))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=LIMIT)
    assert (process.returncode, said) == (130, "lmsmith: stopped by SIGINT\n")
    assert processes_with(str(place)) == []
    assert left_in(place) == []


@pytest.mark.slow
def test_two_ranks_do_not_depend_on_the_users_settings(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of torchrun and Gloo, and a file in the folder that is named as one of Python's."""
    (tmp_path / "queue.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PET_NNODES", "2")  # torchrun would wait for a second machine
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    (outcome,) = run(["two ranks"])
    assert outcome.agrees, outcome
    assert left_in(place) == []


def test_a_training_run_passes_ctrl_c_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, a run would save and end, and the check would say that its results differ."""
    monkeypatch.setattr(
        resuming._Keep, "after_step", lambda *given: os.kill(os.getpid(), signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        list(run(["best weights"]))


@pytest.mark.slow
def test_two_at_once(place: Path) -> None:
    both = [start("-c", SHORT) for _ in range(2)]
    results = [json.loads(process.communicate(timeout=LIMIT)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert results[0]["hash"] == results[1]["hash"]
    kept = json.loads((place.parent / "cache/lmsmith/verified.json").read_text("utf-8"))
    assert kept in results
    assert left_in(place) == []


WITHOUT = {
    "jinja2": ("chat masks", "typed special tokens", "rollouts"),
    "xllamacpp": ("llama.cpp",),
    "gguf": ("llama.cpp",),
    "transformers": ("transformers",),
    "tiktoken": ("tiktoken",),
    "tokenizers": ("tokenizers",),
}


@pytest.mark.parametrize("package", WITHOUT)
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    for outcome in run(WITHOUT[package]):
        assert outcome.skipped, outcome
        assert outcome.problem.startswith(f"{package} is not installed"), outcome


@pytest.mark.slow
def test_verify_starts_without_optional_packages(place: Path) -> None:
    program = (
        f"import sys; sys.modules |= dict.fromkeys({list(WITHOUT)}); from lmsmith import cli\n"
        "sys.exit(cli.run(['verify', 'chat masks', 'llama.cpp', 'windows'], started=0.0))"
    )
    process = start("-c", program)
    out, said = process.communicate(timeout=LIMIT)
    assert (process.returncode, said) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["skip", "skip", "ok"]


@pytest.mark.slow
def test_llama_cpp(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    importable("llama.cpp", request, monkeypatch)
    (outcome,) = run(["llama.cpp"])
    assert outcome.difference < 1e-5, outcome
    assert not outcome.skipped
    from lmsmith.interop import gguf_models

    original = gguf_models.metadata
    monkeypatch.setattr(
        gguf_models,
        "metadata",
        lambda *given: (
            (key, 2 * value if key.endswith("freq_base") else value)
            for key, value in original(*given)
        ),
    )
    (outcome,) = run(["llama.cpp"])
    assert not outcome.agrees
    assert "log-probabilities that differ" in outcome.problem
