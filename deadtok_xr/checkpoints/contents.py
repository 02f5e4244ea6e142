"""Find out which arrays of a checkpoint are parameters, and which of them can be compared with another checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from deadtok_xr.bfloat16 import GRIDS, Grid
from deadtok_xr.conversion.inspect.models import is_average_of, is_of_optimizer
from deadtok_xr.conversion.readers.formats import open_source
from deadtok_xr.conversion.readers.source import Source, list_entries
from deadtok_xr.conversion.readers.stacked import Stacked
from deadtok_xr.errors import InputError

FORMATS = {**GRIDS, "float64": Grid("float64", np.dtype(np.float64), 11, 52)}
"""The number formats whose values are examined, by the name of their dtype."""


@contextmanager
def open_checkpoint(path: str | Path) -> Iterator[Source]:
    """Open a checkpoint: a file, the index of a sharded model, or the folder of one.

    Raises
    ------
    InputError
        If it cannot be read, or holds the checkpoints of several steps.
    """
    with open_source(Path(path)) as source:
        if isinstance(source, Stacked):
            example = Path(next(iter(source.files()), path))
            raise InputError(
                f"{path} holds the checkpoints of several steps; expected: that of one: give its file or folder, "
                f"such as {example if example.parent == Path(path) else example.parent}"
            )
        yield source


def split(source: Source) -> tuple[list[str], dict[str, str]]:
    """Return the names of the parameters in the order of the file, and why each other entry is left out.

    Raises
    ------
    InputError
        If there is no parameter.
    """
    reasons = _reasons(source)
    parameters = [name for name, reason in reasons.items() if not reason]
    if not parameters:
        raise InputError(
            f"{source.path} holds no parameters: {list_entries(source)}; expected: arrays of {', '.join(FORMATS)}"
        )
    return parameters, {name: reason for name, reason in reasons.items() if reason}


def _reasons(source: Source) -> dict[str, str]:
    """Say of each entry why it is no parameter, or is not examined; empty if it is examined."""
    reasons = {name: _reason(source, name) for name in source.entries}
    examined = {name: source.entries[name].shape for name, reason in reasons.items() if not reason}
    averages = [name for name in examined if is_average_of(name, examined)]
    return reasons | dict.fromkeys(averages, "an average of the weights over time")


def _reason(source: Source, name: str) -> str:
    entry = source.entries[name]
    if name in source.aliases:
        return f"the same memory as {source.aliases[name]!r}"
    if is_of_optimizer(name):
        return "of the optimizer"
    if entry.dtype is None:
        return f"not examined: {entry.type_name.partition(' (')[0]}"
    if entry.dtype.name not in FORMATS or (entry.dtype == np.float64 and not entry.shape):
        return f"{entry.type_name}, not a number format of weights"
    return "" if 0 not in entry.shape else "without elements"


def pair(
    a: Source, b: Source, parameters: list[str], left_out: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Match the parameters of two checkpoints by name.

    If no name is in both, all names of one may have a prefix more, such as "model." or "module.".

    Parameters
    ----------
    a, b
        The checkpoints.
    parameters, left_out
        What `split` found in the first.

    Returns
    -------
    tuple
        The names of the parameters that are compared, and those in the second; why each other parameter of the first is
        not; the names that only the second has.

    Raises
    ------
    InputError
        If they have no name in common.
    """
    in_second = [name for name, reason in _reasons(b).items() if not reason]
    in_b = _names_in(b, in_second, parameters)
    if in_b is None:
        raise InputError(
            f"{a.path} and {b.path} have no parameter in common: {parameters[0]!r} is in the first, "
            f"{next(iter(b.entries), 'nothing')!r} in the second; expected: two checkpoints of one model"
        )
    reasons = {name: _difference(a, name, b, in_b[name]) for name in parameters}
    known = {*in_b.values(), *left_out, *a.entries}
    others = [name for name in in_second if name not in known]
    compared = {name: in_b[name] for name, reason in reasons.items() if not reason}
    return compared, {name: reason for name, reason in reasons.items() if reason}, others


def _names_in(b: Source, theirs: list[str], parameters: list[str]) -> dict[str, str] | None:
    """Return the name of each parameter in another checkpoint with other parameters; None if it has none of them."""
    for prefix in ("", *_prefixes(theirs)):
        if any(prefix + name in b.entries for name in parameters):
            return {name: prefix + name for name in parameters}
    for prefix in _prefixes(parameters):
        if any(name.removeprefix(prefix) in b.entries for name in parameters):
            return {name: name.removeprefix(prefix) for name in parameters}
    return None


def _prefixes(names: list[str]) -> Iterator[str]:
    """Yield the prefixes that all names have, up to a dot, the shortest first."""
    parts = names[0].split(".")[:-1] if names else []
    for n in range(1, len(parts) + 1):
        prefix = ".".join(parts[:n]) + "."
        if not all(name.startswith(prefix) for name in names):
            return
        yield prefix


def _difference(a: Source, name: str, b: Source, name_in_b: str) -> str:
    """Say why the values of a parameter cannot be compared; empty if they can."""
    one, other = a.entries[name], b.entries.get(name_in_b)
    if other is None:
        return "not in the second checkpoint"
    if other.shape != one.shape:
        return f"the shape {one.shape} became {other.shape}"
    return "" if other.dtype == one.dtype else f"{one.type_name} became {other.type_name}"
