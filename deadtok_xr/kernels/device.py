"""On which device dense kernels run, and whose turn it is there.

"cpu" means the kernels that numba compiles; every other name means torch's. Torch is imported only where a device is
asked for, or where there is a driver for one.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deadtok_xr.errors import InputError

NAMES = ("auto", "cpu", "cuda", "mps", "torch-cpu")
"""What a user can ask for. torch-cpu: torch's kernels on the CPU, to try them where there is no GPU."""

PIECE_BYTES = 2**25
"""Bytes of a piece on a device. An eager kernel makes up to 60 launches of about 10 microseconds; a piece of 32 MiB
takes 1.3 ms to copy at 25 GB/s, twice as long, and 16 threads hold 1 GiB of pinned memory, each with one piece at work
and one being decoded."""

MPS_ELEMENTS = 2**31
"""Tensors of more elements have come back as zeros from MPS, without a word."""

_ALL = frozenset({"motion", "kinematics", "mechanism", "topology", "census"})
_KERNELS = {
    # the others make many launches for each step; of the graph and the census, which on the CPU look at little but what
    # moves, nobody has measured that a GPU is faster
    "auto": frozenset({"motion", "kinematics"}),
    "cpu": frozenset[str](),
    "cuda": _ALL,
    "mps": frozenset({"motion"}),  # the others are float64 throughout or sort, which MPS does not have
    "torch-cpu": _ALL,
}
_owners: dict[str, threading.RLock] = {}


@dataclass(frozen=True)
class Device:
    """Where the dense kernels of a row run.

    Attributes
    ----------
    name
        torch's name of the device; "cpu" with no kernels for those of numba.
    kernels
        The kernels that run there, in torch; all others run in numba.
    """

    name: str = "cpu"
    kernels: frozenset[str] = frozenset()

    def runs(self, kernel: str) -> bool:
        """Whether a kernel runs there."""
        return kernel in self.kernels


CPU = Device()
"""All kernels in numba."""


def check(name: str) -> None:
    """Refuse a name that no device has.

    Raises
    ------
    InputError
        With the names there are.
    """
    if name not in NAMES:
        raise InputError(f"device={name!r}: choose one of {', '.join(NAMES)}")


def resolve(name: str, row_bytes: int) -> Device:
    """The device of that name on the machine that this runs on.

    "auto" is CUDA where torch has it and the largest variable of a row of chunks fills a piece (`PIECE_BYTES`), with
    the kernels that take many steps at once, motion and kinematics. For less, and where each step takes some
    sixty launches, they cost more than the work does on all cores of a CPU. Topology and census run where "cuda" is
    asked for: numba follows what moves, at 390 to 1000 steps a second, and no GPU has been measured beside
    it. It is never MPS, which has no float64.

    Raises
    ------
    InputError
        If there is no such device.
    """
    check(name)
    if name == "auto":
        there = row_bytes >= PIECE_BYTES and _has_driver() and _is_there("cuda")
        return Device("cuda", _KERNELS["auto"]) if there else CPU
    if name in ("cuda", "mps") and not _is_there(name):
        import torch

        raise InputError(
            f"device={name!r} (--device {name}): torch {torch.__version__} finds none on this machine; say cpu or "
            "auto, or install a build of torch for it"
        )
    return Device(name.removeprefix("torch-"), _KERNELS[name])


def resources(name: str) -> dict[str, dict[str, int]]:
    """The annotation of tasks that need the device: which workers of a cluster may have them."""
    return {"resources": {"GPU": 1}} if name == "cuda" else {}


def _has_driver() -> bool:
    """Whether NVIDIA's driver is installed: a look that costs nothing, where importing torch takes a second."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _is_there(name: str) -> bool:
    import torch

    return bool(torch.cuda.is_available() if name == "cuda" else torch.backends.mps.is_available())


@contextmanager
def owned(name: Any) -> Iterator[None]:
    """Have a device for oneself among the threads of this process: its memory is one kernel's at a time."""
    with _owners.setdefault(str(name), threading.RLock()):
        yield


def check_size(shape: tuple[int, ...], name: str) -> None:
    """Refuse tensors that MPS would answer with zeros.

    Raises
    ------
    InputError
        If there are too many elements.
    """
    elements = 1
    for n in shape:
        elements *= n
    if name == "mps" and elements >= MPS_ELEMENTS:
        raise InputError(
            f"two steps together have {elements} elements {shape}; MPS takes fewer than 2^31 in a tensor, and gives "
            "zeros beyond: say device='cpu' (--device cpu), or select fewer tokens"
        )
