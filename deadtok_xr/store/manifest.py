"""The manifest of a store: which arrays belong to it, and the size and checksum of each chunk, by position.

A checksum in a chunk proves its content, not its place: a chunk of another variable, of other steps or of another store
has a valid one. The manifest lists the shape, dtype, dims and layout of each array, the digests of its attributes, and
for each chunk its size and its last four bytes, which are zstd's checksum of the content. So nothing is hashed for it,
neither at writing nor at reading. It lies in a scalar array of text, ``deadtok_manifest/members``, so that other
readers of Zarr are not disturbed, and one rename replaces it.

A manifest in a store is always true: it is written just before the store is declared complete, removed before a
complete store is appended to, and lists both states of a label while that is put in place.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from blake3 import blake3
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, TransposeCodec
from zarr.storage import MemoryStore

from deadtok_xr.errors import DamagedStoreError, InputError
from deadtok_xr.schema import RECORDING, RESULTS
from deadtok_xr.store import chunk_entries, location
from deadtok_xr.store.chunk_bytes import byte_order, decompress
from deadtok_xr.store.chunk_entries import Entry
from deadtok_xr.text import shortened

GROUP, ARRAY = "deadtok_manifest", "members"
FLAG = "deadtok_manifest"
"""The attribute of a root group that has a manifest; its value is the version of the manifest."""
VERSION = "1.0"
KEY = f"{GROUP}/{ARRAY}/c"
_RESTORE = "restore it from a copy"
Entries = Mapping[str, Mapping[tuple[int, ...], Entry]]
"""Entries by array and grid position."""
_LEFT_OUT = {"complete", "labelled", "begun", "fingerprint", FLAG, "coordinates", "created", "analysed"}
"""Attributes that change after a store is written, and times: no result depends on them."""
_DECISIVE = {
    "also", "betas", "device", "hyperparameters", "implementation", "lr", "optimizer", "precision", "tied",
    "valid_from",
}  # fmt: skip
"""Attributes that may not be added either, because analyses read them."""
_MOST_CACHED = 64


class WrongChunkError(ValueError):
    """A chunk that is not the one that was written at its position.

    Attributes
    ----------
    found
        Its entry.
    """

    def __init__(self, found: Entry) -> None:
        super().__init__("its size or checksum is not that of the chunk that was written there")
        self.found = found

    def __reduce__(self) -> Any:
        return type(self), (self.found,)


@dataclass(frozen=True)
class Member:
    """An array as it was written.

    Attributes
    ----------
    facts
        Its shape, dtype, dims, chunks, shards and codecs, as JSON has them.
    attributes
        The digest of each attribute.
    entries
        The entries of its chunks, (*grid, 2).
    """

    facts: Mapping[str, Any]
    attributes: Mapping[str, str]
    entries: NDArray[np.uint32]

    def entry(self, position: tuple[int, ...]) -> Entry | None:
        """Return the entry at a position of the grid; None beyond it."""
        grid = self.entries.shape[:-1]
        if len(position) != len(grid) or any(i >= n for i, n in zip(position, grid, strict=True)):
            return None
        size, end = self.entries[position].tolist()
        return size, end

    def describes(self, other: Member) -> bool:
        """Return whether an array has the same layout and the same chunks."""
        return self.facts == other.facts and np.array_equal(self.entries, other.entries)


@dataclass(frozen=True)
class Manifest:
    """What belongs to a store.

    Attributes
    ----------
    attributes
        The digest of each attribute of the root group, and of the groups in it by ``GROUP/NAME``.
    members
        The states that each array may be in: one, or several while a label is put in place; None means missing.
    """

    attributes: Mapping[str, str]
    members: Mapping[str, tuple[Member | None, ...]]

    def states(self, name: str) -> tuple[Member, ...]:
        """Return the states of an array in which it exists."""
        return tuple(state for state in self.members.get(name, ()) if state is not None)

    def entries(self) -> dict[str, dict[tuple[int, ...], Entry]]:
        """Return the entries of all chunks, by array and position, as `write` takes them."""
        found: dict[str, dict[tuple[int, ...], Entry]] = {}
        for name in self.members:
            for member in self.states(name)[:1]:
                positions = np.ndindex(*member.entries.shape[:-1])
                pairs = member.entries.reshape(-1, 2).tolist()
                found[name] = {p: (size, end) for p, (size, end) in zip(positions, pairs, strict=True)}
        return found

    def with_entry(self, entry: Entry) -> Iterator[tuple[str, Member, tuple[int, ...]]]:
        """Yield the chunks that have an entry: the name of the array, the array and the position."""
        wanted = np.array(entry, np.uint32)
        for name in self.members:
            for member in self.states(name):
                for position in np.argwhere((member.entries == wanted).all(-1)).tolist():
                    yield name, member, tuple(position)


# --- reading --------------------------------------------------------------------------------------


def remedy(root: zarr.Group) -> str:
    """Say what to do with a store that is not as it was written."""
    if RECORDING in root.attrs:
        how = "if it was changed on purpose, `deadtok verify --write-manifest --overwrite` accepts that"
        return f"{_RESTORE}; {how}"
    return f"{_RESTORE}, or write the results again with --overwrite" if RESULTS in root.attrs else _RESTORE


def load(root: zarr.Group) -> Manifest | None:
    """Read the manifest of a store; None if it has none.

    Raises
    ------
    DamagedStoreError
        If it is damaged, or missing although the store says that it has one.
    InputError
        If it has a newer format.
    """
    where = location.address_of(root)
    data = chunk_entries.read_key(root.store, KEY)
    if data is None and FLAG in root.attrs:
        raise DamagedStoreError(f"{where}: its manifest, {KEY}, is missing: {remedy(root)}")
    found = None if data is None else _from_bytes(data, where, remedy(root))
    _remember(location.address_of(root.store), found)
    return found


def digest_at(place: str | Path) -> str | None:
    """Return the digest of the manifest of a store; None if it has none."""
    data = location.read(place, KEY)
    return None if data is None else blake3(data).hexdigest(length=8)


def check_chunk(array: zarr.Array[Any], position: tuple[int, ...], size: int, end: bytes) -> None:
    """Compare a chunk that is about to be read with the manifest of its store, if that has one.

    Raises
    ------
    WrongChunkError
        If it is not the chunk that was written there.
    """
    check_entry(array, position, chunk_entries.entry_of(size, end))


def check_entry(array: zarr.Array[Any], position: tuple[int, ...], found: Entry) -> None:
    """Compare an entry that was read with the manifest of its store; see `check_chunk`."""
    if not _is_expected(array, position, found):
        forget(array.store)  # the store may have been changed since its manifest was read
        if not _is_expected(array, position, found):
            raise WrongChunkError(found)


def lists(array: zarr.Array[Any]) -> bool:
    """Return whether the manifest of an array's store lists its chunks."""
    manifest = cached(array.store)
    return manifest is not None and bool(manifest.states(array.path))


