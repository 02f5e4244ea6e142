"""Describe the arrays of a source that are neither matrices of the recording nor lists of its tokens."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deadtok_xr import schema
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.inspect.arrangement import standard_order
from deadtok_xr.conversion.inspect.axes import Axes, first_row, full_dims
from deadtok_xr.conversion.inspect.context import Context
from deadtok_xr.conversion.inspect.models import is_of_optimizer
from deadtok_xr.conversion.inspect.proofs import are_whole
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.plan import PlannedVariable
from deadtok_xr.conversion.readers.source import TEXTS, Entry, Source, read_all
from deadtok_xr.errors import InputError

ATTRIBUTE_SIZE = 64
_LONGEST_NAME = 200
_STATE = re.compile(r"(^|\.)state\.(\d+\.|.+\.(step|exp_avg|exp_avg_sq|momentum_buffer)$)")
KEPT_BYTES = 16 * 2**20
"""Larger arrays without a step axis are kept only if an option names them."""


@dataclass
class OtherArrays:
    """What is done with the arrays that are neither matrices of the recording nor lists of its tokens.

    Attributes
    ----------
    variables
        Those that are stored as variables.
    settings, attributes
        Those that are stored as settings of the run, and further root attributes.
    dropped
        Array that is left out -> why.
    notes
        What a user should know.
    """

    variables: list[PlannedVariable] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Array:
    """An array of the source: its key, and the schema variable that it is, if any."""

    key: str
    name: str | None
    entry: Entry


def describe_extra_arrays(context: Context, used: Container[str | None]) -> OtherArrays:
    """Describe every array whose key is not in ``used``.

    Raises
    ------
    InputError
        If an option names a key that does not exist, or the axes of an array can be read in two ways.
    """
    source, options = context.source, context.options
    _check_options(source, options)
    names = {key: name for name, key in context.keys.items()}
    others = OtherArrays()
    float32_settings = []
    parameters: list[str] = []
    for key, entry in source.entries.items():
        if key in used:
            continue
        array = _Array(key, names.get(key), entry)
        is_state = context.is_model and _STATE.search(key)
        if _is_setting(entry) and key not in options.dims and not is_state:
            others.settings[key] = as_json(read_all(source, key))
            float32_settings += [key] if entry.dtype == np.float32 else []
        elif context.is_model and "param_groups." in key and (value := _constant(context, key, entry)) is not None:
            others.settings[key] = value
        elif context.is_model and _is_other_parameter(context, array):
            parameters.append(key)
        else:
            _add(context, array, others)
    if parameters:
        some = ", ".join(parameters[:8]) + (", ..." if len(parameters) > 8 else "")
        others.dropped[f"{len(parameters)} other tensors"] = f"of the model and its optimizer: {some}; --include KEY"
    if float32_settings:
        others.attributes["hyperparameters_float32"] = float32_settings
        others.notes.append(f"stored as float32, and read as its exact value: {', '.join(float32_settings)}")
    return others


def _constant(context: Context, key: str, entry: Entry) -> Any:
    """Return the number, or the short list, that a setting is in every checkpoint; None if it changes."""
    n_lead = 0 if context.axes.static else 1
    inner = entry.shape[n_lead:]
    if entry.dtype is None or len(entry.shape) not in (n_lead, n_lead + 1) or math.prod(inner) > ATTRIBUTE_SIZE:
        return None
    values = read_all(context.source, key)
    if context.axes.static:
        return as_json(values)
    return as_json(values[0]) if len(values) and (values == values[:1]).all() else None


def _check_options(source: Source, options: Options) -> None:
    for option, keys in (("include", options.include), ("drop", options.drop), ("dims", tuple(options.dims))):
        for key in keys:
            if key not in source.entries and options.recipe is None:
                raise InputError(f"{source.path} has no {key!r}, named by {option}; leave it out")


def _is_setting(entry: Entry) -> bool:
    return entry.dtype is not None and not entry.shape


def _is_other_parameter(context: Context, array: _Array) -> bool:
    """Return whether a tensor of a checkpoint is another parameter of the model or a state of its optimizer."""
    if array.name is not None or array.key in context.options.include:
        return False
    return len(array.entry.shape) > (0 if context.axes.static else 1) or bool(_STATE.search(array.key))


def _add(context: Context, array: _Array, others: OtherArrays) -> None:
    """Store an array as a variable or as a setting, or leave it out."""
    key, entry = array.key, array.entry
    why = _why_not_stored(entry)
    dims = None if why else _dims(context, array)
    if why or dims is None:
        if not why and _is_short(entry) and key not in context.options.include and array.name is None:
            others.settings[key] = as_json(read_all(context.source, key))
        else:
            others.dropped[key] = why or _why_no_step_axis(entry, context.axes)
        return
    variable = _variable(context, array, dims)
    taken = {*schema.COORDINATES, *(v.name for v in others.variables)}
    if variable.name in taken or not _is_valid_name(variable.name):
        others.dropped[key] = f"{entry}: a variable cannot have the name {variable.name!r}, or another has it"
        return
    if "step" in dims and not variable.static:
        check_written(context.source, variable.name, key, variable.first)
    others.variables.append(variable)


def _why_not_stored(entry: Entry) -> str:
    if entry.reason:
        return entry.reason
    if entry.dtype is None or entry.dtype.kind not in "biufV":
        return f"{entry}: recordings hold numbers"
    if 0 in entry.shape:
        return f"{entry}: it is empty"
    return ""


def _dims(context: Context, array: _Array) -> tuple[str, ...] | None:
    """Return the dimensions of an array; None if none of its axes is one of the recording's."""
    key, entry, axes, key_map = array.key, array.entry, context.axes, context.key_map
    if key in context.options.dims:
        return _given_dims(context, array)
    lead, remaining = axes.lead(), entry.shape
    dims: tuple[str, ...] = ()
    if lead and remaining[: len(lead)] == lead:
        dims, remaining = ("run",), remaining[1:]
    first = first_row(remaining[0], axes.n_steps, _known_name(context, array), entry.dtype) if remaining else None
    if first is not None and not axes.static and key not in key_map.static:
        _check_unambiguous(context, array, remaining)
        dims, remaining = (*dims, "step"), remaining[1:]
    dims = (*dims, *_token_dims(context, key, dims, remaining))
    if not dims and not (entry.nbytes <= KEPT_BYTES or key in context.options.include):
        return None
    if not dims and len(entry.shape) == 1 and _is_short(entry):
        return None  # a list of settings
    return (*dims, *(f"{_flat(key)}_{i}" for i in range(len(dims), len(entry.shape))))


