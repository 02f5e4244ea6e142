"""Relate the signs of under-training at each checkpoint to when tokens froze, and to which are dead: could one tell?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, step_selection
from deadtok_xr.analyses.common.last_motion import LastMotion
from deadtok_xr.analyses.common.rank_correlation import JACKKNIFE, interval_attrs
from deadtok_xr.analyses.common.summary_text import number, percent
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.analyses.undertrained import references, relations
from deadtok_xr.analyses.undertrained.at_steps import DEAD, FOUND, INDICATORS, Indicators
from deadtok_xr.engine import AnalysisSpec, Cost, ReductionResults
from deadtok_xr.engine.small_results import compute_together
from deadtok_xr.errors import InputError

Mask = NDArray[np.bool_]
_D = "Somers' D = 2·C - 1, C Harrell's concordance"
_SIGN = "positive: tokens with larger values {}"
ATTRS: dict[str, dict[str, Any]] = {
    "value": {
        "long_name": "value of the indicator", "units": "1", "comment": "as in `undertrained`; NaN without a reference",
    },
    "reference_kind": {
        "long_name": "what the reference is that shows itself", "units": "1",
        "flag_values": list(range(len(relations.KINDS))), "flag_meanings": " ".join(relations.KINDS),
    },
    "reference_size": {"long_name": "tokens of the reference", "units": "1"},
    "candidate": {"long_name": "whether the token may be under-trained", "units": "1", "comment": "as `undertrained`"},
    "candidates_kept": {
        "long_name": "share of the candidates of the last checkpoint that are candidates already", "units": "1",
    },
    "precision": {
        "long_name": "share of the candidates that are dead", "units": "1", "formula": "#(candidate ∧ dead)/#candidate",
    },
    "recall": {
        "long_name": "share of the dead tokens that are candidates", "units": "1",
        "formula": "#(candidate ∧ dead) / #dead", "comment": "at most share·N / #dead",
    },
    "lowest_dead": {
        "long_name": "share of dead tokens among as many tokens with the lowest values", "units": "1",
        "formula": "#(dead ∧ rank <= #dead) / #dead", "comment": "precision and recall at once; equal values share it",
    },
    "auc": {
        "long_name": "probability that a dead token has a lower value than a live one", "units": "1",
        "formula": "mean over pairs of [value_dead < value_live] + ½[=]", "comment": "0.5 by chance",
    },
    "told_from": {
        "long_name": "first checkpoint from which on the lowest values are those of dead tokens", "units": "step",
        "formula": f"first t with lowest_dead >= {relations.ENOUGH} at all checkpoints from t on",
        "comment": "-1: at none",
    },
    "freeze_correlation": {
        "long_name": "rank correlation of the indicator with the freeze step", "units": "1", "formula": _D,
        "comment": _SIGN.format("freeze later. Of the dead tokens where they are known. A pair counts if its earlier "
                                "freeze was observed"),
    },
    **interval_attrs("freeze_correlation", "the correlation with the freeze step", JACKKNIFE),
    "n_pairs": {"long_name": "pairs of tokens of known order of freezing", "units": "1"},
    "count_correlation": {
        "long_name": "rank correlation of the indicator with the number of occurrences", "units": "1", "formula": _D,
        "comment": _SIGN.format("occur more often. Of tokens that occur; pairs of equally frequent ones are left out"),
    },
    **interval_attrs("count_correlation", "the correlation with the occurrences", JACKKNIFE),
    "p_dead_correlation": {
        "long_name": "rank correlation over checkpoints of the mean indicator of dead tokens with p_dead", "units": "1",
        "formula": "Spearman's ρ", "comment": "consecutive checkpoints are alike: the interval is too narrow",
    },
    **interval_attrs("p_dead_correlation", "the correlation with p_dead"),
    "n_frozen": {"long_name": "tokens that moved and froze", "units": "1"},
    "n_censored": {"long_name": "tokens that still moved at the last step", "units": "1"},
}  # fmt: skip
_AT_MOST, _AT_LEAST = 17, 9
_OPERATIONS = 1e11
"""N·D² of all checkpoints that are selected by default: some 3 s."""


@built_in
def token_indicators(
    ds: xr.Dataset, *, steps: Sequence[int] | None = None, reference: Sequence[int] | str = "auto",
    share: float = 0.02, variable: str = "W", input_variable: str = "E",
) -> AnalysisSpec:  # fmt: skip
    """Measure at several steps what `undertrained` measures, and relate it to freezing and to which tokens are dead.

    Parameters
    ----------
    ds
        A recording or checkpoints of a run, with at least two steps, (step, token, dim); gaps do not matter.
    steps
        Labels of the checkpoints. None: up to 17 at equal distances, the first and the last among them; of wide models
        fewer, at least 9, since each costs N·D² operations, and all together at most 10¹¹.
    reference
        Ids of tokens that were never trained, or ``"auto"``: what `undertrained` finds without knowing the dead tokens.
    share, variable, input_variable
        As for `undertrained`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over `reference`, `checkpoint` and `indicator`. The reference is ``"found"``, what shows itself at
        that checkpoint, and where dead tokens are known also ``"dead"``, all of them: nobody could have known these,
        and it is an upper bound.

        `value` (reference, checkpoint, indicator, token) float32; `candidate` (reference, checkpoint, token) bool;
        `candidates_kept`; `reference_kind` (checkpoint), `reference_size`. Where dead and live tokens are known:
        `precision` and `recall` of the candidates (reference, checkpoint), `lowest_dead` and `auc` of each indicator,
        and `told_from` (reference, indicator). `freeze_correlation` with its 95% interval `_low`, `_high` and
        `n_pairs`, of the dead tokens where they are known, else of all; with the coordinate `count`
        `count_correlation` likewise, of tokens that occur; with `p_dead` `p_dead_correlation` (reference, indicator).
        Numbers: `n_frozen`, `n_censored`.

        A token that still moves at the last step is censored, as in `freeze_predictors`. Between checkpoints the
        freeze step is known to within `step_span`, and tokens that froze in the same span have no order.

    Raises
    ------
    InputError
        For fewer than two steps or dims, a step or token that does not exist, or a recording without absolute
        positions.
    """
    x = checks.require(ds, variable, "token_indicators")
    checks.check_steps(ds, "token_indicators", allow_gaps=True)
    if ds.sizes["dim"] < 2:
        raise InputError("token_indicators needs rows of at least two dims: it measures directions")
    if not 0 < share <= 1:
        raise InputError(f"token_indicators: share={share}; expected a share of the tokens, above 0, at most 1")
    labels, n = ds["step"].values, ds.sizes["token"]
    work = n * ds.sizes["dim"] ** 2
    at_most = step_selection.affordable(_AT_MOST, _AT_LEAST, work, _OPERATIONS)
    at = step_selection.select_steps(labels, steps, "token_indicators", at_most)
    matrices = {variable: checks.as_dask(x.data)}
    if tied := input_variable not in ds or input_variable == variable:
        input_variable = ""
    else:
        matrices[input_variable] = checks.as_dask(checks.require(ds, input_variable, "token_indicators").data)
    dead = ds["dead"].values if "dead" in ds.coords and ds["dead"].values.any() else None
    kinds, masks = references.candidates(ds.drop_vars("dead", errors="ignore"), reference, _beyond(ds))
    reduction = Indicators(variable, input_variable, at, kinds, masks, dead, share)
    names = [FOUND] if dead is None else [FOUND, DEAD]
    known: dict[str, Any] = {"dead": dead, "count": ds["count"].values if "count" in ds.coords else None}
    p_dead = checks.as_series(ds["p_dead"]) if "p_dead" in ds and ds["p_dead"].dims == ("step",) else None
    shapes = _shapes(len(names), len(at), n, known, with_p_dead=p_dead is not None)

    rest = Cost(0.02 + 1e-6 * n * len(names) * len(at))  # rank correlations of each indicator

    def finish(results: ReductionResults) -> xr.Dataset:
        inputs = {
            "measured": results.merged("indicators", "measured", step_selection.merge_measured),
            "moved": results.merged("moved", "moved", np.maximum),
            **({} if p_dead is None else {"p_dead": p_dead}),
        }
        values = compute_together(
            inputs, _relate, shapes, ATTRS, labels=labels, at=at, known=known, wanted=tuple(shapes)
        )
        coords = {
            **coordinates.along(ds, "token"), "reference": names, "indicator": list(INDICATORS),
            "checkpoint": xr.Variable("checkpoint", labels[list(at)], dict(ds["step"].attrs)),
        }  # fmt: skip
        attrs = checks.result_attrs(
            ds, variable=variable, input_variable=input_variable, tied=tied, share=share,
            freeze_tokens="all" if dead is None else "dead",
        )  # fmt: skip
        return xr.Dataset(values, coords, attrs)

    return AnalysisSpec(matrices, {"indicators": reduction, "moved": LastMotion(variable, labels)}, finish, rest)


def _relate(
    inputs: dict[str, list[Any]], *, at: tuple[int, ...], known: dict[str, Any], **options: Any
) -> dict[str, NDArray[Any]]:
    """Relate the indicators to what is known of the tokens, and to p_dead where it was recorded."""
    if "p_dead" in inputs:
        recorded = np.concatenate(inputs["p_dead"])[list(at)]
        inputs, known = {k: v for k, v in inputs.items() if k != "p_dead"}, {**known, "p_dead": recorded.astype(float)}
    return relations.relate(inputs, at=at, known=known, **options)


def _beyond(ds: xr.Dataset) -> Mask | None:
    """Return which tokens have no text, if some have."""
    beyond = ds["token_text"].values == "" if "token_text" in ds.coords else None
    return None if beyond is None or beyond.all() or not beyond.any() else beyond


def _shapes(n_references: int, n_steps: int, n: int, known: dict[str, Any], *, with_p_dead: bool) -> dict[str, Any]:
    """Return the dims, shapes and dtypes of the variables that what is known of the tokens allows."""
    by_step = ("reference", "checkpoint"), (n_references, n_steps)
    of_each = ("reference", "checkpoint", "indicator"), (n_references, n_steps, len(INDICATORS))
    over_time = ("reference", "indicator"), (n_references, len(INDICATORS))
    shapes: dict[str, Any] = {
        "value": ((*of_each[0], "token"), (*of_each[1], n), "f4"),
        "candidate": ((*by_step[0], "token"), (*by_step[1], n), "?"),
        "candidates_kept": (*by_step, "f8"),
        "reference_kind": (("checkpoint",), (n_steps,), "i1"),
        "reference_size": (*by_step, "i8"),
        **{name: (*of_each, "i8" if name == "n_pairs" else "f8") for name in relations.OF_FREEZING},
        **dict.fromkeys(("n_frozen", "n_censored"), ((), (), "i8")),
    }
    if known["dead"] is not None and not known["dead"].all():
        shapes |= {"precision": (*by_step, "f8"), "recall": (*by_step, "f8"), "told_from": (*over_time, "i8")}
        shapes |= {"lowest_dead": (*of_each, "f8"), "auc": (*of_each, "f8")}
    if known["count"] is not None:
        shapes |= dict.fromkeys(relations.OF_COUNT, (*of_each, "f8"))
    if with_p_dead and known["dead"] is not None:
        shapes |= dict.fromkeys(relations.OF_P_DEAD, (*over_time, "f8"))
    return shapes


@token_indicators.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    at = ds["checkpoint"].values
    yield f"Under-trained tokens over time, {len(at)} checkpoints, {at[0]} to {at[-1]}"
    kinds = [relations.KINDS[i].replace("_", " ") for i in ds["reference_kind"].values]
    yield f"  reference found   {kinds[0]} at first, {kinds[-1]} at last"
    for r, name in enumerate(ds["reference"].values):
        if "lowest_dead" in ds:
            best = ds["lowest_dead"].values[r]
            rows = [f"{INDICATORS[k]} {best[-1, k]:.3f}" for k in range(len(INDICATORS)) if np.isfinite(best[-1, k])]
            yield f"  lowest are dead   from {name}: {', '.join(rows) or 'no reference'}, at last"
        if (strongest := _strongest(ds, r)) is not None:
            yield f"  with freezing     from {name}: {strongest}"


def _strongest(ds: xr.Dataset, r: int) -> str | None:
    """Return in words the strongest correlation with the freeze step whose interval does not hold zero."""
    value, low, high = (ds[f"freeze_correlation{end}"].values[r] for end in ("", "_low", "_high"))
    sure = np.isfinite(value) & (low * high > 0)
    if not sure.any():
        return None
    t, k = np.unravel_index(np.argmax(np.where(sure, np.abs(value), 0)), value.shape)
    name = INDICATORS[k].replace("_", " ")
    return f"{name} at step {ds['checkpoint'].values[t]}, {value[t, k]:+.2f} [{low[t, k]:+.2f}, {high[t, k]:+.2f}]"


@token_indicators.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    at, kind = ds["checkpoint"].values, ds["reference_kind"].values
    if "told_from" in ds:
        yield Finding(0.62, _told(ds))
    elif (kind > 0).any():
        first = int(np.argmax(kind > 0))
        kept, what = percent(ds["candidates_kept"].values[0, first]), relations.KINDS[kind[first]].replace("_", " ")
        yield Finding(
            0.4, f"From step {at[first]} on, tokens show from which under-training can be measured ({what}); {kept} of "
            "the last candidates are among those found then."
        )  # fmt: skip
    for r in reversed(range(ds.sizes["reference"])):
        if (strongest := _strongest(ds, r)) is not None:
            yield Finding(
                0.36, f"Of the signs of under-training, the one that goes best with the freeze step: {strongest}."
            )
            return


def _told(ds: xr.Dataset) -> str:
    """Say from which checkpoint on the dead tokens could have been told from the weights alone."""
    n, known = int(ds["dead"].values.sum()), _first_told(ds, 1)
    last = ds["lowest_dead"].values[0, -1]
    if (found := _first_told(ds, 0)) is not None:
        step, name = found
        text = f"Dead tokens could have been told from the weights alone from step {step} on, by the {name}"
    elif np.isfinite(last[1:]).any():
        k = int(np.nanargmax(last))
        text = f"Dead tokens cannot be told from the weights alone: of the {n:,} tokens with the lowest "
        return f"{text}{INDICATORS[k].replace('_', ' ')}, the best sign, {percent(last[k])} are dead at the last step."
    else:
        text = "Dead tokens cannot be told from the weights alone, in which nothing shows what was never trained"
    if known is None or known == found:
        return f"{text}."
    return f"{text}; measured from dead tokens that one knows, from step {known[0]} on, by the {known[1]}."


def _first_told(ds: xr.Dataset, r: int) -> tuple[int, str] | None:
    """Return the first checkpoint from which on an indicator tells the dead tokens, and its name."""
    told = ds["told_from"].values[r]
    if (told < 0).all():
        return None
    k = int(np.argmin(np.where(told >= 0, told, np.iinfo(np.int64).max)))
    return int(told[k]), INDICATORS[k].replace("_", " ")


@token_indicators.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    if "lowest_dead" in ds:
        best = [max(x[np.isfinite(x)], default=np.nan) for x in ds["lowest_dead"].values[0][[0, -1]]]
        return KeyFigure("dead among as many lowest, best sign", *map(percent, best))
    sizes = ds["reference_size"].values[0]
    return KeyFigure("tokens of the reference that is found", number(sizes[0]), number(sizes[-1]))


token_indicators.pictures = (
    Picture(
        "token_indicators",
        "token_indicators.token_indicators",
        "From which step on could one have told?",
        "Top: of as many tokens with the lowest values as there are dead ones, the share that is dead, for each sign "
        "of under-training measured from what shows itself in the weights, and dotted from the dead tokens, which "
        "nobody knew; without dead and live tokens, the share of the last candidates that are candidates already. "
        "Bottom: the rank correlation of each sign with the step at which tokens froze; bands are 95% intervals.",
    ),
)
