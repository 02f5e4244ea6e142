"""Several runs, in one store or in several stores as one dataset; each gives the same results as if analysed alone."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
import zarr

import deadtok_xr as dx
from deadtok_xr import demo, schema, store
from deadtok_xr.attributes import plain
from deadtok_xr.cli.describe import analysis_cost, describe
from deadtok_xr.errors import IncompleteStoreError, InputError
from deadtok_xr.recording.runs import one_run
from tests.manifests import accept
from tests.recording.test_opening import chunk_reads
from tests.store.test_store import write_store


def write_runs(path: Path, labels: Any = (5, 7), *, finish: bool = True) -> tuple[Path, np.ndarray]:
    """A store of two runs of 200 steps, 12 tokens and 4 dims, the odd tokens dead."""
    rng = np.random.default_rng(0)
    W = (1 + rng.integers(0, 40, (2, 200, 12, 4)) / 128).astype(ml_dtypes.bfloat16)
    writer = store.create(path, store.TokenTable(np.arange(12), np.arange(12) % 2 == 1), {}, runs=labels)
    writer.add_variable("W", ("run", *schema.MATRIX), W.shape[2:], W.dtype)
    writer.add_variable("loss", ("run", "step"), (), np.float32)
    writer.extend(np.arange(200))
    for run in range(2):
        for start in range(0, 200, writer.chunk_steps):
            writer.write("W", start, W[run, start : start + writer.chunk_steps], run=run)
        writer.write("loss", 0, np.full(200, run, "f4"), run=run)
    if finish:
        writer.finish()
    return path, W


# --- several runs in one store -----------------------------------------------------------------------


def test_all_runs_of_a_store(tmp_path: Path, reads: list[str], lazily: Any) -> None:
    path, W = write_runs(tmp_path / "runs.zarr")
    assert zarr.open_array(str(path / "W"), mode="r").chunks == (1, 128, 6, 4)
    with lazily():
        ds = dx.open_recording(path)
    assert ds.W.dims == ("run", "step", "token", "dim")
    assert not chunk_reads(reads, "W")
    np.testing.assert_array_equal(ds.run, [5, 7])
    np.testing.assert_array_equal(ds.W.values, W.astype("f4"))
    np.testing.assert_array_equal(dx.open_recording(path, tokens="dead").W.values, W[:, :, 1::2].astype("f4"))
    assert "2: 5, 7" in describe(path)
    assert "memory to analyse" in analysis_cost(path)
    assert xr.open_zarr(path, consolidated=False).W.dims == ds.W.dims


@pytest.mark.slow
@pytest.mark.parametrize("labels", [(5, 7), ("5", "7")])
def test_one_run_of_a_store(tmp_path: Path, reads: list[str], labels: Any) -> None:
    path, W = write_runs(tmp_path / "runs.zarr", labels)
    for label in (labels[1], "7", 7):
        ds = dx.open_recording(path, run=label)
        assert ds.W.dims == schema.MATRIX
        assert ds.run == labels[1]
    reads.clear()
    np.testing.assert_array_equal(ds.W.values, W[1].astype("f4"))
    assert all(key.startswith("W/c/1/") for key in chunk_reads(reads, "W"))
    alone = write_store(tmp_path / "alone.zarr", W[1], np.arange(12), np.arange(12) % 2 == 1)
    tree, expected = dx.analyze(ds).compute(), dx.analyze(dx.open_recording(alone)).compute()
    for name in expected.children:
        same_values(tree[name].to_dataset(), expected[name].to_dataset())
    saved = dx.save_results(dx.analyze(ds, analyses=["motion"]), tmp_path / "results.zarr")
    assert saved["motion"].run == labels[1]
    with pytest.raises(InputError, match="has no run '9'; its runs are 5, 7: choose one"):
        dx.open_recording(path, run="9")


def test_single_analyses_of_several_runs_are_refused(tmp_path: Path, recording: Path) -> None:
    path, _ = write_runs(tmp_path / "runs.zarr")
    ds = dx.open_recording(path)
    for analysis in (dx.motion, dx.phases, dx.kinematics, dx.topology):
        with pytest.raises(InputError, match=r"one run at a time.*\(5, 7\): select one with \.sel\(run=\.\.\.\)"):
            analysis(ds)
    with pytest.raises(InputError, match="holds one run alone"):
        dx.open_recording(recording, run=1)


def test_unfinished_stores_and_lost_chunks_of_runs(tmp_path: Path) -> None:
    path, W = write_runs(tmp_path / "u.zarr", finish=False)
    with pytest.raises(IncompleteStoreError, match="not written to its end"):
        dx.open_recording(path)
    np.testing.assert_array_equal(dx.open_recording(path, partial=True).W.values, W.astype("f4"))
    path, W = write_runs(tmp_path / "l.zarr")
    (path / "W/c/1/1/0/0").unlink()
    with pytest.raises(IncompleteStoreError, match=r"run positions 1\.\.1, step positions 128\.\.199"):
        dx.open_recording(path)
    np.testing.assert_array_equal(dx.open_recording(path, partial=True).W.values, W[:, :128].astype("f4"))


def test_labels_and_dimensions_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"runs=\[1, 1\]; expected one label for each run, all different"):
        store.create(tmp_path / "x.zarr", store.TokenTable(np.arange(2)), {}, runs=[1, 1])
    writer = store.create(tmp_path / "y.zarr", store.TokenTable(np.arange(2)), {})
    with pytest.raises(InputError, match="'W' has the dimension run; create the store with runs="):
        writer.add_variable("W", ("run", *schema.MATRIX), (2, 2), np.float32)


def test_info_command_for_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deadtok_xr import cli

    path, _ = write_runs(tmp_path / "runs.zarr")

    def run(*words: object) -> int:
        return cli.status(lambda: cli.cli([str(w) for w in words], prog_name="deadtok", standalone_mode=False))

    assert run("analyze", path, "-o", tmp_path / "r", "--run", "7", "--only", "motion", "-q") == 0
    capsys.readouterr()
    assert run("analyze", path, "-o", tmp_path / "s", "-q", "--only", "motion,compare_runs") == 0
    assert "7 differs from 5 from step 0 on, in all 6 tokens." in capsys.readouterr().out


# --- several stores ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two real runs that differ in their seed and learning rate; which tokens are dead differs too."""
    folder = tmp_path_factory.mktemp("sweep")
    run = demo.Run(steps=140, batch=2, length=8, dims=8, layers=1, lr=3e-3, variables=("W", "grad"))
    text = demo.corpus()
    return [
        demo.train(folder / "a.zarr", text, 256, run),
        demo.train(folder / "b.zarr", text[text != ord("z")], 256, dataclasses.replace(run, seed=7, lr=1e-3)),
    ]


