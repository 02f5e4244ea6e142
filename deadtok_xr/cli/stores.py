"""`deadtok convert`, `recipes`, `info`, `verify`, `label`, `export`: create, describe, check and export stores."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from deadtok_xr.cli.options import (
    JSON,
    OVERWRITE,
    PARTIAL,
    PATH,
    PLACE,
    QUIET,
    SOURCE,
    STORE,
    STORE_ANYWHERE,
    description,
    pairs,
    print_json,
    read_ids,
    rechunk_here,
    remove_leftovers,
)
from deadtok_xr.cli.output import echo
from deadtok_xr.errors import InputError

if TYPE_CHECKING:
    from deadtok_xr.recording.opening import Tokens


@click.command()
@click.argument("source", type=SOURCE)
@click.argument("dest", type=PLACE)
@click.option("--plan", "only_plan", is_flag=True, help="Show what would be written, and write nothing.")
@click.option("--recipe", help="Known facts about a family: a name (see `deadtok recipes`), or a TOML file.")
@click.option("--revisions", default="", help="Revisions of hf://ORG/MODEL: a pattern, or several with commas.")
@click.option("--key", "keys", multiple=True, metavar="VARIABLE=KEY", help="Which array of SOURCE a variable is.")
@click.option("--parameter", metavar="NAME", help="The parameter of a model to record. Default: the embedding.")
@click.option("--dims", multiple=True, metavar="KEY=DIM,DIM", help="The dimensions of an array of SOURCE.")
@click.option("--include", multiple=True, metavar="KEY", help="Keep an array that would be left out.")
@click.option("--drop", multiple=True, metavar="KEY", help="Leave an array out.")
@click.option(
    "--bits",
    type=click.Choice(["bfloat16", "float16"]),
    default="bfloat16",
    show_default=True,
    help="The number format of bits stored as uint16.",
)
@click.option("--keep-dtype", is_flag=True, help="Store float32 as float32, even if it is an exact copy of bfloat16.")
@click.option(
    "--steps",
    type=click.Choice(["recorded", "position", "names", "content"]),
    help="Source of the step labels: recorded or position; for checkpoints also names or content of the files.",
)
@click.option(
    "--recorded",
    type=click.Choice(["after", "before"]),
    help="Whether states were recorded after or before each optimizer step.",
)
@click.option("--axis", type=click.Choice(["step", "run"]), default="step", help="What the first of three axes counts.")
@click.option("--token-ids", type=PATH, help="File with the vocabulary id of each row: text, JSON or .npy.")
@click.option(
    "--dead-ids",
    type=PATH,
    help="File with the ids of the dead tokens, if SOURCE lacks them: text, JSON, .npy, .npz, .h5, .safetensors.",
)
@click.option("--initial", type=PATH, help="Initial weights, which displacements or sparse updates change.")
@click.option("--metadata", type=PATH, help="JSON file of settings that belongs to SOURCE.")
@click.option("--shard", help="Size of a file or object, before compression, such as 64MB. Default: one chunk.")
@click.option("--memory", help="Peak memory. Default: 1GB.")
@OVERWRITE
@QUIET
def convert(
    source: Path | str, dest: Path | str, only_plan: bool, keys: tuple[str, ...],
    parameter: str | None, dims: tuple[str, ...], token_ids: Path | None, dead_ids: Path | None, overwrite: bool,
    quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Convert a recording to a store.

    SOURCE is an HDF5, safetensors, NumPy or torch file, a folder of checkpoints, a stream of sparse updates, or a
    model on the Hugging Face Hub. After an interruption, the same command resumes.

    \b
    Example:  deadtok convert thimble_7.h5 thimble_7.zarr
              deadtok convert checkpoints/ run.zarr --key W=model.embed.weight --dead-ids dead.txt
              deadtok convert hf://EleutherAI/pythia-160m pythia.zarr --revisions 'step*'
    """
    from deadtok_xr.conversion.options import Options, with_parameter
    from deadtok_xr.conversion.plan import DEFAULT_MEMORY
    from deadtok_xr.conversion.run import run_conversion
    from deadtok_xr.engine.progress import reporting

    options |= {
        "keys": with_parameter(pairs(keys, "--key", "VARIABLE=KEY"), parameter),
        "dims": {key: names.split(",") for key, names in pairs(dims, "--dims", "KEY=DIM,DIM").items()},
        "token_ids": None if token_ids is None else read_ids(token_ids),
        "dead_ids": None if dead_ids is None else read_ids(dead_ids),
    }
    memory = _bytes("--memory", options.pop("memory")) or DEFAULT_MEMORY
    options["shard"] = _bytes("--shard", options["shard"])
    if only_plan:
        echo(_planned(source, dest, options, memory, overwrite=overwrite))
        return
    show = None if quiet else lambda plan: echo(plan.describe(memory), err=True)
    recipe = options.pop("recipe")
    sentences = run_conversion(
        source, dest, Options.from_arguments(**options), recipe, memory=memory, overwrite=overwrite, planned=show,
        fetching=reporting("fetching", quiet=quiet, bytes_=True) if isinstance(source, str) else _no_progress(),
        checking=reporting("checking", quiet=quiet, bytes_=True),
        writing=reporting("converting", quiet=quiet, bytes_=True),
    )  # fmt: skip
    if sentences is None:
        echo(f"{dest} is already complete: nothing was written")
    for sentence in sentences or ():
        warnings.warn(sentence, UserWarning, stacklevel=1)
    echo(description(dest))


