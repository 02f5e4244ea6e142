"""From an open source to a `Plan`: what each of its arrays becomes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr import schema
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.layout import KNOWN, WEIGHTS, Layout, numeric, single_key, variable_keys
from deadtok_xr.conversion.plan import Plan, PlannedVariable
from deadtok_xr.conversion.rows import find_rows
from deadtok_xr.conversion.sources import Entry, Source, listing, whole
from deadtok_xr.errors import InputError

ATTRIBUTE_SIZE = 64


def make_plan(source: Source, *, layout: Layout = KNOWN, dead_ids: Sequence[int] | None = None) -> Plan:
    """Work out what each array of a source becomes.

    Parameters
    ----------
    source
        An open source; only its small arrays are read.
    layout
        The key map.
    dead_ids
        Vocabulary ids of the dead tokens, for sources that do not say.

    Raises
    ------
    InputError
        If the source is no recording that is understood, or contradicts itself.
    """
    keys = variable_keys(source, layout)
    shape = _anchor_shape(source, keys)
    steps, step_key = _steps(source, layout, shape[0])
    matrices = [_matrix(source, name, key, shape) for name, key in keys.items() if _is_matrix(name)]
    found = find_rows(source, layout, shape[1], matrices[0].key, dead_ids)
    used = {*(v.key for v in matrices), *found.keys, step_key}
    others, settings, dropped = _others(source, layout, keys, shape, used)
    return Plan(
        source.path, source.format, (*matrices, *others), steps, found.rows, found.reason,
        {**_plain_attributes(source), **settings}, dropped,
    )  # fmt: skip


def _is_matrix(name: str) -> bool:
    return schema.VARIABLES[name].dims == schema.MATRIX


def _anchor_shape(source: Source, keys: Mapping[str, str]) -> tuple[int, int, int]:
    """The shape that weights or deltas give to the whole recording."""
    name = next((name for name in WEIGHTS if name in keys), None)
    if name is None:
        known = ", ".join(k for w in WEIGHTS for k in (w, *KNOWN.variables[w]))
        raise InputError(
            f"{source.path} holds no weights: needed: one of {known}; there is {listing(source)}; rename the "
            "array that holds the weights"
        )
    key = keys[name]
    shape = source.entries[key].shape
    if len(shape) != 3:
        hint = "; convert one run at a time" if len(shape) == 4 else ""
        raise InputError(
            f"{source.path}: variable {key!r} has the shape {shape}; needed: three axes, (step, token, dim){hint}"
        )
    if 0 in shape:
        raise InputError(f"{source.path}: variable {key!r} is empty, {shape}; needed: at least one step, token and dim")
    return shape


def _matrix(source: Source, name: str, key: str, anchor: tuple[int, int, int]) -> PlannedVariable:
    entry, spec = numeric(source, key), schema.VARIABLES[name]
    dtype = _stored_dtype(entry)
    if dtype.name not in spec.dtypes:
        raise InputError(
            f"{source.path}: variable {key!r} has the dtype {entry.type_name}; needed: "
            f"{', '.join(spec.dtypes)}, or uint16 that holds the bits of bfloat16; save it again in one of "
            "them"
        )
    first = _first(name, entry, anchor[0])
    if len(entry.shape) != 3 or first is None or entry.shape[1:] != anchor[1:]:
        raise InputError(f"{source.path}: variable {key!r} has the shape {entry.shape}; needed: {anchor}")
    _check_written(source, name, key, first)
    extra = {"precision": "none"} if name == "delta" else {}
    return PlannedVariable(name, key, entry, spec.dims, anchor, dtype, first, {**_origin(key, entry), **extra})


def _stored_dtype(entry: Entry) -> np.dtype[Any]:
    assert entry.dtype is not None
    return BFLOAT16 if entry.dtype == np.uint16 else entry.dtype


def _origin(key: str, entry: Entry) -> dict[str, str]:
    return {"source_key": key, "source_dtype": entry.type_name}


def _first(name: str, entry: Entry, n_steps: int) -> int | None:
    """Where a source's rows begin: one late if they are one short and the variable begins at step 1."""
    if not entry.shape:
        return None
    if entry.shape[0] == n_steps - 1 and schema.attributes(name)["valid_from"] == 1:
        return 1
    return 0 if entry.shape[0] == n_steps else None


def _check_written(source: Source, name: str, key: str, first: int) -> None:
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


