"""Write and remove the manifest of a store."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from zarr.storage import LocalStore

from deadtok_xr.store import chunk_entries, location, manifest
from deadtok_xr.store.arrays import ZSTD_LEVEL
from deadtok_xr.store.chunk_entries import Entry
from deadtok_xr.store.manifest import ARRAY, FLAG, GROUP, KEY, VERSION, Entries, Manifest, Member

_METADATA: dict[str, dict[str, Any]] = {
    GROUP: {"attributes": {}, "zarr_format": 3, "node_type": "group"},
    f"{GROUP}/{ARRAY}": {
        "shape": [],
        "data_type": "string",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": []}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "",
        "codecs": [
            {"name": "vlen-utf8", "configuration": {}},
            {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}},
        ],
        "attributes": {"long_name": "arrays and chunks that belong to the store, as JSON"},
        "zarr_format": 3,
        "node_type": "array",
    },
}
"""What zarr would write for the group and the array, which takes it ten times as long."""


def complete(
    root: zarr.Group,
    arrays: Mapping[str, zarr.Array[Any]],
    attributes: Mapping[str, Any],
    known: Entries | None = None,
    *,
    groups: Iterable[zarr.Group] = (),
    sync: bool = True,
) -> None:
    """Write the manifest of a store and declare it complete, once everything in it has reached the disk.

    Parameters
    ----------
    root
        The root group.
    arrays
        The arrays that belong to it, by their paths.
    attributes
        The final attributes of the root group, but for `FLAG` and ``complete``.
    known
        Entries of chunks as they were written; those of other chunks are read from the store.
    groups
        The groups inside the root group in which arrays lie.
    sync
        Whether files may not have reached the disk yet: a power cut could leave a store that is declared complete but
        lacks chunks.
    """
    if isinstance(root.store, LocalStore) and sync and hasattr(os, "sync"):
        os.sync()
    write(root, arrays, {**attributes, "complete": True}, known, groups=groups)


def write(
    root: zarr.Group,
    arrays: Mapping[str, zarr.Array[Any]],
    attributes: Mapping[str, Any],
    known: Entries | None = None,
    *,
    groups: Iterable[zarr.Group] = (),
) -> None:
    """Write the manifest of a store, and then the attributes of its root group; see `complete`."""
    members = {name: (describe(array, (known or {}).get(name)),) for name, array in arrays.items()}
    listed = {**attributes, **manifest.of_groups(groups)}
    put(root, Manifest(manifest.digests(listed), members))
    put_attributes(root, {**attributes, FLAG: VERSION})


def put_attributes(root: zarr.Group, attributes: Mapping[str, Any]) -> None:
    """Replace the attributes of a root group; in a folder they have reached the disk when this returns."""
    if not isinstance(root.store, LocalStore):
        root.attrs.put(dict(attributes))
        return
    change_metadata(root.store.root / "zarr.json", attributes=dict(attributes))
    root.metadata.attributes.clear()
    root.metadata.attributes.update(attributes)


def change_metadata(path: Path, **changes: Any) -> None:
    """Change the metadata of a group or array in a folder; they have reached the disk when this returns."""
    metadata = json.loads(path.read_bytes()) | changes
    location.write_atomically(path, json.dumps(metadata, indent=2).encode(), durable=True)


def describe(array: zarr.Array[Any], known: Mapping[tuple[int, ...], Entry] | None = None) -> Member:
    """Describe an array as it is in its store."""
    known = known or {}
    positions = chunk_entries.positions_of(array)
    missing = [p for p in positions if p not in known]
    read = dict(zip(missing, chunk_entries.read_entries(array, missing), strict=True))
    for error in read.values():
        if isinstance(error, Exception):
            raise error
    entries = np.array([known.get(p) or read[p] for p in positions], np.uint32)
    return Member(
        manifest.facts_of(array), manifest.digests(array.attrs.asdict()), entries.reshape(*chunk_entries.grid(array), 2)
    )


def put(root: zarr.Group, listed: Manifest) -> None:
    """Put a manifest into a store, in place of an earlier one; what a kill has left half written is removed."""
    place, text = location.address_of(root.store), manifest.to_text(listed).encode()
    for node, metadata in _METADATA.items():
        content = json.dumps(metadata, indent=2).encode()
        if location.read(place, f"{node}/zarr.json") != content:
            location.write(place, f"{node}/zarr.json", content, durable=True)
    data = bytes(Zstd(level=ZSTD_LEVEL, checksum=True).encode(struct.pack("<II", 1, len(text)) + text))
    location.write(place, KEY, data, durable=True)
    if isinstance(root.store, LocalStore):
        for folder in (root.store.root, *(root.store.root / node for node in _METADATA)):
            for path in folder.glob("*.partial"):
                path.unlink(missing_ok=True)
    manifest.forget(root.store)


def remove(root: zarr.Group) -> None:
    """Remove the manifest of a store that is about to change: first the attribute, so that none is expected."""
    if FLAG in root.attrs:
        put_attributes(root, {k: v for k, v in root.attrs.asdict().items() if k != FLAG})
    if isinstance(root.store, LocalStore):
        (root.store.root / KEY).unlink(missing_ok=True)
    elif GROUP in root:
        del root[GROUP]
    manifest.forget(root.store)
