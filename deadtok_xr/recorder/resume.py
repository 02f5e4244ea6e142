"""Find the step from which a recording is resumed, after a training was restored from a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from deadtok_xr import schema, store
from deadtok_xr.errors import InputError
from deadtok_xr.recorder.appender import Appender
from deadtok_xr.recorder.host_buffers import to_numpy
from deadtok_xr.recorder.recorded_parameter import RecordedParameter


def resume_position(
    appender: Appender,
    recorded: list[RecordedParameter],
    values: Mapping[str, Any],
    token_table: store.TokenTable,
    updates: int | None,
) -> tuple[int, int]:
    """Return the step that the training is at, and how many steps of the store to keep.

    Parameters
    ----------
    appender
        The store.
    recorded, token_table
        The parameters and tokens to be recorded.
    values
        The present values of the parameters, whole tensors by name.
    updates
        How many updates were made; None if that is unknown: then as many as the store holds.

    Raises
    ------
    InputError
        If the store is of another run: with another optimizer, other shapes or dtypes, or other weights at the step.
    """
    path = appender.root
    _check_same_settings(appender, recorded)
    steps = appender.steps()
    step = int(steps[-1]) if updates is None else updates
    if step in steps:
        position = int(np.flatnonzero(steps == step)[0])
        for r in recorded:
            now = to_numpy(values[r.name])[token_table.tokens]
            if appender.read_step(r.name, position).tobytes() != now.tobytes():
                raise InputError(
                    f"{path}: {r.name} of step {step} differs from the parameter's present values, so the recording is "
                    "of another run or of another step: load the checkpoint before the Recorder is entered, give "
                    "first_step= if the optimizer does not count its updates, or choose another store"
                )
        return step, position + 1
    if step < steps[-1]:
        raise InputError(
            f"{path} has no step {step}, but steps up to {steps[-1]}, so it cannot be checked that it is of this run: "
            "resume from a checkpoint of a recorded step, or choose another store"
        )
    if "recorded_every" not in appender.group.attrs and "recorded_steps" not in appender.group.attrs:
        warnings.warn(
            f"{path} ends at step {steps[-1]} and the training resumes at step {step}: the steps between are missing",
            UserWarning,
            stacklevel=4,
        )
    return step, len(steps)


def _check_same_settings(appender: Appender, recorded: list[RecordedParameter]) -> None:
    """Raise an error if the store was recorded with another optimizer, dtype, shape or list of variables."""
    attrs, path, first = appender.group.attrs, appender.root, recorded[0]
    variables = attrs.get("recorded_variables") or [
        name for name, array in appender.group.arrays() if store.dimensions(array) == schema.MATRIX
    ]
    found = {
        "optimizer": attrs.get("optimizer"),
        "dtype": attrs.get("parameter_dtype"),
        "shape": attrs.get("parameter_shape"),
        "variables": sorted(map(str, variables)),  # type: ignore[arg-type]
    }
    expected = {
        "optimizer": type(first.optimizer).__name__,
        "dtype": str(first.parameter.dtype).removeprefix("torch."),
        "shape": list(first.parameter.shape),
        "variables": sorted(name for r in recorded for name in r.variables),
    }
    for what, value in expected.items():
        if found[what] != value:
            raise InputError(
                f"{path} was recorded with the {what} {found[what]}; this Recorder has {value}: resume with the same "
                f"{what}, or choose another store"
            )
