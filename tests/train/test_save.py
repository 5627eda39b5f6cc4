"""Saving in a thread: what is written is the moment's, and what goes wrong is raised."""

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


def test_what_is_written_is_what_was_there_when_it_was_asked_for(written: list[Any]) -> None:
    go, tensor, saver = threading.Event(), torch.arange(4.0), Saver()

    def write(groups: Any) -> None:
        assert go.wait(10)
        written.append(groups["model"]["w"].clone())

    saver.save({"model": {"w": tensor}}, write, at_once=False)
    tensor.zero_()  # training goes on
    assert not written
    go.set()
    saver.wait()
    assert written[0].tolist() == [0, 1, 2, 3]
    saver.save(
        {"model": {"w": torch.full((4,), 9.0)}}, write, at_once=False
    )  # the same memory again
    saver.wait()
    assert written[1].tolist() == [9] * 4


def test_the_last_save_and_small_ones_are_written_at_once(
    written: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor, saver = torch.ones(3), Saver()
    saver.save({"model": {"w": tensor}}, written.append, at_once=True)
    assert written[0]["model"]["w"] is tensor
    monkeypatch.setattr(save_module, "SMALL", 1 << 20)
    saver.reserve({"model": {"w": tensor}})  # there is nothing to be gained
    saver.save({"model": {"w": tensor}}, written.append, at_once=False)
    assert written[1]["model"]["w"] is tensor
    monkeypatch.setattr(save_module, "SMALL", 0)
    monkeypatch.setattr(save_module, "free_memory", lambda: 0)
    saver.save({"model": {"w": tensor}}, written.append, at_once=False)
    assert written[2]["model"]["w"] is tensor


def test_a_full_disk_is_raised_where_training_can_end(written: list[Any]) -> None:
    saver = Saver()

    def write(groups: Any) -> None:
        raise StorageError("No room left on the disk.")

    saver.save({"model": {"w": torch.ones(3)}}, write, at_once=False)
    with pytest.raises(StorageError, match="No room left"):
        saver.wait()
    saver.check()  # once
