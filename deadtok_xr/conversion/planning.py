"""From an open source to a `ConversionPlan`: what each of its arrays becomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr import schema
from deadtok_xr.bfloat16 import BFLOAT16, GRIDS
from deadtok_xr.conversion.inspect import extra_arrays
from deadtok_xr.conversion.inspect.axes import Axes, first_row, full_dims
from deadtok_xr.conversion.inspect.derived import ABSOLUTE
from deadtok_xr.conversion.inspect.keys import KNOWN, WEIGHTS, Layout, numeric, single_key, variable_keys
from deadtok_xr.conversion.inspect.models import model_keys
from deadtok_xr.conversion.inspect.proofs import all_on_bfloat16_grid, repeats_its_first_step
from deadtok_xr.conversion.inspect.sidecars import tell_tales
from deadtok_xr.conversion.inspect.tokens import RowPlan, find_rows
from deadtok_xr.conversion.options import NOTHING_SAID, Options, suggested
from deadtok_xr.conversion.plan import ConversionPlan, PlannedVariable
from deadtok_xr.conversion.readers.source import Entry, Source, listing, whole
from deadtok_xr.errors import InputError
from deadtok_xr.store.chunk_layout import chunks_of

Progress = Callable[[int, int], None]
_DRIFT = 0.9


def make_plan(
    source: Source, options: Options = NOTHING_SAID, *, layout: Layout = KNOWN, progress: Progress | None = None
) -> ConversionPlan:
    """Work out what each array of a source becomes.

    Parameters
    ----------
    source
        An open source. Its small arrays are read, and float32 and float16 matrices looked through, until
        one value is off the bfloat16 grid.
    options
        What the source does not say of itself.
    layout
        The key map.
    progress
        Called with the bytes looked through and those to look through at most.

    Raises
    ------
    InputError
        If the source is no recording that is understood, contradicts itself, or can be read in two ways.
    """
    keys = variable_keys(source, layout, options)
    is_model = not any(name in keys for name in WEIGHTS) or "W" in options.keys
    if is_model:
        keys = {**model_keys(source, options), **{k: v for k, v in keys.items() if k not in ("E",)}}
    if options.initial is not None:
        keys["W"] = ABSOLUTE
    keys |= _only_candidate(source, keys)
    axes = _axes(source, keys, options)
    axes_of = next(name for name in WEIGHTS if name in keys)
    if "W" in keys and not axes.static:
        extra_arrays.check_written(source, "W", keys["W"], 0)
    steps, step_key, notes = _steps(source, layout, axes, options)
    skip = _skipped(source, keys, axes, options)
    if skip:
        steps, axes = steps[:-1], replace(axes, n_steps=axes.n_steps - 1)
        notes = (
            *notes,
            "recorded before each step: row t + 1 of the file is the state after update t",
        )
    if axes_of == "delta" and not axes.static:
        steps, notes = _of_displacements(source, keys["delta"], steps, step_key, notes, options)
    found = find_rows(source, layout, axes.n_rows, keys.get("W", keys.get("delta", "")), options)
    context = _Context(source, layout, options, axes, found, skip, steps)
    matrices = [_matrix(context, name, key) for name, key in keys.items() if _is_matrix(name)]
    _check_bits(source, matrices, options)
    matrices = _decided(context, matrices, progress)
    used = {*(v.key for v in matrices), *found.keys, step_key, *options.drop}
    rest = extra_arrays.others(source, layout, options, keys, axes, used, is_model=is_model)
    n_dead = 0 if found.rows.dead is None else int(found.rows.dead.sum())
    variables = tuple(
        replace(_cut(v, n_dead, options.shard), skip=skip if _has_steps(v) else 0) for v in (*matrices, *rest.variables)
    )
    stated = extra_arrays.plain(options.stated())
    return ConversionPlan(
        source.path, source.format, tuple(source.files()), variables, steps, found.rows, found.reason,
        hyperparameters={
            **extra_arrays.plain_attributes(source), **rest.settings,
            **extra_arrays.plain(dict(options.hyperparameters)),
        },
        attributes={**rest.attributes, **({"conversion": stated} if stated else {})},
        dropped={**rest.dropped, **{key: "as told" for key in options.drop if key in source.entries}},
        notes=(*notes, *rest.notes, *_told(options), *_hints(source, found, options)),
        warnings=tuple(_about_grids(variables)),
        runs=None if axes.n_runs is None else np.arange(axes.n_runs),
    )  # fmt: skip


@dataclass(frozen=True)
class _Context:
    source: Source
    layout: Layout
    options: Options
    axes: Axes
    rows: RowPlan
    skip: int
    steps: NDArray[np.int64]


def _only_candidate(source: Source, keys: dict[str, str]) -> dict[str, str]:
    """The weights of a source that holds nothing else that they could be."""
    if any(name in keys for name in WEIGHTS):
        return {}
    found = [key for key, e in source.entries.items() if e.dtype is not None and len(e.shape) in (2, 3, 4)]
    by_name = [key for key in found if key.rpartition("/")[2] in ("W", *KNOWN.variables["W"])]
    candidates = by_name or (found if len(source.entries) == 1 else [])
    return {"W": candidates[0]} if len(candidates) == 1 else {}


def _of_displacements(
    source: Source, key: str, steps: NDArray[np.int64], step_key: str | None, notes: tuple[str, ...], options: Options
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The labels of displacements without weights: a first row that moves is that of an update, not of step 0."""
    first = source.read(key, slice(0, 1))
    if steps[0] != 0 or not np.nan_to_num(first.astype(np.float64)).any():
        return steps, notes
    if step_key is not None and options.steps != "position":
        raise InputError(
            f"{source.path}: {key!r} moves in its first row, which {step_key!r} labels 0, the initial state: say "
            "--steps position (steps='position') if the first row is that of update 1"
        )
    return steps + 1, (*notes, f"{key!r} moves in its first row: that is update 1, and the rows are 1..{len(steps)}")


