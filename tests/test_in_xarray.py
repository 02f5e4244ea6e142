"""Recordings and results in xarray: grouped, combined, saved and computed with, as people do in a notebook."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr

import deadtok_xr as dx
from deadtok_xr.attributes import JsonText, plain, portable, read
from deadtok_xr.dask_arrays import EXPRESSIONS
from deadtok_xr.errors import InputError, OffGridError
from tests.conftest import N_DEAD

Lazily = Callable[[], AbstractContextManager[None]]

FACTS = {
    "name": "run", "seed": 3, "lr": 0.5, "tied": True, "none": None, "betas": [0.9, 0.999], "names": ["W", "grad"],
    "nested": {"a": [1, {"b": None}]}, "empty": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "results.zarr"
    names = ["motion", "phases", "lifecycle", "freezing", "kinematics", "connectivity"]
    dx.save_results(dx.analyze(recording, analyses=names), path)
    return path


DASK_STORES = pytest.mark.skipif(EXPRESSIONS, reason="Dask cannot store arrays of expressions yet")


class TestAttributes:
    def test_what_netcdf_cannot_hold_becomes_text_and_reads_as_before(self) -> None:
        attrs = portable(FACTS)
        assert all(isinstance(attrs[key], JsonText) for key in ("tied", "none", "names", "nested", "empty"))
        assert attrs == FACTS
        assert attrs["nested"]["a"][1] == {"b": None}
        assert dict(attrs["nested"]) == FACTS["nested"]
        assert list(attrs["names"]) == ["W", "grad"]
        assert attrs["tied"]
        assert not attrs["empty"]
        assert "a" in attrs["nested"]
        assert plain(attrs) == FACTS
        assert portable(attrs) == attrs
        assert read({"nested": str(attrs["nested"])}, "nested") == FACTS["nested"]

    @DASK_STORES
    def test_recordings_survive_netcdf_and_zarr(self, recording: Path, tmp_path: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead")
        assert rec.attrs["hyperparameters"]["lr"] == 3e-3
        rec.drop_vars(["exp_avg", "exp_avg_sq"]).to_netcdf(tmp_path / "rec.nc", engine="scipy")
        rec.to_zarr(tmp_path / "rec.zarr", consolidated=False)
        for back in (
            xr.open_dataset(tmp_path / "rec.nc", engine="scipy"),
            xr.open_zarr(tmp_path / "rec.zarr", consolidated=False),
        ):
            assert set(back.attrs) == set(rec.attrs)
            assert read(back.attrs, "hyperparameters") == rec.attrs["hyperparameters"]
            np.testing.assert_array_equal(back.W, rec.W)

    def test_recordings_survive_h5netcdf(self, recording: Path, tmp_path: Path) -> None:
        pytest.importorskip("h5netcdf")
        rec = pickle.loads(pickle.dumps(dx.open_recording(recording, tokens="dead")[["W", "loss"]].load()))
        rec.to_netcdf(tmp_path / "rec.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / "rec.nc", engine="h5netcdf") as back:
            assert set(back.attrs) == set(rec.attrs)
            assert read(back.attrs, "hyperparameters") == rec.attrs["hyperparameters"]
            np.testing.assert_array_equal(back.W, rec.W)

    @DASK_STORES
    def test_settings_are_read_from_a_saved_dataset(self, recording: Path, tmp_path: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 20))
        rec.to_zarr(tmp_path / "part.zarr", consolidated=False)
        back = xr.open_zarr(tmp_path / "part.zarr", consolidated=False)
        np.testing.assert_array_equal(dx.mechanism(back).cause, dx.mechanism(rec).cause)

    @DASK_STORES
    def test_results_survive_netcdf_and_zarr(self, saved: Path, recording: Path, tmp_path: Path) -> None:
        for tree in (dx.open_results(saved), dx.analyze(recording, analyses=["motion", "lifecycle"])):
            ds = tree["motion"].to_dataset()
            ds.to_netcdf(tmp_path / "motion.nc", engine="scipy")
            with xr.open_dataset(tmp_path / "motion.nc", engine="scipy") as back:
                xr.testing.assert_equal(back, ds)
            smooth = tree["motion"].to_dataset()[["displacement"]].load().rolling(step=20).mean()
            smooth.to_zarr(tmp_path / "smooth.zarr", mode="w", consolidated=False)
            assert tree.attrs["recording"]["hyperparameters"]["lr"] == 3e-3
            assert tree.attrs["left_out"] == {}

    @DASK_STORES
    def test_text_of_tokens(self, recording: Path, tmp_path: Path) -> None:
        raw = dx.open_recording(recording, raw=True).isel(step=slice(0, 3))
        np.savez(tmp_path / "r.npz", W=raw.W.values.view("u2"), dead_mask=raw.dead.values)
        path = dx.convert(tmp_path / "r.npz", tmp_path / "r.zarr")
        dx.label(path, token_text=[f"<{i}>" for i in range(256)])
        rec = dx.open_recording(path)
        assert rec.token_text.dtype == object
        assert rec.token_text.astype(str).dtype.kind == "U"
        assert rec.token_text.str.startswith("<1").sum() == 111
        rec.to_netcdf(tmp_path / "r.nc", engine="scipy")
        assert dx.open_recording(path, tokens=["<7>", "<3>"]).token.values.tolist() == [3, 7]


class TestOpenResults:
    def test_small_things_are_in_memory(self, saved: Path, lazily: Lazily) -> None:
        tree = dx.open_results(saved)
        motion, life = tree["motion"].to_dataset(), tree["lifecycle"].to_dataset()
        with lazily():  # no Dask
            assert motion.displacement.groupby("dead").mean().sizes["dead"] == 1
            assert motion.displacement.groupby(life.last_motion).mean().sizes["last_motion"] > 1
            assert motion.isel(token=motion.dead).sizes["token"] == N_DEAD
            smooth = motion.displacement.rolling(step=50).mean()
        np.testing.assert_allclose(smooth[49], motion.displacement[:50].mean("step"), rtol=1e-5)

    def test_large_variables_are_dask_arrays(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("deadtok_xr.results.opening.LOADED_AS_A_WHOLE", 100_000)
        motion = dx.open_results(saved)["motion"]
        assert isinstance(motion.displacement.data, da.Array)
        assert motion.displacement.chunks[0][0] == 128
        assert motion.n_invalid.chunks is None
        assert motion.dead.chunks is None
        loaded = dx.open_results(saved, load=True)["motion"]
        assert loaded.displacement.chunks is None
        np.testing.assert_array_equal(loaded.displacement, motion.displacement)

    def test_recordings_and_results_name_each_other(self, saved: Path, recording: Path) -> None:
        with pytest.raises(InputError, match="open_results"):
            dx.open_recording(saved)
        with pytest.raises(InputError, match="open_recording"):
            dx.open_results(recording)


class TestCombine:
    def test_names_that_differ_stay_and_others_get_their_group(self, saved: Path) -> None:
        tree = dx.open_results(saved)
        ds = dx.combine(tree, ["motion", "lifecycle", "freezing", "kinematics"])
        assert ds.step.values.tolist() == list(range(1, 301))  # states have a step 0, updates do not
        assert {"displacement", "thaw_count", "lifecycle_n_frozen", "freezing_n_frozen", "dead"} <= set(ds.variables)
        assert "n_frozen" not in ds
        assert ds.moved_dims.dtype == np.int64
        assert ds.attrs["freezing_definition"] == "value"
        assert ds.attrs["variable"] == "W"
        for name in ("n_frozen", "last_motion"):
            np.testing.assert_array_equal(ds[f"freezing_{name}"], tree["freezing"][name])
            np.testing.assert_array_equal(ds[f"lifecycle_{name}"], tree["lifecycle"][name])

    def test_all_steps(self, saved: Path) -> None:
        ds = dx.combine(dx.open_results(saved), ["motion", "kinematics"], join="outer")
        assert ds.step[0] == 0
        assert np.isnan(ds.displacement[0]).all()

    def test_dimensions_with_other_labels(self, recording: Path, lazily: Lazily) -> None:
        tree = dx.analyze(recording, analyses=["phases", "phases_magnitude"])
        with lazily():
            ds = dx.combine(tree, ["phases", "phases_magnitude"])
        assert ds.phases_fraction.dims == ("step", "phases_phase")
        assert ds.phases_magnitude_phase.values[0] == "fimbulwinter"

    def test_bad_names(self, saved: Path) -> None:
        tree = dx.open_results(saved)
        with pytest.raises(InputError, match="no group 'motions': choose from motion"):
            dx.combine(tree, ["motions"])
        with pytest.raises(InputError, match="join='left'"):
            dx.combine(tree, ["motion"], join="left")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="no group is named"):
            dx.combine(tree, [])


class TestTokens:
    def test_ids(self, recording: Path) -> None:
        rec, everything = dx.open_recording(recording, tokens=[131, 1, 2]), dx.open_recording(recording)
        assert rec.token.values.tolist() == [1, 2, 131]
        assert rec.attrs["tokens"] == "selected"
        np.testing.assert_array_equal(rec.W, everything.W.sel(token=[1, 2, 131]))
        expected = dx.motion(everything).lattice_l1.sel(token=[1, 2, 131])
        np.testing.assert_array_equal(dx.motion(rec).lattice_l1, expected)
        ds = xr.open_dataset(recording, engine="deadtok", tokens=np.array([5, 4]))
        assert ds.token.values.tolist() == [4, 5]

    @pytest.mark.parametrize(
        ("tokens", "message"),
        [
            ([1, 999], "no token 999; it has 256 tokens, 0 to 255"),
            ("dea", "or of texts: \\['dea'\\]"),
            ([], "one or more"),
            ([True, False], "flatnonzero"),
            ([1.5], "float64"),
            (["a"], "deadtok label --token-text"),
        ],
    )
    def test_what_cannot_be_opened(self, recording: Path, tokens: object, message: str) -> None:
        with pytest.raises(InputError, match=message):
            dx.open_recording(recording, tokens=tokens)  # type: ignore[arg-type]


class TestDerived:
    def test_attributes_do_not_survive_arithmetic(self, recording: Path, lazily: Lazily) -> None:
        rec = dx.open_recording(recording, tokens="dead")
        W = rec.W
        with lazily():
            derived = {
                "distance": np.sqrt(((W - W.isel(step=0)) ** 2).sum("dim")),
                "scaled": 2 * W,
                "mean": W.mean("token"),
                "of the dataset": rec.mean("token").W,
                "difference": W.diff("step"),
                "comparison": W > 0,
                "coarsened": W.coarsen(step=7, boundary="trim").mean(),
            }
        for name, x in derived.items():
            assert x.chunks is not None, name
            assert "precision" not in x.attrs, name
            assert "long_name" not in x.attrs, name

    def test_attributes_survive_selections_and_copies(self, recording: Path) -> None:
        W = dx.open_recording(recording, tokens="dead").W
        for x in (W[3], W.sel(step=slice(1, 9)), W.transpose("dim", ...), W.copy(), W[:4].compute(), W.chunk(step=9)):
            assert x.attrs["precision"] == "bfloat16"
            assert x.attrs["long_name"] == "embedding weights after t updates"

    def test_coarsened_steps_are_refused_as_derived(self, recording: Path) -> None:
        coarse = dx.open_recording(recording).coarsen(step=100, boundary="trim").mean()
        with pytest.raises(InputError, match=r"49.5, 149.5, .*derived"):
            dx.motion(coarse)
        with pytest.raises(InputError, match="derived"):
            dx.kinematics(dx.open_recording(recording).coarsen(step=7, boundary="trim").mean())


class TestNumberFormat:
    def test_labelled_arrays_are_measured_on_their_grid(self, recording: Path, lazily: Lazily) -> None:
        W = dx.open_recording(recording, tokens="dead").W
        b = dx.bfloat16
        with lazily():
            found = b.ordinal_distance(W[-1], W[0])
            ulps = b.ulp(W)
        assert found.chunks is not None
        assert found.dims == ("token", "dim")
        np.testing.assert_array_equal(found, b.ordinal_distance(W[-1].values, W[0].values, "bfloat16"))
        np.testing.assert_array_equal(ulps, b.ulp(W.values, "bfloat16"))
        np.testing.assert_array_equal(
            b.lattice_step(W[1:3], W[0]), b.lattice_step(W[1:3].values, W[0].values, "bfloat16")
        )
        raw = dx.open_recording(recording, tokens="dead", raw=True).W
        np.testing.assert_array_equal(b.exponent(raw), b.exponent(W.compute()))
        assert b.to_bits(W).dtype == np.uint16
        assert bool(b.on_grid(W).all())

    def test_dask_arrays(self, recording: Path, lazily: Lazily) -> None:
        W = dx.open_recording(recording, tokens="dead").W
        with lazily():
            found = dx.bfloat16.ulp(W.data, "bfloat16")
        assert isinstance(found, da.Array)
        np.testing.assert_array_equal(found.compute(), dx.bfloat16.ulp(W.values, "bfloat16"))

    def test_an_unknown_grid_is_not_guessed(self, recording: Path) -> None:
        W = dx.open_recording(recording, tokens="dead").W[:3]
        with pytest.raises(InputError, match="as computed values"):
            dx.bfloat16.ulp(W.mean("token"))
        with pytest.raises(InputError, match="'none'"):
            dx.bfloat16.ulp(W.assign_attrs(precision="none"))
        with pytest.raises(InputError, match="'bfloat16', 'float16'"):
            dx.bfloat16.ordinal_distance(W[1], W[0].assign_attrs(precision="float16"))
        with pytest.raises(OffGridError):
            dx.bfloat16.ulp(1.01 * W, grid="bfloat16").compute()
        assert dx.bfloat16.ulp(W.mean("token"), "float32").dtype == np.float64


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in float32, as of a run under autocast, that come to rest."""
    rng = np.random.default_rng(0)
    moves = rng.random((140, 20, 1)) < np.linspace(0.9, 0, 140)[:, None, None]
    W = rng.normal(size=(20, 6)) + np.cumsum(moves * rng.normal(size=(140, 20, 6)) * 1e-3, axis=0)
    folder = tmp_path_factory.mktemp("masters")
    np.savez(folder / "f.npz", W=W.astype(np.float32))
    with pytest.warns(UserWarning, match="its lattice is unknown"):
        return Path(dx.convert(folder / "f.npz", folder / "f.zarr"))


