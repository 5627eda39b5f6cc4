"""Saves tensors in a background thread while training continues.

Training waits only for a copy of the tensors; hashing and writing take ten times as long. The
memory of the copy is reused for the next save, so the system need not clear its pages again. Small
tensors are written directly, and so are large ones if there is no memory for a copy, and the last
save of a run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lmsmith.machine.limits import free_memory

SMALL = 128 * 2**20
"""Bytes. Less is written at once: that takes 0.3 s of processor time, which a thread on a few cores
would also take from training, and copies would need as much memory again.
"""

Groups = Mapping[str, Mapping[str, Tensor]]


class Saver:
    """Writes one save at a time. The next call raises an error that occurred in the thread."""

    def __init__(self) -> None:
        self.seconds = 0.0  # duration of the latest write
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copies: dict[tuple[str, str], Tensor] = {}

    def reserve(self, groups: Groups) -> None:
        """Allocates the copies in a thread, because the system needs a second to clear gigabytes
        of pages.
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
        """Calls `write` with the tensors (`at_once`), or in a thread with CPU copies of them."""
        self.wait()
        if at_once or not (self._copies or self._fits(groups)):
            self._timed(write, groups)
            return
        found: dict[tuple[object, ...], Tensor] = {}  # copies; a tensor may be in several groups
        copies = {
            group: {n: self._copy((group, n), t, found) for n, t in named.items()}
            for group, named in groups.items()
        }
        for device in {
            t.device for named in groups.values() for t in named.values() if t.device.type == "cuda"
        }:
            torch.cuda.synchronize(device)

        def work() -> None:
            try:
                self._timed(write, copies)
            except BaseException as error:  # raised by the next `wait` or `check`
                self._error = error

        self._thread = threading.Thread(target=work, name="save")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the current write is on disk. Raises the error of that write."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises the error of a write that has failed in the thread."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _fits(self, groups: Groups) -> bool:
        # A tensor may be in several groups: the best weights are saved for use, too.
        each = {_place(t): t for named in groups.values() for t in named.values()}
        n_bytes = sum(t.numel() * t.element_size() for t in each.values())
        return SMALL <= n_bytes < 0.8 * free_memory()

    def _copy(
        self, key: tuple[str, str], tensor: Tensor, found: dict[tuple[object, ...], Tensor]
    ) -> Tensor:
        where = _place(tensor)
        if where not in found:
            found[where] = self._room(key, tensor).copy_(
                tensor.detach(), non_blocking=tensor.device.type == "cuda"
            )
        return found[where]

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


def _place(tensor: Tensor) -> tuple[object, ...]:
    """The same for views of the same numbers."""
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
