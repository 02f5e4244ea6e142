"""Compute directions of vectors, and the angles between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def unit_vectors(x: NDArray[Any]) -> Floats:
    """Return rows as unit vectors in float64; NaN where a row is zero or not finite."""
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        size = np.linalg.norm(x, axis=1, keepdims=True)
    usable = np.isfinite(size) & (size > 0)
    return np.where(usable, x / np.where(usable, size, 1.0), np.nan)


def angles(a: Floats, b: Floats) -> Floats:
    """Return the angles between unit vectors in degrees, exact for small ones, where arccos loses half the digits."""
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


def normalized(x: Floats) -> Floats:
    """Return a vector as unit vector; NaN if it is zero or not finite."""
    size = np.linalg.norm(x)
    return x / size if 0 < size < np.inf else np.full_like(x, np.nan)


def clip_cosine(x: Any) -> float:
    """Return a cosine that rounding may have put outside -1 to 1."""
    return float(np.clip(x, -1.0, 1.0))


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the cosine between two vectors, in float64; NaN if one is zero or not finite."""
    return clip_cosine(normalized(a.astype(np.float64)) @ normalized(b.astype(np.float64)))
