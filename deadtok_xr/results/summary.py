"""Summarize results as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import xarray as xr

from deadtok_xr.analyses.common.summary_text import number
from deadtok_xr.analyses.registry import Finding, KeyFigure
from deadtok_xr.analyses.runs import labels_of, select_run
from deadtok_xr.errors import keywords_alone
from deadtok_xr.results import findings, side_by_side
from deadtok_xr.text import table

Spell = Callable[[str], str]
COLUMNS = 100
LINES = 35
"""Lines of a summary, which leave room on a screen of 40 for the command, and for where the results are."""
N_FINDINGS = 10
_FEWEST = 4  # findings that are shown, however many analyses there are
_WORDS = "Dead tokens never occur in the training data. ULP: the spacing of the number grid at a weight."
_HEAD = ("analysis", "key figure", "first step", "last step", "all steps")


def summary(tree: xr.DataTree, *, details: bool = False) -> str:
    """Return the main findings of a tree of results, as text for one screen.

    Parameters
    ----------
    tree
        From `open_results`, `save_results` or `analyze` (which is computed, as far as needed). Analyses without a
        summary of their own get a line for each variable. Of several runs: when the recordings part, then findings that
        differ and findings of all; a number that differs is given for each run.
    details
        Instead of up to ten findings and a table with a key figure of each analysis, return all lines of all analyses,
        which the definitions of the variables explain.
    """
    groups = findings.load(tree)
    return detailed(tree, groups) if details else one_screen(tree, groups)


def one_screen(tree: xr.DataTree, groups: findings.Groups, spell: Spell = keywords_alone) -> str:
    """Return the main findings and the key figures, in which ``spell`` names keywords or options."""
    if labels_of(tree):
        return _of_runs(tree, groups, spell)
    warnings = [f"Warning: {spell(text)}" for text in findings.warnings(groups)]
    left_out = map(spell, findings.left_out(tree))
    end = ["", *_table(findings.key_figures(groups)), _WORDS, *_wrapped(left_out, "  ", 3)]
    shown = _fitting(warnings, findings.findings(groups), LINES - 2 - len(end))
    return "\n".join([heading(tree, groups), "", *shown, *end])


def _of_runs(tree: xr.DataTree, groups: findings.Groups, spell: Spell) -> str:
    """Return the findings of several runs: when they part, what differs, and what is the same."""
    runs = side_by_side.groups_of_runs(tree, groups)
    warnings = [f"Warning: {run}: {spell(text)}" for run, own in runs.items() for text in findings.warnings(own)]
    found = side_by_side.shared_findings(runs)
    apart = [finding.text for finding in side_by_side.comparison(groups)]
    differing, same = [f.text for f in found if f.differs], [f.text for f in found if not f.differs]
    apart_by_run = side_by_side.differences(groups)
    rows = _table_of_runs(runs) or table([["run", *side_by_side.DIFFERENCES], *apart_by_run[:LINES]], align="<>>>>")
    end = ["", *rows, _WORDS, *_wrapped(map(spell, findings.left_out(tree)), "  ", 3)]
    several = f"{len(runs)} runs, {side_by_side.enumeration(runs)}"
    first = _bullets([*warnings[:3], *apart])
    lines = [f"{several}: {_what(tree, groups)}", *([""] if first else []), *first]
    if differing:
        order = " / ".join(map(str, runs)) if len(runs) <= side_by_side.AT_MOST else "smallest to largest"
        head = ["", *_wrapped([f"Where the runs differ ({order}):"], "  ")]
        lines += [*head, *_within(differing, LINES - len(lines) - len(end) - len(head), 3)]
    if alike := _within(same, LINES - len(lines) - len(end) - 2, 0):
        lines += ["", "In all runs:", *alike]
    return "\n".join(lines + end)


def _bullets(texts: Iterable[str]) -> list[str]:
    return _wrapped((f"- {text}" for text in texts), "  ")


def _within(texts: Sequence[str], room: int, fewest: int) -> list[str]:
    """Return the first texts as bullets, as many as there is room for, and at least the fewest."""
    lines: list[str] = []
    for i, text in enumerate(texts):
        more = _bullets([text])
        if i >= fewest and len(lines) + len(more) > room:
            break
        lines += more
    return lines


def _table_of_runs(runs: Mapping[Any, findings.Groups]) -> list[str]:
    """Return a line for each analysis whose key figure differs between runs, and one that names the others."""
    rows = side_by_side.figures(runs)
    differing = [row for row in rows if len(set(row[2])) > 1]
    labels = [textwrap.shorten(str(label), 14, placeholder="...") for label in runs]
    if len(runs) > side_by_side.AT_MOST:
        labels = [*labels[: side_by_side.AT_MOST - 1], "..."]
    head = ["analysis", "key figure, at the end", *labels]
    cells = [
        [name, textwrap.shorten(what, 40, placeholder=" ..."), *values[: side_by_side.AT_MOST - 1], "..."]
        if len(runs) > side_by_side.AT_MOST
        else [name, textwrap.shorten(what, 40, placeholder=" ..."), *values]
        for name, what, values in differing
    ]
    lines = table([head, *cells], align="<<" + ">" * len(labels)) if differing else []
    same = [name for name, _, values in rows if len(set(values)) == 1]
    return [*lines, *_wrapped([f"The same key figure in all runs: {', '.join(same)}."] if same else [], "  ")]


def detailed(tree: xr.DataTree, groups: findings.Groups, spell: Spell = keywords_alone) -> str:
    """Return all lines of all analyses."""
    if labels_of(tree):
        parts = [
            select_run(xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree.attrs), **groups}), label)
            for label in labels_of(tree)
        ]
        texts = [f.text for f in side_by_side.comparison(groups)]
        return "\n\n".join(["\n".join(texts), *(detailed(one, findings.load(one), spell) for one in parts)])
    lines = [line for name, ds in groups.items() for line in findings.detailed_lines(name, ds)]
    return "\n".join(map(spell, [heading(tree, groups), *lines, *findings.left_out(tree)]))


def heading(tree: xr.DataTree, groups: findings.Groups) -> str:
    """Return the name of the recording, and what was analysed."""
    return f"{tree.attrs.get('source', 'recording')}: {_what(tree, groups)}"


def _what(tree: xr.DataTree, groups: findings.Groups) -> str:
    """Return the number of tokens, and the steps."""
    kind = tree.attrs.get("tokens", "all")
    n = tree.attrs.get("n_tokens", "?")
    text = f"{n} {'' if kind == 'all' else kind + ' '}tokens"
    steps = [ds[name].values for ds in groups.values() for name in ("step", "checkpoint") if name in ds.coords]
    if not steps:
        return text
    longest = max(steps, key=len)
    return f"{text}, steps {longest[0]} to {longest[-1]}"


def _fitting(warnings: Sequence[str], found: Sequence[Finding], room: int) -> list[str]:
    """Return the lines of warnings and of the most important findings, as many as there is room for."""
    lines = _wrapped(warnings, "  ")
    for i, finding in enumerate(found[:N_FINDINGS]):
        more = _wrapped([f"- {finding.text}"], "  ")
        if len(lines) + len(more) <= room or i < _FEWEST:
            lines += more
    return lines


def _table(figures: dict[str, KeyFigure]) -> list[str]:
    """Return a line for each analysis; columns without values are left out."""
    rows = [
        [name, textwrap.shorten(x.name, 46, placeholder=" ..."), number(x.first), number(x.last), number(x.overall)]
        for name, x in figures.items()
    ]
    used = [i for i in range(len(_HEAD)) if any(row[i] for row in rows)]
    return table([[row[i] for i in used] for row in (_HEAD, *rows)], align="<<" + ">" * (len(used) - 2))


def _wrapped(texts: Iterable[str], indent: str, at_most: int | None = None) -> list[str]:
    """Return texts in lines of a screen, each text in ``at_most`` lines."""
    wrapper = textwrap.TextWrapper(
        COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, max_lines=at_most,
        placeholder=" ...",
    )  # fmt: skip
    return [line for text in texts for line in wrapper.wrap(text)]
