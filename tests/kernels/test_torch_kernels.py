"""The kernels in torch compared with those in numba, on the CPU: integers are equal, floats agree within 1e-6."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import NumpyVersion
from numpy.typing import NDArray

import deadtok_xr as dx
from benchmarks.gpu import graph_arrays, graph_of_all_pairs
from deadtok_xr import kernels
from deadtok_xr.analyses.common.transitions import MAGNITUDES, OUTPUTS
from deadtok_xr.bfloat16 import decode
from deadtok_xr.engine import StepBlock, allocate_outputs
from deadtok_xr.errors import OffGridError
from deadtok_xr.kernels import numba as compiled
from deadtok_xr.kernels import torch as ours
from deadtok_xr.kernels.numba import coincidence_history as history_file
from deadtok_xr.kernels.numba import mechanism as compiled_mechanism
from deadtok_xr.kernels.torch.parts import TILE, bits, from_numpy, run_in_parts

motion_file, census_file, topology_file = (kernels.engine(name, True) for name in ("motion", "census", "topology"))
EDGES = [0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x0080, 0x8080, 0x3F80, 0x3F7F, 0x3F81, 0xBF80, 0x7F7F, 0xFF7F, 0x3C00]
SPECIAL = [0x7F80, 0xFF80, 0x7FC0, 0x7FA5, 0xFFFF]


@st.composite
def blocks(draw: st.DrawFn, *, finite: bool = False, dtypes: tuple[str, ...] = ("bfloat16", "float32")) -> Any:
    """Steps (t, n, d) of few distinct values, odd or ordinary, so that rows rest, coincide, hop and overflow."""
    shape = draw(st.integers(2, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    special = [] if finite else draw(st.sampled_from([[], SPECIAL]))
    ordinary = (rng.normal(size=30) * 0.05).astype(ml_dtypes.bfloat16).view(np.uint16).tolist()
    pool = np.array(draw(st.sampled_from([EDGES, ordinary, EDGES + ordinary])) + special, np.uint16)
    x = pool[rng.integers(0, len(pool), shape)]
    still = rng.random(shape[:2]) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    for t in range(1, shape[0]):
        x[t] = np.where(still[t][:, None], x[t - 1], x[t])
    values = x.view(ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):
        return values.astype(draw(st.sampled_from(dtypes)))


def changed(x: NDArray[Any]) -> NDArray[np.bool_]:
    return compiled.changed_rows(x.view(f"u{x.dtype.itemsize}"))


def agree(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]], size: float = 0.0) -> None:
    """Integers the same, floats within 1e-6; `size` is that of what was summed, where sums cancel."""
    assert found.keys() == expected.keys()
    for name, b in expected.items():
        a = found[name]
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        if b.dtype.kind in "iub":
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            scale = np.abs(b[np.isfinite(b)]).max(initial=size)
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12 * scale, err_msg=name)


def moved(x: NDArray[Any], grid: str = "bfloat16") -> tuple[dict[str, Any], dict[str, Any]]:
    row = StepBlock(0, len(x), len(x) - 1, *x.shape[1:])
    both = allocate_outputs(OUTPUTS, row), allocate_outputs(OUTPUTS, row)
    rest = changed(x), None, kernels.lattice(grid), MAGNITUDES
    compiled.motion(kernels.bit_words(x), *rest, both[1])
    ours.motion(from_numpy(x), *rest, both[0])
    return both


@settings(max_examples=150)
@given(x=blocks())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_motion(x: NDArray[Any]) -> None:
    agree(*moved(x))


@given(x=blocks(finite=True, dtypes=("float16",)))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_motion_of_float16(x: NDArray[Any]) -> None:
    agree(*moved(np.where(np.isfinite(x), x, 0).astype(np.float16), "float16"))


@pytest.mark.parametrize("grid", ["bfloat16", "float16", "float32"])
def test_motion_of_wide_rows_in_several_tiles(grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion_file, "TILE", 1000)
    rng = np.random.default_rng(5)
    x = (rng.normal(size=(5, 40, 100)) * 0.02).astype(grid).astype(np.float32)
    x[3, ::3] = x[2, ::3]
    agree(*moved(x, grid))


@given(x=blocks())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_row_status_of_finite_and_off_grid_rows(x: NDArray[Any]) -> None:
    lattice = kernels.lattice("bfloat16")
    status = motion_file.row_status(bits(from_numpy(x)), lattice).numpy()
    np.testing.assert_array_equal(status == motion_file.NOT_FINITE, ~np.isfinite(x.astype(np.float64)).all(-1))
    assert not (status == motion_file.OFF_GRID).any()


@pytest.mark.parametrize("value", [1 + 2.0**-11, 2.0**-25, 2.0**-24 * 1.5, 65536.0])
def test_values_off_the_grid_are_refused(value: float) -> None:
    x = np.ones((3, 2, 1), np.float32)
    x[1:, 1] = value
    with pytest.raises(OffGridError, match="1 rows"):
        moved(x, "float16")


def test_motion_between_every_bfloat16_and_every_kind_of_number() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(-1, 1)
    for other in EDGES:
        x = np.stack([every, np.full_like(every, other), every]).view(ml_dtypes.bfloat16)
        agree(*moved(x))


class TestWithoutFloat64:
    """What MPS does, tried on the CPU: float32, and what it cannot hold on the CPU in float64."""

    @settings(max_examples=150)
    @given(x=blocks(finite=True))
    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    def test_row_sums_in_float32_agree_with_float64(self, x: NDArray[Any]) -> None:
        words = torch.from_numpy(decode(x).view(np.int32))
        a, b = words[:-1].flatten(0, 1), words[1:].flatten(0, 1)
        lattice = kernels.lattice("bfloat16")
        found = motion_file.row_sums_float32(a, b, lattice)
        for name, expected in motion_file.row_sums(a, b, lattice).items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-6, err_msg=name)

    def test_only_rows_with_extreme_values_leave_float32(self) -> None:
        rows = [[0.02, 0.5, -0.1], [0.02, 0.0, 0.1], [0.02, 1e-30, 0.1], [3e38, 1.0, 1.0]]
        a = torch.tensor(rows).view(torch.int32)
        b = torch.full((4, 3), 0.25).view(torch.int32)
        assert motion_file.in_reach(a, b).tolist() == [True, False, False, False]
        assert motion_file.in_reach(a, a).tolist() == [True, True, False, False]


@given(x=blocks(dtypes=("bfloat16", "float16", "float32", "float64")))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_changed_rows(x: NDArray[Any]) -> None:
    np.testing.assert_array_equal(ours.changed_rows(from_numpy(x)), changed(x))


@given(x=blocks(dtypes=("bfloat16", "float32", "float64")), known=st.booleans(), last=st.booleans())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_kinematics(x: NDArray[Any], known: bool, last: bool) -> None:
    t, n, d = x.shape
    floats = x if x.dtype == np.float64 else decode(x)
    states = t if last else t - 1
    out: list[dict[str, Any]] = [
        {
            "centroid": np.zeros((states, d)), "radius": np.zeros(states), "radius_max": np.zeros(states),
            "n_invalid": np.zeros(states, np.int64), "bulk_velocity": np.zeros((t - 1, d)),
            "bulk_speed": np.zeros(t - 1), "thermal_rms": np.zeros(t - 1), "thermal_residual": np.zeros(t - 1),
        }
        for _ in range(2)
    ]  # fmt: skip
    before = ours.centroid(from_numpy(floats[:1]))[0] if known else None
    end = compiled.kinematics(floats, changed(x), before, out[1])
    out[0]["end"], out[1]["end"] = ours.kinematics(from_numpy(x), changed(x), before, out[0]), end
    agree(*out, size=n * d * np.abs(np.nan_to_num(floats.astype(np.float64), posinf=0, neginf=0)).max())


def test_kinematics_of_more_tokens_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    from deadtok_xr.kernels.torch import parts

    whole = np.random.default_rng(1).normal(size=(4, 300, 8)).astype(np.float32)
    expected = ours.centroid(from_numpy(whole))
    monkeypatch.setattr(parts, "TILE", 100)
    np.testing.assert_allclose(ours.centroid(from_numpy(whole)), expected, rtol=1e-12)


@st.composite
def clouds(draw: st.DrawFn) -> NDArray[np.float32]:
    """Places on a small grid, so that pairs coincide, touch exactly at the threshold, or just miss it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, dims, size = draw(st.integers(1, 40)), draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 4, 12]))
    x = draw(st.sampled_from([1.0, -1.0, 0.0])) + rng.integers(-size, size + 1, (3, n, dims)) * 2.0**-8
    x[2, rng.random(n) < 0.5] = x[1, 0]
    x[0, 0, 0] = draw(st.sampled_from([0.0, np.nan, np.inf]))
    return x.astype(np.float32)


