"""Updates that are not those of a plain model: memory layouts, threads, first momentum, optimizers of others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from deadtok_xr.monitor.workers import Workers
from deadtok_xr.replay import arithmetic
from deadtok_xr.replay.settings import read_settings


@pytest.fixture
def two_threads() -> Any:
    """Let torch use two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def monitored(parameters: list[torch.nn.Parameter], optimizer: Any, gradients: list[list[Any]], **options: Any) -> Any:
    """The dataset of a training with given gradients, and the elements of each parameter that moved."""
    names = [(f"p{i}", p) for i, p in enumerate(parameters)]
    moved = []
    with dx.Monitor(names, optimizer, **options) as monitor:
        for of_step in gradients:
            for p, g in zip(parameters, of_step, strict=True):
                p.grad = g
            before = [p.detach().clone() for p in parameters]
            optimizer.step()
            moved.append([int((p != w).sum()) for p, w in zip(parameters, before, strict=True)])
    return monitor.dataset(), moved


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_any_layout_in_memory(kind: type[torch.optim.Optimizer]) -> None:
    """Steps in the last dim, a transposed gradient, channels_last with a contiguous one, an expanded gradient."""
    torch.manual_seed(0)
    weights = [
        torch.randn(8, 6)[:, ::2],
        torch.randn(601, 41),
        torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(7, 5),
        torch.randn(3, 11)[1],
    ]
    parameters = [torch.nn.Parameter(w) for w in weights]
    assert parameters[0].stride(-1) == 2
    gradients = [
        [torch.randn(8, 3), torch.randn(41, 601).T, torch.randn(4, 3, 3, 3), torch.randn(7, 1).expand(7, 5),
         torch.randn(11)]
        for _ in range(3)
    ]  # fmt: skip
    ds, moved = monitored(parameters, kind(parameters, lr=1e-2), gradients)  # type: ignore[call-arg]
    assert ds.exact.all()
    assert ds.moved.values.tolist() == moved


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("kind", "dtype", "seeds"),
    [
        (lambda p: torch.optim.SGD(p, lr=1e-2), torch.bfloat16, range(8)),
        (lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True), torch.float32, (19, 24, 31, 41, 52, 63)),
        (lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, fused=True), torch.float32, range(3)),
    ],
    ids=["SGD", "fused AdamW", "fused SGD"],
)  # the sizes and seeds are those at which parts that are cut elsewhere showed
def test_tiles_are_cut_where_torch_divides_tensors(kind: Any, dtype: torch.dtype, seeds: Any) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        p = torch.nn.Parameter(torch.randn(100_003).to(dtype))
        ds, moved = monitored([p], kind([p]), [[torch.randn(100_003).to(dtype)] for _ in range(5)])
        assert ds.exact.all(), seed
        assert ds.moved.values.tolist() == moved, seed


@pytest.mark.usefixtures("two_threads")
def test_workers_use_one_thread_whenever_they_begin() -> None:
    workers = Workers()

    def threads(seconds: float) -> int:
        time.sleep(seconds)
        return torch.get_num_threads()

    assert workers.map(threads, [(0.0,)]) == [1]
    assert torch.get_num_threads() == 2
    assert workers.map(threads, [(0.1,)] * 4) == [1] * 4  # the second worker has its first task here
    torch.set_num_threads(3)
    workers.map(threads, [(0.0,)])
    assert torch.get_num_threads() == 3
    workers.close()


def test_the_first_momentum_of_another_parameter() -> None:
    """torch then updates every parameter of the group in a loop, which rounds differently from foreach in 16 bits."""
    torch.manual_seed(0)
    a, b = (torch.nn.Parameter(torch.randn(64).bfloat16()) for _ in range(2))
    optimizer = torch.optim.SGD([a, b], lr=0.5, momentum=0.9, foreach=True)
    gradients = [[torch.randn(64).bfloat16(), torch.randn(64).bfloat16() if t else None] for t in range(3)]
    ds, moved = monitored([a, b], optimizer, gradients)
    assert ds.exact.all()
    assert ds.moved.values.tolist() == moved


