"""Figures show the results, with correct labels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch

import deadtok_xr as dx
from deadtok_xr import plot
from deadtok_xr.errors import InputError
from deadtok_xr.plot import _logzero, _style
from deadtok_xr.plot._density import density
from deadtok_xr.plot.phases import colours
from tests.conftest import N_DEAD

MEASURES = ("displacement", "displacement_ulp", "lattice_l1", "lattice_l2", "lattice_linf")
ATTRS = {"long_name": "displacement in norm ULP", "units": "norm ULP"}


@pytest.fixture(autouse=True)
def _agg() -> Iterator[None]:
    """Functions that make their own figure need a pyplot backend without a screen."""
    with matplotlib.rc_context({"backend": "agg"}):
        yield
        import matplotlib.pyplot as plt

        plt.close("all")


@pytest.fixture
def ax() -> Axes:
    return Figure(layout="constrained").subplots()


def made(values: Any, steps: Any = None) -> xr.Dataset:
    """A motion dataset of given values."""
    values = np.asarray(values, np.float32)
    steps = np.arange(1, len(values) + 1) if steps is None else np.asarray(steps)
    coords = {"step": steps, "token": np.arange(values.shape[1])}
    return xr.Dataset({"displacement_ulp": (("step", "token"), values, ATTRS)}, coords)


def labelled(ax: Axes, label: str) -> Line2D:
    return next(line for line in ax.lines if line.get_label() == label)


def data(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_ydata(), np.float64)


def areas(ax: Axes) -> list[StepPatch]:
    return [patch for patch in ax.patches if isinstance(patch, StepPatch)]


def meshes(ax: Axes) -> dict[str, QuadMesh]:
    return {str(c.get_gid()): c for c in ax.collections if isinstance(c, QuadMesh)}


def zero_spans(ax: Axes, color: str) -> list[tuple[float, float]]:
    """Where the strip of zeros is marked along the steps."""
    return [
        (float(path.vertices[:, 0].min()), float(path.vertices[:, 0].max()))
        for c in ax.collections
        if type(c) is PolyCollection and np.allclose(c.get_facecolor()[0][:3], to_rgb(color))
        for path in c.get_paths()
    ]


# --- displacement ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES)
def test_mean_line_equals_the_results(results: xr.DataTree, ax: Axes, measure: str) -> None:
    motion = results["motion"].to_dataset()
    assert plot.displacement(motion, measure=measure, ax=ax) is ax
    line = labelled(ax, "mean")
    np.testing.assert_array_equal(line.get_xdata(), motion["step"])
    np.testing.assert_allclose(data(line), motion[measure].astype("f8").mean("token"), rtol=1e-6)
    assert ax.get_yscale() == "log"


def test_mean_and_band_agree_with_the_analysis(results: xr.DataTree, ax: Axes) -> None:
    motion = results["motion"].to_dataset()
    plot.displacement(motion, ax=ax)
    mean, std = motion["displacement_ulp_mean"].values, motion["displacement_ulp_std"].values
    np.testing.assert_allclose(data(labelled(ax, "mean")), mean, rtol=1e-6)
    band = next(c for c in ax.collections if c.get_label() == "mean ± standard deviation")
    corners = np.concatenate([path.vertices for path in band.get_paths()])
    t = int(np.argmax(mean - std > 0))  # a step at which both edges are positive
    at = corners[corners[:, 0] == motion["step"].values[t], 1]
    np.testing.assert_allclose([at.min(), at.max()], [mean[t] - std[t], mean[t] + std[t]], rtol=1e-6)


def test_band_reaches_the_strip_where_it_includes_zero(ax: Axes) -> None:
    plot.displacement(made([[1, 1.2], [0.0, 1.0], [0.0, 1.0], [1, 1.2]]), ax=ax)
    band = next(c for c in ax.collections if c.get_label() == "mean ± standard deviation")
    corners = np.concatenate([path.vertices for path in band.get_paths()])
    assert corners[corners[:, 0] == 2, 1].min() == pytest.approx(ax.get_ylim()[0])
    assert corners[corners[:, 0] == 1, 1].min() == pytest.approx(1.1 - np.std([1, 1.2], ddof=1))


def test_frozen_steps_are_marked_in_the_strip(ax: Axes) -> None:
    plot.displacement(made([[1, 2], [0, 0], [0, 0], [0, 1], [0, 0]]), ax=ax)
    assert zero_spans(ax, _style.INK) == [(1.5, 3.5), (4.5, 5.5)]
    assert "no token moved" in [text.get_text() for text in ax.get_legend().get_texts()]
    ticks = dict(zip([t.get_text() for t in ax.get_yticklabels()], ax.get_yticks(), strict=True))
    assert ax.get_ylim()[0] < ticks["0"] < min(v for k, v in ticks.items() if k != "0")


def test_no_strip_without_zeros(ax: Axes) -> None:
    plot.displacement(made([[1, 1.2], [2, 2.1], [1, 1.2]]), ax=ax)
    assert "0" not in [t.get_text() for t in ax.get_yticklabels()]
    assert zero_spans(ax, _style.INK) == []


def test_invalid_tokens_are_left_out_and_counted(ax: Axes) -> None:
    plot.displacement(made([[1, 3, np.nan], [np.nan] * 3, [np.inf, 1, 2]]), ax=ax)
    np.testing.assert_allclose(data(labelled(ax, "mean")), [2, np.nan, 1.5])
    assert "5 of 9 values are invalid" in ax.get_title(loc="left")


def test_isolated_step_is_drawn_as_a_dot(ax: Axes) -> None:
    plot.displacement(made([[1, 1], [0, 0], [2, 2], [0, 0], [1, 1], [1, 1]]), ax=ax)
    dots = next(line for line in ax.lines if line.get_marker() == ".")
    np.testing.assert_array_equal(dots.get_xydata(), [[1, 1], [3, 2]])


# --- trajectories ------------------------------------------------------------------------------------------


def test_density_counts_every_pair(results: xr.DataTree, ax: Axes) -> None:
    motion = results["motion"].to_dataset()
    plot.trajectories(motion, ax=ax)
    values = motion["displacement_ulp"].values
    drawn = meshes(ax)  # one column per step here, so that tokens per step are counts
    positive = drawn["density"].get_array().filled(0)
    zeros = drawn["zeros"].get_array().filled(0).ravel()
    np.testing.assert_allclose(positive.sum(axis=0), (values > 0).sum(axis=1))
    np.testing.assert_allclose(zeros, (values == 0).sum(axis=1))
    assert positive.sum() + zeros.sum() == values.size
    assert zeros.sum() > 0


def test_density_bins_agree_with_numpy() -> None:
    rng = np.random.default_rng(3)
    values = np.where(rng.random((1000, 70)) < 0.2, 0, 10 ** rng.uniform(-2, 1.99, (1000, 70)))
    values[500:510] = np.nan
    cells = density(values, np.arange(1, 1001), 0.01, 100.0, columns=40, bins=25)
    steps = np.broadcast_to(np.arange(1, 1001)[:, None], values.shape)
    keep = values > 0
    expected, *_ = np.histogram2d(steps[keep], values[keep], [cells.step_edges, cells.value_edges])
    np.testing.assert_array_equal(cells.counts, expected)
    assert cells.counts.sum() + cells.zeros.sum() + cells.invalid.sum() == values.size
    assert cells.invalid.sum() == 700
    assert set(cells.n_steps) == {25}


def test_density_of_sparse_steps_has_no_empty_columns() -> None:
    cells = density(np.ones((101, 3)), np.arange(0, 1010, 10), 0.1, 10.0)
    assert len(cells.n_steps) == 101
    assert cells.n_steps.min() == 1


def test_long_density_is_per_step(ax: Axes) -> None:
    values = np.full((3000, 100), 2.0)
    values[:, :25] = 0
    plot.trajectories(made(values), ax=ax)
    drawn = meshes(ax)
    np.testing.assert_allclose(drawn["density"].get_array().compressed(), 75)
    np.testing.assert_allclose(drawn["zeros"].get_array().compressed(), 25)


def test_few_tokens_are_lines(ax: Axes) -> None:
    values = np.array([[1, 2, 3], [0, 2, 3], [0, 0, np.nan], [1, 1, 1]])
    plot.trajectories(made(values), ax=ax)
    lines = next(c for c in ax.collections if isinstance(c, LineCollection))
    drawn = np.stack([path.vertices[:, 1] for path in lines.get_paths()], axis=1)
    np.testing.assert_array_equal(drawn, np.where(values > 0, values, np.nan))
    bottom, top = areas(ax)[0].get_data().baseline, areas(ax)[0].get_data().values
    full = np.log(_logzero.log_axis(1, 3, True).strip[1] / bottom)
    np.testing.assert_allclose(np.log(top / bottom) / full, [0, 1 / 3, 1, 0], atol=1e-12)


@pytest.mark.parametrize("n_tokens", [5, 80])
def test_mean_is_on_top_and_within_the_axis(ax: Axes, n_tokens: int) -> None:
    values = np.zeros((20, n_tokens))
    values[:, 0] = 0.5  # a mean far below every single value
    plot.trajectories(made(values), ax=ax)
    mean = labelled(ax, "mean")
    np.testing.assert_allclose(data(mean), 0.5 / n_tokens)
    low = _logzero.log_axis(0.5 / n_tokens, 0.5, True).low
    assert low <= 0.5 / n_tokens
    assert ax.get_ylim()[0] < low
    assert mean.get_zorder() > max(c.get_zorder() for c in ax.collections)


def test_mean_does_not_hide_a_single_token(ax: Axes) -> None:
    plot.trajectories(made([[1], [2], [0]]), ax=ax)
    assert not [line for line in ax.lines if line.get_label() == "mean"]


# --- phases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["phases", "phases_magnitude"])
def test_areas_are_the_fractions_and_sum_to_one(results: xr.DataTree, ax: Axes, group: str) -> None:
    ds = results[group].to_dataset()
    assert plot.phases(ds, ax=ax) is ax
    stacked = [patch.get_data() for patch in areas(ax)]
    np.testing.assert_allclose(sum(d.values - d.baseline for d in stacked), 1)
    for k, d in enumerate(stacked):  # the coldest first, at the bottom
        np.testing.assert_allclose(d.values - d.baseline, ds["fraction"][:, k], atol=1e-12)
    np.testing.assert_array_equal(stacked[0].baseline, 0)
    np.testing.assert_array_equal((stacked[0].edges[1:] + stacked[0].edges[:-1]) / 2, ds["step"])


def test_transitions_are_marked_and_written(results: xr.DataTree, ax: Axes) -> None:
    ds = results["phases"].to_dataset()
    plot.phases(ds, ax=ax)
    marks = [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "o"]
    expected = [int(t) for t in ds["transition_step"][:-1] if t > ds["step"][0]]
    assert marks == expected
    assert expected
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [w.split("\n")[0] for w in words] == ["early", "midlife", "late", "frozen"]
    assert f"first at step {int(ds['transition_step'].sel(phase='frozen')):,}" in words[-1]


def test_phase_that_is_never_reached(ax: Axes) -> None:
    fraction = [[0.0, 1.0], [np.nan, np.nan], [0.25, 0.75]]
    ds = xr.Dataset(
        {"fraction": (("step", "phase"), fraction), "transition_step": ("phase", [-1, 1])},
        {"step": [1, 2, 3], "phase": ["frozen", "late"]},
    )
    plot.phases(ds, ax=ax)
    assert not [line for line in ax.lines if line.get_marker() == "o"]
    assert "never" in ax.get_legend().get_texts()[-1].get_text()
    for patch in areas(ax):  # the invalid step is a gap
        assert np.isnan(patch.get_data().values).tolist() == [False, True, False]


def test_phase_colours_get_lighter_evenly() -> None:
    linear = [np.array([((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(c)]) for c in colours(4)]
    lightness = np.array([116 * (rgb @ [0.2126, 0.7152, 0.0722]) ** (1 / 3) - 16 for rgb in linear])
    assert np.diff(lightness).min() > 15


# --- topology and kinematics -------------------------------------------------------------------------------


def test_topology_panels_hold_the_results(results: xr.DataTree) -> None:
    ds = results["topology"].to_dataset()
    panels = plot.topology(ds)
    assert panels.shape == (3,)
    assert all(isinstance(panel, Axes) for panel in panels)
    assert panels[0].get_shared_x_axes().joined(panels[0], panels[2])
    np.testing.assert_array_equal(data(labelled(panels[0], "mean ULP")), ds["mean_ulp"])
    np.testing.assert_array_equal(data(labelled(panels[1], "density")), ds["density"])
    for label, name in {
        "tokens in the largest component": "largest_component",
        "tokens without a neighbour": "n_singletons",
        "connected components": "n_components",
    }.items():
        np.testing.assert_array_equal(data(labelled(panels[2], label)), ds[name])


def test_labels_of_close_topology_changes_do_not_overlap(results: xr.DataTree) -> None:
    ds = results["topology"].to_dataset()
    panels = plot.topology(ds.assign(evaporation_step=((), 4), crystallization_step=((), 5)))
    panels[0].figure.canvas.draw()
    gas, crystal = (text.get_window_extent() for text in panels[0].texts)
    assert not gas.overlaps(crystal)


def test_invalid_topology_steps_are_gaps(results: xr.DataTree) -> None:
    ds = results["topology"].to_dataset().copy(deep=True)
    for name in ("largest_component", "n_singletons", "n_components"):
        ds[name][5:9] = -1
    ds["density"][5:9] = ds["mean_ulp"][5:9] = np.nan
    axes = Figure().subplots(3)
    assert list(plot.topology(ds, axes=list(axes))) == list(axes)
    for line in (line for panel in axes for line in panel.lines if len(line.get_xdata()) == ds.sizes["step"]):
        assert np.flatnonzero(np.isnan(data(line))).tolist() == [5, 6, 7, 8]


def test_topology_needs_three_axes(results: xr.DataTree) -> None:
    with pytest.raises(InputError, match="found 2, expected 3"):
        plot.topology(results["topology"].to_dataset(), axes=Figure().subplots(2))


def test_speeds_hold_the_results(results: xr.DataTree, ax: Axes) -> None:
    ds = results["kinematics"].to_dataset()
    assert plot.speeds(ds, ax=ax) is ax
    for label, name in {
        "speed of the centroid": "bulk_speed",
        "speed within the cloud (root mean square)": "thermal_rms",
    }.items():
        scale = max(ds["bulk_speed"].max(), ds["thermal_rms"].max())
        np.testing.assert_allclose(data(labelled(ax, label)), ds[name], rtol=0, atol=1e-12 * float(scale))
    assert "(1/step)" in ax.get_ylabel()
    assert ax.get_yscale() == "log"


def test_speeds_mark_zeros_and_rounding_in_their_lanes(ax: Axes) -> None:
    ds = xr.Dataset(
        {"bulk_speed": ("step", [np.nan, 1.0, 1.0, 0.0]), "thermal_rms": ("step", [np.nan, 0.5, 1e-18, 0.0])},
        {"step": [0, 1, 2, 3]},
    )
    plot.speeds(ds, ax=ax)
    assert zero_spans(ax, _style.BLUE) == [(2.5, 3.5)]
    assert zero_spans(ax, _style.VERMILLION) == [(1.5, 3.5)]
    assert ax.get_ylim()[0] > 0.01


def test_radius_holds_the_results(results: xr.DataTree, ax: Axes) -> None:
    ds = results["kinematics"].to_dataset()
    assert plot.radius(ds, ax=ax) is ax
    np.testing.assert_array_equal(data(labelled(ax, "mean")), ds["radius"])
    np.testing.assert_array_equal(data(labelled(ax, "largest")), ds["radius_max"])


# --- words, extremes and errors ----------------------------------------------------------------------------


def test_labels_have_quantity_unit_and_tokens(results: xr.DataTree, ax: Axes) -> None:
    motion = results["motion"].to_dataset()
    plot.displacement(motion, measure="lattice_l2", ax=ax)
    assert "L2 norm of the lattice displacement" in ax.get_ylabel()
    assert "(ULP)" in ax.get_ylabel()
    assert "step" in ax.get_xlabel()
    assert f"{motion.sizes['token']:,} dead tokens" in ax.get_title(loc="left")


def test_titles_name_the_kind_of_tokens(ax: Axes) -> None:
    for dead, words in {(False, False): "2 live tokens", (True, False): "over 2 tokens"}.items():
        ax.clear()
        plot.displacement(made([[1, 2], [1, 2]]).assign_coords(dead=("token", list(dead))), ax=ax)
        assert words in ax.get_title(loc="left")


DRAWN = {
    "displacement": (plot.displacement, "motion"),
    "trajectories": (plot.trajectories, "motion"),
    "phases": (plot.phases, "phases"),
    "topology": (plot.topology, "topology"),
    "connectivity": (plot.connectivity, "connectivity"),
    "speeds": (plot.speeds, "kinematics"),
    "radius": (plot.radius, "kinematics"),
    "coherence": (plot.coherence, "coherence"),
    "h_persistence": (plot.h_persistence, "h_persistence"),
    "centroid_origin": (plot.centroid_origin, "centroid_origin"),
    "freeze_predictors": (plot.freeze_predictors, "freeze_predictors"),
    "lifecycle": (plot.lifecycle, "lifecycle"),
    "freezing": (plot.freezing, "freezing"),
    "epochs": (plot.epochs, "epochs"),
    "census": (plot.census, "census"),
    "critical_boundary": (plot.critical_boundary, "critical_boundary"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_own_figure_and_axis_labels(results: xr.DataTree, name: str) -> None:
    draw, group = DRAWN[name]
    axes = np.atleast_1d(draw(results[group]))  # a node of the tree does as well as its dataset
    assert all(panel.get_ylabel() for panel in axes)
    assert any("step" in panel.get_xlabel() for panel in axes) or group == "connectivity"
    assert f"{N_DEAD} dead tokens" in axes[0].get_title(loc="left") or group in ("phases", "topology", "h_persistence")


@pytest.mark.parametrize("name", DRAWN)
def test_missing_variables_are_named(name: str) -> None:
    draw, group = DRAWN[name]
    ds = xr.Dataset({"loss": ("step", [1.0, 2.0])}, {"step": [1, 2]})
    with pytest.raises(InputError, match=rf"no variable .*deadtok_xr\.{group} returns.*loss"):
        draw(ds)


def test_wrong_dimensions_are_named(results: xr.DataTree) -> None:
    with pytest.raises(InputError, match=r"'n_invalid' has the dimensions \(step\).*\(step, token\)"):
        plot.displacement(results["motion"].to_dataset(), measure="n_invalid")
    with pytest.raises(InputError, match="no steps"):
        plot.displacement(results["motion"].to_dataset().isel(step=slice(0)))


@pytest.mark.parametrize(
    "values",
    [np.zeros((5, 70)), np.zeros((5, 2)), np.full((4, 70), np.nan), np.full((4, 2), np.nan), [[1.0]], [[0.0]],
     np.ones((1, 70)), np.geomspace(1e-3, 1e37, 140).reshape(2, 70)],
    ids=["frozen", "few frozen", "invalid", "few invalid", "one value", "one zero", "one step", "huge"],
)  # fmt: skip
@pytest.mark.parametrize("draw", [plot.displacement, plot.trajectories])
@pytest.mark.filterwarnings("error")
def test_extremes_can_be_drawn(values: Any, draw: Any) -> None:
    figure = Figure(layout="constrained", dpi=40)
    ax = draw(made(values), ax=figure.subplots())
    figure.canvas.draw()
    said = [text.get_text() for text in ax.texts]
    values = np.asarray(values)
    expected = [] if (values > 0).any() else ["every valid value is 0" if (values == 0).any() else "no valid values"]
    assert said == expected


@pytest.mark.slow
def test_results_of_two_steps_and_of_one_token(recording: Path, tmp_path: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    for part in (rec.isel(step=slice(0, 2)), rec.isel(token=[0], step=slice(0, 50))):
        assert len(plot.save_figures(dx.analyze(part), tmp_path, dpi=30)) == 23


# --- files and imports -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_save_figures_writes_pictures(recording: Path, tmp_path: Path) -> None:
    paths = plot.save_figures(dx.analyze(recording), tmp_path / "new" / "figures")  # lazy
    names = ("displacement", "trajectories", "phases", "phases_magnitude", "phases_cells", "lifecycle", "freezing",
             "speeds", "epochs", "topology", "census", "lattice", "exponents", "cloud", "spectrum", "connectivity",
             "mechanism", "critical_boundary", "coherence", "h_persistence", "centroid_origin",
             "freeze_predictors", "token_indicators")  # fmt: skip
    assert paths == [tmp_path / "new" / "figures" / f"{name}.png" for name in names]
    for path in paths:
        pixels = imread(path)[..., :3]
        assert pixels.shape == (700, 1200, 3)
        assert pixels.var() > 0.005
        assert (pixels != 1).any(axis=2).mean() > 0.02
    assert len({path.read_bytes() for path in paths}) == 23


def test_save_figures_skips_absent_groups(results: xr.DataTree, tmp_path: Path) -> None:
    part = xr.DataTree.from_dict({"topology": results["topology"].to_dataset(), "other": xr.Dataset()})
    assert plot.save_figures(part, tmp_path, dpi=30) == [tmp_path / "topology.png"]
    part["phases"] = xr.DataTree(xr.Dataset())
    with pytest.raises(InputError, match="fraction"):
        plot.save_figures(part, tmp_path)


def test_saving_does_not_use_pyplot(results: xr.DataTree, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    some = xr.DataTree.from_dict({name: results[name].to_dataset() for name in ("motion", "phases")})
    plot.save_figures(some, tmp_path, dpi=30)
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_importing_plot_does_not_import_pyplot() -> None:
    code = (
        "import sys, deadtok_xr; assert 'matplotlib' not in sys.modules; "
        "deadtok_xr.plot.displacement; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- two runs ----------------------------------------------------------------------------------------------


def test_figure_of_diverging_runs(recording: Path) -> None:
    a = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 60), token=slice(0, 8))
    W = a.W.values.copy()
    W[20:, :3] += 0.25 * np.arange(1, 41)[:, None, None]
    W[40, 5, 0] = np.nan
    found = dx.compare_runs(a, a.assign(W=a.W.copy(data=W)))
    share, far = plot.compare_runs(found)
    found = found.compute()
    np.testing.assert_array_equal(data(labelled(share, "tokens that differ in a bit")), found.different_fraction)
    np.testing.assert_allclose(data(labelled(far, "mean over tokens")), found.distance.astype("f8").mean("token"))
    np.testing.assert_allclose(data(labelled(far, "largest distance of a token")), found.distance.max("token"))
    assert "they differ from step 20" in share.get_title(loc="left")
    assert zero_spans(far, _style.VERMILLION) == [(-0.5, 19.5)]


def test_figure_of_equal_runs(recording: Path) -> None:
    a = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 5))
    share, far = plot.compare_runs(dx.compare_runs(a, a))
    assert "equal to the bit" in share.get_title(loc="left")
    assert zero_spans(far, _style.ORANGE) == [(-0.5, 4.5)]
