"""Refuse what is only a part of a checkpoint, and checkpoints in formats that are not read.

Each rank of a model that is split over several devices writes a file of its own, with the same names in each. They are
not steps, and the rows of one are not the tokens 0, 1, 2, ...
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from deadtok_xr.conversion.readers.names import NamedRank, named_rank, stem
from deadtok_xr.errors import InputError

_OPTIMIZER = ("optim", "zero_pp_rank")
_MERGE = "merge them where they were made, with the script of the program that wrote them, and convert the result"
_JOIN = "; they are joined here if a config.json beside them says hidden_size and vocab_size of the whole model"
_FORMATS = {
    "manifest.ocdbt": "an Orbax checkpoint (OCDBT), which is not read: restore it where it was made, with "
    "orbax.checkpoint, and save the embedding with np.savez(FILE, W=...)",
}
_MANY = 64
CONFIGS = ("config.json", "params.json")
"""Where programs keep the sizes of a model."""


def refuse_formats(folder: Path) -> None:
    """Refuse a folder that is, or holds, a checkpoint in a format that is not read."""
    places = [folder]
    for _ in range(3):
        for place in places:
            for name, what in _FORMATS.items():
                if (place / name).is_file():
                    raise InputError(f"{place} is {what}")
        places = [sub for place in places[:_MANY] for sub in sorted(place.iterdir())[:_MANY] if sub.is_dir()]


def refuse_parts(folder: Path, items: Iterable[Path], *, told: bool) -> None:
    """Refuse a folder in which one checkpoint lies in parts.

    Parameters
    ----------
    folder
        The folder.
    items
        The files and folders in it.
    told
        Whether the caller says that the numbers in the names are steps.

    Raises
    ------
    InputError
        If several items are ranks of one checkpoint, or one is a rank without the others.
    """
    groups: dict[str, list[tuple[Path, NamedRank]]] = defaultdict(list)
    for item in items:
        rank = named_rank(stem(item))
        if rank is not None and (rank.certain or not told):
            groups[rank.template].append((item, rank))
    parts = {k: v for k, v in groups.items() if len(v) > 1 or any(v[0][1].numbers)}
    parts = {k: v for k, v in parts.items() if v[0][1].certain or _follow(v)}
    if not parts:
        return
    models = [item for v in groups.values() for item, _ in v if not _of_optimizer(item)]
    if len(models) == 1 and models[0].is_file():
        pieces = next(iter(parts.values()))
        raise InputError(
            f"{folder} holds the optimizer in {len(pieces)} pieces, such as {pieces[0][0].name}, which are not read; "
            f"convert the model alone: {models[0]}"
        )
    group = next((v for v in parts.values() if not _of_optimizer(v[0][0])), next(iter(parts.values())))
    raise InputError(f"{folder}: {_described(group)}{_JOIN if len(groups) == 1 and _joinable(group) else ''}")


def _follow(group: list[tuple[Path, NamedRank]]) -> bool:
    """Return whether the numbers are 0, 1, 2, ...: only then can an uncertain name be a rank."""
    return sorted(rank.numbers[0] for _, rank in group) == list(range(len(group)))


def _joinable(group: list[tuple[Path, NamedRank]]) -> bool:
    """Return whether the parts would be joined, if the configuration of the model lay beside them."""
    single = all(item.is_file() and rank.certain and len(rank.numbers) == 1 for item, rank in group)
    return single and _follow(group) and not any((group[0][0].parent / name).is_file() for name in CONFIGS)


def _described(group: list[tuple[Path, NamedRank]]) -> str:
    names = [item.name for item, _ in group]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    if group[0][1].certain:
        return f"{shown} are parts (ranks) of one checkpoint, not steps; {_MERGE}"
    return (
        f"{shown} may be parts (ranks) of one checkpoint, or saves of a run that are counted; if they are parts, "
        f"{_MERGE}; if the numbers are steps, say --steps names (steps='names')"
    )


def refuse_lone_part(path: Path, *, told: bool) -> None:
    """Refuse a file that is one of several parts of a checkpoint."""
    for item in (path, path.parent):
        rank = named_rank(stem(item))
        if rank is None or (not rank.certain and told) or _of_optimizer(item) or not item.name:
            continue
        group = [(other, r) for other in item.parent.iterdir() if (r := _like(other, item, rank)) is not None]
        if not rank.certain and not (len(group) > 1 and _follow(group)):
            continue
        if len(group) > 1:
            others = [other.name for other, _ in group if other != item]
            raise InputError(
                f"{path} is a part (rank) of a checkpoint, of which {', '.join(others[:3])} beside it "
                f"{'is another' if len(others) == 1 else 'are others'}: its rows are not the whole vocabulary; "
                + (
                    f"convert the folder, {item.parent}, in which they may be joined; else {_MERGE}"
                    if rank.certain
                    else _described(group)
                )
            )
        if any(rank.numbers):
            raise InputError(
                f"{path} is rank {max(rank.numbers)} of a checkpoint in several parts, of which the others are not "
                f"there: its rows are not the whole vocabulary; get all of them, and {_MERGE}"
            )


def _like(other: Path, item: Path, rank: NamedRank) -> NamedRank | None:
    found = named_rank(stem(other)) if other.suffix == item.suffix else None
    return found if found is not None and found.template == rank.template else None


def _of_optimizer(item: Path) -> bool:
    return any(word in item.name for word in _OPTIMIZER) and not item.name.startswith("model_optim")
