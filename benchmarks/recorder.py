"""Measure the cost of recording in a training loop, compared with no recording and with the notebooks' methods.

    python -m benchmarks.recorder [--steps 24] [--batch 128] [--length 128] [--ways "none,W,all four"] [--device cuda]

The loop is a step of the demo's model at 10,000 tokens x 64 dims, in bfloat16. Each way trains a model of its own with
its own recording, and one step of each is made in turn. Three figures, from the least to the most disturbed by what
else a machine does:

- *in the loop*: the time between the first and the last thing that the way does in a step, as a share of the rest
  of that very step. It needs no second loop to compare with, so a busy machine slows both sides alike.
- *CPU*: what all threads of the way take of a core, as a share of the CPU time of a step without it. A thread that
  writes beside the training can at most cost this much, where every core is busy.
- *ratio*: the step against the step without recording that was made in the same round; median, and the interval
  that holds the true median with 95%.

Blocks hold 8 steps instead of 128, so that writing falls into the measured steps; that is dearer than real blocks.
`apart` is the same work on an idle machine with real blocks, in milliseconds: from it, the share at any other step time
can be computed. With `--device cuda` a step ends when the GPU is done, *in the loop* and *CPU* are those of the host,
and `apart` is left out; the ratio is the figure that counts.

Ways: `none`; `W` and `all four` with `dx.Recorder`; `RAM list`, W cloned into a list; `HDF5` and `HDF5 gzip-1`, all
four appended to an HDF5 file, one step per chunk.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import torch
from scipy.stats import binom
from torch.nn import functional

import deadtok_xr as dx
from deadtok_xr import demo
from deadtok_xr.recorder.host_buffers import to_numpy

ALL = ("W", "grad", "exp_avg", "exp_avg_sq")
BLOCK = 8  # steps


class Stopwatch:
    """Time between `start` and `stop`, added up over a step: wall clock, and CPU of the thread that calls."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def start(self, *_: Any) -> None:
        self.wall -= time.perf_counter()
        self.cpu -= time.thread_time()

    def stop(self, *_: Any) -> None:
        self.wall += time.perf_counter()
        self.cpu += time.thread_time()


@contextmanager
def timed(optimizer: torch.optim.Optimizer, recorder: dx.Recorder, watch: Stopwatch) -> Iterator[dx.Recorder]:
    """Enter a Recorder between hooks of our own: what lies between them is its time in the loop."""
    optimizer.register_step_pre_hook(watch.start)
    optimizer.register_step_post_hook(watch.start)
    with recorder:
        optimizer.register_step_pre_hook(watch.stop)
        optimizer.register_step_post_hook(watch.stop)
        yield recorder


