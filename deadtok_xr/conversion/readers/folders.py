"""Open a folder: one checkpoint, checkpoints of a run, or one recording beside small files."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from deadtok_xr.conversion.readers.merged import OpenFile, model_file, open_model_folder
from deadtok_xr.conversion.readers.names import NamedStep, named_step, stem, unread_number
from deadtok_xr.conversion.readers.ocdbt import OcdbtSource, database_in
from deadtok_xr.conversion.readers.parts import refuse_formats, refuse_parts
from deadtok_xr.conversion.readers.ranks import JoinedRanks, rank_files
from deadtok_xr.conversion.readers.source import Source
from deadtok_xr.conversion.readers.stacked import Stacked, Steps
from deadtok_xr.errors import InputError

SUFFIXES = (".safetensors", ".gguf", ".h5", ".hdf5", ".nc", ".npz", ".npy", ".pt", ".pth", ".bin", ".ckpt")
_SHARD = re.compile(r".*-\d+-of-\d+", re.DOTALL)
_CHECKPOINT = re.compile(r"(?:^|[^a-z])(?:checkpoint|ckpt|snapshot|save)s?[ =_.-]?\d+", re.IGNORECASE)
NEEDED = (
    "expected: one recording, checkpoints whose names differ in their step alone, which stands beside a word such as "
    "step or iter, or at the end (step_100.pt, 100.pt), or a Hugging Face folder"
)


@dataclass(frozen=True)
class _Run:
    """Items of a folder whose names differ in their steps alone."""

    members: dict[Path, NamedStep]

    @property
    def numbers(self) -> dict[Path, int]:
        return {path: step.number for path, step in self.members.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        if all(step.epoch for step in self.members.values()):
            return ("the names count epochs: the labels of the steps are epochs, unless --steps content says more",)
        return ()


def open_folder(folder: Path, open_file: OpenFile, steps: Steps | None = None) -> Source:
    """Open a folder.

    Parameters
    ----------
    folder
        A folder of files or of checkpoint folders with their steps in their names; one checkpoint folder; or a folder
        with one recording in it.
    open_file
        Opens a file.
    steps
        For checkpoints: use the step labels in their names, or those in their contents.

    Raises
    ------
    InputError
        If it is none of these, or it is not clear which.
    """
    if is_dcp(folder):
        return _open_dcp(folder)
    if database := database_in(folder):
        return OcdbtSource(folder, database)
    items = sorted(item for item in folder.iterdir() if not item.name.startswith("."))
    files = [item for item in items if item.suffix.lower() in SUFFIXES and item.is_file()]
    folders = [item for item in items if item.is_dir()]
    if not any(database_in(item) for item in folders):
        refuse_formats(folder)
    if model_file(folder) is None and (ranks := rank_files(folder, SUFFIXES)):
        return JoinedRanks(folder, ranks, open_file)
    if model_file(folder) is None:
        refuse_parts(folder, [*files, *folders], told=steps == "names")
        for item in folders:
            if model_file(item) is None and _counts(item) and not rank_files(item, SUFFIXES):
                refuse_parts(
                    item, [f for f in sorted(item.iterdir()) if f.is_dir() or f.suffix in SUFFIXES], told=False
                )
    runs = _runs([item for item in folders if _is_checkpoint(item)])
    if len(runs) > 1:
        raise InputError(
            f"{folder} holds the checkpoints of several runs: {_names(list(runs))}; open one run at a time"
        )
    if runs:
        run = next(iter(runs.values()))
        return Stacked(
            folder, run.numbers, lambda path: _open_checkpoint(path, open_file), steps, _left_out(files), run.notes
        )
    if model_file(folder) is not None:
        return open_model_folder(folder, open_file)
    if not files and _zarr_arrays(folder):
        return _open_checkpoint(folder, open_file)
    return _open_files(folder, files, open_file, steps)


def _counts(folder: Path) -> bool:
    """Return whether the name of a folder says that it is one of several checkpoints."""
    step = named_step(folder.name)
    return step is not None and (step.stated or bool(_CHECKPOINT.search(folder.name)))


def _is_checkpoint(folder: Path) -> bool:
    if named_step(folder.name) is None:
        return False
    if model_file(folder) is not None or database_in(folder) is not None:
        return True
    if not _counts(folder):
        return False
    known = is_dcp(folder) or _zarr_arrays(folder) or len(_recordings(folder)) == 1
    return known or bool(rank_files(folder, SUFFIXES))


def is_dcp(folder: Path) -> bool:
    """Return whether a folder is a checkpoint of torch.distributed.checkpoint."""
    return (folder / ".metadata").is_file() and any(folder.glob("*.distcp"))


def _open_dcp(folder: Path) -> Source:
    from deadtok_xr.conversion.readers.dcp import DcpSource

    return DcpSource(folder)


def _recordings(folder: Path) -> list[Path]:
    return [item for item in folder.iterdir() if item.suffix.lower() in SUFFIXES and item.is_file()]


def _zarr_arrays(folder: Path) -> bool:
    from deadtok_xr.conversion.readers.zarr_store import holds_arrays

    return holds_arrays(folder)


def _open_checkpoint(folder: Path, open_file: OpenFile) -> Source:
    """Open a folder that is one checkpoint."""
    from deadtok_xr.conversion.readers.zarr_store import ZarrSource

    if is_dcp(folder):
        return _open_dcp(folder)
    if database := database_in(folder):
        return OcdbtSource(folder, database)
    if model_file(folder) is not None:
        return open_model_folder(folder, open_file)
    if ranks := rank_files(folder, SUFFIXES):
        return JoinedRanks(folder, ranks, open_file)
    return ZarrSource(folder) if _zarr_arrays(folder) else open_file(_recordings(folder)[0])


def _open_files(folder: Path, files: list[Path], open_file: OpenFile, steps: Steps | None) -> Source:
    if not files:
        why = _why_unread([item for item in sorted(folder.iterdir()) if item.is_dir()])
        raise InputError(f"{folder} is a folder without a recording{why}; {NEEDED}")
    shard = next((file for file in files if _SHARD.fullmatch(file.stem)), None)
    if shard is not None:
        raise InputError(
            f"{folder} holds shards, such as {shard.name}, without their index; expected: "
            "model.safetensors.index.json or pytorch_model.bin.index.json; copy it there"
        )
    if len(files) == 1:
        return open_file(files[0])
    runs = {name: run for name, run in _runs(files).items() if len(run.members) > 1}
    if len(runs) != 1:
        why = _why_unread(files)
        candidates = list(runs) or [file.name for file in files]
        raise InputError(f"{folder}: it is not clear what to open: {_names(candidates)}{why}; {NEEDED}; name one file")
    run = next(iter(runs.values()))
    left_out = _left_out([file for file in files if file not in run.members], next(iter(run.members)).name)
    return Stacked(folder, run.numbers, open_file, steps, left_out, run.notes)


def _why_unread(items: list[Path]) -> str:
    """Say which number in a name is not read as a step; empty if there is none."""
    unread = next((found for item in items if (found := unread_number(stem(item)))), None)
    return f" ({unread} is not read as a step, which is a whole number: rename the files)" if unread else ""


def _runs(paths: list[Path]) -> dict[str, _Run]:
    """Group paths with a step in their names by the rest of their names."""
    runs: dict[str, dict[Path, NamedStep]] = defaultdict(dict)
    for path in paths:
        step = named_step(stem(path))
        if step is not None:
            runs[step.template + (path.suffix if path.is_file() else "")][path] = step
    return {name: _Run(members) for name, members in runs.items()}


def _left_out(files: list[Path], one: str = "") -> dict[str, str]:
    """Say why files are not among the checkpoints, of which one is named."""
    numbered = [file for file in files if one and named_step(stem(file)) is not None]
    differs = f"a file whose name differs from {one} in more than the step; if it is of this run, rename it"
    other = "a file that is none of the numbered checkpoints"
    return {file.name: differs if file in numbered else other for file in files}


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
