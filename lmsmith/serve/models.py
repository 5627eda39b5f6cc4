"""The models that a server offers: by name, loaded when they are first asked for.

A model that nobody uses is dropped when another one needs its memory. Memory is counted as the size
of the weights on disk, times two for weights stored in 16 bits and kept as float32.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmsmith.errors import UsageError
from lmsmith.generate.text_model import TextModel
from lmsmith.generate.weights import Weights
from lmsmith.run_folder import model_folder, summary_of
from lmsmith.serve.errors import ApiError, busy
from lmsmith.serve.scheduler import Scheduler
from lmsmith.serve.structured import Grammars
from lmsmith.serve.templates import Template, has_template, template_for

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Served:
    """A model that can be loaded. `loaded` and `template` are None until it is."""

    name: str
    folder: Path
    created: int  # seconds since 1970
    n_bytes: int
    is_for_chat: bool  # it has a chat template
    loaded: TextModel | None = None
    template: Template | None = None
    grammars: Grammars | None = None  # made when an answer is first constrained
    last_used: float = 0.0
    n_users: int = 0  # requests that are being read or answered; scheduled ones besides
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def writer(self) -> TextModel:
        assert self.loaded is not None
        return self.loaded

    def as_json(self) -> dict[str, Any]:
        """An entry of /v1/models. `lmsmith`: more than OpenAI's API has, for our page."""
        entry: dict[str, Any] = {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "lmsmith",
        }
        entry["lmsmith"] = {"chat": self.is_for_chat}
        if self.loaded is not None:
            entry["lmsmith"]["context_length"] = self.loaded.model.context_length
        return entry


class Models:
    """Models by name."""

    def __init__(
        self,
        runs: Sequence[Path],
        scheduler: Scheduler,
        *,
        weights: Weights = "fp32",
        draft: Path | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """The name of a model is that of its folder. Raises UsageError for a folder that is no run,
        and for two with the same name.
        """
        self._scheduler, self._weights, self._draft = scheduler, weights, draft
        self._max_bytes = max_bytes
        self._loader = ThreadPoolExecutor(1, "lmsmith-loader")
        self._making_room = asyncio.Lock()
        self._by_name: dict[str, Served] = {}
        for run in runs:
            folder = model_folder(run)
            name = run.resolve().name
            if name in self._by_name:
                raise UsageError(
                    f"two runs are called {name!r}: {self._by_name[name].folder} and {folder}. "
                    "Rename one of the folders."
                )
            file = folder / "model.safetensors"
            size, changed = file.stat().st_size, int(file.stat().st_mtime)
            wide = 2 if weights == "fp32" and summary_of(run).get("dtype") == "bfloat16" else 1
            is_for_chat = has_template(folder)
            self._by_name[name] = Served(name, run, changed, size * wide, is_for_chat)

    @property
    def names(self) -> list[str]:
        return list(self._by_name)

    @property
    def all(self) -> Mapping[str, Served]:
        return self._by_name

    def load_first(self) -> Served:
        """Loads the first model, before the server starts. Raises the errors of `load`."""
        served = next(iter(self._by_name.values()))
        self._load(served)
        began = time.monotonic()
        self._scheduler.warm_up(served.writer).result()
        _log_ready(served, began)
        return served

    def known(self, name: str) -> Served:
        """A model by name. Raises ApiError 404."""
        if name not in self._by_name:
            known = ", ".join(self._by_name)
            raise ApiError(
                404,
                f"there is no model {name[:100]!a}. This server has: {known}.",
                param="model",
                code="model_not_found",
            )
        return self._by_name[name]

    @contextlib.asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Served]:
        """A model by name, loaded; it is kept until the end of the context, and as long as jobs
        of it wait or run. Raises ApiError, LmsmithError.
        """
        served = await self._get(name)
        served.n_users += 1
        try:
            yield served
        finally:
            served.n_users -= 1

    async def _get(self, name: str) -> Served:
        served = self.known(name)
        async with served.lock:
            served.last_used = time.monotonic()
            if served.loaded is None:
                async with self._making_room:
                    await self._make_room(served)
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(self._loader, self._load, served)
                    began = time.monotonic()
                    await asyncio.wrap_future(self._scheduler.warm_up(served.writer))
                    _log_ready(served, began)
        return served

    @property
    def n_loaded(self) -> int:
        return sum(served.loaded is not None for served in self._by_name.values())

    def _load(self, served: Served) -> None:
        began = time.monotonic()
        writer, _ = TextModel.load(served.folder, self._weights, self._draft)
        template = template_for(writer, model_folder(served.folder))
        served.loaded, served.template = writer, template
        served.last_used = time.monotonic()
        log.info("model %s: loaded in %.1f s", served.name, served.last_used - began)

    async def _make_room(self, new: Served) -> None:
        """Drops models that nobody uses, the longest unused first, until `new` fits."""
        if self._max_bytes is None:
            return
        loaded = [each for each in self._by_name.values() if each.loaded is not None]
        for old in sorted(loaded, key=lambda each: each.last_used):
            if sum(each.n_bytes for each in loaded) + new.n_bytes <= self._max_bytes:
                return
            if old.n_users or old.lock.locked() or self._scheduler.is_used(old.writer):
                continue
            writer, old.loaded, old.grammars = old.writer, None, None
            loaded.remove(old)
            await asyncio.wrap_future(self._scheduler.forget(writer))
        if loaded and sum(each.n_bytes for each in loaded) + new.n_bytes > self._max_bytes:
            raise busy("the memory for models is full and the loaded ones are in use.", 5)


def _log_ready(served: Served, began: float) -> None:
    seconds = time.monotonic() - began
    first = " (the first start compiles; later ones load the result)" if seconds > 5 else ""
    log.info("model %s: ready %.1f s later%s", served.name, seconds, first)
