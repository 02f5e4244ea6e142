"""Which tokens are dead, and what they say, told to a store that was written before anybody knew.

Data stay where they are. Each coordinate is made whole beside the store and put into place by one rename, so
that whoever opens the store, or kills this, meets the store as it was or as it is to be. The attributes that
name the coordinates for other readers follow; to repeat a labelling that was broken off completes it.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from deadtok_xr.errors import InputError
from deadtok_xr.store import group as stores
from deadtok_xr.store.token_ids import read_ids
from deadtok_xr.store.tokenizer import token_texts

_DTYPES = {"dead": bool, "token_text": "string"}


def label(
    store: str | Path,
    *,
    dead_ids: str | Path | ArrayLike | None = None,
    token_text: str | Path | Mapping[str, int] | Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Add the coordinates `dead` and `token_text` to a store, or replace them, without touching its data.

    Dead tokens that are named when a store is written lie together on disk; these stay where they are.
    ``open_recording(store, tokens="dead")`` gives the same values either way, but reads every chunk that holds
    one of them. Where that is too slow, convert the source again with ``dead_ids=``.

    Parameters
    ----------
    store
        A complete store on this machine.
    dead_ids
        The ids of the dead tokens, or a file as `deadtok_xr.store.token_ids.read_ids` takes them; all others are
        live. An empty list says that every token is live.
    token_text
        A ``tokenizer.json``, another file, a list or a dict, as `deadtok_xr.store.tokenizer.token_texts` takes them.
        A token without text gets "".
    overwrite
        Replace a coordinate that says something else. Without it, one that says the same is no error.

    Returns
    -------
    Path
        ``store``.

    Raises
    ------
    InputError
        If neither is given; for ids that are negative, repeated, or not in the store; where the store says
        something else already, unless ``overwrite``.
    OSError
        If the store cannot be written; it then opens as before.

    Warns
    -----
    UserWarning
        How many tokens have no text.
    """
    if dead_ids is None and token_text is None:
        raise InputError(f"{store}: nothing to add: name dead_ids= (--dead-ids), token_text= (--token-text) or both")
    if "://" in str(store):
        raise InputError(f"{store} is an address: label a store on this machine, and copy it there")
    group, _ = stores.open_group(store)
    tokens = stores.read_small(group, "token")
    wanted: dict[str, NDArray[Any]] = {}
    if token_text is not None:
        wanted["token_text"] = _texts(tokens, token_text, store)
    if dead_ids is not None:
        wanted["dead"] = _mask(tokens, dead_ids, store)
    changed = {name: values for name, values in wanted.items() if _differs(group, name, values, store, overwrite)}
    path = Path(store).resolve()
    with _beside(path) as folder:
        _put(folder, path, changed)
        _name_coordinates(folder, path, wanted)
    if missing := int((wanted["token_text"] == "").sum()) if token_text is not None else 0:
        warnings.warn(f'{store}: {missing} of {len(tokens)} tokens have no text, and get ""', UserWarning, stacklevel=2)
    return Path(store)


def _mask(tokens: NDArray[np.int64], given: str | Path | ArrayLike, path: str | Path) -> NDArray[np.bool_]:
    """Which rows of the store are dead, once every id is known to be one of its tokens."""
    name = str(given) if isinstance(given, (str, Path)) else "dead_ids="
    ids = np.asarray(read_ids(given) if isinstance(given, (str, Path)) else given)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise InputError(f"{name} is {ids.dtype} {ids.shape}; needed: a list of integer token ids")
    if ids.size and ids.min() < 0:
        raise InputError(f"{name} holds the token id {ids.min()}; needed: 0 or more")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise InputError(f"{name} repeats the token id {unique[counts > 1][0]}; needed: each id once")
    strange = np.setdiff1d(ids, tokens)
    if strange.size:
        raise InputError(
            f"{name} holds the token id {strange[0]}" + (f" and {strange.size - 1} more" if strange.size > 1 else "")
            + f", which {path} does not have; its {len(tokens)} tokens are within {tokens.min()}..{tokens.max()}: "
            "leave out the ids that it does not have"
        )  # fmt: skip
    return np.isin(tokens, ids)


