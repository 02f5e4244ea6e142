"""How several runs differ: an overview with a row for each, what they do not have in common, and their findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from deadtok_xr.attributes import leaves_of
from deadtok_xr.errors import InputError
from deadtok_xr.explorer.source import Source
from deadtok_xr.text import counted, shortened

Runs = Mapping[str, Source]
"""The sources of the runs, by label."""
_COMPARED = 2**28  # bytes of weights of all runs that the page compares to the bit
_SHOWN = 6  # findings of a kind, and settings
_LONGEST = 24  # letters of a setting
_NO_SETTINGS = {"source", "tokens", "created", "software", "self_check", "complete", "recorded_variables", "dtypes"}
_SHORT = {
    **dict.fromkeys(("hyperparameters.lr", "initial_lr", "model.lr", "lr"), "learning rate at first"),
    "optimizer_class": "optimizer",
}


def overview(runs: Runs) -> pd.DataFrame:
    """Return a row of words for each run: settings, size, when its tokens froze, how it differs from the first."""
    settings = differing_settings([source.settings for source in runs.values()])
    frame = pd.DataFrame([_row(source) for source in runs.values()], index=list(runs)).fillna("not known")
    if (found := compared(runs)) is not None:
        since = dict(zip(map(str, found["run"].values), found["first_difference"].values.tolist(), strict=True))
        frame[f"differs from {next(iter(runs))}"] = [_since(since[label]) if label in since else "" for label in runs]
    return pd.concat([pd.DataFrame(settings, index=frame.index), frame], axis=1)


def differing_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the settings in which runs differ, a value for each run; of those with the same values, one."""
    flat = [{".".join(path): value for path, value in leaves_of(one)} for one in settings]
    found: dict[tuple[str, ...], str] = {}
    for name in sorted(set().union(*flat), key=len):  # seed before model.seed
        values = tuple(shortened(one[name], _LONGEST) if name in one else "" for one in flat)
        if name.partition(".")[0] not in _NO_SETTINGS and len(set(values)) > 1:
            found.setdefault(values, _SHORT.get(name, name.removeprefix("hyperparameters.")))
    return {name: list(values) for values, name in list(found.items())[:_SHOWN]}


def froze_first(runs: Runs) -> str:
    """Return a sentence about the run of which half of the rows froze first; "" if none did, or it is not known."""
    halves = {
        label: half for label, source in runs.items() if _ever_moved(source) and (half := _half_frozen(source)) >= 0
    }
    if not halves:
        return ""
    first = min(halves.values())
    labels = [label for label, half in halves.items() if half == first]
    return f"{' and '.join(labels)} froze first: half of the tokens for the first time at step {first:,}."


def _half_frozen(source: Source) -> int:
    """Return the first step at which half of the rows are in the coldest phase; -1 for never or unknown."""
    transition = source.groups.get("phases", xr.Dataset()).get("transition_step")
    return -1 if transition is None else int(transition.isel(phase=0))


def _row(source: Source) -> dict[str, str]:
    first, last = source.steps
    row = {f"{source.rows}s": f"{len(source.labels):,}", "steps": f"{first:,} to {last:,}"}
    phases = source.groups.get("phases", xr.Dataset())
    if "transition_step" in phases:
        coldest = phases.isel(phase=0)
        name, half = str(coldest["phase"].values), _half_frozen(source)
        row[f"first step with half {name}"] = f"{half:,}" if half >= 0 else "never"
        row[f"{name} at the end"] = f"{float(coldest['fraction'][-1]):.1%}"
    if (moved := _last_motion(source)) is not None and len(moved):
        latest = int(moved.max())
        row["last motion of any token"] = (
            "never" if latest < 0
            else f"{latest:,}; still for {counted(last - latest, 'step')}" if latest < last else "still moving"
        )  # fmt: skip
    return row


def _ever_moved(source: Source) -> bool:
    """Return whether anything moves, as far as that is known: what never moves does not freeze."""
    last = _last_motion(source)
    return last is None or bool((last >= 0).any())


def _last_motion(source: Source) -> Any:
    """Return the last step at which each token moved; None if it is not known."""
    lifecycle = source.groups.get("lifecycle", xr.Dataset())
    if "last_motion" in lifecycle:
        return lifecycle["last_motion"].values
    so_far = source.motion_so_far()
    return None if so_far is None else so_far.columns()["last_motion"]


def _since(step: int) -> str:
    return f"from step {step:,}" if step >= 0 else "equal to the bit"


def compared(runs: Runs) -> xr.Dataset | None:
    """Return the comparison of all runs with the first: as it was analysed, or computed if there is little to read."""
    sources = list(runs.values())
    if len(sources) < 2:
        return None
    saved = sources[0].comparison
    if saved is not None and list(map(str, saved["run"].values)) == list(runs)[1:]:
        return saved
    recordings = [source.recording for source in sources]
    weights = [r["W"] for r in recordings if r is not None and "W" in r]
    if len(weights) < len(sources) or sum(w.nbytes for w in weights) > _COMPARED:
        return None
    from deadtok_xr.analyses.compare_runs import compare_runs

    try:
        found: xr.Dataset = compare_runs(*(w.to_dataset(name="W") for w in weights), run=list(runs), join="inner")
    except InputError:
        return None  # nothing in common: `in_common` says so
    sources[0].comparison = found = found.compute()
    return found


def in_common(runs: Runs) -> list[str]:
    """Return sentences about the rows and texts that the runs do not share; none if they share all."""
    if len(runs) < 2:
        return []
    sources, rows = list(runs.values()), f"{next(iter(runs.values())).rows}s"
    labels = [set(source.labels.tolist()) for source in sources]
    shared, every = set.intersection(*labels), set.union(*labels)
    sentences = []
    if shared != every:
        counts = ", ".join(f"{len(own):,} in {label}" for label, own in zip(runs, labels, strict=True))
        sentences.append(f"The runs have different {rows} ({counts}); {len(shared):,} are in all of them.")
    texts = [dict(zip(source.labels.tolist(), source.texts, strict=True)) for source in sources]
    other = sum(len({own[label] for own in texts} - {""}) > 1 for label in shared)
    if other:
        sentences.append(f"{other:,} {rows} have another text in another run: the same id may mean another token.")
    return sentences


def findings(runs: Runs) -> list[tuple[str, list[str]]]:
    """Return headings, and under each the main findings: of the only run, or of several, what differs first."""
    from deadtok_xr.results import findings as of_one
    from deadtok_xr.results import side_by_side, summary

    groups = {label: of_one.load(xr.DataTree.from_dict({"/": xr.Dataset(), **s.groups})) for label, s in runs.items()}
    if len(groups) == 1:
        return [("", [finding.text for finding in of_one.findings(next(iter(groups.values())))][: summary.N_FINDINGS])]
    comparison = compared(runs)
    apart = [] if comparison is None else side_by_side.comparison({side_by_side.COMPARISON: comparison})
    shared = side_by_side.shared_findings(groups)
    order = " / ".join(groups) if len(groups) <= side_by_side.AT_MOST else "smallest to largest"
    return [
        ("", [finding.text for finding in apart]),
        (f"Where the runs differ ({order}):", [f.text for f in shared if f.differs][:_SHOWN]),
        ("In all runs:", [f.text for f in shared if not f.differs][:_SHOWN]),
    ]


def positions(source: Source, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the positions of labels of rows in a source; -1 for those that it does not have."""
    return pd.Index(source.labels).get_indexer(labels)
