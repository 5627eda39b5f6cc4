"""What a user can put right.

Every error a user can cause is one of these. Its message says what is wrong, where, what was found,
what was wanted and what to do next; `lmsmith.cli` prints it without a traceback and exits with the
class's status. A failed `assert`, by contrast, is a bug of ours.
"""


class LmsmithError(Exception):
    """Base of all errors that are put right by the user, not by us."""

    exit_status = 1


class UsageError(LmsmithError):
    """The command was used wrongly: an unknown verb, a missing argument, flags that exclude one
    another.
    """

    exit_status = 2


class ConfigError(LmsmithError):
    """A setting that is unknown, of the wrong type, or that does not fit the others."""

    exit_status = 2


class DataError(LmsmithError):
    """Text, tokens or shards that cannot be read or do not serve."""


class TokenizerError(LmsmithError):
    """A tokenizer that cannot be loaded, learnt, or applied to this text."""


class CheckpointError(LmsmithError):
    """A checkpoint or run folder that cannot be written, read or trusted."""


class StorageError(LmsmithError):
    """A file that cannot be written: no room, no permission, no such folder."""


class TrainingError(LmsmithError):
    """Training cannot go on: a loss that is not finite, a budget that is too small."""
