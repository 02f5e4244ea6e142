"""Add the coordinates `dead`, `token_text` and `count` to a store that was written without them.

The data are not touched. Each coordinate is written to a folder next to the store and moved into it by one rename, so
that a reader sees the store either without it or with all of it, even if the process is killed. Meanwhile the manifest
of the store lists both states. The attributes that name the coordinates for other readers are updated last; repeating
an interrupted call completes it.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from deadtok_xr import schema
from deadtok_xr.errors import InputError
from deadtok_xr.store import arrays, location, manifest, manifest_write
from deadtok_xr.store.occurrences import count_occurrences
from deadtok_xr.store.open import open_arrays
from deadtok_xr.store.token_ids import read_ids
from deadtok_xr.store.tokenizer import token_texts

_DTYPES = {"dead": bool, "token_text": "string", "count": np.int64}


def label(
    store: str | Path,
    *,
    dead_ids: str | Path | ArrayLike | None = None,
    token_text: str | Path | Mapping[str, int] | Sequence[str] | None = None,
    corpus: str | Path | Sequence[str | Path | NDArray[Any]] | None = None,
    tokenizer: str | Path | None = None,
    corpus_dtype: str = "uint16",
    overwrite: bool = False,
) -> Path:
    """Add the coordinates `dead`, `token_text` and `count` to a store, or replace them, without touching its data.

    Dead tokens that are known when a store is written lie together on disk; those that are added here stay where they
    are. ``open_recording(store, tokens="dead")`` returns the same values either way, but here it reads every chunk that
    holds a dead token. If that is too slow, convert the source again with ``dead_ids=``.

    Parameters
    ----------
    store
        A complete store on this machine.
    dead_ids
        The ids of the dead tokens, or a file that `deadtok_xr.store.token_ids.read_ids` reads; all other tokens are
        live. An empty list means that every token is live.
    token_text
        A ``tokenizer.json``, another file, a list or a dict, as `deadtok_xr.store.tokenizer.token_texts` accepts.
        A token without text gets "".
    corpus
        The training data: files, or arrays, of token ids, or text; see `deadtok_xr.store.occurrences`. Adds `count`,
        how often each token occurs, and `dead`, whether it never does.
    tokenizer
        The ``tokenizer.json`` that encodes text of the corpus.
    corpus_dtype
        The numbers in ``.bin`` files without a header: ``"uint16"``, ``"uint32"`` or ``"int32"``.
    overwrite
        Replace a coordinate with other values. A coordinate that has the same values already is never an error.

    Returns
    -------
    Path
        ``store``.

    Raises
    ------
    InputError
        If nothing is given, or both ``dead_ids`` and ``corpus``; for ids that are negative, repeated, or not in the
        store; for a corpus that cannot be read, or has tokens that a store of a whole vocabulary lacks; if the
        coordinate exists with other values, unless ``overwrite``.
    OSError
        If the store cannot be written; it then still opens as before.

    Warns
    -----
    UserWarning
        If some tokens have no text; it says how many.
    """
    if dead_ids is None and token_text is None and corpus is None:
        raise InputError(
            f"{store}: nothing to add: name dead_ids= (--dead-ids), token_text= (--token-text) or corpus= (--corpus)"
        )
    if dead_ids is not None and corpus is not None:
        raise InputError(
            f"{store}: dead_ids= (--dead-ids) and corpus= (--corpus) both say which tokens are dead: give one"
        )
    if location.is_address(store):
        raise InputError(f"{store} is an address: label a copy of the store on this machine, and upload that")
    group, _, _ = open_arrays(store, may_lack=_DTYPES)
    tokens = arrays.read_coordinate(group, "token")
    wanted: dict[str, NDArray[Any]] = {}
    if token_text is not None:
        wanted["token_text"] = _texts(tokens, token_text, store)
    if dead_ids is not None:
        wanted["dead"] = _mask(tokens, dead_ids, store)
    if corpus is not None:
        wanted["count"] = _counts(tokens, corpus, tokenizer, corpus_dtype, store)
        wanted["dead"] = wanted["count"] == 0
    changed = {name: values for name, values in wanted.items() if _differs(group, name, values, store, overwrite)}
    path = Path(store).resolve()
    with _temporary_folder(path) as folder:
        _write_coordinates(folder, path, changed)
        _update_attributes(folder, path, wanted)
    _settle_manifest(path)
    if missing := int((wanted["token_text"] == "").sum()) if token_text is not None else 0:
        text = f'{store}: {missing} of {len(tokens)} tokens have no text: they are labelled ""'
        warnings.warn(text, UserWarning, stacklevel=2)
    return Path(store)


def _mask(tokens: NDArray[np.int64], dead_ids: str | Path | ArrayLike, path: str | Path) -> NDArray[np.bool_]:
    """Return which rows of the store are dead, after checking that every id is one of its tokens."""
    name = str(dead_ids) if isinstance(dead_ids, (str, Path)) else "dead_ids="
    ids = np.asarray(read_ids(dead_ids) if isinstance(dead_ids, (str, Path)) else dead_ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise InputError(f"{name} is {ids.dtype} {ids.shape}; expected a list of integer token ids")
    if ids.size and ids.min() < 0:
        raise InputError(f"{name} holds the token id {ids.min()}; expected 0 or more")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise InputError(f"{name} repeats the token id {unique[counts > 1][0]}; expected each id once")
    unknown = np.setdiff1d(ids, tokens)
    if unknown.size:
        raise InputError(
            f"{name} holds the token id {unknown[0]}" + (f" and {unknown.size - 1} more" if unknown.size > 1 else "")
            + f", which {path} does not have; its {len(tokens)} tokens are within {tokens.min()}..{tokens.max()}: "
            "remove these ids from the list"
        )  # fmt: skip
    return np.isin(tokens, ids)


def _counts(
    tokens: NDArray[np.int64], corpus: Any, tokenizer: str | Path | None, dtype: str, path: str | Path
) -> NDArray[np.int64]:
    """Return how often each token of the store occurs, after checking that the corpus may be that of the store."""
    files = [corpus] if isinstance(corpus, (str, Path, np.ndarray)) else list(corpus)
    counts = count_occurrences(files, tokenizer=tokenizer, dtype=dtype)
    whole = np.array_equal(np.sort(tokens), np.arange(len(tokens)))
    if whole and len(counts) > len(tokens):
        raise InputError(
            f"the corpus has the token id {len(counts) - 1}, and {path} the {len(tokens)} tokens 0 to "
            f"{len(tokens) - 1}: name the corpus of this vocabulary, and for raw numbers "
            "their dtype with corpus_dtype= (--corpus-dtype)"
        )
    found = np.zeros(max(len(counts), int(tokens.max()) + 1), np.int64)
    found[: len(counts)] = counts
    if not found[tokens].any():
        raise InputError(f"no token of {path} occurs in the corpus: name the corpus of this vocabulary")
    return found[tokens]


def _texts(tokens: NDArray[np.int64], source: Any, path: str | Path) -> NDArray[Any]:
    texts = token_texts(source)
    found = np.array([texts.get(int(token), "") for token in tokens], dtype=object)
    if not any(found):
        name = source if isinstance(source, (str, Path)) else "token_text="
        raise InputError(f"{name} has no text for any token of {path}; expected the tokenizer of the run")
    return found


def _differs(group: zarr.Group, name: str, values: NDArray[Any], path: str | Path, overwrite: bool) -> bool:
    """Return whether a coordinate must be written; raise if that would replace other values without ``overwrite``."""
    if name not in group:
        return True
    if arrays.read_coordinate(group, name).shape != values.shape:
        raise InputError(f"{path} has a variable {name!r} that is no label of tokens: rename it where it was recorded")
    different = np.flatnonzero(arrays.read_coordinate(group, name).astype(object) != values.astype(object))
    if different.size and not overwrite:
        token = arrays.read_coordinate(group, "token")[different[0]]
        raise InputError(
            f"{path} has the coordinate {name!r} already, and it differs for {different.size} of {len(values)} tokens, "
            f"the first being {token}: leave it as it is, or say --overwrite (overwrite=True) to replace it"
        )
    return bool(different.size)


def _write_coordinates(folder: Path, path: Path, coordinates: Mapping[str, NDArray[Any]]) -> None:
    group = zarr.create_group(str(folder))
    for name, values in coordinates.items():
        arrays.create_coordinate(group, name, values, ("token",), dtype=_DTYPES[name])
    _announce(path, {name: manifest_write.describe(array) for name, array in group.arrays()})
    for name in coordinates:
        location.flush_files(folder / name)
        _move_in(folder / name, path / name)


def _announce(path: Path, new: Mapping[str, manifest.Member]) -> None:
    """List in the manifest of a store, if it has one, also the coordinates that are about to be put in place."""
    root = zarr.open_group(location.zarr_store(path), mode="r+")
    listed = manifest.load(root)
    if listed is not None and new:
        both = {name: (*listed.states(name), member, None) for name, member in new.items()}
        manifest_write.put(root, replace(listed, members={**listed.members, **both}))


def _settle_manifest(path: Path) -> None:
    """List in the manifest of a store only the state that each coordinate is in."""
    root = zarr.open_group(location.zarr_store(path), mode="r+")
    listed = manifest.load(root)
    if listed is None or all(len(states) == 1 for states in listed.members.values()):
        return
    present = dict(root.arrays())
    settled = dict(listed.members)
    for name, states in listed.members.items():
        if len(states) > 1 and name in present:
            found = manifest_write.describe(present[name])
            settled[name] = tuple(s for s in states if s is not None and s.describes(found))[:1] or states
        elif len(states) > 1:
            del settled[name]
    manifest_write.put(root, replace(listed, members=settled))


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """Create a hidden folder next to the store, on the same disk; one that a killed process left is removed first."""
    folder = path.with_name(f".{path.name}.label")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_in(new: Path, target: Path) -> None:
    """Move an array into the store by one rename, or by two if it replaces an array of another layout."""
    if not target.exists():
        new.rename(target)
        return
    if _same_layout(new, target):
        (chunk,) = (p for p in (new / "c").rglob("*") if p.is_file())
        chunk.replace(target / chunk.relative_to(new))
        return
    old = new.with_name(f"old-{new.name}")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise


def _same_layout(new: Path, target: Path) -> bool:
    """Return whether two arrays have the same metadata and a single chunk, so that replacing its file is enough."""
    if {**_metadata(new), "attributes": None} != {**_metadata(target), "attributes": None}:
        return False
    files = [sorted(p.relative_to(f) for p in (f / "c").rglob("*") if p.is_file()) for f in (new, target)]
    return files[0] == files[1] and len(files[0]) == 1


def _update_attributes(folder: Path, path: Path, wanted: Mapping[str, Any]) -> None:
    """Name the coordinates in the attribute `coordinates` of each variable along `token`, and add the date."""
    present = [name for name in _DTYPES if (path / name / "zarr.json").exists()]
    for array in sorted(p.parent for p in path.glob("*/zarr.json")):
        metadata = _metadata(array)
        if array.name not in schema.COORDINATES and "token" in (metadata.get("dimension_names") or ()):
            named = metadata["attributes"].get("coordinates", "").split()
            metadata["attributes"]["coordinates"] = " ".join(dict.fromkeys([*named, *present]))
            _replace_metadata(folder, array, metadata)
    root = _metadata(path)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    root["attributes"]["labelled"] = {**root["attributes"].get("labelled", {}), **dict.fromkeys(wanted, now)}
    _replace_metadata(folder, path, root)


def _metadata(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "zarr.json").read_text(encoding="utf-8")))


def _replace_metadata(folder: Path, node: Path, metadata: Mapping[str, Any]) -> None:
    """Replace the metadata of an array or group by one rename, after the new file has reached the disk."""
    new = folder / "zarr.json.new"
    with new.open("w", encoding="utf-8") as file:
        json.dump(metadata, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.replace(node / "zarr.json")
