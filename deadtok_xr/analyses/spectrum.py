"""Measure the shape of the cloud, its extent along dims and principal axes, at selected steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, step_selection, summary_text
from deadtok_xr.analyses.common.token_pieces import add_rows, pieces, wide
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import AnalysisSpec, Batch, Cost, Output, ReductionResults, SingleVariable, Sizes, StepBlock
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.kernels import CACHED

_COVARIANCE = "of the covariance Σ_i (W_i - C)(W_i - C)ᵀ / (N - 1)"
ATTRS: dict[str, dict[str, Any]] = {
    "eigenvalue": {
        "long_name": "variance along a principal axis", "units": "1",
        "formula": f"eigenvalues λ {_COVARIANCE}, descending",
        "comment": "0 if not larger than rounding, max(N, D)·2⁻⁵²·λ_max",
    },
    "participation_ratio": {
        "long_name": "participation ratio: effective number of principal axes", "units": "1",
        "formula": "(Σ λ)² / Σ λ²", "comment": "D for a sphere, 1 for a line; NaN if all tokens are in one place",
    },
    "eccentricity": {
        "long_name": "ratio of the largest to the smallest variance", "units": "1", "formula": "λ_max / λ_min",
        "comment": "infinite for a cloud without extent along an axis; NaN if all tokens are in one place",
    },
    "std_dim": {
        "long_name": "standard deviation along a dim (ddof 1)", "units": "1",
        "formula": "√(Σ_i (W_id - C_d)² / (N - 1))",
    },
    "total_variance": {"long_name": "variance in all dims together", "units": "1", "formula": "Σ λ"},
}  # fmt: skip
PRODUCTS_OF = 2**22
"""Elements whose products are summed at once, as 32 MiB of float64; the sums of larger steps are sums of these."""
_AT_MOST, _AT_LEAST = 65, 9
_OPERATIONS = 1e11
"""N·D² of all steps that are selected by default: some 3 s."""


@built_in
def spectrum(ds: xr.Dataset, *, steps: Sequence[int] | None = None, variable: str = "W") -> AnalysisSpec:
    """Compute the spectrum of the tokens' covariance at selected steps.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); one step is enough, and gaps do not matter.
    steps
        Labels of the steps. None: up to 65 at equal distances, the first and the last among them; of wide models fewer,
        at least 9, since each costs N·D² operations, and all together at most 10¹¹. For all steps pass
        ``ds.step.values``.
    variable
        The weights to analyse.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over `spectrum_step`, float64: `eigenvalue` (spectrum_step, mode), `participation_ratio`,
        `eccentricity`, `std_dim` (spectrum_step, dim), `total_variance`. A step with NaN or infinity gives NaN, and so
        does a single token, which has no covariance.

    Raises
    ------
    InputError
        For a recording without absolute positions, or a step that is not there.

    Notes
    -----
    `std_dim` is the spread along one dim; the standard deviation over all elements of a cluster mostly measures how the
    dims of its centre differ.
    """
    x = checks.require(ds, variable, "spectrum")
    labels = ds["step"].values
    n_dims = ds.sizes["dim"]
    at_most = step_selection.affordable(_AT_MOST, _AT_LEAST, ds.sizes["token"] * n_dims**2, _OPERATIONS)
    at = step_selection.select_steps(labels, steps, "spectrum", at_most)
    n = len(at)
    shapes: dict[str, Any] = dict.fromkeys(ATTRS, (("spectrum_step",), (n,), "f8"))
    shapes["eigenvalue"] = (("spectrum_step", "mode"), (n, n_dims), "f8")
    shapes["std_dim"] = (("spectrum_step", "dim"), (n, n_dims), "f8")

    def finish(results: ReductionResults) -> xr.Dataset:
        inputs = {"measured": results.merged("spectrum", "measured", step_selection.merge_measured)}
        values = compute_together(inputs, _describe, shapes, ATTRS, at=at)
        coords = {
            **coordinates.along(ds, "dim"),
            "spectrum_step": xr.Variable("spectrum_step", labels[list(at)], dict(ds["step"].attrs)),
            "mode": xr.Variable("mode", np.arange(n_dims)),
        }
        return xr.Dataset(values, coords, checks.result_attrs(ds, variable=variable))

    reduction = Covariance(variable, at)
    return AnalysisSpec({variable: checks.as_dask(x.data)}, {"spectrum": reduction}, finish)


@dataclass(frozen=True)
class Covariance(SingleVariable):
    """The reduction that computes the spectrum of the covariance at selected steps.

    Attributes
    ----------
    at
        Positions of the steps.
    """

    at: tuple[int, ...]

    def outputs(self) -> dict[str, Output]:
        """Return `measured`, one dict per block: by position, eigenvalues and standard deviations."""
        return {"measured": Output(at="block")}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        seconds = (5e-4 + 12e-9 * sizes.step + 0.04e-9 * (sizes.step * sizes.dims + 10 * sizes.dims**3)) * len(self.at)
        piece = min(sizes.step, PRODUCTS_OF) + 4 * CACHED
        return Cost(seconds, temporary=8 * piece + 3 * 8 * sizes.dims**2)


class _Accumulator:
    def __init__(self, reduction: Covariance, block: StepBlock) -> None:
        self.name, self.block, self.at = reduction.variable, block, set(reduction.at)
        self.measured: dict[int, Any] = {}

    def update(self, batch: Batch) -> None:
        first = self.block.first + batch.start
        for t in range(batch.n_states):
            if first + t in self.at:
                self.measured[first + t] = _spectrum(batch.values[self.name][t])

    def result(self) -> dict[str, Any]:
        return {"measured": self.measured}


def _spectrum(step: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the eigenvalues of the covariance of tokens (n, d), descending, and the standard deviation of each dim."""
    n, d = step.shape
    mean, largest = _mean_and_largest(step)
    if n < 2 or not np.isfinite(largest):
        return np.full(d, np.nan), np.full(d, np.nan)
    scale = largest or 1.0  # squares of subnormals would vanish
    products = _products(step, mean, scale) / (n - 1)
    std = np.sqrt(products.diagonal()) * scale
    eigenvalues = np.linalg.eigvalsh(products)[::-1]
    rounding = max(n, d) * np.finfo(np.float64).eps * eigenvalues[0]
    eigenvalues[eigenvalues <= rounding] = 0.0
    return eigenvalues * scale**2, std


