"""Find tokens that were never trained, from which distances are measured: the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, equal_rows
from deadtok_xr.analyses.common.token_blocks import HeldTokens, TokenBlocks
from deadtok_xr.errors import InputError

FOUND = ("black_hole", "beyond_tokenizer", "dead", "zeros")
"""The references that ``reference="auto"`` looks for; the first that is there, and is not the zero vector, is used."""
_NEEDED = {
    "beyond_tokenizer": "the tokenizer of the model: give tokenizer=FILE (--tokenizer FILE)",
    "dead": "to know which tokens are dead: name them with `deadtok label --dead-ids FILE`",
}


def candidates(
    ds: xr.Dataset, reference: Sequence[int] | str, beyond: NDArray[np.bool_] | None
) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    """Return the kinds of references that are considered, and a mask of tokens for each.

    The masks of ``black_hole`` and ``zeros``, which only the values show, are empty.

    Parameters
    ----------
    ds
        The recording.
    reference
        As in `undertrained`.
    beyond
        Which tokens the tokenizer does not have, if it is known.

    Raises
    ------
    InputError
        If a reference is named that cannot be had.
    """
    n = ds.sizes["token"]
    if not isinstance(reference, str):
        return ("given",), _given(ds, reference)[None]
    dead = ds["dead"].values if "dead" in ds.coords else None
    masks = {"black_hole": np.zeros(n, bool), "zeros": np.zeros(n, bool)}
    masks |= {"beyond_tokenizer": beyond} if beyond is not None and beyond.any() else {}
    masks |= {"dead": dead} if dead is not None and dead.any() and not dead.all() else {}
    if reference == "auto":
        kinds = tuple(kind for kind in FOUND if kind in masks)
        return kinds, np.stack([masks[kind] for kind in kinds])
    if reference not in FOUND:
        raise InputError(
            f"reference={reference!r}: say 'auto', {', '.join(map(repr, FOUND))}, or give a list of token ids"
        )
    if reference not in masks:
        raise InputError(f"undertrained: reference={reference!r} finds no token; it needs {_NEEDED[reference]}")
    return (reference,), masks[reference][None]


def _given(ds: xr.Dataset, reference: Sequence[int]) -> NDArray[np.bool_]:
    tokens, wanted = checks.token_ids(ds), np.atleast_1d(np.asarray(reference))
    if not wanted.size or wanted.dtype.kind not in "iu":
        raise InputError("undertrained: reference= names no token; give ids of untrained tokens, or 'auto'")
    missing = wanted[~np.isin(wanted, tokens)]
    if missing.size:
        raise InputError(
            f"undertrained: the reference names token {missing[0]}, which is not in this dataset of {len(tokens)} "
            f"tokens, {tokens.min()} to {tokens.max()}: name tokens that it has"
        )
    return np.isin(tokens, wanted)


def find(
    parts: list[dict[str, Any]],
    *,
    blocks: TokenBlocks | HeldTokens,
    kinds: tuple[str, ...],
    masks: NDArray[np.bool_],
    tied: bool,
) -> dict[str, Any]:
    """Return for each kind the mean row of its tokens and which these are; the mean row; the kind that is used; norms.

    Raises
    ------
    InputError
        If there is no reference, and nothing else from which to tell the tokens of tied weights apart.
    """
    square = np.concatenate([part["square"] for part in parts])
    sums = np.sum([part["sums"] for part in parts], axis=0)
    valid = np.isfinite(square)
    members = masks & valid
    rows = np.full((len(kinds), blocks.n_dims), np.nan)
    for k, kind in enumerate(kinds):
        if kind == "black_hole":
            group = equal_rows.largest_group([part["samples"] for part in parts], valid & (square > 0), blocks)
            members[k, group] = True
            rows[k : k + 1] = blocks.rows(group[:1].tolist()) if group.size else np.nan
        elif kind == "zeros":
            members[k] = square == 0
            rows[k] = 0 if members[k].any() else np.nan
        elif members[k].any():
            rows[k] = sums[1 + k] / members[k].sum()
    with np.errstate(invalid="ignore"):  # no valid token
        mean = sums[0] / valid.sum()
    there = members.any(axis=1)
    directed = there & (np.abs(rows) > 0).any(axis=1)
    used = int(np.argmax(directed if directed.any() else there)) if there.any() else -1
    if used < 0 and tied:
        raise _no_reference(kinds, int(valid.sum()), len(valid))
    return {"rows": rows, "members": members, "mean": mean, "used": used, "square": square}


def _no_reference(kinds: tuple[str, ...], n_valid: int, n: int) -> InputError:
    if not n_valid:
        return InputError(f"undertrained: each of the {n} tokens has NaN or infinity, so there is nothing to measure")
    if kinds == ("given",):
        return InputError("undertrained: all tokens of the reference have NaN or infinity: name others")
    return InputError(
        "undertrained: nothing shows which tokens were never trained: no two rows are equal, and no row is zero; the "
        "weights are tied, so that the norm does not show it either. Name such tokens with reference=[ids] "
        "(--reference IDS), or give the tokenizer of a model with more rows than tokens with tokenizer=FILE "
        "(--tokenizer FILE)"
    )
