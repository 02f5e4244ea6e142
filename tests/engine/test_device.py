"""The choice of a device: the same results on each, one kernel at a time, and an error if it does not exist."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import hypothesis
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr.cli import cli
from deadtok_xr.dask_arrays import EXPRESSIONS, annotations_of
from deadtok_xr.engine import Batch, StepBlock
from deadtok_xr.engine.block_pass import pass_output
from deadtok_xr.engine.prefetch import prefetch
from deadtok_xr.errors import InputError
from deadtok_xr.kernels import device as devices
from deadtok_xr.kernels.torch import changed_rows, to_device
from deadtok_xr.kernels.torch.parts import with_device_lock

WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
QUIET = {"dashboard_address": ":0", "n_workers": 1, "threads_per_worker": 2, "processes": False}
DENSE = ("motion", "phases", "phases_magnitude", "kinematics", "topology", "census", "mechanism")


def agree(found: xr.DataTree, expected: xr.DataTree) -> None:
    assert list(found.children) == list(expected.children)
    for group in expected.children:
        for name, b in expected[group].data_vars.items():
            a = found[group][name]
            assert a.dtype == b.dtype, name
            if b.dtype.kind in "iub":
                np.testing.assert_array_equal(a, b, err_msg=f"{group} {name}")
            else:
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-14, err_msg=f"{group} {name}")


@pytest.mark.slow
@pytest.mark.parametrize("batch_bytes", [2**14, devices.DEVICE_BATCH_BYTES])
def test_torch_kernels_give_the_same_results(
    recording: Path, batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "DEVICE_BATCH_BYTES", batch_bytes)
    found, expected = (dx.analyze(recording, analyses=DENSE, device=name).compute() for name in ("torch-cpu", "cpu"))
    agree(found, expected)


def test_torch_kernels_give_the_same_results_for_float32_in_memory(atom: Path) -> None:
    ds = dx.open_recording(atom).isel(step=slice(0, 40)).load()
    found, expected = (
        dx.analyze(ds, analyses=["motion", "kinematics", "topology", "census"], device=name).compute()
        for name in ("torch-cpu", "cpu")
    )
    agree(found, expected)


def test_device_option_runs_the_torch_kernels(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deadtok_xr import kernels

    asked: list[tuple[str, bool]] = []
    engine = kernels.engine

    def noted(part: str, on_device: bool) -> Any:
        asked.append((part, on_device))
        return engine(part, on_device)

    monkeypatch.setattr(kernels, "engine", noted)
    dx.analyze(recording, analyses=DENSE, device="torch-cpu").compute()
    assert {part for part, on_device in asked if on_device} == {
        "motion",
        "kinematics",
        "mechanism",
        "topology",
        "census",
    }
    assert not [part for part, on_device in asked if not on_device]
    asked.clear()
    dx.analyze(recording, analyses=DENSE).compute()  # small: auto stays with numba, with or without a GPU
    assert asked
    assert not any(on_device for _, on_device in asked)


EDGES = [0.0, -0.0, 1.0, 1.0 + 2.0**-7, 1.0 + 2.0**-6, 1.0 - 2.0**-8, -1.0, 2.0**-133, -(2.0**-133), 3e38]


@st.composite
def crowds(draw: st.DrawFn) -> xr.Dataset:
    """Few places, so that rows coincide, touch, part and meet, in rows of chunks of several batches each; tokens
    that rest; NaN, infinity and zeros of both signs."""
    n_steps, n, d = draw(st.integers(1, 14)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pool = draw(st.sampled_from([EDGES, EDGES[2:6], [*EDGES, np.nan, np.inf]]))
    x = rng.choice(pool, (n_steps, n, d))
    still = rng.random((n_steps, n)) < draw(st.sampled_from([0.0, 0.7, 0.95]))
    for t in range(1, n_steps):
        x[t][still[t]] = x[t - 1][still[t]]
    dtype, grid = draw(
        st.sampled_from([("bfloat16",) * 2, ("float32", "bfloat16"), ("float32",) * 2, ("float16",) * 2])
    )
    with np.errstate(over="ignore"):
        values = x.astype(grid).astype(dtype)
    data = da.from_array(values, chunks=(draw(st.sampled_from([3, 5])), -1, -1))
    coords = {"step": np.arange(n_steps), "token": np.arange(n)}
    return xr.Dataset({"W": (("step", "token", "dim"), data, {"precision": grid})}, coords)


@pytest.mark.slow
@hypothesis.settings(max_examples=8)  # one takes up to two seconds
@given(
    ds=crowds(),
    coincident=st.sampled_from(["separate", "linked"]),
    held=st.sampled_from([None, "threshold", "positions"]),
    k=st.sampled_from([0.5, 1.0, 3.0]),
    signed_zero=st.sampled_from(["equal", "distinct"]),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_graph_and_census_are_identical(ds: xr.Dataset, signed_zero: str, **graph: Any) -> None:
    options = {"topology": graph, "census": {"signed_zero": signed_zero, "at": ds.step.values[::2]}}
    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="synchronous"):
        patch.setattr(devices, "DEVICE_BATCH_BYTES", 2 * ds.W[0].nbytes)  # two steps at a time
        found, expected = (
            dx.analyze(ds, analyses=list(options), options=options, device=name).compute()
            for name in ("torch-cpu", "cpu")
        )
    xr.testing.assert_identical(found, expected)


@pytest.mark.parametrize("tokens", ["dead", "all"])
def test_graph_and_census_of_a_real_recording_are_identical(recording: Path, tokens: str) -> None:
    names, at = ["topology", "census"], {"census": {"at": range(0, 301, 20)}}
    found, expected = (
        dx.analyze(recording, analyses=names, options=at, tokens=tokens, device=name).compute()
        for name in ("torch-cpu", "cpu")
    )
    xr.testing.assert_identical(found, expected)


def test_analyses_without_torch_kernels_stay_with_numba(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other spacings, and float64, which is derived."""
    from deadtok_xr import kernels

    engine, there = kernels.engine, []
    monkeypatch.setattr(kernels, "engine", lambda part, gpu: (there.append((part, gpu)), engine(part, gpu))[1])
    ds = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 30))
    wide = ds.assign(W=ds.W.astype(np.float64))
    for data, options in (
        (ds, {"topology": {"spacing": "pair"}}), (ds, {"topology": {"spacing": "ordinal"}}), (wide, {"census": {}})
    ):  # fmt: skip
        found, expected = (
            dx.analyze(data, analyses=list(options), options=options, device=name).compute()
            for name in ("torch-cpu", "cpu")
        )
        xr.testing.assert_identical(found, expected)
    assert there
    assert not any(gpu for _, gpu in there)


