"""What the command sets up before other imports."""

import os

import pytest

from lmsmith.__main__ import SPINS, spin_briefly


@pytest.mark.parametrize("name", ["", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_spin_count_is_set_unless_the_user_set_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(variable, "before")
        monkeypatch.delenv(variable)
    if name:
        monkeypatch.setenv(name, "7")
    spin_briefly()
    assert (
        os.environ.get("GOMP_SPINCOUNT")
        == {"": str(SPINS), "GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": None}[name]
    )
