"""Test whether the tokens form one cloud or several."""

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
from deadtok_xr.errors import InputError

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]
ATTRS: dict[str, dict[str, Any]] = {
    "silhouette": {
        "long_name": "mean silhouette of k clusters", "units": "1",
        "formula": "mean_i (b_i - a_i) / max(a_i, b_i), a_i the mean distance to the other tokens of the same cluster, "
        "b_i to those of the nearest other cluster; 0 for a token alone in its cluster",
        "comment": "1 for small clusters far apart, about 0 for a single cloud; NaN for fewer than k + 1 tokens or "
        "than k distinct places",
    },
    "inertia": {
        "long_name": "sum of squared distances to the centres of the clusters", "units": "1",
        "formula": "Σ_i ‖W_i - centre of its cluster‖₂²",
    },
    "best_k": {"long_name": "number of clusters with the largest silhouette; -1 for none", "units": "1"},
    "n_tokens": {"long_name": "tokens clustered, those with NaN or infinity left out", "units": "1"},
}  # fmt: skip
_AT_MOST, _STARTS, _ROUNDS = 5, 20, 100


@built_in
def clusters(
    ds: xr.Dataset,
    *,
    k: Sequence[int] = (2, 3, 4, 5),
    steps: Sequence[int] | None = None,
    max_tokens: int = 1000,
    seed: int = 0,
    variable: str = "W",
) -> AnalysisSpec:
    """Cluster the tokens at selected steps with k-means, and measure with the silhouette how well clusters separate.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); gaps in the steps do not matter.
    k
        Numbers of clusters to try.
    steps
        Labels of the steps. None: up to five at equal distances, the first and the last among them.
    max_tokens
        If there are more tokens, use this many, evenly spread.
    seed
        Seed of k-means++; the best of 20 starts is used.
    variable
        The weights to analyse.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over the selected steps: `silhouette`, `inertia` (step, k) float64; `best_k`, `n_tokens` (step)
        int64.

    Raises
    ------
    InputError
        For numbers of clusters below 2, steps that are not there, or a recording without absolute positions.

    Notes
    -----
    Notebook 1.13d. k-means finds k clusters in any cloud: what matters is the silhouette, and how it changes. k-means
    and silhouette are those of scikit-learn, which this package does not depend on.
    """
    x = checks.require(ds, variable, "clusters")
    numbers = tuple(int(n) for n in k)
    if not numbers or min(numbers) < 2 or len(set(numbers)) < len(numbers):
        raise InputError(f"clusters: k={list(k)}; expected different numbers of clusters, each at least 2")
    at = step_selection.select_steps(ds["step"].values, steps, "clusters", _AT_MOST)
    tokens = step_selection.sample_tokens(ds.sizes["token"], max_tokens, "clusters")
    reduction = step_selection.SelectedSteps(variable, at, tokens, _describe, (numbers, seed))
    shapes: dict[str, Any] = {
        **dict.fromkeys(("silhouette", "inertia"), (("step", "k"), (len(at), len(numbers)), "f8")),
        **dict.fromkeys(("best_k", "n_tokens"), (("step",), (len(at),), "i8")),
    }

    def finish(results: ReductionResults) -> xr.Dataset:
        inputs = {"measured": results.merged("clusters", "measured", step_selection.merge_measured)}
        values = compute_together(inputs, _tabulate, shapes, ATTRS, at=at, numbers=numbers)
        coords = {"step": ds["step"].variable[list(at)], "k": np.array(numbers)}
        return xr.Dataset(values, coords, checks.result_attrs(ds, variable=variable, max_tokens=max_tokens, seed=seed))

    return AnalysisSpec({variable: checks.as_dask(x.data)}, {"clusters": reduction}, finish)


