"""Check a dataset before it is analysed, and make the attributes of results."""

from __future__ import annotations

import warnings
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.attributes import plain, portable
from deadtok_xr.dask_arrays import with_all_functions
from deadtok_xr.errors import InputError
from deadtok_xr.recording.xarray_backend import dask_array_of


class UnknownGridError(InputError):
    """Weights whose number format is not known, although a lattice is needed."""


def as_dask(data: Any) -> da.Array:
    """Return an array of (step, token, dim) as a Dask array whose blocks hold all dims."""
    array = with_all_functions(data if isinstance(data, da.Array) else da.from_array(data))
    return array if array.numblocks[2] == 1 else array.rechunk({2: -1})


def as_series(x: xr.DataArray) -> da.Array:
    """Return a variable of (step) or (step, ...) as a Dask array, steps first; values in memory stay one block.

    Raises
    ------
    InputError
        If it has no steps.
    """
    if "step" not in x.dims:
        raise InputError(f"{x.name!r} has the dimensions {x.dims}; expected one value, or one vector, per step")
    data = x.transpose("step", ...).data
    return with_all_functions(data if isinstance(data, da.Array) else da.from_array(np.asarray(data)))


def require(ds: xr.Dataset, variable: str, purpose: str) -> xr.DataArray:
    """Return the variable of a recording that an analysis needs.

    Raises
    ------
    InputError
        If the variable is missing, has other dimensions, or is empty.
    """
    if not isinstance(ds, xr.Dataset):
        raise InputError(
            f"{purpose} takes a recording's dataset, not a {type(ds).__name__}: pass what open_recording returned"
        )
    if variable not in ds:
        raise InputError(
            f"{purpose} needs the variable {variable!r}; this dataset has "
            f"{', '.join(map(str, ds.data_vars)) or 'none'}"
            + (": it holds displacements without an initial W, and absolute positions are not known"
               if variable == "W" and "delta" in ds else "")
        )  # fmt: skip
    if "run" in ds[variable].dims:
        labels = ", ".join(map(repr, ds["run"].values.tolist()[:8])) if "run" in ds.coords else ds.sizes["run"]
        raise InputError(
            f"{purpose} takes one run at a time; {variable!r} holds several along the dimension run ({labels}): select "
            "one with .sel(run=...) (--run)"
        )
    if set(ds[variable].dims) != {"step", "token", "dim"}:
        raise InputError(f"{purpose}: {variable!r} has the dimensions {ds[variable].dims}; expected (step, token, dim)")
    if ds.sizes["token"] == 0 or ds.sizes["step"] == 0:
        raise InputError(f"{purpose}: the dataset is empty ({dict(ds.sizes)}); select other steps or tokens")
    return _lazily(ds[variable]).transpose("step", "token", "dim")


def _refuse_derived(ds: xr.Dataset, purpose: str) -> None:
    """Refuse a dataset whose steps were computed: coarsened, interpolated, or averaged in bins."""
    steps = ds["step"]
    if steps.dtype.kind == "f":
        first = ", ".join(f"{step:g}" for step in steps.values[:3])
        raise InputError(
            f"{purpose}: the steps are {steps.dtype} ({first}, ...), not numbers of updates, so this dataset is "
            "derived from a recording (coarsened or interpolated?): pass the recording itself, and coarsen the "
            "results; steps that were only read as floats become labels again with "
            "ds.assign_coords(step=ds.step.astype(int))"
        )


def _lazily(x: xr.DataArray) -> xr.DataArray:
    """Return a variable as Dask array; one that xarray would load on first use gets the chunks of its file."""
    if (lazy := dask_array_of(x.variable)) is not None:
        return x.copy(data=lazy)
    if x.chunks is not None:
        return x
    preferred = x.encoding.get("preferred_chunks", {})
    # without its coordinates: texts of tokens are objects, whose size Dask does not know
    return x.copy(data=x.variable.chunk({dim: preferred.get(dim, "auto") for dim in x.dims}).data)


