"""Open several files that form one checkpoint as one source: shards, or a model and its optimizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from deadtok_xr.conversion.readers.source import Entry, Source, explaining_damage
from deadtok_xr.errors import InputError

OpenFile = Callable[[Path], Source]
MODELS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
"""Names of the weights in a Hugging Face folder, in order of preference."""
_PLAIN_MODELS = ("model.pt", "model.pth")
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optim.pt", "optimizer.pth", "optim.pth")
_STATES = ("train.pt", "training_state.pt", "train_state.pt", "trainer_state.pt")
_TEXT = 64 * 2**20
_AGAIN = "copy the folder again from the original"


class Merged(Source):
    """Several sources as one, the names of each with a prefix.

    Parameters
    ----------
    path, format
        Path and format of the merged source.
    parts
        Prefix and open source of each; they are closed with this one.
    attributes
        In addition to those of the parts.
    extra_files
        Further files that were read.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        parts: Sequence[tuple[str, Source]],
        attributes: Mapping[str, Any] | None = None,
        extra_files: Sequence[Path] = (),
    ) -> None:
        self.path, self.format = path, format
        self._parts, self._extra = parts, list(extra_files)
        self._places: dict[str, tuple[Source, str]] = {}
        entries: dict[str, Entry] = {}
        found: dict[str, Any] = {}
        aliases: dict[str, str] = {}
        for prefix, part in parts:
            for name, entry in part.entries.items():
                if prefix + name in entries:
                    first = self._places[prefix + name][0].path
                    raise InputError(
                        f"{path}: {prefix + name!r} is in {first.name} and in {part.path.name}; expected: each tensor "
                        "once; remove the file that does not belong"
                    )
                entries[prefix + name] = entry
                self._places[prefix + name] = part, name
            found |= {prefix + name: value for name, value in part.attributes.items()}
            aliases |= {prefix + later: prefix + first_ for later, first_ in part.aliases.items()}
        self.entries, self.attributes, self.aliases = entries, {**found, **(attributes or {})}, aliases
        self.ordered = len([prefix for prefix, _ in parts if not prefix]) == 1 and parts[0][1].ordered

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        part, inner = self._places[name]
        return part.read(inner, *where)

    def unwritten(self, name: str) -> list[range]:
        part, inner = self._places[name]
        return part.unwritten(inner)

    def files(self) -> list[Path]:
        return [*self._extra, *(file for _, part in self._parts for file in part.files())]

    def close(self) -> None:
        for _, part in self._parts:
            part.close()


def open_sharded(index: Path, open_file: OpenFile) -> Source:
    """Open the shards that an index file names as one source.

    Raises
    ------
    InputError
        If the index is damaged, a shard is missing or outside the folder, or a tensor is not where it should be.
    """
    shards = _shards(index)
    with ExitStack() as opened:
        parts = []
        for file, names in shards.items():
            part = opened.enter_context(open_file(file))
            missing = next((name for name in names if name not in part.entries), None)
            if missing is not None:
                raise InputError(f"{index} says that {missing!r} is in {file.name}, but it is not; {_AGAIN}")
            parts.append(("", part))
        merged = Merged(index, f"sharded {parts[0][1].format}", parts, extra_files=[index])
        opened.pop_all()
        return merged


def _shards(index: Path) -> dict[Path, list[str]]:
    """Return the files of an index, and the names of the tensors in each."""
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f"{index} has no weight_map from names to files; expected: an index of shards; {_AGAIN}")
    shards: dict[Path, list[str]] = {}
    checked: dict[str, Path] = {}
    for name, file in weight_map.items():
        if file not in checked:
            checked[file] = _inside(index, file)
        shards.setdefault(checked[file], []).append(name)
    return shards


def _inside(index: Path, file: str) -> Path:
    """Return the path of a file that an index names; it must exist in the folder of the index."""
    pure = PurePosixPath(file)
    shard = index.parent / file.replace("\0", "")
    with explaining_damage(index, f"the shard {file!r}", "a path"):
        folder, real = index.parent.resolve(), shard.resolve()
        strange = pure.is_absolute() or ".." in pure.parts or "\\" in file or "\0" in file
        outside = strange or not (folder in real.parents or real.parent == _blobs(index))
        if outside:
            raise InputError(
                f"{index} names the shard {file!r}, which is not in its own folder; expected: plain files beside it; "
                "copy the shards there"
            )
        if not real.is_file():
            raise InputError(f"{index} names the shard {file!r}, which is not there; {_AGAIN}")
    return shard


def _blobs(index: Path) -> Path:
    """Return where a Hugging Face cache keeps the files that snapshots/REVISION links to."""
    snapshot = index.absolute().parent
    return (snapshot.parent.parent / "blobs").resolve() if snapshot.parent.name == "snapshots" else snapshot


def _json(path: Path) -> dict[str, Any]:
    with explaining_damage(path, "the file", "JSON"):
        if path.stat().st_size > _TEXT:
            raise ValueError(f"more than {_TEXT} bytes")
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("expected: names and values")
        return content


def model_file(folder: Path) -> Path | None:
    """Return the file with the weights of a checkpoint folder; None if it is not such a folder."""
    beside = any((folder / name).is_file() for name in (*_OPTIMIZERS, *_STATES))
    names = (*MODELS, *_PLAIN_MODELS) if beside else MODELS
    return next((folder / name for name in names if (folder / name).is_file()), None)


def open_model_folder(folder: Path, open_file: OpenFile) -> Source:
    """Open a checkpoint folder: weights, optimizer with the prefix ``optimizer.``, and settings as attributes."""
    model = model_file(folder)
    assert model is not None
    with ExitStack() as opened:
        sharded = model.suffix == ".json"
        parts = [("", opened.enter_context(open_sharded(model, open_file) if sharded else open_file(model)))]
        for prefix, names in (("optimizer.", _OPTIMIZERS), ("train.", _STATES)):
            file = next((folder / name for name in names if (folder / name).is_file()), None)
            if file is not None:
                parts.append((prefix, opened.enter_context(open_file(file))))
        texts = [path for path in (folder / "trainer_state.json", folder / "config.json") if path.is_file()]
        attributes = {name: value for path in texts for name, value in _plain(path)}
        merged = Merged(folder, parts[0][1].format, parts, attributes, texts)
        opened.pop_all()
        return merged


def _plain(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the numbers and texts of a JSON file, with its name as a prefix."""
    for name, value in _json(path).items():
        if isinstance(value, (bool, int, float, str)):
            yield f"{path.stem}.{name}", value
