"""The recorder, on real training loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import zarr
from torch.nn import functional

import deadtok_xr as dx
from deadtok_xr.errors import DestinationExistsError, IncompleteStoreError, InputError
from deadtok_xr.recorder.host_buffers import to_numpy
from tests import soak_kills


def tiny(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.nn.Embedding, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    embedding = torch.nn.Embedding(12, 4).to(dtype)
    return embedding, torch.optim.AdamW(embedding.parameters(), lr=1e-2)


def update(embedding: torch.nn.Embedding, optimizer: torch.optim.Optimizer, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(8, (16,), generator=generator)  # ids 8..11 are dead
    logits = embedding(ids) @ embedding.weight.T
    loss = functional.cross_entropy(logits.float(), ids)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def test_recorded_values_are_those_of_the_loop(tmp_path: Path) -> None:
    embedding, optimizer = tiny()
    seen: dict[str, list[np.ndarray]] = {"W": [to_numpy(embedding.weight).copy()], "grad": [], "exp_avg": []}
    losses = []
    names = ("W", "grad", "exp_avg", "exp_avg_sq")
    with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr", variables=names, dead=range(8, 12)) as recorder:
        for step in range(200):
            losses.append(update(embedding, optimizer, step).detach())
            recorder.log(loss=losses[-1])
            seen["W"].append(to_numpy(embedding.weight).copy())
            seen["grad"].append(to_numpy(embedding.weight.grad).copy())
            seen["exp_avg"].append(to_numpy(optimizer.state[embedding.weight]["exp_avg"]).copy())
    ds = dx.open_recording(tmp_path / "r.zarr", raw=True)
    for name, values in seen.items():
        found = ds[name].values[-len(values) :]
        np.testing.assert_array_equal(found.view(np.uint16), np.stack(values).view(np.uint16), err_msg=name)
    np.testing.assert_allclose(ds.loss[1:], [float(x) for x in losses], rtol=1e-6)
    assert ds.sizes["step"] == 201
    assert list(ds.token[ds.dead]) == [8, 9, 10, 11]


def test_a_recorded_run_is_bit_identical_to_an_unrecorded_one(tmp_path: Path) -> None:
    ends = []
    for record in (False, True):
        embedding, optimizer = tiny()
        if record:
            with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr"):
                for step in range(50):
                    update(embedding, optimizer, step)
        else:
            for step in range(50):
                update(embedding, optimizer, step)
        ends.append(to_numpy(embedding.weight).view(np.uint16).copy())
    np.testing.assert_array_equal(*ends)


def test_two_recordings_of_a_training_differ_only_in_their_times(tmp_path: Path) -> None:
    for name in ("one", "two"):
        embedding, optimizer = tiny()
        left = tmp_path / name / ".r.zarr.grad.partial"  # by a Recorder that was killed
        left.mkdir(parents=True)
        options: dict[str, Any] = {"variables": ("W", "grad", "exp_avg"), "dead": range(8, 12)}
        with dx.Recorder(embedding.weight, optimizer, tmp_path / name / "r.zarr", **options) as recorder:
            for step in range(20):
                recorder.log(loss=update(embedding, optimizer, step))
        assert not left.exists()
    soak_kills.same(tmp_path / "one" / "r.zarr", tmp_path / "two" / "r.zarr")


def test_motion_index_that_a_power_cut_has_damaged_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "r.zarr"
    embedding, optimizer = tiny()
    for steps in (range(5), range(5, 8)):
        with dx.Recorder(embedding.weight, optimizer, path, first_step=steps[0], resume=True):
            for step in steps:
                update(embedding, optimizer, step)
        (path / "motion" / "zarr.json").unlink()
        (path / "motion" / "W" / "zarr.json").write_bytes(b"")
    with dx.Recorder(embedding.weight, optimizer, path, resume=True):
        pass
    assert "motion" in dict(zarr.open_group(str(path), mode="r").groups())
    assert dx.open_recording(path).sizes["step"] == 9
    assert not dx.verify(path).problems


def test_float32_runs_are_recorded_as_float32(tmp_path: Path) -> None:
    embedding, optimizer = tiny(dtype=torch.float32)
    with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr"):
        update(embedding, optimizer, 0)
    ds = dx.open_recording(tmp_path / "r.zarr")
    assert ds.W.attrs["precision"] == "none"
    with pytest.raises(InputError, match="has no lattice: say precision='float32'"):
        dx.phases(ds)
    assert (dx.motion(ds, precision="float32").moved_dims > 0).any()
    np.testing.assert_array_equal(ds.W[-1], to_numpy(embedding.weight))


class Float32Moments(torch.optim.Optimizer):
    """An optimizer that keeps its state in float32 beside bfloat16 parameters."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            mean = self.state[p].setdefault("exp_avg", torch.zeros_like(p, dtype=torch.float32))
            mean.lerp_(p.grad.float(), 0.1)
            p.sub_(mean.to(p.dtype))


