"""Values that a training loop logs: checked and copied when they are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deadtok_xr import schema
from deadtok_xr.errors import InputError
from deadtok_xr.recorder import validation
from deadtok_xr.recorder.attributes import scheduled_settings
from deadtok_xr.recorder.host_buffers import Column
from deadtok_xr.recorder.recorded_parameter import RecordedParameter
from deadtok_xr.recorder.session import Session

_MATRICES = [name for name, v in schema.VARIABLES.items() if v.dims == schema.MATRIX]
_NOT_LOGGED = {*_MATRICES, *schema.COORDINATES, "dim", "run", "lr", "skipped", "skipped_before"}


class LoggedValues:
    """The names and shapes of what is logged."""

    def __init__(self, recorded: Sequence[RecordedParameter]) -> None:
        self._recorded = recorded
        self._shapes: dict[str, tuple[int, ...]] = {}

    def checked_copy(self, session: Session, name: str, value: Any) -> Any:
        """Return a copy of a logged value after checking it, so that errors occur now and not after the training."""
        validation.check_name(name)
        reserved = {*_NOT_LOGGED, *(v for r in self._recorded for v in (*r.variables, f"lr{r.suffix}"))}
        if name in reserved or name in scheduled_settings(self._recorded[0].group):
            raise InputError(f"log({name}=...): the recorder writes {name!r} itself; leave it out, or rename it")
        spec = schema.VARIABLES.get(name)
        dtype = np.float32 if spec else np.float64
        copy, shape = validation.copy_value(value, dtype)
        if shape is None or len(shape) > 1 or shape == (0,):
            found = type(value).__name__ if shape is None else f"the shape {shape}"
            raise InputError(f"log({name}=...): found {found}; expected a scalar or a vector of numbers")
        required = None if spec is None else (self._recorded[0].parameter.shape[1],) if "dim" in spec.dims else ()
        if required is not None and shape != required:
            raise InputError(f"log({name}=...): found the shape {shape}; expected {required}")
        earlier = session.appender.array(name)
        known = self._shapes.setdefault(name, shape if earlier is None else tuple(earlier.shape[1:]))
        if shape != known:
            raise InputError(f"log({name}=...): found the shape {shape}; expected {known}, as before")
        dims = spec.dims if spec else ("step", f"{name}_component") if shape else ("step",)
        session.columns.setdefault(name, Column(dims, shape, dtype))
        return copy
