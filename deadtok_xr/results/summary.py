"""Summarize results as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence

import xarray as xr

from deadtok_xr.analyses.common.summary_text import number
from deadtok_xr.analyses.registry import Finding, KeyFigure
from deadtok_xr.errors import keywords_alone
from deadtok_xr.results import findings
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
        summary of their own get a line for each variable.
    details
        Instead of up to ten findings and a table with a key figure of each analysis, return all lines of all analyses,
        which the definitions of the variables explain.
    """
    groups = findings.load(tree)
    return detailed(tree, groups) if details else one_screen(tree, groups)


def one_screen(tree: xr.DataTree, groups: findings.Groups, spell: Spell = keywords_alone) -> str:
    """Return the main findings and the key figures, in which ``spell`` names keywords or options."""
    warnings = [f"Warning: {spell(text)}" for text in findings.warnings(groups)]
    left_out = map(spell, findings.left_out(tree))
    end = ["", *_table(findings.key_figures(groups)), _WORDS, *_wrapped(left_out, "  ", 3)]
    shown = _fitting(warnings, findings.findings(groups), LINES - 2 - len(end))
    return "\n".join([heading(tree, groups), "", *shown, *end])


def detailed(tree: xr.DataTree, groups: findings.Groups, spell: Spell = keywords_alone) -> str:
    """Return all lines of all analyses."""
    lines = [line for name, ds in groups.items() for line in findings.detailed_lines(name, ds)]
    return "\n".join(map(spell, [heading(tree, groups), *lines, *findings.left_out(tree)]))


def heading(tree: xr.DataTree, groups: findings.Groups) -> str:
    """Return the name of the recording, and what was analysed."""
    kind = tree.attrs.get("tokens", "all")
    n = tree.attrs.get("n_tokens", "?")
    text = f"{tree.attrs.get('source', 'recording')}: {n} {'' if kind == 'all' else kind + ' '}tokens"
    steps = [ds["step"].values for ds in groups.values() if "step" in ds.coords]
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
