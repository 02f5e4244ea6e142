"""What a caller gives a Recorder: checked, and in the form that the recorder works with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr import schema, store
from deadtok_xr.errors import InputError
from deadtok_xr.recorder.block import to_numpy
from deadtok_xr.recorder.followed import Followed

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
    if first is not None and first < 0:
        raise InputError(f"first_step={first}; needed: the number of updates made before, 0 or more")
    return first


def all_followed(
    parameter: torch.nn.Parameter, also: Mapping[str, torch.nn.Parameter], optimizer: Any, kinds: tuple[str, ...]
) -> list[Followed]:
    """W and the parameters beside it, each checked."""
    found = [Followed("W", parameter, optimizer, kinds)]
    for name, other in also.items():
        if name in {*schema.VARIABLES, *schema.COORDINATES} - {"E"} or not name.isidentifier():
            raise InputError(f"also={{{name!r}: ...}}: the name has a meaning of its own; choose another, such as 'E'")
        found.append(Followed(name, other, optimizer, kinds))
        if (other.shape, other.device) != (parameter.shape, parameter.device):
            raise InputError(
                f"{name} has the shape {tuple(other.shape)} on {other.device}; needed: {tuple(parameter.shape)} on "
                f"{parameter.device}, as W; record it by a Recorder of its own"
            )
        if other is parameter:
            raise InputError(f"{name} is W itself, so the model is tied: leave also= out")
    return found


def recorded_rows(
    n: int, rows: Iterable[int] | str | None, dead: Iterable[int] | None, text: Sequence[str] | None
) -> store.Rows:
    """The tokens to record, and what is known of them."""
    mask = None if dead is None else np.zeros(n, bool)
    if mask is not None:
        mask[_ids(dead, "dead ids", n)] = True
    if text is not None and len(text) != n:
        raise InputError(f"token_text has {len(text)} entries; needed: one per row, {n}")
    if isinstance(rows, str) and rows != "dead":
        raise InputError(f"rows={rows!r}; needed: 'dead', vocabulary ids, or None for all")
    if isinstance(rows, str) and mask is None:
        raise InputError("rows='dead' takes the dead tokens: give dead= too, or vocabulary ids as rows=")
    if rows is None:
        return store.Rows(np.arange(n), mask, text)
    ids = np.flatnonzero(mask) if isinstance(rows, str) else _ids(rows, "rows", n)  # type: ignore[arg-type]
    if not ids.size:
        raise InputError("rows names no token; needed: at least one vocabulary id")
    chosen = None if text is None else [text[i] for i in ids]
    return store.Rows(ids, None if mask is None else mask[ids], chosen, are_ids=True)


def _ids(ids: Any, what: str, n: int) -> NDArray[np.int64]:
    found = np.asarray(list(ids), np.int64)
    if found.size and (found.min() < 0 or found.max() >= n):
        raise InputError(f"{what} lie between {found.min()} and {found.max()}; needed: 0 to {n - 1}")
    return found
