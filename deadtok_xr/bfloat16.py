"""The number formats of recordings, and the only file that knows their bits.

Weights that were trained in bfloat16 sit on a grid: the representable numbers. This module measures on
that grid, for bfloat16 itself and for the two other formats that recordings are stored in. Everything
works element by element. NumPy arrays give NumPy arrays, Dask arrays give lazy Dask arrays, and xarray's arrays give
labelled arrays, lazy where theirs are: `ulp(rec.W)`.

A *grid* is named by the format: ``"bfloat16"``, ``"float16"`` or ``"float32"``. Values may be held in the
format itself or, exactly, in float32. The grid of a labelled array is its attribute `precision`, that of any other
array is its own dtype, unless it is named.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from deadtok_xr.errors import InputError, OffGridError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Grid:
    """A binary floating-point format: sign, ``exponent_bits``, ``mantissa_bits`` (without the leading one)."""

    name: str
    dtype: np.dtype[Any]
    exponent_bits: int
    mantissa_bits: int

    @property
    def width(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def bits_dtype(self) -> np.dtype[Any]:
        return np.dtype(f"u{self.width // 8}")

    @property
    def ulp_offset(self) -> int:
        """ULP = 2^(max(E, 1) - ulp_offset), E the exponent field."""
        return self.bias + self.mantissa_bits

    @property
    def max_exponent(self) -> int:
        """The exponent field of infinities and NaNs."""
        return 2**self.exponent_bits - 1


GRIDS = {
    "bfloat16": Grid("bfloat16", BFLOAT16, 8, 7),
    "float16": Grid("float16", np.dtype(np.float16), 5, 10),
    "float32": Grid("float32", np.dtype(np.float32), 8, 23),
}


def get_grid(name: str) -> Grid:
    """Return the grid of a name.

    Raises
    ------
    InputError
        For an unknown name; the message lists the known ones.
    """
    try:
        return GRIDS[name]
    except KeyError:
        raise InputError(f"unknown number format {name!r}: choose one of {', '.join(GRIDS)}") from None


def grid_of(x: NDArray[Any], grid: str | None = None) -> Grid:
    """Return the grid of a name, or of the array's own dtype without one."""
    return get_grid(x.dtype.name if grid is None else grid)


F = TypeVar("F", bound=Callable[..., Any])


def _for_all_arrays(func: F) -> F:
    """Let a function of NumPy arrays, the last argument of which is the grid, also take Dask's and xarray's arrays."""
    *names, grid_name = func.__code__.co_varnames[: func.__code__.co_argcount]
    default = (func.__defaults__ or (None,))[-1]

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = {grid_name: default, **dict(zip((*names, grid_name), args, strict=False)), **kwargs}
        arrays = [given.get(name) for name in names]
        labelled = [x for x in arrays if hasattr(x, "dims")]
        if not labelled and not any(hasattr(x, "dask") for x in arrays):
            return func(*args, **kwargs)
        if not labelled:
            return _blockwise(func, given[grid_name], *arrays)
        import xarray as xr

        grid = _precision(labelled, given[grid_name])
        return xr.apply_ufunc(functools.partial(_blockwise, func, grid), *arrays, dask="allowed", keep_attrs=False)

    return wrapper  # type: ignore[return-value]


def _blockwise(func: Callable[..., Any], grid: str | None, *arrays: Any) -> Any:
    """Apply a function to NumPy arrays, or lazily to each block of Dask arrays."""
    arrays = tuple(x if hasattr(x, "ndim") else np.asarray(x) for x in arrays)
    if not any(hasattr(x, "dask") for x in arrays):
        return func(*arrays, grid)
    import dask.array as da

    largest = max(arrays, key=lambda x: x.ndim)
    dtype = func(*(np.zeros(1, x.dtype) for x in arrays), grid).dtype
    meta = getattr(largest, "_meta", np.empty((0,) * largest.ndim)).astype(dtype)
    pairs = [part for x in arrays for part in (x, tuple(reversed(range(x.ndim))))]
    return da.blockwise(func, tuple(reversed(range(largest.ndim))), *pairs, grid, None, dtype=dtype, meta=meta)


def _precision(arrays: list[Any], grid: str | None) -> str | None:
    """Return the grid of labelled arrays: as named, or their attribute `precision`, or that of their dtype."""
    if grid is not None:
        return grid
    found = {x.attrs.get("precision", "" if x.dtype == np.float32 else x.dtype.name) for x in arrays}
    if len(found) > 1:
        raise InputError(f"the arrays have the precisions {', '.join(sorted(map(repr, found)))}: name one with grid=")
    name = str(found.pop())
    if name not in GRIDS:
        raise InputError(
            f"the array has {f'the precision {name!r}' if name else 'no attribute precision, as computed values'}, so "
            "its grid is not known: name the number format with grid='bfloat16', 'float16' or 'float32'"
        )
    return name


