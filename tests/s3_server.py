"""An S3 server on loopback for the tests, and a proxy in front of it that breaks connections."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "recordings"
KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "something", "AWS_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def server(log: Path, **environment: str) -> Iterator[str]:
    """A moto server in a process of its own; its address."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)


class Proxy:
    """Passes bytes on to a server; breaks a connection in the middle of what a client sends, so many times.

    ``dead`` breaks every connection, at once.
    """

    def __init__(self, address: str, cuts: int, after: int) -> None:
        host, port = address.removeprefix("http://").split(":")
        self._server = (host, int(port))
        self.cuts, self.after, self.dead, self.n_cut = cuts, after, False, 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.dead:
                client.close()
                continue
            server = socket.create_connection(self._server)
            for args in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=args, daemon=True).start()

    def _pass_on(self, source: socket.socket, to: socket.socket, sent: bool) -> None:
        passed = 0
        try:
            while data := source.recv(4096):
                passed += len(data)
                if self.dead or (sent and passed > self.after and self.n_cut < self.cuts):
                    self.n_cut += 1
                    break
                to.sendall(data)
        except OSError:
            pass
        for end in (source, to):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                end.close()
