"""`dx.undertrained` against plain numpy; the references that it finds by itself; what it says; how it reads."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import dask.array as da
import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr.analyses.common.token_blocks import HeldTokens
from deadtok_xr.analyses.undertrained import findings, pc1
from deadtok_xr.dask_arrays import with_all_functions
from deadtok_xr.errors import InputError
from tests.strategies import dataset

DISTANCES = ("cosine_distance", "cosine_distance_centered", "cosine_distance_without_pc1", "l2_distance")


def cosine(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.array([1 - float(row @ u) / max(float(np.linalg.norm(row) * np.linalg.norm(u)), 1e-6) for row in x])


def expected(W: np.ndarray, few: list[int]) -> tuple[dict[str, np.ndarray], float]:
    """The distances to the mean of a few rows by their definitions, and the gap of the first principal component."""
    full = W.astype(np.float64)
    valid = np.isfinite(full).all(axis=1)
    x = full[valid]
    u = full[[r for r in few if valid[r]]].mean(axis=0)
    m = x.mean(axis=0)
    found = {
        "cosine_distance": cosine(x, u),
        "cosine_distance_centered": cosine(x - m, u - m),
        "l2_distance": np.linalg.norm(x - u, axis=1),
    }
    gap = np.nan
    if (x != x[0]).any():
        _, sizes, axes = np.linalg.svd(x - m)
        v = axes[0]
        gap = 1 - (sizes[1] / sizes[0]) ** 2 if len(sizes) > 1 else 1.0
        found["cosine_distance_without_pc1"] = cosine(x - np.outer(x @ v, v), u - (u @ v) * v)
    full_size = {name: np.full(len(full), np.nan) for name in DISTANCES}
    for name, values in found.items():
        full_size[name][valid] = values
    return full_size, gap


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """Any small matrix, also one token, fewer tokens than dims, equal, zero and NaN rows; and a few valid rows."""
    n, d = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    W = rng.normal(draw(st.sampled_from([0.0, 1.0])), 1, (n, d)) * draw(st.sampled_from([1e-3, 1.0, 1e3]))
    W[rng.random(n) < draw(st.sampled_from([0.0, 0.5]))] = 0
    if draw(st.booleans()):
        W[rng.random(n) < 0.5] = W[0]
    if draw(st.integers(0, 4)) == 0:
        W[:] = W[0]
    W[1:][rng.random(n - 1) < draw(st.sampled_from([0.0, 0.3]))] = draw(st.sampled_from([np.nan, np.inf]))
    few = [i for i in range(n) if np.isfinite(W[i]).all() and rng.random() < 0.4] or [0]
    return W.astype(draw(st.sampled_from([ml_dtypes.bfloat16, np.float16, np.float32]))), few


@pytest.mark.slow
@given(matrices(), st.integers(1, 12), st.sampled_from([0.02, 0.3, 1.0]))
def test_indicators_are_their_definitions(drawn: tuple[np.ndarray, list[int]], block: int, share: float) -> None:
    W, few = drawn
    ds = dataset(W[None], (1, block, W.shape[1]))
    found = dx.undertrained(ds, reference=ds.token.values[few].tolist(), share=share).compute()
    values, gap = expected(W, few)
    for name in DISTANCES:
        if name != "cosine_distance_without_pc1" or not gap < 1e-3:  # else the axis is not determined
            np.testing.assert_allclose(found[name], values[name], rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found.pc1_gap, gap, atol=1e-6)
    x = W.astype(np.float64)
    valid = np.isfinite(x).all(axis=1)
    np.testing.assert_allclose(found.norm, np.where(valid, np.sqrt((x**2).sum(1)), np.nan), rtol=1e-12)
    np.testing.assert_array_equal(found.all_zero, (x == 0).all(axis=1))
    np.testing.assert_array_equal(found.below_eps, valid & (x.max(axis=1) <= 1e-16))
    indicator = values["l2_distance" if not x[few].mean(axis=0).any() else "cosine_distance"]
    limit = np.quantile(indicator[valid], share)
    clear = ~(np.abs(indicator - limit) < 1e-9 * (1 + abs(limit)))
    np.testing.assert_array_equal(found.candidate.values[clear], (valid & (indicator <= limit))[clear])
    assert found.candidate.sum() >= 1
    rank = found["rank"].values
    assert sorted(rank[valid]) == list(range(1, valid.sum() + 1))
    assert (rank[~valid] == -1).all()
    assert (np.diff(indicator[valid][np.argsort(rank[valid])]) > -1e-9 * (1 + np.abs(indicator[valid]).max())).all()


def wide(kind: str) -> np.ndarray:
    """Matrices of more dims than those whose covariance is computed at once."""
    rng = np.random.default_rng(1)
    W = rng.normal(size=(700, 520)) + rng.normal(size=(700, 3)) @ rng.normal(size=(3, 520)) * [[3.0]]
    if kind == "fewer tokens than dims, some not finite":
        W = W[:40]
        W[[0, 7], 5] = np.nan, np.inf
    if kind == "no gap":
        W = np.linalg.qr(W)[0]
    if kind == "equal rows":
        W[:] = W[0]
    return W.astype(np.float32)


@pytest.mark.parametrize(
    "kind", ["three strong axes", "fewer tokens than dims, some not finite", "no gap", "equal rows"]
)
def test_first_principal_axis_of_many_dims(kind: str) -> None:
    W = wide(kind)
    found = dx.undertrained(dataset(W[None], (1, 97, 520)), reference=[3 * i for i in range(2, 5)]).compute()
    values, gap = expected(W, [2, 3, 4])
    np.testing.assert_allclose(found.pc1_gap, gap, atol=1e-7)
    if not gap < 1e-6:  # else the axis is not determined
        name = "cosine_distance_without_pc1"
        np.testing.assert_allclose(found[name], values[name], rtol=1e-6, atol=1e-8)
    said = " ".join(findings.sentences(found))
    assert ("fewer tokens (40) than dims (520)" in said) == ("2 tokens have NaN or infinity" in said) == (len(W) == 40)
    products = pc1._by_products(HeldTokens(W))
    assert (products is not None) == (kind not in ("no gap", "equal rows"))


def test_product_with_the_covariance_of_many_dims() -> None:
    rng = np.random.default_rng(2)
    W, vectors = rng.normal(1, 1, (11, 2500)).astype(np.float32), rng.normal(size=(2500, 8))
    W[[0, 6], 2400] = np.inf, np.nan
    x = np.delete(W, [0, 6], axis=0).astype(np.float64)
    x -= x.mean(axis=0)
    np.testing.assert_allclose(pc1._product(HeldTokens(W), vectors), x.T @ (x @ vectors) / 9, atol=1e-10)


def model(n: int = 400, d: int = 16) -> np.ndarray:
    """Trained tokens, 8 that were hardly trained (100 to 107) near 12 equal ones (380 to 391), and two zero rows."""
    rng = np.random.default_rng(0)
    W = rng.normal(0.02, 0.02, (n, d))
    W[380:392] = W[380]
    W[100:108] = W[380] + rng.normal(size=(8, d)) * 1e-4
    W[[7, 8]] = 0
    return W.astype(ml_dtypes.bfloat16)


class TestTheReference:
    def test_the_largest_black_hole(self) -> None:
        found = dx.undertrained(dataset(model()[None], (1, 64, 16)), share=0.05).compute()
        assert found.reference.values.tolist() == ["black_hole", "zeros"]
        assert found.reference_size.values.tolist() == [12, 2]
        assert found.reference_used.values.tolist() == [True, False]
        assert found.token[found.is_reference].values.tolist() == [3 * i for i in range(380, 392)]
        chosen = np.flatnonzero(found.candidate)
        assert set(chosen) == {*range(380, 392), *range(100, 108)}
        assert found["rank"].values[380:392].tolist() == list(range(1, 13))
        assert found.reference_agreement.values[0] == 1

    def test_equal_rows_are_equal_in_all_bytes(self) -> None:
        W = np.random.default_rng(0).normal(size=(60, 512)).astype(ml_dtypes.bfloat16)
        W[10:35], W[40:52] = W[10], W[40]
        W[20:35, 5] += 1  # in no sample of bytes
        W[32:35, 6] += 1
        found = dx.undertrained(dataset(W[None], (1, 7, 512))).compute()
        assert np.flatnonzero(found.is_reference).tolist() == [*range(20, 32)]

    def test_dead_tokens_and_rows_without_text(self) -> None:
        ds = dataset(model()[None])
        dead, text = np.zeros(400, bool), np.full(400, "word", object)
        dead[100:104], text[380:] = True, ""
        ds = ds.assign_coords(dead=("token", dead), token_text=("token", text))
        found = dx.undertrained(ds, share=0.05).compute()
        assert found.reference.values.tolist() == ["black_hole", "beyond_tokenizer", "dead", "zeros"]
        assert found.reference_size.values.tolist() == [12, 20, 4, 2]
        assert not found.candidate[380:].any()  # the tokenizer lacks them
        assert found.candidate[100:108].all()
        assert (found.reference_agreement[[0, 2]] == 1).all()
        words = " ".join(findings.sentences(found))
        assert "Of the 4 tokens known to be dead, 4 are candidates" in words
        assert "Measured from the tokens known to be dead instead (4), 100%" in words
        alone = dx.undertrained(ds, reference="dead").compute()
        np.testing.assert_allclose(alone.l2_distance, expected(model(), [100, 101, 102, 103])[0]["l2_distance"])

    def test_zeros_have_no_direction(self) -> None:
        W = model()[:200]
        found = dx.undertrained(dataset(W[None]), share=0.01).compute()
        assert findings.indicator(found) == "l2_distance"
        assert (found.cosine_distance == 1).all()
        np.testing.assert_array_equal(np.flatnonzero(found.candidate), [7, 8])

    def test_norms_of_untied_weights(self) -> None:
        W, E = model(), np.random.default_rng(1).normal(size=(400, 16)).astype(np.float32)
        E[50:58] *= 1e-3
        E[60] = -np.abs(E[60])
        ds = dataset(W[None]).assign(E=(("step", "token", "dim"), E[None]))
        found = dx.undertrained(ds).compute()
        assert findings.indicator(found) == "norm"
        np.testing.assert_allclose(found.norm, np.linalg.norm(E.astype(np.float64), axis=1))
        assert set(np.flatnonzero(found.candidate)) == set(range(50, 58))
        limit = np.quantile(np.linalg.norm(E.astype(np.float64), axis=1), 0.02)
        np.testing.assert_array_equal(found.candidate, found.norm <= limit)
        values, _ = expected(W, [*range(380, 392)])
        for name in DISTANCES:
            np.testing.assert_allclose(found[name], values[name], rtol=1e-6, atol=1e-6, err_msg=name)
        assert found.below_eps.values[60]
        assert not found.all_zero.any()
        ds = ds.assign(W=ds.W.copy(data=E[None]))  # no two rows are equal
        found = dx.undertrained(ds).compute()
        assert np.isnan(found.cosine_distance).all()
        assert found.candidate.sum() == 8
        assert "No reference was found" in " ".join(findings.sentences(found))

    def test_tied_weights_need_one(self) -> None:
        W = np.random.default_rng(0).normal(size=(1, 9, 4)).astype(np.float32)
        with pytest.raises(InputError, match=r"no two rows are equal.*are tied.*Name such tokens with reference="):
            dx.undertrained(dataset(W)).compute()
        with pytest.raises(InputError, match="each of the 9 tokens has NaN or infinity"):
            dx.undertrained(dataset(np.full_like(W, np.nan))).compute()


def test_blocks_are_read_twice_and_not_kept(lazily: Any) -> None:
    """In a graph that holds the blocks, all of them stay in memory from the first reading to the second."""
    read, alive = [0] * 20, [0, 0]

    def block(block_id: Any = None) -> np.ndarray:
        read[block_id[1]] += 1
        values = np.random.default_rng(block_id[1]).normal(size=(1, 4, 3)).astype(np.float32)
        alive[0] += 1
        alive[1] = max(alive)
        weakref.finalize(values, lambda: alive.__setitem__(0, alive[0] - 1))
        return values

    x = da.map_blocks(block, chunks=((1,), (4,) * 20, (3,)), dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    coords = {"step": [0], "token": np.arange(80)}
    ds = xr.Dataset({"W": (("step", "token", "dim"), with_all_functions(x), {"precision": "float32"})}, coords)
    for call in (
        lambda: dx.undertrained(ds, reference=[1, 2]).drop_vars(["cosine_distance_without_pc1", "pc1_gap"]),
        lambda: dx.checkpoint(ds),
    ):
        with lazily():
            found = call()
        assert sum(read) == 0
        found.compute(scheduler="threads", num_workers=2)
        assert read == [2] * 20
        assert alive[1] <= 4
        read[:], alive[:] = [0] * 20, [0, 0]


def test_a_step_of_a_recording(recording: Path) -> None:
    rec = dx.open_recording(recording)
    found = dx.undertrained(rec, reference="dead").compute()
    dead = np.flatnonzero(rec.dead)
    values, _ = expected(rec.W[-1].values, dead.tolist())
    np.testing.assert_allclose(found.cosine_distance, values["cosine_distance"], atol=1e-6)
    assert found.attrs["step"] == int(rec.step[-1])
    first = dx.undertrained(recording, step=0, reference=rec.token.values[dead].tolist())
    assert first.attrs["step"] == 0
    values, _ = expected(rec.W[0].values, dead.tolist())
    np.testing.assert_allclose(first.l2_distance, values["l2_distance"], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"reference": []}, "reference= names no token"),
        ({"reference": [1]}, "names token 1, which is not in this dataset of 400 tokens, 0 to 1197"),
        ({"reference": "unused"}, "reference='unused': say 'auto', 'black_hole'"),
        ({"reference": "dead"}, "reference='dead' finds no token; it needs to know which tokens are dead"),
        ({"reference": "beyond_tokenizer"}, "it needs the tokenizer of the model: give tokenizer=FILE"),
        ({"share": 0}, "share=0; expected a share"),
        ({"eps": -1}, "eps=-1; expected 0 or more"),
        ({"step": 5}, "step 5 is not in this dataset"),
        ({"variable": "V"}, "undertrained needs the variable 'V'"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        dx.undertrained(dataset(model()[None]), **options)
