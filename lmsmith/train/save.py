"""Saving without standing still: tensors are copied, and a thread writes the copies while training
goes on.

The copy is what training waits for; hashing and writing take ten times as long. The memory of the
copy is kept for the next save, whose pages the system then need not clear. Small tensors are
written at once, as are large ones where the memory for a copy is not there; so is the last save of
a run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lmsmith.machine.limits import free_memory

SMALL = 64 * 2**20  # bytes that are written sooner than a thread is started

Groups = Mapping[str, Mapping[str, Tensor]]


class Saver:
    """One save at a time. What goes wrong in the thread is raised by the next call."""

    def __init__(self) -> None:
        self.seconds = 0.0  # what the latest write took
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copies: dict[tuple[str, str], Tensor] = {}

    def reserve(self, groups: Groups) -> None:
        """Makes room for copies of such tensors, in a thread: the system takes a second to clear
        gigabytes of pages.
        """
        if self._copies or not self._fits(groups):
            return

        def work() -> None:
            for group, named in groups.items():
                for name, tensor in named.items():
                    self._room((group, name), tensor).zero_()

        self._thread = threading.Thread(target=work, name="room for saves")
        self._thread.start()

    def save(self, groups: Groups, write: Callable[[Groups], None], *, at_once: bool) -> None:
        """Calls `write` with the tensors, or, in a thread, with copies of them on the CPU."""
        self.wait()
        if at_once or not (self._copies or self._fits(groups)):
            self._timed(write, groups)
            return
        copies = {
            group: {n: self._copy((group, n), t) for n, t in named.items()}
            for group, named in groups.items()
        }
        for device in {
            t.device for named in groups.values() for t in named.values() if t.device.type == "cuda"
        }:
            torch.cuda.synchronize(device)

        def work() -> None:
            try:
                self._timed(write, copies)
            except BaseException as error:  # raised where training waits for it
                self._error = error

        self._thread = threading.Thread(target=work, name="save")
        self._thread.start()

    def wait(self) -> None:
        """Until what is being written is on the disk. Raises what writing it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises what a write has raised meanwhile."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _fits(self, groups: Groups) -> bool:
        n_bytes = sum(
            t.numel() * t.element_size() for named in groups.values() for t in named.values()
        )
        return SMALL <= n_bytes < 0.8 * free_memory()

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        return self._room(key, tensor).copy_(
            tensor.detach(), non_blocking=tensor.device.type == "cuda"
        )

    def _room(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        kept = self._copies.get(key)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty(
                tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda"
            )
            self._copies[key] = kept
        return kept

    def _timed(self, write: Callable[[Groups], None], groups: Groups) -> None:
        began = time.monotonic()
        write(groups)
        self.seconds = time.monotonic() - began
