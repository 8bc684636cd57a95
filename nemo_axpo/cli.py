"""The ``nemo-axpo`` command. A subcommand (nemo_axpo/commands) loads what it calls only when it runs: ``--help`` is immediate.

What the user can cure (a value, a path, a missing extra) ends as one message and exit status 2; a bug keeps its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType

from nemo_axpo.commands import (
    check_data,
    distill,
    doctor,
    eval,
    export,
    filter,
    import_checkpoint,
    journal,
    keys,
    plan,
    preflight,
    quickstart,
    report,
    sft,
    study,
    submit,
    table,
    tool_server,
    train,
    world_questions,
)
from nemo_axpo.errors import MissingExtraError, RunFailedError
from nemo_axpo.open_files import allow_open_files

USER_ERROR, INTERRUPTED = 2, 130
"""Exit statuses; 130 is what a shell reports for Ctrl-C."""
_COMMANDS = (
    train,
    sft,
    distill,
    filter,
    eval,
    table,
    check_data,
    doctor,
    export,
    import_checkpoint,
    journal,
    report,
    keys,
    plan,
    submit,
    study,
    preflight,
    tool_server,
    world_questions,
    quickstart,
)
"""In the order of ``--help``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    options = parse_arguments(arguments)
    allow_open_files()
    try:
        with _log_on_stderr():
            options.run(options)
    except KeyboardInterrupt:
        print("nemo-axpo: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if options.traceback or not is_user_error(error):
            raise
        print(f"nemo-axpo: error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of one subcommand; settings may stand before, between and after the options."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def is_user_error(error: Exception) -> bool:
    """Whether the message is the whole answer: a missing file or extra, a run that failed in a process of its own, or a
    ValueError that this package raised itself.

    A ValueError from inside a library is a bug of ours, and its traceback is needed.
    """
    if isinstance(error, FileNotFoundError | MissingExtraError | RunFailedError):
        return True
    return isinstance(error, ValueError) and _raising_module(error.__traceback__).split(".")[0] == "nemo_axpo"


def build_parser() -> argparse.ArgumentParser:
    """The command line of every subcommand."""
    parser = argparse.ArgumentParser(prog="nemo-axpo", description="AXPO for Qwen3-VL agents.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(subparsers)
    for subparser in subparsers.choices.values():
        subparser.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


@contextlib.contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Shows what the package logs: all of it on the first rank, warnings on the others."""
    package, handler = logging.getLogger("nemo_axpo"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("nemo-axpo: %(message)s"))
    before = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    try:
        yield
    finally:
        package.setLevel(before)
        package.removeHandler(handler)


def _raising_module(traceback: TracebackType | None) -> str:
    """Name of the module whose frame raised."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_globals.get("__name__", "") if traceback else ""


if __name__ == "__main__":
    sys.exit(main())
