"""Persistence of h, origin of the centroid, predictors of freezing: against plain numpy, on real and on known data."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import deadtok_xr as dx
from deadtok_xr import plot
from deadtok_xr.analyses.freeze_predictors import _concordance, spearman
from deadtok_xr.errors import InputError
from tests import reference
from tests.analyses.test_motion_phases_kinematics_coherence import dataset
from tests.reference import assert_agree

Array = np.ndarray
QUESTIONS: dict[str, Callable[..., xr.Dataset]] = {
    "h_persistence": dx.h_persistence,
    "centroid_origin": dx.centroid_origin,
    "freeze_predictors": dx.freeze_predictors,
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_lazy_until_computed(
    recording: Path, lazily: Callable[[], AbstractContextManager[None]], reads: list[str], name: str
) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    reads.clear()
    with lazily():
        result = QUESTIONS[name](rec)
    assert not [key for key in reads if "/c/" in key and key.split("/")[0] in ("W", "h_mean")]
    assert all(v.chunks is not None for v in result.data_vars.values())
    assert all(v.attrs["long_name"] and v.attrs["units"] for v in result.data_vars.values())


@pytest.mark.parametrize("name", QUESTIONS)
def test_gaps_are_refused(recording: Path, name: str) -> None:
    rec = dx.open_recording(recording, tokens="dead").isel(step=[0, 1, 3, 4, 5])
    with pytest.raises(InputError, match=rf"{name}: steps 2\.\.2 are missing"):
        QUESTIONS[name](rec)
    assert QUESTIONS[name](rec, allow_gaps=True).compute().data_vars


# --- persistence of h --------------------------------------------------------------------------------------


def h_only(h: Array, steps: Any = None) -> xr.Dataset:
    steps = np.arange(len(h)) if steps is None else steps
    return xr.Dataset({"h_mean": (("step", "dim"), h)}, {"step": steps})


def correlations(h: Array, steps: Array, n_lags: int) -> tuple[Array, Array, Array]:
    """Pair by pair."""
    u = {int(s): v / math.sqrt((v**2).sum()) for s, v in zip(steps, h.astype(float), strict=True) if (v**2).sum() > 0}
    mean = sum(u.values()) / len(u)
    rows = []
    for lag in range(n_lags):
        both = [(u[s], u[s + lag]) for s in u if s + lag in u]
        plain = np.mean([a @ b for a, b in both]) if both else np.nan
        around = np.mean([(a - mean) @ (b - mean) for a, b in both]) if both else np.nan
        rows.append((plain, around, len(both)))
    plain, around, n = np.array(rows).T
    return plain, around / around[0], n


def check_persistence(ds: xr.Dataset, **options: Any) -> xr.Dataset:
    found = dx.h_persistence(ds, **options).compute()
    h, steps = ds.h_mean.values[1:].astype(float), ds.step.values[1:]
    plain, around, n = correlations(h, steps, found.sizes["lag"])
    np.testing.assert_allclose(found.autocorrelation, plain, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.fluctuation_autocorrelation, around, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found.n_pairs, n)
    cosine = np.array([np.nan] + [reference.cos(a, b) for a, b in zip(h[1:], h[:-1], strict=True)])
    assert_agree(found.cosine, cosine)
    np.testing.assert_allclose(found.swing, np.degrees(np.arccos(np.clip(cosine, -1, 1))), atol=2e-5)
    np.testing.assert_array_equal(found.step, steps)
    return found


def test_persistence_of_a_real_run(recording: Path) -> None:
    found = check_persistence(dx.open_recording(recording))
    h = dx.open_recording(recording).h_mean.values[1:].astype(float)
    u = h / np.linalg.norm(h, axis=1, keepdims=True)
    assert_agree(found.resultant_length, np.linalg.norm(u.mean(0)))
    np.testing.assert_allclose(found.straightness, found.net_angle[-1] / found.swing[1:].sum())
    assert found.half_lag > 0
    assert (found.fluctuation_autocorrelation[: int(found.half_lag)] > 0.5).all()
    assert found.fluctuation_autocorrelation[int(found.half_lag)] <= 0.5


@given(data=st.data(), n=st.integers(3, 20), dims=st.integers(1, 70))
@pytest.mark.filterwarnings("ignore:.*(invalid|Mean of empty).*:RuntimeWarning")
def test_persistence_of_any_steps(data: st.DataObject, n: int, dims: int) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    steps = np.sort(rng.choice(3 * n, n, replace=False)) if data.draw(st.booleans()) else np.arange(n)
    h = rng.normal(size=(n, dims + 1))
    if n > 5 and data.draw(st.booleans()):
        h[3] = 0.0
    check_persistence(h_only(h, steps), allow_gaps=True)


def test_a_turning_and_a_constant_direction() -> None:
    angle = np.radians(3.0 * np.arange(31))
    turning = dx.h_persistence(h_only(np.stack([np.cos(angle), np.sin(angle)], axis=1) * 5)).compute()
    np.testing.assert_allclose(turning.swing[1:], 3.0, rtol=1e-12)
    np.testing.assert_allclose(turning.net_angle[-1], 87.0, rtol=1e-12)
    np.testing.assert_allclose(turning.straightness, 1.0, rtol=1e-12)
    np.testing.assert_allclose(turning.autocorrelation, np.cos(np.radians(3.0 * turning.lag)), atol=1e-12)
    still = dx.h_persistence(h_only(np.ones((9, 4)) * np.arange(1, 10)[:, None])).compute()
    np.testing.assert_allclose([still.resultant_length, still.autocorrelation[-1]], 1.0, rtol=1e-12)
    assert np.isnan(still.fluctuation_autocorrelation).all()  # and not the correlation of rounding
    assert still.half_lag == -1
    tiny = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1e-9]])
    np.testing.assert_allclose(dx.h_persistence(h_only(tiny)).swing[1], np.degrees(1e-9), rtol=1e-9)


def test_persistence_says_what_is_missing(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    with pytest.raises(InputError, match="needs the variable 'h_mean'.*recorder.log"):
        dx.h_persistence(rec.drop_vars("h_mean"))
    with pytest.raises(InputError, match="max_lag=900; expected 0 to 299"):
        dx.h_persistence(rec, max_lag=900)
    tree = dx.analyze(rec.drop_vars("h_mean"))
    assert "h_mean" in tree.attrs["left_out"]["h_persistence"]
    assert "h_persistence" not in tree.children


# --- origin of the centroid --------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["dead", "all"])
def test_origin_of_a_real_centroid(recording: Path, tokens: str) -> None:
    rec = dx.open_recording(recording, tokens=tokens)  # type: ignore[arg-type]
    found = dx.centroid_origin(rec).compute()
    C = rec.W.values.astype(float).mean(1)
    drift, last = C - C[0], C[-1]
    assert_agree(found.initial, C[0])
    assert_agree(found.final, last)
    np.testing.assert_allclose(found.initial + found.drift, found.final, atol=1e-15)
    np.testing.assert_allclose(found.drift_projection, drift @ last / (last @ last), atol=1e-12)
    np.testing.assert_allclose(found.drift_projection[-1] + found.initial_projection, 1.0, rtol=1e-12)
    assert_agree(found.cosine_initial, np.array([reference.cos(c, C[0]) for c in C]))
    path = np.concatenate([[0], np.cumsum(np.sqrt((np.diff(C, axis=0) ** 2).sum(1)))])
    assert_agree(found.path_length, path)
    assert_agree(found.straightness[1:], np.sqrt((drift[1:] ** 2).sum(1)) / path[1:])
    push = -np.cumsum(rec.lr.values[1:, None] * rec.h_mean.values[1:].astype(float), axis=0)
    expected = [reference.cos(a, b) for a, b in zip(drift[1:], push, strict=True)]
    np.testing.assert_allclose(found.drift_h_cosine, [np.nan, *expected], atol=1e-9)


def test_a_cloud_that_stays_and_one_that_leaves() -> None:
    start = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    still = dx.centroid_origin(dataset(np.stack([start] * 4))).compute()
    assert (still.drift == 0).all()
    assert float(still.initial_projection) == 1
    assert np.isnan(still.straightness).all()
    back = dx.centroid_origin(dataset(np.stack([start, start + 1, start]))).compute()
    np.testing.assert_allclose(back.straightness[1:], [1, 0])
    np.testing.assert_allclose(back.path_length, [0, math.sqrt(2), 2 * math.sqrt(2)])
    assert back.attrs["left_out"] == {"drift_h_cosine": "the dataset has no h_mean"}


# --- predictors of freezing --------------------------------------------------------------------------------


def freeze(W: Array) -> tuple[Array, Array]:
    """The freeze step and whether it is censored, token by token; -1 for those left out."""
    time, censored = [], []
    for token in range(W.shape[1]):
        moved = [t for t in range(1, len(W)) if (W[t, token] != W[t - 1, token]).any()]
        usable = bool(moved) and np.isfinite(W[:, token]).all()
        time.append(moved[-1] + 1 if usable else -1)
        censored.append(usable and moved[-1] == len(W) - 1)
    return np.array(time), np.array(censored)


def concordance(time: Array, censored: Array, x: Array) -> tuple[float, int]:
    """Somers' D, pair by pair from its definition."""
    total = pairs = 0
    for i in range(len(time)):
        for j in range(len(time)):
            later = time[j] > time[i] or (time[j] == time[i] and censored[j])
            if not censored[i] and later and i != j:
                pairs += 1
                total += np.sign(x[j] - x[i])
    return (total / pairs if pairs else np.nan), pairs


