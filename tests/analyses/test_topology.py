"""The graph of neighbours, by every rule, along many steps, against a dense reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr import kernels
from deadtok_xr.analyses.topology import VERDICTS
from deadtok_xr.analyses.topology import verdict as verdict_of
from deadtok_xr.dask_arrays import with_all_functions
from deadtok_xr.errors import InputError, OffGridError
from deadtok_xr.kernels.numba import changed_rows
from deadtok_xr.kernels.numba import topology as kernel
from tests import reference, reference_topology
from tests.reference import assert_agree

SPACINGS = ["centroid", "pair", "element", "ordinal"]


def dataset(W: np.ndarray, chunks: Any = None, first: int = 0) -> xr.Dataset:
    data = W if chunks is None else with_all_functions(da.from_array(W, chunks))
    return xr.Dataset(
        {"W": (("step", "token", "dim"), data, {"precision": "bfloat16"})}, {"step": np.arange(len(W)) + first}
    )


def check(ds: xr.Dataset, **options: Any) -> xr.Dataset:
    """Compare every figure of every step with the dense graph."""
    W = np.asarray(ds.W.values)
    found = dx.topology(ds, **options).compute()
    held = options.pop("held", None)
    options["linked"] = options.pop("coincident", "separate") == "linked"
    mean_ulp = reference.ulp(reference.round_to_bfloat16(reference.kinematics(W)["centroid"])).mean(1)
    assert_agree(found.mean_ulp, mean_ulp)
    for t in range(len(W)):
        at, threshold = (0, mean_ulp[t]) if held == "positions" else (t, mean_ulp[0] if held else mean_ulp[t])
        if np.isnan(threshold) or not np.isfinite(W[at].astype(np.float64)).all():
            assert np.isnan(found.density[t])
            assert found.n_components[t] == found.degree_tokens[t].max() == found.state[t] == -1
            continue
        expected = reference_topology.figures(reference_topology.adjacency(W[at], threshold, **options))
        for name, value in expected.items():
            assert_agree(found[name][t], np.asarray(value), f"{name} at {t}, {options}, {held}")
    return found


@st.composite
def walks(draw: st.DrawFn) -> xr.Dataset:
    """Clouds that drift as one, while some tokens hop, rest, join a place or leave it; at exponents' edges too."""
    steps, n, dims = draw(st.integers(2, 40)), draw(st.integers(1, 30)), draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    base = draw(st.sampled_from([0x3F80, 0x3C00, 0x0000, 0x0080, 0x3B7E]))
    spread, share = draw(st.sampled_from([0, 1, 3, 40])), draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))
    bits = np.empty((steps, n, dims), np.int64)
    bits[0] = base + rng.integers(-spread, spread + 1, (n, dims))
    for t in range(1, steps):
        bulk = rng.integers(-2, 3, (1, dims)) * draw(st.sampled_from([0, 1, 5])) if rng.random() < 0.5 else 0
        own = rng.integers(-1, 2, (n, dims)) * (rng.random((n, dims)) < share)
        bits[t] = bits[t - 1] + bulk + own
        if rng.random() < 0.1:
            bits[t, rng.integers(n)] = bits[t, rng.integers(n)]
    signed = np.where(bits < 0, 0x8000 - bits, bits).astype(np.uint16)
    signed[(bits == 0) & (rng.random(bits.shape) < 0.5)] = 0x8000  # -0 is where 0 is
    if draw(st.integers(0, 5)) == 0:
        signed[rng.integers(steps), rng.integers(n), rng.integers(dims)] = draw(st.sampled_from([0x7F80, 0x7FC0]))
    chunks = (draw(st.integers(1, steps)), draw(st.integers(1, n)), dims)
    return dataset(signed.view(ml_dtypes.bfloat16), draw(st.sampled_from([None, chunks])))


@pytest.mark.slow
@given(ds=walks(), k=st.sampled_from([0.5, 1.0, 2.0, 7.3]), spacing=st.sampled_from(SPACINGS), linked=st.booleans())
def test_every_adjacency_rule_along_random_walks(ds: xr.Dataset, k: float, spacing: str, linked: bool) -> None:
    check(ds, k=k, spacing=spacing, coincident="linked" if linked else "separate")


