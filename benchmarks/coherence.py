"""Measure the throughput of `coherence`: elements per second, for the cosines of all pairs.

    python -m benchmarks.coherence [--steps 64] [--tokens 4000] [--dims 64]

Compares the computation by moments, O(N·D²) per step, with the N x N matrix of cosines for the same number of tokens.
"""

from __future__ import annotations

import click
import numpy as np

import deadtok_xr as dx
from benchmarks.mechanism import SIZE, report, seconds, updates


class Coherence:
    """Displacements alone, or beside gradients and hidden states; or the matrix of all pairs of displacements."""

    params = (("displacements", "everything", "N x N"),)
    param_names = ("of",)
    unit = "elements/s"
    size = SIZE

    def setup(self, of: str) -> None:
        ds = updates(self.size)
        self.W = ds.W.astype(np.float32).values if of == "N x N" else np.empty(0)
        lazy = dx.coherence(ds if of == "everything" else ds[["W"]])
        lazy.isel(step=slice(0, 1)).compute()  # compiles
        self.lazy = lazy
        self.elements = int(np.prod(self.size))

    def time_coherence(self, of: str) -> None:
        self.result = all_pairs(self.W) if of == "N x N" else self.lazy.compute()

    def track_throughput(self, of: str) -> float:
        return self.elements / seconds(lambda: self.time_coherence(of), runs=1 if of == "N x N" else 3)


def all_pairs(W: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and deviation of the cosines of all pairs that moved, from the matrix of them."""
    found: dict[str, list[float]] = {"mean": [], "std": []}
    for step in np.diff(W.astype(np.float64), axis=0):
        length = np.linalg.norm(step, axis=1, keepdims=True)
        x = step[length[:, 0] > 0] / length[length > 0][:, None]
        cosines = (x @ x.T)[np.triu_indices(len(x), 1)]
        found["mean"].append(cosines.mean() if cosines.size else np.nan)
        found["std"].append(cosines.std() if cosines.size else np.nan)
    return {name: np.array(values) for name, values in found.items()}


@click.command()
@click.option("--steps", default=SIZE[0], show_default=True)
@click.option("--tokens", default=SIZE[1], show_default=True)
@click.option("--dims", default=SIZE[2], show_default=True)
def main(steps: int, tokens: int, dims: int) -> None:
    """Print throughputs."""
    report(Coherence, (steps, tokens, dims))


if __name__ == "__main__":
    main()
