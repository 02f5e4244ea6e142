"""The local web server that shows the page: on 127.0.0.1, under an address with a random token."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from deadtok_xr.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

    from deadtok_xr.explorer.source import Source

    Explored = xr.DataTree | xr.Dataset | str | Path

HOST = "127.0.0.1"
_UNUSED = 120_000  # milliseconds until a page without a browser is forgotten: a busy machine takes long to draw one
_HEIGHT = 900  # pixels of the page in a notebook
_COMPONENTS = ("bokeh", "bokeh-widgets", "bokeh-tables")


class Explorer:
    """A running page.

    It answers at once, so that a browser starts and loads BokehJS while Bokeh is imported and the results are opened.

    Attributes
    ----------
    url
        The address of the page, which only this machine can open, and only those who know the token in it.
    """

    def __init__(self, port: int = 0) -> None:
        bokeh = find_spec("bokeh")
        if bokeh is None or bokeh.submodule_search_locations is None:
            raise InputError("the explorer needs Bokeh: pip install 'deadtok_xr[explore]'")
        try:
            self._socket = socket.create_server((HOST, port), backlog=128)
        except (OSError, OverflowError) as error:
            what = f"port {port} on {HOST} is in use, or not allowed"
            raise InputError(f"{what}: choose another, or none for a free one") from error
        self._path = f"/{secrets.token_urlsafe(16)}"
        self._origins = [f"{name}:{self._socket.getsockname()[1]}" for name in (HOST, "localhost")]
        self.url = f"http://{self._origins[0]}{self._path}"
        self._static = Path(bokeh.submodule_search_locations[0]) / "server" / "static"
        self._server: Any = None
        started = Event()
        self._thread = Thread(target=self._run, args=(started,), name="deadtok explore", daemon=True)
        self._thread.start()
        started.wait()

    def _run(self, started: Event) -> None:
        """Serve until `close`; the event loop belongs to this thread."""
        from tornado.httpserver import HTTPServer
        from tornado.ioloop import IOLoop

        asyncio.set_event_loop(asyncio.new_event_loop())
        with self._socket:
            self._loop, self._shown = IOLoop.current(), asyncio.Event()
            self._http = HTTPServer(self._opening())
            self._socket.setblocking(False)
            self._http.add_sockets([self._socket])
            started.set()
            self._loop.start()
            if self._server is not None:
                self._server.stop()

    def _opening(self) -> Any:
        """Return the application that answers until there is something to show."""
        from tornado.web import Application, RequestHandler, StaticFileHandler

        page, shown = Path(__file__).with_name("opening.html").read_text("utf-8"), self._shown
        path = self._path

        class Opening(RequestHandler):
            def get(self) -> None:
                self.write(page)

        class Ready(RequestHandler):
            async def get(self) -> None:
                await shown.wait()
                self.redirect(f"{path}?{self.request.query}")

        return Application([
            (path, Opening), (f"{path}/ready", Ready),
            ("/static/(.*)", StaticFileHandler, {"path": str(self._static)}),
        ])  # fmt: skip

    def show(self, runs: Mapping[str, Source]) -> None:
        """Show runs on the page, by label."""
        app = self._bokeh(runs)

        def serve() -> None:
            from bokeh.server.server import BaseServer

            self._http.request_callback = app
            self._server = BaseServer(self._loop, app, self._http)
            self._server.start()
            self._shown.set()

        self._loop.add_callback(serve)

    def _bokeh(self, runs: Mapping[str, Source]) -> Any:
        """Return the application that makes a page for each browser."""
        from bokeh.application import Application
        from bokeh.application.handlers.function import FunctionHandler
        from bokeh.resources import Resources
        from bokeh.server.tornado import BokehTornado
        from bokeh.settings import settings

        from deadtok_xr.explorer.page import Page

        class Server(BokehTornado):
            def resources(self, absolute_url: str | bool | None = None) -> Resources:
                """Name what the page uses: half of BokehJS's four megabytes are for WebGL and formulas."""
                return super().resources(absolute_url).clone(components=[*_COMPONENTS])

        settings.resources.set_value("server")  # whatever the environment says: nothing comes from another machine
        return Server(
            {self._path: Application(FunctionHandler(lambda document: Page(runs, document).show()))},
            extra_websocket_origins=self._origins,
            use_index=False,
            check_unused_sessions_milliseconds=5000,
            unused_session_lifetime_milliseconds=_UNUSED,
        )

    def wait(self) -> None:
        """Wait until the page is closed, or the user interrupts."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Stop serving the page."""
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
    from deadtok_xr.explorer.opening import open_runs

    runs = open_runs(what, tokens=tokens, run=run)
    explorer = Explorer(port)
    explorer.show(runs)
    return explorer
