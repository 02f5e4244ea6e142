"""The shape of the cloud: its extent along each dim and each principal axis, at chosen steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks
from deadtok_xr.analyses.registry import Picture, built_in
from deadtok_xr.engine import AnalysisSpec, Batch, Output, ReductionResults, SingleVariable, StepBlock
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

_COVARIANCE = "of the covariance Σ_i (W_i - C)(W_i - C)ᵀ / (N - 1)"
ATTRS: dict[str, dict[str, Any]] = {
    "eigenvalue": {
        "long_name": "variance along a principal axis", "units": "1",
        "formula": f"eigenvalues λ {_COVARIANCE}, descending",
        "comment": "0 where it is no more than rounding, max(N, D)·2⁻⁵²·λ_max",
    },
    "participation_ratio": {
        "long_name": "number of principal axes that matter", "units": "1", "formula": "(Σ λ)² / Σ λ²",
        "comment": "D for a sphere, 1 for a line; NaN for a single place",
    },
    "eccentricity": {
        "long_name": "largest to smallest variance", "units": "1", "formula": "λ_max / λ_min",
        "comment": "infinite for a cloud without extent along an axis; NaN for a single place",
    },
    "std_dim": {
        "long_name": "standard deviation along a dim (ddof 1)", "units": "1",
        "formula": "√(Σ_i (W_id - C_d)² / (N - 1))",
    },
    "total_variance": {"long_name": "variance in all dims together", "units": "1", "formula": "Σ λ"},
}  # fmt: skip
_AT_MOST = 65


@built_in
def spectrum(ds: xr.Dataset, *, steps: Sequence[int] | None = None, variable: str = "W") -> AnalysisSpec:
    """The spectrum of the tokens' covariance at chosen steps.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); one step is enough, and gaps do not matter.
    steps
        Labels of the steps. None: up to 65 of them at equal distances, the first and the last among them. Each costs
        N·D² operations, so that all steps of a long recording are the caller's choice: ``ds.step.values``.
    variable
        The weights to look at.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over `spectrum_step`, float64: `eigenvalue` (spectrum_step, mode), `participation_ratio`,
        `eccentricity`, `std_dim` (spectrum_step, dim), `total_variance`. A step with NaN or infinity is NaN, and so is
        a single token, which has no covariance.

    Raises
    ------
    InputError
        For a recording without absolute positions, or a step that it does not have.

    Notes
    -----
    The spread of one dim is `std_dim`; a standard deviation over all elements of a cluster at once
    mostly measures how the dims of its centre differ.
    """
    x = checks.require(ds, variable, "spectrum")
    labels = ds["step"].values
    chosen = _chosen(labels, steps)
    n, n_dims = len(chosen), ds.sizes["dim"]
    shapes: dict[str, Any] = dict.fromkeys(ATTRS, (("spectrum_step",), (n,), "f8"))
    shapes["eigenvalue"] = (("spectrum_step", "mode"), (n, n_dims), "f8")
    shapes["std_dim"] = (("spectrum_step", "dim"), (n, n_dims), "f8")

    def finish(found: ReductionResults) -> xr.Dataset:
        inputs = {"found": found.merged("spectrum", "found", _both)}
        values = compute_together(inputs, _measure, shapes, ATTRS, at=tuple(chosen.tolist()))
        coords = {str(k): c.variable for k, c in ds.coords.items() if c.dims == ("dim",)}
        coords |= {"spectrum_step": xr.Variable("spectrum_step", labels[chosen], dict(ds["step"].attrs))}
        coords |= {"mode": xr.Variable("mode", np.arange(n_dims))}
        return xr.Dataset(values, coords, checks.result_attrs(ds, variable=variable))

    return AnalysisSpec(
        {variable: checks.as_dask(x.data)}, {"spectrum": Spectrum(variable, tuple(chosen.tolist()))}, finish
    )


def _chosen(labels: NDArray[np.int64], steps: Sequence[int] | None) -> NDArray[np.int64]:
    """Positions of the steps that are wanted, ascending."""
    if steps is None:
        return np.unique(np.linspace(0, len(labels) - 1, min(_AT_MOST, len(labels))).round().astype(np.int64))
    wanted = np.unique(np.asarray(steps))
    missing = wanted[~np.isin(wanted, labels)]
    if missing.size or not wanted.size:
        said = f"step {missing[0]} is not in this dataset" if missing.size else "steps= names none"
        raise InputError(f"spectrum: {said} (steps {labels[0]} to {labels[-1]}): name steps that it has")
    return np.flatnonzero(np.isin(labels, wanted))


@dataclass(frozen=True)
class Spectrum(SingleVariable):
    """The reduction of covariances at some positions along `step`."""

    at: tuple[int, ...]

    def outputs(self) -> dict[str, Output]:
        """One `found` per row: by position, (eigenvalues, deviations)."""
        return {"found": Output(at="block")}

    def start(self, block: StepBlock) -> _Accumulator:
        """Start with a block."""
        return _Accumulator(self, block)


class _Accumulator:
    def __init__(self, reduction: Spectrum, block: StepBlock) -> None:
        self.name, self.block, self.at = reduction.variable, block, set(reduction.at)
        self.found: dict[int, Any] = {}

    def update(self, batch: Batch) -> None:
        first = self.block.first + batch.start
        for t in range(batch.n_states):
            if first + t in self.at:
                self.found[first + t] = _covariance(batch.floats(self.name)[t])

    def result(self) -> dict[str, Any]:
        return {"found": self.found}


def _covariance(step: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The eigenvalues of the covariance of rows (n, d), descending, and the deviations of their dims."""
    n, d = step.shape
    if n < 2 or not np.isfinite(step).all():
        return np.full(d, np.nan), np.full(d, np.nan)
    x = step.astype(np.float64)
    x -= x.mean(axis=0)
    scale = np.abs(x).max() or 1.0  # squares of subnormals would vanish
    x /= scale
    eigenvalues = np.linalg.eigvalsh(x.T @ x / (n - 1))[::-1]
    rounding = max(n, d) * np.finfo(np.float64).eps * eigenvalues[0]
    eigenvalues[eigenvalues <= rounding] = 0.0
    return eigenvalues * scale**2, np.sqrt((x * x).sum(axis=0) / (n - 1)) * scale


def _both(a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
    return {**a, **b}


def _measure(inputs: dict[str, list[Any]], *, at: tuple[int, ...]) -> Arrays:
    (found,) = inputs["found"]
    eigenvalue, std = (np.stack([found[i][k] for i in at]) for k in (0, 1))
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
        f"Shape: {axes[0]:.4g} of {ds.sizes['mode']} axes matter first, {axes[-1]:.4g} last; variance ratio of "
        f"the axes {ratio[0]:.4g} first, {ratio[-1]:.4g} last"
    )


spectrum.pictures = (
    Picture(
        "spectrum",
        "spectrum.spectrum",
        "The shape of the cloud",
        "Top: the variance along each principal axis, from the largest (dark) to the smallest (pale). Bottom: how "
        "many axes carry it; all of them for a sphere, one for a line.",
    ),
)