def forget(store: Any) -> None:
    """Read the manifest of a store again when it is next needed."""
    with _cache_lock:
        _cache.pop(location.address_of(store), None)


_cache: dict[str, Manifest | None] = {}
_cache_lock = threading.Lock()


def _is_expected(array: zarr.Array[Any], position: tuple[int, ...], found: Entry) -> bool:
    manifest = cached(array.store)
    states = () if manifest is None else manifest.states(array.path)
    return not states or any(state.entry(position) == found for state in states)


def cached(store: Any) -> Manifest | None:
    """Return the manifest of a store, read once in each process; None if it has none or has a damaged one."""
    if isinstance(store, MemoryStore):
        return None
    address = location.address_of(store)
    if address not in _cache:
        try:
            data = chunk_entries.read_key(store, KEY)
            found = None if data is None else _from_bytes(data, address)
        except (DamagedStoreError, InputError):  # whoever opened the store was told
            found = None
        _remember(address, found)
        return found
    return _cache.get(address)


def _remember(address: str, found: Manifest | None) -> None:
    with _cache_lock:
        if len(_cache) >= _MOST_CACHED:
            _cache.clear()
        _cache[address] = found


# --- the parts of a manifest ----------------------------------------------------------------------


def facts_of(array: zarr.Array[Any]) -> dict[str, Any]:
    """Return what the manifest says of an array besides its attributes and chunks."""
    metadata: Any = array.metadata
    return {
        "shape": list(array.shape),
        "dtype": metadata.data_type.to_json(zarr_format=3),
        "dims": [d or "" for d in metadata.dimension_names or ()],
        "chunks": list(array.chunks),
        "shards": None if array.shards is None else list(array.shards),
        "codecs": [_codec_text(codec) for codec in metadata.codecs],
    }


