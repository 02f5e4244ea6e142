"""The texts of a report: the recording, definitions and the origin of the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr import attributes
from deadtok_xr.analyses.common.summary_text import number
from deadtok_xr.results.findings import Groups

_SETTINGS = ("betas", "momentum", "eps", "weight_decay")
"""Settings of an optimizer that matter first; the others are flags."""
_NAMES = {"weight_decay": "weight decay"}


def title(tree: xr.DataTree) -> str:
    """Return the name of the recording."""
    return Path(str(tree.attrs.get("source", "recording"))).name


def lead(tree: xr.DataTree, groups: Groups) -> str:
    """Return the recording in one line."""
    return " · ".join(_in_short(tree, groups))


def lead_of_runs(trees: Mapping[Any, xr.DataTree], groups: Mapping[Any, Groups]) -> str:
    """Return what all recordings have in common, in one line."""
    of_runs = [_in_short(tree, groups[label]) for label, tree in trees.items()]
    return " · ".join(part for part in of_runs[0] if all(part in parts for parts in of_runs))


def _in_short(tree: xr.DataTree, groups: Groups) -> list[str]:
    rows = dict(recorded(tree, groups))
    steps = f"steps {rows['steps']}" if "steps" in rows else ""
    rate = f"learning rate {rows['learning rate']}" if "learning rate" in rows else ""
    parts = (rows.get("vocabulary"), steps, rows.get("optimizer"), rate, rows.get("number format"))
    return [part for part in parts if part]


def recorded(tree: xr.DataTree, groups: Groups) -> list[tuple[str, str]]:
    """Return what matters first about the recording, as names and values."""
    attrs, settings = _recording(tree)
    rows = [("model", _model(attrs)), ("vocabulary", _vocabulary(tree, attrs))]
    steps = [ds["step"].values for ds in groups.values() if "step" in ds.coords]
    if labels := max(map(list, steps), key=len, default=[]):
        rows.append(("steps", f"{labels[0]:,} to {labels[-1]:,}"))
    rows.append(("optimizer", str(attrs.get("optimizer", ""))))
    rows.append(("learning rate", _rate(groups, settings)))
    rows += [(_NAMES.get(key, key), _short(settings[key])) for key in _SETTINGS if settings.get(key) is not None]
    rows.append(("number format", str(attrs.get("parameter_dtype") or _precision(groups))))
    rows.append(("recorded", ", ".join(attrs.get("recorded_variables", ()))))
    return [(name, value) for name, value in rows if value]


def other_settings(tree: xr.DataTree) -> list[tuple[str, str]]:
    """Return the other properties of the recording: flags of the optimizer, seed, device, versions."""
    attrs, settings = _recording(tree)
    rows = [(str(k), _short(v)) for k, v in settings.items() if k not in ("lr", *_SETTINGS)]
    shown = ("implementation", "torch_version", "device", "cpu_capability", "num_threads", "seed", "initial_seed")
    rows += [
        (key, str(attrs[key])) for key in (*shown, "tied", "made_by", "created") if attrs.get(key) not in (None, "")
    ]
    return rows


def definitions(groups: dict[str, xr.Dataset]) -> list[dict[str, Any]]:
    """Return the variables of each group: name, meaning, unit, formula and dims."""
    return [
        {
            "group": group,
            "variables": [
                {
                    "name": str(name),
                    "meaning": str(x.attrs.get("long_name", "")),
                    "units": "no unit" if x.attrs.get("units") == "1" else str(x.attrs.get("units", "")),
                    "formula": str(x.attrs.get("formula", "")),
                    "dims": ", ".join(map(str, x.dims)),
                }
                for name, x in ds.data_vars.items()
            ],
        }
        for group, ds in groups.items()
    ]


def provenance(tree: xr.DataTree) -> list[tuple[str, str]]:
    """Return the origin of the data: recording, software and source files."""
    attrs = tree.attrs
    rows: list[tuple[str, str]] = [(key, str(attrs[key])) for key in ("source", "analysed") if key in attrs]
    rows += [(f"analysed with {k}", str(v)) for k, v in dict(attrs.get("analysed_with", {})).items()]
    recording = attrs.get("recording", {})
    rows += [(key, str(recording[key])) for key in ("made_by", "created") if key in recording]
    for source in recording.get("sources", ()):
        rows.append(
            ("converted from", f"{source.get('name')}, {source.get('bytes')} bytes, BLAKE3 {source.get('blake3')}")
        )
    return rows


def _recording(tree: xr.DataTree) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the attributes of the recording, and the settings of its optimizer."""
    attrs = attributes.read(tree.attrs, "recording") or {}
    return attrs, attrs.get("hyperparameters") or {}


def _model(attrs: Mapping[str, Any]) -> str:
    """Return the sizes of the model, as far as they were given to the recorder."""
    model = attrs.get("model")
    if not isinstance(model, Mapping):
        return str(model or "")
    return ", ".join(
        f"{name} {model[name]}" for name in ("layers", "heads", "dims", "length", "batch") if name in model
    )


def _vocabulary(tree: xr.DataTree, attrs: Mapping[str, Any]) -> str:
    kind, n = tree.attrs.get("tokens", "all"), number(tree.attrs.get("n_tokens", "?"))
    shape = attrs.get("parameter_shape")
    known = f"{shape[0]:,} tokens of {shape[1]:,} dims; " if shape and len(shape) == 2 else ""
    return f"{known}{n} {'' if known else 'tokens '}analysed{'' if kind == 'all' else f', the {kind} ones'}"


def _rate(groups: Groups, settings: Mapping[str, Any]) -> str:
    """Return the learning rate: of the first and last update where an analysis knows them, or the setting."""
    rates = next((ds["lr"].values for ds in groups.values() if "lr" in ds), np.empty(0))
    rates = rates[np.isfinite(rates)]
    if not rates.size or rates.min() == rates.max():
        return _short(rates[0] if rates.size else settings.get("lr", ""))
    return f"{rates[0]:.3g} first, {rates[-1]:.3g} last"


def _precision(groups: Groups) -> str:
    return next((str(ds.attrs["precision"]) for ds in groups.values() if "precision" in ds.attrs), "")


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value))
    return f"{value:.9g}" if isinstance(value, float) else str(value)
