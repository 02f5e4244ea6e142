"""The key map: which key of a source is which variable of a recording.

The habits differ by notebook; `KNOWN` holds those that do not contradict each other. A family whose keys
mean something else gets a `Layout` of its own, and `make_plan` takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deadtok_xr import schema
from deadtok_xr.conversion.sources import Entry, Source
from deadtok_xr.errors import InputError

WEIGHTS = ("W", "delta")
"""A recording holds one of these at least; the first that is there gives the steps and the rows."""


@dataclass(frozen=True)
class Layout:
    """Source keys by what they mean.

    Attributes
    ----------
    variables
        Schema variable -> the keys that it goes by; its own name need not be said.
    steps
        Keys of the step labels.
    dead_mask, live_mask
        Keys of a bool per vocabulary id.
    dead_ids, live_ids
        Keys of lists of vocabulary ids.
    per_token
        Keys, kept under their own names, whose second axis is the vocabulary.
    """

    variables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    dead_mask: tuple[str, ...] = ()
    live_mask: tuple[str, ...] = ()
    dead_ids: tuple[str, ...] = ()
    live_ids: tuple[str, ...] = ()
    per_token: tuple[str, ...] = ()


KNOWN = Layout(
    variables={
        "W": ("embeddings", "embedding_history"),
        "delta": ("deltas",),
        "grad": ("grad_W", "grads", "g"),
        "exp_avg": ("momentum_W", "momentum", "m"),
        "exp_avg_sq": ("variance_W", "variance", "v"),
        "loss": ("losses",),
    },
    steps=("recorded_steps", "steps", "step"),
    dead_mask=("dead_mask",),
    live_mask=("live_mask",),
    dead_ids=("dead_ids", "dead_token_ids", "dead_indices"),
    live_ids=("live_ids", "live_token_ids", "live_indices"),
    per_token=("logits",),
)


def variable_keys(source: Source, layout: Layout) -> dict[str, str]:
    """Schema variable -> its key in the source, for those that are there.

    Raises
    ------
    InputError
        If two keys of the source are the same variable.
    """
    found = {}
    for name in schema.VARIABLES:
        key = single_key(source, (name, *layout.variables.get(name, ())), f"the variable {name!r}")
        if key is not None:
            found[name] = key
    return found


def single_key(source: Source, keys: tuple[str, ...], meaning: str) -> str | None:
    """The one of several keys that the source has, scalars aside: those are settings of the run."""
    there = [key for key in keys if key in source.entries and source.entries[key].shape]
    if len(there) > 1:
        raise InputError(
            f"{source.path}: {' and '.join(map(repr, there))} both mean {meaning}; needed: one of them; "
            "write a file without the other"
        )
    return there[0] if there else None


def numeric(source: Source, key: str) -> Entry:
    """An entry that holds numbers, or an error."""
    entry = source.entries[key]
    if entry.dtype is None:
        raise InputError(f"{source.path}: variable {key!r} has the type {entry.type_name}; needed: numbers")
    return entry
