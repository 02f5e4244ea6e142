"""Findings and key figures of several runs side by side: what all runs share, and what differs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from deadtok_xr.analyses.common.summary_text import number, percent
from deadtok_xr.analyses.registry import Finding, KeyFigure
from deadtok_xr.analyses.runs import COMPARISON, labels_of, select_run
from deadtok_xr.results import findings
from deadtok_xr.results.findings import Groups

AT_MOST = 4
"""Runs whose numbers a sentence gives one by one; of more runs it gives the smallest and the largest."""
_PART = re.compile(
    r'(?<=\d )".*?"(?=[\s,.;:)]|$)'
    r"|-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?%?(?![\w])"
)
"""The text of a token behind its id, or a number."""


@dataclass(frozen=True)
class Shared:
    """A finding of several runs.

    Attributes
    ----------
    importance
        The largest of the runs'.
    group
        The analysis.
    text
        The sentence. A number that differs is given for each run, separated by slashes, or as a range.
    differs
        Whether the runs differ in it.
    """

    importance: float
    group: str
    text: str
    differs: bool


def groups_of_runs(tree: xr.DataTree, groups: Groups) -> dict[Any, dict[str, xr.Dataset]]:
    """Return the groups of each run, given the loaded groups of a tree of several."""
    loaded = xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree.attrs), **groups})
    runs = {label: select_run(loaded, label) for label in labels_of(tree)}
    return {label: {name: node.to_dataset() for name, node in run.children.items()} for label, run in runs.items()}


def comparison(groups: Groups) -> list[Finding]:
    """Return what the comparison of the recordings found: when they part."""
    return findings.findings({name: ds for name, ds in groups.items() if name == COMPARISON})


DIFFERENCES = ("first difference", "tokens that differ", "equal elements", "largest difference of an element")


def differences(groups: Groups) -> list[list[str]]:
    """Return a row for each run of the comparison of the recordings: its label, and `DIFFERENCES` from the first."""
    rows = []
    for label, one in compared(groups).items():
        step, n = int(one["first_difference"]), int((one["token_first_difference"].values >= 0).sum())
        equal = percent(float(one["n_equal"]) / max(float(one["n_elements"]), 1))
        largest = number(float(one["difference_max"].max()))
        first = f"step {step:,}" if step >= 0 else "none"
        rows.append([label, first, f"{n:,} of {one.sizes['token']:,}", equal, largest])
    return rows


def compared(groups: Groups) -> dict[str, xr.Dataset]:
    """Return the comparison of each run with the first, by label; nothing if the recordings were not compared."""
    if COMPARISON not in groups:
        return {}
    ds = groups[COMPARISON]
    return {str(label): ds.isel(run=i) for i, label in enumerate(ds["run"].values)}


def shared_findings(runs: Mapping[Any, Groups]) -> list[Shared]:
    """Return the findings of all runs, those that differ in numbers alone as one, the most important first."""
    alike: dict[tuple[str, str], dict[Any, list[Finding]]] = {}
    for label, groups in runs.items():
        for name in groups:
            for finding in findings.findings({name: groups[name]}):
                words = _with_numbers(finding.text, lambda _: "#")
                alike.setdefault((name, words), {}).setdefault(label, []).append(finding)
    found = [
        Shared(
            max(f.importance for one in by_run.values() for f in one), name, text, len(by_run) < len(runs) or differs
        )
        for (name, _), by_run in alike.items()
        for text, differs in _sentences(by_run, list(runs))
    ]
    return sorted(found, key=lambda x: -x.importance)


def _sentences(by_run: Mapping[Any, Sequence[Finding]], labels: Sequence[Any]) -> list[tuple[str, bool]]:
    """Return the sentences of findings that differ in numbers alone, and whether they differ."""
    prefix = "" if len(by_run) == len(labels) else f"{enumeration(by_run)}: "
    if len({len(found) for found in by_run.values()}) > 1:  # the same sentence several times, in some runs more often
        return [(f"{label}: {f.text}", True) for label, found in by_run.items() for f in found]
    merged = []
    for alike in zip(*by_run.values(), strict=True):
        texts = [finding.text for finding in alike]
        merged.append((prefix + _merged(texts), len(set(texts)) > 1))
    return merged


def _merged(texts: Sequence[str]) -> str:
    """Return one sentence for several that differ in numbers alone."""
    numbers = [[part for part in _PART.findall(text) if part[0] != '"'] for text in texts]
    replaced = iter([_together(values) for values in zip(*numbers, strict=True)])
    return _with_numbers(texts[0], lambda _: next(replaced))


def _with_numbers(text: str, number: Callable[[str], str]) -> str:
    """Replace the numbers of a sentence, but not the digits in the texts of tokens."""
    return _PART.sub(lambda part: part[0] if part[0][0] == '"' else number(part[0]), text)


def _together(values: Sequence[str]) -> str:
    if len(set(values)) == 1:
        return values[0]
    if len(values) <= AT_MOST:
        return " / ".join(values)
    ordered = sorted(values, key=lambda text: float(text.replace(",", "").rstrip("%")))
    return f"{ordered[0]} to {ordered[-1]}"


def enumeration(labels: Any) -> str:
    """Return labels as words: "a", "a and b", "a, b and 5 more"."""
    shown = [str(label) for label in labels]
    if len(shown) > AT_MOST:
        shown = [*shown[: AT_MOST - 1], f"{len(shown) - AT_MOST + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def figures(runs: Mapping[Any, Groups]) -> list[tuple[str, str, list[str]]]:
    """Return for each analysis its name, what its key figure is, and the figure of every run: at the last step."""
    of_runs = {label: findings.key_figures(groups) for label, groups in runs.items()}
    names = list(dict.fromkeys(name for found in of_runs.values() for name in found))
    rows = []
    for name in names:
        found = [of_run.get(name) for of_run in of_runs.values()]
        what = next(f.name for f in found if f is not None)
        rows.append((name, what, [_value(figure) for figure in found]))
    return rows


def _value(figure: KeyFigure | None) -> str:
    if figure is None:
        return "left out"
    return number(figure.last if figure.last is not None else figure.overall)
