"""Read token ids from the files in which people keep them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import InputError, MissingFileError
from deadtok_xr.store.hdf5_values import check_inside

MASKS = ("dead_mask", "untrained_mask")
LISTS = ("dead_ids", "dead_token_ids", "dead_indices", "untrained_indices")


def read_ids(path: str | Path) -> list[int]:
    """Read the token ids in a file, in the order of the file.

    Parameters
    ----------
    path
        ``.npy`` with integers or one bool per id; ``.npz``, ``.h5`` or ``.safetensors`` with one or more of the
        arrays `dead_mask`, `untrained_mask` (one bool per id), `dead_ids`, `dead_token_ids`, `dead_indices`,
        `untrained_indices` (integers); or text with integers separated by spaces, commas or lines, such as a JSON list.

    Raises
    ------
    InputError
        If the file is missing, cannot be read, or its arrays name different tokens.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file" if not path.exists() else f"{path} is not a regular file")
    expected = "expected integers, or a .npy, .npz, .h5 or .safetensors file"
    try:
        if path.suffix == ".npy":
            return _ids(path, path.name, np.load(path, allow_pickle=False))
        if path.suffix in _READERS:
            return _read_arrays(path, dict(_READERS[path.suffix](path)))
        text = path.read_text()
        if not text.strip():
            raise InputError(f"{path} is empty; {expected} (an empty list is written [])")
        return [int(word) for word in re.split(r"[\s,\[\]]+", text) if word]
    except InputError:
        raise
    except ImportError:
        raise
    except Exception as error:  # each format raises other errors
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} cannot be read as token ids ({reason}); {expected}") from error


def _read_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> list[int]:
    if not arrays:
        raise InputError(f"{path} does not say which tokens are dead; expected one of {', '.join((*MASKS, *LISTS))}")
    found = {name: _ids(path, name, values) for name, values in arrays.items()}
    first = next(iter(found))
    for name, ids in found.items():
        differ = set(ids) ^ set(found[first])
        if differ:
            raise InputError(
                f"{path}: {first!r} and {name!r} contradict each other, first at token {min(differ)}; expected the "
                "same tokens: write a file with only the right one"
            )
    return next((ids for name, ids in found.items() if name in LISTS), found[first])


def _ids(path: Path, name: str, values: NDArray[Any]) -> list[int]:
    if values.dtype == bool or name in MASKS:
        if values.ndim != 1 or not np.isin(values, (0, 1)).all():
            raise InputError(f"{path}: {name!r} is {values.dtype} {values.shape}; expected one bool per token id")
        return [int(i) for i in np.flatnonzero(values)]
    if values.size and values.dtype.kind not in "iu":
        raise InputError(f"{path}: {name!r} holds {values.dtype}; expected integer token ids")
    if values.ndim != 1:
        raise InputError(f"{path}: {name!r} has the shape {values.shape}; expected a list, (token,)")
    return [int(i) for i in values]


def _from_npz(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    with np.load(path, allow_pickle=False) as file:
        yield from ((name, file[name]) for name in (*MASKS, *LISTS) if name in file)


def _from_hdf5(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    import h5py

    with h5py.File(path, "r") as file:
        for name in (*MASKS, *LISTS):
            if name in file:
                check_inside(path, file[name])
                yield name, file[name][...]


def _from_safetensors(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        present = set(file.keys())
        yield from ((name, file.get_tensor(name)) for name in (*MASKS, *LISTS) if name in present)


_READERS = {".npz": _from_npz, ".h5": _from_hdf5, ".hdf5": _from_hdf5, ".safetensors": _from_safetensors}