def _texts(tokens: NDArray[np.int64], given: Any, path: str | Path) -> NDArray[Any]:
    texts = token_texts(given)
    found = np.array([texts.get(int(token), "") for token in tokens], dtype=object)
    if not any(found):
        name = given if isinstance(given, (str, Path)) else "token_text="
        raise InputError(f"{name} has no text for any token of {path}; needed: the tokenizer of the run")
    return found


def _differs(group: zarr.Group, name: str, values: NDArray[Any], path: str | Path, overwrite: bool) -> bool:
    """Whether a coordinate has to be written; refused where that would replace another one."""
    if name not in group:
        return True
    different = np.flatnonzero(stores.read_small(group, name).astype(object) != values.astype(object))
    if different.size and not overwrite:
        token = stores.read_small(group, "token")[different[0]]
        raise InputError(
            f"{path} has the coordinate {name!r} already, and it differs for {different.size} of {len(values)} tokens, "
            f"the first being {token}: leave it as it is, or say --overwrite (overwrite=True) to replace it"
        )
    return bool(different.size)


def _put(folder: Path, path: Path, coordinates: Mapping[str, NDArray[Any]]) -> None:
    group = zarr.create_group(str(folder))
    for name, values in coordinates.items():
        stores.create_coordinate(group, name, values, ("token",), dtype=_DTYPES[name])
    for name in coordinates:
        _flush(folder / name)
        _move_in(folder / name, path / name)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder beside the store, on the same disk and seen by no reader; one left by a kill is cleared away."""
    folder = path.with_name(f".{path.name}.label")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(folder: Path) -> None:
    for file in (p for p in folder.rglob("*") if p.is_file()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _move_in(new: Path, there: Path) -> None:
    """Put an array into the store by one rename, or, over one of another layout, by two."""
    if not there.exists():
        new.rename(there)
        return
    if _same_layout(new, there):
        (chunk,) = (p for p in (new / "c").rglob("*") if p.is_file())
        chunk.replace(there / chunk.relative_to(new))
        return
    old = new.with_name(f"old-{new.name}")
    there.rename(old)
    try:
        new.rename(there)
    except OSError:
        old.rename(there)
        raise


def _same_layout(new: Path, there: Path) -> bool:
    """Whether two arrays differ by the content of a single chunk alone."""
    one, other = (_metadata(folder) for folder in (new, there))
    if {**one, "attributes": None} != {**other, "attributes": None}:
        return False
    files = [sorted(p.relative_to(f) for p in (f / "c").rglob("*") if p.is_file()) for f in (new, there)]
    return files[0] == files[1] and len(files[0]) == 1


def _name_coordinates(room: Path, path: Path, wanted: Mapping[str, Any]) -> None:
    """Tell other readers, by the attribute `coordinates` of each variable along `token`, and note the date."""
    there = [name for name in _DTYPES if (path / name / "zarr.json").exists()]
    for folder in sorted(p.parent for p in path.glob("*/zarr.json")):
        metadata = _metadata(folder)
        if folder.name not in stores.schema.COORDINATES and "token" in (metadata.get("dimension_names") or ()):
            named = metadata["attributes"].get("coordinates", "").split()
            metadata["attributes"]["coordinates"] = " ".join(dict.fromkeys([*named, *there]))
            _replace(room, folder, metadata)
    root = _metadata(path)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    root["attributes"]["labelled"] = {**root["attributes"].get("labelled", {}), **dict.fromkeys(wanted, now)}
    _replace(room, path, root)


def _metadata(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "zarr.json").read_text(encoding="utf-8")))


def _replace(room: Path, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write an object's metadata so that a reader finds the old or the new, whole."""
    new = room / "zarr.json.new"
    with new.open("w", encoding="utf-8") as file:
        json.dump(metadata, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / "zarr.json")
