"""Make a recording as long as the longest known ones, with the statistics of a real run.

    python -m benchmarks.long_recording DIR [--steps 6000] [--tokens 10000] [--dims 64]

leaves DIR/recording.h5 in the layout of Thimble 7: `W`, `grad`, `exp_avg`, `exp_avg_sq` as the bits of bfloat16, a row
for each step and the initial state, masks and ids of the dead tokens, losses; and for `mechanism` the learning rates
and Adam's settings. 6,001 x 10,000 x 64 are 31 GB, written in bounded memory in less than ten minutes on one core.

A real tiny model is trained first (`deadtok_xr.demo`), with all four tensors. What it says of sizes is kept as a
schedule: of its gradients, of dead and of live tokens, how large they are at each part of the run, how much of them is
common to all tokens, and how often a live token has one at all. Gradients of the long run are drawn with these sizes,
Σp·h in one direction that turns slowly and the rest as noise. Weights and moments are not drawn: they follow from the
gradients by Adam in bfloat16, rounded after each operation as torch does, so that tokens move, hop, freeze and thaw,
and the file compresses, as recordings do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
from numba import njit
from numpy.typing import NDArray

import deadtok_xr as dx
from deadtok_xr import demo

VARIABLES = ("W", "grad", "exp_avg", "exp_avg_sq")
DEAD_SHARE = 0.37
BETAS, EPS = (0.9, 0.999), 1e-8
MODEL = demo.Run(steps=400, batch=8, length=32, dims=32, layers=1, lr=1e-3, decay=True)
_STEPS_AT_ONCE = 16
_POOL = 2**20
"""Normal numbers that are drawn once; each step takes them from another place, which costs a tenth of drawing them."""

Floats = NDArray[np.float32]
Bits = NDArray[np.uint16]


@dataclass(frozen=True)
class Schedule:
    """What was fitted to a real run, at equal parts of it (part,): of dead tokens [0] and live ones [1].

    Attributes
    ----------
    common, own
        Root mean square of what the gradients of a step have in common, and of what each token has of its own.
    used
        Share of the tokens that have a gradient other than what is common.
    rate
        Learning rate of each step, which at the end is what freezes the last tokens.
    """

    common: Floats
    own: Floats
    used: Floats
    rate: Floats

    def at(self, share: float) -> tuple[Floats, Floats, Floats, float]:
        """Its values after a share of the run."""
        i = min(int(share * self.used.shape[1]), self.used.shape[1] - 1)
        rate = np.interp(share, np.linspace(0, 1, len(self.rate)), self.rate)
        return self.common[:, i], self.own[:, i], self.used[:, i], float(rate)


def fitted(recording: Path, parts: int = 50) -> Schedule:
    """The schedule of a real recording."""
    rec = dx.open_recording(recording)
    grad, dead = rec["grad"].values[1:], rec["dead"].values
    groups = [grad[:, dead], grad[:, ~dead]]
    common = np.stack([_rms(g.mean(1), (1,)) for g in groups])
    rest = [g - g.mean(1, keepdims=True) for g in groups]
    size = [_rms(r, (2,)) for r in rest]
    used = np.stack([(s > 2 * c[:, None]).mean(1) for s, c in zip(size, common, strict=True)])
    used[0] = 1  # every dead token has noise, however small
    own = np.stack([_rms(r, (1, 2)) for r in rest]) / np.sqrt(np.maximum(used, 1e-3))
    rate = rec["lr"].values[1:]
    cut = np.array_split(np.arange(len(grad)), min(parts, len(grad)))
    means = [np.stack([x[..., i].mean(-1) for i in cut], -1).astype(np.float32) for x in (common, own, used)]
    return Schedule(*means, rate.astype(np.float32))


def _rms(x: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    found: NDArray[Any] = np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=axes))
    return found


@njit(inline="always")
def _rounded(x):  # type: ignore[no-untyped-def]
    """A float32 as the bits of the nearest bfloat16, ties to even."""
    bits = np.float32(x).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@njit(inline="always")
def _value(bits):  # type: ignore[no-untyped-def]
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(cache=True, nogil=True)
def _update(  # type: ignore[no-untyped-def]
    state, direction, pool, offset, dead, used, common, own, threshold, step, rate, out
):  # pragma: no cover - compiled
    """One step of Adam in bfloat16 for all tokens; ``state`` (variable, n, d) is changed, and copied to ``out``."""
    n, d = dead.shape[0], direction.shape[0]
    beta1, beta2 = np.float32(BETAS[0]), np.float32(BETAS[1])
    correction1 = np.float32(1 - BETAS[0] ** step)
    root2 = np.float32(np.sqrt(1 - BETAS[1] ** step))
    size = np.float32(rate) / correction1
    at = offset
    for i in range(n):
        group = 0 if dead[i] else 1
        amount = own[group] if used[i] < threshold[group] else np.float32(0)
        for k in range(d):
            at = at + 1 if at + 1 < pool.shape[0] else 0
            g = _rounded(common[group] * direction[k] + amount * pool[at])
            grad = _value(g)
            m = _value(state[2, i, k])
            m = _value(_rounded(m + (grad - m) * (np.float32(1) - beta1)))
            v = _value(_rounded(_value(state[3, i, k]) * beta2))
            v = _value(_rounded(v + (np.float32(1) - beta2) * grad * grad))
            scale = _value(_rounded(np.sqrt(v)))
            scale = _value(_rounded(_value(_rounded(scale / root2)) + np.float32(EPS)))
            state[0, i, k] = _rounded(_value(state[0, i, k]) - size * m / scale)
            state[1, i, k], state[2, i, k], state[3, i, k] = g, _rounded(m), _rounded(v)
    out[:] = state


def evolved(
    schedule: Schedule, steps: int, dead: NDArray[np.bool_], dims: int, seed: int = 42
) -> Iterator[tuple[int, Bits]]:
    """The steps of a run, some at a time: position of the first, and bits (t, variable, n, d)."""
    rng = np.random.default_rng(seed)
    n = len(dead)
    pool = rng.standard_normal(_POOL, np.float32)
    activity = (rng.permutation(n) / n).astype(np.float32)  # how rare a token is: the rarest move least often
    state = np.zeros((len(VARIABLES), n, dims), np.uint16)
    state[0] = (0.02 * rng.standard_normal((n, dims), np.float32)).astype(np.float32).view(np.uint32) >> 16
    direction = rng.standard_normal(dims).astype(np.float32)
    for start in range(0, steps + 1, _STEPS_AT_ONCE):
        block = np.empty((min(_STEPS_AT_ONCE, steps + 1 - start), *state.shape), np.uint16)
        for t, step in enumerate(range(start, start + len(block))):
            if not step:
                block[0] = state
                continue
            direction = 0.95 * direction + 0.3 * rng.standard_normal(dims).astype(np.float32)
            common, own, used, rate = schedule.at((step - 1) / steps)
            drawn = (activity + np.float32(rng.random())) % np.float32(1)
            offset = int(rng.integers(_POOL))
            _update(
                state, direction.astype(np.float32), pool, offset, dead, drawn, common, own, used, step, rate, block[t]
            )
        yield start, block


def write(path: Path, schedule: Schedule, steps: int, tokens: int, dims: int, *, progress: Any = None) -> None:
    """Write such a run in the layout of Thimble 7, in bounded memory."""
    dead = np.random.default_rng(1).random(tokens) < DEAD_SHARE
    ids = {"dead_indices": np.flatnonzero(dead), "live_indices": np.flatnonzero(~dead)}
    with h5py.File(path, "w", rdcc_nbytes=0) as file:
        shape, chunks = (steps + 1, tokens, dims), (min(_STEPS_AT_ONCE, steps + 1), tokens, dims)
        data = [file.create_dataset(name, shape, "u2", chunks=chunks) for name in VARIABLES]
        for start, block in evolved(schedule, steps, dead, dims):
            for k, dataset in enumerate(data):
                dataset[start : start + len(block)] = block[:, k]
            if progress is not None:
                progress(start + len(block), steps + 1)
        file["losses"] = np.linspace(9, 4, steps + 1, dtype=np.float32)
        file.update({"dead_mask": dead, "live_mask": ~dead, **ids})
        file["lr"] = np.array([np.nan, *(schedule.at(t / steps)[3] for t in range(steps))])
        file.attrs.update({"optimizer": "Adam", "betas": BETAS, "eps": EPS, "weight_decay": 0.0, "seed": 42})


def real_schedule(run: demo.Run = MODEL) -> Schedule:
    """Train a tiny model and fit a schedule to it; about half a minute."""
    with tempfile.TemporaryDirectory() as folder:
        return fitted(demo.train(Path(folder, "run.zarr"), demo.corpus(), 256, run))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--steps", default=6000, show_default=True)
@click.option("--tokens", default=10_000, show_default=True)
@click.option("--dims", default=64, show_default=True)
def main(folder: Path, steps: int, tokens: int, dims: int) -> None:
    """Train, fit, and write."""
    from deadtok_xr.engine.progress import reporting

    folder.mkdir(parents=True, exist_ok=True)
    schedule = real_schedule()
    with reporting("writing") as report:
        write(folder / "recording.h5", schedule, steps, tokens, dims, progress=report)
    click.echo(f"{folder / 'recording.h5'}: {(folder / 'recording.h5').stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
