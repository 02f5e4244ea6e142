"""Which of torch's arithmetics made a recording."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dask
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from deadtok_xr.analyses.common.updates import PIECE, Updates, held, read_updates
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
    """Replay a few updates with every arithmetic that the optimizer has, and count where they agree.

    Parameters
    ----------
    ds
        A recording, as for `mechanism`.
    steps
        The updates t to replay, each of which needs t-1 too; None for eight that are spread over the recording.
    hyperparameters, lr, variable, precision, updates_before
        As for `mechanism`.

    Returns
    -------
    xarray.Dataset
        Dataset over `arithmetic`, computed: `agreement` and `agreement_moved` (shares of elements that agree to the
        bit), `n_compared`, `n_missed`, `n_moved`, and `n_differ` (arithmetic, other), the elements on which two differ.
        Attributes: `verdict`, the name of the arithmetic that made the recording, "none" if none closes the updates, or
        "undetermined" if the best differ on fewer than 20 elements; `best`, the closest one; `report`, a sentence.

    Raises
    ------
    InputError
        If tensors, hyperparameters or rates are missing, or no step has the one before it.
    """
    u = read_updates(
        ds, "find_arithmetic", variable=variable, hyperparameters=hyperparameters, lr=lr, precision=precision,
        updates_before=updates_before,
    )  # fmt: skip
    if not any(_possible(u, name) for name in arithmetics.arithmetics(u.settings)):
        u.ready_for(u.settings.arithmetic, "find_arithmetic")
    found = Comparison()
    rates: list[float] = []
    for i in _positions(ds["step"].values, steps):
        both = {name: x[i - 1 : i + 1] for name, x in u.arrays.items()}
        (parts,) = dask.compute(both)
        t, rate = int(parts["t"][1, 0, 0]), float(parts["lr"][1, 0, 0])
        if np.isnan(rate) or t != parts["t"][0, 0, 0] + 1:  # not known, or the update left the parameter out
            continue
        rates.append(rate)
        for rows in _pieces(parts["W"].shape):
            before, after = (_tensors(u, parts, k, rows) for k in (0, 1))
            found.add(u.settings, t, rate, before, after)
    return _result(ds, u, found, float(np.mean(rates)) if rates else float("nan"))


def _possible(u: Updates, name: str) -> bool:
    return {n for side in arithmetics.needs(name, u.settings) for n in side} <= u.arrays.keys()


def _positions(labels: NDArray[np.int64], steps: Sequence[int] | None) -> list[int]:
    """The positions of updates whose earlier state is there."""
    single = np.flatnonzero(np.diff(labels) == 1) + 1
    if steps is not None:
        if not isinstance(steps, Iterable) or isinstance(steps, str) or not len(list(steps)):
            raise InputError(f"find_arithmetic: steps={steps!r}; needed: a list of updates to replay, such as [1, 100]")
        chosen = [i for i in single if labels[i] in set(steps)]
        lost = sorted(set(steps) - set(labels[chosen].tolist()))
        if lost:
            raise InputError(
                f"find_arithmetic: step {lost[0]} cannot be replayed, since it or step {lost[0] - 1} is missing"
            )
        return [int(i) for i in chosen]
    if not single.size:
        raise InputError("find_arithmetic: no step has the one before it; record every step, or pairs of steps")
    return sorted({int(single[k]) for k in np.linspace(0, single.size - 1, N_STEPS).round().astype(int)})


def _pieces(shape: tuple[int, ...]) -> list[slice]:
    height = max(1, PIECE // shape[2])
    return [slice(n, n + height) for n in range(0, shape[1], height)]


def _tensors(u: Updates, parts: dict[str, NDArray[Any]], k: int, rows: slice) -> arithmetics.Tensors:
    return {name: arithmetics.to_tensor(held(parts[name][k, rows], grid)) for name, grid in u.grids.items()}


def _result(ds: xr.Dataset, u: Updates, found: Comparison, lr: float) -> xr.Dataset:
    names = list(found.counts)
    counts = [found.counts[name] for name in names]
    apart = [[found.apart(a, b) for b in names] for a in names]
    report = sentence(found, u.settings, lr)
    told = ds.attrs.get("implementation")
    if found.verdict == "undetermined" and told in found.winners:
        report += f"; torch was told to compute as {told}"
    if "constant" in u.notes["lr_from"] and found.verdict == "none":
        report += "; the recording has no variable 'lr'"
    return xr.Dataset(
        {
            "agreement": ("arithmetic", [c.agreement for c in counts], {"units": "1"}),
            "agreement_moved": ("arithmetic", [c.agreement_moved for c in counts], {"units": "1"}),
            "n_compared": ("arithmetic", [c.compared for c in counts], {"units": "1"}),
            "n_missed": ("arithmetic", [c.compared - c.equal for c in counts], {"units": "1"}),
            "n_moved": ("arithmetic", [c.moved for c in counts], {"units": "1"}),
            "n_differ": (("arithmetic", "other"), np.array(apart, np.int64).reshape(len(names), -1), {"units": "1"}),
        },
        {"arithmetic": names, "other": names},
        {
            "verdict": found.verdict,
            "best": _best(found, u),
            "lr_estimate": found.lr_ratio * lr,
            "report": report,
            "candidates": {n: f"{c.compared - c.equal} of {c.compared} missed" for n, c in found.counts.items()},
            "untried": [name for name in names if name in u.untried],
            "source": ds.attrs.get("source", ""),
        },
    )


def _best(found: Comparison, u: Updates) -> str:
    """Of those that cannot be told apart, the one that the recording's flags name."""
    winners = found.winners
    return u.settings.arithmetic if u.settings.arithmetic in winners else next(iter(winners), "")
