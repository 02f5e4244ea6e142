"""Choose revisions and their tensors, fetch them into a folder, and open the folder as checkpoints of one run.

The folder has a safetensors file per revision, NAME@COMMIT.safetensors, and lies beside the store until that is
complete. A file is complete when it has this name; a ``.partial`` one is continued.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from deadtok_xr.conversion.hub.client import Hub
from deadtok_xr.conversion.hub.model import RemoteModel, Revision, pickled_bytes
from deadtok_xr.conversion.inspect.arrangement import Turned, arranged
from deadtok_xr.conversion.inspect.models import find_matrices
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.readers.names import named_step
from deadtok_xr.conversion.readers.safetensors import SafetensorsSource
from deadtok_xr.conversion.readers.source import TEXTS, Source, Wrapped
from deadtok_xr.conversion.readers.stacked import Stacked
from deadtok_xr.errors import DestinationExistsError, InputError

Progress = Callable[[int, int], None]
_AT_ONCE = 4
"""Revisions that are fetched at a time."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKENIZER, _CONFIG = "tokenizer.json", "config.json"


@dataclass(frozen=True)
class Fetch:
    """What is fetched.

    Attributes
    ----------
    hub
        The model.
    models
        The revisions, with the headers of the files that hold what is needed.
    keys
        W and E -> the tensors.
    dims
        Tensor -> its dimensions, where they are not (token, dim).
    settings
        Settings of the model.
    notes
        What a user should know.
    """

    hub: Hub
    models: Sequence[RemoteModel]
    keys: dict[str, str]
    dims: dict[str, tuple[str, ...]]
    settings: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return sorted({*self.keys.values()})

    def nbytes(self, model: RemoteModel) -> int:
        """Return the bytes of the tensors of a revision."""
        return sum(model.tensors[name].end - model.tensors[name].begin for name in self.names)

    @property
    def total(self) -> int:
        return sum(map(self.nbytes, self.models))

    def describe(self) -> str:
        """Return what is fetched as text for one screen."""
        steps = [model.revision.step for model in self.models]
        whole = sum(file.size for model in self.models for file in model.listed.values())
        lines = [f"{self.hub}: {len(steps)} revisions, steps {steps[0]} to {steps[-1]}"]
        lines += [f"  {name}: {key}, {self.models[0].entries[key]}" for name, key in self.keys.items()]
        lines += [f"  note: {note}" for note in self.notes]
        lines.append(f"  to fetch: {self.total / 1e6:.1f} MB of {whole / 1e6:.1f} MB")
        return "\n".join(lines)


class _Revisions(Wrapped):
    """Fetched revisions, with the settings and the texts of tokens of the model."""

    def __init__(self, source: Source, fetch: Fetch, texts: dict[int, str], n_rows: int) -> None:
        super().__init__(source)
        self.format = f"safetensors of {fetch.hub}, one per revision"
        found: dict[str, Any] = dict(fetch.settings)
        if any(i in texts for i in range(n_rows)):
            found[TEXTS] = [texts.get(i, "") for i in range(n_rows)]
        self.attributes = found
        self.notes = (*source.notes, *fetch.notes)


@contextmanager
def open_revisions(
    address: str, options: Options, folder: Path | None, progress: Progress | None
) -> Iterator[tuple[Source, Options]]:
    """Fetch the embedding of revisions, and open them as checkpoints of one run.

    Parameters
    ----------
    address
        ``hf://ORG/MODEL``.
    options
        ``revisions`` are names or patterns of them, ``keys`` may name W and E.
    folder
        Where fetched tensors are kept, so that an interrupted fetch is continued; None for a temporary folder.
    progress
        Called with the bytes fetched and to fetch.

    Yields
    ------
    tuple[Source, Options]
        The revisions, and options that name the matrices.

    Raises
    ------
    InputError
        If a revision is missing, has other matrices than the first, or has its weights as pickles.
    StorageError
        If the Hub cannot be reached; what was fetched is kept.
    """
    fetch = plan_fetch(address, options)
    with _kept(folder) as place:
        members = _fetched(fetch, place, progress or (lambda done, total: None))
        texts = _texts(fetch, place)
        keys, dims = {**options.keys, **fetch.keys}, {**fetch.dims, **options.dims}
        with Stacked(place, members, SafetensorsSource) as stacked:
            order = dims.get(fetch.keys["W"], ("token", "dim"))
            n_rows = fetch.models[0].entries[fetch.keys["W"]].shape[order.index("token") - len(order)]
            stacked_dims = {key: ("step", *names) if len(names) == 2 else names for key, names in dims.items()}
            source = _Revisions(stacked, fetch, texts, n_rows)
            told = replace(options, keys=keys, dims=stacked_dims, recorded=options.recorded or "after")
            yield arranged(source, told), told


