"""The public names and where they live; `lazy_loader` reads this file, and type checkers do."""

from . import bfloat16, errors, plot, testing
from ._version import __version__
from .analyses.analyze import analyze
from .analyses.autocorrelation import velocity_autocorrelation
from .analyses.census import census
from .analyses.centroid_origin import centroid_origin
from .analyses.changed_fraction import changed_fraction
from .analyses.checkpoint import checkpoint
from .analyses.cloud import cloud
from .analyses.clusters import clusters
from .analyses.coherence import coherence
from .analyses.common.sampled import sample_interval
from .analyses.compare_runs import compare_runs
from .analyses.components import component_events, components
from .analyses.connectivity import connectivity
from .analyses.critical_boundary import critical_boundary
from .analyses.custom import UserBatch, analysis
from .analyses.elements import elements
from .analyses.epochs import epochs
from .analyses.find_arithmetic import find_arithmetic
from .analyses.freeze_predictors import freeze_predictors
from .analyses.freezing import freezing
from .analyses.gaps import lattice_gaps
from .analyses.grid_test import grid_test
from .analyses.h_persistence import h_persistence
from .analyses.kinematics import kinematics
from .analyses.lattice import exponents, lattice
from .analyses.lifecycle import lifecycle
from .analyses.mechanism import mechanism
from .analyses.motion import motion
from .analyses.neighbours import neighbour_preservation
from .analyses.open_loop import replay_open_loop
from .analyses.phases import phases
from .analyses.spectrum import spectrum
from .analyses.token_indicators import token_indicators
from .analyses.topology import topology
from .analyses.trajectory import trajectory
from .analyses.undertrained import undertrained
from .checkpoints.doctor import doctor
from .conversion import convert
from .conversion.verify import verify
from .engine.output import Output
from .explorer.server import explore
from .monitor.growing_store import open_monitor
from .monitor.monitor import Monitor
from .recorder.recorder import Recorder
from .recording.export import export
from .recording.opening import open_recording
from .recording.runs import concat_runs
from .results.combine import combine
from .results.opening import open_results
from .results.report import report
from .results.save import save_results
from .results.summary import summary
from .store.labels import label
from .undo.changed_mask import changed_mask

__all__ = [
    "Monitor",
    "Output",
    "Recorder",
    "UserBatch",
    "__version__",
    "analysis",
    "analyze",
    "bfloat16",
    "census",
    "centroid_origin",
    "changed_fraction",
    "changed_mask",
    "checkpoint",
    "cloud",
    "clusters",
    "coherence",
    "combine",
    "compare_runs",
    "component_events",
    "components",
    "concat_runs",
    "connectivity",
    "convert",
    "critical_boundary",
    "doctor",
    "elements",
    "epochs",
    "errors",
    "explore",
    "exponents",
    "export",
    "find_arithmetic",
    "freeze_predictors",
    "freezing",
    "grid_test",
    "h_persistence",
    "kinematics",
    "label",
    "lattice",
    "lattice_gaps",
    "lifecycle",
    "mechanism",
    "motion",
    "neighbour_preservation",
    "open_monitor",
    "open_recording",
    "open_results",
    "phases",
    "plot",
    "replay_open_loop",
    "report",
    "sample_interval",
    "save_results",
    "spectrum",
    "summary",
    "testing",
    "token_indicators",
    "topology",
    "trajectory",
    "undertrained",
    "velocity_autocorrelation",
    "verify",
]
