"""DDP and FSDP2 in two real processes against one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmsmith.distributed.ranks import Ranks, ranks_from_environment
from lmsmith.errors import UsageError

PROJECT = Path(__file__).resolve().parent.parent.parent


def test_gradients_of_two_processes_are_those_of_one() -> None:
    """Loss to 1e-12 and gradients to 1e-10 in float64, with micro-batches of one row and unequal
    target counts.
    """
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("several.py"))],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [done.stdout.count(f"rank {rank} is right") for rank in (0, 1)] == [
        1,
        1,
    ]  # perhaps in one line


def test_one_process_needs_no_communication() -> None:
    ranks = Ranks()
    assert ranks.first
    assert ranks.sum(1.5, 2.0) == ranks.max(1.5, 2.0) == ranks.broadcast(1.5, 2.0) == [1.5, 2.0]
    assert ranks.rows(7) == (0, 7)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_ranks_divide_the_rows_of_a_batch(rank: int) -> None:
    assert Ranks(rank, 4).rows(12) == (3 * rank, 3 * rank + 3)


@pytest.mark.parametrize(
    "said",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"},
    ],
)
def test_an_incomplete_torchrun_environment_is_refused(
    said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="torchrun"):
        ranks_from_environment()