@pytest.mark.parametrize("cut", [False, True])
def test_predictors_of_a_real_run(recording: Path, cut: bool) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    if cut:  # at the last transition that moves at least six tokens, which are censored then
        n_moved = (rec.W.values[1:] != rec.W.values[:-1]).any(2).sum(1)
        rec = rec.isel(step=slice(0, np.flatnonzero(n_moved > 5)[-1] + 2))
    found = dx.freeze_predictors(rec).compute()
    W = rec.W.values.astype(float)
    time, censored = freeze(W)
    np.testing.assert_array_equal(found.freeze_step, time)
    np.testing.assert_array_equal(found.censored, censored)
    assert found.n_censored == censored.sum()
    assert not cut or found.n_censored > 5
    h = rec.h_mean.values[1:].astype(float)
    h = (h / np.linalg.norm(h, axis=1, keepdims=True)).mean(0)
    expected = {
        "h_alignment": np.array([reference.cos(w, h) for w in W[0]]),
        "initial_norm": np.sqrt((W[0] ** 2).sum(1)),
        "initial_distance": np.sqrt(((W[0] - W[0].mean(0)) ** 2).sum(1)),
        "initial_ulp": np.exp(np.log(reference.ulp(W[0])).mean(1)),
        "final_ulp": np.exp(np.log(reference.ulp(W[-1])).mean(1)),
        "final_ulp_min": reference.ulp(W[-1]).min(1),
    }
    assert list(found.predictor.values) == list(expected)
    for name, values in expected.items():
        one = found.sel(predictor=name)
        np.testing.assert_allclose(one.value, values, rtol=1e-9, err_msg=name)
        D, pairs = concordance(time, censored, one.value.values)
        np.testing.assert_allclose(one.rank_correlation, D, rtol=1e-12)
        assert one.n_pairs == pairs
        assert one.rank_correlation_low < D < one.rank_correlation_high
        rho = stats.spearmanr(one.value.values[~censored], time[~censored]).statistic
        np.testing.assert_allclose(one.spearman, rho, atol=1e-9)