def test_moments_keep_their_own_dtype(tmp_path: Path) -> None:
    embedding, _ = tiny()
    optimizer = Float32Moments(embedding.parameters(), {})
    with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr", variables=("W", "exp_avg")):
        for step in range(3):
            update(embedding, optimizer, step)
    ds = dx.open_recording(tmp_path / "r.zarr", raw=True)
    assert ds.W.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(ds.exp_avg[-1], optimizer.state[embedding.weight]["exp_avg"])
    assert (ds.exp_avg[0] == 0).all()


def test_missing_gradients_and_moments_in_chunks_of_one_step(tmp_path: Path) -> None:
    embedding, optimizer = tiny()
    with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr", variables=("W", "grad", "exp_avg"), memory=1):
        for step in range(3):
            update(embedding, optimizer, step)
    ds = dx.open_recording(tmp_path / "r.zarr")
    assert ds.grad.data.chunksize[0] == 1
    assert ds.sizes["step"] == 4
    assert np.isnan(ds.grad[0]).all()
    assert (ds.exp_avg[0] == 0).all()
    np.testing.assert_array_equal(ds.W[-1], to_numpy(embedding.weight).astype("f4"))


def test_steps_before_a_crash_in_the_loop_are_kept(tmp_path: Path) -> None:
    embedding, optimizer = tiny()

    def run() -> None:
        with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr") as recorder:
            for step in range(200):
                recorder.log(loss=update(embedding, optimizer, step))
                if step == 139:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    with pytest.raises(IncompleteStoreError, match="partial=True"):
        dx.open_recording(tmp_path / "r.zarr")
    ds = dx.open_recording(tmp_path / "r.zarr", partial=True, raw=True)
    assert ds.sizes["step"] == 141
    np.testing.assert_array_equal(ds.W[-1].values.view("u2"), to_numpy(embedding.weight).view("u2"))


def test_learning_rate_is_that_of_the_update(tmp_path: Path) -> None:
    embedding, optimizer = tiny()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr"):
        for step in range(3):
            update(embedding, optimizer, step)
            schedule.step()
    np.testing.assert_allclose(dx.open_recording(tmp_path / "r.zarr").lr, [np.nan, 1e-2, 5e-3, 2.5e-3])


def test_hooks_are_removed(tmp_path: Path) -> None:
    embedding, optimizer = tiny()
    with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr"):
        update(embedding, optimizer, 0)
    update(embedding, optimizer, 1)
    assert dx.open_recording(tmp_path / "r.zarr").sizes["step"] == 2


def test_other_logged_names_become_variables(tmp_path: Path) -> None:
    embedding, optimizer = tiny()
    with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr") as recorder:
        update(embedding, optimizer, 0)
        recorder.log(accuracy=0.5, h_mean=np.arange(4.0), spectrum=[1.0, 2.0, 3.0])
        with pytest.raises(
            InputError, match=r"log\(spectrum=...\): found the shape \(2,\); expected \(3,\), as before"
        ):
            recorder.log(spectrum=[1.0, 2.0])
        with pytest.raises(InputError, match="expected a scalar or a vector"):
            recorder.log(attention=np.zeros((2, 2)))
    ds = dx.open_recording(tmp_path / "r.zarr")
    assert ds.accuracy[1] == 0.5
    assert ds.h_mean.dims == ("step", "dim")
    np.testing.assert_array_equal(ds.spectrum[1], [1, 2, 3])


