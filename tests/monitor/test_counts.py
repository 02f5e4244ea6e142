"""What a Monitor counts, compared with copies of all weights, gradients and moments, counted in plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import deadtok_xr as dx
from deadtok_xr.bfloat16 import BFLOAT16, to_bits, ulp
from deadtok_xr.monitor import tiles

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Mixed(torch.nn.Module):
    """Parameters of ranks 1 to 4, one that never gets a gradient, and one that is not contiguous."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        shapes = {"norm": (33,), "matrix": (70, 33), "cube": (3, 5, 7), "conv": (4, 3, 3, 3), "idle": (9,)}
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.randn(shape, generator=g).mul_(0.5).to(dtype)))
        self.norm.data.fill_(1.0)
        self.conv.data = self.conv.data.to(memory_format=torch.channels_last)
        self.scalar = torch.nn.Parameter(torch.tensor(2.0).to(dtype))

    def set_gradients(self, seed: int) -> None:
        """Set gradients of many sizes, some of them zero, as if a backward pass had made them."""
        g = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if name != "idle":
                size = torch.exp2(torch.randint(-30, 4, p.shape, generator=g).float())
                grad = torch.randn(p.shape, generator=g) * size * (torch.rand(p.shape, generator=g) < 0.8)
                p.grad = grad.to(p.dtype).to(memory_format=torch.channels_last) if p.ndim == 4 else grad.to(p.dtype)


def to_array(x: torch.Tensor) -> np.ndarray:
    """The values of a tensor in its own format."""
    x = x.detach().contiguous()
    return x.view(torch.int16).numpy().copy().view(BFLOAT16) if x.dtype == torch.bfloat16 else x.numpy().copy()


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda p, **o: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1, **o),
    "adam": lambda p, **o: torch.optim.Adam(p, lr=1e-3, weight_decay=0.01, amsgrad=True, maximize=True, **o),
    "sgd": lambda p, **o: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3, **o),
    "plain sgd": lambda p, **o: torch.optim.SGD(p, lr=0.1, **o),
}


def state_of(optimizer: torch.optim.Optimizer, p: torch.Tensor) -> dict[str, np.ndarray]:
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
    kept = optimizer.state.get(p, {})
    return {n: to_array(kept[n]).astype(np.float64) for n in names if kept.get(n) is not None}


def expected(w0: np.ndarray, w1: np.ndarray, g: np.ndarray | None, u: np.ndarray) -> dict[str, int]:
    """Count in float64 from the definitions."""
    a, b = w0.astype(np.float64), w1.astype(np.float64)
    if g is None:
        return {"moved": int((a != b).sum()), "rounded_to_zero": 0, "no_gradient": a.size, "unknown": 0}
    moved, none = a != b, (g == 0) & (u == 0)
    return {
        "moved": int(moved.sum()),
        "rounded_to_zero": int((~moved & ~none).sum()),
        "no_gradient": int((~moved & none).sum()),
        "unknown": 0,
    }


