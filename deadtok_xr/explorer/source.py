"""What is explored: groups of results, the recording that they were made of, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr.explorer.binned import Blocks, fold_blocks
from deadtok_xr.explorer.motion_so_far import MotionSoFar
from deadtok_xr.schema import RUN
from deadtok_xr.store import location


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
    settings
        What was recorded of the run's settings, such as hyperparameters.
    saved_at
        Where the results are saved; None if they are not.
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
        self.settings: dict[str, Any] = {}
        self.saved_at: str | Path | None = None

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

    def in_python(self) -> str:
        """Return an expression that opens what a selection is taken of: the recording, else a group of results."""
        if self.rows == "parameter":
            return f"dx.open_monitor({location.absolute(self.name)!r})"
        recording = self.recording
        if recording is not None and recording.attrs.get("source"):
            run = f", run={recording[RUN].item()!r}" if RUN in recording.coords else ""
            partial = ", partial=True" if self.live and self.grows else ""
            return opening_recording(recording.attrs["source"], run + partial)
        if self.saved_at is not None and self.groups:
            group = next((name for name, ds in self.groups.items() if "step" in ds.dims), next(iter(self.groups)))
            run = f".sel(run={self.groups[group][RUN].item()!r})" if RUN in self.groups[group].coords else ""
            return f"dx.open_results({location.absolute(self.saved_at)!r})[{group!r}].to_dataset(){run}"
        return "...  # the recording, or a group of the results, that dx.explore was given"

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


def opening_recording(place: str | Path, options: str = "") -> str:
    """Return the expression that opens a recording from any folder."""
    return f"dx.open_recording({location.absolute(place)!r}{options})"
