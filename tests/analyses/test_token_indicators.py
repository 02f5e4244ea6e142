"""`dx.token_indicators` against `undertrained` step by step, and its relations against their definitions."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import deadtok_xr as dx
from deadtok_xr.analyses.common.rank_correlation import concordance, spearman
from deadtok_xr.analyses.registry import ANALYSES
from deadtok_xr.errors import InputError
from tests.strategies import dataset

INDICATORS = (
    "norm", "cosine_distance", "cosine_distance_centered", "cosine_distance_without_pc1", "l2_distance",
)  # fmt: skip


def training(n: int = 120, d: int = 8) -> xr.Dataset:
    """Six states 100 steps apart: 20 dead tokens draw together, 5 of them are equal from step 300 on."""
    rng = np.random.default_rng(5)
    W = rng.normal(0.1, 1, (6, n, d))
    apart = rng.normal(size=(20, d))
    for t in range(6):
        W[t, :20] = 0.5 + apart * 0.3**t
    W[3:, :5] = W[3, 0]
    ds = dataset(W.astype(ml_dtypes.bfloat16), (2, 50, d), precision="bfloat16").assign_coords(step=np.arange(6) * 100)
    count = np.maximum(0, np.arange(n) - 19)
    return ds.assign_coords(dead=("token", count == 0), count=("token", count))


def test_each_step_is_what_undertrained_finds() -> None:
    ds = training()
    found = dx.token_indicators(ds, share=0.1).compute()
    for t, step in enumerate(ds.step.values):
        for name, reference in (("dead", "dead"), ("found", "black_hole")):
            if name == "found" and step < 300:
                assert np.isnan(found.value.sel(reference="found", indicator="l2_distance")[t]).all()
                continue
            one = dx.undertrained(ds, step=step, reference=reference, share=0.1).compute()
            here = found.sel(reference=name).isel(checkpoint=t)
            for indicator in INDICATORS:
                np.testing.assert_allclose(here.value.sel(indicator=indicator), one[indicator], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(here.candidate, one.candidate)
            hits = (one.candidate & ds.dead).sum()
            np.testing.assert_allclose(here.precision, hits / one.candidate.sum())
            np.testing.assert_allclose(here.recall, hits / 20)
    assert found.reference_kind.values.tolist() == [0, 0, 0, 2, 2, 2]
    assert found.reference_size.values.tolist() == [[0, 0, 0, 5, 5, 5], [20] * 6]
    assert found.told_from.sel(reference="found", indicator="l2_distance") == 300
    assert 0 <= found.told_from.sel(reference="dead", indicator="l2_distance") <= 300
    assert found.candidates_kept[:, -1].values.tolist() == [1, 1]


def test_relations_are_their_definitions() -> None:
    ds = training()
    ds["p_dead"] = "step", np.array([np.nan, 0.5, 0.4, 0.2, 0.3, 0.1])
    found = dx.token_indicators(ds).compute()
    dead, times = ds.dead.values, dx.freeze_predictors(ds, allow_gaps=True).compute()
    assert int(found.n_frozen) == (times.freeze_step.values[dead] >= 0).sum() - times.censored.values[dead].sum() == 5
    for t in (1, 4):
        x = found.value.sel(reference="dead", indicator="l2_distance")[t].values.astype(float)
        pairs = [(a < b) + 0.5 * (a == b) for a in x[dead] for b in x[~dead]]
        at = {"reference": "dead", "indicator": "l2_distance"}
        np.testing.assert_allclose(found.auc.sel(at)[t], np.mean(pairs))
        np.testing.assert_allclose(found.lowest_dead.sel(at)[t], dead[np.argsort(x)[:20]].mean())
        frozen = times.freeze_step.values[dead], times.censored.values[dead] > 0, x[dead]
        names = ("freeze_correlation", "freeze_correlation_low", "freeze_correlation_high", "n_pairs")
        np.testing.assert_allclose([found[name].sel(at)[t] for name in names], concordance(*frozen))
        expected = concordance(ds["count"].values[~dead], np.zeros(100, bool), x[~dead])[:3]
        names = ("count_correlation", "count_correlation_low", "count_correlation_high")
        np.testing.assert_allclose([found[name].sel(at)[t] for name in names], expected)
    mean = found.value.sel(reference="dead", indicator="l2_distance")[:, dead].mean("token").values
    rho = found.p_dead_correlation.sel(reference="dead", indicator="l2_distance")
    np.testing.assert_allclose(rho, spearman(mean[1:].astype(float), ds.p_dead.values[1:])[0])


def test_equal_values_share_their_places() -> None:
    ds = training().isel(step=slice(3, None))
    found = dx.token_indicators(ds.drop_vars("dead").assign_coords(dead=("token", np.arange(120) < 3))).compute()
    low = found.lowest_dead.sel(reference="found", indicator="l2_distance")
    np.testing.assert_allclose(low, 3 / 5)  # 3 of 5 equal rows are dead


def test_a_recording_of_every_step(recording: Path) -> None:
    rec = dx.open_recording(recording)
    tree = dx.analyze(rec, analyses=["token_indicators", "freeze_predictors"])  # in one pass
    found = tree["token_indicators"].to_dataset().compute()
    assert found.checkpoint.values[[0, -1]].tolist() == rec.step.values[[0, -1]].tolist()
    assert found.sizes["checkpoint"] == 17
    assert "p_dead_correlation" in found
    spec = ANALYSES["token_indicators"]
    assert any("Dead tokens" in finding.text for finding in spec.findings(found))
    panels = dx.plot.token_indicators(found, axes=Figure().subplots(2))
    assert "256 tokens" in panels[0].get_title(loc="left")
    only = dx.token_indicators(rec.sel(token=rec.dead), steps=[0, 300]).compute()
    assert {"precision", "auc", "told_from"}.isdisjoint(only.data_vars)
    assert only.freeze_correlation.sel(reference="dead").notnull().any()
    assert list(spec.summary(only))
    assert spec.key_figure(only).overall is None
    dx.plot.token_indicators(only, axes=Figure().subplots(2))


def test_without_dead_tokens_and_unusable_input() -> None:
    ds = training().drop_vars(["dead", "count"])
    found = dx.token_indicators(ds).compute()
    assert found.reference.values.tolist() == ["found"]
    assert {"precision", "count_correlation", "p_dead_correlation"}.isdisjoint(found.data_vars)
    (finding, *_) = ANALYSES["token_indicators"].findings(found)
    assert "From step 300 on, tokens show from which under-training can be measured (black hole)" in finding.text
    given = dx.token_indicators(ds, reference=ds.token.values[:3].tolist()).compute()
    assert (given.reference_size == 3).all()
    for options, match in (({"share": 2}, "share=2; expected"), ({"reference": [1]}, "names token 1, which is not")):
        with pytest.raises(InputError, match=match):
            dx.token_indicators(ds, **options)
    with pytest.raises(InputError, match="rows of at least two dims"):
        dx.token_indicators(ds.isel(dim=[0]))
