"""Convert a recording that somebody saved in their own way into a recording store, bit for bit.

    open_source      ->  make_plan    ->  write_plan
    formats.py           planning.py      write.py, then verify.py
      sources.py           options.py: what the file does not say; recipes
      hdf5.py              layout.py, models.py: which source key is which variable of a recording
      safetensors.py       axes.py, rows.py: what its axes are, which token each row is
      npz.py               proofs.py: what its values prove
      torch_checkpoint.py  others.py: everything else that it holds
      folders.py,          plan.py: what comes out
      merged.py,           units.py, markers.py: the work in pieces, and what of it is done
      stacked.py
      derived.py, sidecars.py

A new file format is one file beside `hdf5.py` and one line in `formats.FORMATS`; a new naming habit is an
entry in `layout.KNOWN`; a family whose facts are not in its files is a recipe, `conversion/*.toml`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deadtok_xr.conversion.options import Options
    from deadtok_xr.conversion.plan import ConversionPlan
    from deadtok_xr.conversion.readers.source import Source

__all__ = ["convert", "recipes"]

Progress = Callable[[int, int], None]


def convert(
    src: str | Path,
    dest: str | Path,
    *,
    recipe: str | Path | None = None,
    keys: Mapping[str, str] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    include: Sequence[str] = (),
    drop: Sequence[str] = (),
    bits: str = "bfloat16",
    keep_dtype: bool = False,
    steps: str | None = None,
    recorded: str | None = None,
    axis: str = "step",
    token_ids: Sequence[int] | None = None,
    dead_ids: Sequence[int] | None = None,
    initial: str | Path | None = None,
    metadata: str | Path | None = None,
    shard: int | str | None = None,
    memory: int | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    planned: Callable[[ConversionPlan], None] | None = None,
) -> Path | str:
    """Convert a recording to a recording store, bit for bit.

    The format is told by the file's content, the meaning of its arrays by their keys and shapes; float32
    whose every value is a bfloat16 number is stored as bfloat16, exactly. What can be read in two ways stops
    with both, and the argument that chooses. Interrupted at any moment, the same call goes on where it was.

    Parameters
    ----------
    src
        An HDF5, safetensors, NumPy (.npz) or torch (.pt) file; the index of a sharded checkpoint; or a
        folder of checkpoints, one per step.
    dest
        The store to write: a path, or an address such as ``s3://bucket/run.zarr``.
    recipe
        What is known of a family of recordings and not in its files: the name of a shipped recipe
        (`deadtok recipes` lists them), or a TOML file.
    keys
        Variable of the recording -> key of the source, for keys that are not known: ``{"W": "table"}``.
    dims
        Key of the source -> its dimensions, for other arrays whose axes cannot be told.
    include, drop
        Keys to keep that would be left out, and to leave out that would be kept.
    bits
        What uint16 (and int16) are the bits of: ``"bfloat16"`` or ``"float16"``.
    keep_dtype
        Store float32 as float32, even where it is an exact copy of bfloat16.
    steps
        ``"recorded"``: the step labels of the file hold. ``"position"``: they drift; rows are numbered
        0..T. For folders: ``"names"`` or ``"content"`` of the checkpoints.
    recorded
        ``"after"`` or ``"before"`` the optimizer's step: in the latter case row 1 repeats row 0, and row
        t + 1 is the state after update t.
    axis
        ``"run"`` if the first of three axes counts repetitions instead of steps.
    token_ids
        Vocabulary id of each row, for recordings of some tokens only.
    dead_ids
        Vocabulary ids of the dead tokens, for files that do not say.
    initial
        File with the initial weights, which makes a recording of displacements absolute: W[t] is worked
        out, and refused unless every value lands on the grid.
    metadata
        JSON file of settings; one that can only be this recording's is found by itself.
    shard
        Put so many bytes of a matrix, before compression, into one file or object, or text such as ``"64MB"``:
        chunks that are neighbours along `token`, in a Zarr shard. For object stores, where each request has a price.
        None: a file for each chunk.
    memory
        Bytes of memory to use at most, or text such as ``"1GB"``, which is the default.
    overwrite
        Replace a store that exists at ``dest``.
    progress
        Called with the bytes written and the bytes to write.
    planned
        Called with the `ConversionPlan` before anything is written.

    Returns
    -------
    Path | str
        ``dest``.

    Raises
    ------
    InputError
        If the source is missing, damaged, or no recording that is understood; if what it says of itself
        is contradictory or can be read in two ways; if ``memory`` is too little. The message names the
        file, the variable, what was found and what is needed.
    DestinationExistsError
        If ``dest`` exists, or another conversion is writing it.
    OSError
        If the disk is full or cannot be written; the store stays incomplete and does not open.

    Warns
    -----
    UserWarning
        For values that are NaN or infinite (they are kept), for what of the file is left out, and for
        whatever the plan notes of the weights.

    Examples
    --------
    A file, one of a family that has a recipe, and a folder of checkpoints:

        dx.convert("thimble_7.h5", "thimble_7.zarr")
        dx.convert("gatsby.safetensors", "gatsby.zarr", dead_ids=[0, 1, 2], recipe="gatsby")
        dx.convert("checkpoints/", "run.zarr", keys={"W": "model.embed.weight"})
    """
    from dask.utils import parse_bytes

    from deadtok_xr.store import location

    options = options_from(
        keys=keys, dims=dims, include=include, drop=drop, bits=bits, keep_dtype=keep_dtype, steps=steps,
        recorded=recorded, axis=axis, token_ids=token_ids, dead_ids=dead_ids, initial=initial, metadata=metadata,
        shard=None if shard is None else parse_bytes(shard),
    )  # fmt: skip
    shown = nullcontext(progress or (lambda done, total: None))
    room = None if memory is None else parse_bytes(memory)
    noticed = carry_out(
        Path(src), location.as_path(dest), options, recipe, memory=room, overwrite=overwrite, planned=planned,
        looking=nullcontext(lambda done, total: None), writing=shown,
    )  # fmt: skip
    for sentence in noticed:  # now that the store is whole: a warning may be an error
        warnings.warn(sentence, UserWarning, stacklevel=2)
    return location.as_path(dest)


def carry_out(
    src: Path, dest: Path | str, options: Options, recipe: str | Path | None, *, memory: int | None, overwrite: bool,
    planned: Callable[[ConversionPlan], None] | None, looking: AbstractContextManager[Progress],
    writing: AbstractContextManager[Progress],
) -> list[str]:  # fmt: skip
    """Plan and write, each with a progress of its own; what a user should know afterwards, as sentences."""
    from deadtok_xr.conversion.planning import make_plan
    from deadtok_xr.conversion.write import check_destination, write_plan

    with open_for(src, options, recipe) as (source, options):
        check_destination(source, dest, overwrite=overwrite)
        with looking as looked:
            plan = make_plan(source, options, progress=looked)
        if planned is not None:
            planned(plan)
        with writing as progress:
            noticed = write_plan(plan, source, dest, overwrite=overwrite, memory=memory, progress=progress)
    return [*noticed, *_worth_a_warning(plan)]


def options_from(**given: Any) -> Options:
    """The arguments of `convert` that say what a source does not."""
    from deadtok_xr.conversion.options import Options

    for name, value in given.items():
        if value is not None and name in ("initial", "metadata"):
            given[name] = Path(value)
        elif name in ("include", "drop"):
            given[name] = (value,) if isinstance(value, str) else tuple(value)
        elif name == "keys":
            given[name] = dict(value or {})
        elif name == "dims":
            given[name] = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in (value or {}).items()}
    return Options(**given)


@contextmanager
def open_for(src: Path, options: Options, recipe: str | Path | None = None) -> Iterator[tuple[Source, Options]]:
    """Open a source with everything that belongs to it; the options with those of the recipe."""
    from deadtok_xr.conversion.inspect.derived import absolute, joined
    from deadtok_xr.conversion.inspect.keys import KNOWN
    from deadtok_xr.conversion.inspect.sidecars import with_metadata
    from deadtok_xr.conversion.options import with_recipe
    from deadtok_xr.conversion.readers.formats import open_source

    options = with_recipe(options, recipe)
    labels: Any = options.steps if options.steps in ("names", "content") else None
    with open_source(src, steps=labels) as opened:
        source = joined(with_metadata(opened, options.metadata), KNOWN)
        if options.initial is not None:
            with open_source(options.initial) as initial:
                source = absolute(source, initial, KNOWN, options)
        yield source, options


def _worth_a_warning(plan: ConversionPlan) -> list[str]:
    what = "; ".join(f"{name!r} ({why})" for name, why in plan.dropped.items() if why != "as told")
    left_out = [f"left out of the store: {what}"] if what else []
    return [f"{plan.path}: {text}" for text in (*plan.warnings, *left_out)]


def recipes() -> dict[str, dict[str, Any]]:
    """The recipes that are shipped: by name what each is for, where its facts come from, and what it says."""
    from deadtok_xr.conversion import options

    return {name: options.load_recipe(name) for name in options.recipes()}
