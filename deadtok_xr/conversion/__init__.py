"""Convert a recording that somebody saved as HDF5 or safetensors into a recording store, bit for bit.

    open_source      ->  make_plan    ->  write_plan
    formats.py           planning.py      write.py, then verify.py
      sources.py           layout.py: the key map, which source key is which variable of a recording
      hdf5.py              rows.py: which token each row is, and which tokens are dead
      safetensors.py       plan.py: what comes out

A new file format is one file beside `hdf5.py` and one line in `formats.FORMATS`; a new naming habit is an
entry in `layout.KNOWN`, or a `Layout` of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["convert"]


def convert(
    src: str | Path,
    dest: str | Path,
    *,
    overwrite: bool = False,
    dead_ids: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Convert a recording to a recording store, bit for bit.

    The layout is detected: HDF5 or safetensors by content, variables by their keys (``W``, ``embeddings``,
    ``grad_W``, ``momentum_W``, ``deltas``, ... : `deadtok_xr.conversion.layout.KNOWN`). ``uint16`` is read as
    the bits of bfloat16. Memory stays near two blocks of steps, however long the recording is.

    Parameters
    ----------
    src
        An HDF5 or safetensors file.
    dest
        The store to write. What a conversion of the same file left unfinished there is begun again;
        anything else that exists is refused.
    overwrite
        Replace a store that exists at ``dest``.
    dead_ids
        Vocabulary ids of the dead tokens, for files that do not say.
    progress
        Called with the bytes done and the bytes to do, after every block.

    Returns
    -------
    ``dest``.

    Raises
    ------
    InputError
        If the file is missing, damaged, or no recording that is understood; if what it says of itself
        is contradictory. The message names the file, the variable, what was found and what is needed.
    DestinationExistsError
        If ``dest`` exists.
    OSError
        If the disk is full or cannot be written; the store stays incomplete and does not open.

    Warns
    -----
    UserWarning
        For values that are NaN or infinite (they are kept), for what of the file is left out, and for
        float32 or float16 weights: whether they all lie on the bfloat16 grid.

    Examples
    --------
    ::

        dx.convert("thimble_7.h5", "thimble_7.zarr")
        dx.convert("gatsby.safetensors", "gatsby.zarr", dead_ids=[0, 1, 2])
    """
    from deadtok_xr.conversion.formats import open_source
    from deadtok_xr.conversion.planning import make_plan
    from deadtok_xr.conversion.write import check_destination, write_plan

    src, dest = Path(src), Path(dest)
    with open_source(src) as source:
        replace = check_destination(src, dest, overwrite=overwrite)
        plan = make_plan(source, dead_ids=dead_ids)
        noticed = write_plan(plan, source, dest, overwrite=replace, progress=progress)
    for sentence in noticed:  # now that the store is whole: a warning may be turned into an error
        warnings.warn(sentence, UserWarning, stacklevel=2)
    return dest