@pytest.mark.slow
@settings(max_examples=30)
@given(ds=walks(), held=st.sampled_from(["threshold", "positions"]), k=st.sampled_from([1.0, 3.0]))
def test_counterfactuals_along_random_walks(ds: xr.Dataset, held: str, k: float) -> None:
    check(ds, held=held, k=k)


@pytest.mark.parametrize("k", [1.0, 4.0, 64.0])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_topology_of_real_recordings(recording: Path, atom: Path, spacing: str, k: float) -> None:
    for path in (recording, atom):
        check(dx.open_recording(path, tokens="dead").isel(step=slice(0, None, 3)).load(), spacing=spacing, k=k)


@pytest.mark.parametrize("held", ["threshold", "positions"])
def test_counterfactuals_of_a_real_recording(atom: Path, held: str) -> None:
    found = check(dx.open_recording(atom, tokens="dead"), held=held)
    assert found.attrs["held"] == held


def test_most_steps_need_only_the_open_pairs(atom: Path) -> None:
    """While motion has not used up the skin, all pairs are not measured again: the list stays in use."""
    words = dx.open_recording(atom, tokens="dead").W.values[60:].view(np.uint32)
    changed = changed_rows(words)
    rule = kernel.rule(kernel.CENTROID, 1.0, False, kernels.lattice("bfloat16"))
    verlet, held = kernel.empty_verlet_list(*words.shape[1:]), 0
    for t in range(len(words)):
        out = {
            name: np.empty((2, n), np.int64) for name, n in (("figures", 6), ("degrees", 9), ("sizes", 9), ("label", 0))
        }
        threshold = np.full(2, 2.0**-11)
        at = slice(max(t - 1, 0), max(t + 1, 2))
        before = verlet.drift
        verlet = kernel.topology(words[at], changed[at][:1], threshold, rule, verlet, out, first=min(t, 1))
        held += verlet.drift is before or np.shares_memory(verlet.drift, before)
    assert held > len(words) / 2


@pytest.mark.parametrize("chunk", [1, 2, 7, 151])
def test_results_do_not_depend_on_chunks(atom: Path, chunk: int) -> None:
    rec = dx.open_recording(atom, tokens="dead")
    whole = dx.topology(rec, k=2.0).compute()
    xr.testing.assert_equal(dx.topology(rec.chunk(step=chunk), k=2.0).compute(), whole)


def test_powers_of_two_make_tokens_adjacent() -> None:
    """1 and 1 - 2⁻⁷ are two steps apart, and one ULP of the 1."""
    W = np.array([[[1.0], [1 - 2.0**-7]]], np.float32)
    assert dx.topology(dataset(W), spacing="element").density.values == 1
    assert dx.topology(dataset(W), spacing="ordinal").density.values == 0
    assert dx.topology(dataset(W), spacing="ordinal", k=2).density.values == 1


def states(*values: int) -> xr.Dataset:
    found = verdict_of(da.from_array(np.array(values, np.int8)), np.arange(len(values)) * 10)
    return xr.Dataset(found).compute()