def deadtok(*words: str | Path) -> None:
    cli([str(word) for word in words], prog_name="deadtok", standalone_mode=False)


def test_analyses_with_a_device_are_lazy(recording: Path, lazily: Any) -> None:
    with lazily():
        dx.analyze(recording, device="torch-cpu")


@pytest.mark.parametrize("device", ["cpu", "torch-cpu"])
def test_derived_values_are_refused_by_both_engines(recording: Path, device: str) -> None:
    ds = dx.open_recording(recording).isel(step=slice(0, 4))
    wide = ds.assign(W=ds.W.astype("f8").assign_attrs(precision="bfloat16"))
    with pytest.raises(InputError, match="the values have the dtype float64; expected: bfloat16, float16 or float32"):
        dx.analyze(wide, analyses=["motion"], device=device).compute()
    with pytest.raises(InputError, match="the values have the dtype float64"):
        to_device(wide.W.values, "mps")
    mean = ds.assign(W=((ds.W + ds.W.shift(token=1, fill_value=0)) / 3).assign_attrs(precision="bfloat16"))
    with pytest.raises(InputError, match="hold values that are not on the grid of bfloat16"):
        dx.analyze(mean, analyses=["motion"], device=device).compute()


class TestNames:
    def test_unknown_device_is_refused(self, recording: Path) -> None:
        with pytest.raises(InputError, match="device='abacus': choose one of auto, cpu, cuda, mps, torch-cpu"):
            dx.analyze(recording, device="abacus")

    @WITHOUT_CUDA
    def test_missing_device_is_found_where_the_task_runs(self, recording: Path) -> None:
        tree = dx.analyze(recording, analyses=["motion"], device="cuda")
        with pytest.raises(InputError, match=r"device='cuda'.* finds none on this machine; choose cpu or auto"):
            tree["motion"].n_invalid.compute()

    @WITHOUT_CUDA
    def test_missing_device_is_reported_before_any_work(self, recording: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="finds none on this machine"):
            deadtok("analyze", recording, "-o", tmp_path / "r.zarr", "--device", "cuda")
        assert not (tmp_path / "r.zarr").exists()

    def test_command_line_option_device(self, recording: Path, tmp_path: Path) -> None:
        path = tmp_path / "r.zarr"
        deadtok("analyze", recording, "-o", path, "--only", "motion", "--device", "torch-cpu", "-q")
        expected = dx.analyze(recording, analyses=["motion"], device="cpu").compute()
        agree(dx.open_results(path), expected)


