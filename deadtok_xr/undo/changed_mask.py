"""Say which bfloat16 values of a parameter the last update changed, without a copy of the old ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from deadtok_xr.errors import InputError
from deadtok_xr.undo import bounds, forward
from deadtok_xr.undo.last_update import LastUpdate, last_update

_TILE_ON_CPU = 2**15
"""Values of a tile; torch does not divide operations of this size among threads, which would wait for each other."""
_TILE = 2**24
_TOGETHER = 2**20


def changed_mask(parameter: Tensor, optimizer: Any, *, lr: float | None = None) -> Tensor:
    """Say which bfloat16 values of a parameter differ from those before the optimizer's last step.

    The mask contains every value that changed, and few others. It is computed from the parameter and the state of the
    optimizer after the step, in one pass; no copy of the old values is needed. Call it after ``optimizer.step()`` and
    before the next one. For a float32 parameter, the mask is about its values rounded to bfloat16, as an inference
    engine receives them.

    Parameters
    ----------
    parameter
        A parameter in float32 or bfloat16, on any device. Of a DTensor, this rank's shard is examined.
    optimizer
        Its optimizer: torch's AdamW, Adam (also with amsgrad, maximize or weight decay) or SGD with momentum; single,
        foreach, fused or capturable. Wrappers of Accelerate and Lightning are accepted.
    lr
        The learning rate of the step. Required if a schedule of torch is attached to the optimizer, since the rate of
        the parameter group may be that of the next step already. Required as well, without being noticed, if your own
        loop has changed that rate since the step: with the wrong one, the mask misses values.

    Returns
    -------
    torch.Tensor
        bool, of the shape of the parameter and on its device. False everywhere if the optimizer has never updated the
        parameter. -0 and +0 are equal; NaN differs from every value.

    Raises
    ------
    InputError
        For an optimizer or a setting whose update cannot be undone: SGD without momentum or with nesterov, another
        optimizer; for a parameter of another dtype; or if ``lr`` is required.

    Notes
    -----
    Every value that changed is marked (recall 1), because the old value is bounded by the roundings of the update. In
    fused bfloat16, momentum that was rounded to zero counts as zero.

    Marked although they did not change are values of which another old value would have led to the same new one. In
    float32 these are a few in a million. In bfloat16, they are above all values at a power of two that were pushed away
    from zero by less than half the gap: a norm weight of 1.0 may have come from 0.996.

    It has been tested on CPUs; on a GPU the same bounds hold, but no run has confirmed it.

    The state tells of the last update of *this* parameter: if it had no gradient at the last step, or a GradScaler
    skipped the step, the mask is that of an earlier update.

    Examples
    --------
    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 0.01]))
    >>> optimizer = torch.optim.AdamW([w], lr=1e-3)
    >>> w.grad = torch.ones(2)
    >>> optimizer.step()
    >>> changed_mask(w, optimizer)  # bfloat16 has no number between 1.0 and 0.996
    tensor([False,  True])
    """
    _check(parameter)
    last = last_update(parameter, optimizer, lr)
    w = _local(parameter.detach())
    out = torch.zeros(w.shape, dtype=torch.bool, device=w.device)
    if last is None or not w.numel():
        return out
    decay = last.lr * last.settings.decoupled_decay
    if not (math.isfinite(last.lr) and decay < 1):
        raise InputError(
            f"changed_mask: the learning rate {last.lr} with a weight decay of {last.settings.weight_decay} leaves "
            "nothing of the old values: keep a copy of them before the step and compare"
        )
    state = {name: _local(x).detach().reshape(-1) for name, x in last.state.items()}
    _fill(out.view(-1), w.reshape(-1), state, last)
    return out


def _check(parameter: Tensor) -> None:
    if not isinstance(parameter, torch.Tensor):
        raise InputError(f"changed_mask takes a parameter, not a {type(parameter).__name__}: pass the tensor itself")
    if parameter.dtype not in (torch.float32, torch.bfloat16):
        name = str(parameter.dtype).removeprefix("torch.")
        raise InputError(f"changed_mask: the parameter has the dtype {name}; expected: float32 or bfloat16")
    if parameter.device.type == "meta":
        raise InputError("changed_mask: the parameter is on the device meta and has no values")


def _local(x: Tensor) -> Tensor:
    return x.to_local() if hasattr(x, "to_local") else x  # type: ignore[no-any-return]


def _fill(out: Tensor, w: Tensor, state: dict[str, Tensor], last: LastUpdate) -> None:
    """Fill the mask tile by tile."""
    if w.dtype == torch.float32:
        _fill_float32(out, w, state, last)
        return
    rule = bounds.may_have_changed_fused if last.settings.fused else forward.may_have_changed
    _for_tiles(w, lambda at: out[at].copy_(rule(w[at], {name: x[at] for name, x in state.items()}, last)))


def _fill_float32(out: Tensor, w: Tensor, state: dict[str, Tensor], last: LastUpdate) -> None:
    """Decide most values at first sight, and the others together."""

    def decide(at: slice) -> Tensor:
        changed, unclear = bounds.at_first_sight(w[at], {name: x[at] for name, x in state.items()}, last)
        out[at] = changed
        return unclear.nonzero().squeeze(1) + at.start

    unclear = torch.cat(_for_tiles(w, decide))
    for at in unclear.split(_TOGETHER):
        out[at] = bounds.may_have_changed(w[at], {name: x[at] for name, x in state.items()}, last)


def _for_tiles(w: Tensor, work: Callable[[slice], Any]) -> list[Any]:
    """Call a function for each tile: on a CPU for small ones, which stay in the cache, on torch's number of threads."""
    on_cpu = w.device.type == "cpu"
    size = _TILE_ON_CPU if on_cpu else _TILE
    tiles = [slice(i, min(i + size, len(w))) for i in range(0, len(w), size)]
    if not on_cpu or len(tiles) < 2:
        return [work(tile) for tile in tiles]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(work, tiles))
