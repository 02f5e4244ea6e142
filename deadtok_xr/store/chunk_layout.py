"""Choose the chunk shapes of a recording: about 8 MiB, so that a chunk is decoded in a few milliseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence

CHUNK_BYTES = 8 * 2**20
CHUNK_STEPS = 128
CHUNK_TOKENS = 512


def chunk_shape(
    n_tokens: int, n_dims: int, itemsize: int, n_dead: int = 0, n_steps: int = CHUNK_STEPS
) -> tuple[int, int, int]:
    """Return the chunk sizes along (step, token, dim): about 8 MiB, all dims, 128 steps if a step is small.

    The token size divides the dead tokens evenly, so that reading them reads next to no live ones.
    """
    row = n_dims * itemsize
    steps = min(CHUNK_STEPS, n_steps, max(1, CHUNK_BYTES // (64 * row)))
    group = n_dead or n_tokens
    most = max(1, min(CHUNK_TOKENS if steps > 1 else n_tokens, CHUNK_BYTES // (steps * row)))
    tokens = math.ceil(group / math.ceil(group / most)) if group else 1
    return steps, max(1, min(tokens, n_tokens)), n_dims


def chunks_of(dims: Sequence[str], shape: Sequence[int], itemsize: int, n_dead: int = 0) -> tuple[int, ...]:
    """Return the chunk sizes of any variable: those of `chunk_shape` for matrices, about 8 MiB for others.

    A length of 0 along `step` means that the length is not known yet. A chunk never holds two runs, because runs are
    written, and mostly read, one at a time.
    """
    sizes = dict(zip(dims, shape, strict=True))
    rest = math.prod(n for dim, n in sizes.items() if dim not in ("run", "step", "token"))
    tokens = sizes.get("token", 1)
    if "token" in sizes:
        steps, tokens, _ = chunk_shape(tokens, rest, itemsize, n_dead, sizes.get("step", 1) or CHUNK_STEPS)
    else:
        steps = max(1, min(65536, CHUNK_BYTES // max(1, rest * itemsize)))
    return tuple({"run": 1, "step": steps, "token": tokens}.get(dim, n) for dim, n in sizes.items())