def _check_bits(source: Source, matrices: list[PlannedVariable], options: Options) -> None:
    if options.bits != "bfloat16" and not any(v.entry.dtype in (np.uint16, np.int16) for v in matrices):
        found = ", ".join(f"{v.key!r} {v.entry.type_name}" for v in matrices)
        raise InputError(f"{source.path} holds no bits as uint16 ({found}): leave out --bits (bits=)")


def _is_matrix(name: str) -> bool:
    return name in schema.VARIABLES and schema.VARIABLES[name].dims == schema.MATRIX


def _has_steps(v: PlannedVariable) -> bool:
    return "step" in v.dims and not v.static


def _axes(source: Source, keys: dict[str, str], options: Options) -> Axes:
    """The sizes that weights or displacements give to the whole recording."""
    name = next((name for name in WEIGHTS if name in keys), None)
    if name is None:
        known = ", ".join(k for w in WEIGHTS for k in (w, *KNOWN.variables[w]))
        raise InputError(
            f"{source.path} holds no weights: needed: one of {known}, or a model's embedding; there is "
            f"{listing(source)}; name the array that holds the weights with --key W=NAME (keys={{'W': NAME}})"
        )
    shape = numeric(source, keys[name]).shape
    if len(shape) not in (2, 3, 4):
        raise InputError(
            f"{source.path}: variable {keys[name]!r} has the shape {shape}; needed: three axes, (step, token, dim), "
            "four with a run axis before them, or two for a model at one step"
        )
    if 0 in shape:
        raise InputError(
            f"{source.path}: variable {keys[name]!r} is empty, {shape}; needed: at least one step, token and dim"
        )
    if len(shape) == 2:
        return Axes(None, 1, shape[0], shape[1], static=True)
    if len(shape) == 3 and options.axis == "run":
        return Axes(shape[0], 1, shape[1], shape[2], static=True)
    return Axes(shape[0] if len(shape) == 4 else None, shape[-3], shape[-2], shape[-1])


