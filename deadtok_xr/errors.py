"""Errors that a user can cause or see; the command line prints each as one sentence.

Advice is written once for both: ``allow_gaps=True (--allow-gaps)`` or ``--allow-gaps (allow_gaps=True)``. In Python an
error shows the keyword alone, on the command line the option alone (`deadtok_xr.cli.spelling`).
"""

from __future__ import annotations

import re

__all__ = [
    "DamagedStoreError", "DestinationExistsError", "IncompleteStoreError", "InputError", "MissingFileError",
    "OffGridError", "StorageError", "WorkersError", "WriteError",
]  # fmt: skip

_OPTION = r"--[a-z][a-z-]*"
OPTION_FIRST = re.compile(rf"({_OPTION})( [^\s()]+)? \(([a-z_]+=(?:[^()]|\([^()]*\))*)\)")
"""An option with its value, and the keyword in parentheses."""
OPTION_LAST = re.compile(rf" \((({_OPTION})[^()]*)\)")
"""An option with its value, in parentheses after the keyword."""


def keywords_alone(text: str) -> str:
    """Return advice for Python: where it names a keyword and an option, only the keyword."""
    return OPTION_LAST.sub("", OPTION_FIRST.sub(r"\3", text))


class InputError(ValueError):
    """An input that cannot be used: the message says what was found, what was expected and what to do."""

    def __str__(self) -> str:
        return keywords_alone(super().__str__())

    @property
    def advice(self) -> str:
        """The message with keywords and options."""
        return super().__str__()


class OffGridError(InputError):
    """Values that do not lie on the grid of a number format, although the analysis requires it."""


class IncompleteStoreError(InputError):
    """A store whose writing has not finished, or that has lost chunks."""


class DamagedStoreError(OSError):
    """A chunk or a file of metadata that cannot be read back as it was written."""


class MissingFileError(InputError, FileNotFoundError):
    """A path that does not exist."""


class DestinationExistsError(InputError, FileExistsError):
    """A destination that would have to be overwritten."""


class WriteError(OSError):
    """A recording whose writing had to stop: the message says which steps are complete, and what to do."""


class StorageError(OSError):
    """An object store that cannot be reached, or denies access."""


class WorkersError(RuntimeError):
    """Worker processes of this machine that cannot be started, or that ended and cannot be started again."""
