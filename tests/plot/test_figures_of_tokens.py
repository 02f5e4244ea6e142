"""Pictures of all tokens at once: percentiles, the heat map, the sky at one step, gradient and moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import deadtok_xr as dx
from deadtok_xr import plot
from deadtok_xr.errors import InputError
from tests.plot.test_figures import data, labelled, made


def axes(**options: object) -> object:
    return Figure(layout="constrained", dpi=40).add_subplot(**options)


def test_percentiles_are_those_of_the_valid_tokens(recording: Path) -> None:
    motion = dx.motion(dx.open_recording(recording, tokens="dead")).compute()
    motion.displacement_ulp[5, 3] = np.nan
    motion.displacement_ulp[7] = np.nan
    ax = plot.cooling(motion, ax=axes())
    values = motion.displacement_ulp.values.astype(np.float64)
    for label, percent in (("median", 50), ("95%", 95), ("maximum", 100)):
        expected = [
            np.percentile(row[~np.isnan(row)], percent) if not np.isnan(row).all() else np.nan for row in values
        ]
        drawn = data(labelled(ax, label))
        shown = np.asarray(expected) > 0
        np.testing.assert_allclose(drawn[shown], np.asarray(expected)[shown], rtol=1e-12)
        assert np.isnan(drawn[7])
    assert ax.get_xscale() == "log"
    ax.figure.canvas.draw()


@pytest.mark.parametrize(("steps", "tokens"), [(2, 2), (3, 2), (2500, 1203)])
def test_heat_map_cells_are_maxima_over_steps(steps: int, tokens: int) -> None:
    values = np.random.default_rng(0).lognormal(size=(steps, tokens)).astype(np.float32)
    values[:, 0] = 0
    values[-1, -1] = np.nan
    ax = plot.heat_map(made(values), measure="displacement_ulp", ax=axes())
    (mesh,) = (m for m in ax.collections if m.get_gid() == "moving")
    shown = mesh.get_array()
    width, stride = -(-steps // 1000), -(-tokens // 500)
    assert shown.shape == (-(-tokens // stride), -(-steps // width))
    assert np.ma.getmaskarray(shown)[0].all()  # the one that never moved
    if tokens > 1 and steps > 1:
        assert shown[1, 0] == values[:width, stride].max()
    assert ("shown" in ax.get_title(loc="left")) == (stride > 1)
    ax.figure.canvas.draw()


@pytest.mark.parametrize("values", [[[0.0, 0.0]], [[np.nan, np.nan]]])
def test_figures_without_motion_or_valid_values(values: list[list[float]]) -> None:
    for draw in (plot.cooling, plot.heat_map):
        draw(made(values), measure="displacement_ulp", ax=axes()).figure.canvas.draw()


@pytest.mark.parametrize("centre", ["centroid", "origin"])
def test_the_sky_shows_the_directions(recording: Path, centre: str) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    ax = plot.sky_map(rec, step=12, centre=centre, ax=axes(projection="mollweide"))
    W = rec.W.sel(step=12).values.astype(np.float64)
    _, vectors = np.linalg.eigh(np.cov(W.T))
    three = vectors[:, ::-1][:, :3]
    three = three * np.sign([column[np.abs(column).argmax()] for column in three.T])
    seen = (W - W.mean(0) if centre == "centroid" else W) @ three
    found = np.asarray(ax.collections[0].get_offsets())
    unit = seen / np.linalg.norm(seen, axis=1)[:, None]
    again = np.stack(
        [np.cos(found[:, 1]) * np.cos(found[:, 0]), np.cos(found[:, 1]) * np.sin(found[:, 0]), np.sin(found[:, 1])], 1
    )
    np.testing.assert_allclose(again, unit, atol=1e-6)
    assert "step 12" in ax.get_title()
    ax.figure.canvas.draw()


def test_tokens_without_a_direction_are_counted(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead").isel(step=[0]).load()
    rec.W[0, 0, 0] = np.nan
    assert "1 without a direction" in plot.sky_map(rec, ax=axes(projection="mollweide")).get_title()
    assert plot.sky_map(rec.isel(token=[1, 2]), ax=axes(projection="mollweide"))  # two tokens span one axis


def test_gradient_and_moments_are_root_mean_squares(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 40)).load()
    rec.grad[9, 2, 1] = np.nan
    ax = plot.gradient_and_moments(rec, ax=axes())
    found = {line.get_label(): data(line) for line in ax.lines}
    for name, label in (("grad", "gradient"), ("exp_avg", "first moment, exp_avg")):
        x = rec[name].values.astype(np.float64)
        np.testing.assert_allclose(found[label][1:], np.sqrt(np.nanmean(x[1:] ** 2, axis=(1, 2))), rtol=1e-12)
    assert np.isnan(found["gradient"][0])
    v = rec.exp_avg_sq.values.astype(np.float64)
    np.testing.assert_allclose(found["root of the second moment, exp_avg_sq"][1:], np.sqrt(v[1:].mean((1, 2))))
    ax.figure.canvas.draw()
    with pytest.raises(InputError, match="needs one of grad"):
        plot.gradient_and_moments(rec[["W"]])


def test_invalid_input_is_refused(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    with pytest.raises(InputError, match="step 999 is not in this dataset"):
        plot.sky_map(rec, step=999)
    with pytest.raises(InputError, match="choose one of centroid, origin"):
        plot.sky_map(rec, centre="sun")
    with pytest.raises(InputError, match="expected 2 tokens or more, of 3 dims or more"):
        plot.sky_map(rec.isel(dim=[0, 1]))
    with pytest.raises(InputError, match="mollweide"):
        plot.sky_map(rec, ax=axes())
    with pytest.raises(InputError, match="no variable 'displacement_ulp'"):
        plot.cooling(xr.Dataset())
