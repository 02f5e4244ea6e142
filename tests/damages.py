"""What the tools that damage files have in common: damaged bytes, limits of time and memory, and outcomes."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

SECONDS, BYTES = 20, 300 * 2**20
"""What the reading of a damaged file may take."""


def flipped(content: bytes, rng: Random) -> bytes:
    """Return bytes with one bit flipped, or a few."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwritten(content: bytes, rng: Random) -> bytes:
    """Return bytes of which a part is replaced by zeros or random ones."""
    at = rng.randrange(len(content))
    n = min(len(content) - at, rng.choice([4, 100, 5000]))
    return content[:at] + (bytes(n) if rng.random() < 0.7 else rng.randbytes(n)) + content[at + n :]


@dataclass
class Outcomes:
    """How the attempts ended, how often there was each damage, and what went wrong."""

    ends: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.ends.total()} tries: {dict(self.ends)}, wrong: {len(self.wrong)}; {dict(self.damages)}"


@contextmanager
def bounded() -> Iterator[None]:
    """Raise an AssertionError if the block takes too much time or memory, also if it raises an error."""
    begun, before = time.monotonic(), _peak()
    try:
        yield
    finally:
        assert time.monotonic() - begun < SECONDS, "too long"
        assert _peak() - before < BYTES, f"{(_peak() - before) / 1e6:.0f} MB"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
