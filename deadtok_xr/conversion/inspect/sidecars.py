"""What lies beside a recording and belongs to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deadtok_xr.conversion.inspect.derived import Wrapped
from deadtok_xr.conversion.readers.source import Source
from deadtok_xr.errors import InputError

_RECORDINGS = (".safetensors", ".h5", ".hdf5", ".npz", ".pt", ".pth")
_MOST = 16 * 2**20
_TELLING = ("mask", "dead", "token_list", "tokens")


class WithMetadata(Wrapped):
    """A source with the settings of a JSON file as attributes; its own go before them."""

    def __init__(self, source: Source, path: Path) -> None:
        super().__init__(source)
        self._metadata = path
        self.attributes = {**_settings(path), **source.attributes}

    def files(self) -> list[Path]:
        return [*self.source.files(), self._metadata]


def with_metadata(source: Source, given: Path | None = None) -> Source:
    """A source with the metadata that is named, or that can only be its own.

    That is STEM.json or STEM_metadata.json, and metadata.json in a folder without another recording.
    """
    if given is not None:
        return WithMetadata(source, given)
    folder, stem = source.path.parent, source.path.stem
    if not source.path.is_file():
        return source
    own = [p for p in (folder / f"{stem}.json", folder / f"{stem}_metadata.json") if _holds_settings(p)]
    common = folder / "metadata.json"
    if not own and _holds_settings(common) and _is_alone(source.path):
        own = [common]
    return WithMetadata(source, own[0]) if own else source


def _holds_settings(path: Path) -> bool:
    try:
        return path.is_file() and bool(_settings(path))
    except InputError:
        return False  # not everything beside a recording is about it; what is named with --metadata must be


def _is_alone(path: Path) -> bool:
    large = [p for p in path.parent.iterdir() if p.suffix in _RECORDINGS and not _is_telling(p) and p.is_file()]
    return large == [path]


def _is_telling(path: Path) -> bool:
    return any(word in path.stem.lower() for word in _TELLING)


def tell_tales(path: Path) -> list[Path]:
    """Files beside a recording whose names say that they may tell which tokens are dead."""
    if not path.parent.is_dir():
        return []
    found = [p for p in path.parent.iterdir() if p.suffix in (*_RECORDINGS, ".npy", ".json", ".txt") and _is_telling(p)]
    return sorted(p for p in found if p != path and p.is_file() and p.stat().st_size <= _MOST)


def _settings(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST:
            raise InputError(f"{path} is {path.stat().st_size} bytes; needed: a JSON file of settings, below {_MOST}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as JSON ({error}); mend it, or move it away") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}; needed: a JSON object of settings")
    return found
