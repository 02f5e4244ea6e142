"""Run analyses of tokens on the sampled elements of a parameter: each element is a token of one dimension."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from deadtok_xr.errors import InputError


def as_tokens(ds: xr.Dataset) -> xr.Dataset:
    """Return a dataset (step, element) as one of (step, token, dim)."""
    renamed = ds.rename(element="token")
    matrices = {name: v.expand_dims("dim", axis=-1) for name, v in renamed.data_vars.items() if "token" in v.dims}
    return renamed.assign(matrices)


def of_elements(results: xr.Dataset, ds: xr.Dataset) -> xr.Dataset:
    """Return the results of `as_tokens` over (step, element), with the coordinates and the size of the parameter."""
    if results.sizes.get("dim") == 1:
        results = results.isel(dim=0, drop=True)
    if "token" in results.dims:
        results = results.rename(token="element")
        results = results.assign_coords({k: v for k, v in ds.coords.items() if v.dims == ("element",)})
    kept = {k: ds.attrs[k] for k in ("parameter", "numel", "parameter_shape") if k in ds.attrs}
    return results.assign_attrs(kept)


def sample_interval(count: ArrayLike | xr.DataArray, n: int, numel: int, *, level: float = 0.95) -> tuple[Any, Any]:
    """Estimate the share of a parameter's elements from a count in a sample of them.

    Parameters
    ----------
    count
        How many of the sampled elements have a property, such as ``found.n_moved``.
    n
        The number of sampled elements.
    numel
        The number of elements of the parameter.
    level
        The probability that the interval holds the share.

    Returns
    -------
    The lower and the upper end (Wilson's score interval, with the correction for a finite number of elements). Both are
    the share itself if all elements were sampled.

    Raises
    ------
    InputError
        If there are more sampled elements than elements, or none.

    Examples
    --------
    >>> low, high = sample_interval(100, 1024, 10**6)
    >>> round(float(low), 3), round(float(high), 3)
    (0.081, 0.117)
    >>> [float(x) for x in sample_interval(3, 4, 4)]
    [0.75, 0.75]
    """
    if not 0 < n <= numel:
        raise InputError(f"a sample of {n} of {numel} elements; expected 1 to {numel}")
    from scipy.special import ndtri

    share = count / n if isinstance(count, xr.DataArray) else np.asarray(count) / n
    if n == numel:
        return share, share
    z = float(ndtri((1 + level) / 2))
    size = n * (numel - 1) / (numel - n)  # of a sample with replacement that is as exact
    middle = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * (share * (1 - share) / size + z * z / (4 * size * size)) ** 0.5
    return middle - half, middle + half