def _matrix(context: _Context, name: str, key: str) -> PlannedVariable:
    source, axes = context.source, context.axes
    entry, spec = numeric(source, key), schema.VARIABLES[name]
    dtype = stored_dtype(entry, context.options)
    if dtype.name not in spec.dtypes:
        raise InputError(
            f"{source.path}: variable {key!r} has the dtype {entry.type_name}; needed: "
            f"{', '.join(spec.dtypes)}, or uint16 that holds their bits; save it again in one of them"
        )
    dims, lead = full_dims(spec.dims, axes), len(axes.lead())
    n = axes.n_steps + context.skip
    first = first_row(entry.shape[lead] if len(entry.shape) > lead else 0, n, name, dtype) if not axes.static else 0
    first = entry.late if entry.late and entry.shape[0] == n - entry.late else first
    due = (*axes.lead(), *(() if axes.static else (n - (first or 0),)), axes.n_rows, axes.n_dims)
    if first is None or entry.shape != due:
        raise InputError(f"{source.path}: variable {key!r} has the shape {entry.shape}; needed: {due}")
    extra_arrays.check_written(source, name, key, first)
    shape = tuple(axes.size(d) for d in dims)
    if context.options.dims.get(key, dims) != dims:
        raise InputError(
            f"{source.path}: {key!r} is read as ({', '.join(dims)}); its axes cannot be turned: save it in this order"
        )
    extra: dict[str, Any] = {"precision": "none"} if name == "delta" else {}
    if name in context.options.precision:
        extra["precision"] = context.options.precision[name]
    if name in context.options.notes:
        extra["note"] = context.options.notes[name]
    if first and spec.valid_from == 0:
        extra["valid_from"] = int(context.steps[first])
    attributes = {"source_key": key, "source_dtype": entry.type_name, **extra}
    return PlannedVariable(name, key, entry, dims, shape, dtype, (), first, 0, axes.static, attributes)