def _steps(source: Source, layout: Layout, n_steps: int) -> tuple[NDArray[np.int64], str | None]:
    key = single_key(source, layout.steps, "the step labels")
    if key is None:
        return np.arange(n_steps), None
    entry = numeric(source, key)
    if entry.shape != (n_steps,) or entry.dtype is None or entry.dtype.kind not in "iu":
        raise InputError(f"{source.path}: {key!r} is {entry}; needed: {n_steps} integers, one per step")
    labels = whole(source, key).astype(np.int64)
    if (np.diff(labels) <= 0).any():
        i = int(np.argmax(np.diff(labels) <= 0))
        raise InputError(
            f"{source.path}: {key!r} does not ascend: {labels[i]} is followed by {labels[i + 1]} at position "
            f"{i + 1}; needed: ascending step labels; remove the repeated records, or leave {key!r} out"
        )
    return labels, key


def _others(
    source: Source,
    layout: Layout,
    keys: Mapping[str, str],
    shape: tuple[int, int, int],
    used: set[str | None],
) -> tuple[list[PlannedVariable], dict[str, Any], dict[str, str]]:
    """Everything but matrices and rows: further variables, settings, and what is left out and why."""
    names = {key: name for name, key in keys.items()}
    variables: list[PlannedVariable] = []
    settings: dict[str, Any] = {}
    dropped: dict[str, str] = {}
    for key, entry in source.entries.items():
        if key in used:
            continue
        variable = _variable(layout, names.get(key), key, entry, shape)
        if variable is not None and not _is_free(variable.name, variables):
            dropped[key] = f"{entry}: a variable cannot have the name {variable.name!r}, or another has it"
        elif variable is not None:
            _check_written(source, variable.name, key, variable.first)
            variables.append(variable)
        elif entry.dtype is not None and (not entry.shape or (_is_short(entry) and key not in names)):
            settings[key] = plain(whole(source, key))
        else:
            dropped[key] = _why_not(entry, shape[0])
    return variables, settings, dropped


def _is_short(entry: Entry) -> bool:
    return len(entry.shape) == 1 and entry.shape[0] <= ATTRIBUTE_SIZE


def _is_free(name: str, variables: Sequence[PlannedVariable]) -> bool:
    """Whether a source's own name can be a variable's: a plain folder name that nothing else has."""
    plain_name = re.fullmatch(r"\w[\w. -]*", name) and not name.startswith("__") and name != "zarr.json"
    return bool(plain_name) and name not in {*schema.COORDINATES, *(v.name for v in variables)}


def _variable(
    layout: Layout, name: str | None, key: str, entry: Entry, shape: tuple[int, int, int]
) -> PlannedVariable | None:
    """A variable per step that is no matrix of the schema; None if it has no step axis or no numbers."""
    first = _first(name or key, entry, shape[0])
    if first is None or entry.dtype is None or 0 in entry.shape:
        return None
    spec = schema.VARIABLES.get(name) if name else None
    dtype = _stored_dtype(entry) if spec else entry.dtype
    dims = _dims(layout, key, entry, shape)
    attributes: dict[str, Any] = _origin(key, entry)
    sizes = (shape[0], *entry.shape[1:])
    due = dict(zip(schema.MATRIX, shape, strict=True))
    if spec is not None and (dtype.name not in spec.dtypes or sizes != tuple(due[d] for d in spec.dims)):
        name = f"{name}_{entry.type_name}"  # exact, under a name that does not promise what the schema does
        attributes |= spec.attributes()
    elif spec is not None:
        dims = spec.dims
    return PlannedVariable(name or key.replace("/", "."), key, entry, dims, sizes, dtype, first, attributes)


def _dims(layout: Layout, key: str, entry: Entry, shape: tuple[int, int, int]) -> tuple[str, ...]:
    if entry.shape[1:] == shape[1:]:
        return schema.MATRIX
    if key in layout.per_token and entry.shape[1:] == shape[1:2]:
        return ("step", "token")
    return ("step", *(f"{key.replace('/', '.')}_{i}" for i in range(1, len(entry.shape))))


def _why_not(entry: Entry, n_steps: int) -> str:
    if entry.dtype is None:
        return f"{entry}: recordings hold numbers"
    if entry.shape and entry.shape[0] == n_steps - 1:
        return f"{entry}: one entry less than the {n_steps} steps, and nothing says which is missing"
    return f"{entry}: its first axis is not the {n_steps} steps"


def _plain_attributes(source: Source) -> dict[str, Any]:
    return dict(_plain_items(source.attributes))


def _plain_items(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in attributes.items():
        if np.size(value) <= ATTRIBUTE_SIZE:
            yield name, plain(value)


def plain(value: Any) -> Any:
    """A setting as JSON can hold it: exact numbers; what is no JSON number, and anything else, as text."""
    value = value.astype(np.float64) if getattr(value, "dtype", None) == BFLOAT16 else value
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    exact = value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
    return value if exact else str(value)
