"""Every notebook runs from its first cell to its last, at a small size, and gives the results that it describes."""

from __future__ import annotations

import ast
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient

from tests.conftest import N_DEAD

pytestmark = pytest.mark.slow

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

SMALL: dict[str, dict[str, Any]] = {
    "record_and_convert": {"STEPS": 20, "VOCABULARY": 160, "DIMS": 16},
    "kinematics": {"STEPS": 30, "VOCABULARY": 160, "DIMS": 16, "LR": 3e-3},
    "phase_transitions": {"STEPS": 80, "VOCABULARY": 160, "DIMS": 16, "LR": 1e-5},
    "crystallize_or_evaporate": {"STEPS": 60, "DIMS": 16, "SPREAD": 1e-5},
    "why_tokens_stop": {"STEPS": 80, "VOCABULARY": 160, "DIMS": 16, "LR": 1e-5},
    "is_my_training_losing_updates": {"STEPS": 20, "DIMS": 16},
    "which_tokens_are_dead": {"STEPS": 90, "DIMS": 16, "EVERY": 30},
    "exploring": {"STEPS": 48, "DIMS": 16},
    "scaling_out": {"STEPS": 260, "TOKENS": 60, "DIMS": 16, "WORKERS": 1, "ANALYSES": ["phases"]},
}
"""Parameters of each notebook for the tests; a learning rate so low that tokens stand still within a few updates."""

