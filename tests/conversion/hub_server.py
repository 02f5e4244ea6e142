"""A stand-in for the Hugging Face Hub on loopback: the requests that a conversion makes, and failures on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

MODEL = "org/model"


def commit_of(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


@dataclass
class Log:
    """What was asked, and how to fail.

    Attributes
    ----------
    asked
        Path of each request.
    sent
        Bytes of files that were sent, by name of the file.
    failures
        Part of a path -> what the next requests for it get: a status code, or "cut" for half of the answer.
    tokens
        The Authorization headers by the beginning of the path.
    whole
        Whether the range of a request is ignored.
    private
        Whether requests without credentials are refused.
    """

    asked: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    failures: dict[str, list[Any]] = field(default_factory=dict)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    whole: bool = False
    private: bool = False


Revisions = Mapping[str, Mapping[str, bytes]]


@contextmanager
def serving(revisions: Revisions, model: str = MODEL) -> Iterator[tuple[str, Log]]:
    """Serve the files of the revisions of one model; yield the endpoint and the log."""
    log = Log()

    class Handler(_Handler):
        content = revisions
        book = log
        name = model

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that has enough closes the connection

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    content: ClassVar[Revisions]
    book: ClassVar[Log]
    name: ClassVar[str]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.book.asked.append(path)
        self.book.tokens.append((path, self.headers.get("Authorization")))
        failure = next((f.pop(0) for part, f in self.book.failures.items() if part in path and f), None)
        if isinstance(failure, int):
            self._answer(failure, b"{}", {"Retry-After": "0"} if failure == 429 else {})
            return
        if self.book.private and not self.headers.get("Authorization"):
            self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        if path == f"/api/models/{self.name}/refs":
            branches = [{"name": r, "ref": f"refs/heads/{r}", "targetCommit": commit_of(r)} for r in self.content]
            self._json({"branches": branches, "tags": [], "converts": []})
        elif match := re.fullmatch(rf"/api/models/{self.name}/tree/([0-9a-f]+)", path):
            self._json([self._listed(*item) for item in self._files(match[1]).items()])
        elif match := re.fullmatch(rf"/{self.name}/resolve/([0-9a-f]+)/(.+)", path):
            self._answer(302, b"", {"Location": f"/cdn/{match[1]}/{match[2]}"})
        elif match := re.fullmatch(r"/cdn/([0-9a-f]+)/(.+)", path):
            self._part(match[2], self._files(match[1])[match[2]], cut=failure == "cut")
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _files(self, commit: str) -> Mapping[str, bytes]:
        return next(files for revision, files in self.content.items() if commit_of(revision) == commit)

    @staticmethod
    def _listed(name: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        large = name.endswith((".safetensors", ".bin"))
        lfs = {"lfs": {"oid": digest, "size": len(content), "pointerSize": 130}} if large else {}
        return {"type": "file", "path": name, "size": len(content), "oid": digest[:40], **lfs}

    def _part(self, name: str, content: bytes, *, cut: bool) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None or self.book.whole:
            self._answer(200, content, {})
            return
        begin, end = int(match[1]), min(int(match[2]) + 1, len(content))
        part = content[begin:end]
        headers = {"Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}
        if cut:  # the connection ends in the middle of the answer
            self._answer(206, part[: len(part) // 2], {**headers, "Content-Length": str(len(part))})
            self.close_connection = True
            self.book.sent[name] = self.book.sent.get(name, 0) + len(part) // 2
            return
        self.book.sent[name] = self.book.sent.get(name, 0) + len(part)
        self._answer(206, part, headers)

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
