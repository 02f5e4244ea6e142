"""The errors that a user can cause or meet; the command line turns each into one sentence."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave cannot be used: the message says what was found, what is needed, what to do."""


class OffGridError(InputError):
    """Values that should lie on a number format's grid do not."""


class IncompleteStoreError(InputError):
    """A store whose writing has not finished, or that has lost chunks."""


class DamagedStoreError(OSError):
    """A chunk that cannot be read back as it was written."""


class MissingFileError(InputError, FileNotFoundError):
    """A path that does not exist."""


class DestinationExistsError(InputError, FileExistsError):
    """A destination that would have to be overwritten."""


class WriteError(OSError):
    """A recording that could not be written on: the message says which steps are whole, and what to do."""


class StorageError(OSError):
    """An object store that cannot be reached, or refuses."""
