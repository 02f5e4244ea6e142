"""Where a new store may go: nothing is replaced by mistake, and nothing is written into another store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deadtok_xr.errors import DestinationExistsError, InputError
from deadtok_xr.store import location

RECORDING = "deadtok_format"


def refuse_existing(path: str | Path, *, overwrite: bool, kind: str = RECORDING) -> None:
    """Raise where a destination exists, unless it may be overwritten and is empty or of the same kind.

    ``kind`` is the root attribute that tells recordings from results: neither replaces the other.
    """
    if location.is_address(path):
        _refuse_existing_objects(path, overwrite=overwrite, kind=kind)
        return
    path = Path(path)
    refuse_inside(path)
    if not path.exists():
        if path.is_symlink():
            raise DestinationExistsError(
                f"{path} is a symbolic link to nothing: remove it, or name another destination"
            )
        return
    if not overwrite:
        raise _is_left(path)
    what = "recording" if kind == RECORDING else "results"
    if path.is_symlink():
        raise DestinationExistsError(f"{path} is a symbolic link, so it is not replaced: name what it points to")
    if not path.is_dir() or (any(path.iterdir()) and not (path / "zarr.json").exists()):
        raise DestinationExistsError(f"{path} is not a Zarr store, so it is not replaced: choose another destination")
    if any(path.iterdir()) and kind not in root_attributes(path):
        raise DestinationExistsError(f"{path} holds no {what}, so it is not replaced: choose another destination")


def _is_left(path: str | Path) -> DestinationExistsError:
    return DestinationExistsError(
        f"{path} exists already and is left as it is: choose another destination, or say --overwrite "
        "(overwrite=True) to replace it"
    )


def _refuse_existing_objects(path: str | Path, *, overwrite: bool, kind: str) -> None:
    if not location.exists(path):
        return
    if not overwrite:
        raise _is_left(path)
    if kind not in root_attributes(path):
        what = "recording" if kind == RECORDING else "results"
        raise DestinationExistsError(f"{path} holds no {what}, so it is not replaced: choose another destination")


def refuse_inside(path: str | Path) -> None:
    """Raise where something else would be written into a Zarr store."""
    if location.is_address(path):
        return
    path = Path(path)
    outer = next((p for p in path.resolve().parents if (p / "zarr.json").exists()), None)
    if outer is not None:
        raise InputError(f"{path} lies in the Zarr store {outer}: choose another destination")


def root_attributes(path: str | Path) -> dict[str, Any]:
    """What the root of a store says of itself; nothing, where there is none or it cannot be read."""
    try:
        return dict(json.loads(location.read(path, "zarr.json") or b"")["attributes"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
