"""Compare directions of displacements, gradients and updates at each transition: the reduction of `coherence`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.analyses.common.vectors import clip_cosine, cosine, normalized
from deadtok_xr.engine import Batch, Cost, Output, OutputAccumulator, Sizes, StepBlock
from deadtok_xr.engine.series import Series
from deadtok_xr.kernels import CACHED, PIECE, WIDE

_COSINES = "over all pairs of tokens whose {0} is finite and not zero"


def _cosines(of: str, sign: str) -> dict[str, dict[str, Any]]:
    pairs = _COSINES.format(of)
    return {
        "mean": {"long_name": f"mean cosine between the {of}s of two tokens", "units": "1",
                 "formula": f"mean_(i<j) cos({sign}_i, {sign}_j)", "comment": pairs},
        "std": {"long_name": f"standard deviation of the cosine between the {of}s of two tokens (ddof 0)", "units": "1",
                "formula": f"std_(i<j) cos({sign}_i, {sign}_j)", "comment": pairs},
    }  # fmt: skip


ATTRS: dict[str, dict[str, Any]] = {
    "displacement_cosine_mean": _cosines("displacement", "ΔW")["mean"],
    "displacement_cosine_std": _cosines("displacement", "ΔW")["std"],
    "bulk_alignment": {
        "long_name": "mean cosine between a token's displacement and that of the centroid", "units": "1",
        "formula": "mean_i cos(ΔW_i, ΔC), ΔC = mean_i ΔW_i", "source": "notebook 1.31e",
    },
    "n_used": {"long_name": "tokens that moved, whose displacements are compared", "units": "1"},
    "n_invalid": {"long_name": "tokens with NaN or infinity at t - 1 or t, which are left out", "units": "1"},
    "h_alignment": {
        "long_name": "cosine between the displacement of the centroid and -h_mean", "units": "1",
        "formula": "cos(ΔC[t], -h_mean[t])",
    },
    "h_norm_ratio": {
        "long_name": "mean norm of the final hidden state over √D, 1 after a layer norm without gain", "units": "1",
        "formula": "mean ‖h‖ / √D",
    },
    "p_dead": {"long_name": "mean softmax probability on a dead token", "units": "1"},
    "gradient_cosine_mean": _cosines("gradient", "g")["mean"],
    "gradient_cosine_std": _cosines("gradient", "g")["std"],
    "gradient_n_used": {"long_name": "tokens with a gradient, whose gradients are compared", "units": "1"},
    "gradient_norm_mean": {
        "long_name": "mean length of a token's gradient", "units": "1", "formula": "mean_i ‖g_i‖₂",
    },
    "mean_gradient_norm": {
        "long_name": "length of the tokens' mean gradient", "units": "1", "formula": "‖mean_i g_i‖₂",
    },
    "gradient_update_cosine": {
        "long_name": "mean cosine between a token's displacement and its negated gradient", "units": "1",
        "formula": "mean_i cos(ΔW_i, -g_i)",
    },
    "gradient_h_alignment": {
        "long_name": "cosine between the mean gradient and h_mean", "units": "1", "formula": "cos(mean_i g_i, h_mean)",
    },
    "gradient_p_h_alignment": {
        "long_name": "cosine between the mean gradient of the dead tokens and Σ p·h", "units": "1",
        "formula": "cos(mean_(i dead) g_i, p_h_dead)", "comment": "1 by the law of dead gradients, ∂L/∂W_i = Σ p_i·h",
    },
    "gradient_p_h_deviation": {
        "long_name": "relative deviation of the mean gradient of the dead tokens from Σ p·h", "units": "1",
        "formula": "‖mean_(i dead) g_i - p_h_dead‖₂ / ‖p_h_dead‖₂",
        "comment": "0 by the law of dead gradients, except for the rounding of g and of its accumulation",
    },
    "step1_deviation": {
        "long_name": "largest deviation of the first update from the law of Adam's first step", "units": "lr",
        "formula": "max | |Δθ₁ + lr·decay·θ₀| / lr - |g|/(|g| + eps) |", "comment": "NaN for later updates",
    },
    "update_cosine_mean": _cosines("intended update", "u")["mean"],
    "update_cosine_std": _cosines("intended update", "u")["std"],
    "update_n_used": {"long_name": "tokens with an intended update, whose updates are compared", "units": "1"},
    "separation": {
        "long_name": "distance between the centroids of the dead and of the live tokens", "units": "1",
        "formula": "‖C_dead - C_live‖₂",
    },
    "separation_cosine": {
        "long_name": "cosine between the centroids of the dead and of the live tokens", "units": "1",
        "formula": "cos(C_dead, C_live)",
    },
    "dead_centroid_norm": {"long_name": "norm of the dead tokens' centroid", "units": "1", "formula": "‖C_dead‖₂"},
    "live_centroid_norm": {"long_name": "norm of the live tokens' centroid", "units": "1", "formula": "‖C_live‖₂"},
}  # fmt: skip
MATRICES = ("grad", "update")
"""Variables whose vectors are compared besides the displacements of W."""


@dataclass(frozen=True)
class Directions:
    """The reduction that compares directions, of displacements and of the gradients and updates among its matrices.

    Attributes
    ----------
    names
        The outputs, variables of `ATTRS`.
    matrices
        The variables that it reads.
    series
        Values per step with which directions are compared.
    steps
        The labels of the steps.
    dead
        Which tokens are dead.
    adam
        The settings for the law of the first update, if it applies.
    """

    names: tuple[str, ...]
    matrices: tuple[str, ...]
    series: dict[str, Series]
    steps: NDArray[np.int64]
    dead: NDArray[np.bool_]
    adam: dict[str, float] | None

    def outputs(self) -> dict[str, Output]:
        """Return counts as int64, the others as float64."""
        counts = ("n_used", "n_invalid")
        return {
            name: Output("step", dtype="i8" if name.endswith(counts) else "f8", at="transitions") for name in self.names
        }

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        others = [name for name in MATRICES if name in self.matrices]
        dense = 0.02e-9 * sizes.dims + 4e-9 if sizes.dims >= WIDE else 0.08e-9 * sizes.dims + 2.5e-9
        hops = min(1.0, sizes.changing / max(sizes.moving, 1e-9)) * sizes.dims  # elements of a token that moves
        sparse = 1e-9 * hops**2 / max(sizes.dims, 1) + 2e-9
        seconds = 1.5e-4 * sizes.steps + (min(dense, sparse) + dense * len(others)) * sizes.moved
        pieces = min(sizes.step, PIECE) + CACHED + 2 * (sizes.dims + 12) * sizes.dims
        return Cost(seconds, held=8 * pieces + 6 * 8 * sizes.tokens, temporary=2 * 8 * min(sizes.step, PIECE))


class _Accumulator(OutputAccumulator[Directions]):
    def __init__(self, reduction: Directions, block: StepBlock) -> None:
        from deadtok_xr.kernels.numba.coherence import Buffers
        from deadtok_xr.kernels.numba.sparse_directions import SparseDirections

        super().__init__(reduction, block)
        self.series = {"step": reduction.steps[block.later]}
        self.series |= {name: series.values(block.later) for name, series in reduction.series.items()}
        self.moved = SparseDirections(block.n_tokens, block.n_dims)
        self.buffers = Buffers(block.n_tokens, block.n_dims)

    def update(self, batch: Batch) -> None:
        values = {name: batch.readable(name) for name in self.reduction.matrices}
        changed = batch.changed("W")
        for t in range(batch.n_transitions):
            measured = self._measure(values, t, changed, batch.start + t)
            for name, out in self.out.items():
                out[batch.start + t] = measured[name]

    def _measure(self, values: dict[str, Any], t: int, changed: NDArray[np.bool_], i: int) -> dict[str, Any]:
        """Return the outputs of a transition."""
        from deadtok_xr.kernels.numba import coherence as kernel

        W, dead, buffers = values["W"], self.reduction.dead, self.buffers
        step = kernel.Vectors(W, t, displaced=True)
        moved = self.moved.directions(W, t, changed, buffers) or kernel.directions(step, buffers)
        others = {name: kernel.Vectors(values[name], t + 1) for name in MATRICES if name in values}
        at: dict[str, Any] = {name: series[i] for name, series in self.series.items()}
        out = _cosine_outputs("displacement", moved) | {
            "bulk_alignment": clip_cosine(moved["direction"] @ normalized(moved["mean"])),
            "n_used": moved["n_used"],
            "n_invalid": len(dead) - moved["n_valid"],
        }
        if "update" in others:
            out |= _cosine_outputs("update", kernel.directions(others["update"], buffers))
        if "grad" in others:
            out |= _gradient_outputs(kernel, others["grad"], step, at, dead, buffers)
        if "separation" in self.out:
            out |= _separation(kernel.means(kernel.Vectors(W, t + 1), dead, buffers))
        if "h_mean" in at:
            out["h_alignment"] = cosine(moved["mean"], -at["h_mean"])
        if "h_norm" in at:
            out["h_norm_ratio"] = at["h_norm"] / np.sqrt(W.shape[2])
        out["p_dead"] = at.get("p_dead", np.nan)
        if "step1_deviation" in self.out and self.reduction.adam is not None:
            vectors = kernel.Vectors(W, t), step, others["grad"]
            out["step1_deviation"] = (
                _first_step_deviation(vectors, buffers, at, self.reduction.adam) if at["step"] == 1 else np.nan
            )
        return out


def _cosine_outputs(name: str, directions: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{name}_cosine_mean": directions["cosine_mean"],
        f"{name}_cosine_std": directions["cosine_std"],
        f"{name}_n_used": directions["n_used"],
    }


def _gradient_outputs(
    kernel: Any, grad: Any, step: Any, at: dict[str, Any], dead: NDArray[np.bool_], buffers: Any
) -> dict[str, Any]:
    gradients = kernel.directions(grad, buffers)
    out = _cosine_outputs("gradient", gradients) | {
        "gradient_norm_mean": gradients["norm_mean"],
        "mean_gradient_norm": np.linalg.norm(gradients["mean"]),
        "gradient_update_cosine": -kernel.mean_cosine(step, grad, buffers),
    }
    if "h_mean" in at:
        out["gradient_h_alignment"] = cosine(gradients["mean"], at["h_mean"])
    if "p_h_dead" in at:
        mean, law = kernel.means(grad, dead, buffers)[0], at["p_h_dead"].astype(np.float64)
        out["gradient_p_h_alignment"] = cosine(mean, law)
        size = np.linalg.norm(law)
        out["gradient_p_h_deviation"] = np.linalg.norm(mean - law) / size if size > 0 else np.nan
    return out


def _separation(centres: NDArray[np.float64]) -> dict[str, float]:
    dead, live = centres
    return {
        "separation": float(np.linalg.norm(dead - live)),
        "separation_cosine": cosine(dead, live),
        "dead_centroid_norm": float(np.linalg.norm(dead)),
        "live_centroid_norm": float(np.linalg.norm(live)),
    }


def _first_step_deviation(vectors: Any, buffers: Any, at: dict[str, Any], adam: dict[str, float]) -> float:
    """Return the largest deviation, given W before the update, the displacements and the gradients."""
    lr = float(at["lr"]) if np.isfinite(at.get("lr", np.nan)) else adam["lr"]
    if not lr > 0:
        return np.nan
    rows = buffers.rows, buffers.unit[: len(buffers.rows)], np.empty_like(buffers.rows)
    largest = np.nan
    for (_, before), (_, step), (_, grad) in zip(
        *(x.pieces(buffer) for x, buffer in zip(vectors, rows, strict=True)), strict=True
    ):
        size = np.abs(grad)
        deviation = np.abs(np.abs(step + lr * adam["decay"] * before) / lr - size / (size + adam["eps"]))
        largest = np.fmax(largest, np.fmax.reduce(deviation, axis=None))
    return float(largest)