def test_tokens_that_never_moved_or_are_invalid_are_left_out() -> None:
    W = np.ones((6, 5, 2), np.float32)
    W[2:, 0] = 2
    W[:, 1, 0] = np.arange(6)
    W[3, 2] = np.nan
    W[4:, 3] = 4
    found = dx.freeze_predictors(dataset(W, (2, 2, 2), precision="bfloat16")).compute()
    np.testing.assert_array_equal(found.freeze_step, [3, 6, -1, 5, -1])
    np.testing.assert_array_equal(found.censored, [0, 1, 0, 0, 0])
    numbers = [int(found[name]) for name in ("n_frozen", "n_censored", "n_never_moved", "n_invalid")]
    assert numbers == [2, 1, 1, 1]
    assert (found.n_pairs == 3).all()
    assert "h_alignment" in found.attrs["left_out"]


@given(data=st.data(), n=st.integers(1, 25))
def test_concordance_is_that_of_the_definition(data: st.DataObject, n: int) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    time, x = rng.integers(0, 6, n), rng.integers(0, data.draw(st.sampled_from([2, 5, 1000])), n).astype(float)
    censored = rng.random(n) < data.draw(st.sampled_from([0.0, 0.4, 1.0]))
    D, low, high, pairs = _concordance(time, censored, x)
    expected, n_pairs = concordance(time, censored, x)
    np.testing.assert_allclose(D, expected, atol=1e-14)
    assert pairs == n_pairs
    assert np.isnan([low, high]).all() or -1 <= low <= D <= high <= 1