def _cut(v: PlannedVariable, n_dead: int, shard: int | None) -> PlannedVariable:
    """A variable with its chunks, and how many of them one file holds."""
    cut = replace(v, chunks=chunks_of(v.dims, v.shape, v.dtype.itemsize, n_dead))
    if shard is None or schema.without_run(v.dims) != schema.MATRIX:
        return cut
    n_chunks = math.ceil(cut.size("token") / cut.size("token", chunk=True))
    return replace(cut, per_file=max(1, min(n_chunks, shard // max(1, cut.chunk_bytes))))


def stored_dtype(entry: Entry, options: Options) -> np.dtype[Any]:
    """What an array of weights is stored as, before its values are looked at."""
    assert entry.dtype is not None
    return GRIDS[options.bits].dtype if entry.dtype in (np.uint16, np.int16) else entry.dtype


def _decided(context: _Context, matrices: list[PlannedVariable], progress: Progress | None) -> list[PlannedVariable]:
    """The matrices once it is known which of the float32 and float16 ones are copies of bfloat16."""
    wide = [v for v in matrices if v.entry.dtype in (np.float32, np.float16)]
    total, done = sum(v.entry.nbytes for v in wide), 0

    def looked(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(min(done, total), total)

    found = []
    for v in matrices:
        if v in wide:
            v = _as_proven(v, all_on_bfloat16_grid(context.source, v.key, looked), context.options)
        found.append(v)
    if progress is not None and done:
        progress(total, total)
    return found


def _as_proven(v: PlannedVariable, on_grid: bool, options: Options) -> PlannedVariable:
    attributes = dict(v.attributes)
    if v.name in ("W", "E") and "precision" not in options.precision:
        own = "float16" if v.entry.dtype == np.float16 else "none"
        attributes["precision"] = options.precision.get(v.name, "bfloat16" if on_grid else own)
    narrow = on_grid and v.entry.dtype == np.float32 and not options.keep_dtype
    return replace(v, dtype=BFLOAT16 if narrow else v.dtype, attributes=attributes)


def _skipped(source: Source, keys: dict[str, str], axes: Axes, options: Options) -> int:
    """How many rows a recorder that ran before the optimizer's step repeats at the beginning: 1 or 0."""
    if axes.static or "W" not in keys or keys["W"] == ABSOLUTE or options.recorded == "after":
        return 0
    repeats = repeats_its_first_step(source, keys["W"], len(axes.lead()))
    if options.recorded == "before":
        if not repeats:
            raise InputError(
                f"{source.path}: {keys['W']!r} at position 1 is not what it is at position 0, so it was not recorded "
                "before each step; leave out --recorded before (recorded='before')"
            )
        return 1
    if repeats:
        raise InputError(
            f"{source.path}: {keys['W']!r} is the same at positions 0 and 1, and moves after that. Either it was "
            "recorded before each optimizer step, and position t + 1 is the state after update t: say --recorded "
            "before (recorded='before'); or the first update changed nothing, as with a learning rate that warms "
            "up from 0: say --recorded after (recorded='after')"
        )
    return 0


def _steps(
    source: Source, layout: Layout, axes: Axes, options: Options
) -> tuple[NDArray[np.int64], str | None, tuple[str, ...]]:
    """The step labels, the key that they come from, and what is to be said of them."""
    n = axes.n_steps
    key = single_key(source, layout.steps, "the step labels", options)
    if axes.static:
        return np.array([_own_step(source, axes)]), None, ()
    if key is None:
        if options.steps == "recorded" and options.recipe is None:
            raise InputError(f"{source.path} holds no step labels: leave out --steps recorded (steps='recorded')")
        return np.arange(n), None, ()
    entry = numeric(source, key)
    if options.steps == "position":
        return np.arange(n), key, (f"{key!r} is not used: the rows are numbered 0..{n - 1}",)
    if source.entries.get(ABSOLUTE) is not None and entry.shape == (n - 1,):
        labels = whole(source, key).astype(np.int64)  # of the updates, and the initial state goes before them
        return np.concatenate([labels[:1] - 1, labels]), key, ()
    if entry.shape != (n,) or entry.dtype is None or entry.dtype.kind not in "iu":
        raise InputError(f"{source.path}: {key!r} is {entry}; needed: {n} integers, one per step")
    labels = whole(source, key).astype(np.int64)
    _check_ascending(source, key, labels)
    if options.steps is None and _drifts(labels):
        raise InputError(
            f"{source.path}: {key!r} runs from {labels[0]} to {labels[-1]} over {n} rows and skips a number "
            f"{int((np.diff(labels) == 2).sum())} time(s). Either the labels are right and those steps are missing: "
            "say --steps recorded (steps='recorded'); or the labels drift, as where a Trainer's hook also counts the "
            "ends of epochs, and the rows follow each other: say --steps position (steps='position')"
        )
    return labels, key, ()


def _own_step(source: Source, axes: Axes) -> int:
    """The number of updates that a checkpoint says it is after; 0 if it does not say."""
    for key in ("step", "global_step"):
        entry = source.entries.get(key)
        if axes.n_runs is None and entry is not None and not entry.shape and entry.dtype and entry.dtype.kind in "iu":
            return int(whole(source, key))
    found = source.attributes.get("trainer_state.global_step", 0)
    return found if axes.n_runs is None and isinstance(found, int) else 0


def _drifts(labels: NDArray[np.int64]) -> bool:
    """Whether nearly all steps follow each other, but a few numbers are left out, one at a time."""
    gaps = np.diff(labels)
    skips = int((gaps == 2).sum())
    return bool(skips and set(gaps.tolist()) == {1, 2} and (gaps == 1).mean() >= _DRIFT)


def _check_ascending(source: Source, key: str, labels: NDArray[np.int64]) -> None:
    if (np.diff(labels) <= 0).any():
        i = int(np.argmax(np.diff(labels) <= 0))
        raise InputError(
            f"{source.path}: {key!r} does not ascend: {labels[i]} is followed by {labels[i + 1]} at position "
            f"{i + 1}; needed: ascending step labels; say --steps position (steps='position') if the rows follow each "
            "other all the same"
        )


def _hints(source: Source, found: RowPlan, options: Options) -> list[str]:
    """What might be known and was not given."""
    hints = []
    if options.recipe is None:
        hints += [f"its name is one of recipe {name!r}: --recipe {name} adds it" for name in suggested(source.path)]
    if found.rows.dead is None:
        beside = ", ".join(str(path) for path in tell_tales(source.path))
        hints += [f"beside it lies {beside}: if it names the dead tokens, say --dead-ids"] if beside else []
    return hints


def _told(options: Options) -> list[str]:
    return [text if name == "" else f"{name}: {text}" for name, text in options.notes.items()]


def _about_grids(variables: tuple[PlannedVariable, ...]) -> list[str]:
    """What the values proved, for weights whose type does not say what they were trained in."""
    found = []
    for v in variables:
        if v.name not in ("W", "E") or v.entry.dtype not in (np.float32, np.float16):
            continue
        precision = v.attributes["precision"]
        if precision == "bfloat16" and v.dtype != BFLOAT16:
            lossy = (
                "; float16 has fewer places below 6e-5, and none below 6e-8: what was there is rounded, and lost"
                if v.dtype == np.float16
                else ""
            )
            found.append(
                f"{v.name!r} is {v.dtype}, but every value lies on the bfloat16 grid: it is taken for a copy of "
                f"bfloat16 weights, and analysed on that grid{lossy}"
            )
        elif precision == "none":
            found.append(
                f"{v.name!r} is float32 and not on the bfloat16 grid: it has no lattice, and what needs one will ask "
                "for a precision"
            )
    return found
