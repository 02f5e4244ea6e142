"""Describe the matrices of a recording, (step, token, dim): weights, gradients and moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deadtok_xr import schema
from deadtok_xr.bfloat16 import BFLOAT16, GRIDS
from deadtok_xr.conversion.inspect.arrangement import check_axis_names, standard_order
from deadtok_xr.conversion.inspect.axes import first_row, full_dims
from deadtok_xr.conversion.inspect.context import Context
from deadtok_xr.conversion.inspect.extra_arrays import check_written
from deadtok_xr.conversion.inspect.keys import numeric_entry, weights_entry
from deadtok_xr.conversion.inspect.proofs import all_on_bfloat16_grid
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.plan import PlannedVariable, Progress
from deadtok_xr.conversion.readers.source import Entry, Source
from deadtok_xr.errors import InputError


def describe_matrices(context: Context, progress: Progress | None) -> list[PlannedVariable]:
    """Describe every matrix, without chunks; read float32 and float16 values to determine their number format.

    Raises
    ------
    InputError
        If a matrix does not have the shape or the dtype of its variable.
    """
    matrices = [_describe(context, name, key) for name, key in context.keys.items() if _is_matrix(name)]
    _check_bits(context.source, matrices, context.options)
    return _with_proven_dtypes(context, matrices, progress)


def _is_matrix(name: str) -> bool:
    return name in schema.VARIABLES and schema.VARIABLES[name].dims == schema.MATRIX


def _describe(context: Context, name: str, key: str) -> PlannedVariable:
    source, axes, options = context.source, context.axes, context.options
    entry = weights_entry(source, key) if name in ("W", "E", "delta") else numeric_entry(source, key)
    spec = schema.VARIABLES[name]
    dtype = stored_dtype(entry, options)
    if dtype.name not in spec.dtypes:
        raise InputError(
            f"{source.path}: variable {key!r} has the dtype {entry.type_name}; expected: "
            f"{', '.join(spec.dtypes)}, or uint16 that holds their bits; save it again in one of them, such as with "
            ".astype('float32')"
        )
    dims = full_dims(spec.dims, axes)
    first = _first_position(context, name, key, dtype)
    check_written(source, name, key, first)
    given = options.dims.get(key)
    if given is not None and standard_order(given) not in (dims, *([dims[1:]] if axes.static else [])):
        raise InputError(
            f"{source.path}: {key!r} {entry} cannot have the dimensions ({', '.join(given)}); expected: "
            f"{', '.join(dims[1:] if axes.static else dims)}, in the order of the file"
        )
    check_axis_names(source, options, key)
    attributes: dict[str, Any] = {"source_key": key, "source_dtype": entry.type_name}
    if name == "delta":
        attributes["precision"] = "none"
    if name in options.precision:
        attributes["precision"] = options.precision[name]
    if name in options.notes:
        attributes["note"] = options.notes[name]
    if first and spec.valid_from == 0:
        attributes["valid_from"] = int(context.steps.labels[first])
    shape = tuple(axes.size(d) for d in dims)
    return PlannedVariable(name, key, entry, dims, shape, dtype, (), first, 0, axes.static, attributes)


def _first_position(context: Context, name: str, key: str, dtype: np.dtype[Any]) -> int:
    """Return the step position of the first state of a matrix, after checking its shape."""
    entry, axes, lead = context.source.entries[key], context.axes, context.axes.lead()
    n = axes.n_steps + context.steps.skip
    n_rows = entry.shape[len(lead)] if len(entry.shape) > len(lead) else 0
    first = 0 if axes.static else first_row(n_rows, n, name, dtype)
    if entry.late and entry.shape[0] == n - entry.late:
        first = entry.late
    needed = (*lead, *(() if axes.static else (n - (first or 0),)), axes.n_rows, axes.n_dims)
    if first is None or entry.shape != needed:
        raise InputError(f"{context.source.path}: variable {key!r} has the shape {entry.shape}; expected: {needed}")
    return first


def _check_bits(source: Source, matrices: Sequence[PlannedVariable], options: Options) -> None:
    if options.bits != "bfloat16" and not any(v.entry.dtype in (np.uint16, np.int16) for v in matrices):
        found = ", ".join(f"{v.key!r} {v.entry.type_name}" for v in matrices)
        raise InputError(f"{source.path} holds no bits as uint16 ({found}): leave out --bits (bits=)")


def stored_dtype(entry: Entry, options: Options) -> np.dtype[Any]:
    """Return the dtype in which a matrix is stored, before its values are checked."""
    assert entry.dtype is not None
    return GRIDS[options.bits].dtype if entry.dtype in (np.uint16, np.int16) else entry.dtype


def _with_proven_dtypes(
    context: Context, matrices: Sequence[PlannedVariable], progress: Progress | None
) -> list[PlannedVariable]:
    """Check which of the float32 and float16 matrices are copies of bfloat16."""
    wide = [v for v in matrices if v.entry.dtype in (np.float32, np.float16)]
    total = sum(v.entry.nbytes for v in wide)
    checked = _counter(total, progress)
    proven = {
        v.name: _as_proven(v, all_on_bfloat16_grid(context.source, v.key, checked), context.options) for v in wide
    }
    if progress is not None and wide:
        progress(total, total)
    return [proven.get(v.name, v) for v in matrices]


def _counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    """Return a function that adds bytes and reports their sum."""
    done = 0

    def add(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(min(done, total), total)

    return add


def _as_proven(v: PlannedVariable, on_grid: bool, options: Options) -> PlannedVariable:
    attributes = dict(v.attributes)
    if v.name in ("W", "E") and "precision" not in options.precision:
        own = "float16" if v.entry.dtype == np.float16 else "none"
        attributes["precision"] = options.precision.get(v.name, "bfloat16" if on_grid else own)
    narrow = on_grid and v.entry.dtype == np.float32 and not options.keep_dtype
    return replace(v, dtype=BFLOAT16 if narrow else v.dtype, attributes=attributes)


def precision_warnings(variables: Sequence[PlannedVariable]) -> list[str]:
    """Say what the values proved, for weights whose dtype does not show the number format that they were trained in."""
    weights = [v for v in variables if v.name in ("W", "E") and v.entry.dtype in (np.float32, np.float16)]
    return [text for v in weights if (text := _precision_warning(v))]


def _precision_warning(v: PlannedVariable) -> str | None:
    precision = v.attributes["precision"]
    if precision == "bfloat16" and v.dtype != BFLOAT16:
        lossy = (
            "; float16 has less precision below 6e-5, and no values below 6e-8: such weights were rounded when the "
            "file was written"
            if v.dtype == np.float16
            else ""
        )
        return (
            f"{v.name!r} is {v.dtype}, but every value is on the bfloat16 grid: it is treated as a copy of "
            f"bfloat16 weights, and analysed on that grid{lossy}"
        )
    if precision == "none":
        return (
            f"{v.name!r} is float32 and not on the bfloat16 grid: its lattice is unknown, and analyses that need one "
            "will ask for a precision"
        )
    return None
