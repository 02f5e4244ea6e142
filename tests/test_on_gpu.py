"""On a real NVIDIA GPU: recording, replay and analyses. Skipped where there is none.

`python -m benchmarks.gpu` compares single kernels with numba's; here everything runs as a user runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import deadtok_xr as dx
from deadtok_xr import testing
from tests.optimizer_runs import FLAGS, LEARNED, RUNS, train, with_flags

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")

CAPTURABLE = {
    "capturable": {"foreach": True, "capturable": True},
    "capturable, a loop": {"foreach": False, "capturable": True},
}
COMBINATIONS = [(run, flags) for run in RUNS for flags in (*FLAGS, *(CAPTURABLE if "Adam" in run else ()))]


def words(x: torch.Tensor) -> np.ndarray:
    return x.contiguous().view(torch.int16 if x.element_size() == 2 else torch.int32).cpu().numpy().copy()


def recorded(ds: Any, name: str) -> np.ndarray:
    values = ds[name].values
    return values.view(np.int16 if values.itemsize == 2 else np.int32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("run", "flags"), COMBINATIONS)
def test_every_optimizer_is_recorded_and_replayed_to_the_bit(
    tmp_path: Path, run: str, flags: str, dtype: torch.dtype
) -> None:
    cls, options = with_flags(RUNS[run], (FLAGS | CAPTURABLE)[flags])
    kept: list[torch.Tensor] = []
    train(tmp_path / "r.zarr", cls, options, dtype, schedule=True, device="cuda", kept=kept)
    raw = dx.open_recording(tmp_path / "r.zarr", raw=True)
    np.testing.assert_array_equal(recorded(raw, "W"), np.stack([words(x) for x in kept]))
    found = dx.analyze(tmp_path / "r.zarr", analyses=["mechanism"], device="cuda")["mechanism"].compute()
    assert int(found.n_missed.sum()) == 0
    assert int(found.n_moved.sum()) > 0


def test_scaler_clipping_and_a_skipped_step(tmp_path: Path) -> None:
    """Attempts 3 and 4 overflow on the GPU: they are no steps."""
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(12, 4, device="cuda")
    optimizer = torch.optim.AdamW(embedding.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0, growth_interval=10**6)
    states = [words(embedding.weight.detach())]
    with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr", variables=LEARNED, scaler=scaler):
        for attempt in range(8):
            ids = torch.randint(8, (16,), generator=torch.Generator().manual_seed(attempt)).cuda()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = functional.cross_entropy((embedding(ids) @ embedding.weight.T).float(), ids)
            scaler.scale(loss * (float("inf") if attempt in (3, 4) else 1)).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(embedding.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if attempt not in (3, 4):
                states.append(words(embedding.weight.detach()))
    rec = dx.open_recording(tmp_path / "r.zarr", raw=True)
    np.testing.assert_array_equal(recorded(rec, "W"), np.stack(states))
    np.testing.assert_array_equal(rec.skipped_before, [0, 0, 0, 0, 2, 0, 0])


@pytest.mark.parametrize("tokens", ["all", "dead"])
def test_analyses_on_the_gpu_find_what_the_cpu_finds(tmp_path: Path, tokens: str) -> None:
    path = testing.synthetic_recording(tmp_path / "r.zarr", steps=300, tokens=400, dims=24)
    names = ("motion", "phases", "kinematics", "topology", "census")
    on_cpu, on_gpu = (dx.analyze(path, analyses=names, tokens=tokens, device=d).compute() for d in ("cpu", "cuda"))
    assert [g.path for g in on_cpu.subtree] == [g.path for g in on_gpu.subtree]
    for group in on_cpu.subtree:
        for name, expected in group.dataset.data_vars.items():
            found = on_gpu[group.path][name]
            assert found.dtype == expected.dtype
            if expected.dtype.kind != "f":
                np.testing.assert_array_equal(found, expected, err_msg=f"{group.path}/{name}")
            elif name != "thermal_residual":  # what is left of it is rounding
                np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12, err_msg=f"{group.path}/{name}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "flags", [{"foreach": False}, {"foreach": True}, {"fused": True}, {"capturable": True}], ids=str
)
def test_a_monitor_counts_what_a_copy_shows(dtype: torch.dtype, flags: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(65, 33), torch.nn.LayerNorm(33)).to("cuda", dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **flags)
    moved = []
    with dx.Monitor(model, optimizer) as monitor:
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 65, device="cuda", dtype=dtype)).float().square().sum().backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            moved.append([int((p != q).sum()) for p, q in zip(model.parameters(), before, strict=True)])
    ds = monitor.dataset()
    assert ds.exact.all()
    assert ds.moved.values.tolist() == moved
    assert (ds.moved + ds.rounded_to_zero + ds.no_gradient == ds.numel).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("foreach", [False, True])
def test_a_monitor_of_tensors_of_all_sizes(dtype: torch.dtype, foreach: bool) -> None:
    """Several tiles, one element, another layout, and a first gradient that is later than those of the others."""
    torch.manual_seed(0)
    shapes = ((2**22 + 77,), (1,), (4, 3, 3, 3), (70, 33))
    parameters = [torch.nn.Parameter(torch.randn(shape, device="cuda").to(dtype)) for shape in shapes]
    parameters[2].data = parameters[2].data.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, foreach=foreach)
    names = [(f"p{i}", p) for i, p in enumerate(parameters)]
    with dx.Monitor(names, optimizer) as monitor, dx.Monitor(names, optimizer, copy=True) as copied:
        for t in range(3):
            for i, p in enumerate(parameters):
                p.grad = torch.randn_like(p) * (torch.rand_like(p) < 0.7) if t or i != 3 else None
            optimizer.step()
    ds, expected = monitor.dataset(), copied.dataset()
    assert ds.exact.all()
    for name in ("moved", "rounded_to_zero", "no_gradient", "unknown", "visible"):
        np.testing.assert_array_equal(ds[name], expected[name])
    np.testing.assert_allclose(ds.realised_norm, expected.realised_norm, rtol=1e-12)
