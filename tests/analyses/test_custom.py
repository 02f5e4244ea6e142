"""Analyses that a user defines: the values of plain NumPy, in one pass with the built-in ones, on any scheduler."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import textwrap
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import deadtok_xr as dx
from deadtok_xr import cli, plot, testing
from deadtok_xr.analyses import ANALYSES
from deadtok_xr.analyses.custom.code import code_token
from deadtok_xr.cli.failures import status
from deadtok_xr.engine.journal import ResumeJournal
from deadtok_xr.errors import DestinationExistsError, InputError
from deadtok_xr.plot.by_dims import by_dims
from tests.conftest import once
from tests.strategies import dataset

Output = dx.Output
ROOT = Path(dx.__file__).parents[1]
STEPS, TOKENS, DIMS = 257, 30, 5
"""Three rows of chunks; the last one is a single step, in which no update begins."""

Lazily = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "run.zarr"
    return testing.synthetic_recording(path, steps=STEPS, tokens=TOKENS, dims=DIMS)


@pytest.fixture(scope="module")
def rec(stored: Path) -> xr.Dataset:
    return dx.open_recording(stored)


def define_all() -> None:
    """An analysis of each kind."""

    @dx.analysis(needs="W", outputs={"largest": Output("step", long_name="largest absolute weight", units="1")})
    def largest(batch: Any) -> Any:
        """Largest weight."""
        return {"largest": np.abs(batch.W).max((1, 2), initial=0)}

    outputs = {
        "hop": Output(("step", "token"), at="transitions", dtype="f4", long_name="largest change of an element"),
        "shift": Output(("step", "dim"), at="transitions"),
        "updates": Output("token", at="transitions", combine="sum", dtype="i8"),
        "top": Output((), at="transitions", combine="max", dtype="f4"),
    }

    @dx.analysis(outputs=outputs)
    def hops(batch: Any, *, above: float = 0.0) -> Any:
        change = np.abs(batch.after - batch.before)
        hop = change.max(2)
        return {"hop": hop, "shift": change.mean(1, np.float64), "updates": (hop > above).sum(0), "top": change.max()}

    outputs = {
        "positive": Output(("step", "token"), dtype=bool),
        "ends": Output(("step", "end"), sizes={"end": 2}, dtype="f4"),
        "moved": Output("step", at="transitions", dtype="i4"),
        "turned": Output(("step", "token"), at="transitions", dtype=bool),
        "first": Output(("token", "dim"), combine="first", dtype="f4"),
        "last": Output(("token", "dim"), combine=lambda a, b: b, dtype="f4"),
        "state": Output("step", dtype="i8"),
    }

    @dx.analysis(outputs=outputs)
    def mixed(batch: Any) -> Any:
        changed = (batch.after != batch.before).any(2)
        return {
            "positive": (batch.W > 0).any(2),
            "ends": np.stack([batch.W.min((1, 2)), batch.W.max((1, 2))], axis=1),
            "moved": changed.sum(1),
            "turned": changed,
            "first": batch.W[0],
            "last": batch.W[-1],
            "state": batch.steps,
        }

    @dx.analysis(outputs={"mean": Output("token"), "so_far": Output("step", dtype="i8")})
    class Mean:
        """Mean weight."""

        def __init__(self, scale: float = 1.0) -> None:
            self.scale = scale

        def start(self, n_tokens: int, n_dims: int) -> Any:
            return {"sum": np.zeros(n_tokens), "n": 0, "first": None}

        def update(self, state: Any, batch: Any) -> Any:
            if state["first"] is None:
                state["first"] = batch.W[0]  # kept: it is not overwritten by later batches
            state["sum"] += batch.W.astype(np.float64).sum((0, 2))
            state["n"] += batch.W.shape[0] * batch.W.shape[2]
            return {"so_far": np.full(len(batch.steps), batch.tokens.size)}

        def merge(self, state: Any, later: Any) -> Any:
            return {"sum": state["sum"] + later["sum"], "n": state["n"] + later["n"], "first": state["first"]}

        def result(self, state: Any) -> Any:
            return {"mean": self.scale * (state["sum"] / state["n"] - state["first"].astype(np.float64).mean(1))}


def check_values(ds: xr.Dataset) -> None:
    """Compare every analysis with plain NumPy on the values of the dataset."""
    W = np.asarray(ds.W.values).astype(np.float32)
    change = np.abs(np.diff(W, axis=0))
    define_all()
    found = ANALYSES["largest"](ds).compute()
    np.testing.assert_array_equal(found.largest, np.abs(W).max((1, 2)))
    assert list(found.step.values) == list(ds.step.values)
    found = ANALYSES["mixed"](ds, allow_gaps=True).compute() if len(W) > 1 else None
    if found is not None:
        changed = (W[1:] != W[:-1]).any(2)
        expected = {
            "positive": (W > 0).any(2),
            "ends": np.stack([W.min((1, 2)), W.max((1, 2))], axis=1),
            "moved": np.concatenate([[-1], changed.sum(1)]),
            "turned": np.concatenate([np.zeros_like(changed[:1]), changed]),
            "first": W[0],
            "last": W[-1],
            "state": ds.step.values,
        }
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
            assert found[name].dtype == ANALYSES["mixed"](ds, allow_gaps=True)[name].dtype
        found = ANALYSES["hops"](ds, above=0.01, allow_gaps=True).compute()
        np.testing.assert_array_equal(found.hop, change.max(2))
        np.testing.assert_allclose(found["shift"], change.mean(1, np.float64), rtol=1e-12)
        np.testing.assert_array_equal(found.updates, (change.max(2) > 0.01).sum(0))
        np.testing.assert_array_equal(found.top, change.max())
        assert list(found.step.values) == list(ds.step.values[1:])
        assert found.attrs["above"] == 0.01
    found = ANALYSES["Mean"](ds, scale=2.0).compute()
    exact = W.astype(np.float64)
    np.testing.assert_allclose(found["mean"], 2 * (exact.mean((0, 2)) - exact[0].mean(1)), rtol=1e-9, atol=1e-12)
    assert (found.so_far == W.shape[1]).all()
    assert list(found.token.values) == list(ds.token.values)


# --- values -----------------------------------------------------------------------------------------


@pytest.mark.slow
@given(data=st.data())
def test_values_of_any_shape_and_chunking(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, most), label="size") for most in (9, 6, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.float16]))
    W = np.round(rng.normal(size=shape), 1).astype(np.float16).astype(dtype)
    chunks = data.draw(st.none() | st.tuples(*(st.integers(1, n) for n in shape)))
    check_values(dataset(W, chunks, first=3))


@settings(max_examples=12)
@given(first=st.integers(0, STEPS - 1), length=st.integers(1, STEPS), stride=st.integers(1, 3), seed=st.integers(0, 99))
def test_values_of_any_selection(rec: xr.Dataset, first: int, length: int, stride: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = np.sort(rng.permutation(TOKENS)[: rng.integers(1, TOKENS + 1)])
    check_values(rec.isel(step=slice(first, first + length, stride), token=tokens))


@pytest.mark.parametrize("batch_bytes", [1, 700, 10**5])
def test_values_of_any_batch_size(rec: xr.Dataset, batch_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deadtok_xr.engine.block_task.BATCH_BYTES", batch_bytes)
    check_values(rec)


def test_several_variables(recording: Path) -> None:
    rec = dx.open_recording(recording)

    @dx.analysis(needs=("W", "grad"), outputs={"work": Output("step", at="transitions"), "g": Output("step")})
    def work(batch: Any) -> Any:
        _, gradient = batch.pairs("grad")
        assert batch.later_steps.size == len(batch.before)
        change = batch.after.astype(np.float64) - batch.before
        return {"work": (change * gradient).sum((1, 2)), "g": np.abs(batch.grad).max((1, 2))}

    found = work(rec).compute()
    W, grad = rec.W.values.astype(np.float64), rec.grad.values.astype(np.float64)
    np.testing.assert_allclose(found.work[1:], (np.diff(W, axis=0) * grad[1:]).sum((1, 2)), rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(found.g, np.abs(grad).max((1, 2)))
    assert np.isnan(found.work[0])
    assert "nan at the first step" in found.work.attrs["comment"]


def test_nan_is_passed_on(stored: Path) -> None:
    W = dx.open_recording(stored).W.values[:20].copy()
    W[3, 4, 1] = np.nan
    define_all()
    found = ANALYSES["largest"](dataset(W)).compute()
    assert np.flatnonzero(np.isnan(found.largest)).tolist() == [3]
    text = dx.summary(dx.analyze(dataset(W), analyses=["largest"]))
    assert "largest absolute weight: " in text
    assert "nan" not in text


def test_gaps_are_refused_unless_allowed(rec: xr.Dataset) -> None:
    define_all()
    with pytest.raises(InputError, match=r"hops: steps 1\.\.2 are missing"):
        ANALYSES["hops"](rec.isel(step=slice(0, 30, 3)))
    tree = dx.analyze(rec.isel(step=slice(0, 30, 3)), analyses=["hops", "mixed", "largest"], allow_gaps=True)
    assert tree["hops"].step_span.values.tolist() == [3] * 9
    assert tree["mixed"].step_span.values.tolist() == [0] + [3] * 9
    assert "step_span" not in tree["largest"]
    with pytest.raises(InputError, match="hops needs at least two steps"):
        ANALYSES["hops"](rec.isel(step=[4]))


# --- one pass, lazily -------------------------------------------------------------------------------


def test_all_analyses_share_one_pass(rec: xr.Dataset, decoded: Counter[tuple[str, int]], lazily: Lazily) -> None:
    define_all()
    with lazily():
        tree = dx.analyze(rec, analyses=["motion", "largest", "hops", "mixed", "Mean"])
        alone = ANALYSES["largest"](rec)
    dask.compute([node.to_dataset() for node in tree.children.values()])
    assert decoded == once(STEPS, "W")
    alone.compute()


def test_every_chunk_is_read_once(rec: xr.Dataset, stored: Path, reads: list[str]) -> None:
    define_all()
    tree = dx.analyze(rec, analyses=["motion", "largest", "hops", "Mean"])
    with dask.config.set(scheduler="synchronous"):
        dask.compute([node.to_dataset() for node in tree.children.values()])
    chunks = Counter(key for key in reads if key.startswith("W/c/"))
    files = {f"W/{p.relative_to(stored / 'W').as_posix()}" for p in (stored / "W" / "c").rglob("*") if p.is_file()}
    assert set(chunks) == files
    # the first step of a row of chunks belongs to the last update of the row before
    assert max(chunks.values()) <= 2


def test_attributes_of_a_batch(rec: xr.Dataset) -> None:
    seen: list[Any] = []

    @dx.analysis(outputs={"x": Output("step")})
    def look(batch: Any) -> Any:
        seen.append((repr(batch), batch.steps, batch.later_steps, batch.tokens, batch.W.dtype))
        assert not hasattr(batch, "grad")
        assert not hasattr(batch, "__array__")
        return {"x": batch.W.mean((1, 2))}

    with dask.config.set(scheduler="synchronous"):
        look(rec).compute()
    seen.sort(key=lambda one: one[1][0])  # blocks come in any order
    assert np.concatenate([steps for _, steps, *_ in seen]).tolist() == list(range(STEPS))
    assert np.concatenate([later for _, _, later, *_ in seen]).tolist() == list(range(1, STEPS))
    assert all(tokens.tolist() == list(range(TOKENS)) and dtype == np.float32 for *_, tokens, dtype in seen)
    assert seen[-1][0] == "<UserBatch of W: 1 steps x 30 tokens x 5 dims, 0 updates>"


def test_batch_arrays_are_read_only(rec: xr.Dataset) -> None:
    @dx.analysis(outputs={"x": Output("step")})
    def rude(batch: Any) -> Any:
        batch.W[:] = 0
        return {"x": batch.W.mean((1, 2))}

    with pytest.raises(ValueError, match="read-only") as caught:
        rude(rec).compute()
    assert "raised by the analysis 'rude'" in caught.value.__notes__[0]


# --- names, options, definitions -------------------------------------------------------------------


def test_custom_analysis_is_used_like_a_built_in_one(rec: xr.Dataset) -> None:
    define_all()
    hops = ANALYSES["hops"]
    assert hops.options == ["above", "allow_gaps"]
    assert ANALYSES["largest"].__doc__ == "Largest weight."
    tree = dx.analyze(rec, analyses=["hops"], options={"hops": {"above": 0.5}})
    assert tree["hops"].attrs["above"] == 0.5
    assert (tree["hops"].updates == 0).all()
    assert tree["hops"].hop.attrs == {"long_name": "largest change of an element", "units": "1"}
    with pytest.raises(InputError, match="hops has no option 'abov': choose from above, allow_gaps"):
        dx.analyze(rec, analyses=["hops"], options={"hops": {"abov": 0.5}})
    with pytest.raises(TypeError, match="hops: got an unexpected keyword argument 'abov'"):
        hops(rec, abov=0.5)
    with pytest.raises(InputError, match="hops takes a recording's dataset, not a str"):
        hops("run.zarr")
    with pytest.raises(InputError, match="hops needs the variable 'W'; this dataset has grad"):
        hops(rec.rename(W="grad"))


def test_the_default_of_an_option_called_precision_is_kept(rec: xr.Dataset) -> None:
    @dx.analysis(outputs={"x": Output("step")})
    def rounded(batch: Any, *, precision: str = "float16") -> Any:
        return {"x": batch.W.astype(precision).max((1, 2))}

    assert dx.analyze(rec, analyses=["rounded"])["rounded"].attrs["precision"] == "float16"
    assert dx.analyze(rec, analyses=["rounded"], precision="float32")["rounded"].attrs["precision"] == "float32"


def test_impossible_custom_analysis_is_left_out(rec: xr.Dataset) -> None:
    define_all()

    @dx.analysis(outputs={"x": Output("step")})
    def needy(batch: Any, *, power: float) -> Any:
        return {"x": batch.W.max((1, 2)) ** power}

    @dx.analysis(needs=("W", "exp_avg"), outputs={"y": Output("step")})
    def moments(batch: Any) -> Any:
        return {"y": batch.exp_avg.max((1, 2))}

    tree = dx.analyze(rec)
    assert {"largest", "hops", "mixed", "Mean"} <= set(tree.children)
    assert tree.attrs["left_out"]["needy"] == "needy needs the option 'power', a keyword of the function"
    assert "moments needs the variable 'exp_avg'" in tree.attrs["left_out"]["moments"]
    assert "needy" in dx.analyze(rec, analyses=["needy"], options={"needy": {"power": 2}})


def test_a_state_may_be_a_list(rec: xr.Dataset) -> None:
    @dx.analysis(outputs={"total": Output(dtype="f8"), "n": Output(dtype="i8")})
    class Total:
        def start(self, n_tokens: int, n_dims: int) -> Any:
            return [0.0, 0]

        def update(self, state: Any, batch: Any) -> Any:
            state[0] += batch.W.sum(dtype=np.float64)
            state[1] += len(batch.steps)

        def merge(self, state: Any, later: Any) -> Any:
            return [state[0] + later[0], state[1] + later[1]]

        def result(self, state: Any) -> Any:
            return {"total": state[0], "n": state[1]}

    found = Total(rec).compute()
    assert int(found.n) == STEPS
    np.testing.assert_allclose(found.total, rec.W.values.sum(dtype=np.float64), rtol=1e-9)


def test_a_new_definition_replaces_the_old_one(rec: xr.Dataset) -> None:
    values = []
    for power in (1, 2):

        @dx.analysis(outputs={"x": Output("step")})
        def again(batch: Any) -> Any:
            return {"x": np.abs(batch.W).max((1, 2)) ** power}  # noqa: B023

        values.append(dx.analyze(rec, analyses=["again"])["again"].x.compute())
    np.testing.assert_allclose(values[0] ** 2, values[1], rtol=1e-6)
    order = list(ANALYSES)
    define_all()
    define_all()
    assert list(ANALYSES) == [*order, "largest", "hops", "mixed", "Mean"]


SOURCE = """
import abc
import functools
import numpy as np
scale = {scale}
weights = np.arange({n})
def helper(x):
    return x * scale
