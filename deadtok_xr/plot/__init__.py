"""Pictures of results: each function takes the dataset of one analysis and returns matplotlib Axes.

Pictures of one panel take ``ax=``. Legends and colour bars are beside the axes, so create the figure with
``layout="constrained"``. Importing this package changes nothing in matplotlib; pyplot is imported only when a function
creates its own figure.
"""

from __future__ import annotations

from deadtok_xr.plot.by_dims import by_dims
from deadtok_xr.plot.census import census
from deadtok_xr.plot.centroid_origin import centroid_origin
from deadtok_xr.plot.checkpoint import checkpoint
from deadtok_xr.plot.checkpoint_trajectory import checkpoint_trajectory
from deadtok_xr.plot.cloud import cloud
from deadtok_xr.plot.coherence import coherence
from deadtok_xr.plot.compare_runs import compare_runs
from deadtok_xr.plot.connectivity import connectivity
from deadtok_xr.plot.cooling import cooling, heat_map
from deadtok_xr.plot.critical_boundary import critical_boundary
from deadtok_xr.plot.epochs import epochs
from deadtok_xr.plot.freeze_predictors import freeze_predictors
from deadtok_xr.plot.freezing import freezing
from deadtok_xr.plot.h_persistence import h_persistence
from deadtok_xr.plot.kinematics import radius, speeds
from deadtok_xr.plot.lattice import exponents, lattice
from deadtok_xr.plot.lifecycle import lifecycle
from deadtok_xr.plot.mechanism import mechanism
from deadtok_xr.plot.moments import gradient_and_moments
from deadtok_xr.plot.motion import displacement, trajectories
from deadtok_xr.plot.phases import phases
from deadtok_xr.plot.runs import runs
from deadtok_xr.plot.save import save_figures
from deadtok_xr.plot.sky_map import sky_map
from deadtok_xr.plot.spectrum import spectrum
from deadtok_xr.plot.token_indicators import token_indicators
from deadtok_xr.plot.topology import topology

__all__ = [
    "by_dims",
    "census",
    "centroid_origin",
    "checkpoint",
    "checkpoint_trajectory",
    "cloud",
    "coherence",
    "compare_runs",
    "connectivity",
    "cooling",
    "critical_boundary",
    "displacement",
    "epochs",
    "exponents",
    "freeze_predictors",
    "freezing",
    "gradient_and_moments",
    "h_persistence",
    "heat_map",
    "lattice",
    "lifecycle",
    "mechanism",
    "phases",
    "radius",
    "runs",
    "save_figures",
    "sky_map",
    "spectrum",
    "speeds",
    "token_indicators",
    "topology",
    "trajectories",
]
