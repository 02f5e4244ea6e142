"""The views over steps alone: shares of phases, series of the whole cloud, trajectories of selected rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, DataRange1d, Div, HoverTool, NumeralTickFormatter, Range1d, Select
from numpy.typing import NDArray

from deadtok_xr.explorer import quantities
from deadtok_xr.explorer.binned import extremes, is_category
from deadtok_xr.explorer.runs import positions
from deadtok_xr.explorer.views.common import (
    COLOURS,
    PHASES,
    View,
    averaged,
    explanation,
    in_words,
    key,
    offer_quantities,
    over_steps,
    steps_of_segment,
    wrapped,
)

if TYPE_CHECKING:
    from deadtok_xr.explorer.binned import Binned
    from deadtok_xr.explorer.page import Page
    from deadtok_xr.explorer.source import Source

_KEPT = 2**27  # bytes of a quantity, or of the weights of which it is computed, that are read for all rows at once
_SMALL = 2**29  # bytes of weights that are read fast enough for an answer
DRAWN = 16
"""Trajectories that are drawn at most."""
_PIXEL = 0.005  # of the height of the plot, about
_OF_LINES = ("xs", "ys", "first", "last", "name", "run", "colour", "dash")
_DASHES = ("solid", "dashed", "dotted", "dotdash")
_MARKS = ("───", "╶╶╶", "·····", "─·─")


def _all_at_once(source: Source, x: xr.DataArray) -> bool:
    """Return whether a quantity is read for all rows together, so that the next selection need not read again."""
    if x.chunks is None or source.recording is None or "W" not in source.recording:
        return x.nbytes <= _KEPT
    return source.recording["W"].nbytes <= _KEPT


class Phases(View):
    """The shares of the rows in each phase, stacked from the coldest up."""

    name, over_steps = "phases", True

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        self.scheme = schemes_of(page.source)[0]
        self.plot, self.marker = over_steps(page, height=360, y_range=Range1d(0, 1))
        self.plot.yaxis.formatter = NumeralTickFormatter(format="0%")
        names = [str(name) for name in page.source.groups[self.scheme]["phase"].values]
        self.data = ColumnDataSource({"step": [], "steps": [], **{name: [] for name in names}})
        palette = PHASES.get(len(names), COLOURS)
        self.plot.varea_stack(names, x="step", color=list(palette[: len(names)]), source=self.data)
        labels = [name.replace("_", " ") for name in names]
        line = self.plot.line("step", names[0], source=self.data, line_alpha=0)
        shares = [(label, f"@{{{name}}}{{0.0%}}") for name, label in zip(names, labels, strict=True)]
        self.plot.add_tools(HoverTool(renderers=[line], mode="vline", tooltips=[("step", "@steps"), *shares[::-1]]))
        self._key, self._meaning = key(labels, palette), explanation(meaning_of(names))
        self.words = Div(text=self._key + self._meaning, sizing_mode="stretch_width")
        self.root = column(self.plot, self.words, sizing_mode="stretch_width")
        self._names = names

    def refresh(self) -> None:
        """Draw the visible steps."""
        x = self.page.source.groups[self.scheme]["fraction"].transpose("step", "phase")
        binned, span = self.page.source.blocks.binned, self.page.visible_steps
        self.page.later("phases", lambda: binned(self.scheme, x, *span), self._show)

    def _show(self, found: Any) -> None:
        values = np.nan_to_num(found.values)
        shares = {name: values[:, k] for k, name in enumerate(self._names)}
        self.data.data = {"step": found.middle, "steps": found.spans, **shares}
        self.words.text = f"{self._key} {averaged(found.width)}{self._meaning}"

    def show_step(self) -> None:
        """Move the marker."""
        self.marker.location = self.page.selection_step


class Series(View):
    """One quantity per step, chosen from a list, a line for each run."""

    over_steps, title = True, "Plot shows"
    spelled, hovered = ".4g", "custom"  # how values are spelled below the plot, and beside the mouse

    def __init__(self, page: Page, name: str, first: tuple[str, ...], colour: str = COLOURS[0]) -> None:
        super().__init__(page)
        self.name, self._first = name, first
        # the marker lies below the lines, or it hides a dip of one step
        self.plot, self.marker = over_steps(page, "underlay", height=220, y_range=DataRange1d(only_visible=True))
        several = len(page.runs) > 1
        self.data = {label: ColumnDataSource({"step": [], "value": []}) for label in page.runs}
        for label, data in self.data.items():
            line = self.plot.line(
                "step", "value", source=data, line_color=page.colours[label] if several else colour, line_width=1.5,
                name=label,
            )  # fmt: skip
            run = [("run", "$name")] if several else []
            self.plot.add_tools(
                HoverTool(renderers=[line], mode="vline", visible=False, description=label,
                          tooltips=[*run, ("step", "@step{0,0}"), ("value", f"@value{{{self.hovered}}}")],
                          formatters={"@value": in_words({}) if self.hovered == "custom" else "numeral"})
            )  # fmt: skip
        self.choice = Select(title=self.title, sizing_mode="stretch_width", max_width=520)
        self.choice.on_change("value", lambda attr, old, new: self.refresh())
        self.words = Div(text="&nbsp;", sizing_mode="stretch_width")
        self._known: dict[str, xr.DataArray] = {}
        self._missing, self._unit = "", ""
        self.root = column(self.choice, self.plot, self.words, sizing_mode="stretch_width")

    def found(self, source: Source) -> dict[str, xr.DataArray]:
        """Return what can be drawn of a run, by name."""
        return quantities.of_steps(source)

    def label(self, name: str, x: xr.DataArray) -> str:
        """Return the name of a quantity in the list."""
        return f"{name.partition('/')[0]}: {quantities.label(name, x)}"

    def _offer(self, found: dict[str, xr.DataArray]) -> str:
        chosen = self.choice.value or next((name for name in self._first if name in found), "")
        options = [(name, self.label(name, x)) for name, x in found.items()]
        self.choice.options = [*([] if chosen else [("", "(choose)")]), *options]
        self.choice.value = chosen
        return chosen

    def refresh(self) -> None:
        """Draw the visible steps of the chosen quantity."""
        of_runs = {label: self.found(source) for label, source in self.page.runs.items()}
        chosen = self._offer({name: x for found in reversed(of_runs.values()) for name, x in found.items()})
        have = {label: found[chosen] for label, found in of_runs.items() if chosen in found}
        if not have:
            return
        runs, span = self.page.runs, self.page.visible_steps

        def read() -> dict[str, Binned]:
            for x in have.values():
                if x.chunks is None:
                    x.load()
            return {label: runs[label].blocks.binned(chosen, x.expand_dims(row=1, axis=1), *span, max_bins=2**30)
                    for label, x in have.items()}  # fmt: skip

        self.page.later(self.name, read, lambda found: self._show(chosen, have, found))

    def _show(self, name: str, have: dict[str, xr.DataArray], found: dict[str, Binned]) -> None:
        self._known = {}
        for label, data in self.data.items():
            if label not in found:
                data.data = {"step": [], "value": []}
                continue
            x, steps, values = have[label], found[label].middle, found[label].values[:, 0].astype(np.float64)
            if x.dtype.kind == "i":
                values = np.where(values < 0, np.nan, values)  # -1: without a valid value
            drawn = extremes(values)  # no dip is lost, however many steps share a pixel
            data.data = {"step": steps[drawn], "value": values[drawn]}
            # what is not in memory would be computed again: of it the visible steps are known
            self._known[label] = x if x.chunks is None else xr.DataArray(values, {"step": steps}, ("step",))
        self.plot.yaxis.axis_label = wrapped(quantities.label(name, next(iter(have.values()))))
        missing = [label for label in self.data if label not in found]
        self._missing = f"not analysed in {', '.join(missing)}" if missing else ""
        self._unit = quantities.explained(next(iter(have.values())))
        self._describe()

    def _describe(self) -> None:
        """Say the values at the chosen step, and of a single run the smallest and the largest visible one."""
        page, step, known = self.page, self.page.selection_step, self._known
        said = [f"at step {step:,}: {' / '.join(_at(x, step, self.spelled) for x in known.values())}"] if known else []
        if len(self.data) == 1 and known:
            said += _extremes(next(iter(known.values())), *page.visible_steps)
        self.words.text = page.key_of_runs("; ".join(filter(None, [*said, self._missing, self._unit])))

    def show_step(self) -> None:
        """Move the marker."""
        self.marker.location = self.page.selection_step
        self._describe()


def _valid(x: xr.DataArray) -> xr.DataArray:
    return x.where(x >= 0) if x.dtype.kind == "i" else x  # -1: without a valid value


def _at(x: xr.DataArray, step: int, spelled: str) -> str:
    """Return the value at a step in words."""
    found = _valid(x.sel(step=[step])) if step in x.indexes["step"] else x[:0]
    return f"{float(found[0]):{spelled}}" if found.size and np.isfinite(found[0]) else "no value"


def _extremes(x: xr.DataArray, first: int, last: int) -> list[str]:
    """Return the smallest and the largest value within steps, and the first step of each, in words."""
    seen = _valid(x.sel(step=slice(first, last)))
    if not np.isfinite(seen).any():
        return []
    ends = {"smallest": seen.idxmin("step"), "largest": seen.idxmax("step")}
    return [f"{name} {float(seen.sel(step=at)):.4g} at step {int(at):,}" for name, at in ends.items()]


class PhasesOfRuns(Series):
    """The share of one phase, a line for each run."""

    title = "Share of the phase"
    spelled, hovered = ".1%", "0.0%"

    def __init__(self, page: Page) -> None:
        super().__init__(page, "phases", ())
        self.plot.update(height=360, y_range=Range1d(-0.02, 1.02))
        self.plot.yaxis.formatter = NumeralTickFormatter(format="0%")
        names = {str(name) for source in page.runs.values() for scheme in schemes_of(source)[:1]
                 for name in source.groups[scheme]["phase"].values}  # fmt: skip
        self.root.children.append(Div(text=explanation(meaning_of(names)), sizing_mode="stretch_width"))

    def found(self, source: Source) -> dict[str, xr.DataArray]:
        """Return the share of each phase, the coldest first."""
        return {
            f"{scheme}/{name}": source.groups[scheme]["fraction"].isel(phase=k, drop=True)
            for scheme in schemes_of(source)
            for k, name in enumerate(source.groups[scheme]["phase"].values.tolist())
        }

    def label(self, name: str, x: xr.DataArray) -> str:
        """Return the name of a phase, with its scheme unless it is the usual one."""
        scheme, _, phase = name.partition("/")
        return phase.replace("_", " ") + ("" if scheme == "phases" else f" ({scheme.partition('_')[2]})")

    def _offer(self, found: dict[str, xr.DataArray]) -> str:
        self._first = tuple(found)[:1]
        return super()._offer(found)


def schemes_of(source: Source) -> list[str]:
    """Return the groups that hold shares of phases."""
    return [name for name, ds in source.groups.items() if name.startswith("phases") and "fraction" in ds]


def meaning_of(phases: Collection[str]) -> str:
    """Return what the phases on the lattice mean; "" for others."""
    from deadtok_xr.analyses.phases import IN_WORDS, LATTICE

    known = [f"{name}: {IN_WORDS[name]}" for name in LATTICE if name in phases]
    return f"{'; '.join(known)}. {quantities.UNITS['ULP']}" if len(known) == len(LATTICE) else ""


def shares(page: Page) -> View:
    """Return the view of the phases: stacked for one run, lines for several, words where they were not analysed."""
    if not any(schemes_of(source) for source in page.runs.values()):
        missing = View(page)
        missing.name = "phases"
        missing.root = Div(text="phases were not analysed: <code>deadtok analyze … --only phases</code>")
        return missing
    return PhasesOfRuns(page) if len(page.runs) > 1 else Phases(page)


class Trajectories(View):
    """A quantity of each selected row over the steps, with its name; of several runs, a line for each."""

    name, over_steps = "trajectories", True

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        self.choice = Select(title="Trajectories show", sizing_mode="stretch_width", max_width=520)
        self.choice.on_change("value", lambda attr, old, new: self.refresh())
        self.plot, self.marker = over_steps(page, "underlay", height=300, y_range=DataRange1d(only_visible=True))
        self.plot.visible = False  # until something is selected
        self.data = ColumnDataSource({name: [] for name in _OF_LINES})
        self.lines = self.plot.multi_line(
            "xs", "ys", source=self.data, line_color="colour", line_dash="dash", line_width=1.5
        )
        self.legend = Div(sizing_mode="stretch_width")
        run = [("run", "@run")] if len(page.runs) > 1 else []
        self.plot.add_tools(
            HoverTool(renderers=[self.lines], line_policy="nearest",
                      tooltips=[*run, (page.source.rows, "@name"), ("step", "$snap_x{custom}"),
                                ("value", "$snap_y{custom}")],
                      formatters={"$snap_x": steps_of_segment(self.data), "$snap_y": in_words({})})
        )  # fmt: skip
        self.root = column(self.choice, self.plot, self.legend, sizing_mode="stretch_width")

    def refresh(self) -> None:
        """Read the selected rows, as far as the cache does not hold them, and draw them."""
        page = self.page
        recording = page.source.recording
        small = recording is not None and "W" in recording and recording["W"].nbytes <= _SMALL
        offer_quantities(page, self.choice, [*([quantities.DISTANCE] if small else []), page.quantity])
        quantity = self.choice.value
        at_most = max(DRAWN // len(page.runs), 4)
        chosen = list(page.selected)[:at_most]
        more = len(page.selected) - len(chosen)
        rows = f"{page.source.rows}s"
        self.said = (
            f"Nothing is selected: choose {rows} in the heat map or the table." if not chosen
            else f"the first {at_most} of {len(page.selected):,} selected {rows}" if more > 0 else ""
        )  # fmt: skip
        span, found = page.visible_steps, {label: page.quantities_of(label) for label in page.runs}
        have = {label: of_rows[quantity] for label, of_rows in found.items() if quantity in of_rows}
        if quantity not in page.quantities or not chosen:
            self._show(quantity, [], {})
            if not page.source.live:
                page.later("read ahead", lambda: self._read_ahead(quantity, have, span), lambda _: None, slow=True)
            return
        page.later(
            "trajectories",
            lambda: {label: self._read(label, quantity, x, chosen, span) for label, x in have.items()},
            lambda read: self._show(quantity, chosen, read),
        )

    def _read(self, run: str, quantity: str, x: xr.DataArray, chosen: list[int], span: tuple[int, int]) -> Any:
        """Return the bins, the values of each chosen row, None for one that the run does not have, and a note."""
        source = self.page.runs[run]
        at = chosen if source is self.page.source else positions(source, self.page.source.labels[chosen]).tolist()
        heat_map = quantity == self.page.quantity and source is self.page.source  # which has read all rows
        there = [i for i in at if i >= 0]
        if heat_map or _all_at_once(source, x):
            found = source.blocks.binned(quantity, x, *span, rows=there)
        else:
            found = source.blocks.binned(f"{quantity} of {there}", x.isel({source.rows: there}), *span)
        values = [found.values[:, there.index(i)] if i >= 0 else None for i in at]
        return found, values, averaged(found.width, categories=is_category(x))

    def _read_ahead(self, quantity: str, have: dict[str, xr.DataArray], span: tuple[int, int]) -> None:
        """Read the rows before some of them are selected, where that takes no longer than to read a few."""
        for run, x in have.items():
            if _all_at_once(self.page.runs[run], x):
                self.page.runs[run].blocks.binned(quantity, x, *span)

    def _show(self, quantity: str, chosen: list[int], read: dict[str, Any]) -> None:
        page, several = self.page, len(self.page.runs) > 1
        names = [page.names[i] for i in chosen]
        lines: list[dict[str, Any]] = [
            {"xs": bins.middle, "first": bins.first.astype(float), "last": bins.last.astype(float), "ys": values[k],
             "name": names[k], "run": run,
             "colour": page.colours[run] if several else COLOURS[k % len(COLOURS)],
             "dash": _DASHES[k % len(_DASHES)] if several else "solid"}
            for run, (bins, values, _) in read.items() for k in range(len(chosen)) if values[k] is not None
        ]  # fmt: skip
        self.data.data = {name: [line[name] for line in lines] for name in self.data.column_names}
        self.plot.visible = bool(chosen)
        if quantity in page.quantities:
            self.plot.yaxis.axis_label = wrapped(quantities.label(quantity, page.quantities[quantity]), 34)
        said = [self.said]
        for run, (_, values, _) in read.items():
            where = f" in {run}" if several else ""
            absent = [name for name, y in zip(names, values, strict=True) if y is None]
            said += [f"not{where}: {', '.join(absent)}"] if absent else []
            said += [f"lines on each other{where}: {', '.join(group)}" for group in alike(names, values)]
        said += list(dict.fromkeys(note for _, _, note in read.values()))
        words = "; ".join(filter(None, said))
        if not several:
            self.legend.text = f"{key(names, COLOURS * len(names))} {escape(words)}"
            return
        dashes = " ".join(f"{mark} {escape(name)}" for name, mark in zip(names, _MARKS * len(names), strict=False))
        self.legend.text = f"{page.key_of_runs(words)}<br>{dashes}"

    def show_selection(self) -> None:
        """Draw the selected rows."""
        self.refresh()

    def show_step(self) -> None:
        """Move the marker."""
        self.marker.location = self.page.selection_step


def alike(names: Sequence[str], lines: Sequence[NDArray[Any] | None]) -> list[list[str]]:
    """Return the names of lines that hide each other, because they lie less than about a pixel apart, together."""
    drawn = [(name, line) for name, line in zip(names, lines, strict=True) if line is not None]
    finite = [line[np.isfinite(line)] for _, line in drawn]
    ends = [(line.min(), line.max()) for line in finite if line.size]
    apart = (max(high for _, high in ends) - min(low for low, _ in ends)) * _PIXEL if ends else 0.0
    found: list[tuple[Any, list[str]]] = []
    for name, line in drawn:
        near = (names for other, names in found if np.allclose(line, other, rtol=0, atol=apart, equal_nan=True))
        if (group := next(near, None)) is None:
            found.append((line, [name]))
        else:
            group.append(name)
    return [group for _, group in found if len(group) > 1]
