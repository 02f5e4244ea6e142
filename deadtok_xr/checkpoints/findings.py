"""Say what `doctor` found: sentences first, then a table of the parameters, the most stuck ones first."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deadtok_xr.attributes import plain
from deadtok_xr.text import table

if TYPE_CHECKING:
    import xarray as xr

Frame = Any
"""A pandas.DataFrame."""
WIDTH, HEIGHT = 100, 40
_SCALE = re.compile(r"(^|[._/])(weight|scale|gamma|g)$", re.IGNORECASE)
_BIAS = re.compile(r"(^|[._/])(bias|beta|b)$", re.IGNORECASE)
_SHORT = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64"}
_NAMED = 3
_DECIMALS = 3


def is_stuck(found: xr.Dataset, allow: float = 0.0) -> bool:
    """Return whether something is stuck.

    That is, a parameter of which more than the share ``allow`` cannot move at the learning rate; without one, a
    parameter of which no value changed between two checkpoints.
    """
    if "stuck_fraction" in found:
        return bool((found["stuck_fraction"] > allow).any())
    return "changed" in found and bool((found["changed"] == 0).any())


def describe(found: xr.Dataset, *, details: bool = False) -> str:
    """Return the findings and the table, on one screen.

    Parameters of one shape whose names differ in numbers share a line. With ``details``, each has its own, and
    names are not shortened.
    """
    lines = [line for sentence in sentences(found) for line in textwrap.wrap(sentence, WIDTH, subsequent_indent="  ")]
    rows = _rows(found, together=not details)
    if details:
        return "\n".join([*lines, "", *table(rows, _align(rows))])
    room = max(5, HEIGHT - len(lines) - 3)
    more = [f"and {len(rows) - room} more lines: --details shows all"] if len(rows) > room + 1 else []
    rows = rows[: room if more else None]
    rest = max(len(line) for line in table([row[1:] for row in rows])) + 2
    rows = [(_shortened(row[0], WIDTH - rest), *row[1:]) for row in rows]
    return "\n".join([*lines[: HEIGHT - 8], "", *table(rows, _align(rows)), *more])


def sentences(found: xr.Dataset) -> list[str]:
    """Return what was found, the most important first."""
    frame = found.to_dataframe()
    frame["kind"] = [_kind(str(name), shape) for name, shape in zip(frame.index, frame["shape"], strict=True)]
    of = " of the first checkpoint" if "changed" in frame else ""
    said = list(_stuck(frame, found.attrs.get("lr"), of))
    said += [*_not_finite(frame), *_as_initialised(frame)]
    if "changed" in frame:
        said += _changes(frame, plain(found.attrs["not_compared"]), plain(found.attrs["only_in_b"]))
    return said + list(_left_out(plain(found.attrs["left_out"])))


def _stuck(frame: Frame, lr: float | None, of: str) -> Iterator[str]:
    if lr is None:
        worst = frame["lr_to_move_all"].idxmax() if frame["lr_to_move_all"].notna().any() else None
        if worst is not None:
            yield (
                f"All values{of} can move towards zero at least above lr {_rate(frame['lr_to_move_all'][worst])}, "
                f"which {worst} needs; give --lr to count those that cannot move."
            )
        return
    whole = frame[frame["stuck_fraction"] == 1]
    for kind, members in sorted(whole.groupby("kind"), key=lambda group: -len(group[1])):
        them = "it" if len(members) == 1 else "them"
        yield (
            f"{_count(len(members), str(kind))}{of} cannot move at lr {_rate(lr)}: keep {them} in "
            f"float32{_some(members)}."
        )
    for dtype, members in frame.groupby("dtype"):
        finite = members["numel"] - members["n_not_finite"]
        n_stuck = round(float((members["stuck_fraction"].fillna(0) * finite).sum()))
        mostly = int((members["stuck_fraction"] > 0.5).sum())
        if n_stuck and len(members) > int((members["stuck_fraction"] == 1).sum()):
            where = f", in {mostly} of {_count(len(members), 'parameter')} more than half" if mostly else ""
            advice = "" if dtype == "float32" else ": keep float32 master weights, or round stochastically"
            yield (
                f"At lr {_rate(lr)}, {_share(n_stuck, int(finite.sum()))} of the {int(finite.sum()):,} {dtype} "
                f"values{of} cannot move{where}{advice}."
            )
    if not (frame["stuck_fraction"] > 0).any() and frame["stuck_fraction"].notna().any():
        n = _count(len(frame), "parameter")
        outward = (frame["stuck_outward_fraction"].fillna(0) * (frame["numel"] - frame["n_not_finite"])).sum()
        share = _share(round(float(outward)), int((frame["numel"] - frame["n_not_finite"]).sum()))
        one_way = f", {share} of them towards zero alone" if outward else ""
        yield f"Nothing is stuck: at lr {_rate(lr)} every finite value of {n}{of} can move{one_way}."


def _not_finite(frame: Frame) -> Iterator[str]:
    members = frame[frame["n_not_finite"] > 0]
    if len(members):
        n = int(members["n_not_finite"].sum())
        verb = "is" if n == 1 else "are"
        yield (
            f"{_count(n, 'value')} of {_count(len(members), 'parameter')} {verb} NaN or infinite and not counted"
            f"{_some(members)}."
        )


def _as_initialised(frame: Frame) -> Iterator[str]:
    for column, value in (("at_one_fraction", "1.0"), ("at_zero_fraction", "0")):
        for kind, members in frame[frame[column] == 1].groupby("kind"):
            both = " in both checkpoints" if "changed" in members and (members["changed"] == 0).all() else ""
            yield f"All values of {_count(len(members), str(kind))} are exactly {value}{both}{_some(members)}."


def _changes(frame: Frame, not_compared: dict[str, str], only_in_b: list[str]) -> Iterator[str]:
    members = frame[frame["changed"] >= 0]
    if len(members):
        changed, numel = int(members["changed"].sum()), int(members["numel"].sum())
        far = int(members["max_ulp_distance"].max())
        how = f", by at most {_count(far, 'representable number')}" if changed and far >= 0 else ""
        verb = "differs" if changed < 2 else "differ"
        yield f"{_share(changed, numel)} of the {numel:,} values compared {verb} between the checkpoints{how}."
    still = members[members["changed"] == 0]
    if len(still):
        kinds = ", ".join(_count(n, kind) for kind, n in Counter(still["kind"]).most_common())
        yield f"{_count(len(still), 'parameter')} did not change in any bit{_some(still) or f' ({kinds})'}."
    if not_compared:
        yield f"{_count(len(not_compared), 'parameter')} could not be compared: {_reasons(not_compared)}."
    if only_in_b:
        more = ", ..." if len(only_in_b) > _NAMED else ""
        verb = "is" if len(only_in_b) == 1 else "are"
        yield (
            f"{_count(len(only_in_b), 'parameter')} {verb} only in the second checkpoint: "
            f"{', '.join(only_in_b[:_NAMED])}{more}."
        )


def _left_out(reasons: dict[str, str]) -> Iterator[str]:
    if reasons:
        n = len(reasons)
        yield f"{n} {'entry is' if n == 1 else 'entries are'} left out: {_reasons(reasons)}."


def _reasons(reasons: dict[str, str]) -> str:
    """Name up to three for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    said = [
        f"{', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''} ({reason})"
        for reason, names in list(by_reason.items())[:_NAMED]
    ]
    more = sum(map(len, list(by_reason.values())[_NAMED:]))
    return "; ".join(said) + (f"; and {more} more" if more else "")


