"""The alternatives that the benchmarks compare do the same work, on real recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import deadtok_xr as dx
from benchmarks import (
    analyses,
    changed_mask,
    coherence,
    conversion,
    doctor,
    engines,
    mechanism,
    monitor,
    notebook,
    recorder,
    side_by_side,
    stored_changes,
)
from benchmarks.recording import as_hdf5
from deadtok_xr import demo
from tests.strategies import dataset

pytestmark = pytest.mark.slow

FLOAT32: dict[str, Any] = {"rtol": 2e-5, "atol": 1e-6}  # the notebook sums in float32


@pytest.fixture(scope="module")
def folder(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the benchmarks run on, small."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "recording.zarr").symlink_to(recording)
    as_hdf5(recording, folder / "recording.h5")
    return folder


def test_the_exported_file_has_the_bits_of_the_store(recording: Path, folder: Path) -> None:
    rec = dx.open_recording(recording, raw=True)
    with h5py.File(folder / "recording.h5") as file:
        np.testing.assert_array_equal(file["W"][:], rec.W.values.view(np.uint16))
        np.testing.assert_array_equal(file["dead_mask"][:], rec.dead)


def test_motion_and_phases_agree(recording: Path, folder: Path) -> None:
    theirs = notebook.motion_and_phases(folder / "recording.h5")
    rec = dx.open_recording(recording, tokens="dead")
    motion, phases = dx.motion(rec).compute(), dx.phases(rec, scheme="magnitude").compute()
    np.testing.assert_allclose(motion.displacement_ulp_mean, theirs["mean"], **FLOAT32)
    np.testing.assert_allclose(motion.displacement_ulp_std, theirs["std"], **FLOAT32)
    np.testing.assert_allclose(phases.fraction, theirs["fraction"], **FLOAT32)


def test_plain_xarray_agrees(recording: Path, folder: Path) -> None:
    ratio, mean, std, shares = side_by_side.xarray_and_dask(folder)()  # type: ignore[misc]
    rec = dx.open_recording(recording, tokens="dead")
    motion = dx.motion(rec).compute()
    np.testing.assert_allclose(ratio, motion.displacement_ulp, **FLOAT32)
    np.testing.assert_allclose(mean, motion.displacement_ulp_mean, **FLOAT32)
    np.testing.assert_allclose(std, motion.displacement_ulp_std, **FLOAT32)
    phases = [dx.phases(rec, scheme=scheme).fraction for scheme in ("magnitude", "lattice")]
    np.testing.assert_allclose(np.stack(shares, axis=1), np.concatenate(phases, axis=1), **FLOAT32)


SCALES = np.array([1.0, 1.0, 1.0, 2.0], np.float32)


def on_a_lattice(places: np.ndarray) -> xr.Dataset:
    """Tokens at whole numbers of ULP about (1.5, 1.5, 1.5, 3), another power of two at each step.

    Within 16 ULP of the centre all differences are bfloat16 numbers, and the exponents of the centroid are those of the
    centre: the threshold is exactly 5/4 of the smaller ULP, distances are 0, 1, 2, ... of it, and nothing is rounded.
    """
    assert np.abs(places).max() <= 16
    size = np.exp2(np.arange(len(places)) % 5 - 3, dtype=np.float32)[:, None, None]
    return dataset(size * SCALES * (np.float32(1.5) + places.astype(np.float32) * np.float32(2.0**-7)))


def check_topology(ds: xr.Dataset) -> xr.Dataset:
    ours, theirs = dx.topology(ds, precision="bfloat16").compute(), notebook.topology(ds.W.values)
    size = np.abs(ds.W.values[:, 0, 0])
    np.testing.assert_array_equal(ours.mean_ulp, 1.25 * np.exp2(np.floor(np.log2(size)) - 7))
    for name in ("largest_component", "n_singletons", "n_components"):
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    np.testing.assert_allclose(ours.density, theirs["density"], rtol=1e-12)
    return ours


def test_topology_agrees_on_a_chain() -> None:
    """Tokens in a row, the first t + 1 of them 1 ULP apart and the others 2: one component falls off at a time."""
    n = 12
    places = np.zeros((n, n, 4), int)
    for t in range(n):
        places[t, :, 0] = np.cumsum([0, *np.where(np.arange(n - 1) < t, 1, 2)]) - n
    ours = check_topology(on_a_lattice(places))
    np.testing.assert_array_equal(ours.n_components, n - np.arange(n))
    np.testing.assert_array_equal(ours.largest_component, 1 + np.arange(n))
    np.testing.assert_allclose(ours.density, 2 * np.arange(n) / (n * (n - 1)), rtol=1e-12)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 40), spread=st.integers(0, 4))
def test_topology_agrees_where_nothing_is_rounded(seed: int, n: int, spread: int) -> None:
    check_topology(on_a_lattice(np.random.default_rng(seed).integers(-spread, spread + 1, (6, n, 4))))


@pytest.mark.parametrize("way", side_by_side.WAYS)
def test_every_alternative_runs(folder: Path, way: str) -> None:
    assert side_by_side.WAYS[way](folder)() is not None


@pytest.mark.parametrize("way", engines.ways())
def test_each_engine_reads_the_same_values(folder: Path, way: str) -> None:
    expected = dx.open_recording(folder / "recording.zarr", tokens="dead", raw=True).W.values.view(np.uint16)
    reading = engines.Reading()
    reading.setup(way, folder)
    blocks = [np.array(block)[:, :16].view(np.uint16) for block in reading.read()]  # pieces use their room again
    np.testing.assert_array_equal(blocks[0], expected[: len(blocks[0]), :16])
    assert reading.time_read() >= expected.size
    if way not in ("direct", "batches", "batches_prefetched"):  # these give chunks or pieces, not rows of chunks
        np.testing.assert_array_equal(np.concatenate(blocks), expected[:, :16])


def test_engines_are_measured(folder: Path) -> None:
    found = engines.measure(folder, 1, cold=True)
    assert set(found) == set(engines.ways())
    assert min(cpu for _, cpu in found.values()) > 0


def test_conversion_is_compared_with_compressing_the_same_chunks(folder: Path, tmp_path: Path) -> None:
    medians = conversion.compare(folder / "recording.h5", tmp_path, 1)
    written = [medians[name]["written_mb"] for name in ("encode", "convert")]
    assert written[0] < written[1] < written[0] + 0.1  # the same chunks, and the metadata
    assert 0 < medians["convert"]["peak_mb"] < medians["convert"]["promised_mb"]
    assert medians["convert"]["of_encode"] > 0
    assert medians["convert"]["of_store"] > 0


def test_ways_of_recording_store_the_same_bits(tmp_path: Path) -> None:
    run = demo.Run(batch=2, length=8, dims=16, layers=1)
    found = recorder.compare(tmp_path, 64, run, 9)
    assert {len(steps) for steps in found.values()} == {9}
    for name, steps in found.items():
        assert all(0 <= s.within < s.wall and (s.within > 0 or name == "none") for s in steps), name
        assert recorder.row(name, found, 0.0).startswith(name)
    ours = dx.open_recording(tmp_path / "all four" / "r.zarr", raw=True)
    for name in ("HDF5", "HDF5 gzip-1"):
        with h5py.File(tmp_path / name / "r.h5") as file:
            for variable in recorder.ALL:
                np.testing.assert_array_equal(file[variable][:], ours[variable][1:].values.view(np.uint16))
    loop, core = recorder.apart(tmp_path / "apart", 64, run, ("W",), 5)
    assert loop > 0
    assert core > 0


SMALL = (12, 30, 8)


@pytest.mark.parametrize("kind", [mechanism.Mechanism, mechanism.OpenLoop, coherence.Coherence])
def test_throughputs_are_of_whole_analyses(kind: Any) -> None:
    for value in kind.params[0]:
        benchmark = kind()
        benchmark.size = SMALL
        benchmark.setup(value)
        assert benchmark.track_throughput(value) > 0
        if kind is mechanism.Mechanism:
            assert benchmark.result.n_compared.sum() == np.prod(SMALL)
            assert benchmark.result.n_missed.sum() == 0
            assert {1, 2} <= set(np.unique(benchmark.result.cause))  # tokens move, and updates round to zero


def test_both_methods_for_cosines_agree() -> None:
    ds = mechanism.updates(SMALL)
    ours, theirs = dx.coherence(ds).compute(), coherence.all_pairs(ds.W.astype(np.float32).values)
    np.testing.assert_allclose(ours.displacement_cosine_mean, theirs["mean"], atol=1e-12)
    np.testing.assert_allclose(ours.displacement_cosine_std, theirs["std"], atol=1e-9)


def test_measuring_the_cost_of_analyses_does_not_change_results(recording: Path, tmp_path: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    found, together = analyses.costs(rec, ["motion", "census", "lattice"], tmp_path / "r.zarr")
    assert {*found} == {"decoding", "which rows changed", "Transitions", "Coincidence", "LatticeCounts"}
    assert all(seconds > 0 for seconds in found.values())
    assert sum(found.values()) - found["decoding"] < together
    expected = dx.analyze(rec, analyses=["census"])["census"].to_dataset().compute()
    xr.testing.assert_equal(dx.open_results(tmp_path / "r.zarr")["census"].to_dataset().compute(), expected)


def test_the_rules_for_changed_values_are_measured_beside_a_copy() -> None:
    found = changed_mask.measure("AdamW 3e-6, decay 0.1", {"fused": True}, torch.float32, 50_000, 2, "cpu")["counts"]
    changed, extra, missed = found["changed_mask"]
    assert (changed, missed) == (found["copy"][0], 0)
    assert extra < changed / 1000
    assert all(found[rule][2] > found["copy"][0] / 2 for rule in ("|u| >= |w|/256", "half gap"))  # miss most


def test_the_checkpoints_of_the_doctor_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "HIDDEN", 32)
    for kind in ("BF16", "F32"):
        doctor.write(tmp_path / kind, 1e-5, kind, 0)
        found = dx.doctor(tmp_path / kind, lr=1e-4)
        norms = found.sel(parameter=[name for name in found.parameter.values if "norm" in name])
        assert (norms.at_one_fraction == 1).all()
        assert (norms.stuck_fraction == (kind == "BF16")).all()


def test_the_ways_of_the_monitor_benchmark(tmp_path: Path) -> None:
    loops = {way: monitor.Loop(64, demo.Run(batch=2, length=8, dims=16), torch.bfloat16, "cpu") for way in monitor.WAYS}
    for way, loop in loops.items():
        with monitor.attached(loop, way, tmp_path):
            for _ in range(2):
                before = loop.within
                assert loop.step() > loop.within - before > 0  # what is added is a part of its step
    ends = [[p.detach().float().numpy() for p in loop.model.parameters()] for loop in loops.values()]
    assert all((p == q).all() for end in ends for p, q in zip(end, ends[0], strict=True))  # none changes the training


def test_the_ways_to_store_changes_hold_the_same_values() -> None:
    """`measure` compares values and results of all ways, also where nothing or everything changes."""
    steps = stored_changes.fine_tuning(5, 3, 7, rate=1e-3)
    for words in (steps, steps[:1].repeat(4, axis=0), ~steps):
        found = stored_changes.measure(words & np.uint16(0xBFFF))  # no infinities or NaN
        assert {*found} == {*stored_changes.WAYS}