def test_logged_tensors_are_copied(tmp_path: Path) -> None:
    embedding, optimizer = tiny()
    h_mean = torch.zeros(4)  # one buffer for all steps, as a loop may have
    with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr") as recorder:
        for step in range(3):
            update(embedding, optimizer, step)
            h_mean += 1
            recorder.log(h_mean=h_mean)
    np.testing.assert_array_equal(dx.open_recording(tmp_path / "r.zarr").h_mean[1:, 0], [1, 2, 3])


def test_other_logged_names_are_stored_in_float64(tmp_path: Path) -> None:
    embedding, optimizer = tiny()
    with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr") as recorder:
        update(embedding, optimizer, 0)
        recorder.log(epoch=2**25 + 1)
    assert dx.open_recording(tmp_path / "r.zarr").epoch[1] == 2**25 + 1


class TestBadInput:
    @pytest.mark.parametrize(
        ("value", "match"),
        [
            ({"lr": 1e-3}, "the recorder writes 'lr' itself"),
            ({"step": 1}, "writes 'step' itself"),
            ({"dead": 1.0}, "writes 'dead' itself"),
            ({"grad": 1.0}, "writes 'grad' itself"),
            ({"loss": [1.0, 2.0]}, r"found the shape \(2,\); expected \(\)"),
            ({"p_h_dead": 0.1}, r"found the shape \(\); expected \(4,\)"),
            ({"note": "warm"}, "found str; expected a scalar or a vector of numbers"),
            ({"x": None}, "found NoneType"),
        ],
    )
    def test_invalid_logged_values_are_refused_immediately(
        self, tmp_path: Path, value: dict[str, object], match: str
    ) -> None:
        embedding, optimizer = tiny()
        with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr") as recorder:
            update(embedding, optimizer, 0)
            with pytest.raises(InputError, match=match):
                recorder.log(**value)
        assert dx.open_recording(tmp_path / "r.zarr").sizes["step"] == 2

    def test_a_module_is_not_a_parameter(self, tmp_path: Path) -> None:
        embedding, optimizer = tiny()
        with pytest.raises(InputError, match="not a Embedding: give it the weight"):
            dx.Recorder(embedding, optimizer, tmp_path / "r.zarr")  # type: ignore[arg-type]

    def test_parameter_not_in_the_optimizer(self, tmp_path: Path) -> None:
        embedding, _ = tiny()
        _, other = tiny()
        with pytest.raises(InputError, match="the optimizer does not have this parameter"):
            dx.Recorder(embedding.weight, other, tmp_path / "r.zarr")

    def test_unknown_variable(self, tmp_path: Path) -> None:
        embedding, optimizer = tiny()
        with pytest.raises(InputError, match="cannot record 'momentum': choose from W, grad"):
            dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr", variables=("momentum",))

    def test_wrong_rank(self, tmp_path: Path) -> None:
        bias = torch.nn.Parameter(torch.zeros(3))
        with pytest.raises(InputError, match=r"shape \(3,\); expected \(vocabulary, hidden\)"):
            dx.Recorder(bias, torch.optim.SGD([bias], lr=0.1), tmp_path / "r.zarr")

    def test_dead_ids_out_of_range(self, tmp_path: Path) -> None:
        embedding, optimizer = tiny()
        with pytest.raises(InputError, match="dead ids lie between 3 and 12; expected 0 to 11"):
            dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr", dead=[3, 12])

    def test_optimizer_without_moments(self, tmp_path: Path) -> None:
        embedding, _ = tiny()
        sgd = torch.optim.SGD(embedding.parameters(), lr=0.1)
        recorder = dx.Recorder(embedding.weight, sgd, tmp_path / "r.zarr", variables=("W", "exp_avg"))
        with recorder, pytest.raises(InputError, match="SGD keeps no 'exp_avg'"):
            update(embedding, sgd, 0)

    def test_existing_store_is_not_replaced(self, tmp_path: Path) -> None:
        embedding, optimizer = tiny()
        with dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr"):
            update(embedding, optimizer, 0)
        with (
            pytest.raises(DestinationExistsError),
            dx.Recorder(embedding.weight, optimizer, tmp_path / "r.zarr"),
        ):
            pass
        assert dx.open_recording(tmp_path / "r.zarr").sizes["step"] == 2


def test_to_numpy_keeps_every_bit_pattern() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    tensor = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    assert to_numpy(tensor).dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(to_numpy(tensor).view(np.uint16), bits)