def same_values(found: xr.Dataset, expected: xr.Dataset) -> None:
    assert set(found.data_vars) == set(expected.data_vars)
    found, expected = found.compute(), expected.compute()  # at once: each variable by itself is a pass of its own
    for name, v in expected.data_vars.items():
        np.testing.assert_array_equal(found[name].values, v.values, err_msg=str(name))
    if "step" in expected.dims:
        np.testing.assert_array_equal(found.step, expected.step)


@pytest.mark.slow
def test_concatenated_runs_equal_the_single_runs(
    sweep: list[Path], reads: list[str], lazily: Any, tmp_path: Path
) -> None:
    with lazily():
        ds = dx.concat_runs(sweep)
    assert not any(chunk_reads(reads, name) for name in ("W", "grad", "loss"))
    assert ds.W.dims == ("run", "step", "token", "dim")
    assert ds.run.values.tolist() == ["a", "b"]
    assert ds.dead.dims == ("run", "token")
    for i, path in enumerate(sweep):
        one, alone = ds.isel(run=i), dx.open_recording(path)
        for name in alone.data_vars:
            np.testing.assert_array_equal(one[name].values, alone[name].values)
            assert one[name].attrs == alone[name].attrs
        np.testing.assert_array_equal(one.dead, alone.dead)
    tree, expected = (
        dx.save_results(dx.analyze(x), tmp_path / n) for x, n in ((one, "one.zarr"), (alone, "alone.zarr"))
    )
    for name in expected.children:
        same_values(tree[name].to_dataset(), expected[name].to_dataset())
    dead = dx.concat_runs(sweep, tokens="dead", join="inner").isel(run=0)  # "z" is dead in the second alone
    same_values(dx.motion(dead), dx.motion(dx.open_recording(sweep[0], tokens="dead")))
    with pytest.raises(InputError, match=r"one run at a time.*'a', 'b'"):
        dx.motion(ds)


def test_selecting_one_run_reads_only_its_store(sweep: list[Path], reads: list[str]) -> None:
    ds = dx.concat_runs(sweep)
    reads.clear()
    ds.W.isel(run=0, step=3).compute()
    assert len(chunk_reads(reads, "W")) == zarr.open_array(str(sweep[0] / "W"), mode="r").cdata_shape[1]


def test_differing_attributes_become_coordinates(sweep: list[Path]) -> None:
    ds = dx.concat_runs(sweep, run=[42, 7])
    assert ds.attrs["optimizer"] == "AdamW"
    assert ds.attrs["model"]["steps"] == 140
    assert "seed" not in ds.attrs["model"]
    np.testing.assert_array_equal(ds.coords["seed"], [42, 7])
    np.testing.assert_array_equal(ds.coords["model.lr"], [3e-3, 1e-3])
    assert ds.coords["source"].values.tolist() == [str(p) for p in sweep]
    assert float(ds.sel(run=7).coords["model.lr"]) == 1e-3
    assert plain(one_run(ds, 1).attrs) == plain(dx.open_recording(sweep[1]).attrs)
    dx.motion(ds.sel(run=7).isel(step=slice(0, 5))).compute()


