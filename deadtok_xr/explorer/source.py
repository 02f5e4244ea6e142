"""What is explored: groups of results, the recording that they were made of, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr.explorer.binned import Blocks, fold_blocks
from deadtok_xr.explorer.motion_so_far import MotionSoFar


class Source:
    """What a page shows: datasets by name, of steps and rows, which are tokens or parameters.

    Attributes
    ----------
    name
        Where it was opened, as text.
    groups
        Groups of results by name; of a recording alone, those that are computed from it as they are looked at.
    recording
        The recording (step, token, dim) of the same tokens; None if there is none.
    rows
        The dimension of the rows: `token` or `parameter`.
    notes
        Sentences about what is missing, and why.
    grows
        Whether there is more to open, or steps may still be added.
    live
        Whether it was opened while it may still be written.
    version
        A number that changes whenever steps were added.
    comparison
        Of several runs that were analysed together, the comparison of the others with the first, by `run`.
    """

    def __init__(
        self, name: str, groups: Mapping[str, xr.Dataset], *, recording: xr.Dataset | None = None, rows: str = "token",
        notes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.name, self.groups, self.recording, self.rows, self.notes = name, dict(groups), recording, rows, list(notes)
        self.blocks = Blocks()
        self.grows, self.live, self.version = False, False, 0
        self._lock, self._checked = Lock(), 0.0
        self._so_far: MotionSoFar | None = None
        self.comparison: xr.Dataset | None = None

    def refresh(self) -> bool:
        """Read again what grows; return whether it is complete now. Does nothing here."""
        return True

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        """The labels of the rows: vocabulary ids, or names of parameters."""
        return next((ds[self.rows].values for ds in self._datasets() if self.rows in ds.coords), np.empty(0, np.int64))

    @property
    def texts(self) -> list[str]:
        """The texts of the rows; "" where they are not known."""
        found = next((ds for ds in self._datasets() if "token_text" in ds.coords), None)
        if found is None or found["token_text"].dims != (self.rows,):
            return [""] * len(self.labels)
        by_id = dict(zip(found["token"].values.tolist(), found["token_text"].values.tolist(), strict=True))
        return [str(by_id.get(label, "")) for label in self.labels.tolist()]

    @property
    def steps(self) -> tuple[int, int]:
        """The first and the last step."""
        found = [ds["step"].values for ds in self._datasets() if ds.sizes.get("step") and "step" in ds.coords]
        return (int(min(s[0] for s in found)), int(max(s[-1] for s in found))) if found else (0, 0)

    def _datasets(self) -> list[xr.Dataset]:
        return [*self.groups.values(), *([] if self.recording is None else [self.recording])]

    def motion_so_far(self) -> MotionSoFar | None:
        """Return the life cycles of all rows by their motion, to which new steps are added; None without motion."""
        moved = self.groups.get("motion", xr.Dataset()).get("moved_dims")
        if moved is None or set(moved.dims) != {"step", self.rows}:
            return None
        with self._lock:
            if self._so_far is None or len(self.labels) != self._so_far.n_rows:
                self._so_far = MotionSoFar(len(self.labels))
            fold_blocks(moved.transpose("step", self.rows), self._so_far.step, self._so_far.add)
            return self._so_far