def test_elements_says_its_size_before(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    monkeypatch.setattr("deadtok_xr.analyses.elements._MUCH", 2**20)
    each = 301 * N_DEAD * 16 * 8 / 2**20
    with pytest.warns(
        UserWarning, match=f"take {6 * each:.2f} MiB if all are computed, {each:.2f} MiB for each variable"
    ):
        found = dx.elements(rec)
    assert float(abs(found.ordinal_distance).max()) > 0
    dx.elements(rec.isel(step=slice(0, 3)))


class TestUnknownPrecision:
    def test_what_needs_no_lattice_is_given(self, masters: Path) -> None:
        rec = dx.open_recording(masters)
        for analysis in (dx.motion, dx.lifecycle):
            some, everything = analysis(rec), analysis(rec, precision="float32").compute()
            assert 3 <= len(some.data_vars) < len(everything.data_vars)
            assert some.attrs["precision"] == "none"
            for name, x in some.data_vars.items():
                np.testing.assert_array_equal(x, everything[name])
        assert {"displacement", "moved_dims", "n_invalid"} == set(dx.motion(rec).data_vars)

    @pytest.mark.slow
    def test_the_rest_is_said_once(self, masters: Path, tmp_path: Path) -> None:
        tree = dx.save_results(dx.analyze(masters), tmp_path / "r.zarr")
        assert {"motion", "lifecycle", "freezing"} <= set(tree.children)
        assert dx.summary(tree).count("has unknown precision") == 1
        names = [path.name for path in dx.plot.save_figures(tree, tmp_path / "figures")]
        assert "motion.png" in names
        dx.report(tree, tmp_path / "r.html")


class TestGrowing:
    def test_steps_are_written_by_time(self, tmp_path: Path) -> None:
        path = tmp_path / "r.zarr"
        seen = []
        for name, seconds in (("r", 1e-9), ("whole", None)):
            weight, optimizer = _model()
            with dx.Recorder(weight, optimizer, tmp_path / f"{name}.zarr", flush_every=seconds) as recorder:
                for i in range(140):
                    _update(weight, optimizer, i)
                    recorder.log(loss=float(i))
                    if seconds and i == 60:
                        recorder._entered_session()._writer._jobs.put(lambda: seen.append(_n_steps(path)))
        assert 0 < seen[0] <= 61
        one, other = dx.open_recording(path), dx.open_recording(tmp_path / "whole.zarr")
        for variable in ("W", "loss", "lr"):
            np.testing.assert_array_equal(one[variable], other[variable])
        np.testing.assert_array_equal(dx.motion(one).lattice_l1, dx.motion(other).lattice_l1)

    def test_says_when_to_look_again(self, tmp_path: Path) -> None:
        weight, optimizer = _model()
        with dx.Recorder(weight, optimizer, tmp_path / "r.zarr"):
            _update(weight, optimizer, 0)
            with pytest.raises(InputError, match="writes 128 steps at a time: look again when 128.*flush_every=60"):
                dx.open_recording(tmp_path / "r.zarr", partial=True)

    @pytest.mark.parametrize("seconds", [0, -1, "often", True])
    def test_bad_interval(self, tmp_path: Path, seconds: object) -> None:
        weight, optimizer = _model()
        with pytest.raises(InputError, match="flush_every="):
            dx.Recorder(weight, optimizer, tmp_path / "r.zarr", flush_every=seconds)  # type: ignore[arg-type]

    def test_starting_again_after_a_crash_names_the_unfinished_recording(self, tmp_path: Path) -> None:
        weight, optimizer = _model()
        with suppress(RuntimeError), dx.Recorder(weight, optimizer, tmp_path / "r.zarr"):
            for i in range(30):
                _update(weight, optimizer, i)
            raise RuntimeError
        weight, optimizer = _model()
        message = r"unfinished recording up to step 30, which Recorder\(..., resume=True\) continues"
        with pytest.raises(InputError, match=message), dx.Recorder(weight, optimizer, tmp_path / "r.zarr"):
            pass
        np.savez(tmp_path / "r.npz", W=np.zeros((3, 2, 2), np.float32))
        with pytest.raises(InputError, match=message):
            dx.convert(tmp_path / "r.npz", tmp_path / "r.zarr")


def _model() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 48).reshape(12, 4).bfloat16())
    return weight, torch.optim.AdamW([weight], lr=1e-2)


def _update(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, i: int) -> None:
    weight.grad = torch.randn(12, 4, generator=torch.Generator().manual_seed(i)).bfloat16()
    optimizer.step()


def _n_steps(path: Path) -> int:
    return dx.open_recording(path, partial=True).sizes["step"]
