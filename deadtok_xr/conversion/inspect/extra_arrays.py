"""What becomes of the arrays of a source that are neither matrices of the recording nor its rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deadtok_xr import schema
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.inspect.axes import Axes, first_row, full_dims
from deadtok_xr.conversion.inspect.keys import Layout
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.plan import PlannedVariable
from deadtok_xr.conversion.readers.source import TEXTS, Entry, Source, whole
from deadtok_xr.errors import InputError

ATTRIBUTE_SIZE = 64
_LONGEST_NAME = 200
_STATE = re.compile(r"(^|\.)state\.\d+\.")
KEPT_BYTES = 16 * 2**20
"""An array without a step axis is kept up to this size; beyond it only by name."""


@dataclass
class Rest:
    """Further variables, settings of the run, and what is left out and why."""

    variables: list[PlannedVariable] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def others(
    source: Source, layout: Layout, options: Options, keys: Mapping[str, str], axes: Axes, used: set[str | None],
    *, is_model: bool,
) -> Rest:  # fmt: skip
    """Everything but matrices and rows.

    Raises
    ------
    InputError
        If a key that the caller names is not there, or an array's axes can be read in two ways.
    """
    _check_named(source, options)
    names = {key: name for name, key in keys.items()}
    rest = Rest()
    rounded = []
    parameters: list[str] = []
    for key, entry in source.entries.items():
        if key in used:
            continue
        if _is_setting(entry) and key not in options.dims and not (is_model and _STATE.search(key)):
            rest.settings[key] = plain(whole(source, key))
            rounded += [key] if entry.dtype == np.float32 else []
        elif is_model and "param_groups." in key and (value := _constant(source, key, entry)) is not None:
            rest.settings[key] = value
        elif is_model and key not in names and key not in options.include and _is_parameter(key, entry, axes):
            parameters.append(key)
        else:
            _place(source, layout, options, names.get(key), key, entry, axes, rest)
    if parameters:
        some = ", ".join(parameters[:8]) + (", ..." if len(parameters) > 8 else "")
        rest.dropped[f"{len(parameters)} other tensors"] = f"of the model and its optimizer: {some}; --include KEY"
    if rounded:
        rest.attributes["hyperparameters_float32"] = rounded
        rest.notes.append(f"stored as float32, and read as its exact value: {', '.join(rounded)}")
    return rest


def _constant(source: Source, key: str, entry: Entry) -> Any:
    """The value that a setting has in every checkpoint; None if it changes, or is no number per step."""
    if entry.dtype is None or len(entry.shape) != 1 or not entry.shape[0]:
        return None
    values = whole(source, key)
    return plain(values[0]) if (values == values[0]).all() else None


def _check_named(source: Source, options: Options) -> None:
    for option, keys in (("include", options.include), ("drop", options.drop), ("dims", tuple(options.dims))):
        for key in keys:
            if key not in source.entries and options.recipe is None:
                raise InputError(f"{source.path} has no {key!r}, named by {option}; leave it out")


def _is_setting(entry: Entry) -> bool:
    return entry.dtype is not None and not entry.shape


def _is_parameter(key: str, entry: Entry, axes: Axes) -> bool:
    """Whether a tensor of a checkpoint is one of the model's or of the optimizer's states, and no number per step."""
    return len(entry.shape) > (0 if axes.static else 1) or bool(_STATE.search(key))


def _place(
    source: Source, layout: Layout, options: Options, name: str | None, key: str, entry: Entry, axes: Axes, rest: Rest
) -> None:
    """Make an array a variable or a setting, or leave it out."""
    why = _refusal(source, options, key, entry, axes)
    dims = None if why else _dims(source, layout, options, name, key, entry, axes)
    if why or dims is None:
        if not why and _is_short(entry) and key not in options.include and name is None:
            rest.settings[key] = plain(whole(source, key))
        else:
            rest.dropped[key] = why or _without_axis(entry, axes)
        return
    variable = _variable(layout, options, name, key, entry, axes, dims)
    taken = {*schema.COORDINATES, *(v.name for v in rest.variables)}
    if variable.name in taken or not _is_plain(variable.name):
        rest.dropped[key] = f"{entry}: a variable cannot have the name {variable.name!r}, or another has it"
        return
    if "step" in dims and not variable.static:
        check_written(source, variable.name, key, variable.first)
    rest.variables.append(variable)


def _refusal(source: Source, options: Options, key: str, entry: Entry, axes: Axes) -> str:
    if entry.dtype is None or entry.dtype.kind not in "biufV":
        return f"{entry}: recordings hold numbers"
    if 0 in entry.shape:
        return f"{entry}: it is empty"
    return ""


def _dims(
    source: Source, layout: Layout, options: Options, name: str | None, key: str, entry: Entry, axes: Axes
) -> tuple[str, ...] | None:
    """The dimensions of an array; None if no axis of it is one of the recording's."""
    if key in options.dims:
        return _given_dims(source, key, entry, options.dims[key], axes)
    lead, rest = axes.lead(), entry.shape
    dims: tuple[str, ...] = ()
    if lead and rest[: len(lead)] == lead:
        dims, rest = ("run",), rest[1:]
    known = name or (key if key in schema.VARIABLES else "") or _transition(layout, key)
    has_steps = bool(rest) and first_row(rest[0], axes.n_steps, known, entry.dtype) is not None
    if has_steps and not axes.static and key not in layout.static:
        _check_clear(source, name, key, rest, axes)
        dims, rest = (*dims, "step"), rest[1:]
    dims, rest = _token_axes(layout, key, dims, rest, axes)
    if not dims and not (entry.nbytes <= KEPT_BYTES or key in options.include):
        return None
    if not dims and len(entry.shape) == 1 and _is_short(entry):
        return None  # a list of settings
    return (*dims, *(f"{_flat(key)}_{i}" for i in range(len(dims), len(entry.shape))))


