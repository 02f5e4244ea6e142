"""The Monitor in training loops, its store, what it tells a logger, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn import functional

import deadtok_xr as dx
from deadtok_xr.errors import DestinationExistsError, InputError, MissingFileError, WriteError
from deadtok_xr.monitor import growing_store, monitor


class Tiny(torch.nn.Module):
    """Ids in, loss out."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(12, 8)
        self.norm = torch.nn.RMSNorm(8)
        self.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        self.to(dtype)

    def forward(self, step: int) -> torch.Tensor:
        ids = torch.randint(12, (16,), generator=torch.Generator().manual_seed(step))
        return functional.cross_entropy((self.norm(self.embedding(ids)) @ self.embedding.weight.T).float(), ids)


def train(model: Tiny, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(step).backward()
        optimizer.step()


def adamw(model: torch.nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **{"lr": 1e-4, **options})


def test_norm_weights_at_one_never_move_and_the_report_says_why(tmp_path: Path) -> None:
    model = Tiny()
    optimizer = adamw(model)
    values: list[tuple[int, dict[str, float]]] = []
    with dx.Monitor(
        model, optimizer, tmp_path / "m", every=5, log=lambda found, step: values.append((step, found))
    ) as watch:
        train(model, optimizer, range(23))
    ds = dx.open_monitor(tmp_path / "m")
    xr.testing.assert_identical(ds.drop_attrs(), watch.dataset().drop_attrs())
    assert ds.step.values.tolist() == [5, 10, 15, 20]
    assert ds.parameter.values.tolist() == ["embedding.weight", "norm.weight"]  # the frozen one is not in the optimizer
    assert ds.attrs["complete"]
    norm = ds.sel(parameter="norm.weight")
    assert (norm.moved == 0).all()
    assert (norm.rounded_to_zero == 8).all()
    assert (model.norm.weight == 1).all()
    below = norm.margin_count.where(ds.margin_bin < 0, drop=True).sum("margin_bin")
    assert (below == 8).all()  # |u| is about lr = 1e-4; half the gap is 2^-9 towards zero
    assert [step for step, _ in values] == [5, 10, 15, 20]
    assert values[-1][1]["moved/norm.weight"] == 0
    assert values[-1][1]["updates/parameters_at_rest"] == 1
    assert values[-1][1]["margin/norm.weight"] < 0
    assert "1 parameter (norm.weight) did not move in any of the" in watch.report
    assert "times as high" in watch.report


class TestLoops:
    @pytest.mark.parametrize("fused", [False, True])
    def test_accumulation_clipping_and_a_scaler_that_skips(self, fused: bool) -> None:
        model = Tiny(torch.float32)
        optimizer = adamw(model, lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=10**6)
        moved, norms, inner = [], [], scaler.step
        with dx.Monitor(model, optimizer, scaler=None if fused else scaler) as watch:
            for attempt in range(8):
                for micro in range(2):
                    loss = model(2 * attempt + micro) / 2
                    scaler.scale(loss * (float("inf") if attempt in (3, 4) else 1)).backward()
                if not fused:
                    scaler.unscale_(optimizer)
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                before, scale = model.embedding.weight.detach().clone(), 1 if not fused else scaler.get_scale()
                gradient = model.embedding.weight.grad.norm() / scale
                scaler.step(optimizer)
                scaler.update()
                if attempt not in (3, 4):
                    moved.append(int((model.embedding.weight != before).sum()))
                    norms.append(float(gradient))
                optimizer.zero_grad()
        ds = watch.dataset().sel(parameter="embedding.weight")
        assert ds.exact.all()
        assert ds.moved.values.tolist() == moved
        np.testing.assert_allclose(ds.gradient_norm, norms, rtol=1e-5)
        assert watch.step == 6
        assert ds.step.values.tolist() == [1, 2, 3, 4, 5, 6]
        assert ds.skipped_before.values.tolist() == [0, 0, 0, 2, 0, 0]
        assert scaler.step == inner

    @pytest.mark.parametrize("keyword", [False, True])
    def test_a_closure_computes_the_gradient(self, keyword: bool) -> None:
        model = Tiny()
        optimizer = adamw(model, lr=1e-2)
        norms = []

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(len(norms))
            loss.backward()
            norms.append(float(model.norm.weight.grad.double().norm()))
            return loss

        with dx.Monitor(model, optimizer) as watch:
            losses = [optimizer.step(closure=closure) if keyword else optimizer.step(closure) for _ in range(3)]
        ds = watch.dataset()
        assert all(loss > 0 for loss in losses)
        assert ds.exact.all()
        np.testing.assert_allclose(ds.gradient_norm.sel(parameter="norm.weight"), norms, rtol=1e-6)

    def test_groups_schedules_a_tensor_as_learning_rate_and_a_missing_gradient(self) -> None:
        model = Tiny()
        groups = [{"params": [model.embedding.weight]}, {"params": [model.norm.weight], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=torch.tensor(1e-2), foreach=False)
        with dx.Monitor(model, optimizer) as watch:
            train(model, optimizer, range(2))
            optimizer.param_groups[1]["lr"] = torch.tensor(5e-3)
            model.norm.weight.grad = None
            optimizer.step()
            train(model, optimizer, range(2, 3))
        ds = watch.dataset()
        assert ds.exact.all()
        assert ds.group.values.tolist() == [0, 1]
        np.testing.assert_allclose(ds.lr.sel(parameter="norm.weight"), [1e-2, 1e-2, 5e-3, 5e-3])
        skipped = ds.sel(step=3, parameter="norm.weight")
        assert int(skipped.no_gradient) == 8
        assert np.isnan(skipped.gradient_norm)

    def test_parts_of_torchs_threads(self) -> None:
        """Elements between the parts of torch's threads are rounded otherwise than others: SGD in 16 bits."""
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(100_003).bfloat16())
        optimizer = torch.optim.SGD([parameter], lr=1e-2, foreach=False)
        torch.set_num_threads(3)
        try:
            with dx.Monitor(parameter, optimizer) as watch:
                parameter.grad = torch.randn_like(parameter)
                before = parameter.detach().clone()
                optimizer.step()
                assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(1)
        assert watch.dataset().exact.all()
        assert int(watch.dataset().moved[0, 0]) == int((parameter != before).sum())

    @pytest.mark.usefixtures("where")
    def test_what_else_changes_the_weights_is_noticed(self) -> None:
        model = Tiny()
        optimizer = adamw(model, lr=1e-2)
        optimizer.register_step_post_hook(lambda *_: model.norm.weight.data.clamp_(max=0.5))
        with (
            dx.Monitor(model, optimizer) as watch,
            dx.Monitor(model, optimizer, copy=True) as copied,
            pytest.warns(UserWarning, match=r"1 parameters \(norm.weight\) after update 1 are not those.*AdamW"),
        ):
            train(model, optimizer, range(1))
        assert watch.dataset().exact.values.tolist() == [[True, False]]
        ds = copied.dataset()
        assert ds.moved.values.tolist() == [[int(watch.dataset().moved[0, 0]), 8]]
        assert (ds.moved + ds.rounded_to_zero + ds.no_gradient + ds.unknown == ds.numel).all()
        assert "are estimates" in watch.report

    @pytest.mark.usefixtures("where")
    def test_an_unknown_optimizer_is_compared_with_a_copy(self) -> None:
        model = Tiny(torch.float32)
        optimizer = torch.optim.LBFGS([model.norm.weight], max_iter=2)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(0)
            loss.backward()
            return loss

        before = model.norm.weight.detach().clone()
        with dx.Monitor(model, optimizer, copy=True) as watch:
            optimizer.step(closure)
        ds = watch.dataset().isel(step=0, parameter=0)
        assert int(ds.moved) == int((model.norm.weight != before).sum()) > 0
        assert int(ds.moved + ds.unknown) == 8
        assert [int(ds[name]) for name in ("rounded_to_zero", "no_gradient", "stalled")] == [-1, -1, -1]
        assert np.isnan(ds.update_norm)
        assert ds.gradient_norm > 0
        assert not [name for name in monitor.rows.logged({**watch._rows[0]}, watch._fixed) if "rounded" in name]

    @pytest.mark.usefixtures("where")
    def test_nan_and_infinity_are_unknown(self) -> None:
        parameter, all_nan = torch.nn.Parameter(torch.ones(6)), torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.AdamW([parameter, all_nan], lr=1e-2)
        with dx.Monitor([("p", parameter), ("q", all_nan)], optimizer) as watch:
            parameter.grad = torch.tensor([1.0, np.nan, np.inf, 0.0, 1.0, 1.0])
            all_nan.grad = torch.full((2,), np.nan)
            parameter.data[5] = np.inf
            optimizer.step()
        ds = watch.dataset().isel(step=0, parameter=0)
        assert ds.exact
        counts = {name: int(ds[name]) for name in ("moved", "rounded_to_zero", "no_gradient", "unknown")}
        assert counts == {"moved": 3, "rounded_to_zero": 0, "no_gradient": 0, "unknown": 3}  # g = 0 decays
        assert "2 parameters (p, q) had NaN or infinite values in update 1" in watch.report
        assert "never had a gradient" not in watch.report
        assert np.isnan(ds.gradient_norm)


class TestStore:
    def test_it_is_read_while_it_grows_and_is_resumed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(monitor, "FLUSH_SECONDS", 0.0)
        monkeypatch.setattr(growing_store, "_CHUNK_BYTES", 0)  # 16 updates in a chunk
        model, path = Tiny(), tmp_path / "m.zarr"
        optimizer = adamw(model, lr=1e-2)
        states = []
        with dx.Monitor(model, optimizer, path, attrs={"seed": 1}) as watch:
            for step in range(20):
                train(model, optimizer, range(step, step + 1))
                if step == 16:
                    states = [{k: v.clone() for k, v in model.state_dict().items()}, adamw_state(optimizer)]
                if step % 13 == 0:
                    watch._wait()
                    assert dx.open_monitor(path).step.values.tolist() == list(range(1, step + 2))
                    assert not dx.open_monitor(path).attrs["complete"]
        whole = dx.open_monitor(path)
        assert whole.attrs["complete"]
        assert whole.attrs["seed"] == 1
        assert "numel" in xr.open_zarr(path, consolidated=False).coords
        model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
        with pytest.raises(DestinationExistsError, match="exists already"), dx.Monitor(model, optimizer, path):
            pass
        with dx.Monitor(model, optimizer, path, resume=True) as watch:
            assert dx.open_monitor(path).step.values.tolist() == list(range(1, 18))
            train(model, optimizer, range(17, 20))
        xr.testing.assert_identical(dx.open_monitor(path).drop_attrs(), whole.drop_attrs())
        with pytest.raises(InputError, match="holds other parameters"):
            dx.Monitor(model.norm.weight, optimizer, path, resume=True).__enter__()
        with dx.Monitor(model.norm.weight, optimizer, path, overwrite=True):
            train(model, optimizer, range(1))
        assert dx.open_monitor(path).step.values.tolist() == [21]
        dx.open_monitor(path).to_netcdf(tmp_path / "m.nc", engine="scipy", format="NETCDF3_64BIT")

    def test_what_is_no_store_of_a_monitor(self, tmp_path: Path, recording: Path) -> None:
        with pytest.raises(MissingFileError, match="no such file"):
            dx.open_monitor(tmp_path / "none")
        with pytest.raises(InputError, match="was not written by a Monitor"):
            dx.open_monitor(recording)
        model = Tiny()
        with pytest.raises(DestinationExistsError), dx.Monitor(model, adamw(model), recording, overwrite=True):
            pass

    def test_an_error_of_writing_is_raised_in_the_loop(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(monitor, "FLUSH_SECONDS", 0.0)
        model = Tiny()
        optimizer = adamw(model)
        watch = dx.Monitor(model, optimizer, tmp_path / "m").__enter__()
        train(model, optimizer, range(1))
        watch._wait()
        (tmp_path / "m" / "moved").rename(tmp_path / "moved")
        (tmp_path / "m" / "moved").write_text("")  # no folder any more
        train(model, optimizer, range(1, 2))
        with pytest.raises(WriteError, match="free disk space"):
            watch._wait()
        train(model, optimizer, range(2, 3))  # raised once
        watch.__exit__(None, None, None)


def adamw_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A deep copy of an optimizer's state."""
    found = optimizer.state_dict()
    state = {i: {k: v.clone() for k, v in each.items()} for i, each in found["state"].items()}
    return {"state": state, "param_groups": found["param_groups"]}


class TestBadInput:
    def test_parameters_that_cannot_be_watched(self) -> None:
        model = Tiny()
        optimizer = adamw(model)
        with pytest.raises(InputError, match="the optimizer does not have other"):
            dx.Monitor({"other": torch.nn.Parameter(torch.ones(2))}, optimizer)
        with pytest.raises(InputError, match="does not have embedding.weight and 1 more"):
            dx.Monitor(Tiny(), optimizer)
        with pytest.raises(InputError, match="takes a model or parameters, not a int"):
            dx.Monitor(3, optimizer)
        with pytest.raises(InputError, match="no parameter to watch"):
            dx.Monitor([], optimizer)
        for values, match in (
            (torch.ones(2, dtype=torch.complex64), "dtype complex64, which Monitor does not take"),
            (torch.ones(2, dtype=torch.float64), "dtype float64, which Monitor does not take"),
            (torch.empty(2, device="meta"), "on the meta device, so it has no values"),
        ):
            parameter = torch.nn.Parameter(values)
            with pytest.raises(InputError, match=match):
                dx.Monitor(parameter, torch.optim.SGD([parameter], lr=0.1))
        whole = torch.nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
        with pytest.raises(InputError, match="dtype int64"):
            dx.Monitor(whole, torch.optim.SGD([whole], lr=0.1))

    def test_options_and_optimizers(self, tmp_path: Path) -> None:
        model = Tiny()
        with pytest.raises(InputError, match="the optimizer is RMSprop.*copy=True.*0.0 MiB"):
            dx.Monitor(model.norm.weight, torch.optim.RMSprop([model.norm.weight]))
        with pytest.raises(InputError, match="has not been entered"):
            dx.Monitor(model, adamw(model)).__exit__(None, None, None)
        with pytest.raises(InputError, match="expected a torch optimizer"):
            dx.Monitor(model, model)
        for options, match in (
            ({"every": 0}, "every=0; expected a whole number"),
            ({"log": "wandb"}, "log is a str"),
            ({"overwrite": True, "resume": True}, "both overwrite and resume"),
            ({"path": "s3://bucket/m"}, "is an address"),
        ):
            with pytest.raises(InputError, match=match):
                dx.Monitor(model, adamw(model), **options)  # type: ignore[arg-type]

    def test_sparse_gradients(self) -> None:
        embedding = torch.nn.Embedding(4, 2, sparse=True)
        optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
        with dx.Monitor(embedding, optimizer):
            embedding(torch.tensor([1])).sum().backward()
            with pytest.raises(InputError, match="weight has a sparse gradient"):
                optimizer.step()


SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import deadtok_xr as dx
from tests.monitor.test_monitor import Tiny, adamw, train

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
model = Tiny()
mesh = init_device_mesh("cpu", (2,))
fully_shard(model, mesh=mesh, ignored_params={model.frozen, model.norm.weight})
optimizer = adamw(model, lr=1e-3)
with dx.Monitor(model, optimizer, f"{folder}/m", log=(lambda *a, step: print(step)) if rank == 0 else None):
    train(model, optimizer, range(3))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_parameters_sharded_by_fsdp2_on_two_processes(tmp_path: Path) -> None:
    """Both ranks train on the same data, so that the sums over the ranks are the counts of a single process."""
    pytest.importorskip("torch.distributed.fsdp", reason="this torch has no FSDP2")
    command = [sys.executable, "-c", SHARDED]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in ranks:
        assert process.wait(120) == 0, process.stderr.read().decode()[-2000:]  # type: ignore[union-attr]
    ds = dx.open_monitor(tmp_path / "m")
    model = Tiny()
    optimizer = adamw(model, lr=1e-3)
    with dx.Monitor(model, optimizer) as alone:
        train(model, optimizer, range(3))
    assert ds.exact.all()
    for name, values in alone.dataset().items():
        np.testing.assert_allclose(ds[name].values, values.values, rtol=1e-9, err_msg=str(name))
