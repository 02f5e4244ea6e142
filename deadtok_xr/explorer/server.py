"""The local web server that shows the page: on 127.0.0.1, under an address with a random token."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from deadtok_xr.errors import InputError
from deadtok_xr.explorer.opening import open_runs
from deadtok_xr.explorer.source import Source

if TYPE_CHECKING:
    import xarray as xr

    Explored = xr.DataTree | xr.Dataset | str | Path

HOST = "127.0.0.1"
_UNUSED = 120_000  # milliseconds until a page without a browser is forgotten: a busy machine takes long to draw one
_HEIGHT = 900  # pixels of the page in a notebook


class Explorer:
    """A running page.

    Attributes
    ----------
    url
        The address of the page, which only this machine can open, and only those who know the token in it.
    """

    def __init__(self, runs: Mapping[str, Source], port: int = 0) -> None:
        if find_spec("bokeh") is None:
            raise InputError("the explorer needs Bokeh: pip install 'deadtok_xr[explore]'")
        try:
            listening = socket.create_server((HOST, port), backlog=128)
        except (OSError, OverflowError) as error:
            what = f"port {port} on {HOST} is in use, or not allowed"
            raise InputError(f"{what}: choose another, or none for a free one") from error
        path = f"/{secrets.token_urlsafe(16)}"
        self.url = f"http://{HOST}:{listening.getsockname()[1]}{path}"
        self._loop: Any = None
        # A browser that is opened now starts while Bokeh is imported: the socket already takes connections.
        self._thread = Thread(target=self._run, args=(runs, listening, path), name="deadtok explore", daemon=True)
        self._thread.start()

    def _run(self, runs: Mapping[str, Source], listening: socket.socket, path: str) -> None:
        """Serve until `close`; the event loop belongs to this thread."""
        import asyncio

        from tornado.ioloop import IOLoop

        asyncio.set_event_loop(asyncio.new_event_loop())
        self._loop = IOLoop.current()
        with listening:
            server = _start(runs, listening, path)
            self._loop.start()
            server.stop()

    def wait(self) -> None:
        """Wait until the page is closed, or the user interrupts."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Stop serving the page."""
        while self._loop is None and self._thread.is_alive():
            self._thread.join(0.01)
        if self._thread.is_alive():
            self._loop.add_callback(self._loop.stop)
            self._thread.join(5)

    def __repr__(self) -> str:
        return f"Explorer({self.url!r})"

    def _repr_html_(self) -> str:
        return (
            f'<iframe src="{escape(self.url)}" title="deadtok explore" width="100%" height="{_HEIGHT}" '
            'style="border:0" allow="clipboard-write"></iframe>'
        )


def explore(
    what: Explored | Sequence[Explored], *, tokens: str | None = None, run: str | None = None, port: int = 0
) -> Explorer:
    """Explore results or a recording on an interactive page, in a notebook or in a browser.

    Parameters
    ----------
    what
        A tree of results, from `open_results`, `save_results` or `analyze`; or the dataset of a recording; or the path
        of either, or of a Monitor's store, which may still be written. Or a list of them, to see several runs side by
        side: each has a colour in all plots over steps.
    tokens
        Of the path of a recording: ``"all"``, ``"live"`` or ``"dead"``; None for the dead ones if they are known.
    run
        Of results or a recording of several runs, the label of one; None for all, side by side.
    port
        The port on 127.0.0.1; 0 for any that is free.

    Returns
    -------
    Explorer
        A notebook shows it as the page. `url` is its address for a browser on the same machine, and `close` stops it.

    Raises
    ------
    InputError
        If there is nothing to explore at ``what``, Bokeh is not installed, or the port is in use.

    Examples
    --------
        dx.explore(dx.open_results("results.zarr"))
        dx.explore(["seed_0.zarr", "seed_7.zarr"])
    """
    return Explorer(open_runs(what, tokens=tokens, run=run), port)


def _start(runs: Mapping[str, Source], listening: socket.socket, path: str) -> Any:
    """Begin to serve the page, and return the server."""
    from bokeh.application import Application
    from bokeh.application.handlers.function import FunctionHandler
    from bokeh.server.server import BaseServer
    from bokeh.server.tornado import BokehTornado
    from bokeh.settings import settings
    from tornado.httpserver import HTTPServer
    from tornado.ioloop import IOLoop

    from deadtok_xr.explorer.page import Page

    settings.resources.set_value("server")  # whatever the environment says: nothing comes from another machine
    port = listening.getsockname()[1]
    app = BokehTornado(
        {path: Application(FunctionHandler(lambda document: Page(runs, document).show()))},
        extra_websocket_origins=[f"{HOST}:{port}", f"localhost:{port}"],
        use_index=False,
        check_unused_sessions_milliseconds=5000,
        unused_session_lifetime_milliseconds=_UNUSED,
    )
    http = HTTPServer(app)
    listening.setblocking(False)
    http.add_sockets([listening])
    server = BaseServer(IOLoop.current(), app, http)
    server.start()
    return server