def f(batch, *, power={power}):
    '''A text.'''
    def inner(x):
        return helper(x) ** power + {inner}
    return {{"x": inner(batch.W).max((1, 2)) + weights[0] + [f is not None for _ in range(2)][0]}}
class C(abc.ABC):
    other = {other}
    def start(self, n_tokens, n_dims):
        return self.twice(n_tokens)
    @staticmethod
    def twice(x):
        return C.other * x * {twice}
    @property
    def p(self):
        return super().__init__
p = functools.partial(f, power={partial})
"""
PLAIN = {"scale": 1, "n": 3, "power": 2, "inner": 0, "other": 1, "twice": 2, "partial": 5}


def _tokens(first_line: int = 0, module: str | None = "somewhere", **changed: int) -> dict[str, str]:
    names: dict[str, Any] = {"__name__": module} if module else {}
    code = "\n" * first_line + SOURCE.format(**{**PLAIN, **changed})
    exec(compile(code, f"cell-{first_line}", "exec"), names)
    if first_line:
        copy.copy(names["C"]())  # which leaves a note in the class
    return {name: code_token(names[name]) for name in ("f", "C", "p")}


@pytest.mark.parametrize("module", ["somewhere", None])
def test_token_of_code_depends_on_what_it_computes(module: str | None) -> None:
    plain = _tokens(module=module)
    assert _tokens(first_line=7, module=module) == plain  # the same cell in another session
    changes = {"scale": "fp", "n": "fp", "power": "fp", "inner": "fp", "other": "C", "twice": "C", "partial": "p"}
    for what, whose in changes.items():
        other = _tokens(module=module, **{what: 9})
        assert {name for name in plain if plain[name] != other[name]} == set(whose), what


def test_globals_are_part_of_a_definition(rec: xr.Dataset) -> None:
    names: dict[str, Any] = {"dx": dx, "__name__": "notebook", "threshold": 0.0}
    exec(
        "@dx.analysis(outputs={'x': dx.Output('step')})\n"
        "def f(batch):\n    return {'x': (batch.W > threshold).sum((1, 2))}",
        names,
    )
    before = names["f"](rec)
    names["threshold"] = 1.0
    assert before.x.data.name != names["f"](rec).x.data.name


# --- what is refused --------------------------------------------------------------------------------

DECLARED: dict[str, tuple[Any, str]] = {
    "no outputs": ({}, "analysis 'bad' has no outputs: name at least one"),
    "a list": (["x"], "analysis 'bad' has no outputs"),
    "no Output": ({"x": "step"}, "analysis 'bad': the output 'x' is a str; expected a dx.Output"),
    "a dim": ({"x": Output("layer")}, r"the output 'x' has sizes=\{\} and the dimensions \(layer\): say sizes="),
    "order": ({"x": Output(("token", "step"))}, r"has the dimensions \(token, step\); step comes first"),
    "twice": ({"x": Output(("step", "dim", "dim"))}, "expected different names"),
    "a size": ({"x": Output(("step", "a"), sizes={"a": 0})}, "has the size 0 along a; expected a positive integer"),
    "a known size": ({"x": Output(("step", "token"), sizes={"token": 3})}, "the recording says the length of token"),
    "at": ({"x": Output("step", at="block")}, "has at='block'; choose 'states' or 'transitions'"),
    "dtype": ({"x": Output("step", dtype="nonsense")}, "has dtype='nonsense'; expected one of numbers or booleans"),
    "objects": ({"x": Output("step", dtype=object)}, "expected one of numbers or booleans"),
    "combine": ({"x": Output("token")}, r"has no dimension step: say combine= \(max, min, sum, first, last, or"),
    "mean": ({"x": Output("token", combine="mean")}, "has no dimension step: say combine="),
    "combined steps": ({"x": Output("step", combine="max")}, "that is for outputs of a function without"),
    "unsigned": (
        {"x": Output("step"), "y": Output("step", at="transitions", dtype="u1")},
        "those of transitions are -1 at the first step, which unsigned integers cannot be",
    ),
    "step": ({"step": Output("step")}, "the output 'step' cannot be called so"),
    "slash": ({"a/b": Output("step")}, "the output 'a/b' cannot be called so"),
}


@pytest.mark.parametrize(("outputs", "message"), DECLARED.values(), ids=DECLARED)
def test_declarations_are_checked(outputs: Any, message: str) -> None:
    known = dict(ANALYSES)
    with pytest.raises(InputError, match=message) as caught:
        dx.analysis(name="bad", outputs=outputs)(lambda batch: {})
    assert str(caught.value).startswith("analysis 'bad'")
    assert known == ANALYSES


def _no_batch() -> None: ...


def test_invalid_analyses_are_refused() -> None:
    x = {"x": Output("step")}
    with pytest.raises(InputError, match="the analysis 'motion' belongs to deadtok_xr: choose another name"):
        dx.analysis(name="motion", outputs=x)(lambda batch: {})
    with pytest.raises(InputError, match="an analysis cannot be called '<lambda>': say name="):
        dx.analysis(outputs=x)(lambda batch: {})
    with pytest.raises(InputError, match=r"analysis 'bad' has needs=\(\): name one variable or more"):
        dx.analysis(name="bad", needs=(), outputs=x)(lambda batch: {})
    with pytest.raises(InputError, match="analysis 'bad': the function takes no batch"):
        dx.analysis(name="bad", outputs=x)(_no_batch)
    with pytest.raises(InputError, match=r"analysis 'bad': '\*\*rest' cannot be an option"):
        dx.analysis(name="bad", outputs=x)(lambda batch, **rest: {})
    with pytest.raises(InputError, match="analysis 'bad': 'ds=1' cannot be an option"):
        dx.analysis(name="bad", outputs=x)(lambda batch, ds=1: {})
    with pytest.raises(InputError, match="analysis 'bad': the class has no method 'start'; expected start, update"):
        dx.analysis(name="bad", outputs=x)(type("Empty", (), {}))
    with pytest.raises(InputError, match="which is for|that is for outputs of a function"):
        dx.analysis(name="bad", outputs={"x": Output("token", combine="max")})(
            type("Full", (), dict.fromkeys(("start", "update", "merge", "result"), print))
        )


STEP = {"x": Output("step")}
RETURNED: dict[str, tuple[Callable[[Any], Any], Mapping[str, Output], str]] = {
    "nothing": (lambda b: None, STEP, "analysis 'bad' returned None; expected a dict with x"),
    "an array": (lambda b: b.W, STEP, "analysis 'bad' returned a value of type ndarray; expected a dict with x"),
    "too little": (lambda b: {}, STEP, "analysis 'bad' returned no 'x'; expected a dict with x"),
    "too much": (
        lambda b: {"x": b.steps, "y": 1}, STEP,
        "analysis 'bad' returned 'y', which is not among its outputs; expected a dict with x"
    ),
    "shape": (
        lambda b: {"x": b.W.max(2)}, STEP,
        r"analysis 'bad': the output 'x' has the shape \(\d+, 30\); expected \(\d+,\) for the dimensions \(step\)",
    ),
    "scalar": (lambda b: {"x": 1.0}, STEP, r"analysis 'bad': the output 'x' has the shape \(\); expected \(\d+,\)"),
    "updates": (
        lambda b: {"x": b.W.max((1, 2))}, {"x": Output("step", at="transitions"), "y": Output("step")},
        "analysis 'bad' returned no 'y'; expected a dict with x, y",
    ),
    "per token": (
        lambda b: {"x": b.W.max((1, 2))}, {"x": Output("token", combine="max")},
        r"analysis 'bad': the output 'x' has the shape \(\d+,\); expected \(30,\) for the dimensions \(token\)",
    ),
    "dtype": (
        lambda b: {"x": b.W.max((1, 2))}, {"x": Output("step", dtype="i4")},
        "analysis 'bad': the output 'x' has the dtype float32; expected int32, or declare it with dtype=",
    ),
    "text": (lambda b: {"x": ["a"] * len(b.steps)}, STEP, "analysis 'bad': the output 'x' has the dtype <U1"),
    "objects": (lambda b: {"x": np.full(len(b.steps), None)}, STEP, "the output 'x' has the dtype object; expected"),
    "ragged": (lambda b: {"x": [[1], [1, 2]]}, STEP, "'bad': the output 'x' is a value of type list that is no array"),
    "masked": (lambda b: {"x": np.ma.zeros(len(b.steps))}, STEP, "analysis 'bad': the output 'x' is a masked array"),
    "range": (
        lambda b: {"x": np.full(len(b.steps), 300)}, {"x": Output("step", dtype="u1")},
        "analysis 'bad': the output 'x' holds 300, which uint8 cannot",
    ),
    "sum": (
        lambda b: {"x": np.full(30, 200)}, {"x": Output("token", dtype="u1", combine="sum")},
        "analysis 'bad': the output 'x' holds 600, which uint8 cannot",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("function", "outputs", "message"), RETURNED.values(), ids=RETURNED)
def test_returned_values_are_checked(rec: xr.Dataset, function: Any, outputs: Any, message: str) -> None:
    bad = dx.analysis(name="bad", outputs=outputs)(function)
    with pytest.raises(InputError, match=message):
        bad(rec).compute()


def test_a_coordinate_of_the_recording_is_no_output(rec: xr.Dataset) -> None:
    bad = dx.analysis(name="bad", outputs={"dead": Output("token", combine="max")})(lambda b: {})
    with pytest.raises(InputError, match="bad: 'dead' is a coordinate of this recording; give the output another name"):
        bad(rec)


def test_values_returned_by_a_class_are_checked(rec: xr.Dataset) -> None:
    class Wrong:
        def start(self, n_tokens: int, n_dims: int) -> Any:
            return {"n": 0}

        def update(self, state: Any, batch: Any) -> Any:
            return state

        def merge(self, state: Any, later: Any) -> Any:
            return state

        def result(self, state: Any) -> Any:
            return {"m": np.zeros(3)}

    outputs = {"m": Output("token")}
    message = "analysis 'Wrong' returned 'n', which is not among its outputs; expected a dict with nothing"
    with pytest.raises(InputError, match=message):
        dx.analysis(outputs=outputs)(Wrong)(rec).compute()
    Wrong.update = lambda self, state, batch: None  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"analysis 'Wrong': the output 'm' has the shape \(3,\); expected \(30,\)"):
        dx.analysis(outputs=outputs)(Wrong)(rec).compute()
    Wrong.merge = lambda self, state, later: state["nonsense"]  # type: ignore[method-assign]
    with pytest.raises(KeyError, match="nonsense") as caught:
        dx.analysis(outputs=outputs)(Wrong)(rec).compute()
    assert caught.value.__notes__[0].startswith("raised by the analysis 'Wrong' (test_custom.py, line")
    assert caught.value.__notes__[0].endswith("; merge)")


def boom(batch: Any) -> Any:
    if batch.steps[0] >= 128:
        raise KeyError("no such thing")
    return {"x": batch.W.max((1, 2))}


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_an_error_of_the_function_says_where(rec: xr.Dataset, scheduler: str) -> None:
    bad = dx.analysis(name="bad", outputs=STEP)(boom)
    with dask.config.set(scheduler=scheduler), pytest.raises(KeyError, match="no such thing") as caught:
        bad(rec).compute()
    line = boom.__code__.co_firstlineno + 2
    assert f"raised by the analysis 'bad' (test_custom.py, line {line}; steps " in caught.value.__notes__[0]
    text = "".join(traceback.format_exception(caught.value))
    assert 'raise KeyError("no such thing")' in text


# --- results ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_adding_one_touches_no_other_file(rec: xr.Dataset, stored: Path, tmp_path: Path) -> None:
    """All that this test knows of the new analysis is in this function."""

    @dx.analysis(outputs={"novel": Output("step", long_name="a novel quantity", formula="min_nd |W|")})
    def brand_new(batch: Any) -> Any:
        return {"novel": np.abs(batch.W).min((1, 2))}

    expected = np.abs(rec.W.values).min((1, 2))
    np.testing.assert_array_equal(brand_new(rec).novel.compute(), expected)
    assert "brand_new" in dx.analyze(rec).children
    tree = dx.save_results(dx.analyze(rec, analyses=["motion", "brand_new"]), tmp_path / "r.zarr")
    opened = dx.open_results(tmp_path / "r.zarr")
    np.testing.assert_array_equal(opened["brand_new"].novel, expected)
    assert "a novel quantity: " in dx.summary(opened)
    page = dx.report(tree, tmp_path / "r.html").read_text("utf-8")
    assert page.count("a novel quantity") >= 3  # a finding, a definition, a series
    assert 'id="brand_new"' in page  # a picture
    assert "min_nd |W|" in page
    assert tmp_path / "figures" / "brand_new.png" in dx.plot.save_figures(tree, tmp_path / "figures")
    command = [
        "analyze",
        str(stored),
        "-o",
        str(tmp_path / "cli.zarr"),
        "--only",
        "motion,brand_new",
        "--tokens",
        "all",
    ]
    cli.cli([*command, "--tokens", "all", "--figures", str(tmp_path / "drawn"), "-q"], standalone_mode=False)
    np.testing.assert_array_equal(dx.open_results(tmp_path / "cli.zarr")["brand_new"].novel, expected)
    assert (tmp_path / "drawn" / "brand_new.png").is_file()


def test_saved_results_are_those_that_are_computed(rec: xr.Dataset, tmp_path: Path) -> None:
    define_all()
    names = ["motion", "largest", "hops", "mixed", "Mean"]
    tree = dx.analyze(rec, analyses=names)
    saved = dx.save_results(tree, tmp_path / "r.zarr")
    for name in names:
        xr.testing.assert_equal(saved[name].to_dataset().compute(), tree[name].to_dataset().compute())
        for key, x in saved[name].to_dataset().items():
            assert x.attrs == tree[name][key].attrs
            assert x.dtype == tree[name][key].dtype
    assert list(saved["Mean"].data_vars) == ["mean", "so_far"]
    xr.testing.assert_identical(
        ANALYSES["hops"](rec).compute().drop_attrs(), tree["hops"].to_dataset().compute().drop_attrs()
    )


def test_summary_is_custom_or_a_line_for_each_output(rec: xr.Dataset) -> None:
    define_all()
    text = dx.summary(dx.analyze(rec, analyses=["mixed", "hops", "largest"]), details=True)
    largest = float(np.abs(rec.W.values).max())
    assert f" to {largest:.4g} at step " in text
    assert "  positive: true for " in text
    assert "  updates: " in text

    @dx.analysis(
        name="spoken", outputs={"x": Output("step")}, summary=lambda ds: iter([f"{ds.sizes['step']} spoken steps"])
    )
    def spoken(batch: Any) -> Any:
        return {"x": np.full(len(batch.steps), 3.0)}

    text = dx.summary(dx.analyze(rec, analyses=["spoken"]))
    assert f"{STEPS} spoken steps" in text
    ANALYSES["spoken"].summary = None
    assert "  x: 3 everywhere" in dx.summary(dx.analyze(rec, analyses=["spoken"]), details=True)


def test_default_picture_by_dims(rec: xr.Dataset, tmp_path: Path) -> None:
    define_all()
    found = {name: ANALYSES[name](rec).compute() for name in ("largest", "hops", "mixed", "Mean")}
    panels = by_dims(found["mixed"])
    assert [ax.get_title(loc="left") for ax in panels] == ["positive", "ends", "moved", "turned"]
    assert [line.get_label() for line in panels[1].lines[:2]] == ["end 0", "end 1"]
    np.testing.assert_array_equal(panels[0].lines[0].get_ydata(), found["mixed"].positive.mean("token"))
    hop = found["hops"].hop.values.astype(np.float64)
    axes = Figure().subplots(3)
    by_dims(found["hops"], axes=axes)
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), np.median(hop, axis=1))
    np.testing.assert_array_equal(axes[2].lines[0].get_ydata(), np.sort(found["hops"].updates))
    nothing = xr.Dataset({"x": ((), 1.0)})
    with pytest.raises(InputError, match=r"no variable can be drawn \(found: x\)"):
        by_dims(nothing)
    with pytest.raises(InputError, match="axes: found 1, expected 3"):
        by_dims(found["hops"], axes=axes[:1])


def test_default_picture_of_little_data(rec: xr.Dataset, tmp_path: Path) -> None:
    """One step, nothing finite, only scalars, and a name that a picture of the package has."""
    outputs = {"a": Output("step"), "b": Output(("step", "token")), "c": Output(combine="sum")}

    @dx.analysis(outputs=outputs)
    def displacement(batch: Any) -> Any:
        t, n, _ = batch.W.shape
        return {"a": batch.W.max((1, 2)), "b": np.full((t, n), np.nan), "c": batch.W.sum()}

    scalar = dx.analysis(name="scalar", outputs={"c": Output(combine="sum")})(lambda b: {"c": b.W.sum()})
    tree = dx.analyze(rec.isel(step=[3]), analyses=["displacement", "scalar"])
    assert [path.name for path in plot.save_figures(tree, tmp_path)] == ["displacement_variables.png"]
    assert "  b: no finite value" in dx.summary(tree, details=True)
    np.testing.assert_allclose(scalar(rec).c.compute(), rec.W.values.sum(dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize("fresh", [False, True], ids=["the same functions", "defined again"])
def test_interrupted_results_resume(
    rec: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    define_all()
    names = ["motion", "largest", "hops", "Mean"]
    note, left = ResumeJournal.note, 2

    def interrupt(self: ResumeJournal, *args: Any) -> None:
        nonlocal left
        note(self, *args)
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with dask.config.set(scheduler="synchronous"):
        with monkeypatch.context() as patch:
            patch.setattr(ResumeJournal, "note", interrupt)
            with pytest.raises(KeyboardInterrupt):
                dx.save_results(dx.analyze(rec, analyses=names), tmp_path / "r.zarr")
        if fresh:
            define_all()
        noted: list[int] = []
        monkeypatch.setattr(ResumeJournal, "note", lambda self, i, *rest: (noted.append(i), note(self, i, *rest)))
        saved = dx.save_results(dx.analyze(rec, analyses=names), tmp_path / "r.zarr")
    assert len(noted) == 1
    for name in names:
        xr.testing.assert_equal(
            saved[name].to_dataset().compute(), dx.analyze(rec, analyses=names)[name].to_dataset().compute()
        )


def test_changed_function_starts_again(rec: xr.Dataset, tmp_path: Path) -> None:
    log = tmp_path / "blocks"
    log.touch()

    def define(power: int, blocks_done: int) -> None:
        @dx.analysis(outputs={"x": Output("step")})
        def again(batch: Any) -> Any:
            with log.open("a") as file:
                file.write(f"{batch.steps[0] // 128} ")
            if len(set(log.read_text().split())) > blocks_done:
                raise ValueError("not mended yet")
            return {"x": batch.W.max((1, 2)) ** power}

    path = tmp_path / "r.zarr"
    with dask.config.set(scheduler="synchronous"):
        define(1, blocks_done=0)
        with pytest.raises(ValueError, match="not mended yet"):
            dx.save_results(dx.analyze(rec, analyses=["again"]), path)
        log.write_text("")
        define(1, blocks_done=1)  # nothing was done: it starts again without being told
        with pytest.raises(ValueError, match="not mended yet"):
            dx.save_results(dx.analyze(rec, analyses=["again"]), path)
        define(2, blocks_done=STEPS)  # of the old function something is done, unless one says so
        with pytest.raises(DestinationExistsError, match="differs in the analyses"):
            dx.save_results(dx.analyze(rec, analyses=["again"]), path)
        saved = dx.save_results(dx.analyze(rec, analyses=["again"]), path, overwrite=True)
    np.testing.assert_array_equal(saved["again"].x, rec.W.values.max((1, 2)) ** 2)


# --- elsewhere --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_and_a_cluster_give_the_same(rec: xr.Dataset, tmp_path: Path) -> None:
    define_all()
    tree = dx.analyze(rec, analyses=["motion", "largest", "hops", "mixed", "Mean"])
    expected = {name: node.to_dataset().compute() for name, node in tree.children.items()}
    with dask.config.set(scheduler="processes"):
        by_processes = dx.save_results(tree, tmp_path / "processes.zarr")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs="CRITICAL") as made,
        Client(made) as client,
    ):
        by_workers = dx.save_results(tree, tmp_path / "workers.zarr")
        lazy = client.compute(ANALYSES["largest"](rec)).result()
    for name, ds in expected.items():
        xr.testing.assert_equal(by_processes[name].to_dataset().compute(), ds)
        xr.testing.assert_equal(by_workers[name].to_dataset().compute(), ds)
    xr.testing.assert_equal(lazy, expected["largest"])


MAIN = """
import sys
import dask, numpy as np
import deadtok_xr as dx

