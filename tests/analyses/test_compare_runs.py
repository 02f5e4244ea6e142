"""Comparison of two runs, bit by bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests import reference_cloud as reference
from tests.conftest import once
from tests.reference import assert_agree
from tests.strategies import dataset, hostile


def line(*places: list[list[float]]) -> xr.Dataset:
    """Tokens at places, step by step."""
    return dataset(np.array(places, np.float64).astype(ml_dtypes.bfloat16))


def pair(recording: Path) -> tuple[xr.Dataset, xr.Dataset]:
    """A recording, and the same with changes of known place."""
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(100, 160), token=slice(0, 30))
    W = rec.W.values.copy()
    W[45:, 3] *= -1
    W[50, 7, 2] = np.nan
    W[30, 9], W[40:, 11, 1] = 0.0, 1e30
    return rec, rec.assign(W=rec.W.copy(data=W))


class TestTwoRuns:
    def test_real_recording(self, recording: Path, lazily: Any) -> None:
        a, b = pair(recording)
        with lazily():
            found = dx.compare_runs(a, b.chunk(step=7))
        expected = reference.differences(a.W.values, b.W.values)
        for name in ("token_first_difference", "first_difference"):
            expected[name] = np.where(expected[name] >= 0, a.step.values[expected[name]], -1)
        assert set(found.data_vars) == set(expected)
        for name, value in expected.items():
            assert_agree(found[name].compute(), value, name)

    def test_recording_equals_itself(self, recording: Path, decoded: Counter[Any]) -> None:
        rec = dx.open_recording(recording, tokens="dead")
        found = dx.compare_runs(rec, dx.open_recording(recording, tokens="dead", raw=True)).compute()
        assert int(found.first_difference) == -1
        assert int(found.n_common_prefix) == 301
        assert int(found.n_equal) == int(found.n_elements) == rec.W.size
        assert (found.frobenius == 0).all()
        assert sum(decoded.values()) == 2 * sum(once(301, "W").values())

    @given(ds=hostile(), data=st.data())
    @pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
    def test_hostile_bits(self, ds: xr.Dataset, data: st.DataObject) -> None:
        W = np.asarray(ds.W.values)
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        other = np.where(rng.random(W.shape) < 0.2, np.roll(W, 1, axis=0), W)
        found = dx.compare_runs(ds, ds.assign(W=ds.W.copy(data=other))).compute()
        for name, value in reference.differences(W, other).items():
            value = value if name != "distance" else value.astype("f4")
            assert_agree(found[name], value, name)

    def test_labels_are_aligned(self, recording: Path) -> None:
        """Two runs of one seed, one of which is longer and has more tokens."""
        rec = dx.open_recording(recording, tokens="dead")
        a, b = rec.isel(step=slice(0, 60)), rec.isel(step=slice(20, 200), token=slice(5, 50))
        with pytest.raises(InputError, match=r"different steps \(60 and 180; step 0 is only in one\).*join='inner'"):
            dx.compare_runs(a, b)
        found = dx.compare_runs(a, b.isel(token=slice(None, None, -1)), join="inner").compute()
        np.testing.assert_array_equal(found.step, np.arange(20, 60))
        np.testing.assert_array_equal(found.token, b.token)
        assert int(found.first_difference) == -1

    def test_signed_zeros_differ_in_bits_and_not_in_value(self) -> None:
        found = dx.compare_runs(line([[0.0]]), line([[-0.0]])).compute()
        assert [int(found[n][0]) for n in ("n_different", "n_unequal")] == [1, 0]
        assert float(found.frobenius[0]) == 0

    def test_formats_may_differ(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 9))
        for dtype in ("f4", "f8"):
            found = dx.compare_runs(rec, rec.assign(W=rec.W.copy(data=rec.W.values.astype(dtype)))).compute()
            assert int(found.first_difference) == -1, dtype

    def test_incompatible_runs_are_refused(self) -> None:
        a = line([[1, 2]], [[1, 2]])
        with pytest.raises(InputError, match="2 dims in one and 1 in the other"):
            dx.compare_runs(a, line([[1]], [[1]]))
        with pytest.raises(InputError, match="no step in common"):
            dx.compare_runs(a, a.assign_coords(step=[7, 8]), join="inner")
        with pytest.raises(InputError, match="choose one of exact, inner"):
            dx.compare_runs(a, a, join="outer")
        with pytest.raises(InputError, match="compare_runs takes a recording's dataset, not a str"):
            dx.compare_runs(a, "b.zarr")  # type: ignore[arg-type]
