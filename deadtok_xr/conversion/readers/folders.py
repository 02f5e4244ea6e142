"""Open a folder: a Hugging Face folder, checkpoints of a run, or one recording beside small files."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from deadtok_xr.conversion.readers.merged import OpenFile, model_file, open_model_folder
from deadtok_xr.conversion.readers.source import Source
from deadtok_xr.conversion.readers.stacked import Stacked, Steps
from deadtok_xr.errors import InputError

SUFFIXES = (".safetensors", ".h5", ".hdf5", ".npz", ".npy", ".pt", ".pth", ".bin")
_NUMBERED = re.compile(r"(.*?)(\d{1,18})", re.DOTALL)
_SHARD = re.compile(r".*-\d+-of-\d+", re.DOTALL)
NEEDED = (
    "expected: one recording, checkpoints whose names end in their step, such as step_100.pt, or a Hugging Face folder"
)


def open_folder(folder: Path, open_file: OpenFile, steps: Steps | None = None) -> Source:
    """Open a folder.

    Parameters
    ----------
    folder
        A folder of files whose names end in a number, or of Hugging Face folders that do; one Hugging Face folder; or
        a folder with one recording in it.
    open_file
        Opens a file.
    steps
        For checkpoints: use the step labels in their names, or those in their contents.

    Raises
    ------
    InputError
        If it is none of these, or it is not clear which.
    """
    items = sorted(item for item in folder.iterdir() if not item.name.startswith("."))
    files = [item for item in items if item.suffix.lower() in SUFFIXES and item.is_file()]
    runs = _numbered([item for item in items if item.is_dir() and model_file(item) is not None])
    if len(runs) > 1:
        raise InputError(
            f"{folder} holds the checkpoints of several runs: {_names(list(runs))}; open one run at a time"
        )
    if runs:
        members = next(iter(runs.values()))
        return Stacked(folder, members, lambda path: open_model_folder(path, open_file), steps, _left_out(files))
    if model_file(folder) is not None:
        return open_model_folder(folder, open_file)
    return _open_files(folder, files, open_file, steps)


def _open_files(folder: Path, files: list[Path], open_file: OpenFile, steps: Steps | None) -> Source:
    if not files:
        raise InputError(f"{folder} is a folder without a recording; {NEEDED}")
    shard = next((file for file in files if _SHARD.fullmatch(file.stem)), None)
    if shard is not None:
        raise InputError(
            f"{folder} holds shards, such as {shard.name}, without their index; expected: "
            "model.safetensors.index.json or pytorch_model.bin.index.json; copy it there"
        )
    if len(files) == 1:
        return open_file(files[0])
    runs = {name: members for name, members in _numbered(files).items() if len(members) > 1}
    if len(runs) != 1:
        candidates = list(runs) or [file.name for file in files]
        raise InputError(f"{folder}: it is not clear what to open: {_names(candidates)}; {NEEDED}; name one file")
    members = next(iter(runs.values()))
    return Stacked(folder, members, open_file, steps, _left_out([file for file in files if file not in members]))


def _numbered(paths: list[Path]) -> dict[str, dict[Path, int]]:
    """Group paths whose names end in a number by the rest of their names; with the number of each."""
    runs: dict[str, dict[Path, int]] = defaultdict(dict)
    for path in paths:
        suffix = path.suffix if path.is_file() else ""
        match = _NUMBERED.fullmatch(path.name.removesuffix(suffix))
        if match:
            runs[f"{match[1]}*{suffix}"][path] = int(match[2])
    return dict(runs)


def _left_out(files: list[Path]) -> dict[str, str]:
    return {file.name: "a file that is none of the numbered checkpoints" for file in files}


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
