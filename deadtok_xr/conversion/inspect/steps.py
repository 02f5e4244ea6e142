"""Step labels: those of the source, or positions along its step axis, and states that repeat the initial state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.conversion.inspect.axes import Axes
from deadtok_xr.conversion.inspect.derived import ABSOLUTE
from deadtok_xr.conversion.inspect.keys import KeyMap, numeric_entry, single_key
from deadtok_xr.conversion.inspect.proofs import repeats_its_first_step
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.readers.source import Source, read_all
from deadtok_xr.errors import InputError

_DRIFT = 0.9
"""Labels that skip single numbers are taken to drift if at least this share of them follow each other."""


@dataclass(frozen=True)
class StepLabels:
    """The steps of a recording.

    Attributes
    ----------
    labels
        The number of updates at each step.
    key
        The array of the source that holds them; None if they are positions.
    skip
        How many states at the beginning of the source repeat the next one and are left out.
    notes
        What a user should know about them.
    """

    labels: NDArray[np.int64]
    key: str | None = None
    skip: int = 0
    notes: tuple[str, ...] = ()


def find_steps(source: Source, key_map: KeyMap, options: Options, keys: Mapping[str, str], axes: Axes) -> StepLabels:
    """Determine the step labels.

    Raises
    ------
    InputError
        If the labels do not ascend, do not fit the number of states, or can be read in two ways.
    """
    steps = _labels(source, key_map, axes, options)
    if axes.static:
        return steps
    if "W" not in keys:
        return _of_displacements(source, keys["delta"], steps, options)
    if keys["W"] != ABSOLUTE and _recorded_before_steps(source, keys["W"], axes, options):
        note = "recorded before each step: the state at position t + 1 of the file is that after update t"
        return replace(steps, labels=steps.labels[:-1], skip=1, notes=(*steps.notes, note))
    return steps


def _labels(source: Source, key_map: KeyMap, axes: Axes, options: Options) -> StepLabels:
    n = axes.n_steps
    key = single_key(source, key_map.steps, "the step labels", options)
    if axes.static:
        return StepLabels(np.array([_checkpoint_step(source, axes)]))
    if key is None:
        if options.steps == "recorded" and options.recipe is None:
            raise InputError(f"{source.path} holds no step labels: leave out --steps recorded (steps='recorded')")
        return StepLabels(np.arange(n))
    entry = numeric_entry(source, key)
    if options.steps == "position":
        return StepLabels(np.arange(n), key, notes=(f"{key!r} is not used: the steps are numbered 0..{n - 1}",))
    if source.entries.get(ABSOLUTE) is not None and entry.shape == (n - 1,):
        labels = read_all(source, key).astype(np.int64)  # those of the updates; the initial state precedes them
        return StepLabels(np.concatenate([labels[:1] - 1, labels]), key)
    if entry.shape != (n,) or entry.dtype is None or entry.dtype.kind not in "iu":
        raise InputError(f"{source.path}: {key!r} is {entry}; expected: {n} integers, one per step")
    labels = read_all(source, key).astype(np.int64)
    _check_ascending(source, key, labels)
    if options.steps is None and _drift(labels):
        raise InputError(
            f"{source.path}: {key!r} runs from {labels[0]} to {labels[-1]} over {n} states and skips a number "
            f"{int((np.diff(labels) == 2).sum())} time(s). Either the labels are right and those steps are missing: "
            "say --steps recorded (steps='recorded'); or the labels drift, as when a Trainer's hook also counts the "
            "ends of epochs, and no step is missing: say --steps position (steps='position')"
        )
    return StepLabels(labels, key)


def _checkpoint_step(source: Source, axes: Axes) -> int:
    """Return the number of updates before a checkpoint as it says itself; 0 if it does not."""
    for key in ("step", "global_step"):
        entry = source.entries.get(key)
        if axes.n_runs is None and entry is not None and not entry.shape and entry.dtype and entry.dtype.kind in "iu":
            return int(read_all(source, key))
    step = source.attributes.get("trainer_state.global_step", 0)
    return step if axes.n_runs is None and isinstance(step, int) else 0


def _drift(labels: NDArray[np.int64]) -> bool:
    """Return whether nearly all labels follow each other, and a few single numbers are skipped."""
    gaps = np.diff(labels)
    skips = int((gaps == 2).sum())
    return bool(skips and set(gaps.tolist()) == {1, 2} and (gaps == 1).mean() >= _DRIFT)


def _check_ascending(source: Source, key: str, labels: NDArray[np.int64]) -> None:
    if (np.diff(labels) <= 0).any():
        i = int(np.argmax(np.diff(labels) <= 0))
        raise InputError(
            f"{source.path}: {key!r} does not ascend: {labels[i]} is followed by {labels[i + 1]} at position "
            f"{i + 1}; expected: ascending step labels; say --steps position (steps='position') if no step is missing"
        )


def _recorded_before_steps(source: Source, key: str, axes: Axes, options: Options) -> bool:
    """Return whether states were recorded before the optimizer's step, so that the first two are equal."""
    if options.recorded == "after":
        return False
    repeats = repeats_its_first_step(source, key, len(axes.lead()))
    if options.recorded == "before" and not repeats:
        raise InputError(
            f"{source.path}: {key!r} at position 1 is not what it is at position 0, so it was not recorded "
            "before each step; leave out --recorded before (recorded='before')"
        )
    if options.recorded is None and repeats:
        raise InputError(
            f"{source.path}: {key!r} is the same at positions 0 and 1, and moves after that. Either it was "
            "recorded before each optimizer step, and position t + 1 is the state after update t: say --recorded "
            "before (recorded='before'); or the first update changed nothing, as with a learning rate that warms "
            "up from 0: say --recorded after (recorded='after')"
        )
    return repeats


def _of_displacements(source: Source, key: str, steps: StepLabels, options: Options) -> StepLabels:
    """Label displacements without weights: if the first one is not zero, it belongs to update 1, not to step 0."""
    first = source.read(key, slice(0, 1))
    if steps.labels[0] != 0 or not np.nan_to_num(first.astype(np.float64)).any():
        return steps
    if steps.key is not None and options.steps != "position":
        raise InputError(
            f"{source.path}: {key!r} is not zero at its first position, which {steps.key!r} labels 0, the initial "
            "state: say --steps position (steps='position') if that position belongs to update 1"
        )
    note = f"{key!r} is not zero at its first position, which is therefore update 1: steps 1..{len(steps.labels)}"
    return replace(steps, labels=steps.labels + 1, notes=(*steps.notes, note))