def of_groups(groups: Iterable[zarr.Group]) -> dict[str, Any]:
    """Return the attributes of groups inside the root group, by ``GROUP/NAME``."""
    return {f"{group.path}/{name}": value for group in groups for name, value in group.attrs.items()}


def changed_attributes(written: Mapping[str, str], attributes: Mapping[str, Any]) -> list[str]:
    """List the attributes that are not as they were written; others may be added, unless analyses read them."""
    changed = [n for n, digest in written.items() if n not in attributes or _digest(attributes[n]) != digest]
    return changed + [n for n in attributes if n in _DECISIVE and n not in written]


def _codec_text(codec: Any) -> str:
    """Return what of a codec decides which values are read."""
    if isinstance(codec, BytesCodec):
        return f"bytes {byte_order(codec)}".rstrip()
    if isinstance(codec, TransposeCodec):
        return f"transpose {list(codec.order)}"
    if inner := getattr(codec, "codecs", None):
        return f"sharding {[_codec_text(c) for c in inner]}"
    return str(codec.to_dict()["name"])


def digests(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the attributes that are compared."""
    return {name: _digest(value) for name, value in attributes.items() if name not in _LEFT_OUT}


def _digest(value: Any) -> str:
    return blake3(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest(length=8)


def to_text(manifest: Manifest) -> str:
    """Return a manifest as JSON."""
    members = {name: [_state_to_json(s) for s in states] for name, states in manifest.members.items()}
    content = {"version": VERSION, "attributes": dict(manifest.attributes), "members": members}
    return json.dumps(content, sort_keys=True)


def _state_to_json(state: Member | None) -> dict[str, Any] | None:
    if state is None:
        return None
    entries = base64.b64encode(state.entries.astype("<u4").tobytes()).decode()
    grid = list(state.entries.shape[:-1])
    return {**state.facts, "attributes": dict(state.attributes), "grid": grid, "entries": entries}


def _from_bytes(data: bytes, where: str, advice: str = _RESTORE) -> Manifest:
    try:
        content = json.loads(decompress(data)[8:])
        if str(content["version"]).split(".")[0] != VERSION.split(".")[0]:
            found = shortened(content["version"])
            raise InputError(f"{where}: its manifest has the format {found}: update deadtok_xr")
        members = {name: tuple(map(_state_from_json, states)) for name, states in content["members"].items()}
        return Manifest(dict(content["attributes"]), members)
    except InputError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedStoreError(f"{where}: its manifest, {KEY}, is damaged: {advice}") from error


def _state_from_json(state: dict[str, Any] | None) -> Member | None:
    if state is None:
        return None
    entries = np.frombuffer(base64.b64decode(state["entries"]), "<u4").reshape(*state["grid"], 2)
    facts = {k: v for k, v in state.items() if k not in ("attributes", "grid", "entries")}
    return Member(facts, dict(state["attributes"]), entries)
