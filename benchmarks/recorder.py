"""What recording costs a training loop, as a ratio to the same loop without it, beside the notebooks' ways.

    python -m benchmarks.recorder [--steps 12] [--batch 128] [--length 128]

The loop is a step of the demo's model at 10,000 tokens x 64 dims, in bfloat16. Each way trains a model of its own with
its own recording; one step of each is made in turn, so that whatever else the machine does falls on all alike. A
second figure, `apart`, is the time that the recorder itself takes in the loop (its hooks, called alone) and in its
thread, per step: with it, the overhead at any other step time can be told.

Ways: `none`; `W` and `all four` with `dx.Recorder`; `RAM list`, W cloned into a list; `HDF5` and `HDF5 gzip-1`, all
four appended to an HDF5 file, one step per chunk.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import torch
from torch.nn import functional

import deadtok_xr as dx
from deadtok_xr import demo
from deadtok_xr.record import to_numpy

ALL = ("W", "grad", "exp_avg", "exp_avg_sq")


class Loop:
    """A model, its optimizer, and one training step at a time."""

    def __init__(self, vocabulary: int, run: demo.Run) -> None:
        torch.manual_seed(0)
        self.vocabulary, self.run = vocabulary, run
        self.model = demo.TinyLM(vocabulary, run).to(torch.bfloat16)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=run.lr, weight_decay=0.0)
        self.weight: Any = self.model.embedding.weight
        self.made = 0
        self.after: Callable[[], None] = lambda: None

    def step(self) -> None:
        """One update, and what the way of recording does after it."""
        generator = torch.Generator().manual_seed(self.made)
        shape = (self.run.batch, self.run.length + 1)
        ids = torch.randint(self.vocabulary * 5 // 8, shape, generator=generator)
        hidden = self.model(ids[:, :-1])
        loss = functional.cross_entropy((hidden @ self.weight.T).flatten(0, 1).float(), ids[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.made += 1
        self.after()

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
    return lambda loop, folder: dx.Recorder(loop.weight, loop.optimizer, folder / "r.zarr", variables=variables)


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


def compare(folder: Path, vocabulary: int, run: demo.Run, steps: int) -> dict[str, list[float]]:
    """Seconds of each step of each way; the first, which compiles and allocates, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with ExitStack() as stack:
        loops = {}
        for name, way in WAYS.items():
            (folder / name).mkdir(parents=True)
            loops[name] = Loop(vocabulary, run)
            stack.enter_context(way(loops[name], folder / name))
        for step in range(steps + 1):
            order = list(WAYS)[step % len(WAYS) :] + list(WAYS)[: step % len(WAYS)]
            for name in order:
                began = time.perf_counter()
                loops[name].step()
                if step:
                    seconds[name].append(time.perf_counter() - began)
    return seconds


def apart(folder: Path, vocabulary: int, run: demo.Run, names: tuple[str, ...], steps: int) -> tuple[float, float]:
    """Seconds per step that recording takes of the loop, and of a core in all, with nothing else to do.

    The gradients are random, so that nothing compresses better than in a real run. No more steps than two blocks hold:
    this loop is faster than any writer, and would measure the waiting for it.
    """
    weight = torch.nn.Parameter(torch.randn(vocabulary, run.dims).mul_(0.02).bfloat16())
    optimizer = torch.optim.AdamW([weight], lr=run.lr)
    gradients = [torch.randn(vocabulary, run.dims).bfloat16() for _ in range(8)]
    spent: list[float] = []
    with dx.Recorder(weight, optimizer, folder / "r.zarr", variables=names) as recording:
        hooks = recording._before_step, recording._after_step
        for hook in recording._hooks:
            hook.remove()
        used = time.process_time()
        training = 0.0
        for step in range(steps):
            began_training = time.process_time()
            weight.grad = gradients[step % len(gradients)]
            optimizer.step()
            training += time.process_time() - began_training
            began = time.perf_counter()
            hooks[0](optimizer, (optimizer,), {})
            hooks[1](optimizer, (optimizer,), {})
            spent.append(time.perf_counter() - began)
    return statistics.fmean(spent), (time.process_time() - used - training) / steps


@click.command()
@click.option("--steps", default=12, show_default=True)
@click.option("--batch", default=128, show_default=True)
@click.option("--length", default=128, show_default=True)
@click.option("--vocabulary", default=10_000, show_default=True)
def main(steps: int, batch: int, length: int, vocabulary: int) -> None:
    """Measure, and print a table."""
    run = demo.Run(batch=batch, length=length)
    with tempfile.TemporaryDirectory() as folder:
        for names in (("W",), ALL):
            loop, core = apart(Path(folder) / f"apart {len(names)}", vocabulary, run, names, 2 * 128 - 1)
            print(f"apart, {'+'.join(names)}: {loop * 1e3:.2f} ms of the loop, {core * 1e3:.2f} ms of a core per step")
        seconds = compare(Path(folder), vocabulary, run, steps)
    print(f"{vocabulary} x {run.dims}, batch {batch} x {length}, {torch.get_num_threads()} threads")
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds["none"], strict=True)]
        print(f"{name:12} {statistics.median(values) * 1e3:9.1f} ms  ratio {statistics.median(ratios):.4f}")


if __name__ == "__main__":
    main()
