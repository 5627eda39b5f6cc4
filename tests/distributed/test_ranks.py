"""Ranks from the environment variables that torchrun sets."""

import pytest
import torch

from lmsmith.distributed.ranks import Ranks, ranks_from_environment
from lmsmith.errors import UsageError


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "2"),
    ):
        monkeypatch.setenv(name, value)


def test_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks_from_environment("cuda") == Ranks()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks_from_environment("cpu") == Ranks()


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Also if the config names a GPU, like that of a run on one GPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ranks_from_environment(device) == Ranks(3, 4, 1, 2, torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="process 1 on this machine, which has 1 GPUs"):
        ranks_from_environment(device)


@pytest.mark.usefixtures("second_of_two")
def test_an_incomplete_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks_from_environment().device == torch.device("cpu")
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(
        UsageError,
        match=r"RANK=3, WORLD_SIZE=4\. Expected RANK, WORLD_SIZE and LOCAL_RANK as torchrun",
    ):
        ranks_from_environment()
    monkeypatch.setenv("LOCAL_RANK", "one")
    with pytest.raises(UsageError, match="LOCAL_RANK=one"):
        ranks_from_environment()
