"""Advice names options on the command line and keywords in Python, in every message of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import deadtok_xr as dx
from deadtok_xr import cli
from deadtok_xr.cli.spelling import options_alone, running
from deadtok_xr.errors import OPTION_FIRST, OPTION_LAST, InputError, MissingFileError, keywords_alone

PACKAGE = Path(dx.__file__).parent


def texts() -> Iterator[str]:
    """Every text of the package that is no docstring, with X for what is filled in."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.parent.name != "cli":
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(p.value) if isinstance(p, ast.Constant) else "X" for p in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                    yield node.value


BOTH = sorted({text for text in texts() if "--" in text and (OPTION_FIRST.search(text) or OPTION_LAST.search(text))})


@pytest.fixture
def any_command() -> Iterator[click.Command]:
    """A command with the options of all commands."""
    params = {p.opts[0]: p for c in cli.cli.commands.values() for p in c.params if isinstance(p, click.Option)}
    command = click.Command("any", params=list(params.values()))
    running(command)
    yield command
    running(None)


def test_there_is_advice_for_both() -> None:
    assert len(BOTH) > 25


@pytest.mark.parametrize("text", BOTH)
def test_each_message_has_one_spelling(text: str, any_command: click.Command) -> None:
    python, shell = keywords_alone(text), options_alone(text)
    assert "--" not in python, python
    assert not OPTION_FIRST.search(shell), shell
    names = {p.name for p in any_command.params}
    assert not any(f"({name}=" in shell or f"{name}= " in shell or f"{name}=True" in shell for name in names), shell


@pytest.mark.parametrize(
    ("text", "python", "shell"),
    [
        ("say --overwrite (overwrite=True) to start", "say overwrite=True to start", "say --overwrite to start"),
        ("say allow_gaps=True (--allow-gaps) to skip", "say allow_gaps=True to skip", "say --allow-gaps to skip"),
        ("say allow_gaps=True to measure it", "say allow_gaps=True to measure it", "say --allow-gaps to measure it"),
        ("open it with tokens='all', or", "open it with tokens='all', or", "open it with --tokens all, or"),
        ("allow --memory (memory=)", "allow memory=", "allow --memory"),
        ("with .sel(run=...) (--run)", "with .sel(run=...)", "with --run"),
        ("give lr= (--lr)", "give lr=", "give --lr"),
        ("or say precision=", "or say precision=", "or say --precision"),
        (
            "say --dims a=step (dims={'a': ('step',)}) or --dims a=token (dims={'a': ('token',)})",
            "say dims={'a': ('step',)} or dims={'a': ('token',)}",
            "say --dims a=step or --dims a=token",
        ),
        (
            "give hyperparameters={'eps': 1e-8, ...} (--hyperparameter eps=1e-8) as the training had them",
            "give hyperparameters={'eps': 1e-8, ...} as the training had them",
            "give --hyperparameter eps=1e-8 as the training had them",
        ),
        ("name it with --key W=a (keys={'W': 'a'})", "name it with keys={'W': 'a'}", "name it with --key W=a"),
        ("device='mps' (--device mps): none", "device='mps': none", "--device mps: none"),
        ("--hyperparameter lr=...: use --lr", "--hyperparameter lr=...: use --lr", "--hyperparameter lr=...: use --lr"),
        ("/a run=1/x.zarr holds nothing", "/a run=1/x.zarr holds nothing", "/a run=1/x.zarr holds nothing"),
    ],
)
@pytest.mark.usefixtures("any_command")
def test_spellings(text: str, python: str, shell: str) -> None:
    assert keywords_alone(text) == python
    assert options_alone(text) == shell


def test_errors_show_keywords_in_python() -> None:
    for kind in (InputError, MissingFileError):
        error = kind("say --overwrite (overwrite=True)")
        assert str(error) == "say overwrite=True"
        assert error.advice == "say --overwrite (overwrite=True)"


def test_options_that_the_command_lacks_are_not_advised() -> None:
    text = "open it with partial=True (--partial)"
    running(cli.cli.commands["report"])
    assert options_alone(text) == text
    running(cli.cli.commands["info"])
    assert options_alone(text) == "open it with --partial"
    running(None)
