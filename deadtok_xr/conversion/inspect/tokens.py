"""Determine which token each row of a source is, and which tokens are dead."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.conversion.inspect.keys import KeyMap, label_key, numeric_entry, single_key
from deadtok_xr.conversion.inspect.proofs import are_whole
from deadtok_xr.conversion.options import Options, same_ids
from deadtok_xr.conversion.readers.source import TEXTS, Source, read_all
from deadtok_xr.errors import InputError
from deadtok_xr.store import TokenTable

DEAD_IDS = "dead_ids="
TOKEN_IDS = "token_ids="


@dataclass(frozen=True)
class Named:
    """An array with its name for messages."""

    name: str
    values: NDArray[Any]


@dataclass(frozen=True)
class RowTokens:
    """The tokens of the rows, how they are known, and the keys of the source that they come from."""

    rows: TokenTable
    reason: str
    keys: tuple[str, ...]


def find_row_tokens(source: Source, key_map: KeyMap, n_rows: int, variable: str, options: Options) -> RowTokens:
    """Determine the tokens of the rows from masks, lists of ids, the number of rows, and options.

    Raises
    ------
    InputError
        If the file or the options contradict each other, or are impossible.
    """
    mask, mask_keys = _mask(source, key_map, options)
    ids = _ids(source, single_key(source, key_map.dead_ids, "the dead ids", options))
    live = _ids(source, single_key(source, key_map.live_ids, "the live ids", options))
    known = tuple(key for key in key_map.token_ids if key != "token" or _is_of_rows(source, key, n_rows))
    tokens = _ids(source, label_key(source, "token", known, "the token ids of the rows", options))
    dead = label_key(source, "dead", key_map.dead, "which rows are dead", options)
    if dead is not None:
        mask, ids = _of_rows(source, dead, n_rows, tokens, mask, ids)
        mask_keys = (*mask_keys, dead)
    keys = (*mask_keys, *(x.name for x in (ids, live, tokens) if x is not None))
    if options.dead_ids is not None:
        ids = _from_option(source, options.dead_ids, mask, ids)
    if options.token_ids is not None:
        tokens = _checked_ids(source, Named(TOKEN_IDS, np.asarray(options.token_ids)))
    if mask is not None and ids is not None:
        _check_equal(source, mask, ids)
    _check_live(source, mask, ids, live)
    if tokens is not None:
        rows, reason = _rows_by_token(source, n_rows, variable, tokens, mask, ids)
    else:
        rows, reason = _rows(source, n_rows, variable, mask, ids, live)
    if live is not None and not _is_redundant(rows, live):
        keys = tuple(k for k in keys if k != live.name)  # it is not the complement of `dead`: kept as an array
    return RowTokens(_with_texts(source, rows), reason, keys)


def _is_of_rows(source: Source, key: str, n_rows: int) -> bool:
    """Return whether an array has one entry per row: ``token`` may also be something else."""
    return key in source.entries and source.entries[key].shape == (n_rows,)


def _of_rows(
    source: Source, key: str, n_rows: int, tokens: Named | None, mask: Named | None, ids: Named | None
) -> tuple[Named | None, Named | None]:
    """Return the dead mask and the dead ids, completed by what ``dead`` says: a bool per row, or a list of ids."""
    entry = numeric_entry(source, key)
    values = read_all(source, key) if len(entry.shape) == 1 else np.zeros(0)
    if values.shape == (n_rows,) and values.dtype.kind in "biu" and np.isin(values, (0, 1)).all():
        labels = np.arange(n_rows) if tokens is None else tokens.values
        found = Named(key, labels[: len(values)][values.astype(bool)].astype(np.int64))
        if mask is None and ids is None and tokens is None:
            return Named(key, values.astype(bool)), None
    elif len(entry.shape) == 1 and values.dtype.kind in "iu":
        found = _checked_ids(source, Named(key, values))
    else:
        raise InputError(
            f"{source.path}: {key!r} is {entry}; expected: one bool per row ({n_rows}), or a list of the ids of dead "
            "tokens"
        )
    if mask is not None:
        _check_equal(source, mask, found)
    if ids is not None and not same_ids(ids.values, found.values):
        raise InputError(
            f"{source.path}: {key!r} and {ids.name!r} name different dead tokens; expected: the same; write a file "
            "with the right one alone"
        )
    return mask, ids or found


def _with_texts(source: Source, rows: TokenTable) -> TokenTable:
    """Add the texts of the tokens, if the source holds one for each row."""
    texts = source.attributes.get(TEXTS)
    if isinstance(texts, str):
        try:
            texts = json.loads(texts)
        except ValueError:
            return rows
    fits = isinstance(texts, list) and len(texts) == len(rows.tokens) and all(isinstance(t, str) for t in texts)
    return replace(rows, text=texts) if fits else rows


def _rows_by_token(
    source: Source, n_rows: int, variable: str, tokens: Named, mask: Named | None, ids: Named | None
) -> tuple[TokenTable, str]:
    if len(tokens.values) != n_rows:
        raise InputError(
            f"{source.path}: {tokens.name!r} names {len(tokens.values)} tokens, and {variable!r} has {n_rows} rows; "
            "expected: one id for each row"
        )
    reason = f"the tokens of {tokens.name!r}, in its order"
    if mask is not None:
        _check_range(source, tokens, len(mask.values), f"the entries of {mask.name!r}")
        return TokenTable(tokens.values, mask.values[tokens.values]), f"{reason}; dead are those of {mask.name!r}"
    if ids is not None:
        dead = np.isin(tokens.values, ids.values)
        if ids.values.size and not dead.any():
            raise InputError(
                f"{source.path}: {ids.name!r} and {tokens.name!r} have no token in common; expected: vocabulary ids"
            )
        return TokenTable(tokens.values, dead), f"{reason}; dead are those in {ids.name!r}"
    return TokenTable(tokens.values), f"{reason}; nothing says which are dead"


def _rows(
    source: Source, n_rows: int, variable: str, mask: Named | None, ids: Named | None, live: Named | None
) -> tuple[TokenTable, str]:
    if mask is not None:
        return _rows_by_mask(source, n_rows, variable, mask, ids)
    if ids is None:
        return TokenTable(np.arange(n_rows)), f"token ids 0..{n_rows - 1}; nothing says which are dead"
    n_dead = len(ids.values)
    if n_rows == n_dead:
        return TokenTable(ids.values, np.ones(n_dead, bool)), f"the dead tokens alone, in the order of {ids.name!r}"
    _check_range(source, ids, n_rows, f"the rows of {variable!r}")
    if live is not None:
        _check_range(source, live, n_rows, f"the rows of {variable!r}")
    dead = np.zeros(n_rows, bool)
    dead[ids.values] = True
    return TokenTable(np.arange(n_rows), dead), f"token ids 0..{n_rows - 1}; dead are those in {ids.name!r}"


def _rows_by_mask(source: Source, n_rows: int, variable: str, mask: Named, ids: Named | None) -> tuple[TokenTable, str]:
    n, n_dead = len(mask.values), int(mask.values.sum())
    if n_rows == n:
        return TokenTable(np.arange(n), mask.values), f"token ids 0..{n - 1}; dead are those of {mask.name!r}"
    if n_rows == n_dead:
        tokens = np.flatnonzero(mask.values) if ids is None else ids.values
        order = "ascending" if ids is None else f"in the order of {ids.name!r}"
        return TokenTable(tokens, np.ones(n_dead, bool)), f"the dead tokens alone, {order}"
    raise InputError(
        f"{source.path}: {variable!r} has {n_rows} rows, but {mask.name!r} has {n} entries, {n_dead} of them "
        f"dead; expected: {n} rows, one per token, or {n_dead}, one per dead token; or say which token each row is "
        "with --token-ids FILE (token_ids=)"
    )


def _mask(source: Source, key_map: KeyMap, options: Options) -> tuple[Named | None, tuple[str, ...]]:
    """Return which tokens are dead, from a dead mask or else the complement of a live mask."""
    dead = _read_mask(source, key_map.dead_mask, "the dead mask", options)
    live = _read_mask(source, key_map.live_mask, "the live mask", options)
    if dead is not None and live is not None and not np.array_equal(dead.values, ~live.values):
        raise InputError(
            f"{source.path}: {dead.name!r} and {live.name!r} contradict each other; expected: each token in "
            "exactly one of them; write a file with the right one alone"
        )
    keys = tuple(x.name for x in (dead, live) if x is not None)
    if dead is None and live is not None:
        dead = Named(live.name, ~live.values)
    return dead, keys


def _read_mask(source: Source, keys: tuple[str, ...], meaning: str, options: Options) -> Named | None:
    key = single_key(source, keys, meaning, options)
    if key is None:
        return None
    entry = numeric_entry(source, key)
    values = read_all(source, key) if len(entry.shape) == 1 else None
    if values is None or values.dtype.kind not in "biu" or not np.isin(values, (0, 1)).all():
        raise InputError(f"{source.path}: {key!r} is {entry}; expected: one bool per vocabulary id, (token,), 0 or 1")
    return Named(key, values.astype(bool))


def _ids(source: Source, key: str | None) -> Named | None:
    if key is None:
        return None
    numeric_entry(source, key)
    return _checked_ids(source, Named(key, read_all(source, key)))


def _checked_ids(source: Source, ids: Named) -> Named:
    values = ids.values
    if values.ndim != 1 or (values.size and not are_whole(values)):
        raise InputError(
            f"{source.path}: {ids.name!r} is {values.dtype.name} {values.shape}; expected: a list of integer token ids"
        )
    values = values.astype(np.int64)
    unique, counts = np.unique(values, return_counts=True)
    if len(unique) < len(values):
        raise InputError(
            f"{source.path}: {ids.name!r} repeats the token id {unique[counts > 1][0]}; expected: each id once"
        )
    if values.size and unique[0] < 0:
        raise InputError(f"{source.path}: {ids.name!r} holds the token id {unique[0]}; expected: 0 or more")
    return Named(ids.name, values)


def _from_option(source: Source, dead_ids: Sequence[int], mask: Named | None, ids: Named | None) -> Named:
    """Return the ids of the option, after checking that they do not contradict the file."""
    named = _checked_ids(source, Named(DEAD_IDS, np.asarray(dead_ids)))
    if ids is not None:
        if not same_ids(named.values, ids.values):
            raise InputError(
                f"{source.path}: {DEAD_IDS} names {len(named.values)} tokens, and {ids.name!r} in the file "
                f"{len(ids.values)} others; expected: the same ones; leave {DEAD_IDS} out to use the file's"
            )
        return ids
    if mask is not None:
        _check_equal(source, mask, named)
    return named


def _check_equal(source: Source, mask: Named, ids: Named) -> None:
    _check_range(source, ids, len(mask.values), f"the entries of {mask.name!r}")
    listed = np.zeros(len(mask.values), bool)
    listed[ids.values] = True
    differ = np.flatnonzero(listed != mask.values)
    if differ.size:
        raise InputError(
            f"{source.path}: {mask.name!r} ({int(mask.values.sum())} dead) and {ids.name!r} ("
            f"{len(ids.values)}) contradict each other, first at token {differ[0]}; expected: the same dead "
            "tokens"
        )


def _check_range(source: Source, ids: Named, n: int, what: str) -> None:
    if ids.values.size and ids.values.max() >= n:
        raise InputError(
            f"{source.path}: {ids.name!r} holds the token id {ids.values.max()}, outside {what}; expected: 0 to {n - 1}"
        )


def _check_live(source: Source, mask: Named | None, ids: Named | None, live: Named | None) -> None:
    if live is None:
        return
    if mask is not None:
        _check_range(source, live, len(mask.values), f"the entries of {mask.name!r}")
    dead = Named(mask.name, np.flatnonzero(mask.values)) if mask is not None else ids
    both = np.intersect1d(live.values, dead.values) if dead is not None else live.values[:0]
    if dead is not None and both.size:
        raise InputError(
            f"{source.path}: {dead.name!r} and {live.name!r} contradict each other: token {both[0]} is "
            "dead and live; expected: each token in one of them"
        )


def _is_redundant(rows: TokenTable, live: Named) -> bool:
    """Return whether the list of live ids is the complement of the dead tokens."""
    if rows.dead is None:
        return False
    return bool(rows.dead.all()) or same_ids(live.values, rows.tokens[~rows.dead])
