"""Gaps between the values of a checkpoint, against a direct computation."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings

import deadtok_xr as dx
from deadtok_xr.errors import InputError, OffGridError
from tests import reference_standalone as reference
from tests.reference import assert_agree
from tests.strategies import dataset, hostile

BF16 = ml_dtypes.bfloat16


class TestGaps:
    @pytest.mark.parametrize("kind", ["recording", "atom"])
    def test_gaps_of_a_real_recording(self, kind: str, request: pytest.FixtureRequest) -> None:
        rec = dx.open_recording(request.getfixturevalue(kind), tokens="dead")
        found = dx.lattice_gaps(rec, step=100).compute()
        expected = reference.gaps(rec.W.sel(step=100).values)
        assert set(found.data_vars) == set(expected)
        for name, value in expected.items():
            assert_agree(found[name], value, name)

    @settings(max_examples=15)
    @given(ds=hostile())
    @example(ds=dataset(np.array([[[np.inf, 1.0]], [[1.0, 1.0]]], BF16)))  # a dim without a finite value comes first
    def test_hostile_bits(self, ds: xr.Dataset) -> None:
        W = np.asarray(ds.W.values[:1], np.float32)
        found = dx.lattice_gaps(ds.isel(step=[0])).compute()
        kept = np.isfinite(W).any((0, 1))
        for name, value in reference.gaps(W[0][:, kept]).items() if kept.any() else ():
            assert_agree(found[name][kept] if found[name].dims == ("dim",) else found[name], value, name)
        assert (found.n_distinct[~kept] == 0).all()
        assert (found.width[~kept] == -1).all()
        assert found.n_not_finite.values.tolist() == (~np.isfinite(W)).sum((0, 1)).tolist()

    def test_results_do_not_depend_on_blocks_of_tokens(self, atom: Path) -> None:
        rec = dx.open_recording(atom).isel(step=[0])
        whole = dx.lattice_gaps(rec.load()).compute()
        xr.testing.assert_equal(dx.lattice_gaps(rec.chunk(token=7)).compute(), whole)
        assert int(whole.gap_count.sum()) == int((whole.n_distinct - 1).sum())

    def test_gaps_of_every_format(self) -> None:
        W = np.array([[[1.0], [1 + 2**-10], [2.0]]], np.float16)
        found = dx.lattice_gaps(dataset(W, precision="float16")).compute()
        assert (found.gap_min.item(), found.gap_max.item()) == (1, 1023)
        with pytest.raises(InputError, match="has the precision float32; expected a format of 16 bits"):
            dx.lattice_gaps(dataset(W.astype("f4"), precision="float32"))
        with pytest.raises(OffGridError, match="W: 1 of 3 values are not on the bfloat16 grid"):
            dx.lattice_gaps(dataset(W.astype("f4"))).compute()
        with pytest.raises(InputError, match=r"lattice_gaps takes one step; this dataset has 2"):
            dx.lattice_gaps(dataset(np.ones((2, 1, 1), ml_dtypes.bfloat16)))
