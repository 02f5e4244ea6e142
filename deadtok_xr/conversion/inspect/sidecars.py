"""Find files beside a recording that belong to it: settings, and lists of dead tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deadtok_xr.conversion.readers.source import Source, Wrapped
from deadtok_xr.errors import InputError

_RECORDINGS = (".safetensors", ".h5", ".hdf5", ".npz", ".pt", ".pth")
_MAX_BYTES = 16 * 2**20
_NAMES = ("mask", "dead", "token_list", "tokens")


class WithMetadata(Wrapped):
    """A source with the settings of a JSON file as attributes; its own attributes have precedence."""

    def __init__(self, source: Source, path: Path) -> None:
        super().__init__(source)
        self._metadata = path
        self.attributes = {**_settings(path), **source.attributes}

    def files(self) -> list[Path]:
        return [*self.source.files(), self._metadata]


def with_metadata(source: Source, metadata: Path | None = None) -> Source:
    """Return a source with the metadata file that is given, or that can only be its own.

    That is STEM.json or STEM_metadata.json, or metadata.json in a folder without another recording.
    """
    if metadata is not None:
        return WithMetadata(source, metadata)
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
        return False  # a file beside a recording need not belong to it; one given with --metadata must


def _is_alone(path: Path) -> bool:
    large = [p for p in path.parent.iterdir() if p.suffix in _RECORDINGS and not _names_tokens(p) and p.is_file()]
    return large == [path]


def _names_tokens(path: Path) -> bool:
    return any(word in path.stem.lower() for word in _NAMES)


def find_dead_token_files(path: Path) -> list[Path]:
    """Find files beside a recording whose names suggest that they list the dead tokens."""
    if not path.parent.is_dir():
        return []
    found = [
        p for p in path.parent.iterdir() if p.suffix in (*_RECORDINGS, ".npy", ".json", ".txt") and _names_tokens(p)
    ]
    return sorted(p for p in found if p != path and p.is_file() and p.stat().st_size <= _MAX_BYTES)


def _settings(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes; expected: a JSON file of settings, below {_MAX_BYTES}"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as JSON ({error}); repair it, or move it away") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}; expected: a JSON object of settings")
    return found
