"""Step labels: those of the source, or positions along its step axis, and states that repeat the initial state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.conversion.inspect.axes import Axes
from deadtok_xr.conversion.inspect.derived import ABSOLUTE
from deadtok_xr.conversion.inspect.keys import KeyMap, label_key, numeric_entry
from deadtok_xr.conversion.inspect.proofs import are_whole, repeats_its_first_step
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.readers.names import named_step, stem
from deadtok_xr.conversion.readers.source import Source, read_all
from deadtok_xr.conversion.readers.stated_steps import stated_steps, whole_number
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
    key = label_key(source, "step", key_map.steps, "the step labels", options)
    if axes.static:
        if "step" in options.keys and key is not None:
            return StepLabels(np.array([_one_step(source, key)]))
        return _of_one_checkpoint(source, axes, options)
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
    values = read_all(source, key) if entry.shape == (n,) else None
    if values is None or not are_whole(values):
        raise InputError(f"{source.path}: {key!r} is {entry}; expected: {n} integers, one per step")
    labels = values.astype(np.int64)
    _check_ascending(source, key, labels)
    if options.steps is None and _drift(labels):
        raise InputError(
            f"{source.path}: {key!r} runs from {labels[0]} to {labels[-1]} over {n} states and skips a number "
            f"{int((np.diff(labels) == 2).sum())} time(s). Either the labels are right and those steps are missing: "
            "say --steps recorded (steps='recorded'); or the labels drift, as when a Trainer's hook also counts the "
            "ends of epochs, and no step is missing: say --steps position (steps='position')"
        )
    return StepLabels(labels, key)


def _one_step(source: Source, key: str) -> int:
    step = whole_number(read_all(source, key))
    if step is None:
        raise InputError(f"{source.path}: {key!r} is {source.entries[key]}; expected: the step, a whole number")
    return step


def _of_one_checkpoint(source: Source, axes: Axes, options: Options) -> StepLabels:
    """Return the number of updates before a checkpoint: as its contents state it, else as its name does, else 0.

    A name states a step only with a word for it; its last number alone may count anything.
    """
    if axes.n_runs is not None or options.axis == "run":
        return StepLabels(np.zeros(1, np.int64))
    stated, named = stated_steps(source), named_step(stem(source.path))
    by_name = named.number if named is not None and (named.stated or options.steps == "names") else None
    values = {*stated.values()}
    if by_name is not None and (not values or by_name in values or options.steps == "names"):
        return StepLabels(np.array([by_name]), notes=() if values else ("the step is that of its name",))
    if len(values) > 1 or (by_name is not None and options.steps != "content"):
        said = " and ".join(f"{name!r} says {step}" for name, step in stated.items())
        by = f"its name says {by_name}, but " if by_name is not None else ""
        ways = ["--steps names (steps='names')"] * (by_name is not None)
        ways += ["--steps content (steps='content')"] * (len(values) == 1)
        ways += [f"--key step={name} (keys={{'step': {name!r}}})" for name in stated if len(values) > 1]
        raise InputError(f"{source.path}: {by}{said}; choose with {' or '.join(ways)}")
    if not values and options.steps in ("names", "content"):
        raise InputError(f"{source.path} does not say its step: leave out --steps {options.steps} (steps=)")
    return StepLabels(np.array([*values] or [0]), notes=() if values else ("nothing says its step: it is labelled 0",))


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
            f"{i + 1}; expected: ascending step labels; {_what_to_do(key, labels)}"
        )


def _what_to_do(key: str, labels: NDArray[np.int64]) -> str:
    """Return advice for labels that do not ascend: positions are right only if none goes back."""
    if (np.diff(labels) >= 0).all():
        return "say --steps position (steps='position') if no step is missing"
    if len(np.unique(labels)) == len(labels):
        return (
            f"the states are in another order than their steps: sort the labels and every array along the steps by "
            f"np.argsort({key}), and save them again"
        )
    return (
        "steps occur again, as where a run was resumed from an earlier checkpoint: keep one state of each step, in "
        "ascending order, and save them again"
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
