"""Convert a source to a store: open it, plan, and write."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path

from blake3 import blake3

from deadtok_xr._version import __version__
from deadtok_xr.conversion.hub import is_hub_address
from deadtok_xr.conversion.opening import open_with_options
from deadtok_xr.conversion.options import Options, load_recipe, with_parameter
from deadtok_xr.conversion.plan import DROPPED_ON_REQUEST, ConversionPlan, Progress
from deadtok_xr.conversion.planning import make_plan
from deadtok_xr.conversion.readers.source import Source
from deadtok_xr.conversion.write import check_destination, check_free, is_finished, write_plan
from deadtok_xr.store import location


def convert(
    src: str | Path,
    dest: str | Path,
    *,
    recipe: str | Path | None = None,
    revisions: str | Sequence[str] = (),
    keys: Mapping[str, str] | None = None,
    parameter: str | None = None,
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

    The content of a file shows its format, and keys and shapes show what its arrays mean. A float32 array in which
    every value is a bfloat16 number is stored as bfloat16, exactly. If a source can be read in two ways, the conversion
    stops with an error that names both, and the argument that chooses. After an interruption at any moment, the same
    call resumes; after it is complete, the same call changes nothing.

    Parameters
    ----------
    src
        An HDF5, safetensors, NumPy (.npz) or torch (.pt) file; the index of a sharded checkpoint; a
        folder of checkpoints, one per step; a stream of sparse updates, as prime-rl and TRL write them; or a model on
        the Hugging Face Hub, ``hf://ORG/MODEL``, of which only the embedding is fetched.
    dest
        The store to write: a path, or an address such as ``s3://bucket/run.zarr``.
    recipe
        What is known about a family of recordings but not in its files: the name of a shipped recipe
        (`deadtok recipes` lists them), or a TOML file.
    revisions
        Of a model on the Hub: names of revisions or patterns of them, such as ``"step*"``, in a list or separated by
        commas. Their steps are those of the names. Fetched tensors are kept beside ``dest`` until the store is
        complete, so that the same call continues a fetch.
    keys
        Variable of the recording -> key of the source, for unknown keys: ``{"W": "table"}``.
    parameter
        The parameter of a model to record as W: the same as ``keys={"W": parameter}``. None for the embedding.
    dims
        Key of the source -> its dimensions, for other arrays whose axes are ambiguous.
    include, drop
        Keys to keep that would be left out, and to leave out that would be kept.
    bits
        The number format whose bits uint16 (and int16) arrays hold: ``"bfloat16"`` or ``"float16"``.
    keep_dtype
        Store float32 as float32, even if it is an exact copy of bfloat16.
    steps
        ``"recorded"``: use the step labels of the file. ``"position"``: they drift; number the steps
        0..T. For folders: ``"names"`` or ``"content"`` of the checkpoints.
    recorded
        Whether each state was recorded ``"after"`` or ``"before"`` the optimizer's step. If before, the states at
        positions 0 and 1 are equal, and the one at position t + 1 is the state after update t.
    axis
        ``"run"`` if the first of three axes counts repetitions instead of steps.
    token_ids
        Vocabulary id of each row, for recordings of some tokens only.
    dead_ids
        Vocabulary ids of the dead tokens, for files that do not contain them.
    initial
        File with the initial weights, for a recording of displacements: W[t] is computed,
        and refused unless every value is on the grid. For a stream of sparse updates: the checkpoint that the first
        update changes.
    metadata
        JSON file of settings. A file that can only belong to this recording is found without this argument.
    shard
        Bytes of a matrix, before compression, in one file or object, or text such as ``"64MB"``: chunks that are
        adjacent along `token`, in a Zarr shard. For object stores, where each request has a price. None: one file for
        each chunk.
    memory
        Bytes of memory to use at most, or text such as ``"1GB"``, which is the default.
    overwrite
        Replace an existing store at ``dest``.
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
        If the source is missing, damaged, or not a recording that can be read; if it contradicts itself or
        can be read in two ways; if ``memory`` is too little. The message names the file, the variable, what was
        found and what is needed.
    DestinationExistsError
        If ``dest`` exists and is not the result of the same call, or another conversion is writing it.
    OSError
        If the disk is full or cannot be written; the store stays incomplete and does not open.

    Warns
    -----
    UserWarning
        About values that are NaN or infinite (they are kept), about arrays that are left out, and about the
        precision of the weights.

    Examples
    --------
    A file, one of a family that has a recipe, and a folder of checkpoints:

        dx.convert("thimble_7.h5", "thimble_7.zarr")
        dx.convert("gatsby.safetensors", "gatsby.zarr", dead_ids=[0, 1, 2], recipe="gatsby")
        dx.convert("checkpoints/", "run.zarr", keys={"W": "model.embed.weight"})
    """
    from dask.utils import parse_bytes

    options = Options.from_arguments(
        revisions=revisions, keys=with_parameter(keys, parameter), dims=dims, include=include, drop=drop, bits=bits,
        keep_dtype=keep_dtype, steps=steps, recorded=recorded, axis=axis, token_ids=token_ids, dead_ids=dead_ids,
        initial=initial, metadata=metadata, shard=None if shard is None else parse_bytes(shard),
    )  # fmt: skip
    sentences = run_conversion(
        src if is_hub_address(src) else Path(src), location.as_path(dest), options, recipe, overwrite=overwrite,
        memory=None if memory is None else parse_bytes(memory), planned=planned,
        fetching=nullcontext(lambda done, total: None), checking=nullcontext(lambda done, total: None),
        writing=nullcontext(progress or (lambda done, total: None)),
    )  # fmt: skip
    for sentence in sentences or ():  # after the store is complete, as a user may turn warnings into errors
        warnings.warn(sentence, UserWarning, stacklevel=2)
    return location.as_path(dest)


