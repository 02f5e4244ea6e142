"""Variables of a recording, whose attributes describe the recorded values and nothing that is computed from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import xarray as xr

_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
_COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
_METHODS = ("__neg__", "reduce", "coarsen", "quantile")


class RecordedVariable(xr.Variable):
    """A variable whose attributes survive selections and copies, but not arithmetic.

    xarray keeps attributes in arithmetic since 2025.11, so that a distance would be labelled "embedding weights" and
    say that it lies on the grid of bfloat16. Selected, transposed, chunked, copied and loaded variables remain recorded
    ones. Operators, differences and reductions give plain variables without attributes. Functions that xarray passes
    arrays to (`numpy.sqrt(x)`, `xarray.apply_ufunc`, `rolling`) keep the attributes of what they are given.
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]


def _without_attributes(name: str) -> Callable[..., Any]:
    inherited = getattr(xr.Variable, name)

    def method(self: RecordedVariable, *args: Any, **kwargs: Any) -> Any:
        result = inherited(self, *args, **kwargs)
        return xr.Variable(result.dims, result._data) if isinstance(result, xr.Variable) else result

    method.__name__, method.__doc__ = name, inherited.__doc__
    return method


for _name in (*(f"__{side}{op}__" for op in _ARITHMETIC for side in ("", "r")), *_COMPARISONS, *_METHODS):
    if hasattr(xr.Variable, _name):
        setattr(RecordedVariable, _name, _without_attributes(_name))
