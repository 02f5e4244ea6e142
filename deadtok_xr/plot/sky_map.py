"""Draw the directions of tokens at one step, seen from the centre of the cloud."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from deadtok_xr.errors import InputError
from deadtok_xr.plot import _style

CENTRES = ("centroid", "origin")


def sky_map(
    recording: xr.Dataset,
    *,
    step: int | None = None,
    centre: str = "centroid",
    variable: str = "W",
    ax: Axes | None = None,
) -> Axes:
    """Draw the directions of the tokens at one step, on a globe of the three axes of largest variance.

    Parameters
    ----------
    recording
        As `deadtok_xr.open_recording` returns it, or a selection; one step of it is read.
    step
        The label of the step; None for the last one.
    centre
        The point of view: the ``"centroid"`` of the tokens, or the ``"origin"``.
    variable
        The positions, (step, token, dim), of 3 dims or more.
    ax
        Axes of the projection ``"mollweide"``; None for a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes: longitude atan2(y, x) and latitude asin(z / r) along the first three principal axes x, y, z, whose
        share of the variance is in the title; the colour is the distance in all dims. Tokens with NaN or infinity, and
        those at the centre, have no direction and are counted in the title.

    Raises
    ------
    InputError
        For a step that is not there, fewer than 3 dims or 2 valid tokens, an unknown centre, or other axes.

    Notes
    -----
    T10 of the notebooks. The sign of a principal axis is arbitrary; here its largest component is positive.
    """
    rows, label = _rows(recording, variable, step)
    if centre not in CENTRES:
        raise InputError(f"sky_map: centre={centre!r}: choose one of {', '.join(CENTRES)}")
    valid = np.isfinite(rows).all(axis=1)
    if rows.shape[1] < 3 or valid.sum() < 2:
        raise InputError(
            f"sky_map: {variable} at step {label} has {valid.sum()} valid tokens of {rows.shape[1]} dims; expected 2 "
            "tokens or more, of 3 dims or more"
        )
    middle = rows[valid].mean(axis=0)
    _, size, axes = np.linalg.svd(rows[valid] - middle, full_matrices=False)
    axes = axes[:3] * np.sign(axes[:3][np.arange(len(axes[:3])), np.abs(axes[:3]).argmax(axis=1)])[:, None]
    seen = rows[valid] - (middle if centre == "centroid" else 0.0)
    x, y, z = np.zeros((3, len(seen)))
    for out, axis in zip((x, y, z), axes, strict=False):  # two tokens span one axis
        out[:] = seen @ axis
    r = np.sqrt(x * x + y * y + z * z)
    there = r > 0
    ax = _mollweide(ax)
    longitude, latitude = np.arctan2(y, x)[there], np.arcsin(np.clip(z[there] / r[there], -1, 1))
    distance = np.linalg.norm(seen[there], axis=1)
    dots = ax.scatter(longitude, latitude, c=distance, s=float(np.clip(4000 / len(seen), 3, 30)), cmap="cividis_r")
    ax.figure.colorbar(dots, ax=ax, pad=0.02, shrink=0.7, label=f"distance from the {centre}, all dims (dimensionless)")
    ax.grid(visible=True, color=_style.PALE)
    ax.set_axisbelow(True)
    ax.tick_params(colors="#666666", labelsize="small")
    share = (size[:3] ** 2).sum() / (size**2).sum() if size.any() else np.nan
    lost = len(rows) - int(there.sum())
    left_out = f"; {lost} without a direction" if lost else ""
    words = _style.tokens_in_words(recording)
    ax.set_title(f"Sky of {words} at step {label:,}; three axes with {share:.0%} of the variance{left_out}", pad=16)
    return ax


def _rows(recording: xr.Dataset, variable: str, step: int | None) -> tuple[_style.Floats, int]:
    _style.need(recording, (variable,), "open_recording")
    _style.need_dims(recording, {variable: ("step", "token", "dim")}, "open_recording")
    labels = recording["step"].values
    label = labels[-1] if step is None else step
    if label not in labels:
        raise InputError(
            f"sky_map: step {label} is not in this dataset; choose from its {len(labels)} steps, "
            f"{labels[0]} to {labels[-1]}"
        )
    rows = recording[variable].sel(step=label).transpose("token", "dim").values
    return rows.astype(np.float64), int(label)


def _mollweide(ax: Axes | None) -> Axes:
    if ax is None:
        import matplotlib.pyplot as plt

        return plt.figure(figsize=_style.SIZE, layout="constrained").add_subplot(projection="mollweide")
    if ax.name != "mollweide":
        raise InputError(f'sky_map draws on axes of the projection "mollweide", not {ax.name!r}')
    return ax
