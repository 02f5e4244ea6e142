"""The decorator that makes an analysis of a function or class, and checks of what it declares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr.analyses.common import checks
from deadtok_xr.analyses.custom.reduction import COMBINE, NUMBERS, UserReduction
from deadtok_xr.analyses.custom.results import dataset
from deadtok_xr.analyses.registry import Analysis, Lines, register
from deadtok_xr.engine import AnalysisSpec, Output, ReductionResults
from deadtok_xr.errors import InputError

_METHODS = ("start", "update", "merge", "result")
_OWN_DIMS = ("step", "token", "dim")


def analysis(
    *,
    needs: str | Sequence[str] = "W",
    outputs: Mapping[str, Output],
    name: str | None = None,
    summary: Lines | None = None,
) -> Callable[[Callable[..., Any]], Analysis[...]]:
    """Make an analysis of a function of your own, which runs in the same pass as the built-in ones.

    The decorated function gets a `UserBatch`, a few consecutive steps, and returns a dict with an array for each
    output. It is then used like a built-in analysis: called with a recording it returns a lazy dataset, and `analyze`,
    `save_results`, `summary`, `report` and the command line know it by its name.

    Parameters
    ----------
    needs
        The variables (step, token, dim) that it reads; the first is the one of ``batch.before`` and ``batch.after``.
    outputs
        An `Output` for each array that it returns. With the dimension step, which comes first: a value for each step of
        the batch, or with ``at="transitions"`` for each update in it. Without: one value for the whole recording, and
        ``combine=`` says how the values of two batches become one.
    name
        Name of the analysis; by default that of the function.
    summary
        A function that yields its findings as lines of text, given its results. By default there is a line for each
        output.

    Returns
    -------
    Callable
        A decorator of a function ``function(batch, **options)``; or of a class with the methods ``start(n_tokens,
        n_dims)``, which returns a state for a block of steps, ``update(state, batch)``, which changes it and returns
        the outputs that have the dimension step, ``merge(state, later)``, which returns the state of two neighbouring
        blocks, and ``result(state)``, which returns the other outputs. Options are keywords of the class.

    Raises
    ------
    InputError
        If what is declared is impossible, or the name belongs to the package. When computed: if the function does not
        return what was declared. What the function itself raises gets a note that names the analysis.

    Examples
    --------
    >>> @dx.analysis(needs="W", outputs={"largest": dx.Output("step", long_name="largest absolute weight")})
    ... def largest(batch):
    ...     return {"largest": np.abs(batch.W).max((1, 2))}
    >>> largest(rec).largest.plot()
    >>> tree = dx.analyze(rec, analyses=["motion", "largest"])
    """
    needed = (needs,) if isinstance(needs, str) else tuple(needs)

    def define(function: Callable[..., Any]) -> Analysis[...]:
        own = str(name or getattr(function, "__name__", ""))
        if not own.isidentifier():
            raise InputError(f"an analysis cannot be called {own!r}: say name=, with letters, digits and underscores")
        if not needed or not all(isinstance(need, str) for need in needed):
            raise InputError(f"analysis {own!r} has needs={needs!r}: name one variable or more, needs='W'")
        _check_outputs(own, inspect.isclass(function), outputs)
        made: Analysis[...] = Analysis(_spec(own, function, needed, dict(outputs)), own, summary, is_built_in=False)
        made.__doc__ = function.__doc__
        register(made)
        return made

    return define


def _check_outputs(name: str, is_class: bool, outputs: Mapping[str, Output]) -> None:
    if not isinstance(outputs, Mapping) or not outputs:
        raise InputError(f"analysis {name!r} has no outputs: name at least one, outputs={{'name': dx.Output(dims)}}")
    for key, output in outputs.items():
        where = f"analysis {name!r}: the output {key!r}"
        if not isinstance(key, str) or not key.isidentifier() or key in (*_OWN_DIMS, "step_span"):
            raise InputError(f"{where} cannot be called so: a name has letters, digits and underscores, and is no dim")
        if not isinstance(output, Output):
            raise InputError(f"{where} is a {type(output).__name__}; expected a dx.Output")
        _check_dims(where, output)
        _check_dtype(where, output)
        if output.at not in ("states", "transitions"):
            raise InputError(f"{where} has at={output.at!r}; choose 'states' or 'transitions'")
        known = output.combine in COMBINE if isinstance(output.combine, str) else callable(output.combine)
        if "step" in output.all_dims or is_class:
            if output.combine is not None:
                raise InputError(f"{where} has combine=; that is for outputs of a function without the dimension step")
        elif not known:
            ways = ", ".join(COMBINE)
            raise InputError(f"{where} has no dimension step: say combine= ({ways}, or a function of two)")
    per_step = [o for o in outputs.values() if "step" in o.all_dims]
    if len({o.at for o in per_step}) > 1 and any(o.at == "transitions" and o.base.kind == "u" for o in per_step):
        raise InputError(
            f"analysis {name!r} has outputs of states and of transitions: those of transitions are -1 at the first "
            "step, which unsigned integers cannot be; declare another dtype="
        )


def _check_dims(where: str, output: Output) -> None:
    dims = output.all_dims
    if not all(isinstance(dim, str) for dim in dims) or len(set(dims)) < len(dims):
        raise InputError(f"{where} has the dimensions {dims}; expected different names")
    if "step" in dims[1:]:
        raise InputError(f"{where} has the dimensions ({', '.join(dims)}); step comes first")
    for dim in (*output.sizes, *dims):
        size = output.sizes.get(dim)
        if (dim in _OWN_DIMS) == (size is not None):
            given = f"the recording says the length of {dim}" if dim in _OWN_DIMS else f"say sizes={{{dim!r}: length}}"
            raise InputError(f"{where} has sizes={dict(output.sizes)} and the dimensions ({', '.join(dims)}): {given}")
        if size is not None and (not isinstance(size, (int, np.integer)) or size < 1):
            raise InputError(f"{where} has the size {size!r} along {dim}; expected a positive integer")


def _check_dtype(where: str, output: Output) -> None:
    try:
        fits = output.base.kind in NUMBERS and np.dtype(output.dtype).shape == ()
    except TypeError:
        fits = False
    if not fits:
        raise InputError(f"{where} has dtype={output.dtype!r}; expected one of numbers or booleans")


def _spec(
    name: str, function: Callable[..., Any], needs: tuple[str, ...], outputs: dict[str, Output]
) -> Callable[..., AnalysisSpec]:
    """Return the function from a recording and options to an AnalysisSpec."""
    has_updates = any(o.at == "transitions" for o in outputs.values())
    signature = _signature(name, function)
    required = [p.name for p in list(signature.parameters.values())[1:] if p.default is p.empty]

    def spec(*args: Any, **keywords: Any) -> AnalysisSpec:
        try:
            bound = signature.bind(*args, **keywords)
        except TypeError as error:
            if missing := [key for key in required if key not in keywords]:  # `analyze` leaves it out then
                raise InputError(f"{name} needs the option {missing[0]!r}, a keyword of the function") from None
            raise TypeError(f"{name}: {error}") from None
        bound.apply_defaults()
        options = dict(bound.arguments)
        ds, allow_gaps = options.pop("ds"), options.pop("allow_gaps")
        arrays = {need: checks.require(ds, need, name) for need in needs}
        span = checks.check_steps(ds, name, allow_gaps=allow_gaps) if has_updates else {}
        if taken := [key for key in outputs if key in ds.coords]:
            raise InputError(f"{name}: {taken[0]!r} is a coordinate of this recording; give the output another name")
        reduction = UserReduction(name, function, needs, outputs, options, *(_labels(ds, d) for d in ("step", "token")))

        def finish(found: ReductionResults) -> xr.Dataset:
            return dataset(found, ds, reduction, span)

        return AnalysisSpec({need: checks.as_dask(x.data) for need, x in arrays.items()}, {"user": reduction}, finish)

    spec.__signature__ = signature  # type: ignore[attr-defined]
    spec.__name__ = spec.__qualname__ = name
    spec.__module__ = function.__module__
    return spec


def _labels(ds: xr.Dataset, dim: str) -> Any:
    return ds[dim].values if dim in ds.coords else np.arange(ds.sizes[dim])


def _signature(name: str, function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of the analysis: a recording, the options of the function or class, and allow_gaps."""
    own = list(inspect.signature(function).parameters.values())
    if not inspect.isclass(function):
        if not own or own[0].kind not in (own[0].POSITIONAL_ONLY, own[0].POSITIONAL_OR_KEYWORD):
            raise InputError(f"analysis {name!r}: the function takes no batch; expected function(batch, **options)")
        own = own[1:]
    for p in own:
        if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name in ("ds", "allow_gaps"):
            raise InputError(f"analysis {name!r}: {str(p)!r} cannot be an option; expected keywords with other names")
    if missing := [m for m in _METHODS if inspect.isclass(function) and not hasattr(function, m)]:
        raise InputError(f"analysis {name!r}: the class has no method {missing[0]!r}; expected {', '.join(_METHODS)}")
    ds = inspect.Parameter("ds", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    gaps = inspect.Parameter("allow_gaps", inspect.Parameter.KEYWORD_ONLY, default=False)
    return inspect.Signature([ds, *(p.replace(kind=p.KEYWORD_ONLY) for p in own), gaps])
