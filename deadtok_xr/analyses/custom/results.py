"""The dataset of an analysis that a user defined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr.analyses.common import checks
from deadtok_xr.analyses.custom.reduction import STATE, Arrays, UserReduction
from deadtok_xr.engine import Output, ReductionResults
from deadtok_xr.engine.block_pass import prepend_first_step
from deadtok_xr.engine.small_results import compute_together


def dataset(
    found: ReductionResults, ds: xr.Dataset, reduction: UserReduction, span: dict[str, xr.Variable]
) -> xr.Dataset:
    """Return the results as a dataset, lazily.

    Outputs of states and outputs of transitions share the dimension step: the latter have a missing value at the first
    step then, before which there is no update.
    """
    attrs = {name: _attributes(o) for name, o in reduction.declared.items()}
    values = found.variables("user", attrs)
    kinds = {o.at for o in reduction.per_step.values()}
    if kinds == {"states", "transitions"}:
        values = {name: _over_all_steps(v, reduction.per_step[name], found) for name, v in values.items()}
    if reduction.others:
        sizes = {"token": ds.sizes["token"], "dim": ds.sizes["dim"]}
        shapes = {
            name: (o.all_dims, tuple({**sizes, **o.sizes}[dim] for dim in o.all_dims), o.base.str)
            for name, o in reduction.others.items()
        }
        merged = found.merged("user", STATE, reduction.merge)
        values |= compute_together({STATE: merged}, _results, shapes, attrs, reduction=reduction, sizes=sizes)
    dims = {dim for variable in values.values() for dim in variable.dims}
    later = kinds == {"transitions"}
    coords = {str(n): c.variable for n, c in ds.coords.items() if set(c.dims) <= dims & {"step", "token", "dim"}}
    coords = {n: v.isel(step=slice(1, None)) if later and "step" in v.dims else v for n, v in coords.items()}
    if "step" not in dims:
        span = {}
    elif not later:
        span = checks.with_first_step(span)
    said = {key: x for key, x in reduction.options.items() if isinstance(x, (bool, int, float, str, np.number))}
    return xr.Dataset(
        {**{name: values[name] for name in reduction.declared}, **span}, coords, {**said, **checks.result_attrs(ds)}
    )


def missing(output: Output) -> Any:
    """Return what an output of transitions holds at the first step, beside outputs of states."""
    return {"f": np.nan, "c": np.nan, "i": -1}.get(output.base.kind, False)


def _over_all_steps(variable: xr.Variable, output: Output, found: ReductionResults) -> xr.Variable:
    if output.at == "states":
        return variable
    none = missing(output)
    comment = f"{none} at the first step, before which there is no update"
    attrs = {**variable.attrs, "comment": "; ".join(filter(None, [output.comment, comment]))}
    return xr.Variable(variable.dims, prepend_first_step(variable.data, none, found.n_states), attrs)


def _attributes(output: Output) -> dict[str, Any]:
    said = {"long_name": output.long_name, "units": output.units, "formula": output.formula, "comment": output.comment}
    return {key: value for key, value in said.items() if value}


def _results(inputs: dict[str, list[Any]], *, reduction: UserReduction, sizes: Mapping[str, int]) -> Arrays:
    (state,) = inputs[STATE]
    return reduction.result(state, sizes)
