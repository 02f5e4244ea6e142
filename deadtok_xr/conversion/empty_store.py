"""The empty store that units are written into: made beside the destination, put there by one rename, mended.

It is made in the folder of the markers, so that the destination never holds half of one, nor what a library
leaves behind when it is killed. What was put there is noted (`skeleton.json`), so that a later attempt knows
whether a store is the one that was begun, and whether a power cut took anything of it.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deadtok_xr import store
from deadtok_xr.conversion.markers import Markers, digest
from deadtok_xr.conversion.plan import Plan
from deadtok_xr.store import location, motion_index

MADE_BY = "convert"
_ROOT = "zarr.json"
_SET_LAST = ("complete", "sources")


def root_attributes(dest: Path | str) -> dict[str, Any] | None:
    """The root attributes of a store; None if they cannot be read."""
    try:
        return dict(json.loads(location.read(dest, _ROOT) or b"")["attributes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_ours(dest: Path | str, markers: Markers) -> bool:
    """Whether what is at a destination is what the markers tell of, or what is left of it."""
    noted = _noted(markers)
    if noted is None:
        return False
    if not location.exists(dest) and not (isinstance(dest, Path) and dest.is_symlink()):
        return True
    attributes = root_attributes(dest)
    if attributes is None:  # torn or lost: any file that was put there shows whose the store is
        return bool(markers.done) or any(markers.is_intact(name, *facts) for name, facts in noted["files"].items())
    return _identity(attributes) == noted["root"]


def make(plan: Plan, dest: Path | str, markers: Markers) -> None:
    """Put a new empty store where there may be an old one, which is removed."""
    markers.install(_made(plan, markers))


def mend(plan: Plan, dest: Path | str, markers: Markers) -> None:
    """Put back what is missing of the empty store, and leave the chunks that are done where they are."""
    noted = _noted(markers)
    assert noted is not None
    lost = [name for name, facts in noted["files"].items() if not markers.is_intact(name, *facts)]
    if root_attributes(dest) is None:
        lost.append(_ROOT)
    if not lost:
        return
    made = _made(plan, markers, root=None if _ROOT in lost else noted["root"])
    markers.put_back(made, lost)
    shutil.rmtree(made)


def _made(plan: Plan, markers: Markers, root: dict[str, Any] | None = None) -> Path:
    """All arrays of the store, still empty, with its coordinates; noted with the root attributes given or its own."""
    folder = markers.folder / "skeleton"
    shutil.rmtree(folder, ignore_errors=True)
    dropped = {"dropped": dict(plan.dropped)} if plan.dropped else {}
    attributes = {
        "made_by": MADE_BY,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),  # tells two stores of one second apart
        "sources": [{"name": path.name, "bytes": path.stat().st_size, "blake3": None} for path in plan.files],
        "source_format": plan.format,
        "rows": plan.rows_reason,
        "hyperparameters": dict(plan.hyperparameters),
        **plan.attributes,
        **dropped,
    }
    writer = store.create(folder, plan.rows, attributes, runs=None if plan.runs is None else plan.runs.tolist())
    writer.extend(plan.steps)
    for v in plan.variables:
        array = writer.declare(v.name, v.dims, v.shape, v.dtype, v.chunks, v.attributes, shards=v.shards)
        if v.shards is None and not location.is_address(markers.dest):
            motion_index.declare(writer.group, array)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    facts = {name: _facts(path) for name, path in sorted(files.items()) if name != _ROOT}
    if root is None:
        root = _identity(root_attributes(folder) or {})
    markers.put("skeleton.json", json.dumps({"root": root, "files": facts}))
    return folder


def _facts(path: Path) -> tuple[int, str]:
    data = path.read_bytes()
    return len(data), digest(data)


def _noted(markers: Markers) -> dict[str, Any] | None:
    try:
        noted = json.loads(markers.read("skeleton.json"))
        return noted if {"root", "files"} <= noted.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _identity(attributes: dict[str, Any]) -> dict[str, Any]:
    """What of a store's root attributes stays as it is from its beginning to its end."""
    return {name: value for name, value in attributes.items() if name not in _SET_LAST}


def complete(dest: Path | str, markers: Markers, sources: list[dict[str, Any]]) -> None:
    """Declare the store whole. Only this makes it open."""
    root = json.loads(location.read(dest, _ROOT) or b"")
    root["attributes"] |= {"sources": sources, "complete": True}
    markers.put_root(json.dumps(root, indent=2))
