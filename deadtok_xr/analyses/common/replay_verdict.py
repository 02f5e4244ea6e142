"""Keep the verdict of `fused_replay` in the folder of compiled kernels, which are trusted by the same rules.

It holds for this CPU, this torch and these sources: the name of the file is their hash. A process that has torch loaded
does not read it, because programs can change how torch computes, and comparing costs half a second then.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from deadtok_xr import bfloat16, kernels, replay
from deadtok_xr.kernels.cache_safety import unsafe_because
from deadtok_xr.store.location import write_atomically

_SETTINGS = ("ATEN_", "DNNL_", "MKL_", "NUMBA_CPU", "ONEDNN_")
"""Beginnings of the names of environment variables that select instructions."""
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Verdict(NamedTuple):
    """The result of comparing the kernel with torch."""

    fuses: bool | None
    """Whether torch fuses multiplications and additions; None if no kernel agrees with it."""


def read(name: str) -> Verdict | None:
    """Return a verdict of an earlier process; None without one that holds here."""
    if "torch" in sys.modules or (folder := _folder()) is None:
        return None
    file = folder / _file_name(name)
    with suppress(OSError, ValueError, KeyError, TypeError):
        fuses = json.loads(file.read_text("utf-8"))["fuses"]
        if fuses in (True, False, None) and not file.stat().st_mode & _WRITABLE_BY_OTHERS:
            return Verdict(fuses)
    return None


def write(name: str, verdict: Verdict) -> None:
    """Keep a verdict for later processes, if there is a folder for it."""
    if (folder := _folder()) is not None:
        file = folder / _file_name(name)
        with suppress(OSError):
            write_atomically(file, json.dumps(verdict._asdict()).encode())
            file.chmod(0o644)


def _folder() -> Path | None:
    folder = kernels.cache_folder()
    return folder if folder.is_dir() and not unsafe_because(str(folder)) else None


def _file_name(name: str) -> str:
    return f"replayed_adam-{name}-{_machine()}.verdict"


@cache
def _machine() -> str:
    """Return a hash of all that can change the verdict: CPU, torch, numba, settings and sources."""
    from numba.core.registry import cpu_target

    found = sha256()
    facts = [*cpu_target.target_context.codegen().magic_tuple(), version("numba"), version("llvmlite"), *_torch()]
    facts += sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(_SETTINGS))
    found.update(repr(facts).encode())
    for path in _sources():
        found.update(path.read_bytes())
    return found.hexdigest()[:32]


def _sources() -> list[Path]:
    """Return the files on which the two depend."""
    compiled, of_torch = Path(kernels.__file__).parent, Path(replay.__file__).parent
    files = [*compiled.glob("*.py"), *(compiled / "numba").glob("*.py"), *of_torch.glob("*.py")]
    return sorted([*files, Path(bfloat16.__file__), Path(__file__).with_name("fused_replay.py")])


def _torch() -> list[object]:
    """Return which torch is installed, without importing it: its version, and its library with the operations."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.glob("lib/*torch_cpu.*")]
    return [str(folder), (folder / "version.py").read_text("utf-8"), sorted(found)]
