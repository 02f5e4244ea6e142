"""Small files as other programs leave them, at the paths and with the right values that `test_cases` expects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.conversion import foreign_arrays, foreign_checkpoints, foreign_runs

Array = NDArray[Any]
BUILDERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    "01-npz": foreign_arrays.npz,
    "02-hdf5": foreign_arrays.hdf5,
    "03-zarr": foreign_arrays.zarr,
    "04-nanogpt": foreign_runs.nanogpt,
    "06-ranks": foreign_checkpoints.ranks,
    "08-lightning": foreign_checkpoints.lightning,
    "10-frozen": foreign_runs.frozen,
    "11-transposed": foreign_checkpoints.transformer_lens,
    "12-families": foreign_checkpoints.families,
    "13-step-names": foreign_checkpoints.step_names,
    "17-per-step": foreign_arrays.per_step,
    "23-labels": foreign_arrays.labels,
}


def build(where: Path) -> Path:
    """Write every kind of file below a folder, and the right values to ``right/``, bfloat16 as its bits."""
    (where / "right").mkdir(parents=True)
    for name, make in BUILDERS.items():
        (where / name).mkdir()
        right = {k: v.view(np.uint16) if v.dtype == ml_dtypes.bfloat16 else v for k, v in make(where / name).items()}
        np.savez(where / "right" / f"{name}.npz", **right)
    return where
