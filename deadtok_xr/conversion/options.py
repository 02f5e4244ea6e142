"""Options of a conversion: what a file does not say itself, from the caller or a recipe for a family of files.

A recipe is a TOML file whose keys are the fields of `Options`, and `family` and `cites`, which say what the recipe is
for and where its facts come from. The name of a shipped recipe is the stem of its file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from deadtok_xr.errors import InputError, MissingFileError

_CHOICES = {
    "bits": ("bfloat16", "float16"),
    "steps": ("recorded", "position", "names", "content"),
    "recorded": ("after", "before"),
    "axis": ("step", "run"),
}


@dataclass(frozen=True)
class Options:
    """How to read a source, where it does not say so itself.

    Attributes
    ----------
    recipe
        The name of the recipe that the options come from, if any.
    revisions
        Names or patterns of revisions of a model on the Hub.
    keys
        Variable of the recording -> key of the source; overrides the known keys.
    dims
        Key of the source -> its dimensions, for arrays whose axes are ambiguous.
    include, drop
        Keys to keep that would be left out, and to leave out that would be kept.
    bits
        The number format whose bits uint16 arrays hold: "bfloat16" (the default) or "float16".
    keep_dtype
        Store float32 as float32, even if every value is on the bfloat16 grid.
    steps
        "recorded": the labels in the file are the numbers of updates. "position": they are not (they
        drift); steps are numbered 0..T. For folders of checkpoints: "names" or "content".
    recorded
        "after": the state at position t was recorded after update t. "before": before it, so that the states at
        positions 0 and 1 are equal.
    axis
        What the first of three axes counts: "step", or "run" for repetitions.
    token_ids, dead_ids
        The vocabulary id of each row; the ids of the dead tokens.
    initial
        A file with the initial weights, for recordings of displacements.
    metadata
        A JSON file of settings that belongs to the recording.
    shard
        Bytes in one file or object, before compression; None for one chunk in each.
    precision
        Variable -> the number format that its values come from, if a lossy copy does not show it.
    hyperparameters
        Settings of the run that are not in its file.
    notes
        Variable, or "" for the recording -> what a user should know about it.
    """

    recipe: str | None = None
    revisions: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    bits: str = "bfloat16"
    keep_dtype: bool = False
    steps: str | None = None
    recorded: str | None = None
    axis: str = "step"
    token_ids: Sequence[int] | None = None
    dead_ids: Sequence[int] | None = None
    initial: Path | None = None
    metadata: Path | None = None
    shard: int | None = None
    precision: Mapping[str, str] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise InputError(f"{name}={value!r}: choose {' or '.join(map(repr, choices))}")

    @classmethod
    def from_arguments(cls, **arguments: Any) -> Options:
        """Make options from arguments as `convert` takes them: single keys instead of lists, and paths as text."""
        for name, value in arguments.items():
            if value is not None and name in ("initial", "metadata"):
                arguments[name] = Path(value)
            elif name == "revisions":
                found = value.split(",") if isinstance(value, str) else list(value or ())
                arguments[name] = tuple(text.strip() for text in found if text.strip())
            elif name in ("include", "drop"):
                arguments[name] = (value,) if isinstance(value, str) else tuple(value)
            elif name == "keys":
                arguments[name] = dict(value or {})
            elif name == "dims":
                dims = value or {}
                arguments[name] = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in dims.items()}
        return cls(**arguments)

    def non_defaults(self) -> dict[str, Any]:
        """Return what differs from the defaults, in a form for JSON; of lists of ids only their lengths."""
        defaults = DEFAULT_OPTIONS
        found: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("token_ids", "dead_ids"):
                if value is not None:
                    found[f.name] = len(value)
            elif value != getattr(defaults, f.name):
                found[f.name] = str(value) if isinstance(value, Path) else value
        return found


DEFAULT_OPTIONS = Options()
_RECIPE_KEYS = {f.name for f in fields(Options)} - {
    "recipe", "revisions", "token_ids", "dead_ids", "initial", "metadata", "shard",
}  # fmt: skip
_TYPES: dict[str, type] = {
    **dict.fromkeys(("files", "include", "drop"), list),
    **dict.fromkeys(("keys", "dims", "precision", "hyperparameters", "notes"), dict),
    "keep_dtype": bool,
}
_KINDS = {list: "a list of texts", dict: "a table", bool: "true or false", str: "a text"}
_ABOUT = {"family", "cites", "files", "about"}


def recipes() -> dict[str, dict[str, Any]]:
    """Return the shipped recipes by name: what each is for, where its facts come from, and its options."""
    return {name: load_recipe(path) for name, path in _recipe_paths().items()}


def _recipe_paths() -> dict[str, Path]:
    installed = resources.files("deadtok_xr.conversion") / "recipes"
    folder = Path(str(installed)) if installed.is_dir() else Path(__file__).parents[2] / "conversion"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name: str | Path) -> dict[str, Any]:
    """Read a shipped recipe by its name, or any other by its path.

    Raises
    ------
    InputError, MissingFileError
        If there is none, or it has keys that a recipe cannot have.
    """
    known = _recipe_paths()
    path = known.get(str(name), Path(name))
    if path.suffix != ".toml" or not path.is_file():
        raise MissingFileError(f"there is no recipe {str(name)!r}: choose {', '.join(known)}, or name a .toml file")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"the recipe {path} cannot be read ({error}); expected: a TOML file") from error
    unknown = {*found} - _RECIPE_KEYS - _ABOUT
    if unknown:
        expected = ", ".join(sorted(_RECIPE_KEYS | _ABOUT))
        raise InputError(f"the recipe {path} holds {', '.join(sorted(unknown))}; expected: {expected}")
    for key, value in found.items():
        kind = _TYPES.get(key, str)
        listed = kind is list and isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not (listed if kind is list else isinstance(value, kind)):
            raise InputError(f"the recipe {path}: {key} is {value!r}; expected: {_KINDS[kind]}")
    if "family" not in found:
        raise InputError(f'the recipe {path} does not say what it is for; expected: family = "..."')
    return found


def with_recipe(options: Options, recipe: str | Path | None) -> Options:
    """Complete options with those of a recipe; the caller's own have precedence."""
    if recipe is None:
        return options
    found = {k: v for k, v in load_recipe(recipe).items() if k in _RECIPE_KEYS}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    defaults = DEFAULT_OPTIONS
    merged: dict[str, Any] = {"recipe": Path(recipe).stem}
    for name, value in found.items():
        ours = getattr(options, name)
        if isinstance(value, dict):
            value = {k: tuple(v) if name == "dims" else v for k, v in value.items()} | dict(ours)
        elif ours != getattr(defaults, name):
            value = ours
        merged[name] = value
    return replace(options, **merged)


def with_parameter(keys: Mapping[str, str] | None, parameter: str | None) -> dict[str, str]:
    """Return keys with the one of a parameter that is recorded as W."""
    found = dict(keys or {})
    if parameter is not None and found.setdefault("W", parameter) != parameter:
        raise InputError(
            f"{found['W']!r} is named by --key W={found['W']} (keys=), and {parameter!r} by --parameter {parameter} "
            "(parameter=): give one of them"
        )
    return found


def suggested_recipes(path: Path) -> list[str]:
    """Return the names of the recipes whose family has files of this name."""
    patterns = {name: recipe.get("files", ()) for name, recipe in recipes().items()}
    return [name for name, files in patterns.items() if any(fnmatch(path.name, pattern) for pattern in files)]


def same_ids(a: ArrayLike, b: ArrayLike) -> bool:
    """Return whether two lists hold the same ids, in any order."""
    return np.array_equal(np.sort(np.asarray(a)), np.sort(np.asarray(b)))
