"""Streams of TRL's delta weight sync: full checkpoints in ``anchors/``, and what changed in ``deltas/``.

Each file is ``step_NNNNNN.safetensors``. A delta changes the step before it. It holds ``NAME.indices`` (int32) and
``NAME.values``, or, in later versions, ``NAME.idx`` and ``NAME.val`` with an encoding of the indices in its metadata:
"raw" (int32), "gap_delta" (the gaps between them, less one, as uint16 or uint32) or "nvcomp_cascaded", which only a GPU
decodes. There are no checksums.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.readers.delta_stream import Changes, Full, States, Update, check_chain
from deadtok_xr.conversion.readers.safetensors import SafetensorsSource
from deadtok_xr.conversion.readers.source import Source, read_all
from deadtok_xr.errors import InputError

_STEP = re.compile(r"step_(\d{1,18})\.safetensors")
_ANCHORS, _DELTAS = "anchors", "deltas"
_PAIRS = ((".indices", ".values"), (".idx", ".val"))
_AGAIN = "copy it again from the original"
OpenFull = Callable[[Path], Source]


def is_stream(path: Path) -> bool:
    """Return whether a folder is such a stream."""
    return path.is_dir() and bool(_steps(path / _DELTAS))


def _steps(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    matches = [(item, _STEP.fullmatch(item.name)) for item in sorted(folder.iterdir())]
    found: dict[int, Path] = {}
    for item, match in matches:
        if match is not None and item.is_file():
            if int(match[1]) in found:
                raise InputError(f"{folder}: {found[int(match[1])].name} and {item.name} are both of step {match[1]}")
            found[int(match[1])] = item
    return found


@dataclass
class Delta:
    """One file of ``deltas/``."""

    path: Path
    step: int
    sizes: dict[str, int]
    encoding: str
    suffixes: tuple[str, str]

    def size(self, parameter: str) -> int:
        return self.sizes.get(parameter, 0)

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        return None

    def files(self) -> list[Path]:
        return [self.path]

    def read(self, parameter: str) -> Changes | None:
        if parameter not in self.sizes:
            return None
        with SafetensorsSource(self.path) as source:
            indices, values = (read_all(source, parameter + suffix) for suffix in self.suffixes)
        return self._decoded(indices), values

    def _decoded(self, indices: NDArray[Any]) -> NDArray[Any]:
        if self.encoding != "gap_delta":
            return indices
        return np.cumsum(indices.astype(np.int64) + 1) - 1


def find_states(folder: Path, initial: Path | None, open_full: OpenFull) -> States:
    """Find the anchors and deltas of a stream, and check that no delta is missing.

    Parameters
    ----------
    folder
        The folder of ``anchors/`` and ``deltas/``.
    initial
        The full checkpoint that the first delta changes, if no anchor is.
    open_full
        Opens a full checkpoint.

    Raises
    ------
    InputError
        If a delta is missing or cannot be read, or does not say the step of its name.
    """
    anchors, deltas = _steps(folder / _ANCHORS), _steps(folder / _DELTAS)
    both = sorted({*anchors} & {*deltas})
    states: list[Full | Update] = [_anchor(path, step, open_full) for step, path in anchors.items()]
    states += [_delta(path, step) for step, path in deltas.items() if step not in anchors]
    states.sort(key=lambda state: state.step)
    if not isinstance(states[0], Full):
        if initial is None:
            raise InputError(
                f"{states[0].path} changes step {states[0].step - 1}, of which there is no anchor: copy "
                f"{folder / _ANCHORS}, or name that checkpoint with --initial MODEL (initial=)"
            )
        states.insert(0, Full(states[0].step - 1, initial, lambda: open_full(initial)))
    elif initial is not None:
        raise InputError(f"{folder} begins with an anchor, {states[0].path.name}: leave out --initial (initial=)")
    check_chain(states, lambda update: update.step - 1)
    notes = ["TRL's deltas have no checksums"]
    if both:
        notes.append(f"steps with an anchor and a delta, of which the anchor is taken: {', '.join(map(str, both[:8]))}")
    return States("TRL's anchors and deltas", states, BFLOAT16, tuple(notes))


def _anchor(path: Path, step: int, open_full: OpenFull) -> Full:
    with SafetensorsSource(path) as source:
        _check_metadata(source, step, sparse=False)
    return Full(step, path, lambda: open_full(path))


def _delta(path: Path, step: int) -> Delta:
    with SafetensorsSource(path) as source:
        _check_metadata(source, step, sparse=True)
        first, second = suffixes = _suffixes(source)
        names = [key.removesuffix(second) for key in source.entries if key.endswith(second)]
        encoding = str(source.attributes.get("encoding", "raw")) if suffixes == _PAIRS[1] else "raw"
        if encoding not in ("raw", "gap_delta"):
            raise InputError(
                f"{path} has its indices encoded as {encoding!r}, which only a GPU with nvCOMP decodes; expected: raw "
                "or gap_delta; decode them where the stream was made"
            )
        sizes = {name: _size(source, name, suffixes, encoding) for name in names}
    total = source.attributes.get("total_changed_elements")
    if total is not None and str(total) != str(sum(sizes.values())):
        raise InputError(f"{path} says that {total} values changed, but holds {sum(sizes.values())}; {_AGAIN}")
    return Delta(path, step, sizes, encoding, (first, second))


def _check_metadata(source: Source, step: int, *, sparse: bool) -> None:
    said = source.attributes.get("sparse")
    if said is not None and str(said) != str(sparse):
        kind = ("anchor", "delta")[str(said) == "True"]
        raise InputError(f"{source.path} is an {kind} by its metadata (sparse={said}); move it to the folder of those")
    version = source.attributes.get("model_version")
    if version is not None and str(version) != str(step):
        raise InputError(
            f"{source.path} says model_version {version}, but its name says step {step}; expected: the same; copy the "
            "stream again from the original"
        )


def _suffixes(source: Source) -> tuple[str, str]:
    for pair in _PAIRS:
        if all(key.endswith(pair) for key in source.entries):
            return pair
    raise InputError(
        f"{source.path} holds {', '.join([*source.entries][:4])}; expected: NAME.indices and NAME.values, or NAME.idx "
        "and NAME.val, of each parameter that changed"
    )


def _size(source: Source, name: str, suffixes: Sequence[str], encoding: str) -> int:
    """Return how many values of a parameter change, after checking the dtypes and shapes."""
    indices, values = (source.entries.get(name + suffix) for suffix in suffixes)
    kinds = (np.int32, np.int64) if encoding == "raw" else (np.uint16, np.uint32)
    if indices is None or values is None or indices.dtype not in kinds:
        needed = " or ".join(np.dtype(kind).name for kind in kinds)
        raise InputError(
            f"{source.path}: the indices of {name!r} are {indices or 'missing'}; expected: {needed}; {_AGAIN}"
        )
    if len(indices.shape) != 1 or indices.shape != values.shape:
        raise InputError(
            f"{source.path}: {name!r} has the indices {indices} and the values {values}; expected: as many of both; "
            f"{_AGAIN}"
        )
    return math.prod(values.shape)