def run_conversion(
    src: Path | str, dest: Path | str, options: Options, recipe: str | Path | None, *, memory: int | None,
    overwrite: bool, planned: Callable[[ConversionPlan], None] | None, fetching: AbstractContextManager[Progress],
    checking: AbstractContextManager[Progress], writing: AbstractContextManager[Progress],
) -> list[str] | None:  # fmt: skip
    """Fetch, plan and write, each with its own progress display.

    Returns
    -------
    list[str] | None
        Warnings, one sentence each; None if the same conversion is complete already.
    """
    asked = options
    fetched = _place_of_fetched(dest) if is_hub_address(src) else None
    if fetched is not None:
        if not overwrite and is_finished(dest, _fingerprint(src, asked, recipe)):
            return None
        check_free(dest, overwrite=overwrite)  # before gigabytes are fetched for nothing
    with (
        fetching as fetch_progress,
        open_with_options(src, options, recipe, fetched=fetched, fetching=fetch_progress) as (source, options),
    ):
        fingerprint = _fingerprint(src, asked, recipe, None if fetched is not None else source)
        if not overwrite and is_finished(dest, fingerprint):
            return None
        check_destination(source, dest, overwrite=overwrite)
        with checking as progress:
            plan = make_plan(source, options, progress=progress)
        if planned is not None:
            planned(plan)
        with writing as progress:
            non_finite = write_plan(
                plan, source, dest, overwrite=overwrite, memory=memory, fingerprint=fingerprint, progress=progress
            )
    if fetched is not None:
        shutil.rmtree(fetched, ignore_errors=True)
    return [*non_finite, *_warnings(plan)]


def _fingerprint(src: Path | str, options: Options, recipe: str | Path | None, source: Source | None = None) -> str:
    """Return what identifies a conversion: the files of the source, the options, and the version.

    Of a model on the Hub only its address is known before it is fetched, so ``source`` is None.
    """
    files = [] if source is None else source.files()
    files += [path for path in (options.initial, options.metadata) if path is not None and path.is_file()]
    stats = [(path.name, path.stat()) for path in files]
    asked = {f.name: getattr(options, f.name) for f in fields(options)}
    facts = {
        "source": str(src) if source is None else [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        "settings": None if source is None else dict(source.attributes),
        "options": {
            name: list(ids) if name.endswith("_ids") and ids is not None else ids for name, ids in asked.items()
        },
        "recipe": None if recipe is None else load_recipe(recipe),
        "version": __version__,
    }
    return blake3(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest(length=16)


def _place_of_fetched(dest: Path | str) -> Path:
    """Return where fetched tensors are kept until the store is complete: beside it, or here for an object store."""
    if location.is_address(dest):
        return Path(f".{str(dest).rstrip('/').rpartition('/')[2]}.revisions")
    path = Path(dest).absolute()
    return path.parent / f".{path.name}.revisions"


def _warnings(plan: ConversionPlan) -> list[str]:
    dropped = "; ".join(f"{name!r} ({why})" for name, why in plan.dropped.items() if why != DROPPED_ON_REQUEST)
    left_out = [f"left out of the store: {dropped}"] if dropped else []
    return [f"{plan.path}: {text}" for text in (*plan.warnings, *left_out)]
