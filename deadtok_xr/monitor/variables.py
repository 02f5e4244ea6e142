"""The variables of a monitored training: names, dims, dtypes and what they mean."""

from __future__ import annotations

from typing import Any

from deadtok_xr.kernels.updates import HIGHEST, LOWEST

PARAMETER, MARGIN = ("step", "parameter"), ("step", "parameter", "margin_bin")
VARIABLES: dict[str, tuple[tuple[str, ...], str, dict[str, Any]]] = {
    "moved": (PARAMETER, "int64", {"long_name": "elements that the update moved", "units": "1"}),
    "rounded_to_zero": (
        PARAMETER, "int64",
        {"long_name": "elements that did not move: the update was rounded away", "units": "1",
         "formula": "W[t] = W[t-1], and g ≠ 0 or u ≠ 0", "comment": "-1: not known"},
    ),
    "no_gradient": (
        PARAMETER, "int64",
        {"long_name": "elements without a gradient or an update", "units": "1", "formula": "g = 0 and u = 0",
         "comment": "all elements of a parameter that the optimizer skips; -1: not known"},
    ),
    "unknown": (
        PARAMETER, "int64",
        {"long_name": "elements that are NaN or infinite, or whose update is not known", "units": "1",
         "comment": "moved + rounded_to_zero + no_gradient + unknown = numel"},
    ),
    "visible": (
        PARAMETER, "int64",
        {"long_name": "elements whose value as bfloat16 changed", "units": "1",
         "comment": "what inference in bfloat16 sees of the update"},
    ),
    "stalled": (
        PARAMETER, "int64",
        {"long_name": "elements whose exp_avg_sq is stalled: unchanged, though not equal to g²", "units": "1",
         "comment": "-1: the optimizer keeps no exp_avg_sq, or there was no gradient"},
    ),
    "margin_count": (
        MARGIN, "int64",
        {"long_name": "updates by their size in half gaps", "units": "1",
         "formula": "count of u ≠ 0 by floor(log2(|u| / half the gap that u has to cross))",
         "comment": f"below 2^{LOWEST}, or from 2^{HIGHEST + 1} on: in the first or last bin; -1: not known"},
    ),
    "exact": (
        PARAMETER, "bool",
        {"long_name": "whether the counts are proven",
         "comment": "by a checksum of the weights after the update, or by a copy; false: estimated"},
    ),
    "weight_norm": (PARAMETER, "float64", {"long_name": "length of the weights after the update", "units": "1"}),
    "gradient_norm": (
        PARAMETER, "float64",
        {"long_name": "length of the gradient that the update used", "units": "1", "comment": "NaN: no gradient"},
    ),
    "update_norm": (
        PARAMETER, "float64",
        {"long_name": "length of the update before rounding", "units": "1", "formula": "‖u‖₂",
         "comment": "NaN: not known"},
    ),
    "realised_norm": (
        PARAMETER, "float64",
        {"long_name": "length of the displacement after rounding", "units": "1", "formula": "‖W[t] - W[t-1]‖₂"},
    ),
    "lr": (PARAMETER, "float64", {"long_name": "learning rate of the update", "units": "1"}),
    "skipped_before": (
        ("step",), "int64",
        {"long_name": "attempts that a GradScaler skipped since the monitored update before", "units": "1"},
    ),
}  # fmt: skip
"""Dims, dtype and attributes by name, in the order of a dataset."""
COORDINATES: dict[str, tuple[tuple[str, ...], str]] = {
    "step": (("step",), "number of the update; 1 is the first"),
    "parameter": (("parameter",), "name of the parameter"),
    "numel": (("parameter",), "number of elements, on all ranks together"),
    "dtype": (("parameter",), "number format"),
    "group": (("parameter",), "index of the optimizer's parameter group"),
    "method": (("parameter",), "how the counts are made"),
    "margin_bin": (("margin_bin",), "floor(log2(|u| / half gap)); below 0 an update cannot move its element"),
}
"""Dims and long names of the coordinates."""
