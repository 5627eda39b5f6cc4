"""What can be refused before the text is read: settings that do not fit each other or the number of
processes.

Tokenising may take hours. So whatever follows from the settings alone is checked first;
`choose.resolve` checks again what it has chosen, before the run folder appears.
"""

from __future__ import annotations

from collections.abc import Collection

from lmsmith.config import RunConfig
from lmsmith.config.presets import has_size
from lmsmith.data.batches.packing import check_documents
from lmsmith.errors import ConfigError


def refuse_early(config: RunConfig, world: int, given: Collection[str] = ()) -> None:
    """Raises ConfigError for what `world` processes cannot train, as far as the settings say it.

    `given`: settings that the user set. What is still to be chosen will fit.
    """
    if world > 1 and config.model.counted:
        raise ConfigError("an n-gram model is counted by one process: start it without torchrun.")
    if world > 1 and config.train.engine == "reference":
        raise ConfigError(
            "the reference engine is one process: start it without torchrun, or train by --engine "
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
        config = config.changed(
            {"train.batch_size": max(1, config.train.initial_batch_size) * world},
            where="what is chosen",
        )
    check_ranks(config, world)
    if config.train.initial_batch_size and not chosen and not config.train.batch_tokens:
        check_growing(config, world)


def check_ranks(config: RunConfig, world: int) -> None:
    """Raises ConfigError where `world` processes cannot share a batch."""
    train = config.train
    if train.truncated_bptt and world > 1:
        raise ConfigError(
            "train.truncated_bptt keeps its states in one process: start it without torchrun."
        )
    for name in ("batch_size", "initial_batch_size"):
        if getattr(train, name) % world:
            raise ConfigError(
                f"train.{name} = {getattr(train, name)} cannot be shared evenly by {world} "
                f"processes: set a multiple "
                f"of {world}, or start another number of processes."
            )


def check_counting(config: RunConfig) -> None:
    """Raises ConfigError for settings of the data that counting n-grams cannot follow."""
    if config.data.documents != "stream":
        raise ConfigError(
            f"data.documents = {config.data.documents!r} keeps documents apart, and n-grams are "
            f"counted in one stream: "
            "set it to stream."
        )
    if config.data.mixture:
        raise ConfigError(
            "[[data.mixture]] mixes sources by weight, and counts have none: name the text by "
            "data.sources."
        )


def check_growing(config: RunConfig, world: int) -> None:
    """Raises ConfigError where a batch cannot grow from `train.initial_batch_size`."""
    train = config.train
    problems = {
        "its length must be known: set --steps, --tokens or --epochs, not --minutes": not (
            train.steps or train.tokens or train.epochs
        ),
        "train.truncated_bptt has as many sequences in each": train.truncated_bptt,
        "data.documents = 'rows' makes batches of one size": config.data.documents == "rows",
        f"it ends at train.batch_size = {train.batch_size}": train.initial_batch_size
        > train.batch_size,
        f"{world} processes cannot share it evenly": bool(train.initial_batch_size % world),
    }
    for problem, there in problems.items():
        if there:
            raise ConfigError(
                f"train.initial_batch_size = {train.initial_batch_size} lets the batch of a run "
                f"grow, and {problem}."
            )
