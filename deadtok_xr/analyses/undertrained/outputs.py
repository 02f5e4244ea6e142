"""The variables of `undertrained`, and how they follow from the readings of the matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.engine.small_results import Arrays, Shapes

_DIGITS = 12
INDICATORS = ("norm", "cosine_distance", "l2_distance")
_NAN = "NaN for a token with NaN or infinity"
_U = "u the mean row of the reference"
ATTRS: dict[str, dict[str, Any]] = {
    "norm": {
        "long_name": "norm of the token", "units": "1", "formula": "‖E_i‖₂",
        "comment": f"of the input embedding where there is one, else of W; {_NAN}",
    },
    "cosine_distance": {
        "long_name": "cosine distance to the reference", "units": "1",
        "formula": "1 - W_i·u / max(‖W_i‖‖u‖, 1e-6)", "comment": f"{_U}; {_NAN}",
    },
    "cosine_distance_centered": {
        "long_name": "cosine distance to the reference, from the mean row", "units": "1",
        "formula": "1 - (W_i - m)·(u - m) / max(‖W_i - m‖‖u - m‖, 1e-6)", "comment": f"{_U}, m that of all; {_NAN}",
    },
    "cosine_distance_without_pc1": {
        "long_name": "cosine distance to the reference, without the first principal component", "units": "1",
        "formula": "1 - x_i·y / max(‖x_i‖‖y‖, 1e-6), x_i = W_i - (W_i·v)v, y = u - (u·v)v",
        "comment": f"{_U}, v the first principal axis of all rows; {_NAN}, or if all rows are equal",
    },
    "l2_distance": {
        "long_name": "distance to the reference", "units": "1", "formula": "‖W_i - u‖₂", "comment": f"{_U}; {_NAN}",
    },
    "all_zero": {
        "long_name": "whether all values of the token are zero", "units": "1", "comment": "of the matrix of `norm`",
    },
    "below_eps": {
        "long_name": "whether no value of the token is above eps", "units": "1", "formula": "max_d E_id <= eps",
        "comment": "of the matrix of `norm`; also true of a row whose values are all negative, which may be trained",
    },
    "candidate": {
        "long_name": "whether the token may be under-trained", "units": "1",
        "formula": "indicator <= quantile of the indicator over all tokens at `share`",
        "comment": "with a tokenizer, quantile over the reachable tokens; special ones may be candidates, others not",
    },
    "rank": {
        "long_name": "rank of the token by the indicator, 1 for the lowest", "units": "1",
        "comment": "equal ones in the order of the tokens; -1 where the indicator is NaN",
    },
    "is_reference": {"long_name": "whether the token belongs to the reference that is used", "units": "1"},
    "indicator": {
        "long_name": "the indicator of `candidate` and `rank`", "units": "1",
        "flag_values": list(range(len(INDICATORS))), "flag_meanings": " ".join(INDICATORS),
        "comment": "norm of untied weights, else cosine_distance; l2_distance if the reference is the zero vector",
    },
    "threshold": {"long_name": "value of the indicator up to which a token is a candidate", "units": "1"},
    "reference_size": {"long_name": "tokens of the reference", "units": "1", "comment": "0: not found"},
    "reference_used": {"long_name": "whether distances are measured from this reference", "units": "1"},
    "reference_agreement": {
        "long_name": "share of the lowest distances to the reference used that are also lowest to this one",
        "units": "1", "formula": "#(A ∩ B) / #A, A and B the tokens of the lowest `share` of cosine_distance",
        "comment": "of the distance to the zero vector l2_distance; NaN if not found",
    },
    "pc1_gap": {
        "long_name": "distance of the largest variance along an axis to the next", "units": "1",
        "formula": "1 - λ₂/λ₁ of the covariance of all rows",
        "comment": "near 0 the first principal axis is hardly determined; NaN if all rows are equal",
    },
}  # fmt: skip
_OF_TOKENS = {
    "norm": "f8", "cosine_distance": "f8", "cosine_distance_centered": "f8", "l2_distance": "f8", "all_zero": "?",
    "below_eps": "?", "candidate": "?", "rank": "i8", "is_reference": "?",
}  # fmt: skip
_OF_REFERENCES = {"reference_size": "i8", "reference_used": "?", "reference_agreement": "f8"}


def shapes(n_tokens: int, n_references: int) -> Shapes:
    """Return the dims, shapes and dtypes of the results of `combine`."""
    return {
        **{name: (("token",), (n_tokens,), dtype) for name, dtype in _OF_TOKENS.items()},
        **{name: (("reference",), (n_references,), dtype) for name, dtype in _OF_REFERENCES.items()},
        "indicator": ((), (), "i1"),
        "threshold": ((), (), "f8"),
    }


def shapes_without_pc1(n_tokens: int) -> Shapes:
    """Return the dims, shapes and dtypes of the results of `combine_without_pc1`."""
    return {"cosine_distance_without_pc1": (("token",), (n_tokens,), "f8"), "pc1_gap": ((), (), "f8")}


def combine(
    inputs: dict[str, list[Any]], *, share: float, ranked: NDArray[np.bool_], allowed: NDArray[np.bool_]
) -> Arrays:
    """Return the variables over tokens and references.

    Parameters
    ----------
    inputs
        All blocks of ``output`` (of W), ``input`` (of the input embedding; empty if tied) and ``distances``, and the
        ``references``.
    share
        As in `undertrained`.
    ranked, allowed
        Which tokens the threshold is taken from, and which may be candidates.
    """
    (references,), parts = inputs["references"], inputs["distances"]
    tied = "input" not in inputs
    square, above = (np.concatenate([p[k] for p in inputs["output" if tied else "input"]]) for k in ("square", "above"))
    finite = np.isfinite(square)
    cosine = np.concatenate([part["cosine"] for part in parts])
    used, rows = references["used"], references["rows"]
    out: Arrays = {
        "norm": _roots(square),
        "cosine_distance": cosine[:, used] if used >= 0 else np.full(len(square), np.nan),
        "cosine_distance_centered": np.concatenate([part["centered"] for part in parts]),
        "l2_distance": np.concatenate([part["l2"] for part in parts]),
        "all_zero": square == 0,
        "below_eps": finite & ~above,
        "is_reference": references["members"][used] if used >= 0 else np.zeros(len(square), bool),
        "reference_size": references["members"].sum(axis=1),
        "reference_used": np.arange(len(rows)) == used,
    }
    no_direction = used >= 0 and not rows[used].any()
    name = "norm" if not tied else "l2_distance" if no_direction else "cosine_distance"
    indicator = out[name]
    known = ~np.isnan(indicator)
    pool = indicator[known & ranked]
    threshold = np.quantile(pool, share) if pool.size else np.nan
    key, limit = without_rounding(indicator, threshold)
    rank = np.full(len(indicator), -1)
    rank[np.argsort(key, kind="stable")[: known.sum()]] = 1 + np.arange(known.sum())
    out |= {
        "indicator": np.array(INDICATORS.index(name)),
        "threshold": np.array(threshold),
        "candidate": known & allowed & (np.where(known, key, np.inf) <= limit),
        "rank": rank,
    }
    norm_of_w = _roots(np.concatenate([part["square"] for part in inputs["output"]]))
    by_reference = [cosine[:, k] if rows[k].any() else norm_of_w for k in range(len(rows))]
    out["reference_agreement"] = _agreement(by_reference, references, share, ranked)
    return out


def _roots(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the roots of finite values, NaN for others."""
    return np.sqrt(np.where(np.isfinite(squares), squares, np.nan))


