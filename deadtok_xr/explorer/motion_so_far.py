"""Follow life cycles by motion alone, block by block, so that a run can be watched while it grows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NEVER = -1


class MotionSoFar:
    """When each row moved, froze and thawed, up to the last step that was added.

    The definitions are those of `lifecycle`; -1 means never.

    Attributes
    ----------
    step
        The last step that was added; None before the first.
    n_rows
        The number of rows.
    """

    def __init__(self, n_rows: int) -> None:
        self.step: int | None = None
        self.n_rows = n_rows
        self._first_motion, self._first_freeze, self._last_motion, self._last_thaw = (
            np.full(n_rows, NEVER, np.int64) for _ in range(4)
        )
        self._moved_steps, self._thaws = np.zeros(n_rows, np.int64), np.zeros(n_rows, np.int64)
        self._moved = np.ones(n_rows, bool)  # at the step before; no thaw before the first motion

    def add(self, steps: NDArray[np.int64], moved: NDArray[Any]) -> None:
        """Add the motion of the next steps, (step, row): moved dims or flags; below 0 where it is not known."""
        if not len(steps):
            return
        known, moved = np.asarray(moved) >= 0, np.asarray(moved) > 0
        before = np.concatenate([self._moved[None], moved[:-1] | ~known[:-1]])
        began = np.where(self._first_motion >= 0, self._first_motion, _first(steps, moved))
        started = (began >= 0) & (steps[:, None] > began)
        thawed = moved & ~before & started
        froze = known & ~moved & started
        self._first_motion = began
        self._first_freeze = np.where(self._first_freeze >= 0, self._first_freeze, _first(steps, froze))
        self._last_motion = np.maximum(self._last_motion, _last(steps, moved))
        self._last_thaw = np.maximum(self._last_thaw, _last(steps, thawed))
        self._moved_steps += moved.sum(0)
        self._thaws += thawed.sum(0)
        self._moved = moved[-1] | ~known[-1]
        self.step = int(steps[-1])

    def columns(self) -> dict[str, NDArray[np.int64]]:
        """Return the columns, by the names that `lifecycle` gives them, and `last_thaw`."""
        censored = (self._last_motion == self.step) & (self._last_motion >= 0)
        return {
            "first_freeze": self._first_freeze, "last_motion": self._last_motion, "thaw_count": self._thaws,
            "last_thaw": self._last_thaw, "censored": censored.astype(np.int64), "moved_steps": self._moved_steps,
        }  # fmt: skip


def _first(steps: NDArray[np.int64], flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(flags.any(0), steps[flags.argmax(0)], NEVER)


def _last(steps: NDArray[np.int64], flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(flags.any(0), steps[len(steps) - 1 - flags[::-1].argmax(0)], NEVER)
