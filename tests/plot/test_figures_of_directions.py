"""Figures of h_persistence, centroid_origin, coherence and freeze_predictors show the results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from deadtok_xr import plot
from deadtok_xr.errors import InputError

Array = np.ndarray


def test_figures_show_the_results(results: xr.DataTree) -> None:
    from matplotlib.figure import Figure

    def axes(**layout: Any) -> Array:
        return Figure(layout="constrained").subplots(**layout)

    h = results["h_persistence"].to_dataset()
    _, bottom = plot.h_persistence(h, axes=axes(nrows=2))
    drawn = next(line for line in bottom.lines if line.get_label().startswith("direction"))
    np.testing.assert_array_equal(drawn.get_ydata(), h.autocorrelation)
    origin = results["centroid_origin"].to_dataset()
    top, bottom = plot.centroid_origin(origin, axes=axes(nrows=2))
    np.testing.assert_array_equal(top.lines[0].get_ydata(), origin.drift_projection)
    assert sorted(bar.get_height() for bar in bottom.containers[0]) == sorted(origin.drift.values)
    cohere = results["coherence"].to_dataset()
    pairs, _, sizes = plot.coherence(cohere, axes=axes(nrows=3))
    np.testing.assert_array_equal(pairs.lines[0].get_ydata(), cohere.displacement_cosine_mean)
    assert sizes.get_yscale() == "log"
    few = cohere[["displacement_cosine_mean", "displacement_cosine_std", "bulk_alignment", "n_used"]]
    *_, sizes = plot.coherence(few, axes=axes(nrows=3))
    np.testing.assert_array_equal(sizes.lines[0].get_ydata(), few.n_used)
    predictors = results["freeze_predictors"].to_dataset()
    left, _ = plot.freeze_predictors(predictors, axes=axes(ncols=2))
    np.testing.assert_array_equal(left.containers[0].lines[0].get_xdata(), predictors.rank_correlation)
    with pytest.raises(InputError, match="axes: found 2, expected 3"):
        plot.coherence(cohere, axes=axes(nrows=2))
