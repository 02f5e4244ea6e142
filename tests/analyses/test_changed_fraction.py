"""`changed_fraction` against comparing every pair of states in plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests.strategies import hostile


@settings(max_examples=8, deadline=None)
@given(hostile(), st.data())
def test_shares_are_those_of_all_pairs(ds: xr.Dataset, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, ds.sizes["step"] - 1))
    found = dx.changed_fraction(ds, k=k).compute()
    with np.errstate(invalid="ignore"):
        W = np.asarray(ds.W.values).astype(np.float64)
        valid = np.isfinite(W[k:]) & np.isfinite(W[:-k])
        changed = (W[k:] != W[:-k]) & valid
        for name, axes in (("changed_fraction", (1, 2)), ("token_changed_fraction", 2)):
            expected = np.divide(changed.sum(axes), valid.sum(axes))  # 0/0 is NaN
            np.testing.assert_allclose(found[name], expected, rtol=1e-15)
    np.testing.assert_array_equal(found.n_invalid, (~valid).sum((1, 2)))
    np.testing.assert_array_equal(found.step, ds.step[k:])


def test_float32_is_compared_as_bfloat16(recording: Path, lazily: Callable[[], AbstractContextManager[None]]) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    with lazily():
        found = dx.changed_fraction(rec, k=3)
    expected = (rec.W[3:].values != rec.W[:-3].values).mean((1, 2))
    np.testing.assert_allclose(found.changed_fraction, expected)
    drift = np.linspace(1, 1.01, 9, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    masters = xr.Dataset({"W": (("step", "token", "dim"), drift)}, {"step": range(9), "token": range(2)})
    rounded = drift[:, 0, 0].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(dx.changed_fraction(masters).changed_fraction, rounded[1:] != rounded[:-1])
    assert (dx.changed_fraction(masters, rounded_to="float32").changed_fraction == 1).all()
    for k in (0, 9, 1.5, True):
        with pytest.raises(InputError, match=r"expected: 1 to 8, a number of steps"):
            dx.changed_fraction(masters, k=k)  # type: ignore[arg-type]
