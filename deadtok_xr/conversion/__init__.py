"""Convert a recording that was saved in some other form into a recording store, bit for bit.

In: a file or folder in a format of others (`readers`). Out: a recording store, which opens only when all of it is
written. `inspect` finds out what the arrays of a source are, `options` holds what the source does not say itself (from
the caller or a recipe), `planning` combines both into a `ConversionPlan`, and `write` writes it; `verify` compares a
store with its source. `hub` fetches the embedding of a model's revisions first. May import `store`, `schema`,
`bfloat16`, `errors`, `kernels`, and `engine.cluster` for `verify`.

A new file format is a file in `readers` and a line in `readers.formats.FORMATS`; a new name of a known array is an
entry of `inspect.keys.KNOWN_KEYS`; facts about a family that are not in its files are a recipe, `conversion/*.toml`.
"""

from deadtok_xr.conversion.options import recipes
from deadtok_xr.conversion.run import convert

__all__ = ["convert", "recipes"]
