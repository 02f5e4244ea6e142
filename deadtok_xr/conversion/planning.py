"""Make the plan of a conversion from an open source and options."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from deadtok_xr import schema
from deadtok_xr.conversion.inspect.axes import find_axes
from deadtok_xr.conversion.inspect.context import Context
from deadtok_xr.conversion.inspect.derived import ABSOLUTE
from deadtok_xr.conversion.inspect.extra_arrays import (
    OtherArrays,
    as_json,
    check_written,
    describe_extra_arrays,
    settings_of,
    unused_labels,
)
from deadtok_xr.conversion.inspect.keys import KNOWN_KEYS, WEIGHTS, KeyMap, is_named_otherwise, variable_keys
from deadtok_xr.conversion.inspect.matrices import describe_matrices, precision_warnings
from deadtok_xr.conversion.inspect.models import find_matrices
from deadtok_xr.conversion.inspect.moments import find_moments
from deadtok_xr.conversion.inspect.sidecars import find_dead_token_files
from deadtok_xr.conversion.inspect.steps import find_steps
from deadtok_xr.conversion.inspect.tokens import RowTokens, find_row_tokens
from deadtok_xr.conversion.options import DEFAULT_OPTIONS, Options, suggested_recipes
from deadtok_xr.conversion.plan import DROPPED_ON_REQUEST, ConversionPlan, PlannedVariable, Progress
from deadtok_xr.conversion.readers.source import Source
from deadtok_xr.store.chunk_layout import chunks_of


def make_plan(
    source: Source,
    options: Options = DEFAULT_OPTIONS,
    *,
    key_map: KeyMap = KNOWN_KEYS,
    progress: Progress | None = None,
) -> ConversionPlan:
    """Determine how each array of a source is stored.

    Parameters
    ----------
    source
        An open source. Its small arrays are read; float32 and float16 matrices are read until a value is off the
        bfloat16 grid.
    options
        What the source does not say itself.
    key_map
        The known keys.
    progress
        Called with the bytes checked so far, and the largest number of bytes that may have to be checked.

    Raises
    ------
    InputError
        If the source is not a recording that can be read, contradicts itself, or can be read in two ways.
    """
    context = inspect_source(source, options, key_map)
    weights = context.keys.get("W", context.keys.get("delta", ""))
    tokens = find_row_tokens(source, key_map, context.axes.n_rows, weights, options)
    matrices = describe_matrices(context, progress)
    used = {*(v.key for v in matrices), *tokens.keys, context.steps.key, *options.drop}
    others = describe_extra_arrays(context, used)
    n_dead = 0 if tokens.rows.dead is None else int(tokens.rows.dead.sum())
    variables = tuple(
        replace(_with_chunks(v, n_dead, options.shard), skip=context.steps.skip if _has_steps(v) else 0)
        for v in (*matrices, *others.variables)
    )
    n_runs = context.axes.n_runs
    return ConversionPlan(
        source.path, source.format, tuple(source.files()), variables, context.steps.labels, tokens.rows, tokens.reason,
        hyperparameters=_hyperparameters(source, options, others),
        attributes=_root_attributes(options, others),
        dropped={**others.dropped, **{key: DROPPED_ON_REQUEST for key in options.drop if key in source.entries}},
        notes=(
            *source.notes, *context.steps.notes, *others.notes, *_option_notes(options),
            *_hints(source, tokens, options),
        ),
        warnings=(*context.warnings, *unused_labels(context, used), *precision_warnings(variables)),
        runs=None if n_runs is None else np.arange(n_runs),
    )  # fmt: skip


def inspect_source(source: Source, options: Options, key_map: KeyMap) -> Context:
    """Find the keys, sizes and steps of a recording."""
    keys = variable_keys(source, key_map, options)
    is_model = not any(name in keys for name in WEIGHTS) or "W" in options.keys
    warnings: list[str] = []
    if is_model:
        keys, warnings = _model_keys(source, options, keys)
    if ABSOLUTE in source.entries:
        keys["W"] = ABSOLUTE
    keys |= _only_candidate(source, keys)
    axes = find_axes(source, keys, options)
    if "W" in keys and not axes.static:
        check_written(source, "W", keys["W"], 0)
    steps = find_steps(source, key_map, options, keys, axes)
    return Context(
        source, key_map, options, keys, replace(axes, n_steps=len(steps.labels)), steps, is_model, tuple(warnings)
    )


def _model_keys(source: Source, options: Options, keys: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the keys of a model's matrices and moments beside those already known, and warnings."""
    matrices = find_matrices(source, options)
    found, warnings = dict(matrices.keys), list(matrices.warnings)
    if "W" in found:
        moments, left_out = find_moments(source, matrices, options)
        found, warnings = {**moments, **found}, [*warnings, *left_out]
    return {**found, **{name: key for name, key in keys.items() if name != "E" or "E" in options.keys}}, warnings


def _only_candidate(source: Source, keys: dict[str, str]) -> dict[str, str]:
    """Return the weights of a source with a single array that they could be, and that its name does not call otherwise.

    A gradient or a moment has the shape of the weights: nothing in its values shows what it is.
    """
    if any(name in keys for name in WEIGHTS):
        return {}
    found = [key for key, e in source.entries.items() if e.dtype is not None and len(e.shape) in (2, 3, 4)]
    by_name = [key for key in found if key.rpartition("/")[2] in ("W", *KNOWN_KEYS.variables["W"])]
    candidates = by_name or (found if {*source.entries} <= {*found, *KNOWN_KEYS.steps} else [])
    return {"W": candidates[0]} if len(candidates) == 1 and not is_named_otherwise(candidates[0]) else {}


def _has_steps(v: PlannedVariable) -> bool:
    return "step" in v.dims and not v.static


def _with_chunks(v: PlannedVariable, n_dead: int, shard: int | None) -> PlannedVariable:
    """Set the chunks of a variable, and how many of them one file holds."""
    v = replace(v, chunks=chunks_of(v.dims, v.shape, v.dtype.itemsize, n_dead))
    if shard is None or schema.without_run(v.dims) != schema.MATRIX:
        return v
    n_chunks = math.ceil(v.size("token") / v.size("token", chunk=True))
    return replace(v, per_file=max(1, min(n_chunks, shard // max(1, v.chunk_bytes))))


def _hyperparameters(source: Source, options: Options, others: OtherArrays) -> dict[str, Any]:
    return {**settings_of(source), **others.settings, **as_json(dict(options.hyperparameters))}


def _root_attributes(options: Options, others: OtherArrays) -> dict[str, Any]:
    used = as_json(options.non_defaults())
    return {**others.attributes, **({"conversion": used} if used else {})}


def _option_notes(options: Options) -> list[str]:
    return [text if name == "" else f"{name}: {text}" for name, text in options.notes.items()]


def _hints(source: Source, tokens: RowTokens, options: Options) -> list[str]:
    """Suggest options that may fit this source."""
    hints = []
    if options.recipe is None:
        names = suggested_recipes(source.path)
        hints += [f"its name is one of recipe {name!r}: --recipe {name} adds it" for name in names]
    if tokens.rows.dead is None:
        files = ", ".join(str(path) for path in find_dead_token_files(source.path))
        hints += [f"beside it lies {files}: if it names the dead tokens, say --dead-ids"] if files else []
    return hints
