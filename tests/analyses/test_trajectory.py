"""`dx.trajectory` against plain numpy, and what `analyze` does with checkpoints."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from safetensors.torch import save_file

import deadtok_xr as dx
from deadtok_xr import cli
from deadtok_xr.errors import InputError
from deadtok_xr.results.findings import left_out
from tests.strategies import dataset


def checkpoints() -> np.ndarray:
    """Five states of 60 tokens: most drift and turn, 10 never move, 12 share a place, one is once not finite."""
    rng = np.random.default_rng(3)
    W = rng.normal(size=(60, 12)) * np.geomspace(2, 0.2, 12)
    states = [W]
    for t in range(4):
        turn = np.linalg.qr(np.eye(12) + rng.normal(size=(12, 12)) * 0.3 / (t + 1))[0]
        states.append(states[-1] @ turn + 0.05)
    found = np.stack(states).astype(ml_dtypes.bfloat16)
    found[:, 20:32] = found[:, 20:21]
    found[:, :10] = found[0, :10]
    found[2, 40, 3] = np.nan
    return found


def expected(W: np.ndarray, k: int, n_axes: int) -> dict[str, list[float]]:
    full = W.astype(np.float64)
    states = []
    for x in full:
        valid = np.isfinite(x).all(axis=1)
        centre = x[valid].mean(axis=0)
        axes = np.linalg.svd(x[valid] - centre)[2]
        near = []
        for i in range(len(x)):
            distance = np.linalg.norm(x - x[i], axis=1)
            distance[~np.isfinite(distance) | (np.arange(len(x)) == i)] = np.inf
            near.append(set(np.argsort(distance.round(6), kind="stable")[:k]) if valid[i] else set())
        states.append((centre, axes[:n_axes], near, np.sqrt(((x[valid] - centre) ** 2).sum(axis=1).mean())))
    found: dict[str, list[float]] = {"spread": [s[3] for s in states]}

    def kept(a: list[set[int]], b: list[set[int]]) -> float:
        return float(np.mean([len(x & y) / k for x, y in zip(a, b, strict=True) if x and y]))

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        return float((np.linalg.svd(a @ b.T)[1] ** 2).mean())

    pairs = list(pairwise(states))
    found["centroid_shift"] = [np.nan, *(np.linalg.norm(b[0] - a[0]) for a, b in pairs)]
    found["centroid_shift_total"] = [np.linalg.norm(s[0] - states[0][0]) for s in states]
    found["neighbours_kept"] = [np.nan, *(kept(a[2], b[2]) for a, b in pairs)]
    found["neighbours_kept_total"] = [kept(s[2], states[-1][2]) for s in states]
    found["axes_kept"] = [np.nan, *(overlap(a[1], b[1]) for a, b in pairs)]
    found["axes_kept_total"] = [overlap(s[1], states[-1][1]) for s in states]

    def angle(a: Any, b: Any) -> float:
        return float(np.degrees(np.arccos(min(1, abs(a[1][0] @ b[1][0])))))

    found["axis_angle"] = [np.nan, *(angle(a, b) for a, b in pairs)]
    return found | {"axis_angle_total": [angle(states[0], s) for s in states]}


@pytest.mark.parametrize("chunk", [1, 5])
def test_measures_are_their_definitions(chunk: int) -> None:
    W = checkpoints()
    ds = dataset(W, (chunk, 25, 12)).assign_coords(step=[0, 512, 1024, 2048, 2560])
    found = dx.trajectory(ds, n_neighbours=5, n_axes=3).compute()
    for name, values in expected(W, 5, 3).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
    with np.errstate(invalid="ignore"):
        same = W[1:] == W[:-1]
    np.testing.assert_allclose(found.unchanged_fraction, same.mean(axis=(1, 2)))
    np.testing.assert_array_equal(found.unchanged_dims, same.all(axis=0).sum(axis=1))
    assert found.token[found.never_changed].values.tolist() == [3 * i for i in range(10)]
    assert int(found.n_never_changed) == 10
    assert found.step_span.values.tolist() == [512, 512, 1024, 512]
    assert found.n_invalid.values.tolist() == [0, 0, 1, 0, 0]
    panels = dx.plot.checkpoint_trajectory(found, axes=Figure().subplots(3))
    np.testing.assert_array_equal(panels[2].lines[0].get_ydata(), found.neighbours_kept)
    assert "60 tokens" in panels[0].get_title(loc="left")
    some = dx.trajectory(ds, steps=[0, 2560], n_neighbours=5, n_axes=3).compute()
    assert some.checkpoint.values.tolist() == [0, 2560]
    np.testing.assert_allclose(some.neighbours_kept[1], found.neighbours_kept_total[0])


@pytest.mark.filterwarnings("error")
def test_degenerate_clouds() -> None:
    for W in (np.zeros((2, 1, 4)), np.full((3, 5, 2), np.nan), np.ones((2, 5, 1))):
        found = dx.trajectory(dataset(W.astype(np.float32))).compute()
        assert np.isnan(found.axes_kept).all()
        assert found.attrs["n_neighbours"] == min(10, W.shape[1] - 1)
    with pytest.raises(InputError, match="trajectory needs at least two steps"):
        dx.trajectory(dataset(np.ones((1, 3, 2), np.float32)))
    with pytest.raises(InputError, match="n_axes=0, n_neighbours=10; expected at least 1"):
        dx.trajectory(dataset(np.ones((2, 3, 2), np.float32)), n_axes=0)


def test_a_folder_of_checkpoints_takes_two_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, x in zip((0, 512, 1024, 1536, 2048), np.nan_to_num(checkpoints().astype(np.float32)), strict=True):
        (tmp_path / f"run/checkpoint-{step}").mkdir(parents=True)
        weights = {"model.embed_tokens.weight": torch.from_numpy(x).bfloat16()}
        save_file(weights, tmp_path / f"run/checkpoint-{step}/model.safetensors")
    store, results = tmp_path / "run.zarr", tmp_path / "results.zarr"
    for args in (
        ["convert", tmp_path / "run", store],
        ["analyze", store, "-o", results, "--only", "trajectory,motion"],
    ):
        words = [*map(str, args), "--quiet"]
        assert cli.status(lambda words=words: cli.cli(words, prog_name="deadtok", standalone_mode=False)) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Between checkpoints, 512 steps apart" in text
    assert "10 of 60 tokens never changed" in text
    assert dx.open_results(results)["motion"].step_span.values.tolist() == [512] * 4
    tree = dx.analyze(store)  # without names: all that checkpoints allow
    assert {"trajectory", "motion", "freezing", "freeze_predictors", "census", "spectrum"} <= set(tree.children)
    (line,) = left_out(tree)
    assert line.startswith("phases, phases_magnitude, phases_cells, lifecycle, kinematics, ")
    assert "These need single updates, and the 5 recorded steps are 512 apart: allow_gaps=True" in line


def test_a_recording_of_every_step_is_no_trajectory() -> None:
    ds = dataset(checkpoints())
    assert "trajectory" not in dx.analyze(ds).children
    assert list(dx.analyze(ds, analyses=["trajectory"]).children) == ["trajectory"]
    with_hole = xr.concat([ds, ds.assign_coords(step=ds.step + 7)], "step")
    assert "steps 5..6 are missing" in str(dx.analyze(with_hole).attrs["left_out"])  # forgotten, and no checkpoints
