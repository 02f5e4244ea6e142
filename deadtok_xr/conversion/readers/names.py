"""Read the names of files and folders: the step that a name says, and the rank of a part of a checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_STEP = r"(?:global|train(?:ing)?|optim(?:izer)?|num)?[_-]?steps?"
_OTHER = r"(?:iter(?:ation)?s?|itr|(?:num[_-]?)?updates?)"
_STATED = [
    re.compile(pattern, re.IGNORECASE)
    for word in (_STEP, _OTHER)
    for pattern in (
        rf"(?<![a-z]){word}[ =_.-]{{0,2}}(?P<n>\d{{1,18}})(?![\da-z])",
        rf"(?<![\d.])(?P<n>\d{{1,18}})[ _-]?{word}(?![a-z])",
    )
]
_UNIT = re.compile(rf"(?<![a-z])(?:{_STEP}|{_OTHER})[ =_.-]{{0,2}}(\d+[a-z]+)", re.IGNORECASE)
_LAST = re.compile(r".*?(?P<n>\d{1,18})", re.DOTALL)
_EPOCH = re.compile(r"(?:^|[^a-z])(?:epochs?|ep)[ =_.-]?$", re.IGNORECASE)
_METRIC = re.compile(
    r"(?<![a-z])(?:epochs?|ep|(?:(?:val(?:id|idation)?|train|eval|test)[_-]?)?(?:loss|ppl|perplexity|acc(?:uracy)?|bpb)"
    r"|tokens?|samples?|score|metric|lr)[=_-]?\d+(?:[.,]\d+)?(?:e-?\d+)?[kmbt]?(?![a-z])",
    re.IGNORECASE,
)
_MEASURED = re.compile(
    r"(?<![a-z])(?:[a-z]+_)?(?:loss|ppl|perplexity|acc(?:uracy)?|bpb|score|metric|lr)[ =_-]?$", re.IGNORECASE
)
ENDS_IN_FRACTION = re.compile(r"(?<![\d.])\d+\.\d+$")
"""Finds a fraction at the end of a tensor's name, in which other dots separate parts."""
_FRACTION = re.compile(r"\d+[.,]\d+")
_RANK = re.compile(
    r"(?<![a-z])(?P<word>consolidated|(?:[a-z]+_)*rank|tp|mp|pp|dp|(?:[a-z]+_)*fsdp|shard|part|partition|worker|gpu"
    r"|device|process|node)[._=-]?(?P<n>\d{1,6})(?:[_-]?of[_-]?\d+)?(?![\da-z])",
    re.IGNORECASE,
)
_LAYER = re.compile(r"layer_\d+-model_(?P<n>\d+)", re.IGNORECASE)
_WEAK = re.compile(r"(?P<word>model)[_-](?P<n>\d\d)", re.IGNORECASE)


@dataclass(frozen=True)
class NamedStep:
    """The step in the name of a checkpoint.

    Attributes
    ----------
    number
        The step.
    template
        The name without it, and without numbers that only describe it, such as an epoch or a loss: equal for the
        checkpoints of one run.
    stated
        Whether a word such as step or iter says that it is one.
    epoch
        Whether the name says that it counts epochs.
    """

    number: int
    template: str
    stated: bool
    epoch: bool = False


def named_step(name: str, *, dotted: bool = False) -> NamedStep | None:
    """Return the step that a name without its suffix says: behind or before a word for it, else its last number.

    Part of a fraction, and the value of a measure such as a loss, are no steps.

    Parameters
    ----------
    name
        A name.
    dotted
        Whether dots separate the parts of the name, as in those of tensors: ``step_5.0.weight`` holds no fraction, but
        ``0.25`` is one.
    """
    for pattern in _STATED:
        if match := pattern.search(name):
            rest = name[match.end("n") :]
            fraction = re.fullmatch(r"\.0*[1-9]\d*", rest) if dotted else re.match(r"[.,]\d", rest)
            return None if fraction else _step(name, match, stated=True)
    if _UNIT.search(name):
        return None
    match = _LAST.fullmatch(name)
    if match is None:
        return None
    before = name[: match.start("n")]
    if ENDS_IN_FRACTION.search(name) if dotted else re.search(r"\d[.,]$", before):
        return None
    return None if _MEASURED.search(before) else _step(name, match, stated=False)


def _step(name: str, match: re.Match[str], *, stated: bool) -> NamedStep:
    before, after = name[: match.start("n")], name[match.end("n") :]
    template = f"{_METRIC.sub('#', before)}*{_METRIC.sub('#', after)}"
    return NamedStep(int(match["n"]), template, stated, not stated and bool(_EPOCH.search(before)))


def unread_number(name: str) -> str | None:
    """Return what stands where a step may be, and is not read as one: 1k, which may be rounded, or 1.5."""
    if named_step(name) is not None:
        return None
    unit, fractions = _UNIT.search(name), _FRACTION.findall(name)
    return unit[1] if unit else fractions[-1] if fractions else None


def stem(path: Path) -> str:
    """Return the name of a file without its suffix, or the name of a folder."""
    return path.name if path.is_dir() or not path.suffix else path.name.removesuffix(path.suffix)


@dataclass(frozen=True)
class NamedRank:
    """The rank in the name of a part of a checkpoint.

    Attributes
    ----------
    numbers
        The rank along each kind of parallelism.
    template
        The name without it: equal for the parts of one checkpoint.
    certain
        Whether the name can mean nothing else: ``model_00`` may also count saves.
    """

    numbers: tuple[int, ...]
    template: str
    certain: bool = True


def named_rank(name: str) -> NamedRank | None:
    """Return the rank that a name says, None if it says none."""
    if match := _LAYER.search(name):
        return NamedRank((int(match["n"]),), name[: match.start("n")] + "*" + name[match.end("n") :])
    if match := _WEAK.fullmatch(name):
        return NamedRank((int(match["n"]),), "model_*", certain=False)
    found = list(_RANK.finditer(name))
    if not found:
        return None
    template = _RANK.sub(lambda m: f"{m['word']}*", name)
    return NamedRank(tuple(int(m["n"]) for m in found), template)
