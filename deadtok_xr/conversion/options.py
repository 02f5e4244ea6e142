"""What a file does not say of itself: given by the caller, or by a recipe for a family of files.

A recipe is a TOML file whose keys are the fields of `Options`, and `family` and `cites`, which say what the
recipe is for and where its facts come from. Recipes that are shipped are named by their file's stem.
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
    """How a source is to be read, where it does not say.

    Attributes
    ----------
    recipe
        The name of the recipe that they come from, if any.
    keys
        Variable of the recording -> key of the source; overrides the key map.
    dims
        Key of the source -> its dimensions, for arrays whose axes cannot be told.
    include, drop
        Keys to keep that would be left out, and to leave out that would be kept.
    bits
        What unsigned integers are the bits of: "bfloat16" (the default) or "float16".
    keep_dtype
        Store float32 as float32, even where every value lies on the bfloat16 grid.
    steps
        "recorded": the labels in the file are the numbers of updates. "position": they are not (they
        drift); rows are numbered 0..T. For folders of checkpoints: "names" or "content".
    recorded
        "after": row t was recorded after update t. "before": before it, so that row 1 repeats row 0.
    axis
        What the first of three axes is: "step", or "run" for repetitions that are no steps in time.
    token_ids, dead_ids
        The vocabulary id of each row; the ids of the dead tokens.
    initial
        A file with the initial weights, for recordings of displacements.
    metadata
        A JSON file of settings that belongs to the recording.
    shard
        Bytes, before compression, of what one file or object holds; None for a chunk each.
    precision
        Variable -> the number format that its values come from, where a lossy copy does not show it.
    hyperparameters
        Settings of the run that are not in its file.
    notes
        Variable, or "" for the whole -> what a user should know of it.
    """

    recipe: str | None = None
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

    def stated(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON can hold it; ids only as how many there are."""
        defaults = NOTHING_SAID
        found: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("token_ids", "dead_ids"):
                if value is not None:
                    found[f.name] = len(value)
            elif value != getattr(defaults, f.name):
                found[f.name] = str(value) if isinstance(value, Path) else value
        return found


NOTHING_SAID = Options()
_RECIPE_KEYS = {f.name for f in fields(Options)} - {"recipe", "token_ids", "dead_ids", "initial", "metadata", "shard"}
_TYPES: dict[str, type] = {
    **dict.fromkeys(("files", "include", "drop"), list),
    **dict.fromkeys(("keys", "dims", "precision", "hyperparameters", "notes"), dict),
    "keep_dtype": bool,
}
_KINDS = {list: "a list of texts", dict: "a table", bool: "true or false", str: "a text"}
_ABOUT = {"family", "cites", "files", "about"}


def recipes() -> dict[str, Path]:
    """The recipes that are shipped, by name."""
    installed = resources.files("deadtok_xr.conversion") / "recipes"
    folder = Path(str(installed)) if installed.is_dir() else Path(__file__).parents[2] / "conversion"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name: str | Path) -> dict[str, Any]:
    """A recipe by its name, or a user's own by its path.

    Raises
    ------
    InputError, MissingFileError
        If there is none, or it holds what no recipe has.
    """
    known = recipes()
    path = known.get(str(name), Path(name))
    if path.suffix != ".toml" or not path.is_file():
        raise MissingFileError(f"there is no recipe {str(name)!r}: choose {', '.join(known)}, or name a .toml file")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"the recipe {path} cannot be read ({error}); needed: a TOML file") from error
    unknown = {*found} - _RECIPE_KEYS - _ABOUT
    if unknown:
        raise InputError(
            f"the recipe {path} holds {', '.join(sorted(unknown))}; needed: {', '.join(sorted(_RECIPE_KEYS | _ABOUT))}"
        )
    for key, value in found.items():
        kind = _TYPES.get(key, str)
        listed = kind is list and isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not (listed if kind is list else isinstance(value, kind)):
            raise InputError(f"the recipe {path}: {key} is {value!r}; needed: {_KINDS[kind]}")
    if "family" not in found:
        raise InputError(f'the recipe {path} does not say what it is for; needed: family = "..."')
    return found


def with_recipe(options: Options, recipe: str | Path | None) -> Options:
    """Options, and for what they leave open those of a recipe."""
    if recipe is None:
        return options
    found = {k: v for k, v in load_recipe(recipe).items() if k in _RECIPE_KEYS}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    defaults = NOTHING_SAID
    merged: dict[str, Any] = {"recipe": Path(recipe).stem}
    for name, value in found.items():
        ours = getattr(options, name)
        if isinstance(value, dict):
            value = {k: tuple(v) if name == "dims" else v for k, v in value.items()} | dict(ours)
        elif ours != getattr(defaults, name):
            value = ours
        merged[name] = value
    return replace(options, **merged)


def suggested(path: Path) -> list[str]:
    """The recipes whose family has files of this name."""
    patterns = {name: load_recipe(name).get("files", ()) for name in recipes()}
    return [name for name, given in patterns.items() if any(fnmatch(path.name, pattern) for pattern in given)]


def same_ids(a: ArrayLike, b: ArrayLike) -> bool:
    """Whether two lists hold the same ids, in any order."""
    return np.array_equal(np.sort(np.asarray(a)), np.sort(np.asarray(b)))
