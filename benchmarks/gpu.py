"""Compare the kernels for GPUs with those for CPUs, and with the time of a copy; and measure analyses end to end.

    python -m benchmarks.gpu                                   # on the GPU; about a minute
    python -m benchmarks.gpu --device torch-cpu --steps 9 --tokens 50 --dims 8 --repeats 1

Makes a synthetic recording, compares every kernel with numba's (graph and census with a count in plain numpy), and
prints JSON: `agrees` (a difference stops it), `copy` (bytes read and written per second by a copy on the device, in
the same run), per kernel the bytes it reads and writes per second and their share of the copy's (`of_copy`), and
the seconds of `dx.analyze` on a store in a temporary folder, on the CPU and on the device: of what "auto" takes there,
of `topology` and of `census`, and their share of the *decode bound*, the seconds of reading and decompressing the same
chunks on all cores and doing nothing with them. Medians; nothing is kept.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import dask
import ml_dtypes
import numpy as np
import torch

import deadtok_xr as dx
from deadtok_xr import kernels, testing
from deadtok_xr.analyses.common.adjacency import n_bins
from deadtok_xr.analyses.common.transitions import MAGNITUDES, OUTPUTS
from deadtok_xr.engine import StepBlock, allocate_outputs
from deadtok_xr.kernels import device as devices
from deadtok_xr.kernels import numba as compiled
from deadtok_xr.kernels import torch as ours
from deadtok_xr.kernels.torch.parts import bit_words, from_numpy

LATTICE = kernels.lattice("bfloat16")
TOGETHER = (("motion", "phases", "kinematics"), ("topology",), ("census",))
"""What is asked end to end: "auto" takes the first, and the others only where this says that they win."""
FEW = 128
"""Steps of the kernels that make many launches for each step: topology and census."""


def recording(steps: int, tokens: int, dims: int, *, moving: float = 1.0) -> np.ndarray:
    """bfloat16 (steps + 1, tokens, dims): rows that hop by a unit or two in some dims, a share of them at each step."""
    rng = np.random.default_rng(0)
    x = np.empty((steps + 1, tokens, dims), np.uint16)
    x[0] = (rng.normal(size=(tokens, dims)) * 0.02).astype(ml_dtypes.bfloat16).view(np.uint16)
    for t in range(1, steps + 1):
        hop = rng.integers(-1, 2, (tokens, dims), np.int8).astype(np.int16)
        hop[rng.random(tokens) >= moving] = 0
        x[t] = (x[t - 1].view(np.int16) + hop).view(np.uint16)
    return x.view(ml_dtypes.bfloat16)


def seconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """The median time of some work, until the device is done with it; the first time does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def same(name: str, found: Any, expected: Any) -> None:
    """Stop where a result differs: integers at all, floats by 1e-6."""
    for key, b in expected.items():
        scale = np.abs(np.nan_to_num(b.astype(np.float64), posinf=0, neginf=0)).max(initial=0)
        tolerance = {"rtol": 1e-6, "atol": 1e-12 * scale} if b.dtype.kind == "f" else {"rtol": 0, "atol": 0}
        np.testing.assert_allclose(found[key], b, err_msg=f"{name}: {key}", **tolerance)


def _filled(x: np.ndarray) -> dict[str, Any]:
    return allocate_outputs(OUTPUTS, StepBlock(0, len(x), len(x) - 1, *x.shape[1:]))


def check(x: np.ndarray, device: str) -> list[str]:
    """Compare every kernel on some steps; the names of those that agree."""
    steps, changed = ours.to_device(x, device), compiled.changed_rows(x.view(np.uint16))
    np.testing.assert_array_equal(ours.changed_rows(steps), changed)
    for name in (check_motion, check_kinematics, check_topology, check_census, check_mechanism):
        name(x, steps, changed)
    return ["changed_rows", "motion", "kinematics", "topology", "census", "mechanism"]


