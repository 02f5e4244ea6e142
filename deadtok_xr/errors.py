"""Errors that a user can cause or see; the command line prints each as one sentence."""

from __future__ import annotations


class InputError(ValueError):
    """An input that cannot be used: the message says what was found, what was expected and what to do."""


class OffGridError(InputError):
    """Values that do not lie on the grid of a number format, although the analysis requires it."""


class IncompleteStoreError(InputError):
    """A store whose writing has not finished, or that has lost chunks."""


class DamagedStoreError(OSError):
    """A chunk that cannot be read back as it was written."""


class MissingFileError(InputError, FileNotFoundError):
    """A path that does not exist."""


class DestinationExistsError(InputError, FileExistsError):
    """A destination that would have to be overwritten."""


class WriteError(OSError):
    """A recording whose writing had to stop: the message says which steps are complete, and what to do."""


class StorageError(OSError):
    """An object store that cannot be reached, or denies access."""