def _transition(layout: Layout, key: str) -> str:
    return "grad" if key in layout.transitions else ""  # as one short as a gradient may be


def _token_axes(
    layout: Layout, key: str, dims: tuple[str, ...], rest: tuple[int, ...], axes: Axes
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if rest[:2] == (axes.n_rows, axes.n_dims):
        return (*dims, "token", "dim"), rest[2:]
    alone = not dims and len(rest) == 1 and rest[0] == axes.n_rows and rest[0] > ATTRIBUTE_SIZE
    if rest[:1] == (axes.n_rows,) and (key in (*layout.per_token, *layout.static) or alone):
        return (*dims, "token"), rest[1:]
    if rest == (axes.n_dims,) and key in (*layout.per_dim, "h_mean", "p_h_dead"):
        return (*dims, "dim"), ()
    return dims, rest


def _check_clear(source: Source, name: str | None, key: str, rest: tuple[int, ...], axes: Axes) -> None:
    """Stop where an unknown list could be of the steps or of the tokens."""
    if name is None and len(rest) == 1 and rest[0] == axes.n_rows == axes.n_steps:
        raise InputError(
            f"{source.path}: {key!r} has {rest[0]} entries, as many as there are steps and tokens; say which they are "
            f"with --dims {key}=step or --dims {key}=token (dims={{{key!r}: ('step',)}})"
        )


def _given_dims(source: Source, key: str, entry: Entry, dims: tuple[str, ...], axes: Axes) -> tuple[str, ...]:
    sizes = [
        axes.size(d) if d in ("run", "step", "token", "dim") else n for d, n in zip(dims, entry.shape, strict=False)
    ]
    if len(dims) != len(entry.shape) or tuple(sizes) != entry.shape:
        raise InputError(f"{source.path}: {key!r} is {entry}; its dimensions cannot be ({', '.join(dims)})")
    return dims


def _variable(
    layout: Layout, options: Options, name: str | None, key: str, entry: Entry, axes: Axes, dims: tuple[str, ...]
) -> PlannedVariable:
    """A variable that is no matrix of the schema."""
    assert entry.dtype is not None
    spec = schema.VARIABLES.get(name) if name else None
    dtype = BFLOAT16 if spec and entry.dtype == np.uint16 else entry.dtype
    attributes: dict[str, Any] = {"source_key": key, "source_dtype": entry.type_name}
    known = name or (key if key in schema.VARIABLES else "") or _transition(layout, key)
    at = dims.index("step") if "step" in dims else None
    first = (first_row(entry.shape[at], axes.n_steps, known, entry.dtype) or 0) if at is not None else 0
    shape = tuple(axes.n_steps if d == "step" else n for d, n in zip(dims, entry.shape, strict=True))
    if spec is not None and (dtype.name not in spec.dtypes or dims != full_dims(spec.dims, axes)):
        name = f"{name}_{entry.type_name}"  # exact, under a name that does not promise what the schema does
        attributes |= spec.attributes()
    elif key in layout.transitions:
        attributes["valid_from"] = 1
    for given in {name, key} & {*options.notes}:
        attributes["note"] = options.notes[given or key]
    return PlannedVariable(name or _flat(key), key, entry, dims, shape, dtype, (), first, 0, False, attributes)


def _flat(key: str) -> str:
    return key.replace("/", ".")


def _is_plain(name: str) -> bool:
    """Whether a source's own name can be a variable's: a plain folder name."""
    fits = len(name.encode()) <= _LONGEST_NAME and name != "zarr.json"
    return fits and bool(re.fullmatch(r"\w[\w. -]*", name)) and not name.startswith("__")


def _is_short(entry: Entry) -> bool:
    return len(entry.shape) == 1 and entry.shape[0] <= ATTRIBUTE_SIZE


def _without_axis(entry: Entry, axes: Axes) -> str:
    if entry.shape and not axes.static and entry.shape[0] == axes.n_steps - 1:
        return f"{entry}: one entry less than the {axes.n_steps} steps, and nothing says which is missing"
    large = "; --include KEY keeps it" if entry.nbytes > KEPT_BYTES else ""
    return f"{entry}: its first axis is not the {axes.n_steps} steps{large}"


def check_written(source: Source, name: str, key: str, first: int) -> None:
    """Refuse steps that nobody wrote: they read as zeros, like tokens frozen at the origin.

    At step 0 only weights must be there: moments and gradients are 0 before the first update.
    """
    since = 0 if name in ("W", "E") else 1
    holes = [hole for hole in source.unwritten(key) if hole.stop - 1 + first >= since]
    if holes:
        raise InputError(
            f"{source.path}: variable {key!r} was never written at positions {holes[0].start}.."
            f"{holes[-1].stop - 1} of {source.entries[key].shape[0]} ({len(holes)} gap(s)); needed: "
            "all of them; copy the file again, or save the part that was recorded"
        )


def plain_attributes(source: Source) -> dict[str, Any]:
    """A source's own attributes, those that are small; of a file that this package exported, its settings."""
    attributes = source.attributes
    if "deadtok_xr" in attributes and "hyperparameters" in attributes:
        try:
            return dict(json.loads(attributes["hyperparameters"]))
        except (ValueError, TypeError):
            pass
    return dict(_plain_items(attributes))


def _plain_items(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in attributes.items():
        size = np.size(value)  # None for HDF5's empty attributes
        if size is not None and size <= ATTRIBUTE_SIZE and name != TEXTS:
            yield name, plain(value)


def plain(value: Any) -> Any:
    """A setting as JSON can hold it: exact numbers; what is no JSON number, and anything else, as text."""
    value = value.astype(np.float64) if getattr(value, "dtype", None) == BFLOAT16 else value
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    exact = value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
    return value if exact else str(value)