def check_motion(x: np.ndarray, steps: torch.Tensor, changed: np.ndarray) -> None:
    """In one pass where that can be had, and eagerly."""
    expected, found, eager = (_filled(x) for _ in range(3))
    compiled.motion(x.view(np.uint16), changed, None, LATTICE, MAGNITUDES, expected)
    ours.motion(steps, changed, None, LATTICE, MAGNITUDES, found)
    same("motion", found, expected)
    for name, values in eager_motion(steps, changed).items():
        eager[name][...] = values.cpu().numpy()
    same("motion, eager", eager, expected)


def check_kinematics(x: np.ndarray, steps: torch.Tensor, changed: np.ndarray) -> None:
    """All but the residual, which is rounding alone."""
    t, _, d = x.shape
    found, expected = (
        {
            "centroid": np.zeros((t, d)), "radius": np.zeros(t), "radius_max": np.zeros(t),
            "n_invalid": np.zeros(t, np.int64), "bulk_velocity": np.zeros((t - 1, d)),
            "bulk_speed": np.zeros(t - 1), "thermal_rms": np.zeros(t - 1), "thermal_residual": np.zeros(t - 1),
        }
        for _ in range(2)
    )  # fmt: skip
    compiled.kinematics(x.astype(np.float32), changed, None, expected)
    ours.kinematics(steps, changed, None, found)
    del expected["thermal_residual"]
    same("kinematics", found, expected)


def graph_arrays(steps: int, tokens: int) -> dict[str, np.ndarray]:
    """What the kernel of the graph fills."""
    return {
        name: np.zeros((steps, n), np.int64)
        for name, n in (("figures", 6), ("degrees", n_bins(tokens)), ("sizes", n_bins(tokens)))
    }


def graph_of_all_pairs(x: np.ndarray, threshold: np.ndarray, linked: bool) -> dict[str, np.ndarray]:
    """What the kernel of the graph is to find, from all pairs: exact differences in float64."""
    from scipy.sparse.csgraph import connected_components

    found = graph_arrays(*x.shape[:2])
    for t, (rows, limit) in enumerate(zip(x.astype(np.float64), threshold, strict=True)):
        n = len(rows)
        invalid = int((~np.isfinite(rows)).any(axis=1).sum())
        if invalid or np.isnan(limit):
            for values in found.values():
                values[t] = -1
            found["figures"][t, 5] = invalid
            continue
        far = np.abs(rows[:, None] - rows[None]).max(axis=2)
        near = (far <= limit) & (linked | (far > 0)) & ~np.eye(n, dtype=bool)
        degree, sizes = near.sum(axis=1), np.bincount(connected_components(near)[1])
        found["figures"][t] = near.sum() // 2, sizes.max(), (sizes == 1).sum(), len(sizes), degree.max(), 0
        for name, values, less in (("degrees", degree, 0), ("sizes", sizes, 1)):
            for value in values:
                found[name][t, int(value).bit_length() - less] += 1
    return found