def _mean_and_largest(step: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Return the mean of tokens (n, d) and the largest deviation from it, which is NaN if a value is not finite."""
    n, d = step.shape
    total: Any = None
    low, high = np.full(d, np.inf), np.full(d, -np.inf)
    for tokens in pieces(n, d, CACHED):
        rows = wide(step[tokens])
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return low, np.nan
        total = add_rows(total, rows)
    mean = total / n
    return mean, float(max((high - mean).max(), (mean - low).max()))


def _products(step: NDArray[Any], mean: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Return the sum over tokens of x xᵀ, for their scaled deviations x from the mean."""
    n, d = step.shape
    parts = list(pieces(n, d, PRODUCTS_OF))
    products, held = np.zeros((d, d)), np.empty((parts[0].stop, d))
    for tokens in parts:
        part = step[tokens]
        x = held[: len(part)]
        for rows in pieces(len(part), d, CACHED):
            x[rows] = (wide(part[rows]) - mean) / scale
        products += x.T @ x
    return products


def _describe(inputs: dict[str, list[Any]], *, at: tuple[int, ...]) -> Arrays:
    (measured,) = inputs["measured"]
    eigenvalue, std = (np.stack([measured[i][k] for i in at]) for k in (0, 1))
    total, squares = eigenvalue.sum(axis=1), (eigenvalue**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "eigenvalue": eigenvalue,
            "participation_ratio": total**2 / squares,
            "eccentricity": eigenvalue[:, 0] / eigenvalue[:, -1],
            "std_dim": std,
            "total_variance": total,
        }


@spectrum.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    axes, ratio = ds["participation_ratio"].values, ds["eccentricity"].values
    yield (
        f"Shape: participation ratio {axes[0]:.4g} of {ds.sizes['mode']} axes first, {axes[-1]:.4g} last; largest to "
        f"smallest variance {ratio[0]:.4g} first, {ratio[-1]:.4g} last"
    )


@spectrum.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    axes, steps = ds["participation_ratio"].values, ds["spectrum_step"].values
    if (at := summary_text.ends(axes)) is not None:
        values = " and ".join(f"{axes[i]:.3g} at step {steps[i]}" for i in at)
        yield Finding(0.4, f"Of {ds.sizes['mode']} directions, the cloud fills {values} (participation ratio).")


@spectrum.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    axes = ds["participation_ratio"].values
    return KeyFigure(f"directions that the cloud fills, of {ds.sizes['mode']}", axes[0], axes[-1])


spectrum.pictures = (
    Picture(
        "spectrum",
        "spectrum.spectrum",
        "The shape of the cloud",
        "Top: the variance along each principal axis, from the largest (dark) to the smallest (pale). Bottom: the "
        "effective number of axes, all of them for a sphere, one for a line.",
    ),
)
