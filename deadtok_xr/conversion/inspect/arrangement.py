"""Bring the axes of a source into the order (run, step, token, dim), and its labels to the names of a recording.

In the order of proof: the dimensions that the caller gives; the names of the axes in the file (NetCDF, Zarr); for
output layers, which many programs keep as (dim, token): a bias of one number per token beside it, the name of a Dense
kernel, or the shape of the input embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.conversion.inspect.models import (
    bias_size,
    is_named_like_output,
    is_of_optimizer,
    named_input,
    named_output,
)
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.readers.source import Entry, Renamed, Source, Wrapped
from deadtok_xr.errors import InputError

STANDARD = ("run", "step", "token", "dim")
_SYNONYMS = {
    "run": ("runs", "seed", "seeds", "trial", "replica"),
    "step": (
        "steps", "checkpoint", "checkpoints", "ckpt", "iteration", "iterations", "iter", "update", "updates",
        "global_step", "train_step", "time", "t", "snapshot", "epoch",
    ),
    "token": (
        "tokens", "vocab", "vocabulary", "vocab_id", "token_id", "token_ids", "vocab_size", "n_vocab", "row", "rows",
        "word", "words", "id", "d_vocab",
    ),
    "dim": (
        "dims", "hidden", "hidden_dim", "hidden_size", "d_model", "dim_model", "feature", "features", "channel",
        "channels", "embed", "embed_dim", "embedding", "embedding_dim", "emb_dim", "n_embd", "unit", "units",
        "component", "dimension", "width",
    ),
}  # fmt: skip
_ROLE = {name: role for role, names in _SYNONYMS.items() for name in (role, *names)}
_PLACEHOLDER = re.compile(r"((phony_)?dim_?\d+|axis_?\d+|)$")


class Turned(Wrapped):
    """A source with the axes of some arrays in another order: key -> axis of the file for each axis."""

    def __init__(
        self, source: Source, orders: Mapping[str, tuple[int, ...]], dims: Mapping[str, tuple[str, ...]]
    ) -> None:
        super().__init__(source)
        self.orders = orders
        self.entries = {key: self._entry(key, entry) for key, entry in source.entries.items()}
        self.dims = {**source.dims, **dims}
        self.aliases = {k: v for k, v in source.aliases.items() if orders.get(k) == orders.get(v)}
        self.notes = (*source.notes, *(self._note(key) for key in orders))

    def _entry(self, key: str, entry: Entry) -> Entry:
        order = self.orders.get(key)
        if order is None:
            return entry
        return replace(entry, shape=tuple(entry.shape[axis] for axis in order))

    def _note(self, key: str) -> str:
        dims = self.dims[key]
        there = tuple(dims[self.orders[key].index(axis)] for axis in range(len(dims)))
        return f"{key!r} is ({', '.join(there)}) in the file, and stored as ({', '.join(dims)})"

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        order = self.orders.get(name)
        if order is None:
            return self.source.read(name, *where)
        shape = self.entries[name].shape
        full = (*where, *(slice(0, n) for n in shape[len(where) :]))
        there = tuple(full[order.index(axis)] for axis in range(len(order)))
        return np.ascontiguousarray(self.source.read(name, *there).transpose(order))

    def unwritten(self, name: str) -> list[range]:
        holes = self.source.unwritten(name)
        order = self.orders.get(name)
        if order is None or order[0] == 0 or not holes:
            return holes
        return [range(self.entries[name].shape[0])]


def arranged(source: Source, options: Options) -> Source:
    """Return a source with its axes in the standard order, and labels that are named after an axis renamed.

    Raises
    ------
    InputError
        If dimensions that the caller gives do not fit the array.
    """
    orders: dict[str, tuple[int, ...]] = {}
    dims: dict[str, tuple[str, ...]] = {}
    for key, entry in source.entries.items():
        found = _dims(source, options, key, entry)
        if found is None:
            continue
        ordered = standard_order(found)
        if ordered != found:
            orders[key] = tuple(found.index(dim) for dim in ordered)
            dims[key] = ordered
    renamed = _labels(source, options)
    if orders:
        source = Turned(source, orders, dims)
    return Renamed(source, renamed) if renamed else source


def _dims(source: Source, options: Options, key: str, entry: Entry) -> tuple[str, ...] | None:
    """Return the dimensions of an array in the order of the file; None if nothing says them."""
    if key in options.dims:
        given = options.dims[key]
        return given if len(given) == len(entry.shape) and {*given} <= {*STANDARD} else None
    if key in source.dims and len(entry.shape) > 1:
        return _by_names(source.dims[key])
    lead = ("step",) if len(entry.shape) == 3 else ()
    return (*lead, "dim", "token") if _is_turned(source, options, key, entry) else None


def standard_order(dims: Sequence[str]) -> tuple[str, ...]:
    """Return standard dimensions in their order; others are left as they are."""
    dims = tuple(dims)
    if not {*dims} <= {*STANDARD} or len({*dims}) < len(dims):
        return dims
    return tuple(sorted(dims, key=STANDARD.index))


def _by_names(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return what the names of axes mean: each a different one; of three, the last may be inferred."""
    found = [_ROLE.get(name.rpartition("/")[2].lower(), "") for name in names]
    missing = [dim for dim in ("step", "token", "dim") if dim not in found]
    if len(names) == 3 and found.count("") == 1 and len(missing) == 1:
        found[found.index("")] = missing[0]
    return tuple(found) if "" not in found and len({*found}) == len(found) else None


def check_axis_names(source: Source, options: Options, key: str) -> None:
    """Ask which axis of the weights is which, if the file names them and the names are not understood."""
    names = source.dims.get(key, ())
    if key in options.dims or not names or all(_PLACEHOLDER.match(name) for name in names):
        return
    if {*names} <= {*STANDARD} or _by_names(names) is not None:
        return
    raise InputError(
        f"{source.path}: the axes of {key!r} {source.entries[key].shape} are called {', '.join(names)}; say which is "
        f"which, in their order, with --dims {key}=step,token,dim (dims={{{key!r}: ('step', 'token', 'dim')}})"
    )


def _labels(source: Source, options: Options) -> dict[str, str]:
    """Return the labels of axes with other names: step and token -> their keys in the file."""
    roles = {name: _ROLE[name.rpartition("/")[2].lower()] for names in source.dims.values() for name in names
             if name.rpartition("/")[2].lower() in _ROLE}  # fmt: skip
    for key, given in options.dims.items():
        roles |= dict(zip(source.dims.get(key, ()), given, strict=False))
    found = {}
    for name, role in roles.items():
        named = role in ("step", "token") and role not in source.entries and role not in options.keys
        if named and name in source.entries and source.dims.get(name) == (name,):
            found[role] = name
    return found


def _is_turned(source: Source, options: Options, key: str, entry: Entry) -> bool:
    """Return whether an output layer is stored as (dim, token)."""
    chosen = key == options.keys.get("W")
    if len(entry.shape) not in (2, 3) or is_of_optimizer(key) or not (chosen or is_named_like_output(key)):
        return False
    n_first, n_last = entry.shape[-2:]
    bias, leaf = bias_size(source, key), re.split(r"[./]", key)[-1]
    if bias in (n_first, n_last) and n_first != n_last:
        return bias == n_last
    partners = [
        e.shape[-2:]
        for k, e in source.entries.items()
        if k != key and named_input(k) and len(e.shape) == len(entry.shape)
    ]
    if n_first != n_last and (n_last, n_first) in partners and (n_first, n_last) not in partners:
        return named_output(key) or chosen or leaf == "kernel"
    return n_first == n_last and leaf in ("kernel", "W_U") and named_output(key)
