"""Analysis of a single step, against plain numpy; and its figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests import reference_lattice as reference
from tests.reference import assert_agree
from tests.strategies import dataset, hostile


def expected(W: np.ndarray, few: list[int]) -> dict[str, Any]:
    """Each token's distances to the nearest of a few, by brute force."""
    x = W.astype(np.float64)
    valid = np.isfinite(x).all(1)
    place = np.vectorize(lambda v: reference.ordinal(v, *reference.BFLOAT16) if np.isfinite(v) else 0)(x)
    height = np.vectorize(lambda v: reference.field(v, -126) if np.isfinite(v) else 0)(x)
    few = [r for r in few if valid[r]]
    out: dict[str, Any] = {"norm": np.where(valid, np.sqrt((x**2).sum(1)), np.nan)}
    for name, of, unknown in (("linf", x, np.nan), ("ordinal", place, -1), ("exponent", height, -1)):
        with np.errstate(invalid="ignore"):
            far = [np.abs(of - of[r]).max(1) for r in few]
        out[f"reference_{name}"] = np.where(valid, np.min(far, axis=0), unknown) if few else np.full(len(x), unknown)
    with np.errstate(invalid="ignore"):
        far = [np.sqrt(((x - x[r]) ** 2).sum(1)) for r in few]
    out["reference_distance"] = np.where(valid, np.min(far, axis=0), np.nan) if few else np.full(len(x), np.nan)
    return out


@pytest.mark.slow
@given(ds=hostile(), data=st.data())
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
def test_hostile_bits(ds: xr.Dataset, data: st.DataObject) -> None:
    few = data.draw(st.lists(st.integers(0, ds.sizes["token"] - 1), min_size=1, max_size=3))
    found = dx.checkpoint(ds, step=1, reference=ds.token.values[few].tolist()).compute()
    W = np.asarray(ds.W.values)[1]
    for name, value in expected(W, few).items():
        assert_agree(found[name], value, name)
    counts = reference.exponents(W[None])
    for name in ("exponent_count", "mantissa_count", "n_zero", "n_negative", "n_power_of_two", "n_invalid"):
        np.testing.assert_array_equal(found[name].sel(kind="all"), counts[name][0], err_msg=name)
    assert int(found.norm_count.sum()) == int(found.n_valid.sum())
    near = found.reference_ordinal.values
    np.testing.assert_array_equal(found.ordinal_neighbourhood, [((near >= 0) & (near <= k)).sum() for k in range(21)])


def test_dead_and_live(recording: Path, lazily: Any) -> None:
    rec = dx.open_recording(recording)
    with lazily():
        found = dx.checkpoint(rec, step=300)
    found = found.compute()
    W, dead = rec.W.sel(step=300).values.astype(np.float64), rec.dead.values
    for kind, mask in (("all", dead | True), ("dead", dead), ("live", ~dead)):
        of = found.sel(kind=kind)
        np.testing.assert_array_equal(of.exponent_count, reference.exponents(W[None, mask])["exponent_count"][0])
        assert_agree(of.centroid, W[mask].mean(0))
        norm = np.linalg.norm(W[mask], axis=1)
        edges = np.append(found.norm_low.values, found.norm_high.values[-1])
        np.testing.assert_array_equal(of.norm_count, np.histogram(norm, edges)[0])
        assert int(of.n_valid) == mask.sum()


class TestTheLargestBlackHole:
    def atoms(self, **chunks: int) -> xr.Dataset:
        rng = np.random.default_rng(0)
        W = rng.normal(size=(1, 40, 8)).astype(ml_dtypes.bfloat16)
        W[0, [3, 17, 31]], W[0, [5, 6]] = W[0, 3], W[0, 5]
        W[0, [8, 9, 10, 11]] = np.nan  # the same bits, and no place
        return dataset(W, (1, chunks.get("token", 40), 8))

    @pytest.mark.parametrize("token", [40, 16, 1])
    def test_largest_black_hole_is_the_reference(self, token: int) -> None:
        found = dx.checkpoint(self.atoms(token=token)).compute()
        assert found.reference_token.values.tolist() == [9]  # ids are three times positions
        np.testing.assert_array_equal(np.flatnonzero(found.reference_distance == 0), [3, 17, 31])
        assert int(found.exponent_neighbourhood[0]) >= 3
        assert (np.diff(found.exponent_neighbourhood) >= 0).all()

    def test_reference_may_be_absent(self) -> None:
        found = dx.checkpoint(self.atoms().isel(token=[0, 1, 2, 8, 9])).compute()
        assert found.reference_token.values.tolist() == [-1]
        assert np.isnan(found.reference_distance).all()
        assert (found.reference_ordinal == -1).all()
        assert (found.exponent_neighbourhood == 0).all()

    def test_neighbours_are_counted_in_representable_numbers(self) -> None:
        """W/ULP(W) jumps at a power of two, raw bits at a change of sign (8)."""
        W = np.array([[2.0], [2.0 - 2**-7], [2**-133], [-(2**-133)]]).astype(ml_dtypes.bfloat16)[None]
        found = dx.checkpoint(dataset(W), reference=[0]).reference_ordinal.values
        assert found[1] == 1
        assert dx.checkpoint(dataset(W), reference=[6]).reference_ordinal.values[3] == 2


