"""Opened datasets: lazy, labelled, ascending, and as an xarray user expects them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import ml_dtypes
import numpy as np
import pytest
import xarray as xr
import zarr

import deadtok_xr as dx
from deadtok_xr.dask_arrays import EXPRESSIONS
from deadtok_xr.errors import InputError, OffGridError


def chunk_reads(keys: list[str], name: str) -> list[str]:
    return [k for k in keys if k.startswith(f"{name}/c/")]


def test_opening_reads_coordinates_and_no_data(recording: Path, reads: list[str], lazily: Any) -> None:
    with lazily():
        ds = dx.open_recording(recording, tokens="dead")
    assert chunk_reads(reads, "step")
    for name in ds.data_vars:
        assert not chunk_reads(reads, str(name)), name


def test_selection_reads_only_its_chunks(recording: Path, reads: list[str]) -> None:
    ds = dx.open_recording(recording, tokens="dead")
    ds.W.sel(step=5).isel(token=0).compute()
    assert chunk_reads(reads, "W") == ["W/c/0/0/0"]


@pytest.mark.parametrize("tokens", ["all", "dead", "live"])
def test_tokens_are_ascending_with_the_right_values(recording: Path, tokens: str) -> None:
    ds = dx.open_recording(recording, tokens=tokens)  # type: ignore[arg-type]
    assert (np.diff(ds.token) > 0).all()
    group = zarr.open_group(str(recording), mode="r")
    ids, dead = group["token"][:], group["dead"][:]
    keep = {"all": np.ones_like(dead), "dead": dead, "live": ~dead}[tokens]
    order = np.argsort(ids[keep])
    np.testing.assert_array_equal(ds.token, ids[keep][order])
    np.testing.assert_array_equal(ds.W.values, group["W"][:][:, keep][:, order].astype("f4"))
    assert ds.attrs["tokens"] == tokens


def test_dead_and_live_tokens_are_those_of_the_corpus(recording: Path) -> None:
    from deadtok_xr import demo

    live = np.unique(demo.corpus())
    np.testing.assert_array_equal(dx.open_recording(recording, tokens="live").token, live)


def test_decoded_and_raw_hold_the_same_bits(recording: Path) -> None:
    ds, raw = dx.open_recording(recording), dx.open_recording(recording, raw=True)
    assert ds.W.dtype == np.float32
    assert raw.W.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(ds.W.values.view(np.uint32) >> 16, raw.W.values.view(np.uint16))


def test_first_step_is_the_initial_state_and_index_convention_holds(recording: Path) -> None:
    ds = dx.open_recording(recording).isel(step=slice(0, 40)).compute()
    assert ds.step[0] == 0
    assert np.isnan(ds.grad[0]).all()
    assert (ds.exp_avg[0] == 0).all()
    # exp_avg[1] = (1 - beta1)·grad[1], in bfloat16
    expected = (ds.grad[1] * np.float32(0.1)).values
    np.testing.assert_allclose(ds.exp_avg[1].values, expected, rtol=2**-7, atol=1e-30)
    assert np.isnan(ds.loss[0])
    assert ds.loss[1] == pytest.approx(np.log(256), rel=0.1)
    assert ds.lr[1] == 3e-3
    assert ds.lr[11] == pytest.approx(3e-3 * (1 - 10 / 300))


class TestXarrayBehaviour:
    def test_label_slices_include_both_ends(self, recording: Path) -> None:
        ds = dx.open_recording(recording)
        part = ds.sel(step=slice(10, 20), token=slice(100, 110))
        assert part.sizes["step"] == 11
        np.testing.assert_array_equal(part.token, np.arange(100, 111))
        np.testing.assert_array_equal(part.W.values, ds.W.values[10:21, 100:111])

    def test_sel_of_single_labels(self, recording: Path) -> None:
        ds = dx.open_recording(recording, tokens="dead")
        token = int(ds.token[7])
        np.testing.assert_array_equal(ds.W.sel(token=token, step=3).values, ds.W.values[3, 7])

    def test_where_and_mean_are_in_float32_or_better(self, recording: Path) -> None:
        ds = dx.open_recording(recording)
        dead_mean = ds.W.where(ds.dead).mean("token")
        expected = dx.open_recording(recording, tokens="dead").W.values.astype("f8").mean(1)
        np.testing.assert_allclose(dead_mean.values, expected, atol=1e-6)

    def test_boolean_selection_by_the_coordinate(self, recording: Path) -> None:
        ds = dx.open_recording(recording)
        xr.testing.assert_equal(ds.W.isel(token=ds.dead.values), dx.open_recording(recording, tokens="dead").W)

    def test_xarray_plots_a_selection(self, recording: Path) -> None:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        lines = dx.open_recording(recording, tokens="dead").W.isel(dim=0, token=[0, 1]).plot.line(x="step")
        assert len(lines) == 2
        plt.close("all")

    def test_arithmetic_stays_lazy(self, recording: Path, lazily: Any) -> None:
        with lazily():
            ds = dx.open_recording(recording, tokens="dead")
            derived = (ds.W.diff("step") ** 2).sum("dim").mean("token")
        assert isinstance(derived.data, da.Array)

    def test_derived_arrays_are_saved_unrounded(self, recording: Path, tmp_path: Path) -> None:
        mean = dx.open_recording(recording).W.isel(step=slice(0, 3)).mean("token")
        if EXPRESSIONS:  # dask.array.store, with which xarray saves, does not exist for them
            mean = mean.compute()
        mean.to_dataset(name="m").to_zarr(tmp_path / "m.zarr", consolidated=False)
        np.testing.assert_array_equal(xr.open_zarr(tmp_path / "m.zarr", consolidated=False).m.compute(), mean)

    def test_chunks_option(self, recording: Path) -> None:
        ds = dx.open_recording(recording, tokens="dead", chunks={"step": 50})
        assert ds.W.chunksizes["step"][0] == 50


def test_derived_arrays_are_refused_where_the_grid_is_needed(recording: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead")
    mean = (ds.W + ds.W.shift(step=1)) / 2
    smooth = ds.assign(W=mean.isel(step=slice(1, None)).assign_attrs(ds.W.attrs))
    with pytest.raises(OffGridError, match="W: .* rows of a block hold values that are not on the grid of bfloat16"):
        dx.motion(smooth).compute()
    with pytest.raises(InputError, match="dtype float64; expected: bfloat16, float16 or float32"):
        dx.motion(ds.assign(W=ds.W.astype("f8").assign_attrs(ds.W.attrs))).compute()


def test_unknown_dead_tokens(recording: Path, tmp_path: Path) -> None:
    from tests.store.test_store import write_store

    path = write_store(tmp_path / "x.zarr", np.zeros((2, 3, 1), ml_dtypes.bfloat16), np.arange(3), None)
    with pytest.raises(InputError, match="does not say which tokens are dead.*tokens='all'"):
        dx.open_recording(path, tokens="dead")
    none = write_store(tmp_path / "y.zarr", np.zeros((2, 3, 1), ml_dtypes.bfloat16), np.arange(3), np.zeros(3, bool))
    with pytest.raises(InputError, match="has no dead tokens"):
        dx.open_recording(none, tokens="dead")
    with pytest.raises(InputError, match="choose 'all', 'dead' or 'live'"):
        dx.open_recording(recording, tokens="undead")  # type: ignore[arg-type]
