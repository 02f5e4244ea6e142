"""Makes format-1.0/interrupted with the release 0.1.0 as it was before its rooms: a conversion killed in the middle."""

import os
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import deadtok_xr as dx

W = (np.random.default_rng(0).standard_normal((300, 4, 2)) * 0.02).astype("f4").astype(ml_dtypes.bfloat16)
written = 0


def dying(move: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that moves files, and ends the process at the second chunk of W."""

    def moved(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        global written
        written += "/W/c/" in str(target)
        return move(source, target, *args, **kwargs) if written < 2 else os._exit(9)

    return moved


if __name__ == "__main__":
    np.savez("run.npz", W=W.view("u2"))
    os.replace, os.rename = dying(os.replace), dying(os.rename)
    dx.convert("run.npz", "run.zarr")
