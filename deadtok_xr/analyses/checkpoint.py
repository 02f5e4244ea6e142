"""Describe one step: norms, exponents, and the neighbourhood of the largest black hole, for any size of vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, equal_rows, step_selection
from deadtok_xr.analyses.common.lattice_counts import MANTISSAS
from deadtok_xr.analyses.common.token_blocks import TokenBlocks
from deadtok_xr.bfloat16 import get_grid
from deadtok_xr.engine.small_results import Arrays, compute_together, gather
from deadtok_xr.errors import InputError, OffGridError

_NEAREST = "of the nearest reference token; -1 or NaN for a token with NaN or infinity, or without a reference"
ATTRS: dict[str, dict[str, Any]] = {
    "norm": {"long_name": "norm of the token", "units": "1", "formula": "‖W_i‖₂", "comment": "NaN if not finite"},
    "reference_distance": {
        "long_name": "distance to the reference", "units": "1", "formula": "min_r ‖W_i - W_r‖₂", "comment": _NEAREST,
    },
    "reference_linf": {
        "long_name": "L∞ distance to the reference", "units": "1", "formula": "min_r max_d |W_id - W_rd|",
        "comment": _NEAREST,
    },
    "reference_ordinal": {
        "long_name": "L∞ distance to the reference, in representable numbers", "units": "1",
        "formula": "min_r max_d |ordinal(W_id) - ordinal(W_rd)|", "comment": _NEAREST,
    },
    "reference_exponent": {
        "long_name": "largest difference of an exponent to the reference", "units": "1",
        "formula": "min_r max_d |E_id - E_rd|", "comment": _NEAREST,
    },
    "reference_token": {
        "long_name": "tokens from which distances are measured", "units": "1",
        "comment": "-1: no two tokens are equal, so that there is no black hole to measure from",
    },
    "exponent_neighbourhood": {
        "long_name": "tokens whose exponents all differ from those of the reference by at most k", "units": "1",
        "formula": "#{i: min_r max_d |E_id - E_rd| <= k}",
    },
    "ordinal_neighbourhood": {
        "long_name": "tokens within k representable numbers of the reference in every dim", "units": "1",
        "formula": "#{i: min_r max_d |ordinal(W_id) - ordinal(W_rd)| <= k}",
    },
    "exponent_count": {
        "long_name": "elements by exponent", "units": "1", "formula": "#{E = e}, E the exponent field",
        "comment": "0: zero and subnormals",
    },
    "mantissa_count": {
        "long_name": "elements by the leading 7 bits of the mantissa", "units": "1",
        "comment": "without zero and subnormals",
    },
    "norm_count": {"long_name": "tokens by norm", "units": "1", "formula": "#{norm_low <= ‖W_i‖₂ < norm_high}",
                   "comment": "the last bin includes its upper edge"},
    "n_zero": {"long_name": "elements that are exactly zero", "units": "1"},
    "n_negative": {"long_name": "elements below zero", "units": "1"},
    "n_power_of_two": {"long_name": "elements at a power of two", "units": "1"},
    "n_valid": {"long_name": "tokens without NaN or infinity", "units": "1"},
    "n_invalid": {"long_name": "tokens with NaN or infinity, which are left out", "units": "1"},
    "centroid": {"long_name": "centroid of the valid tokens", "units": "1", "formula": "mean_i W_i"},
    "norm_low": {"long_name": "lower edge of the bin of norms", "units": "1"},
    "norm_high": {"long_name": "upper edge of the bin of norms", "units": "1"},
}  # fmt: skip
_NUMBERS = ("n_zero", "n_negative", "n_power_of_two", "n_valid", "n_invalid")
_DISTANCES = {"distance": "f8", "linf": "f8", "ordinal": "i8", "exponent": "i8"}
_TOLERANCES = 21


def checkpoint(
    ds: xr.Dataset,
    *,
    step: int | None = None,
    reference: Sequence[int] | str = "largest",
    norm_bins: int = 100,
    variable: str = "W",
    precision: str | None = None,
) -> xr.Dataset:
    """Describe one step of a recording, or a single checkpoint.

    Parameters
    ----------
    ds
        A recording, (step, token, dim), of any number of tokens.
    step
        The label of the step; required if there are several.
    reference
        Ids of the tokens from which distances are measured: for each token from the nearest of them. ``"largest"``: the
        tokens of the largest black hole, which are all in one place.
    norm_bins
        The number of bins of the histogram of norms.
    variable, precision
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset. Per token: `norm`, `reference_distance`, `reference_linf` float64; `reference_ordinal`,
        `reference_exponent` int64. By tolerance k = 0..20: `exponent_neighbourhood`, `ordinal_neighbourhood`. By `kind`
        (all; dead and live if known): `exponent_count` (exponent), `mantissa_count` (mantissa),
        `norm_count` (norm_bin), `n_zero`, `n_negative`, `n_power_of_two`, `n_valid`, `n_invalid`, int64, and `centroid`
        (dim). `norm_low`, `norm_high` (norm_bin); `reference_token` (reference).

        For all black holes use `census`, for the graph of tokens `topology`, for the covariance `spectrum`; they accept
        a single step too.

    Raises
    ------
    InputError
        If a step must be named, if a step or token does not exist, or for a recording without a lattice.
    OffGridError
        When computed, if the values are not on the grid.

    Notes
    -----
    Works block by block of tokens, in the memory of a few chunks, whatever the vocabulary. Every chunk is read twice,
    since the reference is known only after the first reading. Equal tokens are found by a sample of
    their bytes and then by a digest of 128 bits. L∞
    distances count representable numbers, not lattice coordinates W/ULP(W), which jump at every power of two.
    """
    x = step_selection.select_one_step(checks.require(ds, variable, "checkpoint"), step, "checkpoint")
    grid = checks.grid_name(x, precision)
    if norm_bins < 1:
        raise InputError(f"checkpoint: norm_bins={norm_bins}; expected at least 1")
    tokens = checks.token_ids(ds)
    rows = checks.as_dask(x.data)
    rows = rows.rechunk({0: 1}) if rows.numblocks[0] != 1 else rows
    dead = ds["dead"].values if "dead" in ds.coords else None
    kinds = ("all",) if dead is None else ("all", "dead", "live")
    if isinstance(reference, str) and reference != "largest":
        raise InputError(f"reference={reference!r}: say 'largest', or a list of token ids")
    named = None if isinstance(reference, str) else _token_positions(tokens, reference)
    blocks = TokenBlocks(rows)
    parts = blocks.each(_describe, variable, grid, dead, named is None)
    references = gather([parts] if named is None else [], partial(_find_reference, blocks=blocks, named=named))
    distances = blocks.each(_measure_distances, grid, after=[references])
    inputs = {"parts": parts, "references": references, "distances": distances}
    shapes = _shapes(rows.shape, grid, len(kinds), norm_bins, 1 if named is None else len(named))
    values = compute_together(inputs, _combine, shapes, ATTRS, dead=dead, tokens=tokens, bins=norm_bins)
    coords = {
        **coordinates.along(ds, "token", "dim"),
        "kind": list(kinds),
        "exponent": np.arange(get_grid(grid).max_exponent),
        "mantissa": np.arange(MANTISSAS),
        "tolerance": np.arange(_TOLERANCES),
    }
    attrs = checks.result_attrs(ds, variable=variable, precision=grid, step=int(x["step"].values[0]))
    return xr.Dataset(values, coords, attrs)


def _token_positions(tokens: NDArray[np.int64], named: Sequence[int]) -> tuple[int, ...]:
    wanted = np.atleast_1d(np.asarray(named))
    missing = wanted[~np.isin(wanted, tokens)]
    if missing.size or not wanted.size:
        reason = f"token {missing[0]} is not in this dataset" if missing.size else "reference= names no token"
        raise InputError(f"checkpoint: {reason}; name tokens that it has, or say reference='largest'")
    return tuple(int(np.flatnonzero(tokens == token)[0]) for token in wanted)


def _describe(
    rows: NDArray[Any], first: int, variable: str, grid: str, dead: NDArray[np.bool_] | None, samples: bool
) -> dict[str, Any]:
    """Return the sums of a block of tokens, for dead and live tokens separately, and each token's norm and sample."""
    from deadtok_xr import kernels
    from deadtok_xr.kernels.numba.incremental_counts import IncrementalCounts

    words, lattice = kernels.bit_words(rows), kernels.lattice(grid)
    values = words.astype(np.uint32) << np.uint32(16) if words.dtype == np.uint16 else words
    x = values.view(np.float32).astype(np.float64)
    valid = np.asarray(np.isfinite(x).all(axis=1))
    masks = [valid | True] if dead is None else [d := dead[first : first + len(rows)], ~d]
    try:
        sums = [
            {
                **_counts(IncrementalCounts(words[m][None], lattice), get_grid(grid).max_exponent),
                "sum": x[valid & m].sum(axis=0),
            }
            for m in masks
        ]
    except OffGridError as error:
        raise OffGridError(f"{variable}: {error} of {grid}; measure recorded values, or say precision=") from None
    norm = np.where(valid, np.sqrt(np.einsum("nd,nd->n", x, x)), np.nan)
    return {"sums": sums, "norm": norm, "valid": valid, "samples": equal_rows.samples(words) if samples else None}


