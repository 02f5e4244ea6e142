"""The census against sets and dicts, on real runs, on few places with hostile bits, and with hashes that collide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr.analyses.census import EVENTS, ranks
from deadtok_xr.errors import InputError
from deadtok_xr.kernels.numba import changed_rows
from deadtok_xr.kernels.numba.census import census
from deadtok_xr.kernels.numba.coincidence_history import FIGURES, coincidence_history
from tests import reference_census as reference
from tests.reference import assert_agree


def dataset(W: np.ndarray, chunks: Any = None, steps: Any = None) -> xr.Dataset:
    data = W if chunks is None else da.from_array(W, chunks)
    coords = {"step": np.arange(len(W)) if steps is None else steps, "token": np.arange(W.shape[1]) * 3}
    return xr.Dataset({"W": (("step", "token", "dim"), data)}, coords)


def check(ds: xr.Dataset, at: Any, **options: Any) -> xr.Dataset:
    W = ds.W.compute().values  # plain arrays of expressions cannot be made one of numpy otherwise
    labels = ds.step.values[at]
    found = dx.census(ds, at=labels, **options).compute()
    distinct = options.get("signed_zero") == "distinct"
    for name, value in reference.census(W, distinct=distinct).items():
        assert_agree(found[name], value, name)
    np.testing.assert_array_equal(found.census_step, sorted(set(labels.tolist())))
    for t in at:
        rank, leader, since = reference.coincidence_history(W, t, distinct=distinct)
        one = found.sel(census_step=ds.step.values[t])
        np.testing.assert_array_equal(one.black_hole, rank)
        np.testing.assert_array_equal(one.together_with, np.where(leader >= 0, ds.token.values[leader], -1))
        np.testing.assert_array_equal(one.together_since, np.where(since >= 0, ds.step.values[since], -1))
    valid = ds.sizes["token"] - found.n_invalid
    assert (found.n_unique == found.n_black_holes + valid - found.population).all()
    return found


@st.composite
def crowds(draw: st.DrawFn) -> xr.Dataset:
    """Tokens on few places, which they leave and reach alone or together, in any of the formats and chunkings."""
    steps, n, dims = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    pool = [0x0000, 0x8000, 0x0001, 0x8001, 0x3F80, *draw(st.sampled_from([[], [0x7F80, 0x7FC0, 0xFF80]]))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spots = np.array(pool, np.uint16)[rng.integers(0, len(pool), (draw(st.integers(1, 5)), dims))]
    where = rng.integers(0, len(spots), (steps, n))
    still = rng.random((steps, n)) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    shift = rng.integers(0, 2, steps)  # all move together
    for t in range(1, steps):
        where[t] = np.where(still[t], where[t - 1], where[t])
    bits = spots[(where + np.cumsum(shift)[:, None]) % len(spots)]
    values = bits.view(ml_dtypes.bfloat16)
    dtype = draw(st.sampled_from(["bfloat16", "float32", "float64"]))
    with np.errstate(invalid="ignore"):
        values = values if dtype == "bfloat16" else values.astype(dtype)
    chunks = tuple(draw(st.integers(1, size)) for size in bits.shape)
    labels = np.cumsum(rng.integers(1, draw(st.sampled_from([2, 5])), steps))
    return dataset(values, draw(st.sampled_from([None, chunks])), labels)


@pytest.mark.slow
@given(ds=crowds(), data=st.data())
@pytest.mark.parametrize("signed_zero", ["equal", "distinct"])
def test_census_of_few_places(signed_zero: str, ds: xr.Dataset, data: st.DataObject) -> None:
    at = data.draw(st.lists(st.integers(0, ds.sizes["step"] - 1), min_size=1, max_size=3, unique=True))
    check(ds, at, signed_zero=signed_zero)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["dead", "all"])
def test_census_of_real_recordings(recording: Path, atom: Path, tokens: Any) -> None:
    for path in (recording, atom):
        rec = dx.open_recording(path, tokens=tokens)
        last = rec.sizes["step"] - 1
        check(rec, [0, 1, 127, 128, 129, last])


def test_a_real_cluster_has_black_holes() -> None:
    """Rows that a narrow distribution puts on the same points of the grid, and a drift that parts and joins them."""
    rng = np.random.default_rng(5)
    start = (1 + rng.normal(0, 2e-3, (200, 4))).astype(ml_dtypes.bfloat16)
    W = [start]
    for _ in range(300):
        step = 2e-3 * rng.normal(size=4) + 4e-4 * rng.normal(size=(200, 4)) * (rng.random((200, 1)) < 0.1)
        W.append((W[-1].astype(np.float32) + step.astype(np.float32)).astype(ml_dtypes.bfloat16))
    found = check(dataset(np.stack(W), (64, 70, 4)), [0, 63, 64, 65, 128, 300])
    for name in EVENTS:
        assert (found[name] > 0).sum() > 20, name
    since = found.together_since.sel(census_step=300)
    assert len(np.unique(since)) > 4
    assert ((since > 0) & (since < 256)).any()  # longer than the last row of chunks
    assert found.n_black_holes.max() > 5


@given(seed=st.integers(0, 2**32 - 1), multiplier=st.sampled_from([0, 1, 2**24]))
def test_colliding_hashes_do_not_change_results(seed: int, multiplier: int) -> None:
    """All rows have the same hash, or that of the sum of their words: rows are told apart by their bits."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 3, (6, 15, 2)).astype(np.uint16)
    bits[1:][rng.random((5, 15)) < 0.6] = 0
    out: dict[str, Any] = {name: np.empty(6) for name in FIGURES} | {name: np.empty(5, np.int64) for name in EVENTS}
    kept = {name: np.empty((6, 15), np.int64) for name in ("label", "order", "since")}
    keys = np.full(2, multiplier, np.uint32)
    limits = (np.uint16(0x8000), np.uint16(0x7F80))
    labels, _ = census(bits, changed_rows(bits), None, limits, keys)
    coincidence_history(labels, changed_rows(bits), None, 0, np.arange(6), out, kept)
    W = bits.view(ml_dtypes.bfloat16)
    for name, value in reference.census(W).items():
        assert_agree(out[name], value[1:] if name in EVENTS else value, name)
    for t in range(6):
        np.testing.assert_array_equal(ranks(kept["label"][t]), reference.coincidence_history(W, t)[0])


