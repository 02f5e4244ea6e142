"""Measure whether tokens keep their neighbours from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, step_selection
from deadtok_xr.analyses.registry import built_in
from deadtok_xr.engine import AnalysisSpec, ReductionResults
from deadtok_xr.engine.small_results import Arrays, compute_together

Floats = NDArray[np.float64]
ATTRS: dict[str, dict[str, Any]] = {
    "rank_correlation": {
        "long_name": "Spearman correlation of the pairwise distances before and after the transition", "units": "1",
        "formula": "ρ_S of ‖W_i[t-1] - W_j[t-1]‖₂ and ‖W_i[t] - W_j[t]‖₂ over i < j, ties at their mean rank",
        "comment": "1 if the order of all distances is kept; NaN for fewer than three tokens, or if all distances are "
        "equal",
    },
    "n_tokens": {"long_name": "tokens compared, without those with NaN or infinity", "units": "1"},
}  # fmt: skip
_AT_MOST = 65


@built_in
def neighbour_preservation(
    ds: xr.Dataset,
    *,
    steps: Sequence[int] | None = None,
    max_tokens: int = 1000,
    variable: str = "W",
    allow_gaps: bool = False,
) -> AnalysisSpec:
    """Correlate the ranks of all pairwise distances between tokens before and after transitions.

    Parameters
    ----------
    ds
        A recording, (step, token, dim).
    steps
        Labels of the transitions, those of their later steps. None: up to 65 at equal distances. Each sorts
        ``max_tokens``²/2 distances twice, which takes a fifth of a second.
    max_tokens
        If there are more tokens, use this many, evenly spread.
    variable
        The weights to analyse.
    allow_gaps
        Measure transitions that span several updates.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over the selected steps: `rank_correlation` float64, `n_tokens` int64.

    Raises
    ------
    InputError
        For fewer than two steps, gaps, steps that are not there, or a recording without absolute positions.

    Notes
    -----
    Notebook 12.2d. Rotation, translation and uniform scaling keep all ranks. Spearman's correlation is computed on
    shared ranks, since `scipy.stats.spearmanr` would rank the distances before and after a transition without motion
    twice.
    """
    x = checks.require(ds, variable, "neighbour_preservation")
    checks.check_steps(ds, "neighbour_preservation", allow_gaps=allow_gaps)
    labels = ds["step"].values[1:]
    at = tuple(i + 1 for i in step_selection.select_steps(labels, steps, "neighbour_preservation", _AT_MOST))
    tokens = step_selection.sample_tokens(ds.sizes["token"], max_tokens, "neighbour_preservation")
    reduction = step_selection.SelectedSteps(variable, at, tokens, _compare, pairs=True)
    shapes: dict[str, Any] = {name: (("step",), (len(at),), "i8" if name == "n_tokens" else "f8") for name in ATTRS}

    def finish(results: ReductionResults) -> xr.Dataset:
        measured = results.merged("pairs", "measured", step_selection.merge_measured)
        values = compute_together({"measured": measured}, _tabulate, shapes, ATTRS, at=at)
        attrs = checks.result_attrs(ds, variable=variable, max_tokens=max_tokens)
        return xr.Dataset(values, {"step": ds["step"].variable[list(at)]}, attrs)

    return AnalysisSpec({variable: checks.as_dask(x.data)}, {"pairs": reduction}, finish)


def _compare(before: Floats, after: Floats) -> tuple[float, int]:
    from scipy.spatial.distance import pdist

    valid = np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1)
    n = int(valid.sum())
    if n < 3:
        return np.nan, n
    before, after = before[valid], after[valid]
    distances = pdist(before)
    return _spearman(distances, distances if np.array_equal(before, after) else pdist(after)), n


def _spearman(a: Floats, b: Floats) -> float:
    from scipy.stats import rankdata

    x = rankdata(a)
    y = x if b is a else rankdata(b)
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(np.clip((x @ y) / size, -1.0, 1.0)) if size > 0 else np.nan


def _tabulate(inputs: dict[str, list[Any]], *, at: tuple[int, ...]) -> Arrays:
    (measured,) = inputs["measured"]
    rho, n = zip(*(measured[i] for i in at), strict=True)
    return {"rank_correlation": np.array(rho), "n_tokens": np.array(n)}
