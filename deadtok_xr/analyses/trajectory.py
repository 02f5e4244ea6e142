"""Follow the cloud from checkpoint to checkpoint: what changed, drift, rotation of its axes, neighbours kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, step_selection, summary_text
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import AnalysisSpec, Batch, Cost, Output, ReductionResults, SingleVariable, Sizes, StepBlock
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

Floats = NDArray[np.float64]
_BEFORE = "NaN at the first one"
_AXES = "‖Vᵀ[t] V[s]‖²_F / n_axes, V the first principal axes"
_NEIGHBOURS = "#(A[t] ∩ A[s]) / n_neighbours, A the nearest tokens by Euclidean distance; mean over tokens"
ATTRS: dict[str, dict[str, Any]] = {
    "unchanged_fraction": {
        "long_name": "share of the values that equal those at the recorded step before", "units": "1",
        "formula": "#{W[t] = W[t-1]} / (N·D)", "comment": "-0 and +0 are equal",
    },
    "step_span": {"long_name": "optimizer updates that the transition spans", "units": "1"},
    "unchanged_dims": {"long_name": "dims whose value is the same at all recorded steps", "units": "1"},
    "never_changed": {"long_name": "whether no value of the token differs at any recorded step", "units": "1"},
    "n_never_changed": {"long_name": "tokens of which no value differs at any recorded step", "units": "1"},
    "spread": {
        "long_name": "distance of a token from the centroid (root mean square)", "units": "1",
        "formula": "√mean_i ‖W_i - C‖₂²",
    },
    "centroid_shift": {
        "long_name": "shift of the centroid since the checkpoint before", "units": "1",
        "formula": "‖C[t] - C[s]‖₂", "comment": _BEFORE,
    },
    "centroid_shift_total": {
        "long_name": "shift of the centroid since the first checkpoint", "units": "1", "formula": "‖C[t] - C[0]‖₂",
    },
    "axis_angle": {
        "long_name": "angle of the first principal axis to that at the checkpoint before", "units": "degree",
        "formula": "arccos |v₁[t]·v₁[s]|", "comment": f"{_BEFORE}, and where the tokens have no extent",
    },
    "axis_angle_total": {
        "long_name": "angle of the first principal axis to that at the first checkpoint", "units": "degree",
        "formula": "arccos |v₁[t]·v₁[0]|", "comment": "NaN where the tokens have no extent",
    },
    "axes_kept": {
        "long_name": "overlap of the first principal axes with those at the checkpoint before", "units": "1",
        "formula": _AXES, "comment": f"1 for the same subspace, n_axes/D by chance; {_BEFORE}",
    },
    "axes_kept_total": {
        "long_name": "overlap of the first principal axes with those at the last checkpoint", "units": "1",
        "formula": _AXES,
    },
    "neighbours_kept": {
        "long_name": "share of its nearest neighbours that a token had at the checkpoint before", "units": "1",
        "formula": _NEIGHBOURS, "comment": f"n_neighbours/(n - 1) by chance; {_BEFORE}",
    },
    "neighbours_kept_total": {
        "long_name": "share of its nearest neighbours that a token has at the last checkpoint", "units": "1",
        "formula": _NEIGHBOURS,
    },
    "n_invalid": {"long_name": "tokens with NaN or infinity, which are left out", "units": "1"},
}  # fmt: skip
_PER_CHECKPOINT = tuple(ATTRS)[5:]
_AT_MOST = 65
_SAME_PLACE = 1e-12
"""Squared distances below this share of the squared norms are rounding: the tokens are in one place."""


@built_in
def trajectory(
    ds: xr.Dataset, *, steps: Sequence[int] | None = None, n_axes: int = 8, n_neighbours: int = 10,
    max_tokens: int = 1000, variable: str = "W",
) -> AnalysisSpec:  # fmt: skip
    """Measure what changed between recorded steps, and how the cloud drifted, turned and kept its neighbours.

    Nothing here needs single updates: it is meant for the checkpoints of a run, and `analyze` leaves it out where every
    step was recorded.

    Parameters
    ----------
    ds
        A recording with at least two steps, (step, token, dim); gaps in the steps do not matter.
    steps
        Labels of the checkpoints at which the cloud is described. None: up to 65 at equal distances, the first and the
        last among them. Each costs N·D² operations.
    n_axes
        The number of principal axes that are compared.
    n_neighbours
        The number of nearest neighbours that are compared.
    max_tokens
        Neighbours are found among this many tokens, evenly spread.
    variable
        The weights to follow.

    Returns
    -------
    xarray.Dataset
        Lazy dataset. Per `step` from the second: `unchanged_fraction` float64, `step_span` int64. Per token:
        `unchanged_dims` int64, `never_changed` bool; `n_never_changed`. Per `checkpoint`, the selected steps, float64:
        `spread`, `centroid_shift`, `centroid_shift_total`, `axis_angle`, `axis_angle_total`, `axes_kept`,
        `axes_kept_total`, `neighbours_kept`, `neighbours_kept_total`; `n_invalid` int64.

    Raises
    ------
    InputError
        For fewer than two steps, a step that does not exist, or numbers of axes, neighbours or tokens that are too
        small.

    Notes
    -----
    `motion` with ``allow_gaps=True`` has the changes of each token in ULP, and `changed_fraction` those over k
    checkpoints.
    """
    x = checks.require(ds, variable, "trajectory")
    if min(n_axes, n_neighbours) < 1:
        raise InputError(f"trajectory: n_axes={n_axes}, n_neighbours={n_neighbours}; expected at least 1")
    spans = checks.check_steps(ds, "trajectory", allow_gaps=True)["step_span"]
    labels = ds["step"].values
    at = step_selection.select_steps(labels, steps, "trajectory", _AT_MOST)
    n, n_dims = ds.sizes["token"], ds.sizes["dim"]
    tokens = step_selection.sample_tokens(n, max_tokens, "trajectory")
    shapes: dict[str, Any] = {
        "unchanged_fraction": (("step",), (len(labels) - 1,), "f8"),
        "unchanged_dims": (("token",), (n,), "i8"),
        "never_changed": (("token",), (n,), "?"),
        "n_never_changed": ((), (), "i8"),
        **{k: (("checkpoint",), (len(at),), "i8" if k == "n_invalid" else "f8") for k in _PER_CHECKPOINT},
    }
    reduction = Checkpoints(variable, at, tokens, min(n_axes, n_dims), min(n_neighbours, len(tokens) - 1))

    def finish(results: ReductionResults) -> xr.Dataset:
        inputs = {"found": results.merged("checkpoints", "found", _merge)}
        values = compute_together(inputs, _describe, shapes, ATTRS, at=at, n_dims=n_dims, n_steps=len(labels))
        coords = {
            **coordinates.of_transitions(ds),
            "checkpoint": xr.Variable("checkpoint", labels[list(at)], dict(ds["step"].attrs)),
        }
        attrs = checks.result_attrs(
            ds, variable=variable, n_axes=reduction.n_axes, n_neighbours=reduction.n_neighbours, max_tokens=max_tokens
        )
        return xr.Dataset({**values, "step_span": spans}, coords, attrs)

    return AnalysisSpec({variable: checks.as_dask(x.data)}, {"checkpoints": reduction}, finish)


@dataclass(frozen=True)
class Checkpoints(SingleVariable):
    """The reduction that compares consecutive steps value by value, and describes selected ones.

    Attributes
    ----------
    at
        Positions of the selected steps.
    tokens
        Positions of the tokens whose neighbours are found.
    n_axes, n_neighbours
        As in `trajectory`.
    """

    at: tuple[int, ...]
    tokens: tuple[int, ...]
    n_axes: int
    n_neighbours: int

    def outputs(self) -> dict[str, Output]:
        """Return `found`, one dict per block."""
        return {"found": Output(at="block")}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        n, changed = len(self.at), sizes.step
        described = 0.04e-9 * (sizes.step * sizes.dims + 10 * sizes.dims**3) + 1e-9 * len(self.tokens) ** 2 * sizes.dims
        axes = 8 * self.n_axes * sizes.dims + 8 * len(self.tokens) * self.n_neighbours + 16 * sizes.dims
        work = 2 * 8 * sizes.step + 3 * 8 * sizes.dims**2 + 3 * 8 * len(self.tokens) ** 2
        seconds = 2e-9 * sizes.elements + described * n
        return Cost(seconds, held=changed, temporary=work, kept=n * axes + changed / 4, floats=self.matrices)


class _Accumulator:
    def __init__(self, reduction: Checkpoints, block: StepBlock) -> None:
        self.reduction, self.at = reduction, set(reduction.at)
        self.unchanged: dict[int, int] = {}
        self.states: dict[int, dict[str, Any]] = {}
        self.changed = np.zeros((block.n_tokens, block.n_dims), bool)

    def update(self, batch: Batch) -> None:
        name, first = self.reduction.variable, batch.block.first + batch.start
        values = batch.values[name]
        words = values.view(f"u{values.dtype.itemsize}")
        magnitude = words.dtype.type(2 ** (8 * words.dtype.itemsize - 1) - 1)
        for t in range(batch.n_transitions):
            changed = (words[t] != words[t + 1]) & (((words[t] | words[t + 1]) & magnitude) != 0)
            self.unchanged[first + t] = changed.size - int(np.count_nonzero(changed))
            self.changed |= changed
        for t in range(batch.n_states):
            if first + t in self.at:
                self.states[first + t] = _state(batch.floats(name)[t], self.reduction)

    def result(self) -> dict[str, Any]:
        changed = np.packbits(self.changed, axis=1)
        return {"found": {"unchanged": self.unchanged, "states": self.states, "changed": changed}}


def _merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {
        "unchanged": {**a["unchanged"], **b["unchanged"]}, "states": {**a["states"], **b["states"]},
        "changed": a["changed"] | b["changed"],
    }  # fmt: skip


def _state(step: NDArray[Any], reduction: Checkpoints) -> dict[str, Any]:
    """Return what is compared of a step (n, d): the centroid, the spread, principal axes, neighbours of some tokens."""
    valid = np.isfinite(step).all(axis=1)
    x = step[valid].astype(np.float64)
    centroid = x.mean(axis=0) if len(x) else np.full(step.shape[1], np.nan)
    x -= centroid
    sample = step[list(reduction.tokens)]
    return {
        "centroid": centroid,
        "spread": np.sqrt((x * x).sum() / len(x)) if len(x) else np.nan,
        "axes": _principal_axes(x, reduction.n_axes),
        "neighbours": _neighbours(sample.astype(np.float64) - centroid, reduction.n_neighbours),
        "n_invalid": len(step) - len(x),
    }


def _principal_axes(x: Floats, n: int) -> Floats | None:
    """Return the first principal axes (d, n) of centred tokens, the largest variance last; None without any extent."""
    from scipy.linalg import eigh

    scale = np.abs(x).max(initial=0)
    if not scale > 0:
        return None
    x = x / scale  # squares of subnormals would vanish
    axes: Floats = eigh(x.T @ x, subset_by_index=[x.shape[1] - n, x.shape[1] - 1], check_finite=False)[1]
    return axes


def _neighbours(x: Floats, k: int) -> NDArray[np.int32]:
    """Return the k nearest neighbours of each token, (n, k), ascending; of equally near ones the first."""
    if not k:
        return np.full((len(x), 1), -1, np.int32)
    invalid = np.asarray(~np.isfinite(x).all(axis=1))
    x = np.where(invalid[:, None], 0.0, x)
    square = np.einsum("nd,nd->n", x, x)
    distance = square[:, None] + square - 2 * x @ x.T
    distance[distance < _SAME_PLACE * (square[:, None] + square)] = 0
    distance[:, invalid] = np.inf
    np.fill_diagonal(distance, np.inf)
    key = distance.astype(np.float32).view(np.uint32).astype(np.uint64) << np.uint64(32)
    key |= np.arange(len(x), dtype=np.uint64)  # bits of floats that are not negative are in their order
    nearest = np.sort(np.argpartition(key, k - 1, axis=1)[:, :k], axis=1).astype(np.int32)
    nearest[invalid] = -1
    return nearest


def _describe(inputs: dict[str, list[Any]], *, at: tuple[int, ...], n_dims: int, n_steps: int) -> Arrays:
    (found,) = inputs["found"]
    states = [found["states"][i] for i in at]
    pairs = list(pairwise(states))
    changed = np.bitwise_count(found["changed"]).sum(axis=1, dtype=np.int64)
    unchanged = np.array([found["unchanged"][t] for t in range(n_steps - 1)], np.float64)
    first, last = states[0], states[-1]
    return {
        "unchanged_fraction": unchanged / (len(changed) * n_dims),
        "unchanged_dims": n_dims - changed,
        "never_changed": changed == 0,
        "n_never_changed": np.array((changed == 0).sum()),
        "spread": np.array([s["spread"] for s in states]),
        "centroid_shift": np.array([np.nan, *(_shift(a, b) for a, b in pairs)]),
        "centroid_shift_total": np.array([_shift(first, s) for s in states]),
        "axis_angle": np.array([np.nan, *(_angle(a, b) for a, b in pairs)]),
        "axis_angle_total": np.array([_angle(first, s) for s in states]),
        "axes_kept": np.array([np.nan, *(_overlap(a["axes"], b["axes"]) for a, b in pairs)]),
        "axes_kept_total": np.array([_overlap(s["axes"], last["axes"]) for s in states]),
        "neighbours_kept": np.array([np.nan, *(_shared(a["neighbours"], b["neighbours"]) for a, b in pairs)]),
        "neighbours_kept_total": np.array([_shared(s["neighbours"], last["neighbours"]) for s in states]),
        "n_invalid": np.array([s["n_invalid"] for s in states]),
    }


def _shift(a: dict[str, Any], b: dict[str, Any]) -> float:
    return float(np.linalg.norm(b["centroid"] - a["centroid"]))


def _angle(a: dict[str, Any], b: dict[str, Any]) -> float:
    return float(np.degrees(np.arccos(min(1.0, np.sqrt(_overlap(a["axes"], b["axes"], 1))))))


def _overlap(a: Floats | None, b: Floats | None, n: int | None = None) -> float:
    """Return the overlap of the spaces of the n largest axes, the last ones; of all of them by default."""
    if a is None or b is None:
        return np.nan
    n = n or a.shape[1]
    return float(((a[:, -n:].T @ b[:, -n:]) ** 2).sum() / n)


def _shared(a: NDArray[np.int32], b: NDArray[np.int32]) -> float:
    """Return the mean share of the neighbours of a token that it has at both steps."""
    both = (a[:, 0] >= 0) & (b[:, 0] >= 0)
    if not both.any():
        return np.nan
    rows = np.arange(both.sum())[:, None] * np.int64(len(a))
    return float(np.isin(a[both] + rows, b[both] + rows).mean())


@trajectory.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    unchanged, span = ds["unchanged_fraction"].values, ds["step_span"].values
    yield f"Checkpoints: {len(unchanged) + 1}, {_apart(span)} steps apart"
    yield f"  unchanged values  {unchanged[0]:.4%} first, {unchanged[-1]:.4%} last"
    yield f"  never changed     {int(ds['n_never_changed'])} of {ds.sizes['token']} tokens"
    total, spread = ds["centroid_shift_total"].values, ds["spread"].values
    yield f"  centroid          moved by {total[-1]:.4g} in all; tokens are {spread[-1]:.4g} from it (rms)"
    for name, words in (("axes_kept", "axes kept"), ("neighbours_kept", "neighbours kept")):
        kept = ds[name].values[1:]
        if kept.size:
            yield f"  {words:17s} {kept[0]:.3f} first, {kept[-1]:.3f} last; {summary_text.span(kept)}"


def _apart(span: NDArray[np.int64]) -> str:
    low, high = int(span.min()), int(span.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


@trajectory.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    steps, span = ds["step"].values, ds["step_span"].values
    unchanged, never = ds["unchanged_fraction"].values, int(ds["n_never_changed"])
    none = f"{never:,} of {ds.sizes['token']:,} tokens never changed" if never else "every token changed"
    yield Finding(
        0.8, f"Between checkpoints, {_apart(span)} steps apart, {summary_text.percent(1 - unchanged[0])} of the values "
        f"change up to step {steps[0]} and {summary_text.percent(1 - unchanged[-1])} up to step {steps[-1]}, the last; "
        f"{none}."
    )  # fmt: skip
    checkpoint, kept, axes = (ds[name].values for name in ("checkpoint", "neighbours_kept", "axes_kept"))
    if (ends := summary_text.ends(kept)) is not None:
        parts = [f"{summary_text.percent(kept[i])} at step {checkpoint[i]}" for i in dict.fromkeys(ends)]
        n = ds.attrs["n_neighbours"]
        yield Finding(
            0.55, f"Of its {n} nearest neighbours at the checkpoint before, a token keeps {', '.join(parts)}."
        )
    if (ends := summary_text.ends(axes)) is not None:
        angle, total, spread = (ds[name].values for name in ("axis_angle_total", "centroid_shift_total", "spread"))
        turn = f"the first principal axis turned by {angle[ends[1]]:.2g}°"
        shift = f"the centroid moved by {summary_text.number(total[-1])}"
        ratio = f", {summary_text.number(total[-1] / spread[-1])} times the spread of the tokens" if spread[-1] else ""
        yield Finding(0.45, f"Since the first checkpoint, {shift}{ratio}, and {turn}.")


@trajectory.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    changed = [summary_text.percent(1 - x) for x in ds["unchanged_fraction"].values[[0, -1]]]
    return KeyFigure("values that changed between checkpoints", *changed)


trajectory.invalid = "which are left out"
trajectory.only_checkpoints = True
trajectory.pictures = (
    Picture(
        "checkpoint_trajectory",
        "checkpoint_trajectory.checkpoint_trajectory",
        "From checkpoint to checkpoint",
        "Top: the share of the values that changed since the checkpoint before. Middle: how far the centroid moved "
        "since the first checkpoint, and how far tokens are from it. Bottom: how many of their nearest neighbours "
        "tokens keep, and how much of the first principal axes, since the checkpoint before (lines) and up to the last "
        "one (dotted).",
    ),
)
