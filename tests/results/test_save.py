"""Saved results: one read of the data, complete with provenance, and unchanged when reopened."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr

import deadtok_xr as dx
from deadtok_xr.errors import DestinationExistsError, IncompleteStoreError, InputError, MissingFileError
from tests.conftest import GROUPS, once


@pytest.fixture(scope="module")
def saved(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    return dx.save_results(dx.analyze(recording), tmp_path_factory.mktemp("results") / "r.zarr")


def test_analyze_is_lazy(recording: Path, lazily: Any) -> None:
    with lazily():
        tree = dx.analyze(recording)
    assert list(tree.children) == GROUPS
    assert not tree.coords


def test_saved_results_are_the_computed_ones(saved: xr.DataTree, results: xr.DataTree) -> None:
    assert list(saved.children) == GROUPS
    for name in GROUPS:
        expected = results[name].to_dataset().drop_vars(["position", "thermal_velocity"], errors="ignore")
        found = saved[name].to_dataset().compute()
        assert list(found.data_vars) == list(expected.data_vars)
        for key, variable in expected[list(expected.data_vars)].variables.items():
            if variable.dtype.kind in "UO":
                assert list(found[key].values) == list(variable.values)
                continue
            assert found[key].dtype == variable.dtype, key
            assert found[key].dims == variable.dims, key
            np.testing.assert_array_equal(found[key].values, variable.values, err_msg=str(key))
            for attr, value in variable.attrs.items():
                assert found[key].attrs[attr] == value


def test_labels_work_after_reopening(saved: xr.DataTree, results: xr.DataTree) -> None:
    phases, expected = saved["phases"].to_dataset(), results["phases"].to_dataset()
    frozen = expected.phase.values.tolist().index("frozen")
    assert float(phases.fraction.sel(step=300, phase="frozen")) == expected.fraction.values[-1, frozen]
    assert int(phases.transition_step.sel(phase="frozen")) == expected.transition_step.values[frozen]
    assert "dead" in saved["motion"].to_dataset().coords


@pytest.mark.slow
def test_everything_together_decodes_each_step_once(recording: Path, tmp_path: Path, decoded: Counter[Any]) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    dx.save_results(dx.analyze(rec), tmp_path / "r.zarr")
    n, others = rec.sizes["step"], [name for name in ("grad", "exp_avg", "exp_avg_sq") if name in rec]
    assert decoded == {**once(n, "W", after=2, ends=True), **once(n, *others)}


def test_datasets_can_be_computed_together(recording: Path, results: xr.DataTree) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    together = dask.compute(dx.motion(rec), dx.phases(rec), dx.kinematics(rec), dx.topology(rec))
    for found, name in zip(together, ("motion", "phases", "kinematics", "topology"), strict=True):
        xr.testing.assert_equal(found, results[name].to_dataset())


def test_graph_has_one_task_per_block_and_two_per_result(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    n_rows = len(rec.W.chunks[0])
    tree = dx.analyze(rec)
    groups = [node.to_dataset().drop_vars(["position", "thermal_velocity"], errors="ignore") for node in tree.values()]
    n_variables = sum(len(group.data_vars) for group in groups)
    keys = {key for group in groups for key in group.__dask_graph__()}
    swept = [key for key in keys if isinstance(key, tuple) and str(key[0]).startswith("pass-")]
    assert len(swept) == n_rows
    assert not [key for key in keys if isinstance(key, tuple) and str(key[0]).startswith("read-W")]
    assert len(keys) < 6 * n_variables * n_rows


def test_provenance_is_stored_with_results(saved: xr.DataTree, recording: Path) -> None:
    attrs = saved.attrs
    assert attrs["source"] == str(recording)
    assert attrs["tokens"] == "dead"
    assert attrs["recording"]["hyperparameters"]["lr"] == 3e-3
    assert attrs["analysed_with"]["deadtok_xr"] == dx.__version__
    assert attrs["complete"]
    assert "deadtok_format" not in attrs  # results must not pass for a recording


def test_large_variables_only_on_request(recording: Path, tmp_path: Path) -> None:
    tree = dx.analyze(recording, analyses=["kinematics"])
    assert "position" not in dx.save_results(tree, tmp_path / "a.zarr")["kinematics"]
    full = dx.save_results(tree, tmp_path / "b.zarr", full=True)["kinematics"]
    np.testing.assert_array_equal(full["position"], dx.open_recording(recording, tokens="dead").W)


def test_impossible_analyses_are_left_out_with_the_reason(recording: Path, tmp_path: Path) -> None:
    one = dx.open_recording(recording, tokens="dead").isel(step=[7])
    tree = dx.save_results(dx.analyze(one), tmp_path / "r.zarr")
    assert list(tree.children) == ["kinematics", "topology", "census", "exponents", "spectrum", "connectivity"]
    assert "at least two steps" in tree.attrs["left_out"]["motion"]
    assert "left out. motion needs at least two steps" in " ".join(dx.summary(tree).split())
    with pytest.raises(InputError, match="at least two steps"):
        dx.analyze(one, analyses=["motion"])


@pytest.mark.slow
def test_any_tokens_can_be_analysed(recording: Path, tmp_path: Path) -> None:
    tree = dx.save_results(dx.analyze(recording, tokens="all"), tmp_path / "r.zarr")
    motion = tree["motion"].to_dataset()
    np.testing.assert_array_equal(motion.token, np.arange(256))
    expected = dx.motion(dx.open_recording(recording, tokens="live")).lattice_l2
    xr.testing.assert_equal(motion.lattice_l2.isel(token=~motion.dead.values).compute(), expected.compute())


def test_one_analysis_may_be_a_plain_name(recording: Path) -> None:
    assert list(dx.analyze(recording, analyses="motion").children) == ["motion"]  # type: ignore[arg-type]


def test_another_precision_is_warned_of_and_stored(recording: Path) -> None:
    with pytest.warns(
        UserWarning, match="precision 'bfloat16' in the recording; it is measured on the grid of float32"
    ):
        tree = dx.analyze(recording, analyses=["motion"], precision="float32")
    assert tree["motion"].attrs["precision"] == "float32"


class TestBadInput:
    def test_unknown_keywords_are_refused(self, recording: Path) -> None:
        rec = dx.open_recording(recording)
        with pytest.raises(InputError, match="analyze does not know only=, tokens= for an open dataset"):
            dx.analyze(rec, only=["motion"], tokens="live")
        with pytest.raises(TypeError, match="only"):
            dx.analyze(recording, only=["motion"])

    def test_other_objects_are_refused_by_type(self, recording: Path, tmp_path: Path) -> None:
        rec = dx.open_recording(recording)
        with pytest.raises(InputError, match="analyze takes a recording's dataset or path, not a DataArray"):
            dx.analyze(rec.W)
        for analysis in (dx.motion, dx.phases, dx.kinematics, dx.topology):
            for wrong in (rec.W, str(recording)):
                with pytest.raises(InputError, match=f"takes a recording's dataset, not a {type(wrong).__name__}"):
                    analysis(wrong)
        with pytest.raises(InputError, match="takes the tree that analyze makes, not a Dataset"):
            dx.save_results(dx.motion(rec), tmp_path / "r.zarr")  # type: ignore[arg-type]

    def test_unknown_analysis(self, recording: Path) -> None:
        with pytest.raises(InputError, match="unknown analysis 'entropy': choose from .*motion, phases"):
            dx.analyze(recording, analyses=["entropy"])

    def test_existing_destination_is_not_replaced(self, saved: xr.DataTree, recording: Path, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        with pytest.raises(DestinationExistsError):
            dx.save_results(dx.analyze(recording), tmp_path / "x")

    def test_recording_is_not_results(self, recording: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="holds no results"):
            dx.open_results(recording)
        with pytest.raises(MissingFileError):
            dx.open_results(tmp_path / "none")

    def test_results_are_not_a_recording(self, recording: Path, tmp_path: Path) -> None:
        dx.save_results(dx.analyze(recording, analyses=["topology"]), tmp_path / "r.zarr")
        with pytest.raises(InputError, match="not a recording"):
            dx.open_recording(tmp_path / "r.zarr")

    def test_interrupted_results_do_not_open(self, recording: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy.zarr"
        shutil.copytree(recording, copy)
        tree = dx.analyze(copy)
        (copy / "W" / "c" / "2" / "0" / "0").write_bytes(b"damaged")
        with pytest.raises(Exception, match=r".+"):
            dx.save_results(tree, tmp_path / "r.zarr")
        assert not zarr.open_group(str(tmp_path / "r.zarr"), mode="r").attrs["complete"]
        with pytest.raises(IncompleteStoreError, match="the same command, .* resumes; --overwrite starts again"):
            dx.open_results(tmp_path / "r.zarr")