def plan_fetch(address: str, options: Options) -> Fetch:
    """Determine which tensors of which revisions are fetched; only lists and headers are read."""
    hub = Hub(address)
    revisions, notes = _chosen(hub, options.revisions)
    _refuse_pickles(hub, revisions)
    first = RemoteModel(hub, revisions[0])
    settings = {}
    if _CONFIG in first.listed:
        found = first.json(_CONFIG)
        settings = {f"config.{k}": v for k, v in found.items() if isinstance(v, (bool, int, float, str))}
        first.attributes = settings
    keys, dims = _matrices(first, options)
    needed = [*keys.values()]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        others = [*pool.map(lambda revision: RemoteModel(hub, revision, needed), revisions[1:])]
    for model in others:
        _check_same(first, model, needed)
    tokenizers = {m.listed[_TOKENIZER].content for m in (first, *others) if _TOKENIZER in m.listed}
    if len(tokenizers) > 1:
        notes.append(f"{_TOKENIZER} differs between revisions: the texts of tokens are those of {revisions[0].name}")
    return Fetch(hub, [first, *others], keys, dims, settings, tuple(notes))


def _matrices(first: RemoteModel, options: Options) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Return the names of W and E, and the dimensions of those that are not (token, dim)."""
    turned = arranged(first, options)
    for name in ("W", "E"):
        if name in options.keys and options.keys[name] not in first.entries:
            some = ", ".join(key for key, entry in first.entries.items() if len(entry.shape) == 2)[:400]
            raise InputError(f"{first.path} has no {options.keys[name]!r}, given for {name!r}; its matrices: {some}")
    keys = {name: key for name, key in find_matrices(turned, options).keys.items() if name in ("W", "E")}
    if "W" not in keys:
        raise InputError(
            f"{first.path}: no name shows which matrix is the embedding; name it with --key W=NAME (keys={{'W': NAME}})"
        )
    if isinstance(turned, Turned):
        return keys, {key: ("dim", "token") for key in turned.orders if key in keys.values()}
    return keys, {}


def _chosen(hub: Hub, wanted: Sequence[str]) -> tuple[list[Revision], list[str]]:
    """Return the revisions that are named, in the order of their steps, and notes."""
    patterns = [*wanted] or [hub.revision or "main"]
    if hub.revision is not None and wanted:
        raise InputError(f"{hub.at(hub.revision)} names a revision already: leave out --revisions (revisions=)")
    names: list[str] = []
    for pattern in patterns:
        found = [name for name in hub.revisions if fnmatchcase(name, pattern)]
        if not found and not _COMMIT.fullmatch(pattern):
            some = ", ".join([*hub.revisions][:12]) + (", ..." if len(hub.revisions) > 12 else "")
            raise InputError(f"{hub} has no revision {pattern!r}; there are {len(hub.revisions)}: {some}")
        names += found or [pattern]
    names = list(dict.fromkeys(names))
    steps = {name: named_step(name) for name in names}
    if len(names) == 1:
        step = steps[names[0]]
        notes = [] if step is not None else [f"the name {names[0]!r} says no step: it is labelled 0"]
        return [Revision(names[0], hub.revisions.get(names[0], names[0]), 0 if step is None else step.number)], notes
    silent = next((name for name, step in steps.items() if step is None), None)
    if silent is not None:
        raise InputError(f"{hub}: the name of the revision {silent!r} says no step; leave it out of --revisions")
    templates = {step.template: name for name, step in steps.items() if step is not None}
    if len(templates) > 1:
        raise InputError(
            f"{hub}: {' and '.join([*templates.values()][:3])} are revisions of different kinds; choose one kind with "
            "--revisions (revisions=), such as 'step*'"
        )
    chosen = [Revision(name, hub.revisions[name], step.number) for name, step in steps.items() if step is not None]
    chosen.sort(key=lambda revision: revision.step)
    for one, other in itertools.pairwise(chosen):
        if one.step == other.step:
            raise InputError(f"{hub}: {one.name} and {other.name} are both of step {one.step}; choose one of them")
    return chosen, []


def _refuse_pickles(hub: Hub, revisions: Sequence[Revision]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        sizes = [*pool.map(lambda r: pickled_bytes(hub.files(r.name, r.commit)), revisions)]
    pickled = [revision.name for revision, size in zip(revisions, sizes, strict=True) if size]
    if pickled:
        some = ", ".join(pickled[:4]) + (", ..." if len(pickled) > 4 else "")
        raise InputError(
            f"{hub}: {len(pickled)} of {len(revisions)} revisions ({some}) have their weights as pytorch_model.bin "
            f"alone, which cannot be read in part: all of it is {sum(sizes) / 1e9:.3g} GB; leave them out of "
            "--revisions, or download them with `hf download --revision` and convert the folder"
        )


def _check_same(first: RemoteModel, model: RemoteModel, names: Sequence[str]) -> None:
    for name in names:
        one, other = first.entries[name], model.entries.get(name)
        if other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
            raise InputError(
                f"{model.path}: {name!r} is {other or 'missing'}, but in {first.revision.name} it is {one}; expected: "
                "the same in every revision; leave it out of --revisions (revisions=)"
            )


@contextmanager
def _kept(folder: Path | None) -> Iterator[Path]:
    """Provide a folder that one process uses at a time."""
    from filelock import FileLock, Timeout

    if folder is None:
        with TemporaryDirectory(prefix="deadtok-") as temporary:
            yield Path(temporary)
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise DestinationExistsError(f"{folder} is being filled by another conversion: wait for it") from None
    try:
        yield folder
    finally:
        lock.release()


def _fetched(fetch: Fetch, folder: Path, progress: Progress) -> dict[Path, int]:
    """Fetch what is missing; return the files with their steps."""
    total, lock, stop = fetch.total, threading.Lock(), threading.Event()
    done = 0

    def add(n: int) -> None:
        nonlocal done
        with lock:
            done += n
            progress(done, total)

    members = {_file(folder, model.revision): model for model in fetch.models}
    with ThreadPoolExecutor(_AT_ONCE, "fetch") as pool:
        tasks = [pool.submit(_fetch_one, path, model, fetch.names, add, stop) for path, model in members.items()]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return {path: model.revision.step for path, model in members.items()}


def _file(folder: Path, revision: Revision) -> Path:
    return folder / f"{quote(revision.name, safe='')}@{revision.commit[:12]}.safetensors"


def _fetch_one(
    path: Path, model: RemoteModel, names: Sequence[str], add: Callable[[int], None], stop: threading.Event
) -> None:
    """Fetch the tensors of a revision into a file, after what an earlier attempt fetched."""
    header, end = _header(model, names)
    if path.is_file() and path.stat().st_size == len(header) + end and _begins_with(path, header):
        add(end)
        return
    partial = path.with_name(path.name + ".partial")
    continued = partial.is_file() and _begins_with(partial, header) and partial.stat().st_size <= len(header) + end
    with partial.open("ab" if continued else "wb") as file:
        if not continued:
            file.write(header)
        at = file.tell() - len(header)
        add(at)
        begin = 0
        for name in names:
            tensor = model.tensors[name]
            size = tensor.end - tensor.begin
            skip = min(size, max(0, at - begin))
            for part in model.hub.read(
                model.revision.name, model.revision.commit, tensor.file, tensor.begin + skip, tensor.end
            ):
                file.write(part)
                add(len(part))
                if stop.is_set():
                    return
            begin += size
    partial.replace(path)


def _begins_with(path: Path, header: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(header)) == header


def _header(model: RemoteModel, names: Sequence[str]) -> tuple[bytes, int]:
    """Return the header of the file of a revision, and the bytes behind it."""
    fields: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = model.tensors[name]
        begin, end = end, end + tensor.end - tensor.begin
        fields[name] = {**tensor.fields, "data_offsets": [begin, end]}
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def _texts(fetch: Fetch, folder: Path) -> dict[int, str]:
    """Return the text of each token by the tokenizer of the first revision; none if that cannot be read."""
    from deadtok_xr.store.tokenizer import token_texts

    first = fetch.models[0]
    if _TOKENIZER not in first.listed:
        return {}
    path = folder / _TOKENIZER
    try:
        path.write_text(json.dumps(first.json(_TOKENIZER)), encoding="utf-8")
        return token_texts(path)
    except InputError:
        return {}