class Loop:
    """A model, its optimizer, and one training step at a time."""

    def __init__(self, vocabulary: int, run: demo.Run, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.vocabulary, self.run, self.device = vocabulary, run, device
        self.model = demo.TinyLM(vocabulary, run).to(device, torch.bfloat16)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=run.lr, weight_decay=0.0)
        self.weight: Any = self.model.embedding.weight
        self.made = 0
        self.watch = Stopwatch()
        self.after: Callable[[], None] = lambda: None

    def step(self) -> None:
        """One update, and what the way of recording does after it."""
        generator = torch.Generator().manual_seed(self.made)
        shape = (self.run.batch, self.run.length + 1)
        ids = torch.randint(self.vocabulary * 5 // 8, shape, generator=generator).to(self.device)
        hidden = self.model(ids[:, :-1])
        loss = functional.cross_entropy((hidden @ self.weight.T).flatten(0, 1).float(), ids[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.made += 1
        self.watch.start()
        self.after()
        self.watch.stop()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The four, as they are after a step."""
        state = self.optimizer.state[self.weight]
        return {"W": self.weight, "grad": self.weight.grad, **{k: state[k] for k in ALL[2:]}}


@contextmanager
def none(loop: Loop, folder: Path) -> Iterator[None]:
    """No recording."""
    yield


def recorder(*variables: str) -> Callable[..., Any]:
    """A way: `dx.Recorder` of some variables."""

    def way(loop: Loop, folder: Path) -> Any:
        memory = 2 * BLOCK * len(variables) * loop.weight.numel() * loop.weight.element_size()
        recording = dx.Recorder(loop.weight, loop.optimizer, folder / "r.zarr", variables=variables, memory=memory)
        return timed(loop.optimizer, recording, loop.watch)

    return way


@contextmanager
def ram_list(loop: Loop, folder: Path) -> Iterator[None]:
    """The notebooks' first way: W in a list, saved at the end, when there is memory for it."""
    held: list[torch.Tensor] = []
    loop.after = lambda: held.append(loop.weight.detach().clone())
    yield


def hdf5(compression: dict[str, Any]) -> Callable[..., Any]:
    """The notebooks' later way: all four appended to an HDF5 file at each step."""

    @contextmanager
    def way(loop: Loop, folder: Path) -> Iterator[None]:
        with h5py.File(folder / "r.h5", "w") as file:
            shape = tuple(loop.weight.shape)
            for name in ALL:
                file.create_dataset(name, (0, *shape), "u2", maxshape=(None, *shape), chunks=(1, *shape), **compression)

            def append() -> None:
                for name, tensor in loop.tensors().items():
                    file[name].resize(loop.made, axis=0)
                    file[name][loop.made - 1] = to_numpy(tensor).view(np.uint16)

            loop.after = append
            yield

    return way


WAYS: dict[str, Callable[..., Any]] = {
    "none": none,
    "W": recorder("W"),
    "all four": recorder(*ALL),
    "RAM list": ram_list,
    "HDF5": hdf5({}),
    "HDF5 gzip-1": hdf5({"compression": "gzip", "compression_opts": 1}),
}


@dataclass
class Step:
    """Seconds of one step: in all, of what the way does in it, and CPU time of all threads."""

    wall: float
    within: float
    cpu: float


def compare(
    folder: Path, vocabulary: int, run: demo.Run, steps: int, names: Sequence[str] = tuple(WAYS), device: str = "cpu"
) -> dict[str, list[Step]]:
    """Each step of each way; the first, which compiles and allocates, is left out."""
    found: dict[str, list[Step]] = {name: [] for name in names}
    with ExitStack() as stack:
        loops = {}
        for name in names:
            (folder / name).mkdir(parents=True)
            loops[name] = Loop(vocabulary, run, device)
            stack.enter_context(WAYS[name](loops[name], folder / name))
        for step in range(steps + 1):
            first = step % len(names)
            for name in (*names[first:], *names[:first]):
                measured = one(loops[name])
                if step:
                    found[name].append(measured)
    return found


def one(loop: Loop) -> Step:
    """A step, measured."""
    within, began, cpu = loop.watch.wall, time.perf_counter(), time.process_time()
    loop.step()
    return Step(time.perf_counter() - began, loop.watch.wall - within, time.process_time() - cpu)


def apart(folder: Path, vocabulary: int, run: demo.Run, names: tuple[str, ...], steps: int) -> tuple[float, float]:
    """Seconds per step that recording takes of the loop, and of a core in all, with nothing else to do.

    The gradients are random, so that nothing compresses better than in a real run. No more steps than two blocks hold:
    this loop is faster than any writer, and would measure the waiting for it.
    """
    weight = torch.nn.Parameter(torch.randn(vocabulary, run.dims).mul_(0.02).bfloat16())
    optimizer = torch.optim.AdamW([weight], lr=run.lr)
    gradients = [torch.randn(vocabulary, run.dims).bfloat16() for _ in range(8)]
    threads, watch = torch.get_num_threads(), Stopwatch()
    torch.set_num_threads(1)  # all CPU time of other threads is then the writer's
    try:
        used, here = time.process_time(), time.thread_time()
        with timed(optimizer, dx.Recorder(weight, optimizer, folder / "r.zarr", variables=names), watch):
            for step in range(steps):
                weight.grad = gradients[step % len(gradients)]
                optimizer.step()
        beside = (time.process_time() - used) - (time.thread_time() - here)
    finally:
        torch.set_num_threads(threads)
    return watch.wall / steps, (watch.cpu + beside) / steps


def interval(values: Sequence[float]) -> tuple[float, float]:
    """What holds the median of the population with 95%: order statistics, which assume nothing of its shape."""
    ordered, n = sorted(values), len(values)
    k = int(binom.ppf(0.025, n, 0.5))
    return ordered[max(0, k - 1)], ordered[min(n - 1, n - k)]


def row(name: str, found: dict[str, list[Step]], core: float | None) -> str:
    """A line of the table."""
    steps, plain = found[name], found["none"]
    ratios = [a.wall / b.wall for a, b in zip(steps, plain, strict=True)]
    within = statistics.median(s.within / (s.wall - s.within) for s in steps)
    cpu = statistics.median(s.cpu for s in plain)
    return (
        f"{name:12} {statistics.median(s.wall for s in steps) * 1e3:9.1f} ms  {within:9.3%}  "
        f"{'' if core is None else f'{core / cpu:.3%}':>9}  {statistics.median(ratios):7.4f} "
        "[{:.4f}, {:.4f}]".format(*interval(ratios))
    )


@click.command()
@click.option("--steps", default=24, show_default=True)
@click.option("--batch", default=128, show_default=True)
@click.option("--length", default=128, show_default=True)
@click.option("--vocabulary", default=10_000, show_default=True)
@click.option("--dims", default=demo.Run().dims, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--ways", default=",".join(WAYS), show_default=True, help="Which, between commas; none is always one.")
def main(steps: int, batch: int, length: int, vocabulary: int, dims: int, device: str, ways: str) -> None:
    """Measure, and print a table."""
    run = demo.Run(batch=batch, length=length, dims=dims)
    names = tuple(dict.fromkeys(["none", *ways.split(",")]))
    core = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, variables in (("W", ("W",)), ("all four", ALL)) if device == "cpu" else ():
            loop, core[name] = apart(Path(folder) / f"apart {name}", vocabulary, run, variables, 2 * 128 - 1)
            print(f"apart, {name}: {loop * 1e3:.2f} ms of the loop, {core[name] * 1e3:.2f} ms of a core per step")
        found = compare(Path(folder), vocabulary, run, steps, names, device)
    print(f"{vocabulary} x {run.dims}, batch {batch} x {length}, {torch.get_num_threads()} threads, {steps} rounds")
    print(f"{'':12} {'step':>12}  {'in the loop':>9} {'CPU':>10}    ratio [95%]")
    for name in names:
        print(row(name, found, core.get(name)))


if __name__ == "__main__":
    main()