def _known_name(context: Context, array: _Array) -> str:
    """Return the schema variable that decides at which step an array begins."""
    if array.name or array.key in schema.VARIABLES:
        return array.name or array.key
    return "grad" if array.key in context.key_map.transitions else ""  # as one short as a gradient may be


def _token_dims(context: Context, key: str, dims: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the dimensions among token and dim that the axes after the known ones are."""
    axes, key_map = context.axes, context.key_map
    if shape[:2] == (axes.n_rows, axes.n_dims):
        return ("token", "dim")
    n_settings = 1 if _is_list_of_tokens(context, key) else ATTRIBUTE_SIZE
    alone = not dims and len(shape) == 1 and shape[0] == axes.n_rows and shape[0] > n_settings
    if shape[:1] == (axes.n_rows,) and (key in (*key_map.per_token, *key_map.static) or alone):
        return ("token",)
    if shape == (axes.n_dims,) and key in (*key_map.per_dim, "h_mean", "p_h_dead"):
        return ("dim",)
    return ()


def _check_unambiguous(context: Context, array: _Array, shape: tuple[int, ...]) -> None:
    """Refuse an unknown list that could be along the steps or along the tokens."""
    key, axes = array.key, context.axes
    if array.name is None and len(shape) == 1 and shape[0] == axes.n_rows == axes.n_steps:
        raise InputError(
            f"{context.source.path}: {key!r} has {shape[0]} entries, as many as there are steps and tokens; say which "
            f"they are with --dims {key}=step (dims={{{key!r}: ('step',)}}) or --dims {key}=token "
            f"(dims={{{key!r}: ('token',)}})"
        )


def _is_list_of_tokens(context: Context, key: str) -> bool:
    """Return whether a list has a whole number, or a bool, per token: it is no setting, however short."""
    entry, axes = context.source.entries[key], context.axes
    whole = entry.dtype is not None and entry.dtype.kind in "biu"
    return whole and not is_of_optimizer(key) and entry.shape == (axes.n_rows,) and axes.n_rows != axes.n_steps


def unused_labels(context: Context, used: Container[str | None]) -> list[str]:
    """Warn of lists that can be the labels of an axis, and are not used as such because of their names."""
    warnings = []
    for key, entry in context.source.entries.items():
        one = entry.dtype is not None and entry.dtype.kind in "iuf" and len(entry.shape) == 1
        if not one or is_of_optimizer(key) or key in used or key in (*context.key_map.static, *context.options.dims):
            continue
        n_steps = context.axes.n_steps + context.steps.skip
        if entry.shape[0] == context.axes.n_rows > 1 and entry.shape[0] != n_steps and _distinct(context.source, key):
            warnings.append(
                f"{key!r} holds a different whole number for each row, and is not used as the token ids: if it is, say "
                f"--key token={key} (keys={{'token': {key!r}}}), or --token-ids FILE (token_ids=) with these numbers"
            )
        elif entry.shape[0] == n_steps > 1 and context.steps.key is None and _ascends(context.source, key):
            warnings.append(
                f"{key!r} ascends, with a whole number for each state, and is not used as the step labels: if it is, "
                f"say --key step={key} (keys={{'step': {key!r}}})"
            )
    return warnings


def _distinct(source: Source, key: str) -> bool:
    values = read_all(source, key)
    return are_whole(values) and len(np.unique(values)) == len(values) and bool((values >= 0).all())


def _ascends(source: Source, key: str) -> bool:
    values = read_all(source, key)
    return are_whole(values) and bool((np.diff(values) > 0).all())


def _given_dims(context: Context, array: _Array) -> tuple[str, ...]:
    key, entry, axes = array.key, array.entry, context.axes
    dims = standard_order(context.options.dims[key])
    sizes = [
        axes.size(d) if d in ("run", "step", "token", "dim") else n for d, n in zip(dims, entry.shape, strict=False)
    ]
    if len(dims) != len(entry.shape) or tuple(sizes) != entry.shape:
        raise InputError(f"{context.source.path}: {key!r} is {entry}; its dimensions cannot be ({', '.join(dims)})")
    return dims


def _variable(context: Context, array: _Array, dims: tuple[str, ...]) -> PlannedVariable:
    """Describe a variable that is not a matrix of the schema."""
    name, key, entry, axes = array.name, array.key, array.entry, context.axes
    assert entry.dtype is not None
    spec = schema.VARIABLES.get(name) if name else None
    dtype = BFLOAT16 if spec and entry.dtype == np.uint16 else entry.dtype
    attributes: dict[str, Any] = {"source_key": key, "source_dtype": entry.type_name}
    first = 0
    if "step" in dims:
        first = first_row(entry.shape[dims.index("step")], axes.n_steps, _known_name(context, array), entry.dtype) or 0
    shape = tuple(axes.n_steps if d == "step" else n for d, n in zip(dims, entry.shape, strict=True))
    if spec is not None and (dtype.name not in spec.dtypes or dims != full_dims(spec.dims, axes)):
        name = f"{name}_{entry.type_name}"  # exact, under a name that does not promise what the schema does
        attributes |= spec.attributes()
    elif key in context.key_map.transitions:
        attributes["valid_from"] = 1
    notes = context.options.notes
    for noted in {name, key} & {*notes}:
        attributes["note"] = notes[noted or key]
    return PlannedVariable(name or _flat(key), key, entry, dims, shape, dtype, (), first, 0, False, attributes)


def _flat(key: str) -> str:
    return key.replace("/", ".")


def _is_valid_name(name: str) -> bool:
    """Return whether a name of the source can be the name of a variable, and so of a folder."""
    fits = len(name.encode()) <= _LONGEST_NAME and name != "zarr.json"
    return fits and bool(re.fullmatch(r"\w[\w. -]*", name)) and not name.startswith("__")


def _is_short(entry: Entry) -> bool:
    return len(entry.shape) == 1 and entry.shape[0] <= ATTRIBUTE_SIZE


def _why_no_step_axis(entry: Entry, axes: Axes) -> str:
    if entry.shape and not axes.static and entry.shape[0] == axes.n_steps - 1:
        return f"{entry}: one entry less than the {axes.n_steps} steps, and nothing says which is missing"
    large = "; --include KEY keeps it" if entry.nbytes > KEPT_BYTES else ""
    return f"{entry}: its first axis is not the {axes.n_steps} steps{large}"


def check_written(source: Source, name: str, key: str, first: int) -> None:
    """Refuse steps that were never written: they read as zeros, like tokens frozen at the origin.

    At step 0 only weights are needed: moments and gradients are 0 before the first update.
    """
    since = 0 if name in ("W", "E") else 1
    holes = [hole for hole in source.unwritten(key) if hole.stop - 1 + first >= since]
    if holes:
        raise InputError(
            f"{source.path}: variable {key!r} was never written at positions {holes[0].start}.."
            f"{holes[-1].stop - 1} of {source.entries[key].shape[0]} ({len(holes)} gap(s)); expected: "
            "all of them; copy the file again, or save the part that was recorded"
        )


def settings_of(source: Source) -> dict[str, Any]:
    """Return the small attributes of a source; of a file that this package exported, its settings."""
    attributes = source.attributes
    if "deadtok_xr" in attributes and "hyperparameters" in attributes:
        try:
            return dict(json.loads(attributes["hyperparameters"]))
        except (ValueError, TypeError):
            pass
    return dict(_small_items(attributes))


def _small_items(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in attributes.items():
        size = np.size(value)  # None for empty attributes of HDF5
        if size is not None and size <= ATTRIBUTE_SIZE and name != TEXTS:
            yield name, as_json(value)


def as_json(value: Any) -> Any:
    """Convert a setting to a value for JSON: numbers exactly; NaN, infinities and all other objects as text."""
    value = value.astype(np.float64) if getattr(value, "dtype", None) == BFLOAT16 else value
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    exact = value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
    return value if exact else str(value)
