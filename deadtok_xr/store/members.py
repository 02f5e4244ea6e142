"""The arrays of a store, opened and checked: every damage of their metadata is one sentence.

All that opens a store comes through here: recordings, results, samples, and what a Monitor wrote. Nothing but metadata
and the list of keys is read. A sentence names the store, the member, what was found and needed, and what to do.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import ObjectStore

from deadtok_xr import schema
from deadtok_xr.errors import DamagedStoreError, InputError, MissingFileError, StorageError
from deadtok_xr.store import location
from deadtok_xr.store.arrays import dimensions, file_shape
from deadtok_xr.store.chunk_bytes import LARGEST_RATIO
from deadtok_xr.store.chunk_reader import SMALL
from deadtok_xr.text import escaped, shortened

REMEDY = "restore this file from a copy, and check the store with `deadtok verify`"
_METADATA = "zarr.json"
_KINDS = {"run": "iuTO", "step": "iu", "token": "iu", "dead": "b", "token_text": "TO", "source_row": "iu"}
"""The kinds of numpy's dtypes that a coordinate may have. `count` may also be a variable of the user."""
_CHUNK = re.compile(r"c$|c[/.]\d|\d+([/.]\d+)*$")
"""How the name of a chunk begins, within its array."""
Arrays = dict[str, "zarr.Array[Any]"]


def open_root(path: str | Path, expected: str, *, mode: Any = "r") -> zarr.Group:
    """Open the root group of a store.

    Parameters
    ----------
    path
        A folder or an address.
    expected
        What a user should name instead of something else, for messages.
    mode
        ``"r"``, or ``"r+"`` to write.

    Raises
    ------
    MissingFileError
        If there is nothing at ``path``.
    InputError
        If it is no Zarr v3 group.
    DamagedStoreError
        If its metadata are damaged.
    """
    if not location.exists(path):
        what = "object or bucket" if location.is_address(path) else "file or folder"
        raise MissingFileError(f"{path}: no such {what}; expected {expected}")
    try:
        with location.translate_errors(path):
            group = zarr.open_group(location.zarr_store(path), mode=mode, zarr_format=3)
        _check_attributes(group)
        return group
    except StorageError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise
        if _is_damaged_group(path):
            raise _metadata_error(path, "", error, "a Zarr v3 group") from error
        raise InputError(f"{path} is not a Zarr v3 group ({type(error).__name__}); expected {expected}") from error


def open_subgroup(path: str | Path, root: zarr.Group, name: str) -> zarr.Group:
    """Open a group inside a store.

    Raises
    ------
    DamagedStoreError
        If it is missing, or its metadata are damaged.
    """
    try:
        group = root[name]
        if not isinstance(group, zarr.Group):
            raise TypeError("they are those of an array")
        _check_attributes(group)
    except (StorageError, PermissionError):
        raise
    except Exception as error:
        raise _metadata_error(path, name, error, "a Zarr v3 group") from error
    return group


def names_in(path: str | Path, group: zarr.Group, attribute: str) -> list[str]:
    """Return an attribute of a group that lists names of its members.

    Raises
    ------
    DamagedStoreError
        If it is no list of different names.
    """
    found: Any = group.attrs.get(attribute)
    if isinstance(found, list) and all(isinstance(name, str) for name in found) and len(set(found)) == len(found):
        return found
    raise attribute_error(path, group, attribute, "a list of different names")


def is_complete(path: str | Path, group: zarr.Group) -> bool:
    """Return whether the writing of a store has finished.

    Raises
    ------
    DamagedStoreError
        If its attribute `complete` is neither true nor false.
    """
    found = group.attrs.get("complete", False)
    if not isinstance(found, bool):
        raise attribute_error(path, group, "complete", "true or false")
    return found


def check_format(path: str | Path, found: Any, known: str, what: str = "the format", also: str = "") -> None:
    """Raise an InputError if a store has a format with another major version than the one that is known."""
    major = known.split(".")[0]
    if str(found).split(".")[0] != major:
        raise InputError(
            f"{path} has {what} {shortened(found)}; this version of deadtok_xr reads {major}.x: update deadtok_xr{also}"
        )


def attribute_error(path: str | Path, node: zarr.Group | zarr.Array[Any], name: str, needed: str) -> DamagedStoreError:
    """Return the error for an attribute whose value cannot be used."""
    file = f"{node.path}/{_METADATA}" if node.path else _METADATA
    found = repr(node.attrs[name]) if name in node.attrs else "missing"
    return DamagedStoreError(
        f"{path}: the attribute {name!r} in {escaped(file)} is {shortened(found)}; expected {needed}: {REMEDY}"
    )


