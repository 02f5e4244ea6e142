"""Determine the axes of a recording from the shape of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deadtok_xr import schema
from deadtok_xr.conversion.inspect.keys import KNOWN_KEYS, WEIGHTS, is_named_otherwise, weights_entry
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.readers.source import Source, list_entries
from deadtok_xr.errors import InputError


@dataclass(frozen=True)
class Axes:
    """Sizes along (run,) step, token, dim.

    Attributes
    ----------
    n_runs
        None if there is no run axis.
    static
        Whether the source has no step axis.
    """

    n_runs: int | None
    n_steps: int
    n_rows: int
    n_dims: int
    static: bool = False

    def lead(self) -> tuple[int, ...]:
        """Return the sizes of the axes before the step axis."""
        return () if self.n_runs is None else (self.n_runs,)

    def size(self, dim: str) -> int:
        """Return the size along a dimension."""
        return {"run": self.n_runs or 1, "step": self.n_steps, "token": self.n_rows, "dim": self.n_dims}[dim]


def find_axes(source: Source, keys: Mapping[str, str], options: Options) -> Axes:
    """Determine the sizes of a recording from its weights, or else its displacements.

    Raises
    ------
    InputError
        If there are neither, or their shape is not that of a recording.
    """
    name = next((name for name in WEIGHTS if name in keys), None)
    if name is None:
        known = ", ".join(k for w in WEIGHTS for k in (w, *KNOWN_KEYS.variables[w]))
        raise InputError(
            f"{source.path} holds no weights: expected: one of {known}, or a model's embedding; there is "
            f"{list_entries(source)}{_what_to_do(source)}"
        )
    shape = weights_entry(source, keys[name]).shape
    if len(shape) not in (2, 3, 4):
        raise InputError(
            f"{source.path}: variable {keys[name]!r} has the shape {shape}; expected: three axes, (step, token, dim), "
            "four with a run axis before them, or two for a model at one step"
        )
    if 0 in shape:
        raise InputError(
            f"{source.path}: variable {keys[name]!r} is empty, {shape}; expected: at least one step, token and dim"
        )
    if len(shape) == 2:
        return Axes(None, 1, shape[0], shape[1], static=True)
    if len(shape) == 3 and options.axis == "run":
        return Axes(shape[0], 1, shape[1], shape[2], static=True)
    return Axes(shape[0] if len(shape) == 4 else None, shape[-3], shape[-2], shape[-1])


def _what_to_do(source: Source) -> str:
    """Return advice for a source without weights, the largest array that could be them first."""
    if any("pickled" in entry.type_name for entry in source.entries.values()):
        return ""
    matrices = [key for key, e in source.entries.items() if len(e.shape) in (2, 3, 4) and e.dtype is not None]
    if not matrices:
        return "; convert the file that holds the weights"
    numbered = [key for key in matrices if any(c.isdigit() for c in key) and len(source.entries[key].shape) == 2]
    stack = "; if each holds one step, stack them first, with numpy.stack" if len(numbered) > 1 else ""
    largest = max(matrices, key=lambda key: (not is_named_otherwise(key), source.entries[key].nbytes))
    option = f"--key W={largest} (keys={{'W': {largest!r}}})"
    if is_named_otherwise(largest):
        return f"{stack}; convert the file that holds the weights, or, if {largest!r} are weights, say {option}"
    return f"{stack}; name the array that holds the weights, such as {option}"


def full_dims(dims: tuple[str, ...], axes: Axes) -> tuple[str, ...]:
    """Return the dimensions of a variable in a recording with these axes."""
    return dims if axes.n_runs is None else ("run", *dims)


def first_row(n: int, n_steps: int, name: str, dtype: np.dtype[Any] | None) -> int | None:
    """Return the position along `step` of the first of n values: 1 if one is missing and the variable begins at step 1.

    None if there are neither as many values as steps nor one less.
    """
    since_one = schema.attributes(name)["valid_from"] == 1 or name.startswith("exp_avg")  # no state before a step
    begins_at_one = since_one and (dtype is None or dtype.kind in "fV")
    if n == n_steps - 1 and begins_at_one:
        return 1
    return 0 if n == n_steps else None
