"""Open a source together with everything that belongs to it: metadata, initial weights, and the recipe's options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from deadtok_xr.conversion.hub import is_hub_address, open_revisions
from deadtok_xr.conversion.inspect.arrangement import arranged
from deadtok_xr.conversion.inspect.derived import join_rows, with_absolute_weights
from deadtok_xr.conversion.inspect.keys import KNOWN_KEYS
from deadtok_xr.conversion.inspect.models import find_matrices
from deadtok_xr.conversion.inspect.per_step import stacked_per_step
from deadtok_xr.conversion.inspect.sidecars import with_metadata
from deadtok_xr.conversion.options import Options, with_recipe
from deadtok_xr.conversion.plan import Progress
from deadtok_xr.conversion.readers import prime_rl, trl_deltas
from deadtok_xr.conversion.readers.delta_stream import DeltaStream, Full, States
from deadtok_xr.conversion.readers.formats import open_source
from deadtok_xr.conversion.readers.source import Source
from deadtok_xr.conversion.readers.stacked import Stacked
from deadtok_xr.errors import InputError


@contextmanager
def open_with_options(
    src: Path | str,
    options: Options,
    recipe: str | Path | None = None,
    *,
    fetched: Path | None = None,
    fetching: Progress | None = None,
) -> Iterator[tuple[Source, Options]]:
    """Open a source as the options say; yield it with the options, completed by those of the recipe.

    What is fetched from a Hub is kept in the folder ``fetched``, or, if that is None, only while the source is open.
    """
    options = with_recipe(options, recipe)
    if is_hub_address(src):
        with open_revisions(str(src), options, fetched, fetching) as (source, told):
            yield with_metadata(source, told.metadata), told
        return
    if options.revisions:
        raise InputError(f"{src} is not on a Hub: leave out --revisions (revisions=), or name hf://ORG/MODEL")
    src = Path(src)
    stream = _stream(src, options)
    if stream is not None:
        with stream[0] as opened:
            yield with_metadata(opened, options.metadata), stream[1]
        return
    labels: Any = options.steps if options.steps in ("names", "content") else None
    with open_source(src, steps=labels) as opened:
        if isinstance(opened, Stacked):
            options = _with_step_axis(opened, options)
        source = join_rows(with_metadata(opened, options.metadata), KNOWN_KEYS)
        source = arranged(stacked_per_step(source, options), options)
        if options.initial is not None:
            with open_source(options.initial) as initial:
                source = with_absolute_weights(source, initial, KNOWN_KEYS, options)
        yield source, options


def _with_step_axis(source: Stacked, options: Options) -> Options:
    """Return options with a leading step where dimensions are those of an array in one of several checkpoints."""
    short = {
        key: ("step", *given) for key, given in options.dims.items()
        if "step" not in given and key in source.entries and len(source.entries[key].shape) == len(given) + 1
    }  # fmt: skip
    return replace(options, dims={**options.dims, **short}) if short else options


def _stream(src: Path, options: Options) -> tuple[Source, Options] | None:
    """Open a stream of sparse updates, with options that say what it proves; None if it is none."""
    folder = prime_rl.stream_folder(src)
    if folder is not None:
        found = prime_rl.find_states(folder, options.initial, open_source)
    elif trl_deltas.is_stream(src):
        found = trl_deltas.find_states(src, options.initial, open_source)
    else:
        return None
    parameter = options.keys.get("W") or _embedding(found, options)
    keys = {**options.keys, "W": parameter}
    source = DeltaStream(src, found, parameter)
    return source, replace(options, keys=keys, steps="recorded", recorded="after")


def _embedding(found: States, options: Options) -> str:
    """Return the name of the embedding in the first checkpoint of a stream."""
    first = found.states[0]
    assert isinstance(first, Full)
    with first.open() as source:
        keys = find_matrices(source, options).keys
        if "W" not in keys:
            names = [name for name, entry in source.entries.items() if len(entry.shape) == 2]
            raise InputError(
                f"{first.path}: no name shows which matrix is the embedding; name the parameter to record with "
                f"--parameter NAME (parameter=), such as {names[0] if names else 'model.embed_tokens.weight'}"
            )
    return keys["W"]
