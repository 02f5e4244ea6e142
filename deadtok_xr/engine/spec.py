"""An analysis before it runs: its reductions in the common pass, and the function that makes its dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import dask
import dask.array as da
import xarray as xr
from dask.base import tokenize

from deadtok_xr.attributes import portable
from deadtok_xr.engine.block_pass import ReductionResults, block_lengths, make_pass
from deadtok_xr.engine.cost import Cost, PassCost, Sizes
from deadtok_xr.engine.reduction import Reduction
from deadtok_xr.kernels import device as devices
from deadtok_xr.store.stored_array import StoredArray, stored_array


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
    rest
        What it costs besides its reductions and their outputs.
    """

    matrices: Mapping[str, da.Array]
    reductions: Mapping[str, Reduction]
    finish: Callable[[ReductionResults], xr.Dataset]
    rest: Cost = field(default_factory=Cost)


def pass_cost(specs: Mapping[str, AnalysisSpec]) -> PassCost:
    """Estimate what analyses of one recording cost together, in one pass."""
    matrices: dict[str, da.Array] = {}
    reductions: dict[str, Reduction] = {}
    used = {}
    for name, spec in specs.items():
        matrices |= spec.matrices
        names = {_name(reduction): reduction for reduction in spec.reductions.values()}
        reductions |= names
        used[name] = tuple(names)
    stored = {name: stored_array(x) for name, x in matrices.items()}
    itemsizes = {name: (matrices[name] if x is None else x.array).dtype.itemsize for name, x in stored.items()}
    tokens = {name: matrices[name].chunks[1][0] if x is None else x.array.chunks[-2] for name, x in stored.items()}
    first = next(iter(matrices.values()), None)
    block, shape = (1, (0, 0, 0)) if first is None else (max(block_lengths(first)), first.shape)
    steps, n_tokens, n_dims = shape
    in_store = None not in stored.values()
    sizes = Sizes(steps, n_tokens, n_dims, block, max(itemsizes.values(), default=0), *_moving(stored), in_store)
    rest = {name: spec.rest for name, spec in specs.items()}
    return PassCost(sizes, reductions, used, rest, itemsizes, tokens)


def _moving(stored: Mapping[str, StoredArray | None]) -> tuple[float, float]:
    """Return at most which share of the tokens moves at a step, and about which of the elements; 1 if not known."""
    weights = stored.get("W")
    if weights is None:
        return 1.0, 1.0
    moving = weights.moving_share()
    return moving, min(moving, weights.changing_share())


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
    # What is rechunked is small: asking whether workers could exchange it takes the import of dask.distributed.
    with dask.config.set({"array.rechunk.method": "tasks"}):
        found = [spec.finish(ReductionResults(block_pass, named)) for spec, named in zip(specs, names, strict=True)]
    return [ds.assign_attrs(portable(ds.attrs)) for ds in found]


def _name(reduction: Reduction) -> str:
    return f"{type(reduction).__name__.strip('_')}-{tokenize(reduction)}"
