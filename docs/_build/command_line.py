"""Generate the page of the command line from the commands when the site is built (a hook of mkdocs)."""

from __future__ import annotations

import inspect
from typing import Any

import click

PLACE = "<!-- the commands -->"


def on_page_markdown(markdown: str, **other: Any) -> str:
    """Replace the placeholder of a page by the commands."""
    if PLACE not in markdown:
        return markdown
    from deadtok_xr.cli import cli

    assert isinstance(cli, click.Group)
    sections = [_section(command) for _, command in sorted(cli.commands.items())]
    return markdown.replace(PLACE, "\n".join(sections))


def _section(command: click.Command) -> str:
    context = click.Context(command, info_name=f"deadtok {command.name}")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    rows = [_row(option, context) for option in options]
    table = ["| option | |", "|---|---|", *rows, ""] if rows else []
    heading = f"## deadtok {command.name} {{#deadtok-{command.name}}}"
    return "\n".join([heading, "", f"```text\n{usage}\n```", "", *_text(command), "", *table])


def _text(command: click.Command) -> list[str]:
    r"""Return the help of a command as Markdown; a paragraph that begins with \b becomes a code block."""
    found = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        as_written = paragraph.startswith("\b\n")
        found += [f"```text\n{paragraph[2:]}\n```" if as_written else paragraph, ""]
    return found


def _row(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None
    name, text = (part.replace("|", "&#124;") for part in record)  # a bar would end the cell
    return f"| <code>{name}</code> | {text} |"
