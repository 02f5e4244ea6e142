"""What is explored: groups of results, the recording that they were made of, and what is missing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr.errors import IncompleteStoreError, InputError, MissingFileError
from deadtok_xr.explorer.binned import Blocks, fold_blocks
from deadtok_xr.explorer.motion_so_far import MotionSoFar
from deadtok_xr.schema import MONITOR, RESULTS
from deadtok_xr.store import destination, location
from deadtok_xr.store.sample import KIND as SAMPLE

_FORMAT = "1"  # of results
_WAIT = 1.0  # seconds between two looks at a growing store, for all pages together
_STILL_WRITTEN = (IncompleteStoreError, MissingFileError, OSError)


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


class Saved(Source):
    """Saved results, of which the first views need a few variables; `refresh` opens everything else."""

    _FIRST = ("motion", "phases", "lifecycle")

    def __init__(self, place: str | Path) -> None:
        from deadtok_xr.results.opening import open_some

        found = open_some(place, self._FIRST)
        for name, ds in found.items():
            found[name] = ds.drop_vars([n for n in ds.data_vars if n not in ("displacement", "fraction")])
        super().__init__(str(place), found)
        self._place, self.grows = place, True

    def refresh(self) -> bool:
        from deadtok_xr.results.opening import open_results

        with self._lock:
            if self.grows:
                self.grows = False
                opened = _of_results(open_results(self._place), self.name, _folder(self._place))
                self.groups, self.recording, self.notes = opened.groups, opened.recording, opened.notes
                self.version += 1
        return True


class Growing(Source):
    """A recording or a Monitor's store, opened again as it grows."""

    def __init__(self, place: str | Path, tokens: str | None) -> None:
        super().__init__(str(place), {})
        self._place, self._tokens = place, tokens
        self.live = True
        self._open()

    def refresh(self) -> bool:
        with self._lock:
            if not self.grows or time.monotonic() - self._checked < _WAIT:
                return not self.grows
            self._checked = time.monotonic()
            with suppress(*_STILL_WRITTEN):  # a chunk is being replaced, or the share is away: the next look will tell
                self._open()
            return not self.grows

    def _open(self) -> None:
        attrs = destination.root_attributes(self._place)
        complete = bool(attrs.get("complete"))
        opened = _monitor(self._place) if MONITOR in attrs else _of_recording(self._place, self._tokens)
        last = opened.steps[1] if self.version else None
        if last is None or opened.steps[1] != self.steps[1]:
            if last is not None and last < self.steps[1]:  # a run that was resumed from an earlier step
                self.blocks, self._so_far = Blocks(), None
            self.groups, self.recording, self.rows, self.notes = (
                opened.groups, opened.recording, opened.rows, opened.notes,
            )  # fmt: skip
            self.version += 1
        self.grows = not complete


def open_source(
    what: xr.DataTree | xr.Dataset | str | Path,
    *,
    tokens: str | None = None,
    run: str | None = None,
    live: bool = False,
) -> Source:
    """Open results, a recording or a Monitor's store to explore it.

    Parameters
    ----------
    what
        A path or an address; or a tree of results, or the dataset of a recording.
    tokens
        Of a recording: ``"all"``, ``"live"`` or ``"dead"``; None for the dead ones if they are known.
    run
        Of results or a recording of several runs, the label of one; None for the first of the results.
    live
        Whether it may still be written.

    Raises
    ------
    MissingFileError, InputError, IncompleteStoreError
        If there is nothing that can be explored; the message says what to do.
    """
    if isinstance(what, xr.DataTree):
        return _of_results(what, str(what.attrs.get("source", "results")), None, run)
    if isinstance(what, xr.Dataset):
        return _computed(what, str(what.attrs.get("source", "recording")))
    if not isinstance(what, (str, Path)):
        raise InputError(f"explore takes a path, a tree of results or a recording, not a {type(what).__name__}")
    if not location.exists(what):
        raise MissingFileError(f"{what} does not exist; expected results, a recording or a Monitor's store")
    attrs = destination.root_attributes(what)
    if SAMPLE in attrs:
        raise InputError(f"{what} holds samples of many parameters: explore one, dx.explore(tree[name].to_dataset())")
    if MONITOR in attrs or (live and RESULTS not in attrs):
        return Growing(what, tokens)
    if destination.RECORDING in attrs:
        if not attrs.get("complete"):
            raise IncompleteStoreError(f"{what} is still being written, or is unfinished: use `deadtok watch {what}`")
        return _of_recording(what, tokens, run)
    if live:
        raise InputError(f"{what} holds results, which do not grow: use `deadtok explore {what}`")
    return _saved(what, attrs, run)