def _bytes(option: str, text: str | None) -> int | None:
    from dask.utils import parse_bytes

    if text is None:
        return None
    try:
        size = int(parse_bytes(text))
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise InputError(f"{option} {text}: expected: a size, such as 64MB or 2GB")
    return size


def _no_progress() -> Any:
    return nullcontext(lambda done, total: None)


def _planned(source: Path | str, dest: Path | str, options: dict[str, Any], memory: int, *, overwrite: bool) -> str:
    from deadtok_xr.conversion.opening import open_with_options
    from deadtok_xr.conversion.options import Options
    from deadtok_xr.conversion.planning import make_plan
    from deadtok_xr.conversion.write import check_destination

    recipe = options.pop("recipe")
    if isinstance(source, str):
        from deadtok_xr.conversion.hub.fetch import plan_fetch

        return plan_fetch(source, Options.from_arguments(**options)).describe()
    with open_with_options(source, Options.from_arguments(**options), recipe) as (opened, completed):
        check_destination(opened, dest, overwrite=overwrite)
        return make_plan(opened, completed).describe(memory)


@click.command()
def recipes() -> None:
    """List the families of recordings that `deadtok convert --recipe NAME` knows.

    \b
    Example:  deadtok recipes
    """
    from deadtok_xr.conversion import recipes as shipped

    for name, recipe in shipped().items():
        echo(f"{name:16s}{recipe['family']}")


@click.command()
@STORE_ANYWHERE
@JSON
@PARTIAL
def info(store: Path | str, partial: bool, as_json: bool) -> None:
    """Describe a store, and the memory and time needed to analyse it.

    \b
    Example:  deadtok info thimble_7.zarr
    """
    remove_leftovers(store)
    rechunk_here()
    from deadtok_xr.cli.describe import analysis_cost, describe, facts

    if as_json:
        print_json(**facts(store, partial=partial))
        return
    echo(describe(store, partial=partial))
    if line := analysis_cost(store, partial=partial):  # takes longer, so all else is read meanwhile
        echo(line)


