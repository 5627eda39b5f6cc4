"""Saving in a thread: it writes the tensors of the call, and raises errors later."""

import threading
from typing import Any

import pytest
import torch

from lmsmith.errors import StorageError
from lmsmith.train import save as save_module
from lmsmith.train.save import Saver


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(save_module, "SMALL", 0)
    return []


def test_a_save_writes_the_values_at_the_time_of_the_call(written: list[Any]) -> None:
    go, tensor, saver = threading.Event(), torch.arange(4.0), Saver()

    def write(groups: Any) -> None:
        assert go.wait(10)
        written.append(groups["model"]["w"].clone())

    saver.save({"model": {"w": tensor}}, write, at_once=False)
    tensor.zero_()  # training continues
    assert not written
    go.set()
    saver.wait()
    assert written[0].tolist() == [0, 1, 2, 3]
    saver.save({"model": {"w": torch.full((4,), 9.0)}}, write, at_once=False)  # reuses the memory
    saver.wait()
    assert written[1].tolist() == [9] * 4


def test_a_tensor_of_two_groups_is_copied_once(written: list[Any]) -> None:
    tensor, other, saver = torch.arange(4.0), torch.ones(4), Saver()
    groups = {"model": {"w": tensor}, "best": {"w": other}, "use": {"w": tensor.detach()}}
    saver.save(groups, written.append, at_once=False)
    saver.wait()
    (copies,) = written
    assert copies["use"]["w"] is copies["model"]["w"]
    assert copies["best"]["w"].tolist() == [1] * 4
    assert len(saver._copies) == 2
    # A later save finds its own copies, whatever was shared before.
    groups = {"model": {"w": tensor}, "use": {"w": torch.full((4,), 7.0)}}
    saver.save(groups, written.append, at_once=False)
    saver.wait()
    assert written[1]["model"]["w"].tolist() == [0, 1, 2, 3]
    assert written[1]["use"]["w"].tolist() == [7] * 4


def test_the_last_save_and_small_ones_are_written_at_once(
    written: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor, saver = torch.ones(3), Saver()
    saver.save({"model": {"w": tensor}}, written.append, at_once=True)
    assert written[0]["model"]["w"] is tensor
    monkeypatch.setattr(save_module, "SMALL", 1 << 20)
    saver.reserve({"model": {"w": tensor}})  # small tensors need no copy
    saver.save({"model": {"w": tensor}}, written.append, at_once=False)
    assert written[1]["model"]["w"] is tensor
    monkeypatch.setattr(save_module, "SMALL", 13)  # bytes: the tensor has 12, and counts once
    saver.save({"model": {"w": tensor}, "use": {"w": tensor}}, written.append, at_once=False)
    assert written[2]["model"]["w"] is written[2]["use"]["w"] is tensor
    monkeypatch.setattr(save_module, "SMALL", 0)
    monkeypatch.setattr(save_module, "free_memory", lambda: 0)
    saver.save({"model": {"w": tensor}}, written.append, at_once=False)
    assert written[3]["model"]["w"] is tensor


def test_a_full_disk_is_raised_by_the_next_call(written: list[Any]) -> None:
    saver = Saver()

    def write(groups: Any) -> None:
        raise StorageError("No room left on the disk.")

    saver.save({"model": {"w": torch.ones(3)}}, write, at_once=False)
    with pytest.raises(StorageError, match="No room left"):
        saver.wait()
    saver.check()  # raised only once