def intended(group: dict[str, Any], t: int, w: np.ndarray, g: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """The update before rounding, from the state after it, in float64."""
    w, lr = w.astype(np.float64), group["lr"]
    g = g.astype(np.float64) * (-1 if group["maximize"] else 1)
    if "betas" not in group:
        g = g + group["weight_decay"] * w
        if not group["momentum"]:
            return -lr * g
        buffer = state["momentum_buffer"]
        return -lr * (g + group["momentum"] * buffer)
    b1, b2 = group["betas"]
    v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    u = -lr / (1 - b1**t) * state["exp_avg"] / (np.sqrt(v) / np.sqrt(1 - b2**t) + group["eps"])
    return u - lr * group["weight_decay"] * w if group["decoupled_weight_decay"] else u


@pytest.mark.parametrize(
    ("kind", "how", "dtype", "where"),
    [
        ("adamw", "single", "bfloat16", "on the CPU"),
        ("adamw", "foreach", "bfloat16", "on the CPU"),
        ("adamw", "fused", "bfloat16", "on the CPU"),
        ("adamw", "fused", "float32", "on the CPU"),
        ("adam", "single", "float32", "on the CPU"),
        ("adam", "fused", "float16", "on the CPU"),
        ("sgd", "single", "float16", "on the CPU"),
        ("sgd", "foreach", "bfloat16", "on the CPU"),
        ("sgd", "fused", "float32", "on the CPU"),
        ("plain sgd", "single", "bfloat16", "on the CPU"),
        ("adamw", "foreach", "float32", "as on a GPU"),
        ("adam", "single", "float32", "as on a GPU"),
        ("adamw", "fused", "float32", "as on a GPU"),
        ("sgd", "foreach", "float32", "as on a GPU"),
    ],  # not fused SGD in 16 bits, which leaves most weights and the memory of its buffer: pytorch/pytorch#191763
)
def test_counts_are_those_of_a_copy(
    kind: str, how: str, dtype: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts equal those of a copy exactly, norms and margins to rounding, and the training is that of an unwatched."""
    monkeypatch.setattr(tiles, "ON_CPU", 1024)  # so that the matrix has several tiles
    if where == "as on a GPU":
        monkeypatch.setattr(tiles, "on_cpu", lambda x: False)
        monkeypatch.setattr(tiles, "ON_DEVICE", 1024)
    flags = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}[how]
    model, unwatched = Mixed(DTYPES[dtype]), Mixed(DTYPES[dtype])
    optimizer, other = (OPTIMIZERS[kind](m.parameters(), **flags) for m in (model, unwatched))
    for each in (optimizer, other):
        if "eps" in each.param_groups[0]:
            each.param_groups[0]["eps"] = 1e-4  # 1e-8 is 0 in float16
    truth: list[dict[str, dict[str, Any]]] = []
    with dx.Monitor(model, optimizer) as monitor:
        for t in range(1, 5):
            model.set_gradients(t)
            unwatched.set_gradients(t)
            w0 = {n: to_array(p) for n, p in model.named_parameters()}
            g = {n: None if p.grad is None else to_array(p.grad) for n, p in model.named_parameters()}
            v0 = {n: state_of(optimizer, p).get("exp_avg_sq", np.zeros(p.shape)) for n, p in model.named_parameters()}
            optimizer.step()
            other.step()
            step = {}
            for n, p in model.named_parameters():
                w1, state = to_array(p), state_of(optimizer, p)
                group = optimizer.param_groups[0]
                u = np.zeros(p.shape) if g[n] is None else intended(group, t, w0[n], g[n], state)
                found: dict[str, Any] = expected(w0[n], w1, g[n], u)
                found["visible"] = int((w0[n].astype(BFLOAT16) != w1.astype(BFLOAT16)).sum())
                found["weight_norm"] = np.linalg.norm(w1.astype(np.float64))
                found["realised_norm"] = np.linalg.norm(w1.astype(np.float64) - w0[n])
                if g[n] is not None:
                    found["gradient_norm"] = np.linalg.norm(g[n].astype(np.float64))
                    found["update_norm"] = np.linalg.norm(u)
                    found["margins"] = np.log2(np.abs(u[u != 0]) / half_gap(w0[n], u)[u != 0])
                    if kind == "adamw":
                        differs = g[n].astype(np.float64) ** 2 != v0[n]
                        found["stalled"] = int(((v0[n] == state["exp_avg_sq"]) & differs).sum())
                step[n] = found
            truth.append(step)
    for (name, p), q in zip(model.named_parameters(), unwatched.parameters(), strict=True):
        assert (to_bits(to_array(p)) == to_bits(to_array(q))).all(), name
    ds = monitor.dataset()
    assert ds.exact.all()
    assert ds.step.values.tolist() == [1, 2, 3, 4]
    sums = sum(ds[n] for n in ("moved", "rounded_to_zero", "no_gradient", "unknown"))
    assert (sums == ds.numel).all()
    for t, step in enumerate(truth, 1):
        for name, found in step.items():
            got = ds.sel(step=t, parameter=name)
            place = f"{name} at {t}"
            for count in ("moved", "rounded_to_zero", "no_gradient", "unknown", "visible", "stalled"):
                assert count not in found or int(got[count]) == found[count], f"{count} of {place}"
            for norm in ("weight_norm", "realised_norm", "gradient_norm", "update_norm"):
                if norm != "update_norm" or dtype == "float32":  # in 16 bits u has the roundings of the arithmetic
                    otherwise = np.nan if norm == "gradient_norm" else 0
                    np.testing.assert_allclose(float(got[norm]), found.get(norm, otherwise), rtol=1e-5, err_msg=place)
            if "margins" in found and dtype == "float32":
                edges = [-np.inf, *ds.margin_bin.values[1:], np.inf]
                off = np.abs(got.margin_count.values - np.histogram(found["margins"], edges)[0]).sum()
                assert off <= 2, place  # an update beside the edge of a bin
                assert int(got.margin_count.sum()) == len(found["margins"]), place
    assert (ds.stalled >= 0).all("step").sel(parameter="matrix") == ("adam" in kind)
    assert (ds.gradient_norm.isnull() == (ds.parameter == "idle")).all()


def half_gap(w: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Half the distance to the next number in the direction of u."""
    x = np.abs(w.astype(np.float64))
    inward = (np.sign(u) == -np.sign(w.astype(np.float64))) & (np.frexp(x)[0] == 0.5)
    tiny = np.float64(ulp(np.zeros(1, w.dtype))[0])
    return np.where(inward, np.maximum(ulp(w) / 2, tiny), ulp(w)) / 2
