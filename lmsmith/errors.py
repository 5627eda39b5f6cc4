"""Errors that the user can fix.

Every error that a user can cause is one of these classes. Its message says what is wrong, where,
what was found, what was expected and what to do next; `lmsmith.cli` prints it without a traceback
and exits with the class's status. A failed `assert`, in contrast, is a bug in lmsmith.
"""


class LmsmithError(Exception):
    """Base class of all errors that the user can fix."""

    exit_status = 1


class UsageError(LmsmithError):
    """Wrong use of the command: an unknown command, a missing argument, conflicting options."""

    exit_status = 2


class ConfigError(LmsmithError):
    """A setting that is unknown, has the wrong type, or conflicts with other settings."""

    exit_status = 2


class DataError(LmsmithError):
    """Text, tokens or shards that cannot be read or used."""


class TokenizerError(LmsmithError):
    """A tokenizer that cannot be loaded, trained, or applied to this text."""


class CheckpointError(LmsmithError):
    """A checkpoint or run folder that cannot be written, read or trusted."""


class StorageError(LmsmithError):
    """A file that cannot be written: no space, no permission, no such folder."""


class TrainingError(LmsmithError):
    """Training cannot continue: a loss that is not finite, a budget that is too small."""
