"""Find the variables of a recording among the keys of a source.

Notebooks name their arrays differently; `KNOWN_KEYS` holds the names that do not contradict each other. Other names
come from the caller or a recipe, in `Options.keys`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from deadtok_xr import schema
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.readers.source import Entry, Source, list_entries
from deadtok_xr.errors import InputError

LABELS = ("step", "token", "dead")
"""Coordinates whose key a caller can name as well."""
WEIGHTS = ("W", "delta")
"""A recording holds at least one of these; the first one present determines the steps and the rows."""


@dataclass(frozen=True)
class KeyMap:
    """Keys of sources by their meaning.

    Attributes
    ----------
    variables
        Variable of the schema -> its keys, besides its own name.
    steps
        Keys of the step labels.
    dead
        Keys of a bool per row, as in a recording, or of a list of the ids of the dead tokens.
    dead_mask, live_mask
        Keys of a bool per vocabulary id.
    dead_ids, live_ids, token_ids
        Keys of lists of vocabulary ids: of the dead tokens, of the live ones, of each row.
    per_token, per_dim
        Keys of arrays with an axis of tokens or dims, kept under their own names.
    static
        Keys of arrays with an axis of tokens and none of steps, kept under their own names.
    transitions
        Keys of arrays, kept under their own names, whose value i belongs to update i + 1 if they have one value less
        than there are steps.
    pieces
        Variable -> keys of arrays that each hold some of its tokens.
    """

    variables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
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


KNOWN_KEYS = KeyMap(
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
    dead=("dead", "is_dead"),
    dead_mask=("dead_mask", "untrained_mask"),
    live_mask=("live_mask", "trained_mask"),
    dead_ids=("dead_ids", "dead_token_ids", "dead_indices", "untrained_indices"),
    live_ids=("live_ids", "live_token_ids", "live_indices", "trained_indices"),
    token_ids=("token", "token_ids", "sampled_ids", "sampled_token_ids", "sampled_dead_ids", "row_ids"),
    per_token=("logits",),
    per_dim=("centroid", "bulk_velocity"),
    static=(
        "W_initial", "initial", "last_motion_step", "freeze_times", "token_occurrence_counts", "black_hole_mask",
        "black_hole_id", "spongecrystal_mask", "neighborhood_mask",
    ),
    transitions=("delta_W_prime",),
    pieces={"delta": ("dead_deltas", "live_deltas"), "grad": ("dead_grads", "live_grads")},
)  # fmt: skip

_NO_WEIGHTS = re.compile(
    r"(^|[^a-z])(grads?|gradients?|momentum|moments?|velocity|variance|exp_avg|exp_avg_sq|exp_inf|square_avg)([^a-z\d]|$)",
    re.IGNORECASE,
)
"""Words for gradients and moments, which have the shape of the weights."""


def is_named_otherwise(key: str) -> bool:
    """Return whether a name is that of another variable than the weights: a gradient, a moment, a loss, E."""
    variables = KNOWN_KEYS.variables
    others = {*schema.VARIABLES, *(k for name in variables for k in variables[name])}
    others |= {*KNOWN_KEYS.per_token, *KNOWN_KEYS.per_dim, *KNOWN_KEYS.transitions}
    others -= {k for name in WEIGHTS for k in (name, *variables[name])}
    last = re.split(r"[./]", key)[-1]
    return key in others or last in others or bool(_NO_WEIGHTS.search(key))


def variable_keys(source: Source, key_map: KeyMap, options: Options) -> dict[str, str]:
    """Return variable of the schema -> key of the source, for those that are present.

    Raises
    ------
    InputError
        If two keys of the source are the same variable, or a key that the caller names is not there.
    """
    found = {}
    for name, key in options.keys.items():
        if name not in (*schema.VARIABLES, *LABELS):
            raise InputError(
                f"keys: {name!r} is not a variable of a recording: choose {', '.join((*schema.VARIABLES, *LABELS))}; "
                "other arrays keep their own names"
            )
        if key not in source.entries:
            there = list_entries(source)
            raise InputError(f"{source.path} has no {key!r}, given for {name!r}; expected: one of {there}")
        if name not in LABELS:
            found[name] = key
    for name in schema.VARIABLES:
        if name not in found:
            wanted = (name, *key_map.variables.get(name, ()))
            key_ = single_key(source, wanted, f"the variable {name!r}", options, taken=tuple(found.values()))
            if key_ is not None:
                found[name] = key_
    return found


def label_key(source: Source, name: str, keys: tuple[str, ...], meaning: str, options: Options) -> str | None:
    """Return the key of labels: the one that the caller names, else the one of several that the source has."""
    return options.keys.get(name) or single_key(source, keys, meaning, options)


def single_key(
    source: Source, keys: tuple[str, ...], meaning: str, options: Options, *, taken: tuple[str, ...] = ()
) -> str | None:
    """Return the one of several keys that the source has. Scalars do not count: they are settings of the run."""
    usable = {*source.entries} - {*options.drop, *taken}
    there = [key for key in keys if key in usable and source.entries[key].shape]
    if len(there) > 1:
        raise InputError(
            f"{source.path}: {' and '.join(map(repr, there))} both mean {meaning}; expected: one of them; leave the "
            f"other out with --drop {there[1]} (drop=[{there[1]!r}])"
        )
    return there[0] if there else None


def numeric_entry(source: Source, key: str) -> Entry:
    """Return an entry, or raise an InputError if it does not hold numbers."""
    entry = source.entries[key]
    if entry.dtype is None:
        raise InputError(
            f"{source.path}: variable {key!r} has the type {entry.type_name}; expected: numbers; leave it out with "
            f"--drop {key} (drop=[{key!r}])"
        )
    return entry


def weights_entry(source: Source, key: str) -> Entry:
    """Return the entry of the weights, or raise an InputError that says in which types they are read."""
    entry = source.entries[key]
    if entry.dtype is None:
        raise InputError(
            f"{source.path}: variable {key!r} has the type {entry.type_name}; expected: numbers, as bfloat16, float16 "
            "or float32; convert the weights where they were made, and save them in one of these"
        )
    return entry
