"""Checks of the arguments of a Recorder; each function returns its argument in the form that the recorder uses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from deadtok_xr import schema, store
from deadtok_xr.errors import InputError
from deadtok_xr.recorder.host_buffers import to_numpy
from deadtok_xr.recorder.recorded_parameter import RECORDABLE, RecordedParameter
from deadtok_xr.recorder.sampled_parameters import SampledParameters
from deadtok_xr.recorder.schedule import is_integer

if TYPE_CHECKING:
    import torch


def copy_value(value: Any, dtype: Any) -> tuple[Any, tuple[int, ...] | None]:
    """Return a copy of a logged value and its shape, or None for both if it is not numeric; on a GPU it stays there."""
    if hasattr(value, "detach") and value.device.type != "cpu":
        return value.detach().clone(), tuple(value.shape)
    try:
        array = np.array(to_numpy(value) if hasattr(value, "detach") else value, dtype)  # the loop may reuse a tensor
    except (TypeError, ValueError):
        return None, None
    return (None, None) if value is None else (array, array.shape)


def check_first_step(first: int | None) -> int | None:
    """Check ``first_step``."""
    if first is not None and (not is_integer(first) or first < 0):
        raise InputError(f"first_step={first!r}; expected the number of updates made before, 0 or more")
    return first


def check_memory(memory: int) -> int:
    """Check ``memory``."""
    if not is_integer(memory) or memory <= 0:
        raise InputError(f"memory={memory!r}; expected a number of bytes, such as 2**30")
    return memory


def check_flush_every(seconds: float | None) -> float | None:
    """Check ``flush_every``."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise InputError(f"flush_every={seconds!r}; expected a number of seconds, such as 60, or None")
    return float(seconds)


def check_variables(variables: Any) -> tuple[str, ...]:
    """Return the kinds of variables to record, without repetitions."""
    found = (variables,) if isinstance(variables, str) else tuple(variables or ())
    unknown = [v for v in found if v not in RECORDABLE]
    if unknown or not found:
        raise InputError(f"cannot record {unknown[0] if unknown else ''!r}: choose from {', '.join(RECORDABLE)}")
    return tuple(dict.fromkeys(found))


def check_path(path: Any) -> Path:
    """Return ``path`` as a path on this machine."""
    if not isinstance(path, (str, Path)) or not str(path):
        raise InputError(f"path={path!r}; expected the folder to write, such as 'run.zarr'")
    if "://" in str(path):
        raise InputError(f"{path} is an address; expected a path on this machine")
    return Path(path)


def unwrap_optimizer(optimizer: Any) -> Any:
    """Return the torch optimizer that Accelerate or Lightning wraps, or the optimizer itself."""
    inner = getattr(optimizer, "optimizer", None)
    found = inner if hasattr(inner, "param_groups") else optimizer
    if not hasattr(found, "param_groups") or not hasattr(found, "register_step_pre_hook"):
        raise InputError(f"the optimizer is a {type(optimizer).__name__}; expected a torch optimizer")
    return found


def check_scaler(scaler: Any) -> Any:
    """Check ``scaler``: a GradScaler, or None."""
    if scaler is not None and not callable(getattr(scaler, "step", None)):
        raise InputError(f"scaler is a {type(scaler).__name__}; expected the loop's GradScaler, or None")
    return scaler


_RESERVED = (
    "deadtok_format", "complete", "deadtok_manifest", "index_convention", "created", "software", "made_by",
    "recorded_variables", "parameter_dtype", "parameter_shape",
)  # fmt: skip


def json_attributes(attrs: Any) -> dict[str, Any]:
    """Return attributes in JSON's types: numbers and arrays of NumPy and torch, and paths, are converted."""
    if not isinstance(attrs, Mapping):
        raise InputError(f"attrs is a {type(attrs).__name__}; expected a mapping of names to values")
    found = {}
    for name, value in attrs.items():
        if name in _RESERVED:
            raise InputError(f"attrs={{{name!r}: ...}}: the recorder writes {name!r} itself; choose another name")
        try:
            found[str(name)] = json.loads(json.dumps(value, default=_plain))
        except (TypeError, ValueError):
            raise InputError(
                f"attrs={{{name!r}: ...}} is a {type(value).__name__}, which JSON cannot hold; expected text, numbers, "
                "lists or mappings of them"
            ) from None
    return found


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError


_NAME = re.compile(r"(?!zarr\.json$)\w[\w.-]*", re.ASCII)


