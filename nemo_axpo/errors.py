"""Errors a user can cure; the command line prints them without a traceback."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot work; the message says the rule, the value and the cure."""


class DataError(ValueError):
    """A data file that cannot be used as it is; the message names the file, the row and the field."""


class RunDirectoryError(ValueError):
    """An output directory that cannot take this run."""


class CheckpointError(ValueError):
    """A training checkpoint that cannot be written, or is not what was written."""


class UnfinishedEvaluationError(ValueError):
    """Questions that nobody could answer or judge; the message says how the evaluation goes on."""


class CanaryError(ValueError):
    """Engine and trainer do not see or sample the same: a run would train on something else than it measures."""


class WeightTransferError(RuntimeError):
    """Weights that did not arrive whole; the message says what is missing and the cure."""


class MissingExtraError(ImportError):
    """An optional package that is not installed; the message holds its install line."""


class RunFailedError(RuntimeError):
    """A process that was started for a run ended with an error; the message holds what it said."""


def rule_message(rule: str, *, got: object, cure: str) -> str:
    """``<rule>; got <value>: <cure>``, the form of every error of this project."""
    return f"{rule}; got {got}: {cure}"
