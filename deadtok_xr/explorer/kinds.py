"""What can be explored at a path, from the attributes of its root alone: said before anything else is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deadtok_xr.errors import IncompleteStoreError, InputError, MissingFileError
from deadtok_xr.results.root import open_root
from deadtok_xr.schema import FORMAT_VERSION, MONITOR, RECORDING, RESULTS
from deadtok_xr.store import destination, location, members
from deadtok_xr.store.sample import KIND as SAMPLE


def check(place: str | Path, *, live: bool = False) -> dict[str, Any]:
    """Return the attributes of what is to be explored.

    Parameters
    ----------
    place
        Results, a recording or a Monitor's store.
    live
        Whether it may still be written.

    Raises
    ------
    MissingFileError, InputError, IncompleteStoreError
        If there is nothing that can be explored; the message says what to do.
    """
    if not location.exists(place):
        raise MissingFileError(f"{place} does not exist; expected results, a recording or a Monitor's store")
    attrs = destination.root_attributes(place)
    if SAMPLE in attrs:
        raise InputError(f"{place} holds samples of many parameters: explore one, dx.explore(tree[name].to_dataset())")
    if grows(attrs, live=live):
        return attrs
    if RECORDING in attrs:
        members.check_format(place, attrs[RECORDING], FORMAT_VERSION, "the recording format")
        if not attrs.get("complete"):
            raise IncompleteStoreError(f"{place} is still being written, or is unfinished: use `deadtok watch {place}`")
        return attrs
    if live:
        raise InputError(f"{place} holds results, which do not grow: use `deadtok explore {place}`")
    try:
        open_root(place)
    except InputError as error:
        if RESULTS in attrs:
            raise
        expected = "expected results, a recording or a Monitor's store"
        raise InputError(f"{place} holds nothing to explore; {expected}") from error
    return attrs


def grows(attrs: dict[str, Any], *, live: bool) -> bool:
    """Return whether what has these attributes is opened as one that may grow."""
    return MONITOR in attrs or (live and RESULTS not in attrs)
