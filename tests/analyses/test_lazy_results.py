"""Results of analyses are lazy, described and written as chunked; chunks and slices do not change their values."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import deadtok_xr as dx
from deadtok_xr.analyses.topology import VERDICT_ATTRS
from deadtok_xr.errors import InputError
from tests.strategies import dataset

Lazily = Callable[[], AbstractContextManager[None]]
PER_STEP: dict[str, Callable[..., xr.Dataset]] = {
    "motion": dx.motion, "phases": dx.phases, "kinematics": dx.kinematics, "topology": dx.topology,
}  # fmt: skip
"""Analyses whose values at a step depend on it and the previous one alone."""
WITH_LIFECYCLE = {
    **PER_STEP, "lifecycle": dx.lifecycle, "freezing": dx.freezing, "epochs": dx.epochs,
    "critical_boundary": dx.critical_boundary,
}  # fmt: skip
WITHOUT_PASS = {
    "h_persistence": dx.h_persistence, "centroid_origin": dx.centroid_origin, "freeze_predictors": dx.freeze_predictors,
}  # fmt: skip
ALL = {
    **WITH_LIFECYCLE, **WITHOUT_PASS, "velocity_autocorrelation": dx.velocity_autocorrelation,
    "neighbour_preservation": dx.neighbour_preservation, "clusters": dx.clusters,
    "lattice_gaps": lambda ds: dx.lattice_gaps(ds, step=3),
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_analyses_read_and_compute_nothing_at_first(
    recording: Path, name: str, lazily: Lazily, reads: list[str]
) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    reads.clear()
    with lazily():
        result = ALL[name](rec)
    assert not [key for key in reads if "/c/" in key and key.split("/")[0] in ("W", "h_mean")]
    for key, variable in result.data_vars.items():
        assert variable.chunks is not None, key
        assert variable.attrs["long_name"], key
        assert variable.attrs["units"], key


@pytest.mark.parametrize("name", WITH_LIFECYCLE)
@pytest.mark.parametrize("steps", [slice(0, 300), slice(100, 280), slice(127, 129), slice(1, 2)])
def test_chunks_are_writable_to_zarr(recording: Path, name: str, steps: slice) -> None:
    result = WITH_LIFECYCLE[name](dx.open_recording(recording, tokens="dead").sel(step=steps))
    for key, variable in result.data_vars.items():
        for sizes in variable.chunks:
            assert len(set(sizes[:-1])) <= 1, (key, sizes)
            assert not sizes or sizes[-1] <= sizes[0], (key, sizes)


@pytest.mark.parametrize("name", PER_STEP)
def test_slices_agree_with_the_whole(recording: Path, name: str) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    whole = PER_STEP[name](rec).sel(step=slice(121, 200)).compute()
    part = PER_STEP[name](rec.sel(step=slice(120, 200))).sel(step=slice(121, 200)).compute()
    drop = [v for v in ("transition_step", *VERDICT_ATTRS) if v in whole]
    xr.testing.assert_equal(whole.drop_vars(drop), part.drop_vars(drop))


@pytest.mark.parametrize("name", WITH_LIFECYCLE)
def test_raw_bits_and_loaded_data_give_the_same(recording: Path, name: str) -> None:
    """A CPU without wide vectors adds bfloat16 words and floats in another order: sums may differ in the last bit."""
    run = WITH_LIFECYCLE[name]
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 150))
    expected = run(rec).compute()
    raw = dx.open_recording(recording, tokens="dead", raw=True).isel(step=slice(0, 150))
    for found in (run(raw).compute(), run(rec.load()).compute()):
        xr.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", WITHOUT_PASS)
def test_gaps_of_a_recording_are_refused_and_allowed_on_request(recording: Path, name: str) -> None:
    rec = dx.open_recording(recording, tokens="dead").isel(step=[0, 1, 3, 4, 5])
    with pytest.raises(InputError, match=rf"{name}: step 2 is missing"):
        WITHOUT_PASS[name](rec)
    assert WITHOUT_PASS[name](rec, allow_gaps=True).compute().data_vars


@pytest.mark.parametrize("name", ["lifecycle", "freezing", "epochs"])
def test_gaps_and_single_steps(name: str) -> None:
    ds = dataset(np.ones((6, 2, 2), np.float32), precision="bfloat16").isel(step=[0, 1, 3, 5])
    with pytest.raises(InputError, match=rf"{name}: step 2 is missing, and 1 more gaps.*allow_gaps=True"):
        WITH_LIFECYCLE[name](ds)
    np.testing.assert_array_equal(WITH_LIFECYCLE[name](ds, allow_gaps=True).step_span[-3:], [1, 2, 2])
    with pytest.raises(InputError, match=f"{name} needs at least two steps"):
        WITH_LIFECYCLE[name](ds.isel(step=[1]))


def test_every_variable_is_described(results: xr.DataTree) -> None:
    for node in results.children.values():
        for name, variable in node.to_dataset().data_vars.items():
            assert variable.attrs["long_name"], name
            assert variable.attrs["units"], name


@pytest.mark.parametrize(
    ("group", "names", "dtype"),
    [
        ("motion", ("displacement", "displacement_ulp"), "float32"),
        ("motion", ("lattice_l1", "lattice_l2", "lattice_linf", "displacement_ulp_mean"), "float64"),
        ("motion", ("moved_dims", "n_invalid"), "int64"),
        ("phases", ("fraction",), "float64"),
        ("phases", ("transition_step",), "int64"),
        ("kinematics", ("centroid", "bulk_velocity", "bulk_speed", "thermal_rms", "radius", "radius_max"), "float64"),
        ("topology", ("mean_ulp", "density"), "float64"),
        ("topology", ("largest_component", "n_singletons", "n_components"), "int64"),
    ],
)
def test_dtypes_are_as_documented(results: xr.DataTree, group: str, names: tuple[str, ...], dtype: str) -> None:
    for name in names:
        assert results[group][name].dtype == dtype, name