def check_name(name: str) -> str:
    """Check the name of a logged value, which becomes the name of an array and of its folder."""
    if not _NAME.fullmatch(name):
        raise InputError(f"log({name!r}=...): expected a name of letters, digits, '_', '-' and '.', such as 'loss_a'")
    return name


def recorded_parameters(
    parameter: torch.nn.Parameter | SampledParameters,
    also: Mapping[str, torch.nn.Parameter],
    optimizer: Any,
    kinds: tuple[str, ...],
) -> list[RecordedParameter]:
    """Return W and the parameters in ``also``, each checked."""
    if isinstance(parameter, SampledParameters):
        return [cast(RecordedParameter, parameter)]  # it has the same interface
    if not isinstance(also, Mapping):
        raise InputError(f"also is a {type(also).__name__}; expected parameters by name, such as {{'E': wte.weight}}")
    found = [RecordedParameter("W", parameter, optimizer, kinds)]
    for name, other in also.items():
        if name in {*schema.VARIABLES, *schema.COORDINATES} - {"E"} or not name.isidentifier():
            raise InputError(f"also={{{name!r}: ...}}: the name is reserved; choose another, such as 'E'")
        found.append(RecordedParameter(name, other, optimizer, kinds))
        if (other.shape, other.device) != (parameter.shape, parameter.device):
            raise InputError(
                f"{name} has the shape {tuple(other.shape)} on {other.device}; expected {tuple(parameter.shape)} on "
                f"{parameter.device}, as for W; record it with another Recorder"
            )
        if other is parameter:
            raise InputError(f"{name} is the same parameter as W, so the model is tied: leave also= out")
    return found


def token_table(
    n: int, rows: Iterable[int] | str | None, dead: Iterable[int] | None, text: Sequence[str] | None
) -> store.TokenTable:
    """Return the tokens to record, with dead mask and texts."""
    if text is not None and (isinstance(text, str) or not all(isinstance(t, str) for t in text)):
        raise InputError("token_text holds values that are not text; expected a list with one text per row")
    mask = None if dead is None else np.zeros(n, bool)
    if mask is not None:
        mask[_ids(dead, "dead ids", n)] = True
    if text is not None and len(text) != n:
        raise InputError(f"token_text has {len(text)} entries; expected one per row, {n}")
    if isinstance(rows, str) and rows != "dead":
        raise InputError(f"rows={rows!r}; expected 'dead', vocabulary ids, or None for all")
    if isinstance(rows, str) and mask is None:
        raise InputError("rows='dead' needs to know the dead tokens: give dead= too, or vocabulary ids as rows=")
    if rows is None:
        return store.TokenTable(np.arange(n), mask, text)
    ids = np.flatnonzero(mask) if isinstance(rows, str) else _ids(rows, "rows", n)  # type: ignore[arg-type]
    if not ids.size:
        raise InputError("rows names no token; expected at least one vocabulary id")
    if len(np.unique(ids)) < len(ids):
        values, counts = np.unique(ids, return_counts=True)
        raise InputError(f"rows names token {values[counts > 1][0]} twice; expected each once")
    chosen = None if text is None else [text[i] for i in ids]
    return store.TokenTable(ids, None if mask is None else mask[ids], chosen, rows_are_ids=True)


def _ids(ids: Any, what: str, n: int) -> NDArray[np.int64]:
    """Return vocabulary ids as an array; a mask with one bool per row is converted."""
    try:
        found = np.asarray(ids.tolist() if hasattr(ids, "tolist") else list(ids))
    except TypeError:
        found = np.asarray(ids)
    expected = f"expected vocabulary ids from 0 to {n - 1}, or one bool per row"
    if found.ndim != 1:
        raise InputError(f"{what}: found {type(ids).__name__} of the shape {found.shape}; {expected}")
    if found.dtype == bool:
        if len(found) != n:
            raise InputError(f"{what}: found {len(found)} bools; {expected}, {n}")
        return np.flatnonzero(found)
    if found.size and (found.dtype.kind not in "iuf" or (found != np.floor(found)).any()):
        invalid = found if found.dtype.kind not in "iuf" else found[found != np.floor(found)]
        raise InputError(f"{what}: found {invalid.tolist()[0]!r}; {expected}")
    found = found.astype(np.int64)
    if found.size and (found.min() < 0 or found.max() >= n):
        raise InputError(f"{what} lie between {found.min()} and {found.max()}; expected 0 to {n - 1}")
    return found