def test_the_intervals_cover_what_they_should() -> None:
    """Of 300 samples with a known correlation, about 95% of the intervals contain it."""
    rng = np.random.default_rng(1)
    rho, n = 0.5, 80
    tau, rank = 2 / np.pi * np.arcsin(rho), 6 / np.pi * np.arcsin(rho / 2)  # of the bivariate normal
    covered = np.zeros(3)
    for _ in range(300):
        x, t = rng.normal(size=(2, n))
        t = rho * x + math.sqrt(1 - rho**2) * t
        _, low, high, _ = _concordance(t, np.zeros(n, bool), x)
        _, low_rank, high_rank = spearman(x, t)
        late = np.quantile(t, 0.7)  # the latest third is not seen to freeze
        D, *_ = _concordance(np.minimum(t, late), t > late, x)
        covered += [low < tau < high, low_rank < rank < high_rank, abs(D - tau) < 0.35]
    assert 0.91 < covered[0] / 300 < 0.985
    assert 0.91 < covered[1] / 300 < 0.985
    assert covered[2] > 280


def test_off_grid_and_precision(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    with pytest.raises(InputError, match="unknown precision"):
        dx.freeze_predictors(rec.assign(W=rec.W.assign_attrs(precision="none")))


# --- pictures ----------------------------------------------------------------------------------------------


def test_pictures_hold_the_results(results: xr.DataTree) -> None:
    from matplotlib.figure import Figure

    def axes(**layout: Any) -> Array:
        return Figure(layout="constrained").subplots(**layout)

    h = results["h_persistence"].to_dataset()
    _, bottom = plot.h_persistence(h, axes=axes(nrows=2))
    drawn = next(line for line in bottom.lines if line.get_label().startswith("direction"))
    np.testing.assert_array_equal(drawn.get_ydata(), h.autocorrelation)
    origin = results["centroid_origin"].to_dataset()
    top, bottom = plot.centroid_origin(origin, axes=axes(nrows=2))
    np.testing.assert_array_equal(top.lines[0].get_ydata(), origin.drift_projection)
    assert sorted(bar.get_height() for bar in bottom.containers[0]) == sorted(origin.drift.values)
    cohere = results["coherence"].to_dataset()
    pairs, _, sizes = plot.coherence(cohere, axes=axes(nrows=3))
    np.testing.assert_array_equal(pairs.lines[0].get_ydata(), cohere.displacement_cosine_mean)
    assert sizes.get_yscale() == "log"
    few = cohere[["displacement_cosine_mean", "displacement_cosine_std", "bulk_alignment", "n_used"]]
    *_, sizes = plot.coherence(few, axes=axes(nrows=3))
    np.testing.assert_array_equal(sizes.lines[0].get_ydata(), few.n_used)
    predictors = results["freeze_predictors"].to_dataset()
    left, _ = plot.freeze_predictors(predictors, axes=axes(ncols=2))
    np.testing.assert_array_equal(left.containers[0].lines[0].get_xdata(), predictors.rank_correlation)
    with pytest.raises(InputError, match="axes: found 2, needed 3"):
        plot.coherence(cohere, axes=axes(nrows=2))
