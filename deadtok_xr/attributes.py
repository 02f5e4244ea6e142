"""Attributes that NetCDF can hold: nested values become JSON text, which can still be read like the values.

NetCDF has numbers, text and lists of numbers as attributes. Recordings and results also have dicts, lists of dicts,
flags and missing values. `portable` replaces these, so that a dataset with such attributes can be saved by
`to_netcdf` and `to_zarr`; `plain` is its inverse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from numbers import Number
from typing import Any, Self

import numpy as np


class JsonText(str):
    """JSON text that can also be used like the dict, list, flag or None that it describes.

    It is text for whoever saves it, and equal to both the text and the value. ``text["key"]``, ``text.items()``,
    ``"key" in text``, iteration, ``len`` and ``bool`` are those of the value.

    Attributes
    ----------
    value
        The value.
    """

    def __new__(cls, text: str) -> Self:
        _teach_h5netcdf()
        return super().__new__(cls, text)

    @cached_property
    def value(self) -> Any:
        return json.loads(str(self))

    def __getitem__(self, key: Any) -> Any:
        return self.value[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)

    def __contains__(self, item: object) -> bool:
        return item in self.value

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) if isinstance(other, str) else self.value == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def __getattr__(self, name: str) -> Any:
        if name in ("get", "keys", "values", "items"):
            return getattr(self.value, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def portable(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return attributes in which everything that NetCDF cannot hold is `JsonText`."""
    return {str(key): value if _is_portable(value) else _json_text(value) for key, value in attrs.items()}


@cache
def _teach_h5netcdf() -> None:
    """Let xarray write `JsonText` through h5netcdf as well.

    h5py asks whether the type of a value is `str`, so it refuses subclasses. xarray's stores have a method that
    encodes one attribute; in the one of h5netcdf, `JsonText` now becomes plain text there.
    """
    from xarray.backends.h5netcdf_ import H5NetCDFStore

    encode = H5NetCDFStore.encode_attribute

    def encode_attribute(self: H5NetCDFStore, value: Any) -> Any:
        return encode(self, str(value) if isinstance(value, JsonText) else value)

    H5NetCDFStore.encode_attribute = encode_attribute  # type: ignore[assignment, method-assign]


def plain(value: Any) -> Any:
    """Return attributes, or one of them, as values of JSON: the inverse of `portable`."""
    if isinstance(value, JsonText):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def read(attrs: Mapping[Any, Any], name: str) -> Any:
    """Return an attribute as values of JSON, also where its text was read back from a file; None if it is missing."""
    value = plain(attrs.get(name))
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _is_portable(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(v, Number) and not isinstance(v, bool) for v in value)
    return isinstance(value, (str, bytes, Number, np.generic, np.ndarray))


def _json_text(value: Any) -> JsonText:
    return JsonText(json.dumps(plain(value), ensure_ascii=False, default=str))


def leaves_of(attrs: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the value of each entry of nested mappings."""
    for key, value in attrs.items():
        if isinstance(value, Mapping):
            yield from leaves_of(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value
