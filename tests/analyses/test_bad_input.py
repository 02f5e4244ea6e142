"""Incomplete or unusual recordings, for all analyses: an error of one sentence or known results, never silent zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

import deadtok_xr as dx
from deadtok_xr.analyses import ANALYSES
from deadtok_xr.errors import InputError, OffGridError
from tests.strategies import dataset

PHASES = {"phases_magnitude": "magnitude", "phases_cells": "cells"}
OF_W: dict[str, Callable[..., xr.Dataset]] = {
    **{n: getattr(dx, n) for n in ANALYSES if n not in (*PHASES, "mechanism", "critical_boundary", "h_persistence")},
    "phases_cells": lambda ds: dx.phases(ds, scheme="cells"),
    "velocity_autocorrelation": dx.velocity_autocorrelation,
    "neighbour_preservation": dx.neighbour_preservation,
    "clusters": dx.clusters,
    "elements": dx.elements,
}
OF_STATES = ("topology", "connectivity", "census", "exponents", "spectrum", "clusters")
PARTLY_ON_THE_LATTICE = ("motion", "lifecycle")
"""What gives only a part of its variables for weights without a lattice."""
ON_THE_LATTICE = (
    "motion", "phases", "phases_cells", "lifecycle", "topology", "connectivity", "lattice", "exponents",
    "freeze_predictors", "elements",
)  # fmt: skip
ZERO = {
    "motion": ("displacement", "lattice_l1", "displacement_ulp_mean"),
    "kinematics": ("bulk_speed", "radius", "centroid"),
    "cloud": ("temperature", "total_l2", "origin_radius", "path_length", "net_displacement"),
    "epochs": ("radius", "frozen_fraction", "inhale_depth"),
    "freezing": ("frozen_fraction", "mean_run"),
    "lifecycle": ("frozen_fraction", "duration_mean"),
    "phases": ("fraction",),
    "lattice": ("moved_fraction", "lattice_max", "hop_fraction"),
    "exponents": ("ulp_min", "ulp_max"),
    "spectrum": ("total_variance",),
    "connectivity": ("connectivity_threshold", "mean_ulp"),
    "topology": ("density", "mean_ulp"),
    "census": ("herfindahl", "gini"),
    "coherence": ("displacement_cosine_mean", "bulk_alignment"),
    "centroid_origin": ("drift_length", "straightness"),
    "velocity_autocorrelation": ("autocorrelation", "pooled", "cosine"),
    "neighbour_preservation": ("rank_correlation",),
    "clusters": ("silhouette", "inertia"),
    "elements": ("lattice_displacement", "ordinal", "ulp"),
}
"""Floats that would be 0 of nothing, if it were added up."""


def walk(steps: int = 6, tokens: int = 5) -> xr.Dataset:
    """On the bfloat16 grid, nothing at rest, no dead mask."""
    W = np.arange(1, 1 + steps)[:, None, None] + np.arange(tokens)[:, None] % 3 + np.arange(3) / 4
    return dataset(W.astype(np.float32), precision="bfloat16")


def small(ds: xr.Dataset) -> xr.Dataset:
    return ds.drop_vars(["position", "thermal_velocity"], errors="ignore").compute()


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_W)
def test_gaps_in_the_steps(name: str) -> None:
    ds = walk().isel(step=[0, 1, 4])
    if name in (*OF_STATES, "trajectory", "token_indicators"):
        assert small(OF_W[name](ds))
        return
    with pytest.raises(InputError, match=rf"{name.removesuffix('_cells')}: steps 2..3 are missing; .*allow_gaps"):
        OF_W[name](ds)


@pytest.mark.parametrize("name", OF_W)
def test_recording_of_one_step(name: str) -> None:
    ds = walk().isel(step=[3])
    if name in (*OF_STATES, "kinematics", "elements"):
        assert small(OF_W[name](ds))
        return
    with pytest.raises(InputError, match="needs at least two steps; this dataset has one .step 3."):
        OF_W[name](ds)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_W)
def test_one_token_and_all_frozen_from_the_start(name: str) -> None:
    assert small(OF_W[name](walk(tokens=1)))
    found = small(OF_W[name](walk().isel(step=[0] * 6).assign_coords(step=np.arange(6))))
    ratios = ("half_fraction", "straightness", "radial_mean", "path_efficiency", "cosine", "bulk_alignment")
    for variable in (v for v in ratios if v in found):
        assert np.isnan(found[variable]).all(), variable  # 0 of 0


@pytest.mark.parametrize("name", ZERO)
def test_tokens_with_nan_have_no_results(name: str) -> None:
    ds = walk()
    found = small(OF_W[name](ds.assign(W=ds.W.copy(data=np.full(ds.W.shape, np.nan, np.float32)))))
    for variable in ZERO[name]:
        assert np.isnan(found[variable]).all(), variable
    if "n_invalid" in found:
        assert int(found.n_invalid.max()) == 5
    if "verdict" in found:
        assert found.verdict.attrs["flag_meanings"].split()[int(found.verdict)] == "unknown"


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_W)
def test_float32_without_a_lattice_is_refused(name: str) -> None:
    """Named so, or not: what does not ask for a lattice works all the same."""
    W = walk().W.values * np.float32(1.0001)
    none, unknown = dataset(W, precision="none"), dataset(W)
    if name not in ON_THE_LATTICE:
        assert small(OF_W[name](none))
        assert small(OF_W[name](unknown))
        return
    if name in PARTLY_ON_THE_LATTICE:
        assert small(OF_W[name](none))
    else:
        with pytest.raises(InputError, match="has unknown precision .* it has no lattice: say precision="):
            OF_W[name](none)
    if name not in ("topology", "connectivity"):  # these compare values, and take from the grid its spacing alone
        with pytest.raises(OffGridError, match=r"not on the (grid of bfloat16|bfloat16 grid).*say precision="):
            small(OF_W[name](unknown))


def test_freezing_reports_its_precision() -> None:
    W = walk().W.values * np.float32(1.0001)
    said = [dx.freezing(dataset(W, **attrs)).attrs["precision"] for attrs in ({"precision": "none"}, {})]
    assert said == ["none", "unknown"]


def test_analyze_leaves_out_impossible_analyses() -> None:
    tree = dx.analyze(dataset(walk().W.values * np.float32(1.0001), precision="none"))
    assert set(ON_THE_LATTICE) - {"elements", *PARTLY_ON_THE_LATTICE} <= set(tree.attrs["left_out"])
    assert {*PARTLY_ON_THE_LATTICE, "cloud", "kinematics", "spectrum", "census", "freezing", "coherence"} <= set(
        tree.children
    )


def test_a_token_with_nan_has_no_sum_of_updates() -> None:
    """A sum without the step that is not known would pass for the whole."""
    ds = walk()
    W = ds.W.values.copy()
    W[3, 1] = np.nan
    flat: Any = {name: (ds.W.dims, np.full(W.shape, 1e-3, np.float32)) for name in ("grad", "exp_avg", "exp_avg_sq")}
    hyper = {"optimizer": "AdamW", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    found = dx.mechanism(ds.assign(W=ds.W.copy(data=W), **flat), hyperparameters=hyper, lr=1e-2).compute()
    np.testing.assert_array_equal(np.isnan(found.realised_net), [False, True, False, False, False])
    np.testing.assert_array_equal(np.isnan(found.intended_net), [False, True, False, False, False])
    nothing = ds.assign(W=ds.W.copy(data=np.full(W.shape, np.nan, np.float32)), **flat)
    found = dx.mechanism(nothing, hyperparameters=hyper, lr=1e-2).compute()
    for name in ("intended_norm", "realised_norm", "intended_net", "realised_net"):
        assert np.isnan(found[name]).all(), name


def test_no_arithmetic_is_tried_that_torch_does_not_have() -> None:
    """Its fused kernels take one dtype: weights in float32 with moments in bfloat16 ended in its RuntimeError."""
    ds = dataset(walk().W.values * np.float32(1.0001), precision="none")
    flat: Any = {
        name: (ds.W.dims, np.full(ds.W.shape, 2.0**-9, np.float32), {"precision": "bfloat16"})
        for name in ("grad", "exp_avg", "exp_avg_sq")
    }
    hyper = {"optimizer": "AdamW", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    found = dx.find_arithmetic(ds.assign(**flat), hyperparameters=hyper, lr=1e-2)
    assert "fused" not in found.arithmetic.values