threshold = 0.01

def helper(x):
    return np.abs(x) > threshold

@dx.analysis(outputs={"n": dx.Output("step", dtype="i8")})
def many(batch):
    return {"n": helper(batch.W).sum((1, 2))}

if __name__ == "__main__":
    rec = dx.open_recording(sys.argv[1])
    with dask.config.set(scheduler="processes", num_workers=1):
        found = many(rec).n.compute()
    assert (found == (np.abs(rec.W.values) > threshold).sum((1, 2))).all()
    print(many(rec).n.data.name)
"""


def _run(*command: str, cwd: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_functions_of_a_script_are_sent_to_processes(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(MAIN)
    (tmp_path / "moved.py").write_text("\n\n" + MAIN)
    names = {_run(name, str(stored), cwd=tmp_path) for name in ("script.py", "moved.py")}
    assert len(names) == 1  # the same code is the same analysis, wherever it stands


@pytest.mark.slow
def test_analyses_of_an_installed_package(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "import numpy as np\nimport deadtok_xr as dx\n"
        "@dx.analysis(outputs={'theirs': dx.Output('step', long_name='a thing of theirs')})\n"
        "def theirs(batch):\n    return {'theirs': np.abs(batch.W).max((1, 2))}\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[deadtok_xr.analyses]\ntheirs = theirs\nbroken = nowhere.at_all\n")
    code = """
        import sys, warnings
        sys.path.insert(0, sys.argv[2])
        import numpy as np, deadtok_xr as dx
        from deadtok_xr.cli import cli
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            cli(["analyze", sys.argv[1], "-o", "r.zarr", "--only", "theirs", "--tokens", "all"], standalone_mode=False)
        rec = dx.open_recording(sys.argv[1])
        assert (dx.open_results("r.zarr")["theirs"].theirs == np.abs(rec.W.values).max((1, 2))).all()
        print([str(w.message) for w in said if w.category is RuntimeWarning])
    """
    text = _run("-c", textwrap.dedent(code), str(stored), str(tmp_path), cwd=tmp_path)
    assert "a thing of theirs: " in text
    assert "the analyses of nowhere.at_all, entry point 'broken', cannot be imported: ModuleNotFoundError" in text


def test_a_file_of_analyses_on_the_command_line(
    stored: Path, rec: xr.Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nimport deadtok_xr as dx\nfrom beside import twice\n"
        "@dx.analysis(outputs={'mine': dx.Output('step', long_name='a thing of mine')})\n"
        "def mine(batch):\n    return {'mine': twice(np.abs(batch.W)).max((1, 2))}\n"
    )

    def run(only: str, out: str, file: str = "mine.py", *more: str) -> int:
        command = ["analyze", str(stored), "-o", str(tmp_path / out), "--import", str(tmp_path / file), "--only", only]
        return status(lambda: cli.cli([*command, "--tokens", "all", "-q", *more], standalone_mode=False))

    for scheduler in ("threads", "processes"):
        assert run("motion,mine", f"{scheduler}.zarr", "mine.py", "--scheduler", scheduler) == 0
        assert "a thing of mine: " in capfd.readouterr().out
        found = dx.open_results(tmp_path / f"{scheduler}.zarr")["mine"].mine
        np.testing.assert_array_equal(found, 2 * np.abs(rec.W.values).max((1, 2)))
    assert run("mine", "json.zarr", "mine.py", "--json") == 0
    assert json.loads(capfd.readouterr().out)["groups"] == ["mine"]
    (tmp_path / "fails.py").write_text((tmp_path / "mine.py").read_text().replace("twice(", "undefined("))
    (tmp_path / "empty.py").write_text("import deadtok_xr\n")
    (tmp_path / "broken.py").write_text("import deadtok_xr\n\nnonsense\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "text.txt").write_text("x")
    said = {
        "fails.py": "analysis 'mine' cannot be computed, NameError: name 'undefined' is not defined; "
        "DEADTOK_TRACEBACK=1 in the environment shows where; raised by the analysis 'mine' (fails.py, line 6; steps ",
        "empty.py": "empty.py defines no analysis; expected a function with the decorator dx.analysis (--import)",
        "broken.py": "broken.py, line 3 cannot be imported: NameError: name 'nonsense' is not defined",
        "syntax.py": "syntax.py cannot be imported: SyntaxError: invalid syntax (syntax.py, line 1)",
        "text.txt": "text.txt is no Python file; expected one that defines analyses (--import)",
        "nowhere.py": "nowhere.py: no such file; expected a Python file that defines analyses (--import)",
    }
    for file, message in said.items():
        assert run("mine", "never.zarr", file) == 2, file
        error = capfd.readouterr().err
        assert message in error, file
        assert error.count("\n") == 1, file
