"""An analysis before it runs: its reductions in the common pass, and the function that makes its dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import dask.array as da
import xarray as xr
from dask.base import tokenize

from deadtok_xr.attributes import portable
from deadtok_xr.engine.block_pass import ReductionResults, make_pass
from deadtok_xr.engine.reduction import Reduction
from deadtok_xr.kernels import device as devices


@dataclass(frozen=True)
class AnalysisSpec:
    """An analysis before it runs.

    Attributes
    ----------
    matrices
        The lazy arrays that its reductions name.
    reductions
        Its reductions, by names that the analysis chooses.
    finish
        Makes its dataset from their results, lazily.
    """

    matrices: Mapping[str, da.Array]
    reductions: Mapping[str, Reduction]
    finish: Callable[[ReductionResults], xr.Dataset]


def run(specs: Sequence[AnalysisSpec], device: str = "auto") -> list[xr.Dataset]:
    """Run analyses in one pass.

    Their matrices are of one dataset: the same name means the same array. ``device`` is resolved where a task runs,
    which may be another machine; see `deadtok_xr.kernels.device`.
    """
    devices.check(device)
    matrices: dict[str, da.Array] = {}
    for spec in specs:
        matrices.update(spec.matrices)
    # named once: what a user's function refers to may change, and its name with it
    names = [{key: _name(reduction) for key, reduction in spec.reductions.items()} for spec in specs]
    reductions = {named[key]: spec.reductions[key] for spec, named in zip(specs, names, strict=True) for key in named}
    block_pass = make_pass(matrices, reductions, device) if reductions else None
    found = [spec.finish(ReductionResults(block_pass, named)) for spec, named in zip(specs, names, strict=True)]
    return [ds.assign_attrs(portable(ds.attrs)) for ds in found]


def _name(reduction: Reduction) -> str:
    return f"{type(reduction).__name__.strip('_')}-{tokenize(reduction)}"