def _is_damaged_group(path: str | Path) -> bool:
    """Return whether the metadata of a root exist, and are not those of an array."""
    content = location.read(path, _METADATA)
    if content is None or _metadata_fault(path, _METADATA):
        return content is not None
    return bool(json.loads(content).get("node_type") != "array")


def open_members(
    group: zarr.Group, path: str | Path, keys: Mapping[str, int], *, growing: bool = False,
    may_lack: Collection[str] = (),
) -> Arrays:  # fmt: skip
    """Open the arrays of a group, and check their metadata one by one and against each other.

    Parameters
    ----------
    group
        The group of a recording, or of one analysis in results.
    path
        The store, as the user named it.
    keys
        All keys of the store, from the root, with their sizes, as `location.key_sizes` returns them.
    growing
        Whether lengths along `step` may differ, as while a store is written.
    may_lack
        Coordinates that may be missing although variables name them, because they are about to be written.

    Raises
    ------
    DamagedStoreError
        If the metadata of an array cannot be read, or disagree with those of others.
    """
    inside = f"{group.path}/" if group.path else ""
    has_chunks: dict[str, bool] = {}
    for key in keys:
        name, _, rest = key.removeprefix(inside).partition("/")
        if key.startswith(inside) and rest:
            has_chunks[name] = has_chunks.get(name, False) or bool(_CHUNK.match(rest))
    names = [n for n, chunks in sorted(has_chunks.items()) if chunks or f"{inside}{n}/{_METADATA}" in keys]
    open_one = _opener(group, path, has_chunks)
    if isinstance(group.store, ObjectStore):
        with ThreadPoolExecutor(8) as pool:
            opened = [*pool.map(open_one, names)]
    else:
        opened = [*map(open_one, names)]
    arrays = {name: array for name, array in zip(names, opened, strict=True) if array is not None}
    for name, array in arrays.items():
        _check_array(path, inside + name, array, keys)
    _check_sizes(path, inside, arrays, growing)
    _check_named_coordinates(path, inside, arrays, may_lack)
    return arrays


def check_recording(path: str | Path, arrays: Mapping[str, zarr.Array[Any]]) -> None:
    """Check the names, dimensions and data types of a recording against the schema.

    Raises
    ------
    DamagedStoreError
        If `step` or `token` is missing, or the schema has other dimensions or data types.
    """
    for name in ("step", "token"):
        if name not in arrays:
            raise lost(path, name)
    for name, array in arrays.items():
        dims, dtype = schema.without_run(dimensions(array)), array.dtype
        if name in schema.VARIABLES:
            spec = schema.VARIABLES[name]
            _expect(path, name, "the dimensions", dims == spec.dims, dimensions(array), spec.dims)
            _expect(path, name, "the dtype", dtype.name in spec.dtypes, dtype.name, " or ".join(spec.dtypes))
        elif name in _KINDS:
            own = name if name in ("step", "run") else "token"
            _expect(path, name, "the dimensions", dimensions(array) == (own,), dimensions(array), (own,))
            _expect(path, name, "the dtype", dtype.kind in _KINDS[name], dtype.name, "that of a " + name)


def lost(path: str | Path, name: str, why: str = "") -> DamagedStoreError:
    """Return the error for an array that does not exist."""
    return DamagedStoreError(
        f"{path}: {shortened(name)!r} is missing{why}: restore the folder {shortened(name)} from a copy, and check the "
        "store with `deadtok verify`"
    )


def _opener(
    group: zarr.Group, path: str | Path, has_chunks: Mapping[str, bool]
) -> Callable[[str], zarr.Array[Any] | None]:
    def open_one(name: str) -> zarr.Array[Any] | None:
        at = f"{group.path}/{name}" if group.path else name
        try:
            node = group[name]
            if not isinstance(node, zarr.Array) and not has_chunks[name] and name not in schema.VARIABLES:
                return None  # a group inside, such as the motion index
            if not isinstance(node, zarr.Array):
                raise TypeError("they are those of a group")
            _check_attributes(node)
        except StorageError:
            raise
        except Exception as error:
            if isinstance(error, PermissionError):
                raise
            if not has_chunks[name] and name not in schema.VARIABLES and name not in schema.COORDINATES:
                return None  # nothing that this package wrote
            raise _metadata_error(path, at, error, "a Zarr v3 array") from error
        return node

    return open_one


