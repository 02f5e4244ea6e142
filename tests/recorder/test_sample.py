"""A recorder of a sample of the elements of every parameter, compared with copies of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn import functional

import deadtok_xr as dx
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.errors import DestinationExistsError, InputError
from deadtok_xr.recorder.host_buffers import to_numpy

ALL = ("W", "grad", "exp_avg", "exp_avg_sq")
SAMPLE, STEPS = 16, 12


class Model(torch.nn.Module):
    """Parameters of ranks 1 to 3, in bfloat16 and float32, and one without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(20, 8).bfloat16()
        self.norm = torch.nn.RMSNorm(8)  # float32
        self.cube = torch.nn.Parameter(torch.randn(2, 8, 8).bfloat16())
        self.idle = torch.nn.Parameter(torch.ones(5).bfloat16())

    def forward(self, step: int) -> torch.Tensor:
        ids = torch.randint(20, (16,), generator=torch.Generator().manual_seed(step))
        x = self.norm(self.embedding(ids).float()).bfloat16() @ self.cube[0] @ self.cube[1]
        return functional.cross_entropy((x @ self.embedding.weight.T).float(), ids)


def adamw(model: Model) -> torch.optim.Optimizer:
    cube = {"params": [model.cube], "lr": 1e-2, "weight_decay": 0.0}
    others = [p for name, p in model.named_parameters() if name != "cube"]
    return torch.optim.AdamW([{"params": others}, cube], lr=1e-3)


def train(model: Model, optimizer: Any, steps: range, recorder: Any = None) -> list[dict[str, dict[str, np.ndarray]]]:
    """Train, and return flat copies of everything after each update."""
    found = []
    for step in steps:
        optimizer.zero_grad()
        loss = model(step)
        loss.backward()
        copies = {n: {} if p.grad is None else {"grad": flat(p.grad)} for n, p in model.named_parameters()}
        optimizer.step()
        for name, p in model.named_parameters():
            moments = {k: flat(v) for k, v in optimizer.state.get(p, {}).items() if k != "step"}
            copies[name] |= {"W": flat(p), **moments}
        found.append(copies)
        if recorder is not None:
            recorder.log(loss=loss)
    return found


def flat(x: torch.Tensor) -> np.ndarray:
    return to_numpy(x.detach().clone()).reshape(-1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, dict[str, np.ndarray]]]]:
    """A store, and copies of everything; the run is that of a model without a recorder, to the bit."""
    path = tmp_path_factory.mktemp("sample") / "s.zarr"
    model, alone = Model(), Model()
    optimizer = adamw(model)
    with dx.Recorder(model, optimizer, path, sample=SAMPLE, variables=ALL, attrs={"seed": 0}) as recorder:
        truth = train(model, optimizer, range(STEPS), recorder)
    assert "100.0000% of" in recorder.report
    assert recorder.step == STEPS
    others = train(alone, adamw(alone), range(STEPS))[-1]
    assert all(values["W"].tobytes() == others[name]["W"].tobytes() for name, values in truth[-1].items())
    return path, truth


def test_the_sample_holds_the_values_of_its_elements(recorded: Any) -> None:
    path, truth = recorded
    tree = dx.open_recording(path, raw=True)
    assert isinstance(tree, xr.DataTree)
    assert tree.attrs["sample"] == SAMPLE
    sizes = {"embedding.weight": 160, "norm.weight": 8, "cube": 128, "idle": 5}
    assert set(tree.children) == set(sizes)
    for name, numel in sizes.items():
        ds = tree[name].to_dataset()
        elements = ds.element.values
        assert dict(ds.sizes) == {"step": STEPS + 1, "element": min(numel, SAMPLE)}
        assert len(set(elements)) == len(elements)
        assert elements.max() < numel
        assert ds.attrs["numel"] == numel
        assert ds.attrs["seed"] == 0
        for variable in ALL:
            for t, copies in enumerate(truth, 1):
                stored = ds[variable].sel(step=t).values
                if variable in copies[name]:
                    assert stored.tobytes() == copies[name][variable][elements].tobytes(), f"{variable} of {name}"
                else:
                    assert (np.isnan(stored.astype(float)) if variable == "grad" else stored == 0).all()
    cube = tree["cube"].to_dataset()
    places = np.ravel_multi_index([cube[f"index_{i}"].values for i in range(3)], (2, 8, 8))
    np.testing.assert_array_equal(places, cube.element)
    np.testing.assert_allclose(cube.lr[1:], 1e-2)
    assert cube.attrs["hyperparameters"]["weight_decay"] == 0.0
    assert "index_0" not in tree["norm.weight"].coords
    assert tree["norm.weight"].W.attrs["precision"] == "float32"


