"""Options of `deadtok analyze` with the settings of the training that `mechanism` needs and the store lacks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from deadtok_xr.cli.options import pairs
from deadtok_xr.errors import InputError

_WORDS = {"true": True, "false": False, "none": None}
_OPTIONS = (
    click.option("--lr", metavar="RATE", help="Learning rate: a number, or a file with one per step (text or .npy)."),
    click.option("--optimizer", metavar="NAME", help="AdamW, Adam or SGD."),
    click.option(
        "--hyperparameter",
        "hyperparameters",
        multiple=True,
        metavar="KEY=VALUE",
        help="A setting of the optimizer, with torch's name: betas=0.9,0.95, eps=1e-8, weight_decay=0.1, fused=true.",
    ),
    click.option(
        "--arithmetic",
        metavar="NAME",
        help="How torch computed the updates: auto (from the settings in the store), find (try all on a few steps), "
        "or single, foreach, fused, float32_once.",
    ),
)


def replay_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def for_mechanism(
    lr: str | None, optimizer: str | None, hyperparameters: tuple[str, ...], arithmetic: str | None
) -> dict[str, Any]:
    """Return the given options as keywords of `deadtok_xr.mechanism`."""
    settings = {key: _value(text, key) for key, text in pairs(hyperparameters, "--hyperparameter", "KEY=VALUE").items()}
    if "lr" in settings:
        raise InputError("--hyperparameter lr=...: use --lr, which takes a number or a file with one per step")
    settings |= {} if optimizer is None else {"optimizer": optimizer}
    given = {"lr": None if lr is None else _rates(lr), "hyperparameters": settings or None, "arithmetic": arithmetic}
    return {key: value for key, value in given.items() if value is not None}


def _value(text: str, key: str) -> Any:
    if text.strip().lower() in _WORDS:
        return _WORDS[text.strip().lower()]
    try:
        numbers = [float(word) for word in re.split(r"[\s,()\[\]]+", text) if word]
    except ValueError:
        numbers = []
    if not numbers:
        raise InputError(
            f"--hyperparameter {key}={text}: expected: a number, numbers between commas, true, false or none"
        )
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _rates(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        pass
    import numpy as np

    path = Path(text)
    expected = "expected: a number, or a file with one number per step, as text or .npy"
    if not path.is_file():
        raise InputError(f"--lr {text}: found neither a number nor a file; {expected}")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False).astype(np.float64)
        return np.array([float(word) for word in re.split(r"[\s,\[\]]+", path.read_text()) if word])
    except (OSError, ValueError) as error:
        raise InputError(f"--lr {text} cannot be read ({' '.join(str(error).split())[:160]}); {expected}") from error
