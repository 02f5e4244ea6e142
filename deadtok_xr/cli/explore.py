"""`deadtok explore` and `deadtok watch`: results, a recording or a running training in the browser."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import click

from deadtok_xr.cli.options import PLACE
from deadtok_xr.cli.output import echo
from deadtok_xr.errors import IncompleteStoreError, MissingFileError

if TYPE_CHECKING:
    from deadtok_xr.explorer.source import Source

_LOOK = 2.0  # seconds between two looks at a store
TOKENS = click.option("--tokens", type=click.Choice(["all", "live", "dead"]), help="Default: dead, if they are known.")
PORT = click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1. Default: a free one.")
NO_BROWSER = click.option("--no-browser", is_flag=True, help="Print the address, and open no browser.")


def _page_options(command: Callable[..., Any]) -> Callable[..., Any]:
    return TOKENS(PORT(NO_BROWSER(command)))


@click.command()
@click.argument("results", type=PLACE, nargs=-1, required=True)
@_page_options
@click.option("--run", help="Label of one run, for results or a store of several runs. Default: all.")
def explore(results: tuple[Path | str, ...], tokens: str | None, run: str | None, port: int, no_browser: bool) -> None:
    """Explore results, or a recording, on a page in the browser.

    Several, or one with several runs, are shown side by side, with a colour for each run.

    The page is served on this machine alone, under an address with a random token. Ctrl-C ends it.

    \b
    Example:  deadtok explore results.zarr
              deadtok explore seed_1.zarr seed_2.zarr seed_3.zarr
    """
    gc.disable()  # imports leave no garbage, and looking for it takes an eighth of the time until the first picture
    from deadtok_xr.explorer.kinds import check

    for place in results:
        check(place)

    def opened() -> Mapping[str, Source]:
        from deadtok_xr.explorer.opening import open_runs

        return open_runs(list(results), tokens=tokens, run=run)

    _serve(opened, port, browser=not no_browser)


@click.command()
@click.argument("store", type=PLACE)
@_page_options
@click.option("--text", is_flag=True, help="Print a line whenever steps were added, and show no page.")
def watch(store: Path | str, tokens: str | None, port: int, no_browser: bool, text: bool) -> None:
    """Watch a recording, or a Monitor's store, while the training writes it.

    It only reads: the training is not disturbed. Only blocks of steps that are new are read. Ctrl-C ends it.

    \b
    Example:  deadtok watch run.zarr
              deadtok watch run.zarr --text
    """
    try:
        source = _opened_when_there_is_something(store, tokens)
        if text:
            _print_lines(source)
            return
    except KeyboardInterrupt:
        return
    _serve(lambda: {source.name: source}, port, browser=not no_browser)


def _opened_when_there_is_something(store: Path | str, tokens: str | None) -> Source:
    """Open a store that is written; wait for its first steps."""
    from deadtok_xr.explorer.opening import open_source

    said = ""
    while True:
        try:
            return open_source(store, tokens=tokens, live=True)
        except MissingFileError:
            raise
        except IncompleteStoreError as error:
            if str(error) != said:
                echo(f"waiting: {error}", err=True)
                said = str(error)
            time.sleep(_LOOK)


def _print_lines(source: Source) -> None:
    """Print a line for every growth of a source, until it is complete."""
    from deadtok_xr.explorer.in_words import line

    said = None
    while True:
        if said != (now := (source.version, source.grows)):
            said = now
            echo(line(source))
            sys.stdout.flush()
        if not source.grows:
            return
        time.sleep(_LOOK)
        source.refresh()


def _serve(opened: Callable[[], Mapping[str, Source]], port: int, *, browser: bool) -> None:
    from deadtok_xr.explorer.server import Explorer

    logging.getLogger("tornado.access").setLevel(logging.ERROR)  # no lines about requests for other addresses
    explorer = Explorer(port)
    echo(explorer.url)
    sys.stdout.flush()
    if browser:  # which starts while the results are opened
        Thread(target=_open_browser, args=(explorer.url,), daemon=True).start()
    try:
        runs = opened()
        for note in dict.fromkeys(note for source in runs.values() for note in source.notes):
            echo(note, err=True)
        explorer.show(runs)
        gc.freeze()
        gc.enable()
        explorer.wait()
    except KeyboardInterrupt:
        pass
    finally:
        explorer.close()


def _open_browser(url: str) -> None:
    """Open a browser with windows; one in the terminal would hide the address, and cannot show the page."""
    import webbrowser

    displays = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    windows = sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in displays)
    with suppress(webbrowser.Error):
        if windows and webbrowser.open(url):
            return
    echo("no browser was found: open the address in one on this machine", err=True)
