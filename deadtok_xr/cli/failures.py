"""Print each error as one sentence with an exit status, and each warning as one line."""

from __future__ import annotations

import errno
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from typing import Any

import click

from deadtok_xr.cli.output import echo
from deadtok_xr.cli.spelling import options_alone
from deadtok_xr.errors import InputError, WorkersError

_TRACEBACK = "DEADTOK_TRACEBACK"
_GIVEN = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)


def status(run: Callable[[], Any]) -> int:
    """Run a command and return its exit status: 0 success, 2 unusable input, 1 a failure of the machine, or its own."""
    try:
        with _plain_warnings():
            own = run()  # the status of ctx.exit
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if os.environ.get(_TRACEBACK):
            traceback.print_exc()
        message, status = _explained(error)
        message = "; ".join([message, *_notes(error)])
        message = message.replace("\n", " ")  # a path may contain a line break
        echo(f"deadtok: {message}", err=True)
        return status
    return own if isinstance(own, int) else 0


def _explained(error: BaseException) -> tuple[str, int]:
    """Return one sentence about an error, and the exit status."""
    if isinstance(error, click.ClickException):
        return _usage(error), 2
    if isinstance(error, (KeyboardInterrupt, click.exceptions.Abort)):
        left = "; what it was writing is incomplete and will not open: the same `deadtok convert` or `deadtok analyze`"
        left += " resumes, anything else starts again with --overwrite"
        return f"interrupted{'' if _notes(error) else left}", 1
    if isinstance(error, InputError):
        return options_alone(error.advice), 2
    if analysis := getattr(error, "analysis", ""):
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return f"analysis {analysis!r} cannot be computed, {what}; {_TRACEBACK}=1 in the environment shows where", 2
    if isinstance(error, MemoryError):
        return "not enough memory: close other programs, or analyse fewer tokens at a time", 1
    sentence = " ".join(str(error).split()) or "no message"
    if "scheduler-connection-lost" in sentence:
        return "the connection to the scheduler was lost: start it again, or check the network", 1
    if type(error).__module__.startswith("distributed") or isinstance(error, BrokenExecutor):
        return f"the workers failed, {type(error).__name__}: {sentence}; they may have run out of memory", 1
    if isinstance(error, WorkersError):
        return sentence, 1
    if isinstance(error, OSError):
        return _about_files(error)
    return (
        f"an error that should not happen, {type(error).__name__}: {sentence}; run the command again with "
        f"{_TRACEBACK}=1 in the environment for the traceback, and report it",
        1,
    )


def _notes(error: BaseException) -> list[str]:
    """Return the notes of an error, such as how to resume; for click's Abort, also those of the interrupt."""
    cause = error.__cause__ if isinstance(error, click.exceptions.Abort) else None
    return [*getattr(error, "__notes__", ()), *getattr(cause, "__notes__", ())]


def _usage(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    ctx = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see {ctx.command_path} --help" if ctx else message


def _about_files(error: OSError) -> tuple[str, int]:
    reason = error.strerror or str(error)
    message = f"{error.filename}: {reason}" if error.filename else reason
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    given = isinstance(error, _GIVEN) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)
    if full and "free disk space" not in message:
        message += "; free disk space, then run the same command again with --overwrite"
    return message, 2 if given else 1


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show each warning as one sentence, without Python's file and line."""

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        echo(f"deadtok: warning: {options_alone(' '.join(str(message).split()))}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
