"""Elements on their lattice against an independent reference, and what notebooks got wrong about them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given

import deadtok_xr as dx
from deadtok_xr.errors import InputError, OffGridError
from tests import reference_lattice as reference
from tests.conftest import once
from tests.reference import assert_agree
from tests.strategies import dataset, hopping, hostile

FORMATS = {"bfloat16": reference.BFLOAT16, "float16": reference.FLOAT16, "float32": reference.FLOAT32}
REFERENCES = {"lattice": reference.lattice, "exponents": reference.exponents}


def check(name: str, ds: xr.Dataset, grid: str = "bfloat16") -> None:
    found = getattr(dx, name)(ds).compute()
    expected = REFERENCES[name](np.asarray(ds.W.values), *FORMATS[grid])
    assert set(found.data_vars) == set(expected)
    for key, value in expected.items():
        assert_agree(found[key], value, key)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("steps", [slice(0, 6), slice(120, 140), slice(250, 256)])
def test_real_recording(recording: Path, name: str, steps: slice) -> None:
    check(name, dx.open_recording(recording, tokens="dead").isel(step=steps, token=slice(0, 40)))


@pytest.mark.slow
@given(ds=hostile())
@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
def test_hostile_bits_and_chunks(name: str, ds: xr.Dataset) -> None:
    check(name, ds)


@pytest.mark.parametrize("grid", ["float16", "float32"])
@pytest.mark.parametrize("name", REFERENCES)
def test_other_formats_have_their_own_lattice(name: str, grid: str) -> None:
    rng = np.random.default_rng(3)
    W = (rng.normal(size=(5, 5, 6)) * 10.0 ** rng.integers(-8, 3, (5, 5, 6))).astype(grid)
    W[2, 1], W[3, 2, 1] = W[1, 1], 0
    check(name, dataset(W, precision=grid), grid)


@pytest.mark.parametrize("name", REFERENCES)
def test_hops_rests_and_thaws(name: str) -> None:
    check(name, hopping())


def test_built_recording_contains_hops_rests_and_thaws() -> None:
    found = dx.lattice(hopping()).compute()
    for name in ("n_half", "n_crossings_up", "n_crossings_down", "n_sign_changes"):
        assert found[name].sum() > 20, name
    assert (found.hop_fraction.sel(token_ulp="mean").max("step") > 0).all()
    assert (found.regime_fraction.max("step") > 0).all()


def test_results_are_lazy_and_read_each_chunk_once(recording: Path, lazily: Any, decoded: Counter[Any]) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    with lazily():
        tree = dx.analyze(rec, analyses=["lattice", "exponents"])
    found = {name: node.to_dataset() for name, node in tree.children.items()}
    import dask

    dask.compute(found)
    assert decoded == once(rec.sizes["step"], "W")


def bits(*rows: list[float], dtype: Any = ml_dtypes.bfloat16) -> xr.Dataset:
    """One token whose dims go through the rows."""
    return dataset(np.array(rows, np.float64).astype(dtype)[:, None, :])


class TestPitfalls:
    def test_ulp_is_that_of_the_format_not_of_float32(self) -> None:
        """After an upcast, ULP is 65,536 times too small, and every difference "an exact integer" (2)."""
        found = dx.lattice(bits([1.0], [1.0 + 2**-7])).compute()
        assert float(found.lattice_max[0]) == 1.0
        assert float(dx.exponents(bits([1.0])).ulp_max[0]) == 2.0**-7

    def test_ulp_is_never_zero(self) -> None:
        """nextafter on a device gave 0, and everything was isolated (1)."""
        found = dx.exponents(bits([0.0, 1e-40, 1.0, -3.0])).compute()
        assert float(found.ulp_min[0]) == 2.0**-133

    def test_ulp_is_not_twice_too_large(self) -> None:
        """By frexp without the shift, one cell counts as half of one (3)."""
        found = dx.lattice(bits([1.5, -0.75], [1.5 + 2**-7, -0.75 - 2**-8])).compute()
        assert int(found.n_half[0]) == 0
        assert float(found.lattice_mean[0]) == 1.0

    def test_inwards_from_a_power_of_two_is_half_a_cell(self) -> None:
        """ULP halves below a power of two: whole numbers of cells are no law (7)."""
        found = dx.lattice(bits([1.0, -1.0, 1.0], [1 - 2**-8, -1 + 2**-8, 1 + 2**-7])).compute()
        assert [int(found[name][0]) for name in ("n_moved", "n_half", "n_fractional", "n_crossings_down")] == [
            3,
            2,
            2,
            2,
        ]
        assert int(found.ordinal_linf[0, 0]) == 1

    def test_distances_ascend_across_exponents_and_signs(self) -> None:
        """W/ULP(W) jumps from 255 to 128, raw bits by 33,000 at a sign (8)."""
        below, above = 2.0 - 2**-7, 2.0
        found = dx.lattice(bits([below, 2**-133], [above, -(2.0**-133)])).compute()
        assert int(found.ordinal_l1[0, 0]) == 1 + 2
        whole = dx.elements(bits([below], [above])).compute()
        np.testing.assert_array_equal(whole.coordinate.values.ravel(), [255, 128])
        assert float(whole.ordinal_distance[1, 0, 0]) == 1

    def test_leaving_zero_does_not_overflow_and_is_not_frozen(self) -> None:
        """ULP(0) is 2^-133: in float32 the norms are infinite, and were then replaced by 0 (9, 38)."""
        found = dx.lattice(bits([0.0], [1e4])).compute()
        assert 1e40 < float(found.lattice_max[0]) < np.inf
        assert float(found.hop_fraction.sel(token_ulp="largest", hop="frozen")[0]) == 0
        assert int(found.n_from_zero[0]) == 1

    def test_signed_zeros_are_one_place(self) -> None:
        """By bits -0 moved to +0 (10)."""
        found = dx.lattice(bits([-0.0, 1.0], [0.0, 1.0])).compute()
        assert int(found.n_moved[0]) == int(found.ordinal_l1[0, 0]) == 0
        assert float(found.hop_fraction.sel(token_ulp="mean", hop="frozen")[0]) == 1
        np.testing.assert_array_equal(dx.exponents(bits([-0.0, 1.0])).n_zero, [1])

    def test_differences_are_not_rounded(self) -> None:
        """A difference in bfloat16 keeps 8 bits, and hides fractions (11)."""
        found = dx.elements(bits([1.0], [2.0**-8])).compute()
        assert float(found.lattice_displacement[1, 0, 0]) == -(128 - 0.5)

    def test_the_spacing_upwards_from_negative_powers_of_two_has_its_own_name(self) -> None:
        """d = 8·0.75 mean gaps upwards, 8·1 mean ULP: `lattice` by one definition, `thermal` by the other."""
        step = 7 * 2.0**-7
        found = dx.lattice(bits([-1.0, 1.0], [-1.0, 1.0 + step])).compute().hop_fraction[0]
        assert float(found.sel(token_ulp="mean", hop="lattice")) == 1
        assert float(found.sel(token_ulp="mean_upward", hop="thermal")) == 1


class TestBadInput:
    def test_gaps(self) -> None:
        ds = bits([1.0], [2.0], [3.0], [4.0]).isel(step=[0, 1, 3])
        with pytest.raises(InputError, match=r"lattice: step 2 is missing.*allow_gaps=True"):
            dx.lattice(ds)
        with pytest.raises(InputError, match=r"elements: step 2 is missing"):
            dx.elements(ds)
        np.testing.assert_array_equal(dx.lattice(ds, allow_gaps=True).step_span, [1, 2])
        assert dx.exponents(ds).sizes["step"] == 3

    def test_one_step(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead").isel(step=[7])
        with pytest.raises(InputError, match=r"lattice needs at least two steps; this dataset has one \(step 7\)"):
            dx.lattice(rec)
        check("exponents", rec)
        assert np.isnan(dx.elements(rec).lattice_displacement).all()

    def test_one_token_that_is_frozen_from_the_start(self) -> None:
        found = dx.lattice(bits([1.0, 2.0], [1.0, 2.0])).compute()
        assert np.isnan(found.half_fraction).all()  # a share of nothing
        assert float(found.moved_fraction[0]) == float(found.lattice_max[0]) == 0
        assert np.isnan(found.l2_over_l1).all()

    def test_all_invalid_is_nan_and_never_frozen(self) -> None:
        found = dx.lattice(bits([np.nan], [np.nan])).compute()
        assert np.isnan(found.hop_fraction).all()
        assert np.isnan(found.lattice_max).all()
        assert np.isnan(found.moved_fraction).all()
        assert (found.ordinal_l1 == -1).all()
        assert np.isnan(dx.exponents(bits([np.nan])).ulp_max).all()

    @pytest.mark.parametrize("name", ["lattice", "exponents", "elements", "checkpoint"])
    def test_float32_has_no_lattice_unless_named(self, name: str) -> None:
        rng = np.random.default_rng(0)
        ds = dataset(rng.normal(size=(1 if name == "checkpoint" else 3, 4, 2)).astype("f4"), precision="none")
        with pytest.raises(InputError, match="W has unknown precision.*say precision='float32'"):
            getattr(dx, name)(ds)
        getattr(dx, name)(ds, precision="float32").compute()

    @pytest.mark.parametrize("name", ["lattice", "exponents", "elements", "checkpoint"])
    def test_unknown_precision_is_proven_or_refused(self, name: str) -> None:
        n = 1 if name == "checkpoint" else 2
        with pytest.raises(OffGridError, match="not on the (bfloat16 )?grid"):
            getattr(dx, name)(dataset(np.full((n, 2, 2), 0.1, "f4"))).compute()
        getattr(dx, name)(dataset(np.full((n, 2, 2), 0.125, "f4"))).compute()

    @pytest.mark.parametrize("name", ["lattice", "exponents", "elements", "cloud", "spectrum", "checkpoint"])
    def test_displacements_alone(self, name: str) -> None:
        ds = bits([1.0], [2.0]).rename(W="delta")
        with pytest.raises(InputError, match=f"{name} needs the variable 'W'.*absolute positions are not known"):
            getattr(dx, name)(ds)


def test_elements_agree_with_the_reference(recording: Path, lazily: Any) -> None:
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(120, 140), token=slice(0, 9))
    with lazily():
        found = dx.elements(rec)
    found = found.compute()
    W = rec.W.values.astype(np.float64)
    place = np.vectorize(reference.ordinal)(W, *reference.BFLOAT16)
    np.testing.assert_array_equal(found.ordinal, place)
    np.testing.assert_array_equal(found.ordinal_distance[1:], np.diff(place, axis=0))
    np.testing.assert_array_equal(found.exponent, np.vectorize(reference.field)(W, -126))
    gaps = reference.ulp(W)
    np.testing.assert_array_equal(found.ulp, gaps)
    np.testing.assert_array_equal(found.coordinate, W / gaps)
    np.testing.assert_array_equal(found.lattice_displacement[1:], np.diff(W, axis=0) / gaps[:-1])
    assert np.isnan(found.lattice_displacement[0]).all()


class TestGrids:
    def test_grid_test_distinguishes_the_formats(self, lazily: Any) -> None:
        rng = np.random.default_rng(1)
        x = rng.normal(size=(6, 5, 3))
        held = {
            "a": x.astype(ml_dtypes.bfloat16), "b": x.astype(ml_dtypes.bfloat16).astype("f4"), "c": x.astype("f4"),
            "d": x.astype("f2"), "e": x,
        }  # fmt: skip
        held["b"][2, 1, 0] = np.nan
        ds = xr.merge([dataset(v, (2, 5, 3)).rename(W=k) for k, v in held.items()])
        with lazily():
            found = dx.grid_test(ds)
        found = found.compute()
        assert found.lives_on.values.tolist() == ["bfloat16", "bfloat16", "float32", "float16", "none"]
        assert found.n_not_finite.values.tolist() == [0, 1, 0, 0, 0]
        for name, grid in (("bfloat16", ml_dtypes.bfloat16), ("float16", "f2"), ("float32", "f4")):
            with np.errstate(over="ignore"):
                own = [(v.astype("f8").astype(grid).astype("f8") == v.astype("f8")) | np.isnan(v.astype("f8"))
                       for v in held.values()]  # fmt: skip
            np.testing.assert_array_equal(found.n_on_grid.sel(grid=name), [o.sum() for o in own], err_msg=name)

    def test_real_recording(self, recording: Path) -> None:
        found = dx.grid_test(dx.open_recording(recording, tokens="dead")).compute()
        assert (found.fraction_on_grid.sel(grid="bfloat16") == 1).all()
        assert set(found["variable"].values) >= {"W", "grad", "exp_avg", "exp_avg_sq"}

    def test_grid_test_without_variables_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"grid_test: no variable of this dataset has the dimensions"):
            dx.grid_test(xr.Dataset({"loss": ("step", [1.0])}))
        with pytest.raises(InputError, match="grid_test takes a recording's dataset, not a str"):
            dx.grid_test("run.zarr")  # type: ignore[arg-type]