def _kind(name: str, shape: str) -> str:
    """Name what a parameter is; weights of one axis are those of norms."""
    if not shape or " x " in shape:
        return "parameter"
    return "norm weight" if _SCALE.search(name) else "bias" if _BIAS.search(name) else "parameter"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}es" if what.endswith("s") else f"{n:,} {what}s"


def _share(n: int, of: int) -> str:
    return f"{n:,}" if 0 < n < of * 10**-_DECIMALS else "None" if n == 0 else f"{n / of:.1%}"


def _some(members: Frame) -> str:
    """Name them, if they are few."""
    return f" ({', '.join(map(str, members.index))})" if len(members) <= _NAMED else ""


def _rows(found: xr.Dataset, *, together: bool) -> list[tuple[str, ...]]:
    """Return the cells of the table: a head, and a row for each parameter, or for those that share a line."""
    frame = found.to_dataframe()
    most = "stuck_fraction" if "stuck_fraction" in frame else "lr_to_move_all"
    names = [re.sub(r"\d+", "*", str(name)) if together else str(name) for name in frame.index]
    groups = frame.groupby([names, frame["dtype"], frame["shape"]], sort=False)
    rows = [_row(str(name), members) for (name, *_), members in groups]
    order = {str(name): i for i, name in enumerate(names)}
    rows.sort(key=lambda row: (-row[most], -row["numel"], order[row["name"]]))
    columns = {
        "parameter": "label",
        **({"n": "n"} if together else {}),
        **({} if together and frame["dtype"].nunique() == 1 else {"dtype": "dtype_short" if together else "dtype"}),
        "values": "numel_text",
        **({"stuck": "stuck_fraction_text"} if "stuck_fraction" in frame else {}),
        **({"half above": "lr_to_move_half_text"} if not together or "changed" not in frame else {}),
        "all above": "lr_to_move_all_text", "at 1": "at_one_fraction_text", "at 0": "at_zero_fraction_text",
        **({"same": "unchanged_fraction_text", "max ULP": "max_ulp_distance_text"} if "changed" in frame else {}),
    }  # fmt: skip
    return [tuple(columns), *(tuple(str(row[column]) for column in columns.values()) for row in rows)]


