"""What a caller gives a Recorder: checked, and in the form that the recorder works with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr import schema, store
from deadtok_xr.errors import InputError
from deadtok_xr.record.host_buffers import to_numpy
from deadtok_xr.record.recorded_parameter import RECORDABLE, Followed
from deadtok_xr.record.schedule import whole

if TYPE_CHECKING:
    import torch


def copied(value: Any, dtype: Any) -> tuple[Any, tuple[int, ...] | None]:
    """A copy of a logged value, and its shape; None if it is no number. What lies on a GPU stays there for now."""
    if hasattr(value, "detach") and value.device.type != "cpu":
        return value.detach().clone(), tuple(value.shape)
    try:
        array = np.array(to_numpy(value) if hasattr(value, "detach") else value, dtype)  # the loop may reuse a tensor
    except (TypeError, ValueError):
        return None, None
    return (None, None) if value is None else (array, array.shape)


def checked_first(first: int | None) -> int | None:
    """``first_step``, if it can be one."""
    if first is not None and (not whole(first) or first < 0):
        raise InputError(f"first_step={first!r}; expected the number of updates made before, 0 or more")
    return first


def checked_memory(memory: int) -> int:
    """``memory``, if it is a size."""
    if not whole(memory) or memory <= 0:
        raise InputError(f"memory={memory!r}; expected a number of bytes, such as 2**30")
    return memory


def checked_variables(variables: Any) -> tuple[str, ...]:
    """What is to be recorded, each once."""
    found = (variables,) if isinstance(variables, str) else tuple(variables or ())
    unknown = [v for v in found if v not in RECORDABLE]
    if unknown or not found:
        raise InputError(f"cannot record {unknown[0] if unknown else ''!r}: choose from {', '.join(RECORDABLE)}")
    return tuple(dict.fromkeys(found))


def local_path(path: Any) -> Path:
    """Where to write."""
    if not isinstance(path, (str, Path)) or not str(path):
        raise InputError(f"path={path!r}; expected the folder to write, such as 'run.zarr'")
    if "://" in str(path):
        raise InputError(f"{path} is an address; expected a path on this machine")
    return Path(path)


def inner_optimizer(optimizer: Any) -> Any:
    """The torch optimizer itself: Accelerate and Lightning call the step of the one that they wrap."""
    inner = getattr(optimizer, "optimizer", None)
    found = inner if hasattr(inner, "param_groups") else optimizer
    if not hasattr(found, "param_groups") or not hasattr(found, "register_step_pre_hook"):
        raise InputError(f"the optimizer is a {type(optimizer).__name__}; expected a torch optimizer")
    return found


def checked_scaler(scaler: Any) -> Any:
    """A GradScaler, or None."""
    if scaler is not None and not callable(getattr(scaler, "step", None)):
        raise InputError(f"scaler is a {type(scaler).__name__}; expected the loop's GradScaler, or None")
    return scaler


_OF_THE_STORE = (
    "deadtok_format", "complete", "index_convention", "created", "software", "made_by", "recorded_variables",
    "parameter_dtype", "parameter_shape",
)  # fmt: skip


def plain_attrs(attrs: Any) -> dict[str, Any]:
    """Facts as JSON has them: numbers and arrays of NumPy and torch, and paths, in its own types."""
    if not isinstance(attrs, Mapping):
        raise InputError(f"attrs is a {type(attrs).__name__}; expected a mapping of names to facts")
    found = {}
    for name, value in attrs.items():
        if name in _OF_THE_STORE:
            raise InputError(f"attrs={{{name!r}: ...}}: the store says {name!r} itself; choose another name")
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


def checked_name(name: str) -> str:
    """The name of a logged value: it is that of an array, and of a folder."""
    if not _NAME.fullmatch(name):
        raise InputError(f"log({name!r}=...): expected a name of letters, digits, '_', '-' and '.', such as 'loss_a'")
    return name


def all_followed(
    parameter: torch.nn.Parameter, also: Mapping[str, torch.nn.Parameter], optimizer: Any, kinds: tuple[str, ...]
) -> list[Followed]:
    """W and the parameters beside it, each checked."""
    if not isinstance(also, Mapping):
        raise InputError(f"also is a {type(also).__name__}; expected parameters by name, such as {{'E': wte.weight}}")
    found = [Followed("W", parameter, optimizer, kinds)]
    for name, other in also.items():
        if name in {*schema.VARIABLES, *schema.COORDINATES} - {"E"} or not name.isidentifier():
            raise InputError(f"also={{{name!r}: ...}}: the name has a meaning of its own; choose another, such as 'E'")
        found.append(Followed(name, other, optimizer, kinds))
        if (other.shape, other.device) != (parameter.shape, parameter.device):
            raise InputError(
                f"{name} has the shape {tuple(other.shape)} on {other.device}; expected {tuple(parameter.shape)} on "
                f"{parameter.device}, as W; record it by a Recorder of its own"
            )
        if other is parameter:
            raise InputError(f"{name} is W itself, so the model is tied: leave also= out")
    return found


def recorded_rows(
    n: int, rows: Iterable[int] | str | None, dead: Iterable[int] | None, text: Sequence[str] | None
) -> store.TokenTable:
    """The tokens to record, and what is known of them."""
    if text is not None and (isinstance(text, str) or not all(isinstance(t, str) for t in text)):
        raise InputError("token_text holds other things than text; expected a list of one text per row")
    mask = None if dead is None else np.zeros(n, bool)
    if mask is not None:
        mask[_ids(dead, "dead ids", n)] = True
    if text is not None and len(text) != n:
        raise InputError(f"token_text has {len(text)} entries; expected one per row, {n}")
    if isinstance(rows, str) and rows != "dead":
        raise InputError(f"rows={rows!r}; expected 'dead', vocabulary ids, or None for all")
    if isinstance(rows, str) and mask is None:
        raise InputError("rows='dead' takes the dead tokens: give dead= too, or vocabulary ids as rows=")
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
    """Vocabulary ids, also of a mask with a bool per row."""
    try:
        found = np.asarray(ids.tolist() if hasattr(ids, "tolist") else list(ids))
    except TypeError:
        found = np.asarray(ids)
    needed = f"expected vocabulary ids from 0 to {n - 1}, or one bool per row"
    if found.ndim != 1:
        raise InputError(f"{what}: found {type(ids).__name__} of the shape {found.shape}; {needed}")
    if found.dtype == bool:
        if len(found) != n:
            raise InputError(f"{what}: found {len(found)} bools; {needed}, {n}")
        return np.flatnonzero(found)
    if found.size and (found.dtype.kind not in "iuf" or (found != np.floor(found)).any()):
        wrong = found if found.dtype.kind not in "iuf" else found[found != np.floor(found)]
        raise InputError(f"{what}: found {wrong.tolist()[0]!r}; {needed}")
    found = found.astype(np.int64)
    if found.size and (found.min() < 0 or found.max() >= n):
        raise InputError(f"{what} lie between {found.min()} and {found.max()}; expected 0 to {n - 1}")
    return found
