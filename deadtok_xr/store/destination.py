"""Check the destination of a new store: nothing is replaced by mistake, and nothing is written into another store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deadtok_xr.errors import DestinationExistsError, InputError
from deadtok_xr.schema import MONITOR, RECORDING, RESULTS
from deadtok_xr.store import location


def refuse_existing(path: str | Path, *, overwrite: bool, kind: str = RECORDING) -> None:
    """Raise an error if a destination exists, unless it may be overwritten and is empty or of the same kind.

    ``kind`` is the root attribute that distinguishes recordings from results: neither replaces the other.
    """
    refuse_inside_store(path)
    local = None if location.is_address(path) else Path(path)
    if local is not None and local.is_symlink() and not local.exists():
        raise DestinationExistsError(f"{path} is a broken symbolic link: remove it, or choose another destination")
    if not location.exists(path):
        return
    if not overwrite:
        raise DestinationExistsError(
            f"{path} exists already and is left as it is: {_how_to_continue(path)}choose another destination, or say "
            "--overwrite (overwrite=True) to replace it"
        )
    if local is not None:
        if local.is_symlink():
            raise DestinationExistsError(f"{path} is a symbolic link, so it is not replaced: name what it points to")
        if local.is_dir() and not any(local.iterdir()):
            return
        if not (local / "zarr.json").exists():
            raise DestinationExistsError(
                f"{path} is not a Zarr store, so it is not replaced: choose another destination"
            )
    if kind not in root_attributes(path):
        what = {RECORDING: "recording", RESULTS: "results"}.get(kind, "store of this kind")
        raise DestinationExistsError(f"{path} holds no {what}, so it is not replaced: choose another destination")


def _how_to_continue(path: str | Path) -> str:
    """Say what is unfinished at a destination, and how to continue it; empty for what is complete."""
    attrs = root_attributes(path)
    if attrs.get("complete") is not False:
        return ""
    if MONITOR in attrs:
        return "it holds what a Monitor has written, which Monitor(..., resume=True) continues; or "
    if RECORDING not in attrs:
        return "it holds unfinished results, which the same `deadtok analyze` or save_results resumes; or "
    if attrs.get("made_by") == "Recorder":
        return f"it holds an unfinished recording{_last_step(path)}, which Recorder(..., resume=True) continues; or "
    return "it holds an unfinished conversion, which the same `deadtok convert` resumes; or "


def _last_step(path: str | Path) -> str:
    from deadtok_xr.store.arrays import read_coordinate
    from deadtok_xr.store.open import open_group

    try:
        group, n_steps = open_group(path, partial=True)
        return f" up to step {read_coordinate(group, 'step')[n_steps - 1]}"
    except (InputError, OSError):
        return " without a complete step"


def refuse_inside_store(path: str | Path) -> None:
    """Raise an error if a destination lies inside a Zarr store."""
    if location.is_address(path):
        return
    path = Path(path)
    outer = next((p for p in path.resolve().parents if (p / "zarr.json").exists()), None)
    if outer is not None:
        raise InputError(f"{path} lies in the Zarr store {outer}: choose another destination")


def root_attributes(path: str | Path) -> dict[str, Any]:
    """Return the attributes of a store's root group; empty if there is no store or it cannot be read."""
    try:
        return dict(json.loads(location.read(path, "zarr.json") or b"")["attributes"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
