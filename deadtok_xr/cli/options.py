"""Options and output that several subcommands share."""

from __future__ import annotations

import shlex
from pathlib import Path, PurePosixPath
from typing import Any

import click

from deadtok_xr.cli.output import echo
from deadtok_xr.errors import InputError


class LocalPath(click.Path):
    """A path on this machine."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("it is empty; expected: a path", param, ctx)
        if "://" in str(value):
            self.fail(f"{str(value)!r} is an address; expected: a path on this machine", param, ctx)
        return super().convert(value, param, ctx)


class Place(click.Path):
    """A path on this machine, or an address."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            return str(value)
        return LocalPath(path_type=Path).convert(value, param, ctx)


class SourcePlace(click.Path):
    """A path on this machine, or a model on the Hugging Face Hub."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value).startswith("hf://"):
            return str(value)
        return LocalPath(path_type=Path).convert(value, param, ctx)


PATH = LocalPath(path_type=Path)
SOURCE = SourcePlace()
PLACE = Place()
QUIET = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the destination if it exists.")
PARTIAL = click.option("--partial", is_flag=True, help="Accept a store that is not complete.")
STORE = click.argument("store", type=PATH)
STORE_ANYWHERE = click.argument("store", type=PLACE)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for scripts.")


def pairs(values: tuple[str, ...], option: str, form: str) -> dict[str, str]:
    """Parse the values NAME=VALUE of an option that may be repeated."""
    found = dict(value.partition("=")[::2] for value in values)
    if not all(name and value for name, value in found.items()):
        raise InputError(f"{option} {' '.join(values)}: expected: {form}, with both sides of the =")
    return found


def description(path: Path | str, *, partial: bool = False) -> str:
    """Describe a store, as text for one screen."""
    from deadtok_xr.cli.describe import describe

    return describe(path, partial=partial)


def print_json(**facts: Any) -> None:
    """Print one JSON object on one line, for scripts."""
    import json

    echo(json.dumps(facts))


def print_summary(tree: Any, *, details: bool = False) -> None:
    """Print the findings, or everything that the analyses say."""
    from deadtok_xr.cli.spelling import options_alone
    from deadtok_xr.results import findings, summary

    groups = findings.load(tree)
    echo((summary.detailed if details else summary.one_screen)(tree, groups, options_alone))


def rechunk_here() -> None:
    """Let Dask rechunk without a cluster during a command; to look for one, it imports dask.distributed."""
    import dask

    click.get_current_context().with_resource(dask.config.set({"array.rechunk.method": "tasks"}))


def draw(tree: Any, folder: Path) -> list[Path]:
    """Draw all figures of results. Imports matplotlib only when it is called."""
    from deadtok_xr import plot

    return plot.save_figures(tree, folder)


def print_places(results: Path | str, figures: list[Path], *, then: str = "", **others: Path | str) -> None:
    """Print where the results, their figures and other files are, and the next command, or two."""
    places = {**{name: str(place) for name, place in others.items()}, "results": str(results)}
    if figures:
        places["figures"] = f"{figures[0].parent} ({len(figures)} files)"
    page = PurePosixPath(results).name if "://" in str(results) else Path(results)
    words = ("deadtok", "report", str(results), "-o", str(Path(page).with_suffix(".html")))
    places["next"] = f"{shlex.join(words)}   (a page with all pictures)"
    if then:
        places["then"] = then
    width = max(map(len, places)) + 1
    echo("\n".join(["", *(f"{name + ':':{width}} {place}" for name, place in places.items())]))


def remove_leftovers(store: Path | str) -> None:
    """Remove what a kill in the last moment of writing has left beside a store. Imports zarr only when called."""
    from deadtok_xr.store import in_progress

    in_progress.remove_leftovers(store)


def read_ids(path: Path) -> list[int]:
    """Return the token ids in a file. Imports NumPy only when it is called."""
    from deadtok_xr.store import token_ids

    return token_ids.read_ids(path)
