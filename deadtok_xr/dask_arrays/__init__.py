"""Dask arrays that know where their values come from, and arrays made of tasks of our own.

Dask has two implementations of its arrays: graphs in layers, and expressions, which become the default
(``dask.config.set({"array.query-planning": True})`` before `dask.array` is imported). Only this package depends on
which of the two is at work.

In: tasks by key, or a Dask array and its origin. Out: Dask arrays. Imports nothing of ours.

meta            which implementation is at work, and the `meta` of our arrays
internals       arrays of expressions, arrays made of tasks; the only file that uses what Dask does not document
operations      what expressions lack, made of blockwise operations
traced          arrays with an origin, which selections keep
"""

from deadtok_xr.dask_arrays.internals import (
    annotations_of,
    compute_block,
    from_tasks,
    given_array,
    graph_of,
    names_of_blocks,
    once_done,
    tasks_of_blocks,
    with_all_functions,
)
from deadtok_xr.dask_arrays.meta import EXPRESSIONS, Index, Tasks, chunk_sizes, empty_meta
from deadtok_xr.dask_arrays.traced import Origin, Stacked, TracedArray, origin_of, stacked, traced

__all__ = [
    "EXPRESSIONS",
    "Index",
    "Origin",
    "Stacked",
    "Tasks",
    "TracedArray",
    "annotations_of",
    "chunk_sizes",
    "compute_block",
    "empty_meta",
    "from_tasks",
    "given_array",
    "graph_of",
    "names_of_blocks",
    "once_done",
    "origin_of",
    "stacked",
    "tasks_of_blocks",
    "traced",
    "with_all_functions",
]
