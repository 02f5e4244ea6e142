"""A logarithmic axis for quantities that can be exactly 0, such as the motion of frozen tokens: 0 has its own strip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from deadtok_xr.plot._style import INK, cell_edges

_STRIP, _GAP = 0.08, 0.02  # of the logarithmic range
_NICE = np.array([1.0, 2.0, 5.0, 10.0])


@dataclass(frozen=True)
class LogAxis:
    """The limits of a logarithmic axis, and the strip for 0 below them."""

    low: float
    high: float
    has_strip: bool
    empty: bool = False
    """Whether no value is positive, so that the limits are arbitrary."""

    @property
    def strip(self) -> tuple[float, float]:
        """Bottom and top of the strip, in data coordinates."""
        span = np.log10(self.high / self.low)
        top = self.low * 10 ** (-_GAP * span)
        return float(top * 10 ** (-_STRIP * span)), float(top)

    @property
    def bottom(self) -> float:
        """The lower end of the axis, strip included."""
        return self.strip[0] if self.has_strip else self.low

    def within_strip(self, share: Any) -> Any:
        """Return the height at a fraction of the strip, 0 at its bottom and 1 at its top."""
        bottom, top = self.strip
        return bottom * (top / bottom) ** share


def log_axis(low: float, high: float, has_strip: bool) -> LogAxis:
    """Return an axis with limits rounded outwards to 1, 2 or 5 times a power of ten; empty without positive values."""
    if not (np.isfinite(low) and np.isfinite(high) and low > 0):
        return LogAxis(0.1, 10.0, has_strip, empty=True)
    low, high = _rounded(low, up=False), _rounded(high, up=True)
    return LogAxis(low, high if high > low else 10 * low, has_strip)


def _rounded(value: float, *, up: bool) -> float:
    scale = 10.0 ** np.floor(np.log10(value))
    fits = _NICE * scale >= value * (1 - 1e-9) if up else _NICE * scale <= value * (1 + 1e-9)
    return float(scale * (_NICE[fits].min() if up else _NICE[fits].max(initial=0.5)))


def positive_range(*arrays: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Return the smallest and largest positive finite value; NaN without any."""
    kept = [a[np.isfinite(a) & (a > 0)] for a in arrays]
    low = min((float(k.min()) for k in kept if k.size), default=np.nan)
    return low, max((float(k.max()) for k in kept if k.size), default=np.nan)


class _AboveStrip(LogLocator):
    """Ticks of a logarithmic axis, without those in the strip, and one for 0."""

    def __init__(self, axis: LogAxis, subs: Sequence[float], *, zero: bool) -> None:
        super().__init__(subs=subs, numticks=12 if zero else 100)
        self._axis, self._zero = axis, zero

    def tick_values(self, vmin: float, vmax: float) -> Any:
        ticks = np.asarray(super().tick_values(max(vmin, self._axis.low), vmax))
        ticks = ticks[(ticks >= self._axis.low * (1 - 1e-9)) & (not self._axis.empty)]
        centre = [float(self._axis.within_strip(0.5))] if self._zero and self._axis.has_strip else []
        return np.concatenate([centre, ticks])


def apply(ax: Axes, axis: LogAxis) -> None:
    """Apply a logarithmic axis to the y axis, with the tick '0' at the strip."""
    ax.set_yscale("log", nonpositive="mask")
    ax.set_ylim(axis.bottom, axis.high)
    decades = np.log10(axis.high / axis.low)
    subs = (1.0,) if decades >= 2 else (1.0, 2.0, 5.0)
    ax.yaxis.set_major_locator(_AboveStrip(axis, subs, zero=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _tick_label(y, axis)))
    ax.yaxis.set_minor_locator(_AboveStrip(axis, tuple(range(2, 10)) if decades <= 12 else (), zero=False))
    ax.yaxis.set_minor_formatter(NullFormatter())
    if axis.has_strip:
        ax.axhline(axis.low, color=INK, linewidth=0.6)
        ax.axhline(axis.strip[1], color=INK, linewidth=0.6)
    if axis.empty:
        words = "every valid value is 0" if axis.has_strip else "no valid values"
        ax.text(0.5, 0.55, words, transform=ax.transAxes, ha="center", color=INK)


def _tick_label(y: float, axis: LogAxis) -> str:
    if axis.has_strip and y < axis.low * (1 - 1e-9):
        return "0"
    exponent = int(np.floor(np.log10(y) + 1e-9))
    if -4 < exponent < 4:
        return f"{y:g}"
    factor = round(y / 10.0**exponent)
    return f"$10^{{{exponent}}}$" if factor == 1 else f"${factor}\\times10^{{{exponent}}}$"


def mark_zeros(
    ax: Axes, axis: LogAxis, steps: NDArray[Any], zero: NDArray[np.bool_], *, color: str, label: str = "",
    lane: tuple[float, float] = (0.0, 1.0),
) -> None:  # fmt: skip
    """Draw bars in a lane of the strip over the steps at which a value is exactly 0."""
    if not zero.any():
        return
    edges = cell_edges(steps)
    change = np.flatnonzero(np.diff(np.concatenate([[False], zero, [False]])))
    spans = [(edges[a], edges[b] - edges[a]) for a, b in change.reshape(-1, 2)]
    bottom, top = (float(axis.within_strip(share)) for share in lane)
    ax.broken_barh(spans, (bottom, top - bottom), facecolor=color, edgecolor=color, linewidth=0.3, label=label)