def _counts(counts: Any, n_exponents: int) -> dict[str, Any]:
    numbers = [*counts.counts, counts.n_valid, counts.n_invalid]
    exponents, mantissas = counts.distributions()
    return {
        "exponent_count": exponents[:n_exponents], "mantissa_count": mantissas,
        **{name: int(n) for name, n in zip(_NUMBERS, numbers, strict=True)},
    }  # fmt: skip


def _find_reference(*parts: list[Any], blocks: TokenBlocks, named: tuple[int, ...] | None) -> dict[str, Any]:
    at = list(named) if named is not None else _largest_black_hole(parts[0], blocks)
    return {"at": at, "rows": blocks.rows(at)}


def _largest_black_hole(parts: list[Any], blocks: TokenBlocks) -> list[int]:
    """Return the position of the first token of the largest black hole, if there is one."""
    valid = np.concatenate([part["valid"] for part in parts])
    return equal_rows.largest_group([part["samples"] for part in parts], valid, blocks)[:1].tolist()


def _measure_distances(rows: NDArray[Any], first: int, grid: str, references: dict[str, Any]) -> dict[str, Any]:
    from deadtok_xr import kernels
    from deadtok_xr.kernels.numba.neighbours import nearest

    finite = np.isfinite(references["rows"].astype(np.float32)).all(axis=1)
    valid = np.asarray(np.isfinite(rows.astype(np.float32)).all(axis=1))
    return nearest(kernels.bit_words(rows), valid, kernels.bit_words(references["rows"][finite]), kernels.lattice(grid))