def _saved(place: str | Path, attrs: Mapping[str, Any], run: str | None) -> Source:
    """Open results as far as the first views need them, after the checks that cost nothing."""
    version = str(attrs.get(RESULTS, _FORMAT))
    if version.partition(".")[0] != _FORMAT:
        raise InputError(
            f"{place} has results of the format {version}; this version of deadtok_xr reads {_FORMAT}.x: update "
            "deadtok_xr, or analyse the recording again"
        )
    if attrs.get("complete"):
        source = Saved(place)
        if len(source.labels) and run is None and not any("run" in ds.dims for ds in source.groups.values()):
            return source
    from deadtok_xr.results.opening import open_results

    return _of_results(open_results(place), str(place), _folder(place), run)


def _folder(place: str | Path) -> Path | None:
    return None if location.is_address(place) else Path(place).parent


def _of_results(tree: xr.DataTree, name: str, folder: Path | None, run: str | None = None) -> Source:
    from deadtok_xr.analyses.runs import labels_of, select_run

    notes = []
    if (labels := [str(label) for label in labels_of(tree)]) or run is not None:
        chosen = labels[0] if run is None else run
        tree = select_run(tree, chosen)
        notes = [f"Run {chosen} of {', '.join(labels)}: choose another with run= (--run)."]
    groups = {key: node.to_dataset() for key, node in tree.children.items()}
    if not groups:
        raise InputError(f"{name} holds no analyses: expected what `deadtok analyze` wrote")
    source = Source(name, groups, notes=tuple(notes))
    try:
        source.recording = _recording_of(tree, source, folder)
    except (InputError, OSError) as error:
        source.notes.append(f"The recording cannot be opened ({error}), so its weights are not shown.")
    return source


def _recording_of(tree: xr.DataTree, source: Source, folder: Path | None) -> xr.Dataset:
    """Open the recording of results: where it was, or beside them if both were moved together."""
    from deadtok_xr.recording import open_recording

    place = str(tree.attrs.get("source", ""))
    if not place:
        raise InputError("the results do not name it")
    if not location.is_address(place) and not Path(place).exists() and folder is not None:
        place = str(next((p for p in (folder / place, folder / Path(place).name) if p.exists()), place))
    run = tree.attrs.get("run")
    options: dict[str, Any] = {"run": run} if run is not None else {}
    recording = open_recording(place, partial=True, **options)
    if "run" in recording.dims:
        raise InputError(f"{place} holds several runs")
    have = np.isin(recording["token"].values, source.labels)
    if have.sum() != len(source.labels):
        raise InputError(f"{place} has other tokens")
    return recording if have.all() else recording.isel(token=np.flatnonzero(have))


def _of_recording(place: str | Path, tokens: str | None, run: str | None = None) -> Source:
    from deadtok_xr.analyses.analyze import open_for_analysis

    recording = open_for_analysis(place, tokens=tokens, partial=True, run=run)
    return _computed(recording, str(place))


def _computed(recording: xr.Dataset, name: str) -> Source:
    """Return a recording with the motion and the phases that are computed from it as they are looked at."""
    from deadtok_xr.analyses.motion import motion
    from deadtok_xr.analyses.phases import phases

    if "run" in recording.dims:
        raise InputError(f"{name} holds several runs, and the page shows one: select it, or name it with run= (--run)")
    if not {"step", "token", "dim"} <= set(recording.dims):
        raise InputError(f"{name} is no recording of (step, token, dim): it has {', '.join(map(str, recording.dims))}")
    notes = [
        f"{name} has no results: motion and phases are computed as you look. `deadtok analyze {name} -o results.zarr` "
        "computes all analyses; explore its results then."
    ]
    groups: dict[str, xr.Dataset] = {}
    if recording.sizes["step"] > 1:
        try:
            analysed = {"motion": motion(recording, allow_gaps=True), "phases": phases(recording, allow_gaps=True)}
            groups |= analysed
        except InputError as error:
            notes.append(f"Motion and phases are not known: {error}")
    return Source(name, groups, recording=recording, notes=tuple(notes))


def _monitor(place: str | Path) -> Source:
    """Return a Monitor's store with the shares of the elements by what became of their updates."""
    from deadtok_xr.monitor import open_monitor

    ds = open_monitor(place)
    outcomes = ["moved", "rounded_to_zero", "no_gradient", "unknown"]
    counts = ds[outcomes].to_array("phase").clip(0)
    fraction = (counts.sum("parameter") / ds["numel"].sum()).transpose("step", "phase")
    fraction.attrs["long_name"] = "share of the elements"
    shares = {
        f"{name}_fraction": (ds[name].where(ds[name] >= 0) / ds["numel"]).assign_attrs(
            long_name=f"share of elements: {name.replace('_', ' ')}", units="1"
        )
        for name in outcomes
    }
    means = {name.replace("fraction", "mean"): x.mean("step") for name, x in shares.items()}
    return Source(
        str(place),
        {"monitor": ds.assign(shares | means), "phases": xr.Dataset({"fraction": fraction})},
        rows="parameter",
    )
