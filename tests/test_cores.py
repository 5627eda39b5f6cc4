"""Cores that may be used, against groups written by hand."""

import os
from pathlib import Path

import pytest

from lmsmith import cores


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    return tmp_path


def in_group(monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    read = Path.read_text

    def read_text(self: Path, *rest: str, **named: str) -> str:
        return lines if str(self) == "/proc/self/cgroup" else read(self, *rest, **named)

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.parametrize(
    ("quota", "wanted"),
    [("max 100000", 16), ("200000 100000", 2), ("250000 100000", 3), ("5000 100000", 1), ("9900000 100000", 16)],
)
def test_version_2(here: Path, monkeypatch: pytest.MonkeyPatch, quota: str, wanted: int) -> None:
    in_group(monkeypatch, "0::/\n")
    (here / "cpu.max").write_text(quota)
    assert cores.n_cores() == wanted


def test_the_least_of_the_groups_above_counts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_group(monkeypatch, "0::/jobs/one\n")
    (here / "jobs" / "one").mkdir(parents=True)
    (here / "jobs" / "one" / "cpu.max").write_text("max 100000")
    (here / "jobs" / "cpu.max").write_text("400000 100000")
    assert cores.n_cores() == 4


@pytest.mark.parametrize(("quota", "wanted"), [("-1", 16), ("300000", 3)])
def test_version_1(here: Path, monkeypatch: pytest.MonkeyPatch, quota: str, wanted: int) -> None:
    in_group(monkeypatch, "9:name=systemd:/\n4:cpu,cpuacct:/docker/x\n3:memory:/\n")
    place = here / "cpu,cpuacct" / "docker" / "x"
    place.mkdir(parents=True)
    (place / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (place / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.n_cores() == wanted


def test_nothing_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_group(monkeypatch, "")
    assert cores.n_cores() == 16
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.n_cores() == 1