def without_rounding(values: NDArray[np.float64], limit: float) -> tuple[NDArray[np.float64], float]:
    """Round values and a limit, so that equal rows are equal although BLAS may sum their products in two orders."""
    scale = np.max(np.abs(values), initial=0, where=~np.isnan(values)) or 1.0
    return np.asarray(np.round(values / scale, _DIGITS), np.float64), round(float(limit / scale), _DIGITS)


def _agreement(
    distances: list[NDArray[np.float64]], references: dict[str, Any], share: float, ranked: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return, of the tokens that are nearest to the reference used, the share that is nearest to each reference."""
    there, used = references["members"].any(axis=1), references["used"]
    found = np.full(len(distances), np.nan)
    if used < 0:
        return found
    lowest = {k: _lowest(distances[k], share, ranked) for k in np.flatnonzero(there)}
    n = lowest[used].sum()
    for k, near in lowest.items():
        found[k] = (near & lowest[used]).sum() / n if n else np.nan
    return found


def _lowest(distance: NDArray[np.float64], share: float, ranked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    known = ranked & np.isfinite(distance)
    if not known.any():
        return known
    key, limit = without_rounding(distance, float(np.quantile(distance[known], share)))
    return known & (np.where(known, key, np.inf) <= limit)


def combine_without_pc1(inputs: dict[str, list[Any]]) -> Arrays:
    """Return the distances without the first principal component, and how well it is determined."""
    (axis,) = inputs["axis"]
    return {"cosine_distance_without_pc1": np.concatenate(inputs["without"]), "pc1_gap": np.array(axis["gap"])}
