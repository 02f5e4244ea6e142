"""Several runs at once: results with the dimension `run` are those of each run alone, and say where runs differ."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import deadtok_xr as dx
from deadtok_xr import cli
from deadtok_xr.analyses.runs import select_run
from deadtok_xr.errors import InputError
from deadtok_xr.results.side_by_side import _merged
from tests.conftest import once
from tests.store.test_store import write_store

LABELS = ["same", "later", "seed"]
ANALYSES = ["motion", "phases", "freezing", "compare_runs"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of 200 steps: the first, one that parts from it in one token at step 150, and one of another seed."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    W = (1 + rng.integers(0, 40, (2, 200, 12, 4)) / 128).astype(ml_dtypes.bfloat16)
    later = W[0].copy()
    later[150:, 5] = 1
    runs = dict(zip(LABELS, (W[0], later, W[1]), strict=True))
    return [write_store(folder / f"{name}.zarr", x, np.arange(12), None) for name, x in runs.items()]


@pytest.fixture(scope="module")
def saved(stores: list[Path], tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    tree = dx.analyze(dx.concat_runs(stores), analyses=ANALYSES)
    return dx.save_results(tree, tmp_path_factory.mktemp("results") / "results.zarr")


def test_each_run_has_the_results_of_the_run_alone(stores: list[Path], saved: xr.DataTree) -> None:
    assert list(saved.children) == ANALYSES
    assert saved["phases"].fraction.dims == ("run", "step", "phase")
    for label, path in zip(LABELS, stores, strict=True):
        one, alone = select_run(saved, label), dx.analyze(path, analyses=ANALYSES[:-1]).compute()
        assert list(one.children) == list(alone.children)
        assert one.attrs["source"] == str(path)
        for name, node in alone.children.items():
            found = one[name].to_dataset()
            for key, expected in node.data_vars.items():
                np.testing.assert_array_equal(found[key], expected, err_msg=f"{label} {name} {key}")
                assert found[key].dtype == expected.dtype
            assert found.attrs == node.attrs
    with pytest.raises(InputError, match="no run 'x': choose one of same, later, seed"):
        select_run(saved, "x")


def test_all_are_compared_with_the_first(stores: list[Path], saved: xr.DataTree) -> None:
    opened = [dx.open_recording(path) for path in stores]
    found = dx.compare_runs(*opened).compute()
    assert found.attrs["reference"] == "same"
    assert found.first_difference.to_series().to_dict() == {"later": 150, "seed": 0}
    for label, other in zip(LABELS[1:], opened[1:], strict=True):
        for key, expected in dx.compare_runs(opened[0], other).compute().data_vars.items():
            np.testing.assert_array_equal(found[key].sel(run=label), expected)
    for same in (dx.compare_runs(dx.concat_runs(stores)), saved["compare_runs"].to_dataset()):
        xr.testing.assert_equal(same.compute(), found)


def test_selected_runs_are_read_from_the_store(stores: list[Path], decoded: Counter[Any]) -> None:
    ds = dx.concat_runs(stores)
    dx.analyze(ds.isel(run=[0, 2]), analyses=["motion", "phases"]).compute()
    assert decoded == {chunk: 2 * n for chunk, n in once(200, "W").items()}


def test_summary_says_when_runs_part_and_what_differs(saved: xr.DataTree) -> None:
    text = " ".join(dx.summary(saved).split())
    assert "3 runs, same, later and seed: 12 tokens, steps 0 to 199" in text
    assert "later differs from same from step 150 on, first in token 5." in text
    assert "seed differs from same from step 0 on, in all 12 tokens." in text
    assert "Where the runs differ (same / later / seed):" in text
    assert "All 12 tokens move at step 1, 12 / 11 / 12 at step 199, the last." in text
    assert "later: At step 199, 91.7% of the tokens are early (larger changes), 8.3% frozen." in text
    assert "same and seed: Every token moves in every one of the 199 steps." in text
    assert "At step 199 a token lies" in text
    assert _merged(["3 of 1,162 (1.5%)", "4 of 1,162 (2%)"]) == "3 / 4 of 1,162 (1.5% / 2%)"
    of_token = "token 1 \"'\\x01'\" moves {} times"  # digits in the text of a token are no numbers
    assert _merged([of_token.format(n) for n in ("1,200", "7")]) == of_token.format("1,200 / 7")


def test_results_of_runs_side_by_side(stores: list[Path], saved: xr.DataTree) -> None:
    trees = [dx.analyze(path, analyses=ANALYSES[:-1]).compute() for path in stores]
    together = dx.compare_runs(*trees, run=LABELS)
    for name in ANALYSES[:-1]:
        assert together[name].to_dataset().equals(saved[name].to_dataset().compute())
    shorter = dx.analyze(dx.open_recording(stores[1]).isel(step=slice(0, 90)), analyses=ANALYSES[:-1])
    with pytest.raises(InputError, match="motion has other steps in the run 1 than in 0: say join='inner'"):
        dx.compare_runs(trees[0], shorter, run=[0, 1])
    assert dx.compare_runs(trees[0], shorter, join="inner")["motion"].sizes["step"] == 89
    with pytest.raises(InputError, match="no mixture"):
        dx.compare_runs(trees[0], dx.open_recording(stores[0]))


def test_an_interrupted_analysis_of_runs_resumes(
    stores: list[Path], saved: xr.DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: Counter[Any]
) -> None:
    from deadtok_xr.engine.block_task import WriteTarget

    def save() -> xr.DataTree:
        tree = dx.analyze(dx.concat_runs(stores), analyses=["motion", "freezing"])
        return dx.save_results(tree, tmp_path / "results.zarr")

    write, calls = WriteTarget.write, Counter[str]()

    def interrupted(self: WriteTarget, *args: Any) -> Any:
        calls["write"] += 1
        if calls["write"] > 25:
            raise KeyboardInterrupt
        return write(self, *args)

    monkeypatch.setattr(WriteTarget, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save()
    monkeypatch.setattr(WriteTarget, "write", write)
    decoded.clear()
    resumed = save()
    assert 0 < sum(decoded.values()) < 3 * sum(once(200, "W").values())
    for name in ("motion", "freezing"):
        assert resumed[name].to_dataset().compute().equals(saved[name].to_dataset().compute())


def test_an_analysis_that_only_some_runs_allow(stores: list[Path]) -> None:
    ds = dx.concat_runs(stores[:2])
    trees = [dx.analyze(ds.isel(run=0), analyses=names).compute() for names in (["motion", "phases"], ["motion"])]
    tree = dx.compare_runs(*trees, run=["a", "b"])
    assert tree["phases"].run.values.tolist() == ["a"]
    assert list(select_run(tree, "b").children) == ["motion"]
    assert dx.summary(tree)


@pytest.mark.slow
def test_page_of_several_runs(saved: xr.DataTree, tmp_path: Path) -> None:
    text = dx.report(saved, tmp_path / "runs.html").read_text("utf-8")
    assert "<h1>3 runs: same, later and seed</h1>" in text
    assert text.index("later differs from same from step 150 on, first in token 5.") < text.index("<img")
    for name in ANALYSES:
        if name != "freezing":
            assert f'id="picture-{name}"' in text
    assert "steps 1 to 199 · bfloat16. Numbers that differ are given in the order same / later / seed." in text


def test_compare_command(
    stores: list[Path], saved: xr.DataTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> int:
        return cli.status(lambda: cli.cli([str(w) for w in words], prog_name="deadtok", standalone_mode=False))

    page = tmp_path / "page.html"
    assert run("compare", *stores, "-q", "--report", page) == 3
    out = capsys.readouterr().out
    assert re.search(r"^later +step 150 +1 of 12 +97\.9%", out, re.MULTILINE)
    assert page.read_text("utf-8").count("<img") == 2  # one is empty, for enlarged pictures
    assert run("compare", stores[0], stores[0], "--json", "-q") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["first_difference"] == {"2": -1}
    assert found["findings"] == ["2 is equal to 1, to the bit."]
    results = []
    for path in stores[:2]:
        results.append(tmp_path / f"{path.stem}_results.zarr")
        assert run("analyze", path, "-o", results[-1], "--only", "motion", "-q") == 0
    capsys.readouterr()
    assert run("compare", *results) == 0
    assert "All 12 tokens move at step 1, 12 / 11 at step 199, the last." in capsys.readouterr().out
    assert run("compare", stores[0]) == run("compare", stores[0], results[0]) == 2
    assert run("analyze", *stores[:2], "-o", tmp_path / "both.zarr", "--only", "phases", "-q") == 0
    both = dx.open_results(tmp_path / "both.zarr")["phases"]
    np.testing.assert_array_equal(both.fraction, saved["phases"].fraction[:2])


def test_picture_has_a_line_or_a_band_for_each_group_of_runs(saved: xr.DataTree) -> None:
    ds = saved["motion"].to_dataset().compute().assign_coords(lr=("run", [1e-3, 1e-3, 1e-2]))
    one = dx.plot.runs(ds, "displacement_ulp_mean", ax=Figure().subplots())
    for line, expected in zip(one.get_lines(), ds.displacement_ulp_mean, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), expected)
    by_lr = dx.plot.runs(ds, "displacement_ulp_mean", by="lr", ax=Figure().subplots())
    mean, alone = by_lr.get_lines()
    np.testing.assert_allclose(mean.get_ydata(), ds.displacement_ulp_mean[:2].mean("run"))
    np.testing.assert_array_equal(alone.get_ydata(), ds.displacement_ulp_mean[2])
    band = by_lr.collections[0].get_paths()[0].get_extents()
    assert band.y0 == pytest.approx(float(ds.displacement_ulp_mean[:2].min()))
    assert [text.get_text() for text in by_lr.get_legend().get_texts()] == ["0.001 (2 runs)", "0.01"]
    with pytest.raises(InputError, match="by='seed': expected a coordinate along run; choose from run, lr"):
        dx.plot.runs(ds, "displacement_ulp_mean", by="seed")