def test_invalid_input_is_refused(recording: Path) -> None:
    rec = dx.open_recording(recording)
    with pytest.raises(
        InputError,
        match=r"checkpoint takes one step; this dataset has 301: say step= \(choose from its 301",
    ):
        dx.checkpoint(rec)
    with pytest.raises(InputError, match="step 999 is not in this dataset"):
        dx.checkpoint(rec, step=999)
    with pytest.raises(InputError, match="token 999 is not in this dataset"):
        dx.checkpoint(rec, step=0, reference=[999])
    with pytest.raises(InputError, match="reference= names no token"):
        dx.checkpoint(rec, step=0, reference=[])
    with pytest.raises(InputError, match="say 'largest', or a list of token ids"):
        dx.checkpoint(rec, step=0, reference="biggest")
    with pytest.raises(InputError, match="norm_bins=0"):
        dx.checkpoint(rec, step=0, norm_bins=0)


def test_checkpoint_of_invalid_tokens() -> None:
    found = dx.checkpoint(dataset(np.full((1, 3, 2), np.nan, "f4"))).compute()
    assert np.isnan(found.norm).all()
    assert found.n_invalid.values.tolist() == [3]
    assert np.isnan(found.centroid).all()
    assert int(found.norm_count.sum()) == 0


class TestPictures:
    def test_figure_of_checkpoint(self, recording: Path) -> None:
        found = dx.checkpoint(dx.open_recording(recording), step=300, reference=[1]).compute()
        axes = dx.plot.checkpoint(found, axes=Figure().subplots(3))
        counts = {patch.get_label(): patch.get_data().values for patch in axes[0].patches}
        assert np.nansum(counts["dead"]) == int(found.exponent_count.sel(kind="dead").sum())
        assert np.nansum(counts["live"]) == int(found.exponent_count.sel(kind="live").sum())
        np.testing.assert_array_equal(axes[2].lines[0].get_ydata(), found.exponent_neighbourhood)

    def test_figure_without_a_reference(self) -> None:
        axes = dx.plot.checkpoint(dx.checkpoint(dataset(np.eye(3, dtype="f4")[None])), axes=Figure().subplots(3))
        assert "no two tokens are equal" in axes[2].texts[0].get_text()

    def test_figure_of_lattice(self, results: xr.DataTree) -> None:
        ds = results["lattice"].to_dataset()
        top, bottom = dx.plot.lattice(ds, axes=Figure().subplots(2))
        line = next(line for line in top.lines if line.get_label() == "moved")
        np.testing.assert_array_equal(line.get_ydata(), ds.moved_fraction)
        hops = ds.hop_fraction.sel(token_ulp="mean")
        np.testing.assert_allclose(bottom.patches[0].get_data().values, hops.sel(hop="frozen"))
        np.testing.assert_allclose(bottom.patches[-1].get_data().values, 1.0)

    def test_figure_of_exponents(self, results: xr.DataTree) -> None:
        ds = results["exponents"].to_dataset()
        ax = dx.plot.exponents(ds, ax=Figure().subplots())
        (mesh,) = [c for c in ax.collections if c.get_array() is not None]
        assert int(mesh.get_array().sum()) == int(ds.exponent_count.sum())

    def test_figure_of_cloud(self, results: xr.DataTree) -> None:
        ds = results["cloud"].to_dataset()
        heat, _, persistence = dx.plot.cloud(ds, axes=Figure().subplots(3))
        line = next(line for line in heat.lines if line.get_label() == "within the cloud")
        np.testing.assert_array_equal(line.get_ydata(), ds.temperature)
        line = next(line for line in persistence.lines if line.get_label() == "median")
        np.testing.assert_array_equal(line.get_ydata(), ds.lag1_median)

    def test_figure_of_spectrum(self, results: xr.DataTree) -> None:
        ds = results["spectrum"].to_dataset()
        top, bottom = dx.plot.spectrum(ds, axes=Figure().subplots(2))
        (lines,) = [c for c in top.collections if len(c.get_paths()) == ds.sizes["mode"]]
        np.testing.assert_allclose(lines.get_paths()[0].vertices[:, 1], ds.eigenvalue[:, 0])
        np.testing.assert_array_equal(bottom.lines[0].get_ydata(), ds.participation_ratio)

    def test_summary_mentions_every_analysis(self, results: xr.DataTree) -> None:
        text = dx.summary(results, details=True)
        for words in ("Lattice: elements moved", "exactly zero", "Cloud: temperature", "Shape: participation ratio"):
            assert words in text
        assert "n_invalid" not in text  # nothing is invalid here