class Others(torch.optim.Optimizer):
    """An optimizer whose state has names of torch's, and an int as its count."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move against the signs of the gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                state["exp_avg_sq"], state["momentum_buffer"] = torch.zeros(1), [p.clone()]
                p.sub_(group["lr"] * p.grad.sign())


@pytest.mark.usefixtures("where")
def test_an_optimizer_of_others() -> None:
    p = torch.nn.Parameter(torch.ones(10))
    ds, _ = monitored([p], Others([p]), [[torch.ones(10)], [torch.ones(10)]], copy=True)
    assert ds.moved.values.tolist() == [[10], [10]]


@pytest.mark.usefixtures("where")
def test_a_parameter_without_gradient_is_counted_alike_with_and_without_a_copy() -> None:
    found = []
    for copy in (False, True):
        p, q = torch.nn.Parameter(torch.tensor([1.0, np.nan, np.inf])), torch.nn.Parameter(torch.ones(1))
        ds, _ = monitored([p, q], torch.optim.SGD([p, q], lr=0.1), [[None, torch.ones(1)]], copy=copy)
        at = ds.isel(step=0, parameter=0)
        found.append([int(at[name]) for name in ("moved", "rounded_to_zero", "no_gradient", "unknown")])
        assert np.isnan(at.realised_norm)
    assert found == [[0, 0, 1, 2]] * 2


def test_sgd_is_resumed_where_the_caller_says(tmp_path: Path) -> None:
    """SGD keeps no count of its updates, so that the rows which are to be replaced are not known."""
    p = torch.nn.Parameter(torch.randn(10))
    optimizer = torch.optim.SGD([p], lr=0.1)
    one = [[torch.ones(10)]]
    monitored([p], optimizer, one * 5, path=tmp_path / "m")
    with pytest.raises(InputError, match=r"m ends at update 5, and the optimizer \(SGD\) does not say.*first_step="):
        monitored([p], optimizer, one, path=tmp_path / "m", resume=True)
    monitored([p], optimizer, one * 3, path=tmp_path / "m", resume=True, first_step=4)
    assert dx.open_monitor(tmp_path / "m").step.values.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_updates_are_multiples_after_fused_steps_that_a_scaler_skipped() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(10))
    optimizer = torch.optim.AdamW([p], lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with dx.Monitor([("p", p)], optimizer, every=3) as monitor:
        for attempt in range(12):
            optimizer.zero_grad()
            scaler.scale((p * (float("inf") if attempt in (1, 4, 5) else 1)).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert monitor.step == 9
    assert monitor.dataset().step.values.tolist() == [3, 6, 9]
    assert int(monitor.dataset().skipped_before.sum()) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_count_on_the_device_gives_the_same_update(dtype: torch.dtype) -> None:
    """A count of each element, as of capturable optimizers, does not promote what torch computes in the dtype."""
    torch.manual_seed(0)
    settings = read_settings({"optimizer": "AdamW", "hyperparameters": {
        "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False, "maximize": False,
    }}, {}, where="test")  # fmt: skip
    tensors = {name: torch.rand(1000).to(dtype) for name in ("W", "grad", "exp_avg", "exp_avg_sq")}
    counts = torch.full((1000,), 7.0, dtype=torch.float64)
    by_number, by_tensor = (
        arithmetic.unrounded_update("single", settings, t, 1e-3, tensors, tensors)  # type: ignore[arg-type]
        for t in (7, counts)
    )
    torch.testing.assert_close(by_tensor, by_number, rtol=2e-7, atol=0)  # float32 is divided in float64


def test_an_update_of_zero_is_not_called_one_that_was_rounded() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([p], lr=0.0)
    with dx.Monitor([("p", p)], optimizer, every=2) as monitor:
        p.grad = torch.ones(4)
        optimizer.step()
        assert monitor.report == "No update was monitored: every=2, and the last update is 1."
        optimizer.step()
    expected = (
        "1 parameter (p) did not move in the monitored update: each update was exactly 0, as with a learning rate"
    )
    assert expected in monitor.report


@pytest.mark.parametrize(("lr", "part", "factor"), [(3e-3, "", 2), (1.8e-3, "1/2 of ", 4), (3e-4, "1/8 of ", 16)])
def test_the_advised_learning_rate_moves_the_weights(lr: float, part: str, factor: int) -> None:
    """An update of AdamW with a constant gradient is the learning rate; 1.0 moves up from 2^-8 on."""
    for rate in (lr, 1.01 * factor * lr):
        p = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        optimizer = torch.optim.AdamW([p], lr=rate, weight_decay=0.0)
        with dx.Monitor([("p", p)], optimizer) as monitor:
            p.grad = -torch.ones_like(p)
            optimizer.step()
        moved = rate > lr
        assert bool((p != 1).all()) == moved
        advice = f"even the largest were below {part}the half gap that they would have to cross; keep these parameters"
        assert (advice in monitor.report) != moved
        assert (f"or the learning rate more than {factor} times as high" in monitor.report) != moved


@pytest.mark.slow
def test_a_compiled_step(tmp_path: Path) -> None:
    """torch.compile leaves the hooks of a Recorder and a Monitor as they are."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(6, 4).bfloat16())
    optimizer = torch.optim.AdamW([p], lr=1e-2)
    step = torch.compile(optimizer.step, backend="eager")
    moved, steps = [], [p.detach().clone()]
    with dx.Recorder(p, optimizer, tmp_path / "r.zarr"), dx.Monitor([("p", p)], optimizer, copy=True) as monitor:
        for _ in range(4):
            p.grad = torch.randn(6, 4).bfloat16()
            step()
            moved.append([int((p != steps[-1]).sum())])
            steps.append(p.detach().clone())
    assert monitor.dataset().moved.values.tolist() == moved
    W = dx.open_recording(tmp_path / "r.zarr", tokens="all").W.values
    np.testing.assert_array_equal(W, torch.stack(steps).float().numpy())
