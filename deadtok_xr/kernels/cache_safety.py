"""Whether numba's cache may be read: it holds pickles and machine code, which run as whoever reads them.

Code of the package runs in any case, so a cache is safe if nobody may write it who may not write the package either:
the user, root, and the writers of the package's folder. Checked are the owner and the permissions of the folder, of
the files in it, and of the folders above it up to the root or the package, because who may write one of these may
exchange what is in it. In a folder with the sticky bit, such as /tmp, only owners may.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_EVERYONE = ("everyone", 0)
Writer = tuple[str, int]


@cache
def unsafe_because(folder: str) -> str:
    """Return who may write a folder of numba's cache, or something in it, but not the package; empty if nobody."""
    if not hasattr(os, "getuid"):
        return ""
    trusted = {("user", os.getuid()), ("user", 0), ("group", 0), *_own_group(), *_writers(_PACKAGE)}
    for path in _checked(Path(folder)):
        others = _writers(path) - trusted
        if others and not _is_sticky_above(path, Path(folder)):
            return f"{path} may be written by {' and '.join(sorted(map(_name, others)))}"
    return ""


def _checked(folder: Path) -> Iterator[Path]:
    """Yield the folder, its files, and the folders above it up to the package or the root."""
    folder = folder.absolute().resolve()
    yield folder
    yield from (path for path in folder.glob("*.nb[ci]"))
    for above in folder.parents:
        if above == _PACKAGE:
            return
        yield above


def _writers(path: Path) -> set[Writer]:
    """Return the owner of a path, who may change its permissions, and others who may write it."""
    try:
        found = path.stat()
    except OSError:
        return set()
    writers: set[Writer] = {("user", found.st_uid)}
    if found.st_mode & stat.S_IWGRP:
        writers.add(("group", found.st_gid))
    if found.st_mode & stat.S_IWOTH:
        writers.add(_EVERYONE)
    return writers


def _is_sticky_above(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder above the cache, in which only owners replace what is theirs."""
    try:
        found = path.stat()
    except OSError:
        return False
    return path != folder.resolve() and stat.S_ISDIR(found.st_mode) and bool(found.st_mode & stat.S_ISVTX)


def _own_group() -> set[Writer]:
    """Return the user's own group, if there is one of this name without other members, as many systems make it."""
    try:
        import grp
        import pwd

        user = pwd.getpwuid(os.getuid())
        group = grp.getgrgid(user.pw_gid)
    except (ImportError, KeyError):
        return set()
    private = group.gr_name == user.pw_name and not {*group.gr_mem} - {user.pw_name}
    return {("group", group.gr_gid)} if private else set()


def _name(writer: Writer) -> str:
    kind, number = writer
    return kind if writer == _EVERYONE else f"{kind} {number}"
