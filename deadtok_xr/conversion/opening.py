"""Open a source together with everything that belongs to it: metadata, initial weights, and the recipe's options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deadtok_xr.conversion.inspect.arrangement import arranged
from deadtok_xr.conversion.inspect.derived import join_rows, with_absolute_weights
from deadtok_xr.conversion.inspect.keys import KNOWN_KEYS
from deadtok_xr.conversion.inspect.per_step import stacked_per_step
from deadtok_xr.conversion.inspect.sidecars import with_metadata
from deadtok_xr.conversion.options import Options, with_recipe
from deadtok_xr.conversion.readers.formats import open_source
from deadtok_xr.conversion.readers.source import Source


@contextmanager
def open_with_options(
    src: Path, options: Options, recipe: str | Path | None = None
) -> Iterator[tuple[Source, Options]]:
    """Open a source as the options say; yield it with the options, completed by those of the recipe."""
    options = with_recipe(options, recipe)
    labels: Any = options.steps if options.steps in ("names", "content") else None
    with open_source(src, steps=labels) as opened:
        source = join_rows(with_metadata(opened, options.metadata), KNOWN_KEYS)
        source = arranged(stacked_per_step(source, options), options)
        if options.initial is not None:
            with open_source(options.initial) as initial:
                source = with_absolute_weights(source, initial, KNOWN_KEYS, options)
        yield source, options
