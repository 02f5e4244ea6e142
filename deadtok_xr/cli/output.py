"""Print text, in which names, attributes and texts of tokens may be anybody's."""

from __future__ import annotations

import click

from deadtok_xr.text import escaped


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text with escapes for all characters on which a terminal might act, except line breaks."""
    click.echo("\n".join(map(escaped, text.split("\n"))), err=err, nl=nl)
