"""The key map: which key of a source is which variable of a recording.

The habits differ by notebook; `KNOWN` holds those that do not contradict each other. What only the caller
or a recipe can say comes in `Options.keys`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deadtok_xr import schema
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.readers.source import Entry, Source, listing
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
    dead_ids, live_ids, token_ids
        Keys of lists of vocabulary ids: of the dead, of the live, of each row.
    per_token, per_dim
        Keys, kept under their own names, one of whose axes is the tokens or the dims.
    static
        Keys, kept under their own names, that have an axis of tokens and none of steps.
    transitions
        Keys, kept under their own names, whose row i belongs to update i + 1 where they are one row short.
    pieces
        Variable -> keys that hold its rows one after the other.
    """

    variables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    dead_mask: tuple[str, ...] = ()
    live_mask: tuple[str, ...] = ()
    dead_ids: tuple[str, ...] = ()
    live_ids: tuple[str, ...] = ()
    token_ids: tuple[str, ...] = ()
    per_token: tuple[str, ...] = ()
    per_dim: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    transitions: tuple[str, ...] = ()
    pieces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


KNOWN = Layout(
    variables={
        "W": ("embeddings", "embedding_history", "embeddings_W", "W_history"),
        "E": ("embeddings_E",),
        "delta": ("deltas",),
        "grad": ("grad_W", "grads", "g", "grads_W"),
        "exp_avg": ("momentum_W", "momentum", "m"),
        "exp_avg_sq": ("variance_W", "variance", "v"),
        "grad_E": ("grads_E",),
        "exp_avg_E": ("momentum_E",),
        "exp_avg_sq_E": ("variance_E",),
        "loss": ("losses",),
    },
    steps=("recorded_steps", "steps", "step"),
    dead_mask=("dead_mask", "untrained_mask"),
    live_mask=("live_mask", "trained_mask"),
    dead_ids=("dead_ids", "dead_token_ids", "dead_indices", "untrained_indices"),
    live_ids=("live_ids", "live_token_ids", "live_indices", "trained_indices"),
    token_ids=("token_ids", "sampled_ids", "sampled_token_ids", "sampled_dead_ids", "row_ids"),
    per_token=("logits",),
    per_dim=("centroid", "bulk_velocity"),
    static=(
        "W_initial", "initial", "last_motion_step", "freeze_times", "token_occurrence_counts", "black_hole_mask",
        "black_hole_id", "spongecrystal_mask", "neighborhood_mask",
    ),
    transitions=("delta_W_prime",),
    pieces={"delta": ("dead_deltas", "live_deltas"), "grad": ("dead_grads", "live_grads")},
)  # fmt: skip


def variable_keys(source: Source, layout: Layout, options: Options) -> dict[str, str]:
    """Schema variable -> its key in the source, for those that are there.

    Raises
    ------
    InputError
        If two keys of the source are the same variable, or a key that the caller names is not there.
    """
    found = {}
    for name, key in options.keys.items():
        if name not in schema.VARIABLES:
            raise InputError(
                f"keys: {name!r} is no variable of a recording: choose {', '.join(schema.VARIABLES)}; other arrays "
                "keep their own names"
            )
        if key not in source.entries:
            raise InputError(f"{source.path} has no {key!r}, given for {name!r}; needed: one of {listing(source)}")
        found[name] = key
    for name in schema.VARIABLES:
        if name not in found:
            wanted = (name, *layout.variables.get(name, ()))
            key_ = single_key(source, wanted, f"the variable {name!r}", options, taken=tuple(found.values()))
            if key_ is not None:
                found[name] = key_
    return found


def single_key(
    source: Source, keys: tuple[str, ...], meaning: str, options: Options, *, taken: tuple[str, ...] = ()
) -> str | None:
    """The one of several keys that the source has, scalars aside: those are settings of the run."""
    usable = {*source.entries} - {*options.drop, *taken}
    there = [key for key in keys if key in usable and source.entries[key].shape]
    if len(there) > 1:
        raise InputError(
            f"{source.path}: {' and '.join(map(repr, there))} both mean {meaning}; needed: one of them; leave the "
            f"other out with --drop {there[1]} (drop=[{there[1]!r}])"
        )
    return there[0] if there else None


def numeric(source: Source, key: str) -> Entry:
    """An entry that holds numbers, or an error."""
    entry = source.entries[key]
    if entry.dtype is None:
        raise InputError(
            f"{source.path}: variable {key!r} has the type {entry.type_name}; needed: numbers; leave it out with "
            f"--drop {key} (drop=[{key!r}])"
        )
    return entry
