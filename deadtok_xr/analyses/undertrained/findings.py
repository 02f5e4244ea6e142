"""Say what `undertrained` found: sentences first, then a table of the candidates, the least trained ones first."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common.summary_text import number, percent
from deadtok_xr.analyses.undertrained.outputs import INDICATORS
from deadtok_xr.attributes import plain
from deadtok_xr.text import quoted, ranges, table

WIDTH, HEIGHT = 100, 40
_REFERENCES = {
    "given": "the tokens that were named",
    "black_hole": "the largest black hole, rows that are bit for bit equal",
    "beyond_tokenizer": "the rows beyond the tokenizer",
    "dead": "the tokens known to be dead",
    "zeros": "the rows of zeros",
}
_KIND_WORDS = {
    "special": "special", "unreachable": "cannot be made from text", "undecodable": "parts of characters",
    "unreachable_special": "look special and cannot be made from text", "beyond_tokenizer": "not in the tokenizer",
}  # fmt: skip
_INDICATOR_WORDS = {
    "norm": "the norm of the input embedding",
    "cosine_distance": "the cosine distance to the reference",
    "l2_distance": "the distance to the reference",
}
_COLUMNS = {
    "norm": "norm", "cosine_distance": "cosine", "cosine_distance_centered": "centered",
    "cosine_distance_without_pc1": "without PC1", "l2_distance": "L2",
}  # fmt: skip


def describe(found: xr.Dataset) -> str:
    """Return the findings and a table of candidates that do not belong to the reference, on one screen."""
    lines = [line for sentence in sentences(found) for line in textwrap.wrap(sentence, WIDTH, subsequent_indent="  ")]
    lines = lines[: HEIGHT - 8]
    at = _listed(found)
    if not at.size:
        return "\n".join(lines)
    room = HEIGHT - len(lines) - 3
    more = [f"and {len(at) - room:,} more: save them with --csv FILE"] if len(at) > room else []
    return "\n".join([*lines, "", *_table(found, at[:room]), *more])


def rows(found: xr.Dataset, at: NDArray[np.int64] | None = None) -> Iterator[dict[str, Any]]:
    """Yield what is known of tokens as values of JSON, by default of all tokens in the order of their rank."""
    rank = found["rank"].values
    order = np.lexsort((rank, rank < 0)) if at is None else at
    columns: dict[str, list[Any]] = {"token": found["token"].values[order].tolist()}
    if "token_text" in found.coords:
        columns["text"] = found["token_text"].values[order].tolist()
    names = ["rank", "candidate", *_COLUMNS, "all_zero", "below_eps", "is_reference"]
    columns |= {name: found[name].values[order].tolist() for name in names if name in found}
    if "dead" in found.coords:
        columns["dead"] = found["dead"].values[order].tolist()
    if "token_kind" in found:
        columns["kind"] = _kinds(found)[order].tolist()
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def sentences(found: xr.Dataset) -> list[str]:
    """Return what was found, the most important first."""
    return [
        *_of_candidates(found), *_of_reference(found), *_of_dead_tokens(found), *_of_zeros(found),
        *_of_tokenizer(found), *_not_finite(found), *_few_tokens(found),
    ]  # fmt: skip


def indicator(found: xr.Dataset) -> str:
    """Return the name of the indicator of `candidate`."""
    return INDICATORS[int(found["indicator"])]


def _of_candidates(found: xr.Dataset) -> Iterator[str]:
    candidate, of_reference = found["candidate"].values, found["is_reference"].values
    n, n_reference = int(candidate.sum()), int((candidate & of_reference).sum())
    name = indicator(found)
    share = percent(float(found.attrs["share"]))
    kinds = "reachable tokens" if "token_kind" in found else "tokens"
    inside = f", {n_reference:,} of them tokens of the reference" if n_reference else ""
    tied = "tied" if plain(found.attrs["tied"]) else "untied"
    yield (
        f"{n:,} of {found.sizes['token']:,} tokens may be under-trained{inside}: the lowest {share} of the {kinds} by "
        f"{_INDICATOR_WORDS[name]} (up to {number(_shown(float(found['threshold'])))}; the weights are {tied})."
    )
    if n and n == n_reference < found.sizes["token"]:
        yield (
            "All of these belong to the reference, and the table shows the nearest tokens outside it: with a larger "
            "share= (--share) they are candidates too."
        )


def _of_reference(found: xr.Dataset) -> Iterator[str]:
    kinds, sizes = found["reference"].values.tolist(), found["reference_size"].values
    used = np.flatnonzero(found["reference_used"].values)
    if not used.size:
        yield (
            "No reference was found, so there are no distances: no two rows are equal and no row is zero; name tokens "
            "that were never trained with reference=[ids] (--reference IDS), or give tokenizer=FILE (--tokenizer FILE)."
        )
        return
    ids = found["token"].values[found["is_reference"].values]
    which = f"{_tokens(sizes[used[0]])} ({ranges(ids.tolist())})"
    yield f"Distances are measured from the reference, {_REFERENCES[kinds[used[0]]]}: {which}."
    others = [k for k in np.flatnonzero(sizes) if k != used[0]]
    share = percent(float(found.attrs["share"]))
    for k in others:
        agreement = float(found["reference_agreement"][k])
        yield (
            f"Measured from {_REFERENCES[kinds[k]]} instead ({sizes[k]:,}), {percent(agreement)} of the lowest {share} "
            "of the distances would be the same tokens."
        )


def _of_dead_tokens(found: xr.Dataset) -> Iterator[str]:
    if "dead" not in found.coords or not found["dead"].values.any():
        return
    dead, candidate = found["dead"].values, found["candidate"].values
    both = int((dead & candidate).sum())
    n_candidates = int(candidate.sum())
    precision = f"; {percent(both / n_candidates)} of the candidates are dead" if n_candidates else ""
    yield f"Of the {int(dead.sum()):,} tokens known to be dead, {both:,} are candidates{precision}."


def _of_zeros(found: xr.Dataset) -> Iterator[str]:
    zero, below = found["all_zero"].values, found["below_eps"].values
    of_input = "" if plain(found.attrs["tied"]) else " in the input embedding"
    if zero.any():
        ids = found["token"].values[zero].tolist()
        verb = "row is" if len(ids) == 1 else "rows are"
        yield f"{len(ids):,} {verb} zero throughout{of_input} ({ranges(ids)})."
    negative = int((below & ~zero).sum())
    if negative:
        verb = "row without being zero has" if negative == 1 else "rows without being zero have"
        yield (
            f"{negative:,} {verb} no value above {found.attrs['eps']:g}{of_input}: a check of the largest value would "
            "count them as untrained."
        )


def _of_tokenizer(found: xr.Dataset) -> Iterator[str]:
    if "token_kind" not in found:
        return
    kinds = _kinds(found)
    counts = {words: int((kinds == kind).sum()) for kind, words in _KIND_WORDS.items()}
    said = ", ".join(f"{n:,} {words}" for words, n in counts.items() if n)
    n = int((kinds == "reachable").sum())
    yield f"By the tokenizer {n:,} tokens are reachable{f'; {said}' if said else ''}."
    if (kinds == "beyond_tokenizer").mean() > 0.5:
        yield "The tokenizer has no token for more than half of the rows: it may be that of another model."


def _not_finite(found: xr.Dataset) -> Iterator[str]:
    n = int(np.isnan(found["norm"].values).sum())
    if n:
        yield f"{_tokens(n)} {'has' if n == 1 else 'have'} NaN or infinity and {'is' if n == 1 else 'are'} left out."


def _shown(x: float) -> float:
    """Return 0 for what is only rounding."""
    return 0.0 if abs(x) < 1e-12 else x


def _tokens(n: int) -> str:
    return f"{n:,} token{'' if n == 1 else 's'}"


def _kinds(found: xr.Dataset) -> NDArray[Any]:
    return np.array(found["token_kind"].attrs["flag_meanings"].split())[found["token_kind"].values]


def _listed(found: xr.Dataset) -> NDArray[np.int64]:
    """Return the positions of the tokens of the table, in the order of their ranks.

    These are the candidates outside the reference; if it holds all candidates, the nearest tokens outside it.
    """
    candidate, outside, rank = found["candidate"].values, ~found["is_reference"].values, found["rank"].values
    chosen = outside & (candidate if (candidate & outside).any() else (rank > 0) & candidate.any())
    at = np.flatnonzero(chosen)
    return at[np.argsort(rank[at])]


def _table(found: xr.Dataset, at: NDArray[np.int64]) -> list[str]:
    columns = [(head, found[name].values[at]) for name, head in _COLUMNS.items() if name in found]
    columns = [(head, values) for head, values in columns if np.isfinite(values).any()]
    head = ["rank", "token", *(head for head, _ in columns)]
    cells = [
        [
            str(found["rank"].values[i]),
            str(found["token"].values[i]),
            *(f"{_shown(values[k]):.4g}" for _, values in columns),
        ]
        for k, i in enumerate(at)
    ]
    align = ">" * len(head)
    if "dead" in found.coords:
        head.append("dead")
        cells = [[*row, "dead" if found["dead"].values[i] else ""] for row, i in zip(cells, at, strict=True)]
    if "token_kind" in found:
        head.append("kind")
        cells = [[*row, str(kind)] for row, kind in zip(cells, _kinds(found)[at], strict=True)]
    lines = table([head, *cells], align)
    if "token_text" not in found.coords:
        return lines
    width = max(map(len, lines))
    texts = ["text", *(quoted(str(found["token_text"].values[i]), max(10, WIDTH - width - 2)) for i in at)]
    return [f"{line:{width}}  {text}" for line, text in zip(lines, texts, strict=True)]


def _few_tokens(found: xr.Dataset) -> Iterator[str]:
    n, n_dims = found.sizes["token"], int(found.attrs.get("n_dims", 0))
    if n < n_dims:
        yield (
            f"There are fewer tokens ({n:,}) than dims ({n_dims:,}), which no language model has: are the rows of this "
            "matrix tokens?"
        )
