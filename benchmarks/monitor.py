"""Measure the cost of monitoring a training loop, beside histograms of the same parameters as wandb.watch makes them.

    python -m benchmarks.monitor [--steps 8] [--batch 16] [--length 64] [--dtype float32] [--device cuda]

The loop is a step of a transformer of 10 million parameters under AdamW. Each way trains a model of its own, and one
step of each is made in turn. The cost is the time between the first and the last thing that the way does in a step, as
a share of the rest of that very step, so that a busy machine slows both sides alike.

- *monitor*: `dx.Monitor` with a store, every update monitored: counts, margins, norms.
- *copy*: the same with ``copy=True``.
- *sample*: `dx.Recorder` of 1,024 elements of every parameter, with gradient and both moments.
- *histograms*: 64 bins of each parameter and of each gradient, between its minimum and maximum, as
  ``wandb.watch(log="all")`` computes them; without sending or writing them.
- *norms*: the norm of each parameter and gradient, one transfer each.

For every=100 the table has (one monitored update + 99 others) / 100, of which the others are measured too.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn import functional

import deadtok_xr as dx
from deadtok_xr import demo

WAYS = ("none", "monitor", "copy", "sample", "histograms", "norms")


class Loop:
    """A model, its optimizer, and one training step at a time, with the time that a way takes of it."""

    def __init__(self, vocabulary: int, run: demo.Run, dtype: torch.dtype, device: str) -> None:
        torch.manual_seed(0)
        self.vocabulary, self.run, self.device = vocabulary, run, device
        self.model = demo.TinyLM(vocabulary, run).to(device, dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=run.lr)
        self.made, self.within = 0, 0.0

    def step(self) -> float:
        """Make an update; return its wall-clock time."""
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(self.made)
        shape = (self.run.batch, self.run.length + 1)
        ids = torch.randint(self.vocabulary, shape, generator=generator).to(self.device)
        logits = self.model(ids[:, :-1]) @ self.model.embedding.weight.T
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.made += 1
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def start(self, *_: Any) -> None:
        """Begin to measure the way."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.within -= time.perf_counter()

    def stop(self, *_: Any) -> None:
        """End to measure the way."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.within += time.perf_counter()


@contextmanager
def attached(loop: Loop, way: str, folder: Path, every: int = 1) -> Iterator[None]:
    """Attach a way to the loop's optimizer, between hooks that measure it."""
    for register in (loop.optimizer.register_step_pre_hook, loop.optimizer.register_step_post_hook):
        register(loop.start)
    with ExitStack() as stack:
        if way in ("monitor", "copy"):
            stack.enter_context(
                dx.Monitor(loop.model, loop.optimizer, folder / f"{way} {every}", every=every, copy=way == "copy")
            )
        elif way == "sample":
            everything = ("W", "grad", "exp_avg", "exp_avg_sq")
            stack.enter_context(
                dx.Recorder(
                    loop.model,
                    loop.optimizer,
                    folder / way,
                    sample=1024,
                    variables=everything,
                    memory=2**26,
                    every=every,
                )
            )
        elif way != "none":
            made = histograms if way == "histograms" else norms
            loop.optimizer.register_step_post_hook(lambda *_: made(loop.model))
        for register in (loop.optimizer.register_step_pre_hook, loop.optimizer.register_step_post_hook):
            register(loop.stop)
        yield


def histograms(model: torch.nn.Module) -> None:
    """Make a histogram of each parameter and gradient, with the operations of wandb's torch integration."""
    for p in model.parameters():
        for x in (p.detach(), p.grad):
            if x is None:
                continue
            flat = x.reshape(-1).float()
            if not torch.isfinite(flat).all():
                flat = flat[torch.isfinite(flat)]
            low, high = flat.min().item(), flat.max().item()
            flat.histc(bins=64, min=low, max=high).cpu()


def norms(model: torch.nn.Module) -> None:
    """Make the norm of each parameter and gradient."""
    for p in model.parameters():
        for x in (p.detach(), p.grad):
            if x is not None:
                x.norm().item()


@click.command()
@click.option("--steps", default=8, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--length", default=64, show_default=True)
@click.option("--dims", default=256, show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(steps: int, batch: int, length: int, dims: int, dtype: str, device: str) -> None:
    """Measure, and print a table."""
    run = demo.Run(batch=batch, length=length, dims=dims, layers=10, heads=4)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        loops = {way: Loop(8192, run, getattr(torch, dtype), device) for way in WAYS}
        loops["others"] = Loop(8192, run, getattr(torch, dtype), device)
        for way, loop in loops.items():
            other = way == "others"
            stack.enter_context(attached(loop, "monitor" if other else way, Path(name), 10**9 if other else 1))
        shares: dict[str, list[float]] = {way: [] for way in loops}
        rest: list[float] = []
        for i in range(steps + 1):  # the first compiles
            for way, loop in loops.items():
                before = loop.within
                whole = loop.step()
                within = loop.within - before
                if i:
                    shares[way].append(within / (whole - within))
                    rest.append(whole - within)
    n = sum(p.numel() for p in loops["none"].model.parameters())
    print(f"{n:,} parameters, {dtype} on {device}, batch {batch} x {length}, {torch.get_num_threads()} threads: "
          f"{statistics.median(rest) * 1e3:.0f} ms a step")  # fmt: skip
    print(f"{'':12} {'every=1':>9} {'[min, max]':>20} {'every=100':>10}")
    others = statistics.median(shares["others"])
    for way in WAYS[1:]:
        share = statistics.median(shares[way])
        of_100 = (share + 99 * (others if way in ("monitor", "copy") else 0)) / 100
        print(f"{way:12} {share:9.1%} {f'[{min(shares[way]):.1%}, {max(shares[way]):.1%}]':>20} {of_100:10.2%}")


if __name__ == "__main__":
    main()
