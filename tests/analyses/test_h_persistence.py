"""Persistence of the mean hidden state's direction, against a direct computation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests import reference
from tests.reference import assert_agree

Array = np.ndarray


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


def test_errors_name_what_is_missing(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    with pytest.raises(InputError, match="needs the variable 'h_mean'.*recorder.log"):
        dx.h_persistence(rec.drop_vars("h_mean"))
    with pytest.raises(InputError, match="max_lag=900; expected 0 to 299"):
        dx.h_persistence(rec, max_lag=900)
    tree = dx.analyze(rec.drop_vars("h_mean"))
    assert "h_mean" in tree.attrs["left_out"]["h_persistence"]
    assert "h_persistence" not in tree.children