def _shapes(shape: tuple[int, ...], grid: str, k: int, bins: int, n_reference: int) -> dict[str, Any]:
    """Return the dims, shapes and dtypes of the results, for k kinds of tokens."""
    n, d = shape[1:]
    return {
        "norm": (("token",), (n,), "f8"),
        **{f"reference_{name}": (("token",), (n,), dtype) for name, dtype in _DISTANCES.items()},
        "reference_token": (("reference",), (n_reference,), "i8"),
        **dict.fromkeys(("exponent_neighbourhood", "ordinal_neighbourhood"), (("tolerance",), (_TOLERANCES,), "i8")),
        "exponent_count": (("kind", "exponent"), (k, get_grid(grid).max_exponent), "i8"),
        "mantissa_count": (("kind", "mantissa"), (k, MANTISSAS), "i8"),
        "norm_count": (("kind", "norm_bin"), (k, bins), "i8"),
        **dict.fromkeys(_NUMBERS, (("kind",), (k,), "i8")),
        "centroid": (("kind", "dim"), (k, d), "f8"),
        **dict.fromkeys(("norm_low", "norm_high"), (("norm_bin",), (bins,), "f8")),
    }


def _combine(
    inputs: dict[str, list[Any]], *, dead: NDArray[np.bool_] | None, tokens: NDArray[Any], bins: int
) -> Arrays:
    parts, (references,), distances = (inputs[name] for name in ("parts", "references", "distances"))
    out = {f"reference_{name}": np.concatenate([part[name] for part in distances]) for name in _DISTANCES}
    for name in ("exponent", "ordinal"):
        distance = out[f"reference_{name}"]
        within = [((distance >= 0) & (distance <= k)).sum() for k in range(_TOLERANCES)]
        out[f"{name}_neighbourhood"] = np.array(within)
    out["reference_token"] = tokens[references["at"]] if references["at"] else np.array([-1])
    out |= _totals([part["sums"] for part in parts])
    norm = out["norm"] = np.concatenate([part["norm"] for part in parts])
    edges = _edges(norm[~np.isnan(norm)], bins)
    out["norm_low"], out["norm_high"] = edges[:-1], edges[1:]
    kinds = [norm] if dead is None else [norm, norm[dead], norm[~dead]]
    out["norm_count"] = np.array([_histogram(kind, edges) for kind in kinds])
    return out


def _totals(parts: list[list[dict[str, Any]]]) -> Arrays:
    """Return the sums over blocks: of all tokens, then of each kind."""
    names = parts[0][0]
    by_kind = {name: [sum(part[k][name] for part in parts) for k in range(len(parts[0]))] for name in names}
    total = {name: np.array([sum(v), *v] if len(v) > 1 else v) for name, v in by_kind.items()}
    with np.errstate(invalid="ignore"):  # a kind without valid tokens
        return {**total, "centroid": total.pop("sum") / total["n_valid"][:, None]}


def _edges(norm: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Return the edges of equal bins from the smallest norm to the largest, with a margin if these are almost equal."""
    if not norm.size:
        return np.full(bins + 1, np.nan)
    low, high = norm.min(), norm.max()
    if high - low <= 1e-12 * bins * high:
        margin = 1e-6 * high or 0.5
        low, high = low - margin, high + margin
    return np.linspace(low, high, bins + 1)


def _histogram(norm: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    valid = norm[~np.isnan(norm)]
    return np.histogram(valid, edges)[0] if valid.size else np.zeros(len(edges) - 1, np.int64)