def check_topology(x: np.ndarray, steps: torch.Tensor, changed: np.ndarray) -> None:
    """At a threshold at which tokens have neighbours, on steps with rows that coincide."""
    few = np.ascontiguousarray(x[:3, :300])  # all pairs of them fit into memory
    few[:, : few.shape[1] // 4] = few[:, :1]
    spread = np.abs(np.diff(few.astype(np.float64), axis=1)).max(axis=2)
    threshold, moved = np.quantile(spread, 0.2, axis=1), compiled.changed_rows(few.view(np.uint16))
    for linked in (False, True):
        found = graph_arrays(*few.shape[:2])
        ours.topology(from_numpy(few).to(steps.device), moved, threshold, linked, found)
        same("topology", found, graph_of_all_pairs(few, threshold, linked))


def check_census(x: np.ndarray, steps: torch.Tensor, changed: np.ndarray) -> None:
    """The first row in the same place, against the rows of each step, sorted."""
    pool = x.copy()
    pool[:, : x.shape[1] // 2] = pool[:, :1]
    moved = compiled.changed_rows(pool.view(np.uint16))
    found = ours.census(from_numpy(pool).to(steps.device), moved)
    for t in range(len(x)):
        rows = pool[t].astype(np.float32) + np.float32(0)
        _, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        same("census", {"label": found[t]}, {"label": first[place.reshape(-1)]})


def check_mechanism(x: np.ndarray, steps: torch.Tensor, changed: np.ndarray) -> None:
    """On intended updates that round to nothing, to a hop, or are none."""
    before, after = (np.ascontiguousarray(v.astype(np.float32)) for v in x[:2])
    rng = np.random.default_rng(1)
    n, d = before.shape
    u = (after.astype(np.float64) - before) * rng.choice([0, 0.1, 1, 7], (n, d))
    g, predicted = rng.choice([0, 1], (n, d)).astype(np.float32), np.where(rng.random((n, d)) < 0.9, after, before)
    results = []
    for kernel, take in (
        (ours.mechanism, lambda a: from_numpy(a).to(steps.device)),
        (kernels.engine("mechanism", False).mechanism, lambda a: a),
    ):
        out = {
            "cause": np.zeros(n, np.int8), "margin": np.zeros(n), "length": np.zeros(n), "net": np.zeros((n, 2, d)),
            "counts": np.zeros(9, np.int64), "sums": np.zeros(4),
        }  # fmt: skip
        a, b, p, gradient, update = (take(v) for v in (before, after, predicted, g, u))
        kernel(a, b, kernels.ReplayedUpdate(p, True, gradient, True, update), LATTICE, out)
        results.append(out)
    same("mechanism", *results)


def eager_motion(steps: torch.Tensor, changed: np.ndarray) -> dict[str, torch.Tensor]:
    """The kernel for devices without Triton."""
    file = kernels.engine("motion", True)
    found: dict[str, torch.Tensor] = file.measured(steps, changed, file.row_status(bit_words(steps), LATTICE), LATTICE)
    return found | file.per_step(found, MAGNITUDES, float(steps.shape[2]) ** 0.5)


def throughput(x: np.ndarray, device: str, repeats: int) -> dict[str, Any]:
    """Bytes per second of a copy and of the kernels, each read and written byte counted once."""
    steps, changed = ours.to_device(x, device), compiled.changed_rows(x.view(np.uint16))
    room_ = torch.empty_like(steps)
    copy = 2 * x.nbytes / seconds(lambda: room_.copy_(steps), device, repeats)
    results = changed.size * (4 + 4 + 8 + 8 + 8 + 8)  # displacement, displacement_ulp, lattice_*, moved_dims
    fused = kernels.engine("fused", True)
    out: dict[str, Any] = {"copy_gb_per_s": copy / 1e9}

    def note(name: str, work: Callable[[], Any], size: int) -> None:
        per_second = size / seconds(work, device, repeats)
        rows = size / x.nbytes * changed.size
        out[name] = {"gb_per_s": per_second / 1e9, "of_copy": per_second / copy, "ns_per_row": 1e9 * size / per_second
                     / rows}  # fmt: skip

    if fused.motion(steps, LATTICE, MAGNITUDES) is not None:
        note("motion", lambda: fused.motion(steps, LATTICE, MAGNITUDES), x.nbytes + results)
    note("motion_eager", lambda: eager_motion(steps, changed), x.nbytes + results)
    note("changed_rows", lambda: ours.changed_rows(steps), x.nbytes + changed.size)
    note("kinematics", lambda: _kinematics(steps, changed), x.nbytes)
    few, those = steps[: FEW + 1], changed[:FEW]
    threshold = np.full(len(few), some_adjacent(x[0]))
    size = x[: len(few)].nbytes
    note("topology", lambda: ours.topology(few, those, threshold, False, graph_arrays(*few.shape[:2])), size)
    note("census", lambda: ours.census(few, those), size)
    note("motion_with_results_on_the_host", lambda: ours.motion(steps, changed, None, LATTICE, MAGNITUDES, _filled(x)),
         x.nbytes + results)  # fmt: skip
    return out


def some_adjacent(rows: np.ndarray) -> float:
    """A distance within which a hundredth of all pairs of tokens are, about: judged by neighbours in the vocabulary."""
    return float(np.quantile(np.abs(np.diff(rows.astype(np.float64), axis=0)).max(axis=1), 0.01))


def _kinematics(steps: torch.Tensor, changed: np.ndarray) -> None:
    t, _, d = steps.shape
    out = {name: np.zeros(t) for name in ("radius", "radius_max", "n_invalid")}
    out |= {name: np.zeros(t - 1) for name in ("bulk_speed", "thermal_rms", "thermal_residual")}
    out |= {"centroid": np.zeros((t, d)), "bulk_velocity": np.zeros((t - 1, d))}
    ours.kinematics(steps, changed, None, out)


def end_to_end(
    shape: tuple[int, int, int], together: Sequence[Sequence[str]], device: str, repeats: int
) -> dict[str, Any]:
    """Seconds of `dx.analyze` on a store of that shape, in the page cache, by what is asked."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.zarr"
        testing.synthetic_recording(path, steps=shape[0], tokens=shape[1], dims=shape[2])
        decode = seconds(partial(_decode, path), "cpu", repeats)
        return {
            "shape": shape,
            "decode": {"s": decode, "gb_per_s": 2 * float(np.prod(shape)) / decode / 1e9},
            **{" ".join(names): _beside(path, names, device, repeats, decode) for names in together},
        }


def _decode(path: Path) -> None:
    W = dx.open_recording(path, raw=True).W.data
    W.map_blocks(lambda block: block[:1, :1, :1].copy(), chunks=(1, 1, 1), dtype=W.dtype).compute()


def _analyze(path: Path, names: Sequence[str], device: str) -> None:
    """Compute what `deadtok analyze` stores: not the positions and velocities of kinematics, as large as W itself."""
    tree = dx.analyze(path, analyses=names, tokens="all", device=device)
    found = [x.data for group in tree.subtree for x in group.data_vars.values() if not {"token", "dim"} <= {*x.dims}]
    dask.compute(*found)


def _beside(path: Path, names: Sequence[str], device: str, repeats: int, decode: float) -> dict[str, float]:
    found = {}
    for name in ("cpu", device):
        found[name] = seconds(partial(_analyze, path, names, name), "cpu", repeats)
    return {
        **{f"{name}_s": s for name, s in found.items()},
        "faster": found["cpu"] / found[device],
        "of_decode_bound": decode / found[device],
    }


@click.command()
@click.option("--device", type=click.Choice(["cuda", "torch-cpu"]), default="cuda", show_default=True)
@click.option("--steps", default=2000, show_default=True)
@click.option("--tokens", default=3699, show_default=True)
@click.option("--dims", default=64, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option(
    "--only-analyze", is_flag=True, help="Measure motion, phases and kinematics end to end, and nothing else."
)
def main(device: str, steps: int, tokens: int, dims: int, repeats: int, only_analyze: bool) -> None:
    """Check, measure, and print each part when it is done, as JSON."""
    shape = (steps, tokens, dims)
    if only_analyze:
        click.echo(json.dumps({"analyze": end_to_end(shape, TOGETHER[:1], device, repeats)}, indent=2))
        return
    for part in report(device, shape, repeats):
        click.echo(json.dumps(part, indent=2))


def report(device: str, shape: tuple[int, int, int], repeats: int) -> Iterator[dict[str, Any]]:
    """Yield all that is printed, part by part."""
    name = devices.resolve(device, 0).name
    card = torch.cuda.get_device_name() if name == "cuda" else "the CPU, by torch"
    yield {"device": card, "torch": torch.__version__, "shape": shape}
    yield {"agrees": check(recording(min(shape[0], 40), *shape[1:], moving=0.7), name)}
    yield {"moving": throughput(recording(*shape), name, repeats)}
    yield {"frozen": throughput(recording(*shape, moving=0.0), name, repeats)}
    yield {"analyze": end_to_end(shape, TOGETHER[:1], device, repeats)}
    few = (min(shape[0], 2 * FEW), *shape[1:])
    yield {"analyze_few_steps": end_to_end(few, TOGETHER[1:], device, repeats)}


if __name__ == "__main__":
    main()
