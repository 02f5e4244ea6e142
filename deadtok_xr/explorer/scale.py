"""The scale of colours of a quantity: one for all visible steps and every zoom into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LOGARITHMIC = 30  # from this ratio of large to small values on; with zeros from any, so that zeros stand out
_ROUNDING = 0.99  # means of rows are rounded to float32: none may fall below the smallest value


@dataclass(frozen=True)
class Scale:
    """The values of the first and the last colour, and whether the colours between them are logarithmic."""

    low: float
    high: float
    log: bool


def scale_of(values: NDArray[np.float32], whole: Scale | None = None) -> Scale:
    """Return the scale of finite values.

    Parameters
    ----------
    values
        The values; others than finite ones are ignored.
    whole
        The scale of more steps, of which these are a part: a logarithmic one stays, a linear one is only widened.
    """
    if whole is not None and whole.log:
        return whole
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    low, high = map(float, np.percentile(positive, [2, 99.8])) if positive.size else (0.0, 1.0)
    smallest = float(finite.min()) if finite.size else 0.0
    if whole is None and smallest >= 0 and high > low * (_LOGARITHMIC if smallest else 1) > 0:
        return Scale(low, high, log=True)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return (
        Scale(low, high, log=False) if whole is None else Scale(min(low, whole.low), max(high, whole.high), log=False)
    )


def logarithmic(
    values: NDArray[np.float32], scale: Scale, colours: Sequence[str], rows_per_pixel: int = 1
) -> dict[str, Any]:
    """Return the palette of a logarithmic scale, and the values of its first and last colour, as a mapper takes them.

    The first colour goes on below the scale to the smallest value, so that only exact zeros are below the palette.

    Parameters
    ----------
    values
        The values that are drawn.
    scale
        The scale of the colours.
    colours
        The colours, all of the scale.
    rows_per_pixel
        How many rows are averaged in a pixel at most; one alone may be above zero.
    """
    smallest = _ROUNDING * float(np.min(values, where=values > 0, initial=scale.low)) / rows_per_pixel
    step = np.log(scale.high / scale.low) / len(colours)
    below = max(int(np.ceil(np.log(scale.low / smallest) / step)), 0)
    low = scale.low * float(np.exp(-below * step))
    return {"palette": [colours[0]] * below + list(colours), "low": low, "high": scale.high}
