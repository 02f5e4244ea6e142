"""Measure the throughput of `mechanism` and `replay_open_loop`: elements of updates per second.

    python -m benchmarks.mechanism [--steps 64] [--tokens 4000] [--dims 64]

The recording is AdamW in bfloat16, in memory, with a learning rate that falls: at first most elements move, at the end
most updates round to zero. An element is one of (step, token, dim); W, the gradient and both moments of it are read.
The classes have the form of asv (https://asv.readthedocs.io), which can run them as they are.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import click
import ml_dtypes
import numpy as np
import torch
import xarray as xr

import deadtok_xr as dx

FLAGS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
SIZE = (64, 4000, 64)
LEARNED = ("W", "grad", "exp_avg", "exp_avg_sq")


@cache
def updates(size: tuple[int, int, int], implementation: str = "single") -> xr.Dataset:
    """A recording of so many updates (step, token, dim), chunked as a store is; a third of the tokens is dead."""
    n_steps, n_tokens, n_dims = size
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(n_tokens, n_dims, generator=generator).mul_(0.02).bfloat16())
    optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.0, **FLAGS[implementation])
    kept = {name: np.zeros((n_steps + 1, n_tokens, n_dims), ml_dtypes.bfloat16) for name in LEARNED}
    kept["W"][0], kept["grad"][0] = bits(weight), np.nan
    h = torch.randn(n_steps + 1, n_dims, generator=generator)  # what all gradients have in common
    rates = 1e-3 * 10.0 ** (-5 * np.arange(n_steps + 1) / n_steps)
    for t in range(1, n_steps + 1):
        noise = torch.randn(n_tokens, n_dims, generator=generator)
        weight.grad = (h[t] + 0.1 * noise).bfloat16()
        optimizer.param_groups[0]["lr"] = rates[t]
        optimizer.step()
        for name, tensor in zip(LEARNED, (weight, weight.grad, *moments(optimizer, weight)), strict=True):
            kept[name][t] = bits(tensor)
    dims = ("step", "token", "dim")
    settings = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    return xr.Dataset(
        {
            **{name: (dims, x, {"precision": "bfloat16"}) for name, x in kept.items()},
            "lr": ("step", rates),
            "h_mean": (("step", "dim"), h.numpy()),
        },
        {"step": np.arange(n_steps + 1), "token": np.arange(n_tokens), "dead": ("token", np.arange(n_tokens) % 3 == 0)},
        {"optimizer": "AdamW", "hyperparameters": settings},
    ).chunk({"step": 128, "token": 512})  # as a keyword, `token` is something else to xarray


def moments(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> tuple[torch.Tensor, torch.Tensor]:
    """Adam's two."""
    state = optimizer.state[weight]
    return state["exp_avg"], state["exp_avg_sq"]


def bits(tensor: torch.Tensor) -> Any:
    """A bfloat16 tensor as an array of the same bits."""
    return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


class Mechanism:
    """Every update replayed, every element classed, every per-step and per-token result."""

    params = (tuple(FLAGS),)
    param_names = ("implementation",)
    unit = "elements/s"
    size = SIZE

    def setup(self, implementation: str) -> None:
        ds = updates(self.size, implementation)
        dx.mechanism(ds.isel(step=slice(0, 3), token=slice(0, 4)), arithmetic=implementation).compute()  # compiles
        self.lazy = dx.mechanism(ds)
        self.elements = int(np.prod(self.size))

    def time_mechanism(self, implementation: str) -> None:
        self.result = self.lazy.compute()

    def track_throughput(self, implementation: str) -> float:
        return self.elements / seconds(lambda: self.time_mechanism(implementation))


class OpenLoop:
    """The gradients once more, under another way of keeping weights."""

    params = (("float32_master", "stochastic", "kahan"),)
    param_names = ("scheme",)
    unit = "elements/s"
    size = SIZE

    def setup(self, scheme: str) -> None:
        self.lazy = dx.replay_open_loop(updates(self.size), scheme)
        self.elements = int(np.prod(self.size))

    def time_open_loop(self, scheme: str) -> None:
        self.result = self.lazy.compute()

    def track_throughput(self, scheme: str) -> float:
        return self.elements / seconds(lambda: self.time_open_loop(scheme))


def seconds(work: Callable[[], object], runs: int = 3) -> float:
    """The median of a few runs."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def report(kind: Any, size: tuple[int, int, int]) -> None:
    """Print the throughput of one class for each of its parameters."""
    for value in kind.params[0]:
        benchmark = kind()
        benchmark.size = size
        benchmark.setup(value)
        used, began = time.process_time(), time.perf_counter()
        rate = benchmark.track_throughput(value)
        cores = (time.process_time() - used) / (time.perf_counter() - began)
        click.echo(f"{kind.__name__:10s} {value:16s} {rate / 1e6:8.1f} million elements/s on {cores:.1f} cores")


@click.command()
@click.option("--steps", default=SIZE[0], show_default=True)
@click.option("--tokens", default=SIZE[1], show_default=True)
@click.option("--dims", default=SIZE[2], show_default=True)
def main(steps: int, tokens: int, dims: int) -> None:
    """Print throughputs."""
    for kind in (Mechanism, OpenLoop):
        report(kind, (steps, tokens, dims))


if __name__ == "__main__":
    main()