def _describe(x: Floats, numbers: tuple[int, ...], seed: int) -> tuple[Longs, Floats, Floats]:
    from scipy.spatial.distance import cdist

    x = x[np.isfinite(x).all(axis=1)]
    silhouette, inertia = np.full((2, len(numbers)), np.nan)
    n_places = len(np.unique(x, axis=0)) if len(x) else 0
    scale = 1.0
    if n_places >= 2:
        x = x - x.mean(axis=0)
        scale = np.abs(x).max()
        x /= scale  # squares of subnormals would vanish
    distances = cdist(x, x) if n_places >= 2 else None
    for i, k in enumerate(numbers):
        if distances is not None and n_places >= k and len(x) > k:
            cluster, inertia[i] = k_means(x, k, np.random.default_rng(seed))
            silhouette[i] = mean_silhouette(distances, cluster, k)
    return np.array([len(x)]), silhouette, inertia * scale**2


def k_means(x: Floats, k: int, rng: np.random.Generator) -> tuple[Longs, float]:
    """Return the cluster of each row of x (n, d) and the inertia, best of several starts; needs k distinct rows."""
    starts = [_lloyd(x, _initial_centres(x, k, rng)) for _ in range(_STARTS)]
    return min(starts, key=lambda start: start[1])


def _initial_centres(x: Floats, k: int, rng: np.random.Generator) -> Floats:
    """Draw centres by k-means++: each further one with a probability by its squared distance to the others."""
    centres = [x[rng.integers(len(x))]]
    distance = _squared_distances(x, centres[0])
    while len(centres) < k:
        centres.append(x[rng.choice(len(x), p=distance / distance.sum())])
        distance = np.minimum(distance, _squared_distances(x, centres[-1]))
    return np.stack(centres)


def _squared_distances(x: Floats, centre: Floats) -> Floats:
    difference = x - centre
    return np.asarray(np.einsum("nd,nd->n", difference, difference))


def _lloyd(x: Floats, centres: Floats) -> tuple[Longs, float]:
    """Return the cluster of each row and the inertia, by Lloyd's algorithm."""
    cluster = np.full(len(x), -1)
    for _ in range(_ROUNDS):
        distance = np.stack([_squared_distances(x, centre) for centre in centres])
        nearest = distance.argmin(axis=0)
        if (nearest == cluster).all():
            break
        cluster = nearest
        members = cluster == np.arange(len(centres))[:, None]
        n = members.sum(axis=1)[:, None]
        # an empty cluster stays where it was
        centres = np.where(n > 0, members.astype(np.float64) @ x / np.maximum(n, 1), centres)
    return cluster, float(distance.min(axis=0).sum())


def mean_silhouette(distances: Floats, cluster: Longs, k: int) -> float:
    """Return the mean silhouette, given the distances (n, n) and the cluster of each token."""
    members = (cluster == np.arange(k)[:, None]).astype(np.float64)
    n = members.sum(axis=1)
    total = distances @ members.T  # (n, k)
    rows = np.arange(len(cluster))
    own = total[rows, cluster] / np.maximum(n[cluster] - 1, 1)
    other = np.where(n > 0, total / np.maximum(n, 1), np.inf)
    other[rows, cluster] = np.inf
    nearest = other.min(axis=1)
    most = np.maximum(own, nearest)
    usable = (n[cluster] > 1) & (most > 0) & np.isfinite(nearest)
    return float(np.where(usable, (nearest - own) / np.where(usable, most, 1.0), 0.0).mean())


def _tabulate(inputs: dict[str, list[Any]], *, at: tuple[int, ...], numbers: tuple[int, ...]) -> Arrays:
    (measured,) = inputs["measured"]
    n, silhouette, inertia = (np.stack([np.asarray(measured[i][j]) for i in at]) for j in range(3))
    known = ~np.isnan(silhouette)
    best = np.where(known, silhouette, -np.inf).argmax(axis=1)
    return {
        "silhouette": silhouette, "inertia": inertia, "n_tokens": n[:, 0],
        "best_k": np.where(known.any(axis=1), np.array(numbers)[best], -1),
    }  # fmt: skip
