"""Predictors of the freeze step, their rank correlations and confidence intervals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import deadtok_xr as dx
from deadtok_xr.analyses.common.rank_correlation import concordance as concordance_of
from deadtok_xr.analyses.common.rank_correlation import spearman
from deadtok_xr.errors import InputError
from tests import reference
from tests.strategies import dataset

Array = np.ndarray


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
    D, low, high, pairs = concordance_of(time, censored, x)
    expected, n_pairs = concordance(time, censored, x)
    np.testing.assert_allclose(D, expected, atol=1e-14)
    assert pairs == n_pairs
    assert np.isnan([low, high]).all() or -1 <= low <= D <= high <= 1


@pytest.mark.slow
def test_confidence_intervals_cover_the_true_value() -> None:
    """Of 300 samples with a known correlation, about 95% of the intervals contain it."""
    rng = np.random.default_rng(1)
    rho, n = 0.5, 80
    tau, rank = 2 / np.pi * np.arcsin(rho), 6 / np.pi * np.arcsin(rho / 2)  # of the bivariate normal
    covered = np.zeros(3)
    for _ in range(300):
        x, t = rng.normal(size=(2, n))
        t = rho * x + math.sqrt(1 - rho**2) * t
        _, low, high, _ = concordance_of(t, np.zeros(n, bool), x)
        _, low_rank, high_rank = spearman(x, t)
        late = np.quantile(t, 0.7)  # the latest third is not seen to freeze
        D, *_ = concordance_of(np.minimum(t, late), t > late, x)
        covered += [low < tau < high, low_rank < rank < high_rank, abs(D - tau) < 0.35]
    assert 0.91 < covered[0] / 300 < 0.985
    assert 0.91 < covered[1] / 300 < 0.985
    assert covered[2] > 280


def test_off_grid_and_precision(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    with pytest.raises(InputError, match="unknown precision"):
        dx.freeze_predictors(rec.assign(W=rec.W.assign_attrs(precision="none")))
