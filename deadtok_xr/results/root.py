"""The root group of saved results, checked before anything else is opened."""

from __future__ import annotations

from pathlib import Path

import zarr

from deadtok_xr import store
from deadtok_xr.errors import IncompleteStoreError, InputError
from deadtok_xr.schema import MONITOR, RESULTS, RESULTS_VERSION
from deadtok_xr.store import destination, members, zarr_dtype

RESUMES = "the same command, or save_results with the same arguments, resumes"


def open_root(path: str | Path) -> zarr.Group:
    """Open the root group of complete results.

    Raises
    ------
    MissingFileError, InputError, IncompleteStoreError
        If there is nothing at ``path``, if it holds no results that this version reads, or if they are incomplete.
    """
    zarr_dtype.register()
    root = store.open_root(path, "results that `deadtok analyze` wrote")
    attrs = root.attrs
    if destination.RECORDING in attrs:
        raise InputError(
            f"{path} holds no results, but a recording: open it with open_recording, or `deadtok analyze` it"
        )
    if MONITOR in attrs:
        raise InputError(f"{path} holds no results: it was written by a Monitor; open it with open_monitor")
    if RESULTS not in attrs:
        raise InputError(f"{path} holds no results: the attribute 'deadtok_results' is missing")
    members.check_format(
        path, attrs[RESULTS], RESULTS_VERSION, "results of the format", ", or analyse the recording again"
    )
    if not members.is_complete(path, root):
        raise IncompleteStoreError(f"{path} was not completed: {RESUMES}; --overwrite starts again")
    return root
