"""Choose the device for dense kernels, and serialise access to it.

"cpu" means the kernels that numba compiles; every other name means torch's. torch is imported only if a device is
requested, or if a GPU driver is installed.
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
"""The devices that a user can request. torch-cpu: torch's kernels on the CPU, to try them without a GPU."""

BATCH_BYTES = 2**22
"""Bytes of a batch on the CPU: large enough that decompressors, which take turns, rarely evict each other from a core's
cache, and small enough for the shared cache."""

DEVICE_BATCH_BYTES = 2**25
"""Bytes of a batch on a device. A kernel that is not fused makes up to 60 launches of about 10 microseconds; a batch of
32 MiB takes 1.3 ms to copy at 25 GB/s, twice as long, and 16 threads hold 1 GiB of pinned memory: one batch each on the
device, and one each that is being decoded."""

MPS_ELEMENTS = 2**31
"""MPS has returned zeros, without an error, for tensors of as many elements or more."""

_ALL = frozenset({"motion", "kinematics", "mechanism", "topology", "census"})
_KERNELS = {
    # with all others a pass takes as long on an H100 as on the 16 cores beside it, which decompress the chunks
    "auto": frozenset({"mechanism"}),
    "cpu": frozenset[str](),
    "cuda": _ALL,
    "mps": frozenset({"motion"}),  # the others need float64 or sorting, which MPS lacks
    "torch-cpu": _ALL,
}
_locks: dict[str, threading.RLock] = {}


@dataclass(frozen=True)
class Device:
    """Where the dense kernels of a block of steps run.

    Attributes
    ----------
    name
        torch's name of the device; "cpu" without kernels means that all run in numba.
    kernels
        The kernels that run there, in torch; all others run in numba.
    """

    name: str = "cpu"
    kernels: frozenset[str] = frozenset()

    def runs(self, kernel: str) -> bool:
        """Return whether a kernel runs on the device, in torch."""
        return kernel in self.kernels


CPU = Device()
"""All kernels in numba."""


def check(name: str) -> None:
    """Refuse an unknown device name.

    Raises
    ------
    InputError
        If the name is unknown; the message lists the known ones.
    """
    if name not in NAMES:
        raise InputError(f"device={name!r}: choose one of {', '.join(NAMES)}")


def resolve(name: str, row_bytes: int) -> Device:
    """Return the device of that name on this machine.

    "auto" is CUDA if torch has it and the largest variable of a block of steps fills a batch (`DEVICE_BATCH_BYTES`),
    for the only kernel that was measured to be faster there, mechanism, and for recordings that were made on a GPU.
    All others run on a GPU only if "cuda" is requested. "auto" is never MPS, which has no float64.

    Parameters
    ----------
    name
        One of `NAMES`.
    row_bytes
        Bytes of the largest variable of a block of steps.

    Raises
    ------
    InputError
        If the machine has no such device.
    """
    check(name)
    if name == "auto":
        there = row_bytes >= DEVICE_BATCH_BYTES and _has_driver() and _has_device("cuda")
        return Device("cuda", _KERNELS["auto"]) if there else CPU
    if name in ("cuda", "mps") and not _has_device(name):
        import torch

        raise InputError(
            f"device={name!r} (--device {name}): torch {torch.__version__} finds none on this machine; choose cpu or "
            "auto, or install a build of torch for it"
        )
    return Device(name.removeprefix("torch-"), _KERNELS[name])


def resources(name: str) -> dict[str, dict[str, int]]:
    """Return the resources that Dask workers must have to run tasks on the device."""
    return {"resources": {"GPU": 1}} if name == "cuda" else {}


def _has_driver() -> bool:
    """Return whether NVIDIA's driver is installed, without importing torch, which would take a second."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _has_device(name: str) -> bool:
    import torch

    return bool(torch.cuda.is_available() if name == "cuda" else torch.backends.mps.is_available())


@contextmanager
def device_lock(name: Any) -> Iterator[None]:
    """Lock a device among the threads of this process, so that only one kernel at a time uses its memory."""
    with _locks.setdefault(str(name), threading.RLock()):
        yield


def check_size(shape: tuple[int, ...], name: str) -> None:
    """Refuse tensors for which MPS would return zeros.

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
            f"two steps together have {elements} elements {shape}; expected fewer than 2^31 in a tensor, because "
            "MPS returns zeros for larger ones: use device='cpu' (--device cpu), or select fewer tokens"
        )