def _row(name: str, members: Frame) -> dict[str, Any]:
    """Return what the table says of parameters: their sum, mean share, or largest rate and distance."""
    finite = members["numel"] - members["n_not_finite"]
    row: dict[str, Any] = {
        "name": name, "label": str(members.index[0]) if len(members) == 1 else name, "n": len(members),
        "dtype": (dtype := members["dtype"].iloc[0]), "dtype_short": _SHORT[dtype],
        "numel": int(members["numel"].sum()),
    }  # fmt: skip
    row["numel_text"] = _short(row["numel"])
    for column in members:
        if str(column).endswith("_fraction"):
            weights = members["numel"] if column == "unchanged_fraction" else finite
            known = members[column].notna() & (weights > 0)
            mean = float((members[column] * weights)[known].sum() / weights[known].sum()) if known.any() else None
            row |= {str(column): -1.0 if mean is None else mean, f"{column}_text": _percent(mean)}
        elif str(column).startswith("lr_to_move"):
            rate = members[column].max()
            row |= {str(column): rate if rate == rate else -1.0, f"{column}_text": _rate(rate)}
    far = int(members["max_ulp_distance"].max()) if "max_ulp_distance" in members else -1
    return row | {"max_ulp_distance_text": _short(far) if far >= 0 else "-"}


def _short(n: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= 10 * size or (n >= size and n % size == 0):
            return f"{n / size:.0f}{letter}"
        if n >= size and size > 1000:
            return f"{n / size:.1f}{letter}"
    return f"{n:,}"


def _align(rows: list[tuple[str, ...]]) -> str:
    return "<" + ">" * (len(rows[0]) - 1)


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    text = f"{share:.1%}"
    return {"100.0%": "<100%", "0.0%": ">0%"}.get(text, text) if share not in (0, 1) else f"{share:.0%}"


def _rate(rate: float) -> str:
    if rate != rate:
        return "-"
    digits, _, exponent = f"{rate:.2e}".partition("e")
    return f"{rate:.3g}" if rate >= 1e-3 else f"{float(digits):g}e{int(exponent)}"


def _shortened(name: str, width: int) -> str:
    """Return a name of at most ``width`` characters, without its middle."""
    if len(name) <= width:
        return name
    end = (width - 3) * 2 // 3
    return f"{name[: width - 3 - end]}...{name[-end:]}"