@_for_all_arrays
def to_bits(x: ArrayLike, grid: str | None = None) -> NDArray[Any]:
    """Return the bit patterns of values on a grid.

    Parameters
    ----------
    x
        Values in the grid's dtype, or held in float32.
    grid
        The format; that of the dtype by default.

    Returns
    -------
    NDArray[Any]
        uint16 or uint32 of the same shape; -0.0 keeps its sign bit, NaNs of 16-bit arrays their payload.

    Raises
    ------
    OffGridError
        If a value is not representable in the format; this function never rounds.
    """
    x = np.asarray(x)
    g = grid_of(x, grid)
    if x.dtype == g.dtype:
        return np.ascontiguousarray(x).view(g.bits_dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaNs make numpy warn
        rounded = x.astype(g.dtype)
        lost = ~((rounded.astype(x.dtype) == x) | np.isnan(x))
    if lost.any():
        raise OffGridError(
            f"{int(lost.sum())} of {x.size} values are not on the {g.name} grid (the first is "
            f"{float(x[lost].flat[0])!r}); measure recorded values, not derived ones"
        )
    return rounded.view(g.bits_dtype)


def from_bits(bits: ArrayLike, grid: str = "bfloat16") -> NDArray[np.float32]:
    """Return the float32 values of bit patterns (every value of the three formats is exact in float32).

    Examples
    --------
    >>> from_bits(np.array([0x3F80, 0xC000], "u2")).tolist()
    [1.0, -2.0]
    """
    g = get_grid(grid)
    return decode(np.ascontiguousarray(bits, dtype=g.bits_dtype).view(g.dtype))


def decode(x: ArrayLike) -> NDArray[np.float32]:
    """Convert values of any of the three formats to float32, exactly."""
    with np.errstate(invalid="ignore"):  # signalling NaNs make numpy warn
        return np.asarray(x).astype(np.float32)


@_for_all_arrays
def exponent(x: ArrayLike, grid: str | None = None) -> NDArray[np.int32]:
    """Return the exponent field E of each value: 0 for zeros and subnormals, all ones for NaN and infinity."""
    x = np.asarray(x)
    g = grid_of(x, grid)
    return ((to_bits(x, g.name) >> g.mantissa_bits) & g.max_exponent).astype(np.int32)


@_for_all_arrays
def ulp(x: ArrayLike, grid: str | None = None) -> NDArray[np.float64]:
    """Compute the gap from ``|x|`` to the next larger representable number (unit in the last place).

    ULP(x) = 2^(max(E, 1) - 134) for bfloat16, 2^(max(E, 1) - 25) for float16 and
    2^(max(E, 1) - 150) for float32, E being the exponent field; zeros and subnormals included.

    Returns
    -------
    NDArray[np.float64]
        float64 of the same shape (2^-133 is a float32 subnormal, which some devices flush to zero); NaN for NaN and
        infinity.

    Examples
    --------
    >>> float(ulp(np.float32(1.0), "bfloat16"))
    0.0078125
    """
    x = np.asarray(x)
    g = grid_of(x, grid)
    e = exponent(x, g.name)
    gap = np.ldexp(1.0, np.maximum(e, 1) - g.ulp_offset)
    return np.where(e == g.max_exponent, np.nan, gap)


@_for_all_arrays
def ordinal(x: ArrayLike, grid: str | None = None) -> NDArray[np.int64]:
    """Return the position of each value on the grid, counted from zero: monotone, one apart for neighbours.

    The bits for positive values, minus the bits without their sign for negative ones, so that -0 and
    +0 are both 0. NaN patterns get positions beyond infinity's: mask them where they may occur.
    """
    x = np.asarray(x)
    g = grid_of(x, grid)
    bits = to_bits(x, g.name).astype(np.int64)
    sign = np.int64(1) << (g.width - 1)
    return np.where(bits & sign, -(bits & (sign - 1)), bits)


@_for_all_arrays
def ordinal_distance(after: ArrayLike, before: ArrayLike, grid: str | None = None) -> NDArray[np.int64]:
    """Count the representable steps from one value to another, signed."""
    return ordinal(after, grid) - ordinal(before, grid)


@_for_all_arrays
def lattice_step(after: ArrayLike, before: ArrayLike, grid: str | None = None) -> NDArray[np.float64]:
    """Compute the lattice displacement ΔW' = (after - before) / ULP(before), signed, in float64.

    It is fractional (0.5) when a value moves inward from a power of two, where the gap halves, and
    reaches 1e37 when a value leaves zero; float32 would overflow there.
    """
    after, before = np.asarray(after), np.asarray(before)
    grid_of(before, grid)
    with np.errstate(invalid="ignore"):
        return (after.astype(np.float64) - before.astype(np.float64)) / ulp(before, grid)


@_for_all_arrays
def lattice_coordinate(x: ArrayLike, grid: str | None = None) -> NDArray[np.float64]:
    """Compute the lattice coordinate U = x / ULP(x), signed: ±(2^m + mantissa) for normal numbers of m mantissa bits.

    Coordinates can only be compared within one exponent: at the next power of two they jump back from 2^(m+1) - 1 to
    2^m. For distances use `ordinal`, which ascends across exponents and through zero.

    Examples
    --------
    >>> lattice_coordinate(np.array([0.5, -0.25, 0.125], "f4"), "bfloat16").tolist()
    [128.0, -128.0, 128.0]
    """
    x = np.asarray(x)
    with np.errstate(invalid="ignore"):
        return x.astype(np.float64) / ulp(x, grid)


@_for_all_arrays
def on_grid(x: ArrayLike, grid: str = "bfloat16") -> NDArray[np.bool_]:
    """Return which values the format represents exactly; NaN and infinity count as representable."""
    x = np.asarray(x)
    with np.errstate(over="ignore", invalid="ignore"):
        back = x.astype(get_grid(grid).dtype).astype(np.float64)
        x = x.astype(np.float64)
    return np.asarray((back == x) | np.isnan(x))