CHECKS = {
    "which_tokens_are_dead": """
        assert int(recording["count"].sum()) == len(demo.corpus()) and recording.dead.equals(recording["count"] == 0)
        assert over_time.sizes["checkpoint"] == 17 and over_time.reference.values.tolist() == ["found", "dead"]
        dead = recording.dead.values
        lowest = np.argsort(over_time.value[1, -1, -1].values)[: dead.sum()]
        np.testing.assert_allclose(over_time.lowest_dead[1, -1, -1], dead[lowest].mean(), atol=0.02)
        assert float(over_time.auc.sel(reference="dead", indicator="l2_distance")[-1]) > 0.9
        assert sparse.step.values.tolist() == [0, 30, 60, 90] == kept.checkpoint.values.tolist()
        assert tree["motion"].step_span.values.tolist() == [30, 30, 30]
    """,
    "record_and_convert": """
        assert len(dead) > 60 and recording.sizes == {"step": STEPS + 1, "token": VOCABULARY, "dim": DIMS}
        assert recorder.report and "100.0000% of" in recorder.report
        for name in ("W", "grad"):
            assert (converted[name].values.view(np.uint16) == raw[name].values.view(np.uint16)).all()
        assert raw.W.values.view(np.uint16).any() and (recording.W[-1] != recording.W[0]).any()
        assert found.compared == ["W", "grad", "loss"] and not found.problems
        assert len(wrong) == 1 and f"the first at step {STEPS // 2}" in wrong[0]
        assert {"mechanism", "critical_boundary"} <= set(left_out)
    """,
    "kinematics": """
        W = dead.W.values.astype(np.float64)
        C = W.mean(1)
        thermal = np.diff(W, axis=0) - np.diff(C, axis=0)[:, None]
        np.testing.assert_allclose(kin.centroid, C, atol=1e-12)
        np.testing.assert_allclose(kin.bulk_speed[1:], np.linalg.norm(np.diff(C, axis=0), axis=1), atol=1e-12)
        rms = np.sqrt((thermal**2).sum(-1).mean(1))
        np.testing.assert_allclose(kin.thermal_rms[1:], rms, atol=1e-12)
        np.testing.assert_allclose(ratio[1], np.linalg.norm(C[1] - C[0]) / rms[0], rtol=1e-9)
        assert ratio[1] > 1 and 0.5 < float(share.where(moving).median()) <= 1
        assert kin.thermal_residual.max() < 1e-12 < kin.thermal_rms.max()
        assert law.gradient_p_h_alignment.min() > 0.999
        assert np.allclose((plane**2).sum(), (centred**2).sum(), rtol=0.1)
    """,
    "phase_transitions": """
        moves = np.abs(np.diff(dead.W.values, axis=0)).max(-1)
        still = (moves == 0).mean(1)
        np.testing.assert_allclose(by_lattice.fraction.sel(phase="frozen"), still)
        cold = (motion.displacement_ulp.values < 0.1).mean(1)
        np.testing.assert_allclose(by_norm.fraction.sel(phase="fimbulwinter"), cold)
        np.testing.assert_allclose(table.sum(axis=1) / table.values.sum(), by_norm.fraction.mean("step"))
        np.testing.assert_allclose(table.sum(axis=0) / table.values.sum(), by_lattice.fraction.mean("step"))
        cold_ones = motion.displacement_ulp.values < 0.1
        assert called_frozen == cold_ones.sum() > moved == (cold_ones & (moves > 0)).sum() > 0
        assert int(alone.count()) > 0 and cells.median() > 1
        colder = by_lattice.fraction.cumsum("phase").sel(phase="late").values > 0.5
        assert int(by_lattice.transition_step.sel(phase="late")) == (colder.argmax() + 1 if colder.any() else -1)
    """,
    "crystallize_or_evaporate": """
        assert float(ulp[0]) > 0 and float(ulp[-1] / ulp[0]) > 3
        assert int(nothing.n_singletons.min()) == n and verdict(nothing) == "stays gas"
        spacing_held, positions_held = cases["spacing of the first step"], cases["positions of the first step"]
        assert verdict(positions_held) == "crystallizes" and int(positions_held.largest_component[-1]) == n
        assert verdict(spacing_held) == "evaporates" and int(spacing_held.n_singletons[-1]) > n // 2
        assert int(found.largest_component[-1]) > int(spacing_held.largest_component[-1])
        first = dead.W[0].values
        near = np.abs(first[:, None] - first[None]).max(-1)
        edges = ((near > 0) & (near <= float(ulp[0]))).sum() / 2
        assert float(found.density[0]) == edges / (n * (n - 1) / 2) > 0
        assert float(both["radius of the cloud"][-1]) > float(both["radius in mean ULP"][-1])
        assert rows["mean ULP at the centroid (14.2b)"]["verdict"] == verdict(found)
        assert int(places[0]) == len(np.unique(first, axis=0))
        assert len(gas) == (found.state.values == 0).sum()
    """,
    "why_tokens_stop": """
        assert compared == dead.W.isel(step=slice(1, None)).size and missed == 0
        assert float(why.replay_agreement_moved.min()) == 1 and 0.05 < float(why.baseline_agreement.mean()) < 1
        still = (dead.W.diff("step") == 0).all("dim").values
        assert still.any() and ((why.cause.values == 2) == ~still).all()
        zero = (dead.grad.isel(step=slice(1, None)) == 0).all("dim").values
        assert (why.cause.values[still & ~zero] == 1).all() and elements["rounded_to_zero"] > 0
        assert 0 < float(why.stalled_fraction[-1]) <= 1
        assert intended > realised > 0
        end = {key: float(value[-1]) for key, value in distance.items()}
        for moments in ("recorded", "float32"):
            assert all(end[moments, kept] > end[moments, "nearest"] for kept in schemes[1:])
        assert abs(end["recorded", "nearest"] / realised - 1) < 0.05
    """,
    "is_my_training_losing_updates": """
        assert ds.exact.all() and masters.exact.all() and ds.sizes["step"] == STEPS // EVERY
        assert (ds[causes].to_array().sum("variable") == ds.numel).all()
        assert moved["16"] == 0 < moved["32"] and lost == 1
        assert 0 < int(masters.visible.sum()) < int(masters.moved.sum())
        assert int(ds.rounded_to_zero.sum()) > 1000 < int(ds.moved.sum())
        assert needed.is_monotonic_increasing and needed.iloc[0] == 0 < needed.iloc[-1]
    """,
    "exploring": """
        e = recording.W.sel(token=ord("e"))
        np.testing.assert_allclose(norm.sel(token_text="e"), (e**2).sum("dim") ** 0.5)
        digits = motion.displacement.sel(step=1, token=range(48, 58))
        assert np.isclose(by_kind.sel(kind="digit", step=1), digits.mean())
        assert set(by_kind.kind.values) == {"letter", "digit", "other ASCII", "not ASCII"}
        rest = (recording.W.diff("step") == 0).all("dim").isel(token=recording.dead.values)
        assert np.isclose(float(totals.sel(dead=True)), float(rest.mean()))
        W = recording.W.sel(step=STEPS).values.astype(float)
        C = W[recording.dead.values].mean(0)
        np.testing.assert_allclose(
            facing.sel(step=STEPS), W @ C / np.linalg.norm(W, axis=1) / np.linalg.norm(C), rtol=1e-4, atol=1e-5
        )
        assert facing.chunks and again.facing.chunks and (again.facing == facing).all()
        assert results.groups == ("/", "/motion", "/phases", "/kinematics")
        change_of = abs(W - recording.W.sel(step=STEPS - window).values).mean(1)
        assert int(moved_most) == change_of.argmax()
        with np.testing.assert_raises(dx.errors.OffGridError):
            dx.motion(recording.assign(W=recording.W - centroid)).displacement.compute()
    """,
    "scaling_out": """
        assert not dx.verify(folder / "run.zarr", folder / "large.h5").problems
        assert (dx.open_recording(folder / "run.zarr", raw=True).W.values.view("u2") == W.values.view("u2")).all()
        assert workers == WORKERS and len(seconds) == 4 and min(seconds.values()) > 0
        for name in names:
            other = dx.open_results(folder / name)
            for group in ANALYSES:
                assert results[group].to_dataset().equals(other[group].to_dataset()), (name, group)
        fraction = results["phases"].fraction
        assert float(fraction.sel(phase="frozen")[-1]) == 1 > float(fraction.sel(phase="frozen")[0])
    """,
}
"""What is true of each notebook's variables after its last cell; cells that fail make the test fail."""

