"""Open what is explored: results, recordings and Monitor stores, of one run or several, complete or growing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from deadtok_xr.attributes import plain
from deadtok_xr.errors import IncompleteStoreError, InputError, MissingFileError
from deadtok_xr.explorer.binned import Blocks
from deadtok_xr.explorer.kinds import check, grows
from deadtok_xr.explorer.source import Source, opening_recording
from deadtok_xr.schema import MONITOR, RECORDING, RUN
from deadtok_xr.store import destination, location
from deadtok_xr.text import distinct_names

_WAIT = 1.0  # seconds between two looks at a growing store, for all pages together
_STILL_WRITTEN = (IncompleteStoreError, MissingFileError, OSError)


class Saved(Source):
    """Saved results, of which the first picture needs two variables; `refresh` opens everything else."""

    _FIRST: ClassVar = {"motion": ["displacement"], "lifecycle": ["last_motion"]}

    def __init__(self, place: str | Path) -> None:
        from deadtok_xr.results.opening import open_some

        super().__init__(str(place), open_some(place, self._FIRST))
        self.saved_at: str | Path = place
        self.grows = True
        found = _place_of_recording(destination.root_attributes(place), place)
        self._opening = opening_recording(found) if location.is_address(found) or Path(found).exists() else ""
        if not self._opening:  # said at once, so that nothing moves later
            self.notes = [f"The recording {found or 'has no name and'} cannot be opened, so its weights are not shown."]

    def refresh(self) -> bool:
        from deadtok_xr.results.opening import open_results

        with self._lock:
            if self.grows:
                self.grows = False
                opened = _of_tree(open_results(self.saved_at), self.name, self.saved_at)
                self.groups, self.recording, self.notes = opened.groups, opened.recording, opened.notes
                self.settings = opened.settings
                self.version += 1
        return True

    def in_python(self) -> str:
        """Return the expression at once, before the recording is opened."""
        return self._opening if self.grows and self._opening else super().in_python()


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
        opened = _monitor(self._place) if MONITOR in attrs else self._recording()
        last = opened.steps[1] if self.version else None
        if last is None or opened.steps[1] != self.steps[1]:
            if last is not None and last < self.steps[1]:  # a run that was resumed from an earlier step
                self.blocks, self._so_far = Blocks(), None
            self.groups, self.recording, self.rows, self.notes = (
                opened.groups, opened.recording, opened.rows, opened.notes,
            )  # fmt: skip
            self.version += 1
        self.grows = not complete

    def _recording(self) -> Source:
        recording = _opened_recording(self._place, self._tokens)
        if RUN in recording.dims:
            raise InputError(f"{self.name} holds several runs, which do not grow: use `deadtok explore {self.name}`")
        return _computed(recording, self.name)


def open_source(
    what: xr.DataTree | xr.Dataset | str | Path,
    *,
    tokens: str | None = None,
    run: str | None = None,
    live: bool = False,
) -> Source:
    """Open results, a recording or a Monitor's store of one run to explore it.

    Parameters
    ----------
    what
        A path or an address; or a tree of results, or the dataset of a recording.
    tokens
        Of a recording: ``"all"``, ``"live"`` or ``"dead"``; None for the dead ones if they are known.
    run
        Of results or a recording of several runs, the label of one.
    live
        Whether it may still be written.

    Raises
    ------
    MissingFileError, InputError, IncompleteStoreError
        If there is nothing that can be explored, or it holds several runs; the message says what to do.
    """
    runs = _opened(what, tokens, run, live=live)
    if len(runs) > 1:
        raise InputError(f"{what} holds several runs, {', '.join(runs)}: name one with run= (--run)")
    return next(iter(runs.values()))


def open_runs(what: Any, *, tokens: str | None = None, run: str | None = None) -> dict[str, Source]:
    """Open what `deadtok_xr.explore` takes: a source for each run, by label.

    Raises
    ------
    MissingFileError, InputError, IncompleteStoreError
        As `open_source`; or if some have tokens and others parameters.
    """
    if not isinstance(what, (list, tuple)):
        return _opened(what, tokens, run)
    if not what:
        raise InputError("there is nothing to explore: name results or recordings")
    if len(what) == 1:
        return _opened(what[0], tokens, run)
    runs: dict[str, Source] = {}
    for name, one in zip(distinct_names([_place(x) for x in what]), what, strict=True):
        found = _opened(one, tokens, run)
        runs |= {(f"{name} {label}" if len(found) > 1 else name): source for label, source in found.items()}
    if len(kinds := {source.rows for source in runs.values()}) > 1:
        raise InputError(f"some of these have {' and others '.join(sorted(f'{kind}s' for kind in kinds))}: explore "
                         "them one by one")  # fmt: skip
    return runs


def _place(what: Any) -> str:
    """Return where something was opened, as far as it is known."""
    return str(what.attrs.get("source", "")) if isinstance(what, (xr.DataTree, xr.Dataset)) else str(what)


def _opened(what: Any, tokens: str | None, run: str | None, *, live: bool = False) -> dict[str, Source]:
    """Open one path, tree or dataset: a source for each run that it holds, or for the only one."""
    if isinstance(what, xr.DataTree):
        return _of_results(what, _place(what) or "results", None, run)
    if isinstance(what, xr.Dataset):
        return _of_recording(what, _place(what) or "recording")
    if not isinstance(what, (str, Path)):
        raise InputError(f"explore takes a path, a tree of results or a recording, not a {type(what).__name__}")
    attrs = check(what, live=live)
    if grows(attrs, live=live):
        return {_label(what): Growing(what, tokens)}
    if RECORDING in attrs:
        return _of_recording(_opened_recording(what, tokens, run), str(what))
    return _saved(what, run)


def _label(place: str | Path) -> str:
    return Path(place).name.removesuffix(".zarr")


def _opened_recording(place: str | Path, tokens: str | None, run: str | None = None) -> xr.Dataset:
    from deadtok_xr.analyses.analyze import open_for_analysis

    return open_for_analysis(place, tokens=tokens, partial=True, run=run)


def _saved(place: str | Path, run: str | None) -> dict[str, Source]:
    """Open results as far as the first picture needs them."""
    if run is None:
        source = Saved(place)
        if len(source.labels) and not any(RUN in ds.dims for ds in source.groups.values()):
            return {_label(place): source}
    from deadtok_xr.results.opening import open_results

    return _of_results(open_results(place), str(place), place, run)


def _of_results(tree: xr.DataTree, name: str, saved_at: str | Path | None, run: str | None = None) -> dict[str, Source]:
    """Return a source for each run of a tree, for one that is named, or for the only one."""
    from deadtok_xr.analyses.runs import COMPARISON, labels_of, select_run

    labels = labels_of(tree)
    if run is not None or labels:
        chosen = labels if run is None else [run]
        runs = {str(label): _of_tree(select_run(tree, label), name, saved_at) for label in chosen}
        if COMPARISON in tree.children and run is None:
            for source in runs.values():
                source.comparison = tree[COMPARISON].to_dataset()
        return runs
    return {_label(name): _of_tree(tree, name, saved_at)}


def _of_tree(tree: xr.DataTree, name: str, saved_at: str | Path | None) -> Source:
    """Return the source of a tree of results of one run."""
    groups = {key: node.to_dataset() for key, node in tree.children.items()}
    if not groups:
        raise InputError(f"{name} holds no analyses: expected what `deadtok analyze` wrote")
    source = Source(name, groups)
    source.saved_at, source.settings = saved_at, plain(tree.attrs).get("recording") or {}
    try:
        source.recording = _recording_of(tree, source)
    except (InputError, OSError) as error:
        source.notes.append(f"The recording cannot be opened ({error}), so its weights are not shown.")
    return source


def _place_of_recording(attrs: Mapping[Any, Any], saved_at: str | Path | None) -> str:
    """Return where the recording of results was, or is beside them if both were moved together; "" if not known."""
    place = str(attrs.get("source", ""))
    if not place or saved_at is None or any(map(location.is_address, (place, saved_at))) or Path(place).exists():
        return place
    folder = Path(saved_at).parent
    return str(next((p for p in (folder / place, folder / Path(place).name) if p.exists()), place))


def _recording_of(tree: xr.DataTree, source: Source) -> xr.Dataset:
    """Open the recording of results."""
    from deadtok_xr.recording import open_recording

    place = _place_of_recording(tree.attrs, source.saved_at)
    if not place:
        raise InputError("the results do not name it")
    run = tree.attrs.get("run")
    options: dict[str, Any] = {"run": run} if run is not None else {}
    recording = open_recording(place, partial=True, **options)
    if "run" in recording.dims:
        raise InputError(f"{place} holds several runs")
    have = np.isin(recording["token"].values, source.labels)
    if have.sum() != len(source.labels):
        raise InputError(f"{place} has other tokens")
    return recording if have.all() else recording.isel(token=np.flatnonzero(have))


def _of_recording(recording: xr.Dataset, name: str) -> dict[str, Source]:
    """Return a source for each run of a recording, or for the only one."""
    from deadtok_xr.recording.runs import one_run, run_labels

    if RUN not in recording.dims:
        return {_label(name): _computed(recording, name)}
    # a recording with a source of its own was opened alone, without a label
    alone = [RUN] if "source" not in recording.attrs else []
    labels = map(str, run_labels(recording))
    return {
        label: _computed(one_run(recording, i).drop_vars(alone, errors="ignore"), name)
        for i, label in enumerate(labels)
    }


def _computed(recording: xr.Dataset, name: str) -> Source:
    """Return a recording with the motion and the phases that are computed from it as they are looked at."""
    from deadtok_xr.analyses.motion import motion
    from deadtok_xr.analyses.phases import phases

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
    source = Source(name, groups, recording=recording, notes=tuple(notes))
    source.settings = plain(recording.attrs)
    return source


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
