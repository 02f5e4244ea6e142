"""Coherence against every pair in extended precision; the law of dead gradients against autograd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import ml_dtypes
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr import demo
from deadtok_xr.errors import InputError
from deadtok_xr.kernels.numba import changed_rows
from deadtok_xr.kernels.numba import coherence as kernel
from deadtok_xr.kernels.numba.sparse_directions import SparseDirections
from tests import reference
from tests.conftest import RUN, once
from tests.strategies import dataset


def held(rows: np.ndarray) -> kernel.Vectors:
    return kernel.Vectors(rows[None], 0)


def directions(rows: np.ndarray) -> dict[str, Any]:
    rows = np.ascontiguousarray(rows, np.float64)
    return kernel.directions(held(rows), kernel.Buffers(*rows.shape))


@st.composite
def vectors(draw: st.DrawFn) -> np.ndarray:
    """A cloud about a direction, tight or wide, with zero, opposite, equal and NaN rows among them."""
    n, dims = draw(st.integers(1, 60)), draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([10.0, 1.0, 1e-2, 1e-5]))
    rows = rng.normal(size=dims) + spread * rng.normal(size=(n, dims))
    rows *= 10.0 ** rng.uniform(-6, 6, (n, 1))
    for change in draw(st.lists(st.sampled_from(["zero", "opposite", "equal", "nan", "inf"]), max_size=4)):
        i, j = rng.integers(0, n, 2)
        rows[i] = {"zero": 0.0, "opposite": -rows[j], "equal": rows[j], "nan": np.nan, "inf": np.inf}[change]
    return rows


@settings(max_examples=300)
@given(rows=vectors())
@pytest.mark.filterwarnings("ignore:.*invalid value.*:RuntimeWarning")
def test_moments_equal_those_of_all_pairs(rows: np.ndarray) -> None:
    found, expected = directions(rows), reference.pairs(rows)
    assert found["n_used"] == expected["n_used"]
    assert found["n_valid"] == np.isfinite(rows).all(1).sum()
    np.testing.assert_allclose(found["cosine_mean"], expected["mean"], rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found["cosine_std"], expected["std"], rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("n", [20, 300])  # by pairs, and by products
@pytest.mark.parametrize("std", [1e-2, 1.6e-9, 1e-12])
def test_small_deviations_keep_their_digits(n: int, std: float) -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=24) + np.sqrt(std) * rng.normal(size=(n, 24))
    expected = reference.pairs(rows)
    assert 0.05 * std < expected["std"] < 20 * std
    found = directions(rows)
    np.testing.assert_allclose(found["cosine_std"], expected["std"], rtol=3e-9 if std > 1e-11 else 1e-6)
    np.testing.assert_allclose(1 - found["cosine_mean"], 1 - expected["mean"], atol=1e-15)
    c = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    c = (c @ c.T)[np.triu_indices(n, 1)]
    naive = np.sqrt(max((c**2).mean() - c.mean() ** 2, 0.0))
    assert std > 1e-3 or abs(naive / expected["std"] - 1) > 1e-3  # what this is for


@given(rows=vectors())
@pytest.mark.filterwarnings("ignore:.*invalid value.*:RuntimeWarning")
def test_products_in_float32(rows: np.ndarray) -> None:
    """The way of wide models, here of a few dims, in which the roundings do not average out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "WIDE", 2)
        found = directions(rows)
    expected = directions(rows)
    np.testing.assert_allclose(found["cosine_std"], expected["cosine_std"], rtol=1e-5, atol=1e-14)
    np.testing.assert_allclose(found["cosine_mean"], expected["cosine_mean"], rtol=1e-12)


