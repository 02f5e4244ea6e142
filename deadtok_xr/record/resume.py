"""Where a training that was brought back from a checkpoint goes on in its recording."""

from __future__ import annotations

import warnings

import numpy as np

from deadtok_xr import schema, store
from deadtok_xr.errors import InputError
from deadtok_xr.record.appender import Appender
from deadtok_xr.record.host_buffers import to_numpy
from deadtok_xr.record.recorded_parameter import Followed


def place_to_go_on(
    appender: Appender, followed: list[Followed], rows: store.TokenTable, updates: int | None
) -> tuple[int, int]:
    """The step that the training is at, and how many steps of the store to keep.

    Parameters
    ----------
    updates
        How many updates were made; None where that is not known: as many as were recorded.

    Raises
    ------
    InputError
        If the store is of another run, which is seen by its optimizer, shapes, dtypes, and by the very weights.
    """
    path = appender.root
    _check_kind(appender, followed)
    steps = appender.steps()
    step = int(steps[-1]) if updates is None else updates
    if step in steps:
        position = int(np.flatnonzero(steps == step)[0])
        for f in followed:
            now = to_numpy(f.parameter)[rows.tokens]
            if appender.last(f.name, position).tobytes() != now.tobytes():
                raise InputError(
                    f"{path}: {f.name} of step {step} is not what the parameter holds now, so the recording is of "
                    "another run or of another step: load the checkpoint before the Recorder is entered, give "
                    "first_step= if the optimizer does not count, or name another store"
                )
        return step, position + 1
    if step < steps[-1]:
        raise InputError(
            f"{path} has no step {step}, but steps up to {steps[-1]}; whether it is of this run cannot be seen: go on "
            "from a checkpoint of a recorded step, or name another store"
        )
    if "recorded_every" not in appender.group.attrs and "recorded_steps" not in appender.group.attrs:
        warnings.warn(
            f"{path} ends at step {steps[-1]} and the training goes on from {step}: the steps between are missing",
            UserWarning,
            stacklevel=4,
        )
    return step, len(steps)


def _check_kind(appender: Appender, followed: list[Followed]) -> None:
    f, attrs, path = followed[0], appender.group.attrs, appender.root
    names = [name for g in followed for name in g.variables]
    recorded = attrs.get("recorded_variables") or [
        name for name, array in appender.group.arrays() if store.dimensions(array) == schema.MATRIX
    ]
    found = {
        "optimizer": attrs.get("optimizer"),
        "dtype": attrs.get("parameter_dtype"),
        "shape": attrs.get("parameter_shape"),
        "variables": sorted(map(str, recorded)),  # type: ignore[arg-type]
    }
    needed = {
        "optimizer": type(f.optimizer).__name__,
        "dtype": str(f.parameter.dtype).removeprefix("torch."),
        "shape": list(f.parameter.shape),
        "variables": sorted(names),
    }
    for what, value in needed.items():
        if found[what] != value:
            raise InputError(
                f"{path} was recorded with the {what} {found[what]}; this Recorder has {value}: resume with what the "
                "recording began with, or name another store"
            )
