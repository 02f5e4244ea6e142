"""Find tokens that were hardly trained, from one step of a recording or a saved model.

references     where to measure from: tokens that were never trained
passes         the readings of the matrix, block of tokens after block
pc1            its first principal axis
outputs        the variables and how they follow
at_steps       all indicators at selected steps, for `token_indicators`
relations      what they have to do with dead tokens, and with freezing
findings       what they say, as sentences and a table
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, step_selection
from deadtok_xr.analyses.common.token_blocks import TokenBlocks
from deadtok_xr.analyses.undertrained import outputs, passes, references
from deadtok_xr.analyses.undertrained.pc1 import principal_axis
from deadtok_xr.engine.small_results import compute_together, gather
from deadtok_xr.errors import InputError

__all__ = ["undertrained"]


def undertrained(
    ds: xr.Dataset | str | Path,
    *,
    step: int = -1,
    reference: Sequence[int] | str = "auto",
    variable: str = "W",
    input_variable: str = "E",
    tokenizer: str | Path | None = None,
    share: float = 0.02,
    eps: float = 1e-16,
) -> xr.Dataset:
    """Measure how little each token of a vocabulary seems to have been trained, from its weights at one step.

    Rows of tokens that were never trained have moved together, so that they lie near each other, and tokens that were
    hardly trained lie near them. Distances are measured from a *reference*: the mean row of tokens that were never
    trained.

    Parameters
    ----------
    ds
        A recording, or the path of a saved model or a store: a safetensors, torch, HDF5 or NumPy file, the index of a
        sharded model, its folder, a folder of checkpoints, or ``hf://ORG/MODEL``. Torch files are read without running
        code from them.
    step
        The label of the step; -1 for the last one.
    reference
        Ids of tokens that were never trained. ``"auto"``: all of these are tried, and the first that is there is used:
        ``"black_hole"``, the largest group of rows that are bit for bit equal and not zero; ``"beyond_tokenizer"``,
        rows that the tokenizer has no token for; ``"dead"``, tokens that never occur in the data, where they are known;
        ``"zeros"``, rows of zeros. A reference whose mean row is zero has no direction, and is used only if there is no
        other. Each can be named instead.
    variable, input_variable
        The output layer, and the input embedding of untied weights. Without an input embedding the weights are tied.
    tokenizer
        The ``tokenizer.json`` of the model. Each token is decoded and encoded again, which tells tokens apart that text
        cannot become; needs the library `tokenizers`.
    share
        The share of tokens that are candidates.
    eps
        For `below_eps`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset. Per token, float64: `norm` (of the input embedding where there is one), `cosine_distance`,
        `cosine_distance_centered`, `cosine_distance_without_pc1`, `l2_distance`; bool: `all_zero`, `below_eps`,
        `candidate`, `is_reference`; int64: `rank`. Candidates have the lowest share of `cosine_distance`, or of `norm`
        if the weights are untied; `indicator` says which, and `threshold` up to which value. Per `reference` that was
        tried: `reference_size`, its tokens; `reference_used`; `reference_agreement`, of the tokens nearest to the
        reference used, the share that is nearest to this one too. `pc1_gap` says how well the first principal component
        is determined. With a tokenizer `token_kind` and the coordinate `token_text`.

        Without a reference, the distances from untied weights are NaN.

    Raises
    ------
    InputError
        For a step, token or reference that does not exist, a tokenizer with more tokens than there are rows, or a file
        that cannot be read. When computed, if the weights are tied and no reference is found.

    Notes
    -----
    The indicators are those of Land and Bartolo, *Fishing for Magikarp* (arXiv:2405.05417), with the same limit of 1e-6
    for products of norms. The matrix is read twice, in blocks of tokens and in the memory of a few of them.
    `cosine_distance_without_pc1` and `pc1_gap` need some five more readings, or N·D² operations for up to 512 dims and
    where the largest two variances hardly differ, but only if they are computed:
    ``undertrained(ds).drop_vars(["cosine_distance_without_pc1", "pc1_gap"])`` does without them.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> W = np.random.default_rng(0).normal(size=(1, 100, 8)).astype(np.float32)
    >>> W[0, 90:] = W[0, 90]
    >>> ds = xr.Dataset({"W": (("step", "token", "dim"), W)}, {"step": [0], "token": np.arange(100)})
    >>> found = undertrained(ds, share=0.1).compute()
    >>> found.token[found.candidate].values.tolist()
    [90, 91, 92, 93, 94, 95, 96, 97, 98, 99]
    """
    _check(share, eps)
    ds = _opened(ds)
    x = checks.require(ds, variable, "undertrained")
    label = _step_label(x, step)
    blocks = _blocks(x, label)
    tied = input_variable not in ds or input_variable == variable
    texts, kinds = _of_tokenizer(ds, tokenizer)
    beyond, ranked, allowed = _eligible(ds, kinds)
    tried, masks = references.candidates(ds, reference, beyond)
    parts = blocks.each(passes.describe, masks, "black_hole" in tried, eps)
    found = gather([parts], partial(references.find, blocks=blocks, kinds=tried, masks=masks, tied=tied))
    inputs = {"output": parts, "references": found, "distances": blocks.each(passes.distances, after=[found])}
    if not tied:
        inputs["input"] = _input_parts(ds, input_variable, label, eps)
    n = ds.sizes["token"]
    values = compute_together(
        inputs, outputs.combine, outputs.shapes(n, len(tried)), outputs.ATTRS,
        share=share, ranked=ranked, allowed=allowed,
    )  # fmt: skip
    axis = gather([], partial(principal_axis, blocks=blocks))
    inputs = {"without": blocks.each(passes.without_axis, after=[found, axis]), "axis": axis}
    values |= compute_together(inputs, outputs.combine_without_pc1, outputs.shapes_without_pc1(n), outputs.ATTRS)
    coords = {**coordinates.along(ds, "token"), **texts, "reference": list(tried)}
    attrs = checks.result_attrs(
        ds, variable=variable, input_variable="" if tied else input_variable, step=label, tied=tied, share=share,
        eps=eps, reference=reference if isinstance(reference, str) else "given", n_dims=ds.sizes["dim"],
    )  # fmt: skip
    return xr.Dataset({**values, **_kind_variable(kinds)}, coords, attrs)


def _check(share: float, eps: float) -> None:
    if not 0 < share <= 1:
        raise InputError(f"undertrained: share={share}; expected a share of the tokens, above 0 and at most 1")
    if not eps >= 0:
        raise InputError(f"undertrained: eps={eps}; expected 0 or more")


def _opened(ds: xr.Dataset | str | Path) -> xr.Dataset:
    from deadtok_xr.checkpoints.weights import open_weights

    return open_weights(ds) if isinstance(ds, (str, Path)) else ds


def _step_label(x: xr.DataArray, step: int) -> int:
    labels = x["step"].values if "step" in x.coords else np.arange(x.sizes["step"])
    if step == -1:
        return int(labels[-1])
    if step not in labels:
        raise step_selection.missing_step("undertrained", step, labels)
    return int(step)


def _blocks(x: xr.DataArray, label: int) -> TokenBlocks:
    rows = checks.as_dask(step_selection.select_one_step(x, label, "undertrained").data)
    return TokenBlocks(rows if rows.numblocks[0] == 1 else rows.rechunk({0: 1}))


def _input_parts(ds: xr.Dataset, name: str, label: int, eps: float) -> da.Array:
    blocks = _blocks(checks.require(ds, name, "undertrained"), label)
    return blocks.each(passes.describe, np.zeros((0, ds.sizes["token"]), bool), False, eps)


def _of_tokenizer(ds: xr.Dataset, path: str | Path | None) -> tuple[dict[str, xr.Variable], NDArray[np.int8] | None]:
    """Return the texts of the tokens as a coordinate, and what each token is, by the tokenizer."""
    if path is None:
        return {}, None
    from deadtok_xr.store.reachability import load_tokenizer, token_kinds
    from deadtok_xr.store.tokenizer import token_texts

    tokens = checks.token_ids(ds)
    tokenizer, texts = load_tokenizer(path), token_texts(path)
    whole = np.array_equal(tokens, np.arange(len(tokens)))
    if whole and max(texts, default=-1) >= len(tokens):
        raise InputError(
            f"{path} has {len(texts):,} tokens, the last of them {max(texts)}, but there are {len(tokens):,} rows; "
            "expected: the tokenizer of this model"
        )
    if not any(int(token) in texts for token in tokens):
        raise InputError(
            f"{path} has {len(texts):,} tokens, but none of the {len(tokens):,} here, which are {tokens.min()} to "
            f"{tokens.max()}; expected: the tokenizer of this model"
        )
    named = np.array([texts.get(int(token), "") for token in tokens], object)
    return {"token_text": xr.Variable("token", named)}, token_kinds(tokenizer, tokens)


def _eligible(
    ds: xr.Dataset, kinds: NDArray[np.int8] | None
) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which tokens the tokenizer lacks, which the threshold is taken from, and which may be candidates."""
    from deadtok_xr.store.reachability import KINDS

    if kinds is not None:
        is_a = {name: kinds == k for k, name in enumerate(KINDS)}
        return is_a["beyond_tokenizer"], is_a["reachable"], is_a["reachable"] | is_a["special"]
    beyond = ds["token_text"].values == "" if "token_text" in ds.coords else None
    if beyond is None or beyond.all() or not beyond.any():
        return None, *2 * (np.ones(ds.sizes["token"], bool),)
    return beyond, ~beyond, ~beyond


def _kind_variable(kinds: NDArray[np.int8] | None) -> dict[str, xr.Variable]:
    from deadtok_xr.store.reachability import KINDS

    if kinds is None:
        return {}
    attrs = {
        "long_name": "what the token is, by the tokenizer", "units": "1", "flag_values": list(range(len(KINDS))),
        "flag_meanings": " ".join(KINDS),
        "comment": "reachable: decoded and encoded again, it is the same token",
    }  # fmt: skip
    return {"token_kind": xr.Variable("token", kinds, attrs)}