def test_signed_zeros_are_one_place_unless_distinct() -> None:
    """Catalogue 3.7, 10: values compare as equal what bits tell apart."""
    W = np.array([0.0, -0.0, 0.0, 1.0], np.float32).reshape(1, 4, 1)
    ds = dataset(W.astype(ml_dtypes.bfloat16))
    assert int(dx.census(ds).n_unique[0]) == 2
    assert int(dx.census(ds, signed_zero="distinct").n_unique[0]) == 3
    turned = dataset(np.array([[0.0, 1.0], [-0.0, 1.0]], np.float32)[..., None])
    assert int(dx.census(turned).evaporated[1]) == 0


def test_unique_vectors_are_not_black_holes() -> None:
    """Catalogue 3.7, 30: a place that one token has to itself is none."""
    W = np.array([1, 1, 1, 2, 2, 3], np.float32).reshape(1, 6, 1)
    found = dx.census(dataset(W)).compute()
    figures = ("n_unique", "n_black_holes", "population", "largest", "n_singletons")
    assert [int(found[name][0]) for name in figures] == [3, 2, 5, 3, 1]
    np.testing.assert_allclose(found.herfindahl, [(3 / 5) ** 2 + (2 / 5) ** 2])
    np.testing.assert_allclose(found.gini, [0.1])
    assert found.top_two_share[0] == 1


