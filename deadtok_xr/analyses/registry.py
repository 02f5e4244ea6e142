"""The registry of analyses: what each needs from the common pass, what its results say, and its pictures."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Generic, ParamSpec, cast

import cloudpickle
import xarray as xr

from deadtok_xr.analyses.common.sampled import as_tokens, of_elements
from deadtok_xr.engine import AnalysisSpec, run
from deadtok_xr.errors import InputError, MissingFileError

P = ParamSpec("P")
Lines = Callable[[xr.Dataset], Iterator[str]]
ENTRY_POINTS = "deadtok_xr.analyses"
"""The group of entry points whose modules define analyses of other packages."""


@dataclass(frozen=True)
class Finding:
    """What an analysis found, as a sentence with numbers and units that can be read without knowing the analysis.

    Attributes
    ----------
    importance
        Findings are shown in descending order: 0.9 and more for what everybody asks first (do tokens move, why do they
        stop), 0.5 for a property of the motion, 0.2 and less for what did not happen.
    text
        The sentence.
    """

    importance: float
    text: str


@dataclass(frozen=True)
class KeyFigure:
    """The number by which a table shows an analysis: at the first and the last step, or over all steps.

    Attributes
    ----------
    name
        What is counted or measured, with its unit.
    first, last, overall
        Its values; a number or text, None for none.
    """

    name: str
    first: float | str | None = None
    last: float | str | None = None
    overall: float | str | None = None


@dataclass(frozen=True)
class Picture:
    """A picture of the results of an analysis.

    Attributes
    ----------
    name
        The name of its file, without the suffix.
    draw
        The name of the function of `deadtok_xr.plot`.
    title, reading
        Its title, and how to read it, for readers who see it for the first time.
    shows_nothing
        Returns, given the results, whether there is nothing to see, because a finding says in a sentence that nothing
        happened; the report then does without the picture.
    """

    name: str
    draw: str
    title: str
    reading: str
    shows_nothing: Callable[[xr.Dataset], bool] = lambda ds: False


class Analysis(Generic[P]):
    """A function from a recording to a lazy dataset, which can also run in one pass with others.

    Attributes
    ----------
    name
        The name of its group in a tree of results.
    spec
        Returns its `AnalysisSpec`, given a recording and options.
    summary
        Yields the lines of its detailed summary, given its results; None for a line for each variable.
    invalid
        What the analysis does with the tokens counted in `n_invalid`, as a relative clause; "" without this variable.
    warnings
        Yields further warnings that a reader of the results must know; None without any.
    findings
        Yields its findings; None for one for each line of the summary.
    key_figure
        Returns its key figure; None for its first variable of numbers.
    pictures
        Its pictures; None for one by the dims of its variables.
    over_runs
        The variable over steps that a picture of several runs shows; "" for the first one.
    is_built_in
        Whether it belongs to the package.
    across_gaps
        Whether its results are of use where a transition spans many updates: `analyze` then runs it on checkpoints.
    only_checkpoints
        Whether `analyze` runs it only on checkpoints, unless it is named.
    """

    def __init__(
        self,
        spec: Callable[P, AnalysisSpec],
        name: str | None = None,
        summary: Lines | None = None,
        pictures: tuple[Picture, ...] | None = None,
        is_built_in: bool = True,
    ) -> None:
        functools.update_wrapper(self, spec)
        self.__annotations__ = {**getattr(spec, "__annotations__", {}), "return": "xr.Dataset"}
        self.name = name or spec.__name__
        self.spec, self.summary, self.pictures, self.is_built_in = spec, summary, pictures, is_built_in
        self.invalid = self.over_runs = ""
        self.across_gaps = self.only_checkpoints = False
        self.warnings: Lines | None = None
        self.findings: Callable[[xr.Dataset], Iterator[Finding]] | None = None
        self.key_figure: Callable[[xr.Dataset], KeyFigure] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> xr.Dataset:
        """Run the analysis by itself; of a tree of samples, on each group."""
        found: Any = args[0] if args else None
        if isinstance(found, xr.DataTree):
            groups = {name: self(node.to_dataset(), *args[1:], **kwargs) for name, node in found.children.items()}  # type: ignore[arg-type]
            return cast(Any, xr.DataTree.from_dict({"/": xr.Dataset(attrs=found.attrs), **groups}))
        if isinstance(found, xr.Dataset) and "element" in found.dims:
            return of_elements(run([self.spec(as_tokens(found), *args[1:], **kwargs)])[0], found)  # type: ignore[arg-type]
        return run([self.spec(*args, **kwargs)])[0]

    def summarize(self, summary: Lines) -> Lines:
        """Set the function that yields the lines of the detailed summary; a decorator."""
        self.summary = summary
        return summary

    def warn(self, warnings: Lines) -> Lines:
        """Set the function that yields warnings; a decorator."""
        self.warnings = warnings
        return warnings

    def find(self, findings: Callable[[xr.Dataset], Iterator[Finding]]) -> Callable[[xr.Dataset], Iterator[Finding]]:
        """Set the function that yields the findings; a decorator."""
        self.findings = findings
        return findings

    def measure(self, key_figure: Callable[[xr.Dataset], KeyFigure]) -> Callable[[xr.Dataset], KeyFigure]:
        """Set the function that returns the key figure; a decorator."""
        self.key_figure = key_figure
        return key_figure

    @property
    def options(self) -> list[str]:
        """The names of its keywords."""
        return [p.name for p in inspect.signature(self.spec).parameters.values() if p.name != "ds"]

    def with_options(self, name: str, pictures: tuple[Picture, ...], **options: Any) -> Analysis[...]:
        """Return the same analysis under another name, with some options chosen."""
        same = Analysis(functools.partial(self.spec, **options), name, self.summary, pictures, self.is_built_in)
        same.invalid, same.warnings, same.over_runs = self.invalid, self.warnings, self.over_runs
        same.findings, same.key_figure = self.findings, self.key_figure
        same.across_gaps, same.only_checkpoints = self.across_gaps, self.only_checkpoints
        return same


ANALYSES: dict[str, Analysis[...]] = {}
"""The analyses that `analyze` knows, in the order in which results are shown."""


def register(analysis: Analysis[...]) -> None:
    """Add an analysis to those that `analyze` knows; one of the same name that a user defined before is replaced.

    Raises
    ------
    InputError
        If the name belongs to the package.
    """
    known = ANALYSES.get(analysis.name)
    if known is not None and known.is_built_in and not analysis.is_built_in:
        raise InputError(f"the analysis {analysis.name!r} belongs to deadtok_xr: choose another name")
    ANALYSES[analysis.name] = analysis


COMPARISONS: dict[str, Analysis[...]] = {}
"""Analyses of several runs, which `analyze` runs for a dataset of several."""


def register_comparison(analysis: Analysis[...]) -> None:
    """Add an analysis of several runs."""
    COMPARISONS[analysis.name] = analysis


def analysis_of(name: str) -> Analysis[...] | None:
    """Return the analysis whose results a group of this name holds; None for a group of unknown origin."""
    return ANALYSES.get(name) or COMPARISONS.get(name)


def built_in(spec: Callable[P, AnalysisSpec]) -> Analysis[P]:
    """Turn a function that returns an AnalysisSpec into one that returns a Dataset; a decorator."""
    return Analysis(spec)


def import_analyses(file: Path) -> None:
    """Run a Python file that defines analyses, as `python FILE` would: with its folder on the path.

    Workers on other machines receive the code of its functions, not the name of the file.

    Raises
    ------
    MissingFileError, InputError
        If there is no such file, if it cannot be run, or if it defines no analysis.
    """
    if not file.is_file():
        raise MissingFileError(f"{file}: no such file; expected a Python file that defines analyses (--import)")
    spec = spec_from_file_location(f"deadtok_xr_analyses_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is no Python file; expected one that defines analyses (--import)")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # pickle looks up functions and classes of the file here
    cloudpickle.register_pickle_by_value(module)
    if (folder := str(file.absolute().parent)) not in sys.path:
        sys.path.append(folder)
    known = dict(ANALYSES)
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file.absolute()]
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(f"{file}{where} cannot be imported: {type(error).__name__}: {error}") from error
    if all(known.get(name) is analysis for name, analysis in ANALYSES.items()):
        raise InputError(f"{file} defines no analysis; expected a function with the decorator dx.analysis (--import)")


@functools.cache
def load_entry_points() -> None:
    """Import the modules in which installed packages define analyses; one that cannot be imported is a warning."""
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            message = f"the analyses of {point.value}, entry point {point.name!r}, cannot be imported: {what}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
