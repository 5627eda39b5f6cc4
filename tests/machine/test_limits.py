"""Core and memory limits, with control group files written by hand."""

import os
from pathlib import Path

import pytest

from lmsmith.machine import limits


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(limits, "_CGROUPS", tmp_path)
    return tmp_path


def in_group(monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    read = Path.read_text

    def read_text(self: Path, *rest: str, **named: str) -> str:
        return lines if str(self) == "/proc/self/cgroup" else read(self, *rest, **named)

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.parametrize(
    ("quota", "wanted"),
    [
        ("max 100000", 16),
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("5000 100000", 1),
        ("9900000 100000", 16),
    ],
)
def test_version_2(here: Path, monkeypatch: pytest.MonkeyPatch, quota: str, wanted: int) -> None:
    in_group(monkeypatch, "0::/\n")
    (here / "cpu.max").write_text(quota)
    assert limits.n_cores() == wanted


def test_the_smallest_limit_of_all_parents_applies(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_group(monkeypatch, "0::/jobs/one\n")
    (here / "jobs" / "one").mkdir(parents=True)
    (here / "jobs" / "one" / "cpu.max").write_text("max 100000")
    (here / "jobs" / "cpu.max").write_text("400000 100000")
    assert limits.n_cores() == 4


@pytest.mark.parametrize(("quota", "wanted"), [("-1", 16), ("300000", 3)])
def test_version_1(here: Path, monkeypatch: pytest.MonkeyPatch, quota: str, wanted: int) -> None:
    in_group(monkeypatch, "9:name=systemd:/\n4:cpu,cpuacct:/docker/x\n3:memory:/\n")
    place = here / "cpu,cpuacct" / "docker" / "x"
    place.mkdir(parents=True)
    (place / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (place / "cpu.cfs_period_us").write_text("100000\n")
    assert limits.n_cores() == wanted


def test_no_limits(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_group(monkeypatch, "")
    assert limits.n_cores() == 16
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert limits.n_cores() == 1


@pytest.mark.parametrize("version", [1, 2])
def test_memory(here: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """The smallest of the machine's and each group's; file caches count as available."""
    meminfo = here / "meminfo"
    meminfo.write_text("MemTotal:       24000 kB\nMemAvailable:   20000 kB\n")
    monkeypatch.setattr(limits, "_MEMINFO", meminfo)
    in_group(monkeypatch, "0::/job\n" if version == 2 else "5:memory:/job\n3:cpu:/\n")
    assert limits.free_memory() == 20000 * 1024
    place = here / ("job" if version == 2 else "memory/job")
    place.mkdir(parents=True)
    limit, used, cached = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    (place / limit).write_text("9000000\n")
    (place / used).write_text("5000000\n")
    (place / "memory.stat").write_text(f"active_file 7\n{cached} 1000000\n")
    assert limits.free_memory() == 5_000_000
    (place / used).write_text("11000000\n")
    assert limits.free_memory() == 0
    (place / limit).write_text("max\n" if version == 2 else f"{2**62}\n")
    assert limits.free_memory() == 20000 * 1024
    meminfo.unlink()
    assert limits.free_memory() == 0


@pytest.mark.parametrize(
    ("variable", "threads"), [("", 0), ("3", 3), ("4,2", 4), (" 2 ", 2), ("many", 0), ("-1", 0)]
)
def test_threads_set_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert limits.omp_threads() == threads
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert limits.omp_threads() == 0