def _check_attributes(node: zarr.Group | zarr.Array[Any]) -> None:
    """Refuse attributes that are no JSON object.

    zarr 3.4 takes an empty list as no attributes; so where there are none, the file is read.
    """
    found: Any = node.metadata.attributes
    if not found:
        content = location.read_key(node.store, f"{node.path}/{_METADATA}".lstrip("/"))
        found = json.loads(content or b"{}").get("attributes")
    if found is not None and not isinstance(found, dict):
        raise TypeError("its attributes are no JSON object")


def _metadata_error(path: str | Path, name: str, error: Exception, needed: str) -> DamagedStoreError:
    file = f"{name}/{_METADATA}" if name else _METADATA
    found = _metadata_fault(path, file) or f"cannot be used ({shortened(error)})"
    return DamagedStoreError(f"{path}: the metadata in {escaped(file)} {found}; expected those of {needed}: {REMEDY}")


def _metadata_fault(path: str | Path, file: str) -> str:
    """Say what is wrong with a file of metadata as JSON; empty if it holds an object."""
    content = location.read(path, file)
    if content is None:
        return "are missing"
    try:
        found = json.loads(content)
    except RecursionError:
        return "are nested too deeply"
    except ValueError as error:
        return f"are not JSON ({shortened(error)})" if content.strip() else "are empty"
    return "" if isinstance(found, dict) else f"are a JSON {type(found).__name__}, not an object"


def _check_array(path: str | Path, name: str, array: zarr.Array[Any], keys: Mapping[str, int]) -> None:
    dims = dimensions(array)
    named = len(dims) == array.ndim and all(dims) and len(set(dims)) == len(dims)
    _expect(path, name, "the dimension names", named, dims, f"{array.ndim} different names")
    _expect(path, name, "the chunks", all(c > 0 for c in file_shape(array)), file_shape(array), "positive sizes")
    _check_plausible(path, name, array, keys)


def _check_plausible(path: str | Path, name: str, array: zarr.Array[Any], keys: Mapping[str, int]) -> None:
    """Refuse an array whose first chunk cannot hold what its metadata say, before memory is taken for it."""
    nbytes = math.prod(array.chunks) * max(1, array.dtype.itemsize)
    key = f"{array.path}/{array.metadata.encode_chunk_key((0,) * array.ndim)}"
    if nbytes <= SMALL or key not in keys:
        return
    size = keys[key]
    if size < 0:
        root = getattr(array.store, "root", None)
        if root is None:
            return
        size = (Path(root) / key).stat().st_size
    if nbytes > LARGEST_RATIO * size:
        raise DamagedStoreError(
            f"{path}: the metadata in {escaped(name)}/{_METADATA} say chunks of "
            f"{' x '.join(map(str, array.chunks))} values, {nbytes:,} bytes, but the first one is stored in "
            f"{size:,} bytes; expected the chunks that were written: {REMEDY}"
        )


def _check_sizes(path: str | Path, inside: str, arrays: Mapping[str, zarr.Array[Any]], growing: bool) -> None:
    """Check that all arrays have the same size along a dimension."""
    first: dict[str, tuple[int, str]] = {}
    # a coordinate first: it says how long a dimension is
    for name in sorted(arrays, key=lambda name: (name not in schema.COORDINATES, name)):
        for dim, n in zip(dimensions(arrays[name]), arrays[name].shape, strict=True):
            size, other = first.setdefault(dim, (n, name))
            if n != size and not (growing and dim == "step"):
                raise DamagedStoreError(
                    f"{path}: {inside + name!r} has the size {n} along {escaped(dim)}, and {inside + other!r} {size}; "
                    "expected the same size: restore the one that is wrong from a copy, "
                    "and check the store with `deadtok verify`"
                )


def _check_named_coordinates(
    path: str | Path, inside: str, arrays: Mapping[str, zarr.Array[Any]], may_lack: Collection[str]
) -> None:
    """Check that the coordinates exist that the attribute `coordinates` of variables names."""
    for name, array in arrays.items():
        named = array.attrs.get("coordinates", "")
        for coordinate in named.split() if isinstance(named, str) else ():
            if coordinate not in arrays and coordinate not in may_lack:
                raise lost(path, inside + coordinate, f", which {inside + name!r} names as its coordinate")


def _expect(path: str | Path, name: str, what: str, right: bool, found: Any, needed: Any) -> None:
    if not right:
        found, needed = (_listed(x) if isinstance(x, tuple) else x for x in (found, needed))
        raise DamagedStoreError(
            f"{path}: the metadata in {escaped(name)}/{_METADATA} have {what} {shortened(found)}; expected {needed}: "
            f"{REMEDY}"
        )


def _listed(parts: Sequence[Any] | Iterable[Any]) -> str:
    return f"({', '.join(str(part) or '?' for part in parts)})"
