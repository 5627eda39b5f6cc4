"""Checks that need only the settings: they must fit each other and the number of processes.

Tokenization may take hours, so these checks run before the text is read. `choose.resolve` repeats
them for the settings it has chosen, before the run folder is created.
"""

from __future__ import annotations

from collections.abc import Collection

from lmsmith.config import RunConfig
from lmsmith.config.presets import has_size
from lmsmith.data.batches.packing import check_documents
from lmsmith.errors import ConfigError
from lmsmith.train.objective import objective_of


def refuse_early(config: RunConfig, world: int, given: Collection[str] = ()) -> None:
    """Raises ConfigError if `world` processes cannot train with these settings.

    `given`: settings that the user set. Those chosen later will fit.
    """
    if world > 1 and config.model.counted:
        raise ConfigError("an n-gram model is counted by one process: start it without torchrun.")
    if world > 1 and config.train.engine == "reference":
        raise ConfigError(
            "the reference engine runs in one process: start it without torchrun, or use --engine "
            "torch."
        )
    if config.model.counted:
        check_counting(config)
        if config.train.tasks:
            raise ConfigError(
                "train.tasks run between steps, and an n-gram model has none: leave it out, and "
                "run `lmsmith eval RUN --tasks` afterwards."
            )
        return
    check_documents(config)
    if config.train.tasks:
        from lmsmith.train.hooks.tasks import load

        load(config)  # an unknown task, or items that cannot be read
    chosen = (
        not has_size(config.preset)
        and not getattr(config.model, "size", 0)
        and "train.batch_size" not in given
    )
    if chosen or config.train.batch_tokens:
        least = max(objective_of(config).rows_that_belong_together, config.train.initial_batch_size)
        config = config.changed({"train.batch_size": least * world}, where="the chosen settings")
    check_ranks(config, world)
    if config.train.initial_batch_size and not chosen and not config.train.batch_tokens:
        check_growing(config, world)


def check_ranks(config: RunConfig, world: int) -> None:
    """Raises ConfigError if `world` processes cannot share a batch evenly, or the objective
    refuses a setting.
    """
    train = config.train
    objective_of(config).check(world)
    if train.truncated_bptt and world > 1:
        raise ConfigError(
            "train.truncated_bptt keeps its states in one process: start the run without torchrun."
        )
    for name in ("batch_size", "initial_batch_size"):
        if getattr(train, name) % world:
            raise ConfigError(
                f"train.{name} = {getattr(train, name)} cannot be divided evenly among {world} "
                f"processes. Set a multiple of {world}, or start another number of processes."
            )


def check_counting(config: RunConfig) -> None:
    """Raises ConfigError for data settings that n-gram models do not support."""
    if config.data.documents != "stream":
        raise ConfigError(
            f"data.documents = {config.data.documents!r} separates documents, but n-grams are "
            f"counted in one stream. Set data.documents to stream."
        )
    if config.data.mixture:
        raise ConfigError(
            "[[data.mixture]] mixes sources by weight, but n-gram counts have no weights. Name the "
            "text in data.sources instead."
        )


def check_growing(config: RunConfig, world: int) -> None:
    """Raises ConfigError if `train.initial_batch_size` does not allow batch-size warm-up."""
    train = config.train
    problems = {
        "needs a known length: set --steps, --tokens or --epochs, not --minutes": not (
            train.steps or train.tokens or train.epochs
        ),
        "cannot be used with train.truncated_bptt, whose batches have one size": (
            train.truncated_bptt
        ),
        "cannot be used with data.documents = 'rows', whose batches have one size": (
            config.data.documents == "rows"
        ),
        f"is larger than train.batch_size = {train.batch_size}": train.initial_batch_size
        > train.batch_size,
        f"cannot be divided evenly among {world} processes": bool(train.initial_batch_size % world),
    }
    for problem, applies in problems.items():
        if applies:
            raise ConfigError(
                f"train.initial_batch_size = {train.initial_batch_size} (batch-size warm-up) "
                f"{problem}."
            )