def test_qwen_has_thirteen_black_holes() -> None:
    """Catalogue 4.4, on rows with its multiplicities: what is published of their sizes."""
    sizes = [814, 704, 306, 228, 11, 10, 6, 5, 4, 4, 3, 3, 2]
    rng = np.random.default_rng(2)
    place = np.concatenate([np.repeat(np.arange(13), sizes), np.arange(13, 1000)])
    rng.shuffle(place)
    W = rng.permutation(4096)[place].astype(np.float32).reshape(1, -1, 1)
    found = dx.census(dataset(W)).compute()
    assert (int(found.n_black_holes[0]), int(found.population[0]), int(found.largest[0])) == (13, 2100, 814)
    assert round(100 * float(found.top_two_share[0]), 1) == 72.3
    counts = np.bincount(found.black_hole.values[0])
    assert counts[1:].tolist() == sizes


def test_nan_and_infinity_are_in_no_place() -> None:
    W = np.ones((3, 4, 2), np.float32)
    W[:, 0] = np.nan
    W[1, 1, 0] = np.inf
    found = dx.census(dataset(W), at=[0, 1, 2]).compute()
    np.testing.assert_array_equal(found.n_invalid, [1, 2, 1])
    np.testing.assert_array_equal(found.population, [3, 2, 3])
    np.testing.assert_array_equal(found.n_unique, [1, 1, 1])
    for name in EVENTS:
        np.testing.assert_array_equal(found[name], [-1, 0, 0])
    np.testing.assert_array_equal(found.black_hole.sel(census_step=1), [-1, -1, 1, 1])
    np.testing.assert_array_equal(found.together_since.sel(census_step=2), [-1, 2, 2, 2])


def test_one_step_and_one_token() -> None:
    found = dx.census(dataset(np.ones((1, 1, 3), np.float32), steps=[7])).compute()
    assert found.census_step.values.tolist() == [7]
    assert int(found.n_unique[0]) == 1
    assert np.isnan(found.gini[0])
    assert found.fissions.dtype == np.int64
    assert found.black_hole.values.tolist() == [[0]]


def test_gaps_are_accepted_and_unordered_steps_refused() -> None:
    ds = dataset(np.ones((3, 2, 1), np.float32), steps=[4, 9, 100])
    assert dx.census(ds).together_since.sel(census_step=100).values.tolist() == [4, 4]
    with pytest.raises(InputError, match="census: the steps must ascend; step 4 does not"):
        dx.census(ds.isel(step=[1, 0]))


def test_a_float32_recording_needs_no_lattice(recording: Path) -> None:
    rec = dx.open_recording(recording).isel(step=slice(0, 3))
    none = rec.assign(W=rec.W.assign_attrs(precision="none"))
    assert int(dx.census(none).n_unique[0]) == int(dx.census(rec).n_unique[0])


def test_invalid_input_is_refused() -> None:
    ds = dataset(np.ones((3, 2, 1), np.float32))
    with pytest.raises(InputError, match="census: step 5 is not in this dataset; choose from its 3 steps, 0 to 2"):
        dx.census(ds, at=[1, 5])
    with pytest.raises(InputError, match="signed_zero='both': choose one of equal, distinct"):
        dx.census(ds, signed_zero="both")
    with pytest.raises(InputError, match="dtype int64; expected bfloat16, float16, float32 or float64"):
        dx.census(ds.astype(np.int64))
    with pytest.raises(InputError, match="absolute positions are not known"):
        dx.census(ds.rename(W="delta"))


def test_census_is_lazy_with_writable_chunks(recording: Path, lazily: Any) -> None:
    with lazily():
        found = dx.census(dx.open_recording(recording))
    for name, variable in found.data_vars.items():
        assert variable.chunks is not None, name
        for sizes in variable.chunks:
            assert len(set(sizes[:-1])) <= 1, (name, sizes)
            assert sizes[-1] <= sizes[0], (name, sizes)


def test_raw_bits_and_loaded_data_give_the_same(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 150))
    expected = dx.census(rec).compute()
    raw = dx.open_recording(recording, tokens="dead", raw=True).isel(step=slice(0, 150))
    xr.testing.assert_equal(dx.census(raw).compute(), expected)
    xr.testing.assert_equal(dx.census(rec.load()).compute(), expected)
