"""Plans as functions: a question that is asked alone, or together with others in one pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, ParamSpec

import xarray as xr

from deadtok_xr.engine.spec import AnalysisSpec, run

P = ParamSpec("P")


class Analysis(Generic[P]):
    """A function from a recording to a lazy dataset; `plan` is what it asks, to be run with others."""

    def __init__(self, plan: Callable[P, AnalysisSpec]) -> None:
        functools.update_wrapper(self, plan)
        self.__annotations__ = {**plan.__annotations__, "return": "xr.Dataset"}
        self.plan = plan

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> xr.Dataset:
        """Run the plan by itself."""
        return run([self.plan(*args, **kwargs)])[0]


def analysis(plan: Callable[P, AnalysisSpec]) -> Analysis[P]:
    """Make a function that plans into one that answers."""
    return Analysis(plan)
