"""How a language model's embedding matrix moves during training: record, open, analyse, exact to the bit.

    import deadtok_xr as dx
    rec = dx.open_recording("run.zarr", tokens="dead")
    tree = dx.analyze(rec)

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "analyze": "deadtok_xr.analyses",
    "census": "deadtok_xr.analyses.census",
    "centroid_origin": "deadtok_xr.analyses.centroid_origin",
    "checkpoint": "deadtok_xr.analyses.checkpoint",
    "cloud": "deadtok_xr.analyses.cloud",
    "clusters": "deadtok_xr.analyses.clusters",
    "coherence": "deadtok_xr.analyses.coherence",
    "compare_runs": "deadtok_xr.analyses.compare_runs",
    "component_events": "deadtok_xr.analyses.components",
    "components": "deadtok_xr.analyses.components",
    "concat_runs": "deadtok_xr.runs",
    "connectivity": "deadtok_xr.analyses.connectivity",
    "convert": "deadtok_xr.conversion",
    "critical_boundary": "deadtok_xr.analyses.critical_boundary",
    "elements": "deadtok_xr.analyses.elements",
    "epochs": "deadtok_xr.analyses.epochs",
    "exponents": "deadtok_xr.analyses.lattice",
    "export": "deadtok_xr.exporting",
    "find_arithmetic": "deadtok_xr.analyses.find_arithmetic",
    "freeze_predictors": "deadtok_xr.analyses.freeze_predictors",
    "freezing": "deadtok_xr.analyses.freezing",
    "grid_test": "deadtok_xr.analyses.grid_test",
    "h_persistence": "deadtok_xr.analyses.h_persistence",
    "kinematics": "deadtok_xr.analyses.kinematics",
    "label": "deadtok_xr.labelling",
    "lattice": "deadtok_xr.analyses.lattice",
    "lattice_gaps": "deadtok_xr.analyses.gaps",
    "lifecycle": "deadtok_xr.analyses.lifecycle",
    "mechanism": "deadtok_xr.analyses.mechanism",
    "motion": "deadtok_xr.analyses.motion",
    "neighbour_preservation": "deadtok_xr.analyses.neighbours",
    "open_recording": "deadtok_xr.recording",
    "open_results": "deadtok_xr.results",
    "phases": "deadtok_xr.analyses.phases",
    "Recorder": "deadtok_xr.record",
    "replay_open_loop": "deadtok_xr.analyses.open_loop",
    "report": "deadtok_xr.reporting",
    "save_results": "deadtok_xr.results",
    "spectrum": "deadtok_xr.analyses.spectrum",
    "summary": "deadtok_xr.summarizing",
    "topology": "deadtok_xr.analyses.topology",
    "velocity_autocorrelation": "deadtok_xr.analyses.autocorrelation",
    "verify": "deadtok_xr.conversion.verify",
}
_MODULES = ("bfloat16", "errors", "plot", "testing")

__all__ = [*_HOME, *_MODULES, "__version__"]

if TYPE_CHECKING:
    from deadtok_xr import bfloat16, errors, plot, testing
    from deadtok_xr.analyses import analyze
    from deadtok_xr.analyses.autocorrelation import velocity_autocorrelation
    from deadtok_xr.analyses.census import census
    from deadtok_xr.analyses.centroid_origin import centroid_origin
    from deadtok_xr.analyses.checkpoint import checkpoint
    from deadtok_xr.analyses.cloud import cloud
    from deadtok_xr.analyses.clusters import clusters
    from deadtok_xr.analyses.coherence import coherence
    from deadtok_xr.analyses.compare_runs import compare_runs
    from deadtok_xr.analyses.components import component_events, components
    from deadtok_xr.analyses.connectivity import connectivity
    from deadtok_xr.analyses.critical_boundary import critical_boundary
    from deadtok_xr.analyses.elements import elements
    from deadtok_xr.analyses.epochs import epochs
    from deadtok_xr.analyses.find_arithmetic import find_arithmetic
    from deadtok_xr.analyses.freeze_predictors import freeze_predictors
    from deadtok_xr.analyses.freezing import freezing
    from deadtok_xr.analyses.gaps import lattice_gaps
    from deadtok_xr.analyses.grid_test import grid_test
    from deadtok_xr.analyses.h_persistence import h_persistence
    from deadtok_xr.analyses.kinematics import kinematics
    from deadtok_xr.analyses.lattice import exponents, lattice
    from deadtok_xr.analyses.lifecycle import lifecycle
    from deadtok_xr.analyses.mechanism import mechanism
    from deadtok_xr.analyses.motion import motion
    from deadtok_xr.analyses.neighbours import neighbour_preservation
    from deadtok_xr.analyses.open_loop import replay_open_loop
    from deadtok_xr.analyses.phases import phases
    from deadtok_xr.analyses.spectrum import spectrum
    from deadtok_xr.analyses.topology import topology
    from deadtok_xr.conversion import convert
    from deadtok_xr.conversion.verify import verify
    from deadtok_xr.exporting import export
    from deadtok_xr.labelling import label
    from deadtok_xr.record import Recorder
    from deadtok_xr.recording import open_recording
    from deadtok_xr.reporting import report
    from deadtok_xr.results import open_results, save_results
    from deadtok_xr.runs import concat_runs
    from deadtok_xr.summarizing import summary


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value  # a submodule of the same name must not take the function's place
        return value
    if name in _MODULES:
        return importlib.import_module(f"deadtok_xr.{name}")
    raise AttributeError(f"module 'deadtok_xr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
