"""The options of a server, checked. Imports no library of the extra `serve`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmsmith.errors import ConfigError, UsageError
from lmsmith.generate.weights import Weights
from lmsmith.serve.sampling import Limits

MISSING = "`lmsmith serve` needs more libraries: `pip install 'lmsmith[serve]'`."


@dataclass(frozen=True)
class Options:
    """How to serve. The command line has an option for each."""

    runs: Sequence[Path]
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    allowed_hosts: Sequence[str] = ()
    n_slots: int = 16
    max_waiting: int = 256
    limits: Limits = field(default_factory=Limits)
    weights: Weights = "fp32"
    draft: Path | None = None
    max_bytes: int | None = None  # of the weights of loaded models
    prefix_bytes: int = 256 << 20  # of the prefix cache, per model
    drain_seconds: float = 30.0
    log_prompts: bool = False

    def check(self) -> None:
        """Raises ConfigError for a number out of range, UsageError without runs."""
        if not self.runs:
            raise UsageError("nothing to serve: name at least one run.")
        for name, value, low, high in (
            ("port", self.port, 0, 65535),
            ("slots", self.n_slots, 1, 1024),
            ("queue", self.max_waiting, 1, 100_000),
            ("max-tokens", self.limits.max_tokens, 1, 1 << 24),
            ("timeout", self.limits.seconds, 0.1, 86_400),
            ("drain", self.drain_seconds, 0, 86_400),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} = {value}: expected {low:g} to {high:g}.")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("the API key is empty: give a key, or none at all.")


def serve(options: Options, ready: Callable[[str], None]) -> int:
    """Loads the first model, serves until a signal, and returns the exit status.

    `ready` is called with the server's address. Raises UsageError if libraries are missing or the
    address is taken, and the errors of loading a model.
    """
    options.check()
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(MISSING) from error
    from lmsmith.serve.server import run

    return run(options, ready)