def test_runs_with_other_row_orders_on_disk(tmp_path: Path) -> None:
    W = np.random.default_rng(0).normal(size=(5, 9, 2)).astype(ml_dtypes.bfloat16)
    order = np.random.default_rng(1).permutation(9)
    one = write_store(tmp_path / "one.zarr", W, np.arange(9), None)
    two = write_store(tmp_path / "two.zarr", W[:, order], order, np.arange(9) % 3 == 0)
    for raw in (False, True):
        ds = dx.concat_runs([one, two], raw=raw)
        np.testing.assert_array_equal(ds.W.values[0], ds.W.values[1])
        np.testing.assert_array_equal(ds.W.values[0].astype("f4"), W.astype("f4"))
    assert "dead" not in ds.coords


@pytest.fixture
def uneven(tmp_path: Path) -> list[Path]:
    """Two stores that have some steps, tokens and variables in common."""
    W = np.arange(6 * 5 * 2).reshape(6, 5, 2).astype(ml_dtypes.bfloat16)
    one = write_store(tmp_path / "one.zarr", W, np.arange(5), np.arange(5) == 0)
    writer = store.create(tmp_path / "two.zarr", store.TokenTable(np.arange(2, 7), np.arange(5) == 0), {})
    writer.add_variable("W", schema.MATRIX, (5, 2), W.dtype)
    writer.add_variable("loss", ("step",), (), np.float32)
    writer.extend(np.arange(2, 8))
    writer.write("W", 0, W)
    writer.write("loss", 0, np.ones(6, "f4"))
    writer.finish()
    return [one, tmp_path / "two.zarr"]


def test_exact_join_error_names_the_difference(uneven: list[Path], tmp_path: Path) -> None:
    match = r"two\.zarr has other steps than .*one\.zarr: it has 2 \(6, 7\) more and lacks 2 \(0, 1\); say join='inner'"
    with pytest.raises(InputError, match=match):
        dx.concat_runs(uneven)
    W = np.zeros((6, 4, 2), ml_dtypes.bfloat16)
    fewer = write_store(tmp_path / "fewer.zarr", W, np.arange(4), None)
    with pytest.raises(InputError, match=r"fewer\.zarr has other tokens than .*: it lacks 1 \(4\)"):
        dx.concat_runs([uneven[0], fewer])


@pytest.mark.parametrize("raw", [False, True])
def test_inner_and_outer_joins(uneven: list[Path], lazily: Any, raw: bool) -> None:
    with lazily():
        inner, outer = (dx.concat_runs(uneven, join=join, raw=raw) for join in ("inner", "outer"))  # type: ignore[arg-type]
    alone = [dx.open_recording(path, raw=raw) for path in uneven]
    assert inner.step.values.tolist() == [2, 3, 4, 5]
    assert inner.token.values.tolist() == [2, 3, 4]
    assert list(inner.data_vars) == ["W"]
    assert outer.step.values.tolist() == list(range(8))
    assert outer.token.values.tolist() == list(range(7))
    assert inner.W.dtype == outer.W.dtype == alone[0].W.dtype
    for i, ds in enumerate(alone):
        np.testing.assert_array_equal(inner.W[i].values, ds.W.sel(step=inner.step, token=inner.token).values)
        np.testing.assert_array_equal(outer.W[i].sel(step=ds.step, token=ds.token).values, ds.W.values)
    values = outer.W.values.astype("f4")
    assert np.isnan(values[0, 6:]).all()
    assert np.isnan(values[1, :, :2]).all()
    assert np.isnan(outer.loss[0].values).all()
    assert outer.dead.values.tolist() == [[True] + [False] * 6, [False, False, True, False, False, False, False]]
    assert outer.dead.dtype == bool


def test_runs_that_cannot_be_concatenated(sweep: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a list of stores"):
        dx.concat_runs(str(sweep[0]))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"join='left': choose one of exact, inner, outer"):
        dx.concat_runs(sweep, join="left")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 stores; expected one for each"):
        dx.concat_runs(sweep, run=[1])
    with pytest.raises(InputError, match=r"the label 'a'; expected all different; name them with run="):
        dx.concat_runs([sweep[0], sweep[0]])
    runs, _ = write_runs(tmp_path / "runs.zarr")
    with pytest.raises(InputError, match=r"runs\.zarr holds several runs itself"):
        dx.concat_runs([sweep[0], runs])
    other = Path(shutil.copytree(sweep[1], tmp_path / "other.zarr"))
    zarr.open_group(str(other), mode="r+")["W"].attrs["precision"] = "none"
    accept(other)
    with pytest.raises(InputError, match=r"other\.zarr: 'W' has the precision none, and in .*a\.zarr bfloat16"):
        dx.concat_runs([sweep[0], other])
    far = write_store(tmp_path / "far.zarr", np.zeros((2, 2, 2), "f4"), np.array([7, 9]), None)
    near = write_store(tmp_path / "near.zarr", np.zeros((2, 2, 2), "f4"), np.arange(2), None)
    with pytest.raises(InputError, match="no token in common"):
        dx.concat_runs([far, near], join="inner")
