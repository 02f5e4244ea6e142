"""Made tests/data/format-1.0 with release 0.1.0, and is kept to show how. Do not run it again.

    python -m tests.data.make_format_1_0 FOLDER

What lies in format-1.0 was written by the code of its time; `tests/test_kept_formats.py` checks that later code still
reads it and finds the same numbers. Written anew by later code, it would show nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import deadtok_xr as dx
from tests import snapshot_recordings as recordings

ANALYSES = ("motion", "phases", "lifecycle", "kinematics", "topology", "census")
RESULTS = ("motion", "phases", "census")
PRECISION = {"float32": "float32"}


def main(folder: Path) -> None:
    """Write all stores, results of one, and expected.json."""
    folder.mkdir()
    os.chdir(folder)  # so that no path of this machine is written down
    with tempfile.TemporaryDirectory() as temporary:
        _convert(Path(temporary))
    recordings.recorded(Path("recorded.zarr"), steps=20)
    _copy_in_the_middle(Path("unfinished.zarr"))
    expected: dict[str, Any] = {"made_with": f"deadtok_xr {dx.__version__}", "stores": {}}
    for path in sorted(Path().glob("*.zarr")):
        expected["stores"][path.stem] = _store(path, partial=path.stem == "unfinished")
    tree = dx.save_results(dx.analyze("recorded.zarr", analyses=RESULTS), "results.zarr")
    expected["results"] = {name: _arrays(node.to_dataset()) for name, node in tree.children.items()}
    text = json.dumps(expected, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)  # a list in a line
    Path("expected.json").write_text(text + "\n")


def _convert(temporary: Path) -> None:
    dtypes = {"bfloat16": (recordings.BFLOAT16, 140), "float16": (np.float16, 20), "float32": (np.float32, 20)}
    labels = {"dead_ids": recordings.DEAD_IDS}
    for seed, (name, (dtype, n_steps)) in enumerate(dtypes.items()):
        w = recordings.with_edges(recordings.walk(dtype, n_steps, seed))
        source = recordings.save_npz(temporary / f"{name}.npz", {"W": w, **_extras(w, seed), **labels})
        dx.convert(source, f"{name}.zarr")
    dx.convert(temporary / "bfloat16.npz", "sharded.zarr", shard="64kB", drop=["grad"])
    several = np.stack([recordings.walk(recordings.BFLOAT16, 20, seed) for seed in (5, 6)])
    source = recordings.save_npz(temporary / "runs.npz", {"W": several, "n_runs": np.array(2), **labels})
    dx.convert(source, "runs.zarr", axis="run")
    invalid = recordings.with_invalid(recordings.walk(recordings.BFLOAT16, 50, 8))
    dx.convert(recordings.save_npz(temporary / "invalid.npz", {"W": invalid}), "invalid.zarr")


def _extras(w: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    return {k: v for k, v in recordings.extras(w, seed).items() if k in ("grad", "loss", "lr", "h_mean")}


def _copy_in_the_middle(path: Path) -> None:
    """Copy a store while it is being recorded, after 140 of its updates."""
    torch.manual_seed(1)
    weight = torch.nn.Parameter(0.02 * torch.randn(12, 4).to(torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=1e-3)
    with (
        tempfile.TemporaryDirectory() as temporary,
        dx.Recorder(weight, optimizer, f"{temporary}/run.zarr") as recorder,
    ):
        for step in range(150):
            weight.grad = torch.randn(12, 4).to(torch.bfloat16)
            optimizer.step()
            recorder.log(loss=1 / (step + 1))
            if step == 140:
                time.sleep(2)  # it writes beside the training
                shutil.copytree(f"{temporary}/run.zarr", path)


def _store(path: Path, *, partial: bool) -> dict[str, Any]:
    ds = dx.open_recording(path, raw=True, partial=partial)
    one = dx.open_recording(path, partial=partial)
    tree = dx.analyze(
        one.isel(run=1) if "run" in one.dims else one, analyses=ANALYSES, precision=PRECISION.get(path.stem)
    )
    numbers = {
        f"{group}/{name}": _numbers(x)
        for group, node in tree.children.items()
        for name, x in node.to_dataset().data_vars.items()
        if set(x.dims) <= {"step", "token", "phase"} and len(x.dims) < 3
    }
    return {"sizes": dict(ds.sizes), "arrays": _arrays(ds), "analyses": numbers}


def _arrays(ds: xr.Dataset) -> dict[str, Any]:
    found = {}
    for name, variable in sorted(ds.compute().variables.items(), key=str):
        text = variable.dtype.kind in "OTU"
        data = "\0".join(variable.values.tolist()).encode() if text else np.ascontiguousarray(variable.values).tobytes()
        kind = "text" if text else str(variable.dtype)
        found[str(name)] = {"dims": variable.dims, "dtype": kind, "sha256": hashlib.sha256(data).hexdigest()}
    return found


def _numbers(x: xr.DataArray) -> dict[str, Any]:
    """A few values of a result: their places in the flattened array, and the values."""
    flat = x.values.ravel()
    places = np.unique(np.linspace(0, flat.size - 1, min(flat.size, 8)).astype(int)).tolist()
    values = [float(f"{v:.9g}") if flat.dtype.kind == "f" else int(v) for v in flat[places]]
    return {"shape": x.shape, "dtype": str(flat.dtype), "places": places, "values": values}


if __name__ == "__main__":
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        main(Path(sys.argv[1]))
