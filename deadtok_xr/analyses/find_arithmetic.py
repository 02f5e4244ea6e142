"""Find which of torch's arithmetics made a recording."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from deadtok_xr.analyses.common.compared_updates import compare_updates
from deadtok_xr.analyses.common.read_updates import read_updates
from deadtok_xr.analyses.common.recorded_updates import Updates
from deadtok_xr.analyses.common.step_selection import select_steps
from deadtok_xr.errors import InputError
from deadtok_xr.replay import arithmetic as arithmetics
from deadtok_xr.replay.compare import Comparison, sentence

N_STEPS = 8


def find_arithmetic(
    ds: xr.Dataset,
    steps: Sequence[int] | None = None,
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    lr: float | ArrayLike | None = None,
    variable: str = "W",
    precision: str | None = None,
    updates_before: int = 0,
) -> xr.Dataset:
    """Replay a few updates with every arithmetic of the optimizer, and count the elements that agree.

    Parameters
    ----------
    ds
        A recording, as for `mechanism`.
    steps
        The updates t to replay, each of which also needs step t-1; None for eight spread over the recording.
    hyperparameters, lr, variable, precision, updates_before
        As for `mechanism`.

    Returns
    -------
    xarray.Dataset
        Dataset over `arithmetic`, computed: `agreement` and `agreement_moved` (shares of elements that agree to the
        bit), `n_compared`, `n_missed`, `n_moved`, and `n_differ` (arithmetic, other), the elements on which two differ.
        Attributes: `verdict`, the name of the arithmetic that made the recording, "none" if none reproduces the
        updates, or "undetermined" if the best ones differ on fewer than 20 elements; `best`, the closest one; `report`,
        a sentence.

    Raises
    ------
    InputError
        If tensors, hyperparameters or learning rates are missing, or no two consecutive steps are recorded.
    """
    u = read_updates(
        ds, "find_arithmetic", variable=variable, hyperparameters=hyperparameters, lr=lr, precision=precision,
        updates_before=updates_before,
    )  # fmt: skip
    if not any(_possible(u, name) for name in arithmetics.candidates(u.settings)):
        u.require(u.settings.arithmetic, "find_arithmetic")
    comparison, rates = compare_updates(u, _positions(ds["step"].values, steps))
    return _result(ds, u, comparison, float(np.mean(rates)) if rates else float("nan"))


def _possible(u: Updates, name: str) -> bool:
    return {n for side in arithmetics.required_tensors(name, u.settings) for n in side} <= u.arrays.keys()


def _positions(labels: NDArray[np.int64], steps: Sequence[int] | None) -> list[int]:
    """Return the positions of the updates to replay, whose earlier state is recorded."""
    single = np.flatnonzero(np.diff(labels) == 1) + 1
    if steps is not None:
        if not isinstance(steps, Iterable) or isinstance(steps, str) or not len(list(steps)):
            raise InputError(
                f"find_arithmetic: steps={steps!r}; expected a list of updates to replay, such as [1, 100]"
            )
        missing = sorted(set(steps) - set(labels[single].tolist()))
        if missing:
            raise InputError(
                f"find_arithmetic: step {missing[0]} cannot be replayed, since it or step {missing[0] - 1} is missing"
            )
    elif not single.size:
        raise InputError("find_arithmetic: no two consecutive steps are recorded; record every step, or pairs of steps")
    return single[list(select_steps(labels[single], steps, "find_arithmetic", N_STEPS))].tolist()


def _result(ds: xr.Dataset, u: Updates, comparison: Comparison, lr: float) -> xr.Dataset:
    names = list(comparison.counts)
    counts = [comparison.counts[name] for name in names]
    n_differ = [[comparison.n_different(a, b) for b in names] for a in names]
    report = sentence(comparison, u.settings, lr)
    recorded = ds.attrs.get("implementation")
    if comparison.verdict == "undetermined" and recorded in comparison.best_candidates:
        report += f"; the recording's flags select {recorded}"
    if "constant" in u.notes["lr_from"] and comparison.verdict == "none":
        report += "; the recording has no variable 'lr'"
    return xr.Dataset(
        {
            "agreement": ("arithmetic", [c.agreement for c in counts], {"units": "1"}),
            "agreement_moved": ("arithmetic", [c.agreement_moved for c in counts], {"units": "1"}),
            "n_compared": ("arithmetic", [c.compared for c in counts], {"units": "1"}),
            "n_missed": ("arithmetic", [c.compared - c.equal for c in counts], {"units": "1"}),
            "n_moved": ("arithmetic", [c.moved for c in counts], {"units": "1"}),
            "n_differ": (("arithmetic", "other"), np.array(n_differ, np.int64).reshape(len(names), -1), {"units": "1"}),
        },
        {"arithmetic": names, "other": names},
        {
            "verdict": comparison.verdict,
            "best": _best(comparison, u),
            "lr_estimate": comparison.lr_ratio * lr,
            "report": report,
            "candidates": {n: f"{c.compared - c.equal} of {c.compared} missed" for n, c in comparison.counts.items()},
            "source": ds.attrs.get("source", ""),
        },
    )


def _best(comparison: Comparison, u: Updates) -> str:
    """Return the best arithmetic; of several equally good ones that of the recording's flags."""
    best = comparison.best_candidates
    return u.settings.arithmetic if u.settings.arithmetic in best else next(iter(best), "")