PRINTED = {
    "record_and_convert": ["problems: []", "converted: left out mechanism"],
    "kinematics": ["bulk/thermal at step 1:"],
    "phase_transitions": ["moved on the grid"],
    "crystallize_or_evaporate": ["verdict: "],
    "why_tokens_stop": ["100.0000% of ", "the updates are reproduced by single"],
    "is_my_training_losing_updates": ["body.norm.weight) did not move", "in bfloat16, "],
    "which_tokens_are_dead": [
        f"{N_DEAD} of 256 tokens never occur",
        "measured from one token, ",
        "tokens never changed",
    ],
    "exploring": ["the same values: True", "not on the grid"],
    "scaling_out": ["problems: []", "memory to analyse", "tokens in the coldest phase, frozen", "cli.zarr: equal"],
}


TABLE = "quantities"
"""The notebook of which `tests/analyses/test_quantities.py` runs every call."""


def read(name: str) -> Any:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def parameters(notebook: Any) -> Any:
    """The cell that papermill would put others after."""
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    return cell


def defaults(notebook: Any) -> dict[str, Any]:
    tree = ast.parse(parameters(notebook).source)
    found = {}
    for line in tree.body:
        assert isinstance(line, ast.Assign)
        (target,) = line.targets
        assert isinstance(target, ast.Name)
        found[target.id] = ast.literal_eval(line.value)
    return found


def injected(notebook: Any, values: Mapping[str, Any]) -> str:
    known = defaults(notebook)
    assert values.keys() <= known.keys()
    return "\n".join(f"{name} = {value!r}" for name, value in {**known, **values}.items())


def test_every_notebook_is_tested_and_listed() -> None:
    names = {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert names - {TABLE} == set(SMALL) == set(CHECKS) == set(PRINTED)
    listed = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    assert all(f"({name}.ipynb)" in listed for name in names)


@pytest.mark.parametrize("name", [*SMALL, TABLE])
def test_a_notebook_is_valid_and_stripped(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [c.id for c in code if c.outputs or c.execution_count is not None] == []
    assert code[0] is parameters(notebook)
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert name == TABLE or all(len(line) <= 120 for cell in notebook.cells for line in cell.source.splitlines())


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """One process for all notebooks, since starting it takes longer than most of them."""
    environment = {
        **os.environ,
        "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython")),  # nobody's own start-up files
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": "1",
    }
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(NOTEBOOKS), env=environment)
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("name", SMALL)
def test_notebook_runs_with_the_described_results(name: str, tmp_path: Path, kernel: KernelManager) -> None:
    notebook = read(name)
    parameters(notebook).source = injected(notebook, {**SMALL[name], "FOLDER": str(tmp_path / "files")})
    forget = nbformat.v4.new_code_cell("%reset_selective -f .", id="forget")  # what the notebook before has left
    check = nbformat.v4.new_code_cell("import numpy as np\n" + textwrap.dedent(CHECKS[name]), id="check")
    notebook.cells = [forget, *notebook.cells, check]
    NotebookClient(notebook, km=kernel, timeout=300).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = {stream: "".join(o.text for o in outputs if o.get("name") == stream) for stream in ("stdout", "stderr")}
    assert [text for text in PRINTED[name] if text not in said["stdout"]] == []
    assert said["stderr"] == ""
    assert any("image/png" in o.get("data", ()) for o in outputs)
