"""The scale of colours of a quantity: one for all its steps, whichever are visible."""

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


def scale_of(values: NDArray[np.float32]) -> Scale:
    """Return the scale of values; others than finite ones are ignored."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Scale(0.0, 1.0, log=False)
    smallest, largest, positive = float(finite.min()), float(finite.max()), finite[finite > 0]
    if smallest >= 0 and positive.size:
        low, high = map(float, np.percentile(positive, [2, 99.8]))
        if high > low * (_LOGARITHMIC if smallest else 1):
            return Scale(low, high, log=True)
    return Scale(smallest, largest, log=False)


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
