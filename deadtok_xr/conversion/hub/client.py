"""Ask the Hub for revisions, files and parts of files, and repeat what failed for a moment.

`huggingface_hub` is optional. It takes the address of the Hub from HF_ENDPOINT, and credentials from HF_TOKEN or from
where `hf auth login` stores them.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from deadtok_xr.errors import InputError, StorageError

PREFIX = "hf://"
WAIT_S = 1.0
"""Seconds before the first repetition; each further one waits twice as long."""
_ATTEMPTS = 6
_LONGEST_WAIT_S = 30.0
_PASSING = (408, 429, 500, 502, 503, 504)
"""Status codes of requests that may succeed when they are repeated."""
_ADDRESS = re.compile(r"hf://(?:models/)?(?P<model>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[^/].*))?/?")
_Result = TypeVar("_Result")


def is_hub_address(src: str | Path) -> bool:
    """Return whether a source is a model on the Hub."""
    return str(src).startswith(PREFIX)


@dataclass(frozen=True)
class File:
    """A file of a revision.

    Attributes
    ----------
    name
        Its path in the repository.
    size
        Its bytes.
    content
        What identifies its content.
    """

    name: str
    size: int
    content: str


class Hub:
    """One model on the Hub.

    Parameters
    ----------
    address
        ``hf://ORG/MODEL``, perhaps with ``@REVISION``.

    Raises
    ------
    InputError
        If it is no such address, or `huggingface_hub` is not installed.
    """

    def __init__(self, address: str) -> None:
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise InputError(f"{address} is no model; expected: hf://ORG/MODEL, or hf://ORG/MODEL@REVISION")
        self.model, self.revision = match["model"], match["revision"]
        try:
            import huggingface_hub
        except ImportError:
            raise InputError(
                f'{address} needs huggingface_hub, which is not installed: pip install "deadtok_xr[hub]"'
            ) from None
        self._hub: Any = huggingface_hub
        self._api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)

    def __str__(self) -> str:
        return PREFIX + self.model

    def at(self, revision: str) -> str:
        """Return the address of a revision, for messages."""
        return f"{self}@{revision}"

    @cached_property
    def revisions(self) -> Mapping[str, str]:
        """The commit of each branch and tag."""
        refs = self._repeated(str(self), lambda: self._api.list_repo_refs(self.model))
        return {ref.name: ref.target_commit for ref in (*refs.tags, *refs.branches)}

    def files(self, revision: str, commit: str) -> dict[str, File]:
        """Return the files at the top of a revision by their names."""

        def listed() -> list[Any]:
            return [*self._api.list_repo_tree(self.model, revision=commit)]

        tree = self._repeated(self.at(revision), listed)
        found = {}
        for item in tree:
            if hasattr(item, "size"):
                content = item.lfs.sha256 if getattr(item, "lfs", None) is not None else item.blob_id
                found[item.path] = File(item.path, int(item.size), str(content))
        return found

    def read(self, revision: str, commit: str, file: File, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a part of a file. After a failure it is continued where it stopped."""
        where = f"{self.at(revision)}: {file.name}"
        url = self._hub.hf_hub_url(self.model, file.name, revision=commit, endpoint=self._api.endpoint)
        failures = 0
        while begin < end:
            try:
                for part in self._streamed(url, begin, end, where):
                    begin += len(part)
                    failures = 0
                    yield part
                if begin < end:
                    raise ConnectionError("the connection was closed too early")
            except Exception as error:
                failures += 1
                self._wait(error, failures, where)

    def _streamed(self, url: str, begin: int, end: int, where: str) -> Iterator[bytes]:
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = {
            **build_hf_headers(),
            "range": f"bytes={begin}-{end - 1}",
            "accept-encoding": "identity",
        }
        with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
            if response.status_code != 206:
                raise InputError(
                    f"{where} cannot be read in parts: the server answered {response.status_code} to a request for a "
                    "range; download the model with `hf download`, and convert the folder"
                )
            left = end - begin
            for part in response.iter_raw():
                if left:
                    yield part[:left]
                left -= min(left, len(part))

    def _repeated(self, where: str, ask: Callable[[], _Result]) -> _Result:
        for failures in range(1, _ATTEMPTS + 1):
            try:
                return ask()
            except Exception as error:
                self._wait(error, failures, where)
        raise AssertionError("the last failure raises")

    def _wait(self, error: Exception, failures: int, where: str) -> None:
        """Wait before a repetition; raise an error if none can help."""
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        passing = status in _PASSING if status is not None else _is_of_connection(error)
        if not passing:
            raise self._explained(error, status, where) from error
        if failures >= _ATTEMPTS:
            what = f"the Hub answered {status}" if status is not None else " ".join(str(error).split())[:160]
            raise StorageError(
                f"{where} cannot be read: {what}, {failures} times; check the network and HF_ENDPOINT, and run the "
                "same command again: it continues with what is missing"
            ) from error
        asked = _seconds(response.headers.get("retry-after")) if response is not None else 0.0
        time.sleep(min(_LONGEST_WAIT_S, max(asked, WAIT_S * 2 ** (failures - 1))))

    def _explained(self, error: Exception, status: int | None, where: str) -> Exception:
        kind = type(error).__name__
        if isinstance(error, InputError):
            return error
        if kind == "GatedRepoError":
            return InputError(f"{where} is gated: accept its conditions on the Hub, and set HF_TOKEN to your token")
        if kind == "RepositoryNotFoundError" or status == 401:
            return InputError(
                f"{where}: there is no such model, or it is private; check the name, or set HF_TOKEN to a token that "
                "may read it"
            )
        if status == 403:
            return InputError(f"{where}: access is denied; set HF_TOKEN to a token that may read it")
        if kind in ("RevisionNotFoundError", "RemoteEntryNotFoundError", "EntryNotFoundError") or status == 404:
            return InputError(f"{where} is not there; check the name, and that it was not removed meanwhile")
        if kind == "HFValidationError":
            return InputError(f"{where} is no name of a model: {' '.join(str(error).split())}")
        return error


def _is_of_connection(error: Exception) -> bool:
    """Return whether an error is one of the connection, in the library that huggingface_hub uses."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or bool({"TransportError", "StreamError"} & names)


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and re.fullmatch(r"\d{1,4}", text) else 0.0
