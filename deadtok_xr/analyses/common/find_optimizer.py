"""Find which rule made a recording that holds Adam's moments and does not name its optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from deadtok_xr.analyses.common.compared_updates import compare_updates, moments_agreement
from deadtok_xr.analyses.common.recorded_updates import Updates
from deadtok_xr.analyses.common.step_selection import select_steps
from deadtok_xr.errors import InputError
from deadtok_xr.replay.compare import MIN_AGREEMENT, MIN_DIFFERENT, Comparison
from deadtok_xr.replay.settings import Settings

N_STEPS = 4


def find_optimizer(ds: xr.Dataset, trials: Mapping[Settings, Updates], purpose: str) -> Updates:
    """Return the updates under the rule and the arithmetic that reproduce a few of them, with the evidence as a note.

    Parameters
    ----------
    ds
        The recording.
    trials
        The settings that can have made it -> its updates under these settings.
    purpose
        What needs the optimizer, for messages.

    Raises
    ------
    InputError
        If no two consecutive steps are recorded, none of the rules reproduces the updates, or several do that differ.
    """
    labels = ds["step"].values
    single = np.flatnonzero(np.diff(labels) == 1) + 1
    if not single.size:
        raise InputError(_ask(purpose, "no two consecutive steps are recorded, which would show it"))
    positions = single[list(select_steps(labels[single], None, purpose, N_STEPS))].tolist()
    found = {s: compare_updates(u, positions)[0] for s, u in trials.items()}
    agreement = {s: _agreement(comparison) for s, comparison in found.items()}
    closed = [s for s, share in agreement.items() if share >= MIN_AGREEMENT]
    if not closed:
        best = max(agreement, key=lambda s: agreement[s])
        close = f"; {_named(best)} comes closest, with {agreement[best]:.2%} of the elements"
        raise InputError(_ask(purpose, f"replay of {len(positions)} updates does not show it{close}"))
    missed = {s: _missed(found[s]) for s in closed}
    same = [s for s in closed if missed[s] < min(missed.values()) + MIN_DIFFERENT]
    if len(same) > 1 and any(s.weight_decay for s in same):
        same = _by_moments({s: trials[s] for s in same}, positions)
    chosen = min(same, key=lambda s: missed[s])
    if len(same) > 1 and any(s.weight_decay for s in same):
        named = " and ".join(map(_named, same))
        raise InputError(_ask(purpose, f"{named} reproduce the updates alike"))
    u, arithmetic = trials[chosen], found[chosen].best_candidates[0]
    count = found[chosen].counts[arithmetic]
    alike = "; AdamW and Adam are the same here: weight decay 0" if len(same) > 1 else ""
    evidence = (
        f"found by replay of {len(positions)} updates: {_named(chosen)}, {arithmetic}, reproduces {count.equal} of "
        f"{count.compared} elements{alike}"
    )
    return replace(u, notes={**u.notes, "optimizer_from": evidence}, found=arithmetic)


def _by_moments(trials: Mapping[Settings, Updates], positions: Sequence[int]) -> list[Settings]:
    """Return the rules whose moments follow from the gradient; Adam adds the weight decay to it, and AdamW does not."""
    share = {s: moments_agreement(u, positions) for s, u in trials.items()}
    fits = [s for s, found in share.items() if found >= MIN_AGREEMENT]
    return fits or [*trials]


def _missed(comparison: Comparison) -> int:
    count = comparison.counts[comparison.best_candidates[0]]
    return count.compared - count.equal


def _agreement(comparison: Comparison) -> float:
    best = comparison.best_candidates
    share = comparison.counts[best[0]].agreement if best else 0.0
    return 0.0 if np.isnan(share) else share


def _named(s: Settings) -> str:
    return f"{s.optimizer} with weight decay {s.weight_decay:g}"


def _ask(purpose: str, why: str) -> str:
    return (
        f"{purpose}: the recording does not say which optimizer made it, and {why}: give "
        "hyperparameters={'optimizer': 'AdamW', ...} (--optimizer AdamW)"
    )
