"""What all tests share: where real text lies, and one thread a process so that results repeat."""

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real text; tests that need it are skipped, by name, where it is not there."""
    folder = Path(os.environ.get("LMSMITH_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real text is not there: {folder} (set LMSMITH_TEST_DATA)")
    return folder
