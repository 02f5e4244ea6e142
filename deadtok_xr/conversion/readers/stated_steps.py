"""Find the step that a checkpoint states in its contents.

In the order of proof: a number under a name that means nothing else, at the top or in a place for the state of a
training run; then the update counts in its optimizer, if all parameters agree. Two names that disagree prove nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from deadtok_xr.conversion.readers.source import Source

_NAMES = (
    "step", "global_step", "global_steps", "iter", "n_iter", "it", "itr", "iter_num", "iter_count",
    "iteration", "iterations", "num_iter",
    "num_update", "num_updates", "n_updates", "update", "updates", "completed_step", "completed_steps", "current_step",
    "cur_step", "train_step", "train_steps", "training_step", "training_steps", "update_step", "update_steps",
    "optimizer_step", "optimizer_steps", "step_num", "step_count", "steps_done", "steps_completed", "steps_taken",
    "n_steps_done", "num_steps_completed", "step_idx", "last_step", "latest_step", "current_iteration", "trained_steps",
)  # fmt: skip
_PLACES = (
    "state", "trainer", "trainer_state", "train", "train_state", "training", "training_state", "meta", "metadata",
    "progress", "info", "extra", "extra_state", "checkpoint", "counters", "client_state", "run", "loop", "stats",
)  # fmt: skip
_COUNT = re.compile(r"(^|.*\.)state\.(.+\.)?step")


def stated_steps(source: Source) -> dict[str, int]:
    """Return the steps that a checkpoint states, by the name that states each; {} if it states none.

    Several names are returned only if they contradict each other.
    """
    found = dict(_named(source))
    if not found:
        found = dict(_counted(source))
    if len(set(found.values())) == 1:
        return dict([next(iter(found.items()))])
    return found if len(found) <= 1 or not _is_counts(found) else {}


def _named(source: Source) -> Iterator[tuple[str, int]]:
    for key in source.entries:
        if _means_step(key) and (step := _read(source, key)) is not None:
            yield key, step
    for key, value in source.attributes.items():
        if _means_step(key) and (step := whole_number(value)) is not None:
            yield key, step


def _means_step(key: str) -> bool:
    *places, name = re.split(r"[./]", key)
    return name.lower() in _NAMES and all(place.lower() in _PLACES for place in places)


def _counted(source: Source) -> Iterator[tuple[str, int]]:
    for key in source.entries:
        if _COUNT.fullmatch(key) and (step := _read(source, key)) is not None:
            yield key, step


def _is_counts(found: dict[str, int]) -> bool:
    return all(_COUNT.fullmatch(key) and not _means_step(key) for key in found)


def _read(source: Source, key: str) -> int | None:
    entry = source.entries[key]
    if entry.dtype is None or entry.dtype.kind not in "iufV" or entry.shape not in ((), (1,)):
        return None
    return whole_number(source.read(key, *(slice(0, n) for n in entry.shape)))


def whole_number(value: Any) -> int | None:
    """Return a number that is a step: 7, 7.0, [7] or "7"; None for anything else."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\d{1,18}", value.strip()) else None
    if isinstance(value, (list, tuple, np.ndarray)) and np.shape(value) in ((), (1,)):
        value = np.asarray(value).reshape(-1)[0]
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(value) if number.is_integer() and 0 <= number < 2**53 else None