class TestAuto:
    def test_auto_keeps_small_blocks_on_the_cpu(self) -> None:
        assert devices.resolve("auto", devices.DEVICE_BATCH_BYTES - 1) == devices.CPU

    @WITHOUT_CUDA
    def test_auto_without_a_gpu_is_the_cpu(self) -> None:
        assert devices.resolve("auto", 2**40) == devices.CPU

    def test_auto_with_a_gpu_uses_it_for_mechanism_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "_has_driver", lambda: True)
        monkeypatch.setattr(devices, "_has_device", lambda name: name == "cuda")
        device = devices.resolve("auto", devices.DEVICE_BATCH_BYTES)
        assert device.name == "cuda"
        assert device.runs("mechanism")
        for kernel in ("motion", "kinematics", "topology", "census"):
            assert not device.runs(kernel)
            assert devices.resolve("cuda", 1).runs(kernel)


in_layers = pytest.mark.skipif(EXPRESSIONS, reason="Dask ignores annotations of arrays of expressions")


class TestCluster:
    def annotations(self, tree: xr.DataTree) -> dict[str, Any]:
        graph = tree["motion"].displacement.data.__dask_graph__()
        return {name: layer.annotations for name, layer in graph.layers.items()}

    @in_layers
    def test_passes_on_cuda_request_workers_with_a_gpu(self, recording: Path) -> None:
        said = self.annotations(dx.analyze(recording, analyses=["motion"], device="cuda"))
        of_pass = [a for name, a in said.items() if name.startswith("pass-")]
        assert of_pass == [{"resources": {"GPU": 1}}]
        assert not any(a for name, a in said.items() if not name.startswith("pass-"))

    @in_layers
    @pytest.mark.parametrize("device", ["auto", "cpu", "torch-cpu"])
    def test_other_devices_request_no_resource(self, recording: Path, device: str) -> None:
        assert not any(self.annotations(dx.analyze(recording, analyses=["motion"], device=device)).values())

    @in_layers
    def test_tasks_run_only_on_workers_with_the_resource(
        self, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The annotation outlives xarray, the merging of graphs and their optimization, and keeps tasks apart."""
        from distributed import Client, LocalCluster

        monkeypatch.setattr(devices, "resources", lambda name: {"resources": {"GPU": 1}})
        tree = dx.analyze(recording, analyses=["motion", "phases"], device="torch-cpu")
        with dask.config.set({"optimization.fuse.active": False}), LocalCluster(**QUIET) as without, Client(without):  # type: ignore[no-untyped-call]
            future = next(iter(tree["motion"].n_invalid.data.persist().__dask_graph__().values()))
            time.sleep(1)
            assert future.status == "pending"  # nobody may have it
        with LocalCluster(**QUIET, resources={"GPU": 1}) as cluster, Client(cluster):  # type: ignore[no-untyped-call]
            saved = dx.save_results(tree, tmp_path / "r.zarr")
        agree(saved.compute(), dx.analyze(recording, analyses=["motion", "phases"], device="cpu").compute())

    @pytest.mark.parametrize(("device", "expected"), [("cuda", {"resources": {"GPU": 1}}), ("cpu", {})])
    def test_tasks_that_save_have_the_annotations_of_their_pass(
        self, recording: Path, device: str, expected: dict[str, Any]
    ) -> None:
        output = pass_output(dx.analyze(recording, analyses=["motion"], device=device)["motion"].displacement.data)
        assert output is not None
        assert annotations_of(output.block_pass.blocks) == expected

    def test_cluster_without_the_resource_is_refused(self, recording: Path, tmp_path: Path) -> None:
        from distributed import LocalCluster

        with LocalCluster(**QUIET) as cluster:  # type: ignore[no-untyped-call]
            options = ["--scheduler", cluster.scheduler_address, "--device", "cuda"]
            with pytest.raises(InputError, match="none of the 1 workers .* has the resource GPU: .* --resources GPU=1"):
                deadtok("analyze", recording, "-o", tmp_path / "r.zarr", *options)


class TestLock:
    def test_kernels_of_many_threads_take_turns(self) -> None:
        inside, most = [0], [0]

        @with_device_lock
        def kernel(steps: torch.Tensor) -> None:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.005)
            inside[0] -= 1

        threads = [threading.Thread(target=lambda: [kernel(torch.zeros(1)) for _ in range(5)]) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1]

    def test_device_lock_is_released_after_an_error(self) -> None:
        @with_device_lock
        def broken(steps: torch.Tensor) -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            broken(torch.zeros(1))
        done: list[int] = []
        thread = threading.Thread(target=lambda: done.append(len(changed_rows(torch.zeros(3, 1, 1)))))
        thread.start()
        thread.join(10)
        assert done == [2]

    @pytest.mark.parametrize("workers", [1, 8])
    def test_many_blocks_at_once(self, recording: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "DEVICE_BATCH_BYTES", 2**15)
        ds, names = dx.open_recording(recording, tokens="dead", chunks={"step": 16}), ["motion", "topology", "census"]
        with dask.config.set(scheduler="threads", num_workers=workers):
            found = dx.analyze(ds, analyses=names, device="torch-cpu").compute()
        agree(found, dx.analyze(ds, analyses=names, device="cpu").compute())


class TestLargeTensors:
    """MPS gives zeros for tensors of 2^31 elements and more: they are refused before any is made."""

    @pytest.mark.parametrize(("shape", "fits"), [((2, 2**20, 2**10), False), ((2, 2**20, 2**10 - 1), True)])
    def test_tensors_too_large_for_mps_are_refused(self, shape: tuple[int, ...], fits: bool) -> None:
        if fits:
            devices.check_size(shape, "mps")
        else:
            with pytest.raises(InputError, match=r"2147483648 elements .* fewer than 2\^31 .*device='cpu'"):
                devices.check_size(shape, "mps")

    def test_other_devices_accept_large_tensors(self) -> None:
        devices.check_size((2, 2**20, 2**10), "cuda")

    def test_tensors_too_large_for_mps_are_not_copied(self) -> None:
        huge = np.broadcast_to(np.float32(1), (2, 2**20, 2**10))
        with pytest.raises(InputError, match="2147483648 elements"):
            to_device(huge, "mps")


class TestPrefetch:
    def batches(self, error: bool = False) -> Any:
        row = StepBlock(0, 4, 4, 1, 1, devices.resolve("torch-cpu", 0))
        buffer = np.zeros((2, 1, 1), np.float32)
        for i in range(4):
            buffer[:] = i  # reused, as the engine does
            yield Batch(row, i, {"W": buffer}, 1)
        if error:
            raise OSError("the chunk is damaged")

    def test_each_batch_keeps_its_values_while_the_next_is_decoded(self) -> None:
        for i, batch in enumerate(prefetch(self.batches())):
            time.sleep(0.01)
            assert (batch.values["W"] == i).all()
            assert (batch.tensor("W") == i).all()

    def test_errors_of_the_reader_are_raised(self) -> None:
        with pytest.raises(OSError, match="damaged"):
            list(prefetch(self.batches(error=True)))

    def test_closing_waits_for_the_reader(self) -> None:
        before = set(threading.enumerate())
        parts = prefetch(self.batches())
        next(parts)
        assert set(threading.enumerate()) - before
        parts.close()
        assert not set(threading.enumerate()) - before


def test_batch_tensor_is_created_once_with_the_same_bits(recording: Path) -> None:
    values = dx.open_recording(recording, raw=True).W.isel(step=slice(0, 3)).values
    batch = Batch(StepBlock(0, 3, 2, *values.shape[1:], devices.resolve("torch-cpu", 0)), 0, {"W": values}, 3)
    tensor = batch.tensor("W")
    assert batch.tensor("W") is tensor
    np.testing.assert_array_equal(tensor.view(torch.int16).numpy(), values.view(np.int16))
    np.testing.assert_array_equal(batch.changed("W"), (values[1:] != values[:-1]).any(-1))


def test_a_replay_stays_on_the_kind_of_device_that_made_the_recording() -> None:
    """Operations of the same name round differently on CPUs and GPUs: the bits of a replay would be others."""
    from deadtok_xr.analyses.common.replayed_updates import Replay
    from deadtok_xr.engine.series import Series
    from deadtok_xr.replay.settings import Settings

    gpu = devices.Device("cuda", frozenset({"mechanism"}))
    for made_on_gpu, device, there in ((False, gpu, False), (True, gpu, True), (True, devices.CPU, False)):
        settings = Settings("SGD", on_accelerator=made_on_gpu)
        series = {name: Series(da.arange(3.0)) for name in ("t", "lr", "step")}
        accumulator = Replay(settings, "single", {"W": "bfloat16"}, series).start(StepBlock(0, 3, 2, 1, 1, device))
        assert accumulator.on_device == there


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_benchmark_checks_and_measures() -> None:
    from benchmarks import gpu

    found = {name: part for parts in gpu.report("torch-cpu", (9, 40, 8), 1) for name, part in parts.items()}
    assert found["agrees"] == ["changed_rows", "motion", "kinematics", "topology", "census", "mechanism"]
    for kind in ("moving", "frozen"):
        kernels = {name: value for name, value in found[kind].items() if isinstance(value, dict)}
        assert {"motion_eager", "changed_rows", "kinematics", "topology", "census"} <= kernels.keys()
        assert all(value["of_copy"] > 0 for value in kernels.values())
    times = {**found["analyze"], **found["analyze_few_steps"]}
    for asked in ("motion phases kinematics", "topology", "census"):
        assert times[asked]["faster"] > 0
    wrong = {"a": np.array([1, 2])}
    with pytest.raises(AssertionError, match="motion: a"):
        gpu.same("motion", {"a": np.array([1, 3])}, wrong)