def test_analyses_run_on_each_parameter(recorded: Any) -> None:
    path, truth = recorded
    tree = dx.open_recording(path)
    why = dx.mechanism(tree)
    assert (why["idle"].n_unknown == 5).all()  # it has no gradient, and the replay no inputs
    for name in ("embedding.weight", "norm.weight", "cube"):
        found, elements = why[name].to_dataset().compute(), tree[name].element.values
        assert (found.replay_agreement == 1).all()
        W = np.stack([copies[name]["W"][elements].astype(np.float64) for copies in truth])
        np.testing.assert_array_equal(found.n_moved[1:], (np.diff(W, axis=0) != 0).sum(1))
        np.testing.assert_array_equal(found.element, elements)
        assert ("n_visible" in found) == (name == "norm.weight")  # float32
        if "n_visible" in found:
            visible = np.diff(W.astype(BFLOAT16).astype(np.float64), axis=0) != 0
            np.testing.assert_array_equal(found.n_visible[1:], visible.sum(1))
        assert found.attrs["numel"] == tree[name].attrs["numel"]
    for analysis in (dx.motion, dx.freezing, dx.lattice, dx.exponents, dx.critical_boundary):
        results = analysis(tree)
        assert set(results.children) == {"embedding.weight", "norm.weight", "cube", "idle"}
        assert not any({"token", "dim"} & set(node.dims) for node in results.children.values())
    moved = dx.motion(tree["cube"].to_dataset()).moved_dims
    assert moved.dims == ("step", "element")
    np.testing.assert_array_equal(moved.sum("element"), why["cube"].n_moved)
    results = dx.analyze(tree["cube"].to_dataset(), analyses=["motion", "freezing"])
    assert set(results.children) == {"motion", "freezing"}
    with pytest.raises(InputError, match="holds samples of many parameters.*analyze takes tree"):
        dx.analyze(path)


def test_intervals_hold_the_share_of_the_whole_parameter() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        whole = rng.random(5000) < 0.1
        low, high = dx.sample_interval(int(rng.choice(whole, 256, replace=False).sum()), 256, 5000)
        hits += bool(low <= whole.mean() <= high)
    assert 0.92 < hits / 400 <= 0.99
    counts = xr.DataArray([0, 8, 16], dims="step")
    low, high = dx.sample_interval(counts, 16, 160)
    assert low.dims == ("step",)
    assert float(low[0]) == pytest.approx(0)
    assert float(high[0]) < 0.25
    with pytest.raises(InputError, match="a sample of 5 of 4 elements"):
        dx.sample_interval(1, 5, 4)


def test_it_is_resumed_and_overwritten(recorded: Any, tmp_path: Path) -> None:
    path, truth = tmp_path / "s.zarr", recorded[1]
    model = Model()
    optimizer = adamw(model)
    options: dict[str, Any] = {"sample": SAMPLE, "variables": ALL}
    with dx.Recorder(model, optimizer, path, **options):
        train(model, optimizer, range(7))
    with pytest.raises(DestinationExistsError, match="exists already"), dx.Recorder(model, optimizer, path, **options):
        pass
    with pytest.raises(InputError, match="a sample of other parameters or elements"):
        dx.Recorder(model, optimizer, path, resume=True, **{**options, "sample": 4}).__enter__()
    with dx.Recorder(model, optimizer, path, resume=True, **options):
        train(model, optimizer, range(7, STEPS))
    ds = dx.open_recording(path)["cube"].to_dataset()
    whole = dx.open_recording(recorded[0])["cube"].to_dataset().drop_vars("loss")
    xr.testing.assert_equal(ds, whole)
    assert ds.W.sel(step=STEPS).values.tolist() == truth[-1]["cube"]["W"][ds.element].astype(np.float32).tolist()
    with dx.Recorder(model.norm, optimizer, path, overwrite=True, sample=4):
        pass
    assert dx.open_recording(path)["weight"].sizes == {"step": 1, "element": 4}


def test_what_cannot_be_sampled(tmp_path: Path) -> None:
    model = Model()
    optimizer, path = adamw(model), tmp_path / "s.zarr"
    for what, options, match in (
        (model, {"sample": 0}, "sample=0; expected a number of elements"),
        (model, {"sample": 4, "dead": [1]}, "dead= is about tokens"),
        (model.cube, {"sample": 4}, "sample= takes a model, or parameters with their names"),
        (Model(), {"sample": 4}, "the optimizer has none of these parameters"),
        ({"a/b": model.cube}, {"sample": 4}, "expected one without '/'"),
    ):
        with pytest.raises(InputError, match=match):
            dx.Recorder(what, optimizer, path, **options)
    assert not path.exists()
