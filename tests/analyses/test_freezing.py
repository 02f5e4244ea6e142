"""Frozen tokens and global freezes, against an independent reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given

import deadtok_xr as dx
from deadtok_xr.analyses.freezing import runs
from tests import reference
from tests import reference_lifecycle as expected_of
from tests.strategies import dataset, hostile


def test_published_runs_of_thimble_5() -> None:
    """Catalogue 4.3: 55 runs of global freezes, 674 steps, mean 12.3, median 4, longest 82."""
    text = """1143-1145 1383-1384 1632-1633 1639-1640 1700-1701 1736-1738 1747-1751 1823-1824 1908 1917-1923 1929-1933
        2011-2013 2030 2050-2053 2097 2100-2110 2118-2122 2127-2128 2141-2147 2156-2159 2161-2164 2169-2177 2198-2201
        2215-2216 2219 2221 2223-2224 2227-2234 2238-2239 2259-2260 2273-2278 2283-2285 2292-2293 2295-2298 2300-2303
        2320-2350 2354-2381 2398-2425 2427-2431 2467-2492 2497-2504 2506-2518 2526-2528 2535-2542 2545-2560 2567-2610
        2614-2650 2658-2660 2663-2704 2711-2722 2731-2807 2811-2827 2830-2862 2878-2912 2918-2999"""
    spans = [[int(x) for x in part.split("-")] for part in text.split()]
    still = np.zeros(3000, bool)
    for span in spans:
        still[span[0] : span[-1] + 1] = True
    W = np.concatenate([[0], np.cumsum(~still) % 2]).astype(np.float32).reshape(-1, 1, 1) + 1
    found = dx.freezing(dataset(W, (500, 1, 1), precision="bfloat16")).compute()
    assert (int(found.n_runs), int(found.n_global), int(found.longest_run)) == (55, 674, 82)
    assert (round(float(found.mean_run), 1), float(found.median_run)) == (12.3, 4.0)
    begins = found.freeze_run[found.freeze_run > 0]
    assert begins.step.values.tolist() == [span[0] + 1 for span in spans]  # there, the label of the earlier step
    assert begins.values.tolist() == [span[-1] - span[0] + 1 for span in spans]
    assert int(found.permanent_freeze) == 82
    assert int(found.final_motion) == 2918


@pytest.mark.slow
@given(ds=hostile())
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
def test_freezing_of_hostile_bits(ds: xr.Dataset) -> None:
    W = np.asarray(ds.W.values)
    m = reference.motion(W)
    bits = W.view("u2" if W.dtype == ml_dtypes.bfloat16 else "u4")
    valid = m["moved_dims"] >= 0
    definitions = {"value": m["moved_dims"] == 0, "bits": valid & (bits[1:] == bits[:-1]).all(2)}
    for name, threshold in (("displacement", 1e-3), ("displacement_ulp", 0.1), ("lattice_l1", 1.0),
                            ("lattice_l2", 0.7), ("lattice_linf", 1.5)):  # fmt: skip
        definitions[name] = m[name] < threshold
        found = dx.freezing(ds, definition=name, threshold=threshold).compute()
        np.testing.assert_array_equal(found.n_frozen, definitions[name].sum(1))
    for name in ("value", "bits"):
        found = dx.freezing(ds, definition=name).compute()
        still = definitions[name]
        np.testing.assert_array_equal(found.n_frozen, still.sum(1))
        np.testing.assert_array_equal(found.n_invalid, (~valid).sum(1))
        going = valid & ~still
        last = [expected_of.label(expected_of.last(list(column)), ds.step.values) for column in going.T]
        np.testing.assert_array_equal(found.last_motion, last)
        assert found.final_motion == max(last)
        everything = still.all(1)
        np.testing.assert_array_equal(found.global_freeze, everything)
        expected = np.zeros(len(everything), int)
        for start, length in expected_of.runs(list(everything)):
            expected[start] = length
        np.testing.assert_array_equal(found.freeze_run, expected)
        np.testing.assert_array_equal(runs(everything), expected)
