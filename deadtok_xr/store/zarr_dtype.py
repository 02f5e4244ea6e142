"""The registered Zarr data type `bfloat16`, for zarr-python.

`bfloat16` is a data type of the zarr-extensions registry; TensorStore and others read and write it, but
zarr-python 3.1 does not know it yet. zarr finds this module by an entry point: it never loads the group for data types
(`zarr.data_type`), but it loads `zarr.buffer` before it parses any metadata. The package therefore has an entry point
there too, and looking up its object (`RegisteringBuffer`) registers the type. Importing this module registers nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeGuard

import ml_dtypes
import numpy as np
from zarr.dtype import ZDType, data_type_registry

try:
    from zarr.errors import DataTypeValidationError  # type: ignore[attr-defined, unused-ignore]
except ImportError:  # zarr 3.1
    from zarr.dtype import DataTypeValidationError  # type: ignore[no-redef, unused-ignore]

_NAME: Literal["bfloat16"] = "bfloat16"
_DTYPE = np.dtype(ml_dtypes.bfloat16)
_SPECIAL = {"NaN": 0x7FC0, "Infinity": 0x7F80, "-Infinity": 0xFF80}


def _endianness_mixins() -> tuple[type, type]:
    # zarr checks isinstance of these two, which no public module exports
    from zarr.core.dtype.common import HasEndianness, HasItemSize

    return HasEndianness, HasItemSize


_HasEndianness, _HasItemSize = _endianness_mixins()


@dataclass(frozen=True, kw_only=True)
class BFloat16(ZDType[Any, Any], _HasEndianness, _HasItemSize):  # type: ignore[misc, valid-type]
    """bfloat16, little endian, with the fill values of the registered extension."""

    dtype_cls = type(_DTYPE)
    _zarr_v3_name: ClassVar[Literal["bfloat16"]] = _NAME

    @property
    def item_size(self) -> int:
        return 2

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        if dtype == _DTYPE:
            return cls()
        raise DataTypeValidationError(f"expected the dtype bfloat16, found {dtype!r}")

    def to_native_dtype(self) -> Any:
        if self.endianness != "little":
            raise NotImplementedError(
                "a big-endian bfloat16 array: numpy has no such type; rewrite it with the `bytes` "
                'codec\'s configuration {"endian": "little"}'
            )
        return _DTYPE

    @classmethod
    def _check_json_v2(cls, data: Any) -> TypeGuard[Any]:
        return False  # the registered type exists only for Zarr v3

    @classmethod
    def _check_json_v3(cls, data: Any) -> TypeGuard[Any]:
        return data == _NAME or (isinstance(data, Mapping) and data.get("name") == _NAME)

    @classmethod
    def _from_json_v2(cls, data: Any) -> Self:
        raise DataTypeValidationError("bfloat16 is a data type of Zarr v3; this array is Zarr v2")

    @classmethod
    def _from_json_v3(cls, data: Any) -> Self:
        if cls._check_json_v3(data):
            return cls()
        raise DataTypeValidationError(f"expected the data type {_NAME!r}, found {data!r}")

    def to_json(self, zarr_format: Literal[2, 3]) -> Any:
        if zarr_format == 2:
            raise ValueError("bfloat16 is a data type of Zarr v3: write with zarr_format=3")
        return _NAME

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, (int, float, np.floating, np.integer, ml_dtypes.bfloat16))

    def cast_scalar(self, data: object) -> Any:
        if self._check_scalar(data):
            return _DTYPE.type(data)
        raise TypeError(f"{data!r} ({type(data).__name__}) cannot be a bfloat16 scalar")

    def default_scalar(self) -> Any:
        return _DTYPE.type(0)

    def from_json_scalar(self, data: Any, *, zarr_format: Literal[2, 3]) -> Any:
        if isinstance(data, str):
            bits = _SPECIAL[data] if data in _SPECIAL else int(data, 16)
            return np.array(bits, "<u2").view(_DTYPE)[()]
        return self.cast_scalar(data)

    def to_json_scalar(self, data: object, *, zarr_format: Literal[2, 3]) -> Any:
        value = self.cast_scalar(data)
        bits = int(np.asarray(value, _DTYPE).view(np.uint16))
        for name, pattern in _SPECIAL.items():
            if bits == pattern:
                return name
        return f"0x{bits:04x}" if np.isnan(value) else float(value)


def register() -> None:
    """Register the type with zarr, unless it is registered already or zarr has its own."""
    if _NAME not in data_type_registry.contents:
        data_type_registry.register(_NAME, BFloat16)


def __getattr__(name: str) -> Any:
    if name == "RegisteringBuffer":  # the entry point `zarr.buffer`: zarr's own buffer, unchanged
        register()
        from zarr.core.buffer.cpu import Buffer

        return Buffer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