def result_attrs(ds: xr.Dataset, **options: Any) -> dict[str, Any]:
    """Return the attributes of a result: the recording that it describes, and the options of the analysis."""
    known = {k: ds.attrs[k] for k in ("source", "tokens") if k in ds.attrs}
    n_tokens = {"n_tokens": ds.sizes["token"]} if "token" in ds.sizes else {}
    return portable({**known, **n_tokens, **options})


def recording_attrs(ds: xr.Dataset) -> dict[str, Any]:
    """Return the attributes of a tree of results that say which recording it describes, and what that is."""
    known = {k: v for k, v in plain(ds.attrs).items() if k not in ("source", "tokens")}
    return {"source": str(ds.attrs.get("source")), "recording": known}


def check_steps(ds: xr.Dataset, purpose: str, *, allow_gaps: bool) -> dict[str, xr.Variable]:
    """Check that each transition between consecutive steps is a single update.

    Returns
    -------
    dict[str, xarray.Variable]
        When gaps are allowed, `step_span`, the updates that each transition spans; else nothing.

    Raises
    ------
    InputError
        If the steps were computed, there is only one, or steps are missing and gaps are not allowed.
    """
    if not allow_gaps:
        _refuse_derived(ds, purpose)
    steps = ds["step"].values
    if len(steps) < 2:
        raise InputError(f"{purpose} needs at least two steps; this dataset has one (step {steps[0]})")
    span = np.diff(steps)
    if (span <= 0).any():
        raise InputError(f"{purpose}: the steps must ascend; step {steps[1:][span <= 0][0]} does not")
    if allow_gaps:
        attrs = {"long_name": "optimizer updates that the transition spans", "units": "1"}
        return {"step_span": xr.Variable("step", span.astype(np.int64), attrs)}
    if (span > 1).any():
        i = int(np.argmax(span > 1))
        first, last = int(steps[i]) + 1, int(steps[i + 1]) - 1
        missing = f"step {first} is" if first == last else f"steps {first}..{last} are"
        raise InputError(
            f"{purpose}: {missing} missing"
            + (f", and {int((span > 1).sum()) - 1} more gaps" if (span > 1).sum() > 1 else "")
            + "; a transition across a gap is not one update: say allow_gaps=True (--allow-gaps) to measure it anyway"
        )
    return {}


def with_first_step(extra: dict[str, xr.Variable]) -> dict[str, xr.Variable]:
    """Return `step_span` over all steps: 0 at the first one, to which no transition leads."""
    return {name: xr.Variable("step", np.concatenate([[0], x.values]), x.attrs) for name, x in extra.items()}


def grid_name(x: xr.DataArray, precision: str | None) -> str:
    """Return the name of the number format on whose grid a variable is measured.

    Raises
    ------
    InputError
        If its precision is unknown.
    """
    recorded = x.attrs.get("precision")
    if precision and recorded not in (None, "none", precision):
        warnings.warn(
            f"{x.name} has the precision {recorded!r} in the recording; it is measured on the grid of {precision}, as "
            "requested",
            UserWarning,
            stacklevel=2,
        )
    by_default = "bfloat16" if x.dtype == np.float32 else x.dtype.name  # the kernels check every value
    name = precision or x.attrs.get("precision", by_default)
    if name == "none":
        raise UnknownGridError(
            f"{x.name} has unknown precision ('none': float32 training, or autocast), so it has no lattice: say "
            "precision='float32' (--precision float32) for float32's own grid, or name the format it was trained in"
        )
    return str(name)


def grid_or_none(x: xr.DataArray, precision: str | None) -> str:
    """Return `grid_name`, or "none" if the precision is unknown: for analyses that can do without a lattice."""
    try:
        return grid_name(x, precision)
    except UnknownGridError:
        return "none"


def token_ids(ds: xr.Dataset) -> NDArray[np.int64]:
    """Return the ids of the tokens; their positions where they have none."""
    return ds["token"].values if "token" in ds.coords else np.arange(ds.sizes["token"])
