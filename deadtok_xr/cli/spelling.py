"""Advice in the spelling of the command line: `--allow-gaps` instead of `allow_gaps=True`."""

from __future__ import annotations

import re
from contextvars import ContextVar

import click

from deadtok_xr.errors import OPTION_FIRST, OPTION_LAST

_VALUE = r"(?:'([^']*)'|(True)|(?=[\s,;:)]|$))"
_KEYWORD = r"(?<![^\s(])(?:\.\w+\([^()]*\)|[\w.]+=(?:'[^']*'|\[[^\]]*\]|\{(?:[^{}]|\{[^{}]*\})*\}|[\w.]+|))"
_KEYWORD_WITH_OPTION = re.compile(_KEYWORD + OPTION_LAST.pattern)
_running: ContextVar[click.Command | None] = ContextVar("_running", default=None)


def running(command: click.Command | None) -> None:
    """Say which subcommand runs: advice names only its options."""
    _running.set(command)


def options_alone(text: str) -> str:
    """Return advice with the options of the running command instead of keywords; other keywords stay."""
    command = _running.get()
    known = {p.name: p.opts[0] for p in getattr(command, "params", ()) if isinstance(p, click.Option) and p.name}
    options = {opt for p in getattr(command, "params", ()) for opt in p.opts}

    def first(match: re.Match[str]) -> str:
        return f"{match[1]}{match[2] or ''}" if match[1] in options else match[0]

    def last(match: re.Match[str]) -> str:
        return match[1] if match[2] in options else match[0]

    def alone(match: re.Match[str]) -> str:
        return known[match[1]] + (f" {match[2]}" if match[2] else "")

    text = _KEYWORD_WITH_OPTION.sub(last, OPTION_FIRST.sub(first, text))
    if known:
        text = re.sub(rf"(?<![^\s(])({'|'.join(map(re.escape, known))})={_VALUE}", alone, text)
    return text