@pytest.mark.parametrize("n", [265, 400])  # the fewest that are not compared in pairs, and more
@pytest.mark.parametrize("std", [1e-2, 1.6e-9])
def test_wide_vectors(n: int, std: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    rows = rng.normal(size=256) + np.sqrt(std) * rng.normal(size=(n, 256))
    rows = np.concatenate([rows, np.full((1, 256), np.nan), np.zeros((1, 256))])
    expected, found = reference.pairs(rows), directions(rows)
    np.testing.assert_allclose(found["cosine_mean"], expected["mean"], rtol=1e-12)
    np.testing.assert_allclose(found["cosine_std"], expected["std"], rtol=1e-6)
    monkeypatch.setattr(kernel, "CACHED", 256)  # other pieces
    assert directions(rows)["cosine_std"] == pytest.approx(found["cosine_std"], rel=1e-6)


def test_few_vectors() -> None:
    none = directions(np.zeros((3, 4)))
    assert none["n_used"] == 0
    assert np.isnan([none["cosine_mean"], none["cosine_std"]]).all()
    one = directions(np.eye(4)[:1])
    assert one["n_used"] == 1
    assert np.isnan([one["cosine_mean"], one["cosine_std"]]).all()
    two = directions(np.array([[3.0, 4.0], [-30.0, -40.0]]))
    np.testing.assert_allclose([two["cosine_mean"], two["cosine_std"]], [-1, 0], atol=1e-12)
    simplex = directions(np.eye(6) - 1 / 6)  # all cosines are the same, and the moments would cancel
    np.testing.assert_allclose([simplex["cosine_mean"], simplex["cosine_std"]], [-1 / 5, 0], atol=1e-12)


def test_cosines_stay_within_their_bounds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        same = np.repeat(rng.normal(size=(1, 7)), 30, axis=0)
        assert directions(same)["cosine_mean"] <= 1.0
        assert abs(kernel.mean_cosine(held(same), held(-3 * same), kernel.Buffers(30, 7))) <= 1.0


@st.composite
def hops(draw: st.DrawFn) -> np.ndarray:
    """Steps (3, n, d) between which few elements move: anywhere, or the same for all, or nearly."""
    n, dims = draw(st.integers(1, 120)), draw(st.integers(2, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    few = draw(st.integers(1, 3))
    x = np.repeat((rng.choice([-1.0, 1.0], (1, n, dims)) * 2.0 ** rng.integers(-9, -5, (n, dims))), 3, axis=0)
    same = draw(st.sampled_from([0.0, 0.9, 1.0]))
    theirs = rng.integers(0, dims, few)
    for t in (1, 2):
        at = np.where(rng.random((n, 1)) < same, theirs, rng.integers(0, dims, (n, few)))
        step = np.where(rng.random((n, few)) < same, 1.0, rng.choice([-1, 1, 2], (n, few))) * 2.0**-14
        x[t] = x[t - 1]
        np.add.at(x[t], (np.arange(n)[:, None], at), step * (rng.random((n, 1)) < 0.8))
    for value in draw(st.lists(st.sampled_from([np.nan, np.inf, -0.0]), max_size=3)):
        x[rng.integers(1, 3), rng.integers(0, n), rng.integers(0, dims)] = value
    return x


@given(x=hops())
@pytest.mark.filterwarnings("ignore:.*invalid value.*:RuntimeWarning")
def test_sparse_directions_agree_with_dense_ones(x: np.ndarray) -> None:
    changed = changed_rows(x.view(np.uint64))
    moved, buffers = SparseDirections(*x.shape[1:]), kernel.Buffers(*x.shape[1:])
    for t in (0, 1):
        with np.errstate(invalid="ignore"):
            rows = x[t + 1] - x[t]
        found, expected = moved.directions(x, t, changed, buffers), reference.pairs(rows)
        whole = directions(rows)
        if found is None:
            continue
        assert (found["n_used"], found["n_valid"]) == (expected["n_used"], np.isfinite(rows).all(1).sum())
        np.testing.assert_allclose(found["cosine_mean"], expected["mean"], rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(found["cosine_std"], expected["std"], rtol=1e-6, atol=1e-12)
        for name in ("mean", "norm_mean", "direction"):
            np.testing.assert_allclose(found[name], whole[name], rtol=1e-12, atol=1e-18, err_msg=name)


@pytest.mark.parametrize("same", [0.95, 0.999, 1.0])
def test_similar_hops_keep_their_digits(same: float) -> None:
    rng = np.random.default_rng(3)
    x = np.repeat(rng.normal(size=(1, 400, 32)).astype(np.float32), 2, axis=0)
    x[1, :, 4] += np.where(rng.random(400) < same, 1.0, rng.uniform(0.9, 1.1, 400)).astype(np.float32)
    x[1, :, 7] += 1.0
    found = SparseDirections(400, 32).directions(x, 0, changed_rows(x.view(np.uint32)), kernel.Buffers(400, 32))
    assert found is not None
    expected = reference.pairs(x[1].astype(np.float64) - x[0])
    np.testing.assert_allclose(found["cosine_std"], expected["std"], rtol=1e-9, atol=1e-16)


# --- of recordings -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run with everything that coherence asks for."""
    return demo.train(tmp_path_factory.mktemp("logged") / "run.zarr", demo.corpus(), 256, replace(RUN, steps=140))


def check(ds: xr.Dataset) -> xr.Dataset:
    found = dx.coherence(ds).compute()
    expected = reference.coherence({str(k): v.values for k, v in ds.compute().variables.items()})
    assert set(expected) <= set(found.data_vars)
    for name, value in expected.items():
        if found[name].dtype.kind == "i":
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:  # the reference itself is good to 1e-16 of 1: a deviation below 1e-8 has fewer digits there
            np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-13, err_msg=name)
    np.testing.assert_array_equal(found.step, ds.step[1:])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["dead", "live", "all"])
def test_real_recording(logged: Path, tokens: str) -> None:
    found = check(dx.open_recording(logged, tokens=tokens))  # type: ignore[arg-type]
    left_out = found.attrs["left_out"]
    assert left_out["update_cosine_mean"] == "the dataset has no update"
    assert ("separation" in left_out) == (tokens != "all")
    assert ("gradient_p_h_alignment" in left_out) == (tokens == "live")
    assert not set(left_out) & set(found.data_vars)


def test_tight_cluster(atom: Path) -> None:
    check(dx.open_recording(atom, tokens="dead").isel(step=slice(0, 60)))


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32 - 1), steps=st.integers(2, 9), n=st.integers(1, 7), dims=st.integers(1, 5), data=st.data()
)
@pytest.mark.filterwarnings("ignore:.*(invalid|Mean of empty).*:RuntimeWarning")
def test_results_do_not_depend_on_shapes_and_chunks(
    seed: int, steps: int, n: int, dims: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    shape = (steps, n, dims)
    chunks = tuple(data.draw(st.integers(1, size)) for size in shape)
    W = np.cumsum(rng.integers(-1, 2, shape) * 2.0**-8, axis=0) + 1.0
    if data.draw(st.booleans()):
        W[rng.integers(steps), rng.integers(n), rng.integers(dims)] = np.nan
    grad = rng.normal(size=shape).astype(np.float32) * rng.integers(0, 2, (steps, n, 1))
    ds = dataset(W.astype(ml_dtypes.bfloat16), chunks)
    ds["grad"] = ds.W.dims, da.from_array(grad, data.draw(st.sampled_from([chunks, shape])))  # type: ignore[arg-type]
    ds["update"] = ds.W.dims, rng.normal(size=shape)
    ds["h_mean"] = ("step", "dim"), rng.normal(size=(steps, dims)).astype(np.float32)
    ds["h_norm"] = "step", np.arange(float(steps))
    ds["p_h_dead"] = ("step", "dim"), rng.normal(size=(steps, dims)).astype(np.float32)
    ds.coords["dead"] = "token", rng.random(n) < 0.6
    found = check(ds)
    sizes = dx.coherence(ds).displacement_cosine_mean.chunks
    assert len(set(sizes[0][:-1])) <= 1  # as a Zarr array can have them
    assert sizes[0][-1] <= sizes[0][0]
    assert {"update_cosine_mean", "gradient_cosine_std", "h_alignment"} <= set(found.data_vars)


def test_coherence_is_lazy_and_reads_each_chunk_once(
    logged: Path, lazily: Callable[[], AbstractContextManager[None]], decoded: Counter[Any]
) -> None:
    with lazily():
        tree = dx.analyze(logged, analyses=("coherence", "motion", "freeze_predictors", "centroid_origin"))
    dask.compute(*(node.to_dataset() for node in tree.values()))
    assert decoded == once(dx.open_recording(logged).sizes["step"], "W", "grad")


def test_gaps_and_missing_variables(logged: Path) -> None:
    rec = dx.open_recording(logged, tokens="dead")
    with pytest.raises(InputError, match=r"coherence: step 2 is missing"):
        dx.coherence(rec.isel(step=[0, 1, 3]))
    result = dx.coherence(rec.isel(step=[0, 1, 3]), allow_gaps=True).compute()
    np.testing.assert_array_equal(result.step_span, [1, 2])
    with pytest.raises(InputError, match="coherence needs the variable 'W'"):
        dx.coherence(rec.rename(W="V"))
    bare = dx.coherence(rec[["W"]].drop_vars("dead"))
    assert set(bare.data_vars) == {
        "displacement_cosine_mean",
        "displacement_cosine_std",
        "bulk_alignment",
        "n_used",
        "n_invalid",
    }
    assert (
        bare.attrs["left_out"]["gradient_p_h_alignment"] == "the dataset has no grad and no p_h_dead and no dead tokens"
    )
    assert bare.attrs["left_out"]["separation"] == "the dataset does not say which tokens are dead"


# --- laws --------------------------------------------------------------------------------------------------


def test_the_law_of_dead_gradients_holds_under_autograd() -> None:
    """∂L/∂W_i = Σ p_i·h over positions, for each dead row of a real tied model in float64."""
    torch.manual_seed(3)
    run = demo.Run(batch=3, length=10, dims=8, layers=1)
    model = demo.TinyLM(30, run).double()
    ids = torch.randint(20, (3, 11))  # 20..29 never occur
    hidden = model(ids[:, :-1])
    logits = hidden @ model.embedding.weight.T
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    p, h = (x.detach().flatten(0, 1).numpy() for x in (logits.softmax(-1), hidden))
    gradient = model.embedding.weight.grad.numpy()  # type: ignore[union-attr]
    law = p.T @ h / len(h)
    np.testing.assert_allclose(gradient[20:], law[20:], rtol=1e-10, atol=1e-16)
    assert not np.allclose(gradient[:20], law[:20], rtol=0.1)  # live rows have targets and inputs
    logs = demo._hidden_state(hidden, logits, torch.arange(20, 30))
    np.testing.assert_allclose(logs["p_h_dead"], gradient[20:].mean(0), rtol=1e-4, atol=1e-9)  # logged in float32


def test_recorded_run_obeys_the_law_of_dead_gradients(logged: Path) -> None:
    for tokens in ("dead", "all"):
        result = dx.coherence(dx.open_recording(logged, tokens=tokens)).compute()  # type: ignore[arg-type]
        assert result.gradient_p_h_alignment.min() > 0.9999
        assert result.gradient_p_h_deviation.max() < 2e-3  # bfloat16 gradients


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_law_of_the_first_step_holds_for_adam(tmp_path: Path, decay: float) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(20, 6))
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=decay, eps=1e-3)
    with dx.Recorder(weight, optimizer, tmp_path / "run.zarr", variables=("W", "grad")):
        for _ in range(3):
            optimizer.zero_grad()
            (weight * torch.randn(20, 6) * 1e-3).sum().backward()
            optimizer.step()
    rec = dx.open_recording(tmp_path / "run.zarr")
    found = dx.coherence(rec).step1_deviation.values
    assert found[0] < 1e-4  # float32 of values about 1, in units of lr
    assert np.isnan(found[1:]).all()
    other = rec.assign_attrs(hyperparameters={**rec.attrs["hyperparameters"], "eps": 1e-8})
    assert dx.coherence(other).step1_deviation.values[0] > 0.1
    later = dx.coherence(rec.isel(step=slice(1, None)))
    assert "steps 0 and 1" in later.attrs["left_out"]["step1_deviation"]
    sgd = dx.coherence(rec.assign_attrs(optimizer="SGD"))
    assert "needs Adam or AdamW" in sgd.attrs["left_out"]["step1_deviation"]


@pytest.mark.parametrize("name", ["h_mean", "lr"])
def test_a_series_without_steps_is_refused_by_name(name: str) -> None:
    ds = dataset(np.zeros((3, 3, 2), np.float32)).assign({name: ("dim", np.ones(2))})
    ds.attrs.update(optimizer="AdamW", hyperparameters={"lr": 0.1, "eps": 1e-8})
    ds["grad"] = ds.W.dims, np.ones((3, 3, 2), np.float32)
    with pytest.raises(InputError, match=rf"'{name}' has the dimensions \('dim',\); expected .* per step"):
        dx.coherence(ds)