@pytest.mark.parametrize(
    ("values", "verdict", "evaporation", "crystallization"),
    [
        ((2, 2, 2), "stays_crystal", -1, -1),
        ((0, 1, 0), "stays_gas", -1, -1),
        ((1, 1, 1), "neither", -1, -1),
        ((2, 1, 0), "evaporates", 20, -1),
        ((-1, 0, 1, 2), "crystallizes", -1, 30),
        ((2, 0, 1, 0, 2, 2), "evaporates_then_crystallizes", 10, 40),
        ((0, 2, 1, 2, -1, 0), "crystallizes_then_evaporates", 50, 10),
        ((2, 0, 2, 0), "alternates", 10, 20),
        ((-1, -1), "unknown", -1, -1),
    ],
)
def test_verdicts_of_series_of_states(
    values: tuple[int, ...], verdict: str, evaporation: int, crystallization: int
) -> None:
    found = states(*values)
    assert VERDICTS[int(found.verdict)] == verdict
    assert found.verdict.attrs["flag_meanings"].split()[int(found.verdict)] == verdict
    assert int(found.evaporation_step) == evaporation
    assert int(found.crystallization_step) == crystallization


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0: the threshold is a positive number"),
        ({"k": float("nan")}, "k=nan: the threshold"),
        ({"spacing": "mean"}, "spacing='mean': choose one of centroid, pair, element, ordinal"),
        ({"held": "both"}, "held='both': choose one of"),
        ({"held": "threshold", "spacing": "pair"}, "topology: held=.threshold. needs one threshold"),
        ({"spacing": "ordinal", "precision": "float32"}, "is for 16-bit formats, not float32"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dx.topology(dataset(np.ones((2, 2, 2), np.float32)), **options)


@pytest.mark.parametrize("spacing", SPACINGS[1:])
def test_values_off_the_grid_are_refused(spacing: str) -> None:
    with pytest.raises(OffGridError, match="1 rows of a block hold values that are not on the grid"):
        dx.topology(dataset(np.array([[[1.0], [1.001]]], np.float32)), spacing=spacing).compute()


def test_float16_has_its_own_ordinals() -> None:
    values = np.arange(0, 0x7C00, 37, dtype=np.uint16)
    W = np.stack([values, values + 1]).view(np.float16).T[None, :, :, None].astype(np.float32)[..., 0]
    for i in range(0, W.shape[1], 50):
        ds = xr.Dataset({"W": (("step", "token", "dim"), W[:, i].reshape(1, 2, 1), {"precision": "float16"})},
                        {"step": [0]})  # fmt: skip
        assert dx.topology(ds, spacing="ordinal").density.values == 1


@pytest.mark.parametrize("options", [{}, {"held": "threshold"}, {"held": "positions"}, {"spacing": "element"}])
def test_topology_is_lazy(recording: Path, lazily: Any, options: dict[str, Any]) -> None:
    with lazily():
        found = dx.topology(dx.open_recording(recording, tokens="dead"), **options)
    assert all(v.chunks is not None for v in found.data_vars.values())


@pytest.mark.slow
@settings(max_examples=40)
@given(ds=walks())
def test_connectivity_is_the_longest_edge_of_the_minimum_spanning_tree(ds: xr.Dataset) -> None:
    from scipy.sparse.csgraph import connected_components

    found = dx.connectivity(ds, steps=ds.step.values.tolist()).compute()
    W = np.asarray(ds.W.values).astype(np.float64)
    for t in range(len(W)):
        if not np.isfinite(W[t]).all():
            assert np.isnan(found.connectivity_threshold[t])
            assert found.n_invalid[t] > 0
            continue
        distance = np.abs(W[t][:, None] - W[t][None]).max(-1)
        assert found.n_invalid[t] == 0
        for x in [0.0, *np.unique(distance)[:6], float(found.connectivity_threshold[t])]:
            count, _ = connected_components(distance <= x, directed=False)
            assert (found.merge_threshold[t].values <= x).sum() == W.shape[1] - count, (t, x)
        smaller = distance[distance < float(found.connectivity_threshold[t])]
        if smaller.size:
            assert connected_components(distance <= smaller.max(), directed=False)[0] > 1


def test_spanning_tree_of_many_rows_in_clouds_of_different_sizes() -> None:
    rng = np.random.default_rng(7)
    size = np.where(np.arange(700) < 350, 1.0, np.where(np.arange(700) < 690, 2.0**-9, 2.0**9))
    W = (rng.normal(size=(700, 150)) * size[:, None]).astype(np.float32).astype(ml_dtypes.bfloat16)
    W[:5] = W[5]
    found = dx.connectivity(xr.Dataset({"W": (("step", "token", "dim"), W[None])}, {"step": [0]})).compute()
    values = W.astype(np.float64)
    nearest = np.abs(values - values[0]).max(axis=1)
    nearest[0] = np.inf
    edges, joined = [], np.zeros(700, bool)
    for _ in range(699):  # Prim
        joined |= ~np.isfinite(nearest)
        edges.append(nearest.min())
        new = int(nearest.argmin())
        nearest = np.minimum(nearest, np.abs(values - values[new]).max(axis=1))
        nearest[new], nearest[joined] = np.inf, np.inf
    np.testing.assert_array_equal(found.merge_threshold[0], np.sort(edges))


def test_connectivity_agrees_with_topology(atom: Path) -> None:
    rec = dx.open_recording(atom, tokens="dead")
    tree = dx.connectivity(rec, steps=[0, 60, 150]).compute()
    for step in tree.step.values:
        k = float(tree.connectivity_k.sel(step=step))
        for factor, one in ((1 + 1e-9, True), (1 - 1e-9, False)):
            graph = dx.topology(rec.sel(step=[step]), k=k * factor, coincident="linked")
            assert (graph.n_components.values == 1) == one


def test_connectivity_of_missing_steps_is_refused(recording: Path, lazily: Any) -> None:
    rec = dx.open_recording(recording)
    with lazily():
        assert dx.connectivity(rec).step.values.tolist() == [0, 50, 100, 150, 200, 250, 300]
    with pytest.raises(InputError, match="step 301 is not in this dataset; choose from its 301 steps, 0 to 300"):
        dx.connectivity(rec, steps=[0, 301])
    with pytest.raises(InputError, match="no step is named"):
        dx.connectivity(rec, steps=[])


def test_connectivity_of_one_token() -> None:
    found = dx.connectivity(dataset(np.ones((2, 1, 3), np.float32))).compute()
    assert found.connectivity_threshold.values.tolist() == [0.0, 0.0]
    assert found.merge_threshold.shape == (2, 0)


@pytest.mark.slow
@settings(max_examples=40)
@given(ds=walks(), linked=st.booleans())
def test_components_along_random_walks(ds: xr.Dataset, linked: bool) -> None:
    from scipy.sparse.csgraph import connected_components

    ds = ds.assign_coords(token=np.arange(ds.sizes["token"]) * 7 + 3)
    coincident = "linked" if linked else "separate"
    found = dx.components(ds, coincident=coincident).compute()
    graph = dx.topology(ds, coincident=coincident).compute()
    W, ids = np.asarray(ds.W.values), ds.token.values
    for t in range(len(W)):
        if graph.n_invalid[t]:
            assert (found.component[t] == -1).all()
            continue
        adjacent = reference_topology.adjacency(W[t], float(graph.mean_ulp[t]), linked=linked)
        labels = connected_components(adjacent, directed=False)[1]
        expected = [ids[labels == mine].min() for mine in labels]
        np.testing.assert_array_equal(found.component[t], expected)
    events = dx.component_events(found)
    for t in range(1, len(W)):
        now = events.kind.values[events.step.values == ds.step.values[t]]
        if graph.n_invalid[t] or graph.n_invalid[t - 1]:
            assert found.n_merges[t] == found.n_splits[t] == -1
            assert not len(now)
            continue
        assert found.n_merges[t] == (now == 0).sum()
        assert found.n_splits[t] == (now == 1).sum()
        assert graph.n_components[t] - graph.n_components[t - 1] == found.n_splits[t] - found.n_merges[t]


def test_component_events_name_the_parts_that_merge_and_split() -> None:
    cell = 2.0**-7
    rows = [[0, 1, 9, 10, 11], [0, 1, 2, 3, 4], [0, 7, 8, 9, 4]]
    W = 1 + np.array(rows, np.float32)[..., None] * cell
    found = dx.components(dataset(W).assign_coords(token=[5, 6, 7, 8, 9])).compute()
    assert found.component.values.tolist() == [[5, 5, 7, 7, 7], [5] * 5, [5, 6, 6, 6, 9]]
    assert found.n_merges.values.tolist() == [0, 1, 0]
    assert found.n_splits.values.tolist() == [0, 0, 2]
    events = dx.component_events(found)
    table = [tuple(int(events[name][i]) for name in ("step", "kind", "part", "whole", "n_tokens")) for i in range(3)]
    assert table == [(1, 0, 5, 5, 2), (2, 1, 5, 5, 1), (2, 1, 9, 5, 1)]


def test_components_are_lazy(recording: Path, lazily: Any) -> None:
    with lazily():
        found = dx.components(dx.open_recording(recording, tokens="dead"))
    assert all(v.chunks is not None for v in found.data_vars.values())
    with pytest.raises(InputError, match="pass what components returned"):
        dx.component_events(xr.Dataset())


@pytest.mark.parametrize("chunk", [1, 7])
def test_components_do_not_depend_on_chunks(atom: Path, chunk: int) -> None:
    rec = dx.open_recording(atom, tokens="dead")
    xr.testing.assert_equal(dx.components(rec.chunk(step=chunk)).compute(), dx.components(rec).compute())
