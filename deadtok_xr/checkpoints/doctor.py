"""Say which values of a checkpoint cannot move at a learning rate, and which changed up to a later one."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deadtok_xr.attributes import portable
from deadtok_xr.checkpoints.contents import open_checkpoint, pair, split
from deadtok_xr.checkpoints.counts import Counts, Difference, count
from deadtok_xr.conversion.readers.source import Source
from deadtok_xr.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

ATTRS: dict[str, dict[str, Any]] = {
    "numel": {"long_name": "values of the parameter", "units": "1"},
    "dtype": {"long_name": "number format of the values"},
    "shape": {"long_name": "shape of the parameter"},
    "n_not_finite": {"long_name": "values that are NaN or infinite, which the shares leave out", "units": "1"},
    "stuck_fraction": {
        "long_name": "share of the finite values that an update of the size lr cannot move in either direction",
        "units": "1", "formula": "#{w: round(w + lr) = w and round(w - lr) = w} / #{w finite}",
        "comment": "rounding to nearest, ties to even; NaN without a finite value",
    },
    "stuck_outward_fraction": {
        "long_name": "share of the finite values that an update of the size lr cannot move away from zero",
        "units": "1", "formula": "#{w: round(w + sign(w)·lr) = w} / #{w finite}",
        "comment": "contains those that it cannot move at all; more only at powers of two",
    },
    "lr_to_move_half": {
        "long_name": "learning rate above which at least half of the finite values moves", "units": "1",
        "formula": "median of half the gap from |w| to the next number towards zero",
    },
    "lr_to_move_all": {
        "long_name": "learning rate above which every finite value moves", "units": "1",
        "formula": "largest half of the gap from |w| to the next number towards zero",
    },
    "at_one_fraction": {"long_name": "share of the finite values that are 1.0", "units": "1"},
    "at_zero_fraction": {"long_name": "share of the finite values that are 0, of either sign", "units": "1"},
    "unchanged_fraction": {
        "long_name": "share of all values that are bit for bit the same in both checkpoints", "units": "1",
        "comment": "NaN where the parameter is not compared",
    },
    "changed": {
        "long_name": "values that differ in a bit between the checkpoints", "units": "1",
        "comment": "-1 where the parameter is not compared; -0 and +0 differ in a bit",
    },
    "max_ulp_distance": {
        "long_name": "largest distance between a value and its successor, in representable numbers", "units": "1",
        "formula": "max |ordinal(b) - ordinal(a)|",
        "comment": "of pairs of finite values; -1 without any; -0 and +0 are one number",
    },
}  # fmt: skip
Progress = Callable[[float, float], None]


def doctor(a: str | Path, b: str | Path | None = None, *, lr: float | None = None) -> xr.Dataset:
    """Say which values of a checkpoint cannot move at a learning rate, and what changed up to a later one.

    In bfloat16, an update below half the gap to the next number is rounded away: a norm weight of 1.0 does not move at
    learning rates up to 2⁻⁹ ≈ 0.002, whatever its gradient, because an update of Adam is about as large as the rate.

    Parameters
    ----------
    a
        A checkpoint: a safetensors, torch, HDF5 or NumPy file, the index of a sharded model, or the folder of one.
        Torch files are read without running code from them. The values are read once, in bounded memory.
    b
        A later checkpoint of the same model, compared parameter by parameter. Names may differ by a prefix that all
        names of one of them have, such as "model.".
    lr
        Learning rate, or the size of an update in general. Without it, there is no `stuck_fraction`.

    Returns
    -------
    xarray.Dataset
        Over `parameter`, in the order of the file. `numel`, `n_not_finite` int64, `dtype`, `shape` text; float64:
        `stuck_fraction` and `stuck_outward_fraction` if ``lr`` is given, `lr_to_move_half`, `lr_to_move_all`,
        `at_one_fraction`, `at_zero_fraction`. With a second checkpoint: `unchanged_fraction` float64, `changed` and
        `max_ulp_distance` int64. Shares and rates are over the finite values of ``a``, and NaN if there are none.

        The attribute `left_out` names entries that are not examined, with the reason: integers, float8, states of an
        optimizer, averages of the weights over time beside the weights, names that share their memory with another.
        `not_compared` names parameters of ``a`` that ``b`` lacks or has in another shape or dtype, `only_in_b` those
        that ``a`` lacks.

    Raises
    ------
    InputError
        If a checkpoint cannot be read or holds no parameters, if two have no name in common, or if ``lr`` is no
        positive number.

    Notes
    -----
    A value w is *stuck* if neither w + lr nor w - lr, each rounded to nearest with ties to even, differs from w. The
    gap towards zero is never the larger one, so the condition is: lr is smaller than half the gap towards zero, or
    equal to it and the last bit of w is 0. At a power of two the gap away from zero is twice as large: between the two
    rates a value can shrink but not grow, which `stuck_outward_fraction` counts as well.

    Examples
    --------
    >>> import numpy as np, tempfile, ml_dtypes
    >>> from safetensors.numpy import save_file
    >>> file = tempfile.mkdtemp() + "/model.safetensors"
    >>> save_file({"norm.weight": np.ones(64, ml_dtypes.bfloat16)}, file)
    >>> found = doctor(file, lr=1e-3)
    >>> float(found.stuck_fraction.sel(parameter="norm.weight")), float(found.lr_to_move_all[0])
    (1.0, 0.001953125)
    """
    return examine(a, b, lr=lr)


def examine(
    a: str | Path, b: str | Path | None = None, *, lr: float | None = None, progress: Progress | None = None
) -> xr.Dataset:
    """Do what `doctor` does; ``progress`` is called with the bytes read and the bytes to read."""
    if lr is not None and not (isinstance(lr, (int, float)) and math.isfinite(lr) and lr > 0):
        raise InputError(f"the learning rate is {lr!r}; expected: a positive number, such as lr=1e-5 (--lr 1e-5)")
    with ExitStack() as opened:
        one = opened.enter_context(open_checkpoint(a))
        names, left_out = split(one)
        attrs: dict[str, Any] = {"a": str(a), "left_out": left_out}
        compared: dict[str, str] = {}
        other = None
        if b is not None:
            other = opened.enter_context(open_checkpoint(b))
            compared, refused, only = pair(one, other, names, left_out)
            attrs |= {"b": str(b), "not_compared": refused, "only_in_b": only}
        if lr is not None:
            attrs["lr"] = float(lr)
        counted = _count_all(one, other, names, compared, progress)
        return _dataset(one, counted, attrs, lr, compare=b is not None)


def _count_all(
    a: Source, b: Source | None, names: list[str], compared: dict[str, str], progress: Progress | None
) -> dict[str, tuple[Counts, Difference | None]]:
    total = sum(a.entries[name].nbytes * (1 + (name in compared)) for name in names)
    done = 0

    def read(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total)

    return {name: count(a, name, (b, compared[name]) if b and name in compared else None, read) for name in names}


def _dataset(
    source: Source,
    counted: dict[str, tuple[Counts, Difference | None]],
    attrs: dict[str, Any],
    lr: float | None,
    *,
    compare: bool,
) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    rows = [
        {
            "numel": math.prod(source.entries[name].shape),
            "dtype": counts.grid.name,
            "shape": " x ".join(map(str, source.entries[name].shape)),
            **_values(counts, lr),
            **(_compared(math.prod(source.entries[name].shape), difference) if compare else {}),
        }
        for name, (counts, difference) in counted.items()
    ]
    variables = {
        name: ("parameter", np.array([row[name] for row in rows], dtype=object if name in ("dtype", "shape") else None))
        for name in rows[0]
    }
    names = xr.Variable("parameter", np.array(list(counted), dtype=object), {"long_name": "name of the parameter"})
    found = xr.Dataset(variables, {"parameter": names}, portable(attrs))
    for name in found.data_vars:
        found[name].attrs.update(ATTRS[str(name)])
    return found


def _values(counts: Counts, lr: float | None) -> dict[str, Any]:
    stuck = {} if lr is None else {
        "stuck_fraction": counts.share(counts.n_stuck(lr)),
        "stuck_outward_fraction": counts.share(counts.n_stuck(lr, outward=True)),
    }  # fmt: skip
    return {
        "n_not_finite": counts.n_not_finite,
        **stuck,
        "lr_to_move_half": counts.lr_to_move(0.5),
        "lr_to_move_all": counts.lr_to_move(1.0),
        "at_one_fraction": counts.share(counts.n_ones),
        "at_zero_fraction": counts.share(counts.n_zeros),
    }


def _compared(numel: int, difference: Difference | None) -> dict[str, Any]:
    if difference is None:
        return {"unchanged_fraction": float("nan"), "changed": -1, "max_ulp_distance": -1}
    return {
        "unchanged_fraction": 1 - difference.changed / numel,
        "changed": difference.changed,
        "max_ulp_distance": difference.max_distance if difference.n_finite else -1,
    }