@given(x=st.one_of(clouds(), blocks()), linked=st.booleans(), tile=st.sampled_from([3, TILE]))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_topology(x: NDArray[Any], linked: bool, tile: int) -> None:
    threshold = np.full(len(x), 2.0**-8)
    found = graph_arrays(*x.shape[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topology_file, "TILE", tile)
        ours.topology(from_numpy(x), changed(x), threshold, linked, found)
    agree(found, graph_of_all_pairs(x, threshold, linked))


@given(x=clouds(), linked=st.booleans())
def test_topology_with_held_positions(x: NDArray[np.float32], linked: bool) -> None:
    x[1] = np.nan_to_num(x[1])
    threshold = np.array([0, 1, 1, np.nan, np.nan, 3, 8]) * 2.0**-8
    found = graph_arrays(len(threshold), x.shape[1])
    expected = graph_of_all_pairs(x[[1] * len(threshold)], threshold, linked)
    for name in found:
        found[name][0] = expected[name][0]  # known from an earlier call
    still = np.ones((len(threshold) - 1, x.shape[1]), np.bool_)
    ours.topology(from_numpy(x[1:2]), still, threshold, linked, found, first=1)
    agree(found, expected)


def test_components_joined_by_late_edges_are_merged() -> None:
    """A chain whose links come in the worst order, and two that stay apart."""
    order = np.random.default_rng(3).permutation(200)
    a, b = (torch.from_numpy(order[i : 199 + i]) for i in (0, 1))
    parent = torch.arange(203)
    for part in torch.arange(199).chunk(7):
        parent = topology_file._joined(parent, a[part], b[part])
    assert parent.tolist() == [0] * 200 + [200, 201, 202]


def count_places(rows: NDArray[Any]) -> tuple[int, ...]:
    """The figures of the census from their definitions: rows compared as tuples of bits."""
    finite = rows[np.isfinite(rows.astype(np.float64)).all(-1)]
    sizes: dict[tuple[int, ...], int] = {}
    for row in finite:
        key = tuple(float(v) + 0.0 for v in row)
        sizes[key] = sizes.get(key, 0) + 1
    shared = [s for s in sizes.values() if s > 1]
    alone = len(sizes) - len(shared)
    return len(sizes), len(shared), sum(shared), max(shared, default=0), alone, len(rows) - len(finite)


def figures_of(x: NDArray[Any], signed_zero: bool = False) -> dict[str, NDArray[Any]]:
    labels = ours.census(from_numpy(x), changed(x), signed_zero=signed_zero)
    out = {name: np.zeros(len(x)) for name in history_file.FIGURES}
    out |= {name: np.zeros(len(x) - 1) for name in history_file.EVENTS}
    kept = {name: np.empty((0, x.shape[1]), np.int64) for name in ("label", "order", "since")}
    history_file.coincidence_history(labels, changed(x), None, 0, np.full(len(x), -1), out, kept)
    return out


@pytest.mark.parametrize("collide", [False, True])
@given(x=st.one_of(blocks(dtypes=("bfloat16", "float16", "float32")), clouds()))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_census(collide: bool, x: NDArray[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if collide:  # every hash is the same: the comparison of the rows must find out
            patch.setattr(census_file, "_keys", lambda n: torch.zeros(n, dtype=torch.int64))
        out = figures_of(x)
    for t in range(len(x)):
        assert tuple(int(out[name][t]) for name in history_file.FIGURES[:6]) == count_places(x[t])


@given(x=blocks())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_census_reuses_known_labels(x: NDArray[Any]) -> None:
    expected = ours.census(from_numpy(x), changed(x))
    found = ours.census(from_numpy(x[1:]), changed(x)[1:], expected[1])
    np.testing.assert_array_equal(found, expected[1:])


def test_signed_zeros_are_one_place_unless_distinct() -> None:
    x = np.array([[[0.0], [-0.0]]], np.float32)
    assert [figures_of(x, signed)["n_unique"][0] for signed in (False, True)] == [1, 2]


@given(x=blocks(), data=st.data())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mechanism(x: NDArray[Any], data: st.DataObject) -> None:
    n, d = x.shape[1:]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    before, after = decode(x[0]), decode(x[1])
    predicted = np.where(rng.random((n, d)) < 0.7, after, decode(x[-1]))
    g = np.where(rng.random((n, d)) < 0.3, [0.0], decode(x[-1])).astype(np.float32)
    u = np.where(rng.random((n, d)) < 0.3, 0.0, (after.astype(np.float64) - before) * rng.choice([0.1, 1, 7], (n, d)))
    u[rng.random((n, d)) < data.draw(st.sampled_from([0.0, 0.2]))] = np.nan
    flags = data.draw(st.booleans()), data.draw(st.booleans())
    lattice = kernels.lattice("bfloat16")
    results = []
    for kernel, take in ((ours.mechanism, from_numpy), (compiled_mechanism.mechanism, lambda a: a)):
        out = {
            "cause": np.zeros(n, np.int8), "margin": np.zeros(n), "length": np.zeros(n), "net": np.ones((n, 2, d)),
            "counts": np.ones(9, np.int64), "sums": np.zeros(4),
        }  # fmt: skip
        update = kernels.ReplayedUpdate(take(predicted), flags[0], take(g), flags[1], take(u))
        kernel(take(before), take(after), update, lattice, out)
        results.append(out)
    agree(*results)


@given(x=blocks(dtypes=("float32",)))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_moments(x: NDArray[np.float32]) -> None:
    a, b, g = (np.ascontiguousarray(v.reshape(-1)) for v in (x[0], x[1], x[-1]))
    assert ours.same(from_numpy(a), from_numpy(b)) == compiled_mechanism.same(a, b)
    assert ours.stalled(from_numpy(a), from_numpy(b), from_numpy(g)) == compiled_mechanism.stalled(a, b, g)


class TestMemory:
    def test_parts_are_halved_when_memory_runs_out(self) -> None:
        done: list[slice] = []

        def work(part: slice) -> None:
            if part.stop - part.start > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            done.append(part)

        run_in_parts(20, 16, work)
        assert [i for part in done for i in range(part.start, part.stop)] == list(range(20))
        assert max(part.stop - part.start for part in done) == 2

    def test_results_are_the_same_with_halved_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        row_sums, sizes = motion_file.row_sums, []

        def small(a: torch.Tensor, *args: Any) -> Any:
            sizes.append(len(a))
            if len(a) > 40:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return row_sums(a, *args)

        monkeypatch.setattr(motion_file, "row_sums", small)
        x = np.random.default_rng(2).normal(size=(9, 30, 4)).astype(ml_dtypes.bfloat16)
        agree(*moved(x))
        assert sizes[0] == 240  # all at once, then less
        assert max(sizes[3:]) <= 40

    @pytest.mark.parametrize(
        ("file", "name", "which", "limit"), [("topology", "_joined", 1, 9), ("census", "_hashed", 0, 2)]
    )
    def test_topology_is_the_same_with_halved_parts(
        self, file: str, name: str, which: int, limit: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x = (np.random.default_rng(2).integers(-3, 4, (5, 60, 3)) * 2.0**-8).astype(np.float32)
        threshold, expected, found = np.full(5, 2.0**-8), graph_arrays(5, 60), graph_arrays(5, 60)
        ours.topology(from_numpy(x), changed(x), threshold, False, expected)
        work, sizes = getattr(kernels.engine(file, True), name), []

        def small(*args: Any) -> Any:
            done = work(*args)  # what a part that fails has begun is done again
            sizes.append(len(args[which]))
            if sizes[-1] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return done

        monkeypatch.setattr(kernels.engine(file, True), name, small)
        ours.topology(from_numpy(x), changed(x), threshold, False, found)
        agree(found, expected)
        assert max(sizes) > limit >= min(sizes)

    def test_too_little_memory_for_one_item_is_an_error(self) -> None:
        def work(part: slice) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(MemoryError, match="device='cpu'"):
            run_in_parts(4, 4, work)

    def test_other_errors_are_not_caught(self) -> None:
        def work(part: slice) -> None:
            raise RuntimeError("an index is out of bounds")

        with pytest.raises(RuntimeError, match="out of bounds"):
            run_in_parts(4, 4, work)


@pytest.mark.parametrize("tokens", ["dead", "all"])
def test_real_recording(recording: Path, tokens: str) -> None:
    x = np.ascontiguousarray(dx.open_recording(recording, raw=True, tokens=tokens).W.values)  # type: ignore[arg-type]
    agree(*moved(x))


TRITON = NumpyVersion(version("triton")) if find_spec("triton") else None


@pytest.mark.skipif(TRITON is None, reason="Triton comes with torch for CUDA")
@pytest.mark.skipif(
    TRITON is not None and TRITON < "3.7.0" and NumpyVersion(np.__version__) >= "2.5.0",
    reason="the interpreter of Triton 3.6 calls int() of arrays of one element, which NumPy 2.5 refuses",
)
def test_one_pass_in_tritons_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-m", "tests.triton_motion"], env=env, check=True, timeout=600)