@click.command()
@STORE_ANYWHERE
@click.option("--source", type=SOURCE, help="The source of STORE: compare every bit with it.")
@click.option("--initial", type=PATH, help="The initial weights of the conversion, if they are not beside SOURCE.")
@click.option("--write-manifest", is_flag=True, help="Write the manifest of a store that has none, if all is well.")
@click.option("--overwrite", is_flag=True, help="With --write-manifest: replace a manifest, accepting all changes.")
@JSON
@QUIET
def verify(
    store: Path | str, source: Path | str | None, initial: Path | None, write_manifest: bool, overwrite: bool,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Check every chunk of a store against its checksum and the manifest, and compare the store with its source.

    The manifest of a store says which arrays belong to it and which chunk belongs where.

    \b
    Example:  deadtok verify thimble_7.zarr --source thimble_7.h5
              deadtok verify older.zarr --write-manifest
    """
    from deadtok_xr.conversion.verify import verify as verify_store
    from deadtok_xr.engine.progress import reporting
    from deadtok_xr.errors import DamagedStoreError

    remove_leftovers(store)
    with reporting("verifying", quiet=quiet) as report:
        found = verify_store(
            store, source, initial=initial, write_manifest=write_manifest, overwrite=overwrite, progress=report
        )
    if as_json:
        print_json(
            store=str(store), n_chunks=found.n_chunks, compared=found.compared, problems=found.problems,
            manifest=found.has_manifest,
        )  # fmt: skip
    if found.problems:
        raise DamagedStoreError("; ".join(found.problems))
    if as_json:
        return
    same = f"; the same bits as {source}: {', '.join(found.compared)}" if source else ""
    unknown = (
        "; it has no manifest, so it is not known whether each chunk is at its place: add one with --write-manifest"
    )
    echo(
        f"{store}: {found.n_chunks} chunks read, all as they were written{same}{'' if found.has_manifest else unknown}"
    )


@click.command()
@STORE
@click.option(
    "--dead-ids", type=PATH, help="File with the ids of the dead tokens (text, JSON, .npy, .npz, .h5 or .safetensors)."
)
@click.option("--token-text", type=PATH, help="A tokenizer.json, a JSON list, or text with one token per line.")
@click.option(
    "--corpus",
    type=PATH,
    multiple=True,
    metavar="FILE...",
    help="Training data, whose tokens are counted: ids (.npy, .npz, .safetensors, .arrow, .bin) or text.",
)
@click.argument("files", type=PATH, nargs=-1, metavar="")
@click.option("--tokenizer", type=PATH, help="The tokenizer.json that encodes text of the corpus.")
@click.option(
    "--corpus-dtype",
    type=click.Choice(["uint16", "uint32", "int32"]),
    default="uint16",
    show_default=True,
    help="The numbers in .bin files.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing labels that differ.")
def label(
    store: Path, dead_ids: Path | None, token_text: Path | None, corpus: tuple[Path, ...], files: tuple[Path, ...],
    tokenizer: Path | None, corpus_dtype: str, overwrite: bool,
) -> None:  # fmt: skip
    """Add dead tokens, token texts and numbers of occurrences to a store; the data are not changed.

    Tokens that never occur in the corpus are dead.

    \b
    Example:  deadtok label thimble_7.zarr --dead-ids dead.json --token-text tokenizer.json
              deadtok label thimble_7.zarr --corpus train/*.bin
    """
    from deadtok_xr.store.labels import label as add_labels

    if files and not corpus:
        raise InputError(f"{' '.join(map(str, files))} beside the store: expected: --corpus before files of the corpus")
    remove_leftovers(store)
    add_labels(
        store, dead_ids=dead_ids, token_text=token_text, corpus=[*corpus, *files] or None, tokenizer=tokenizer,
        corpus_dtype=corpus_dtype, overwrite=overwrite,
    )  # fmt: skip
    echo(description(store))
    if corpus:
        echo(_occurrences(store))


def _occurrences(path: Path) -> str:
    """Say how often the tokens of a store occur."""
    from deadtok_xr import store

    group, _ = store.open_group(path)
    counts = store.read_coordinate(group, "count")
    never = int((counts == 0).sum())
    return f"counted {counts.sum():,} tokens: {never:,} of {len(counts):,} never occur and are dead"


@click.command()
@STORE
@click.argument("out", type=PATH)
@click.option("--variables", help="Variables, separated by commas. Default: all.")
@click.option("--tokens", type=click.Choice(["all", "live", "dead"]), default="all", show_default=True)
@click.option("--run", help="Label of one run, for a store of several runs.")
@click.option("--uint16", is_flag=True, help="Write the bits of bfloat16 as uint16, as .h5 and .npz always do.")
@click.option("--source-dtype", is_flag=True, help="Write each variable in the dtype that it was converted from.")
@click.option("--as", "format", type=click.Choice(["prime-rl"]), help="Write a stream of sparse updates of one matrix.")
@click.option("--parameter", metavar="NAME", help="With --as: the name of the parameter in the stream.")
@click.option("--compress", is_flag=True, help="With --as: compress each update with zstd.")
@OVERWRITE
@QUIET
def export(
    store: Path, out: Path, variables: str | None, tokens: str, run: str | None, uint16: bool, source_dtype: bool,
    format: str | None, parameter: str | None, compress: bool, overwrite: bool, quiet: bool,
) -> None:  # fmt: skip
    """Write a store as a plain file, OUT.safetensors, OUT.h5 or OUT.npz, bit for bit.

    With --as prime-rl, write the folder OUT: a checkpoint of the first step, and what changed at each later one.

    \b
    Example:  deadtok export thimble_7.zarr dead.safetensors --variables W,grad --tokens dead
              deadtok export thimble_7.zarr stream --as prime-rl --parameter model.embed_tokens.weight
    """
    from deadtok_xr.engine.progress import reporting
    from deadtok_xr.recording.export import export as write_file
    from deadtok_xr.recording.sparse_stream import size_of

    names = None if variables is None else [name.strip() for name in variables.split(",") if name.strip()]
    remove_leftovers(store)
    with reporting("exporting", quiet=quiet) as report:
        write_file(
            store, out, variables=names, tokens=cast("Tokens", tokens), run=run, uint16=uint16 or None,
            source_dtype=source_dtype, format=format, parameter=parameter, compress=compress, overwrite=overwrite,
            progress=report,
        )  # fmt: skip
    echo(f"{out}: {size_of(out)} bytes")
