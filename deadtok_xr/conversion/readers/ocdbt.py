"""Orbax checkpoints in TensorStore's database (OCDBT) as a source: a Zarr array for each parameter.

`tensorstore`, which is optional, reads the database and the arrays. Its file driver refuses keys that lead out of the
folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.readers.source import Entry, Source, describe_part, dtype_of, unreadable_type
from deadtok_xr.errors import InputError

_MANIFEST = "manifest.ocdbt"
_PARTS = "ocdbt.process_"
_DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}
_MAX_ARRAYS = 100_000
_ADVICE = "restore it where it was made, with orbax.checkpoint, and save the embedding with np.savez(FILE, W=...)"


def database_in(folder: Path) -> Path | None:
    """Return the database of a checkpoint: the folder, or the only one in it, such as ``default`` or ``items``."""
    if (folder / _MANIFEST).is_file():
        return folder
    found = [item for item in sorted(folder.iterdir()) if (item / _MANIFEST).is_file()]
    found = [item for item in found if not item.name.startswith(_PARTS)]
    return found[0] if len(found) == 1 else None


class OcdbtSource(Source):
    """The arrays of a checkpoint by their dotted names."""

    format = "Orbax (OCDBT)"

    def __init__(self, path: Path, database: Path) -> None:
        self.path, self._database = path, database
        try:
            import tensorstore
        except ImportError:
            raise InputError(
                f"{database} is an Orbax checkpoint (OCDBT), which is not read without tensorstore: pip install "
                f'"deadtok_xr[orbax]"; or {_ADVICE}'
            ) from None
        self._tensorstore: Any = tensorstore
        self._drivers = dict(self._listed())
        self._opened: dict[str, Any] = {}
        self.attributes: Mapping[str, Any] = {}
        self.entries = {name: self._entry(name) for name in self._drivers}

    def _kvstore(self, name: str = "") -> dict[str, Any]:
        base = {"driver": "file", "path": f"{self._database.absolute()}/"}
        return {"driver": "ocdbt", "base": base, **({"path": f"{name}/"} if name else {})}

    def _listed(self) -> Iterator[tuple[str, str]]:
        """Yield the arrays of the database, and the driver that reads each."""
        try:
            keys = self._tensorstore.KvStore.open(self._kvstore()).result().list().result()
        except Exception as error:  # of several kinds, for a damaged database
            raise self._damaged(error) from error
        for key in sorted(keys)[: 100 * _MAX_ARRAYS]:
            name, _, leaf = key.decode("utf-8", "replace").rpartition("/")
            if name and leaf in _DRIVERS:
                yield name, _DRIVERS[leaf]

    def _damaged(self, error: Exception, what: str = "") -> InputError:
        reason = " ".join(str(error).split())[:200]
        return InputError(
            f"{self._database} is an Orbax checkpoint (OCDBT), of which {what or 'the list of arrays'} is not read "
            f"({reason}): {_ADVICE}"
        )

    def _entry(self, name: str) -> Entry:
        spec = {"driver": self._drivers[name], "kvstore": self._kvstore(name)}
        try:
            array = self._tensorstore.open(spec, open=True, read=True).result()
        except Exception as error:
            raise self._damaged(error, repr(name)) from error
        self._opened[name] = array
        kind, shape = array.dtype.name, tuple(int(n) for n in array.shape)
        if kind == "bfloat16":
            return Entry(shape, BFLOAT16, kind)
        dtype = np.dtype(kind) if kind in np.sctypeDict else None
        if dtype is None or dtype.kind not in "biuf":
            return Entry(shape, None, unreadable_type(kind))
        return Entry(shape, dtype, kind)

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        dtype = dtype_of(self, name)
        try:
            values = np.asarray(self._opened[name][tuple(where)].read().result() if where else
                                self._opened[name].read().result())  # fmt: skip
        except Exception as error:
            raise self._damaged(error, describe_part(name, where)) from error
        return values if values.dtype == dtype else values.view(dtype)

    def files(self) -> list[Path]:
        return sorted(item for item in self._database.rglob("*") if item.is_file())

    def unwritten(self, name: str) -> list[range]:
        return []

    def close(self) -> None:
        self._opened = {}
