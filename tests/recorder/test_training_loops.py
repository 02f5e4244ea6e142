"""The recorder in realistic training loops: trainers, scalers, schedules, resumed runs, several optimizers."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import deadtok_xr as dx
from deadtok_xr.attributes import plain
from deadtok_xr.errors import IncompleteStoreError, InputError, WriteError
from deadtok_xr.recorder import host_buffers
from deadtok_xr.recorder.host_buffers import to_numpy
from deadtok_xr.store import chunk_bytes

ALL = ("W", "grad", "exp_avg", "exp_avg_sq")


class Tied(torch.nn.Module):
    """Ids in, loss out; ids from 8 on never occur."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(12, 4)
        self.head = torch.nn.Linear(4, 4)
        self.to(dtype)

    def forward(self, step: int) -> torch.Tensor:
        ids = torch.randint(8, (16,), generator=torch.Generator().manual_seed(step))
        logits = self.head(self.embedding(ids)) @ self.embedding.weight.T
        return functional.cross_entropy(logits.float(), ids)


def train(
    model: Tied, optimizer: Any, steps: range, after: Callable[[int, Any], None] = lambda step, loss: None
) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = model(step)
        loss.backward()
        optimizer.step()
        after(step, loss.detach())


def bits(tensor: torch.Tensor) -> np.ndarray:
    return to_numpy(tensor).view(np.uint16 if tensor.element_size() == 2 else np.uint32).copy()


def recorded(path: Path, name: str = "W", **options: Any) -> np.ndarray:
    values = dx.open_recording(path, raw=True, **options)[name].values
    return values.view(np.uint16 if values.itemsize == 2 else np.uint32)


OPTIMIZERS = {
    "single": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=False),
    "foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-1, momentum=0.9, nesterov=True, foreach=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_recording_changes_no_bit_of_the_training(tmp_path: Path, kind: str) -> None:
    ends = []
    names = ("W", "grad", "momentum_buffer") if kind == "sgd" else ALL
    for record in (False, True):
        model = Tied()
        optimizer = OPTIMIZERS[kind](model.parameters())
        if record:
            with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", variables=names, memory=2**12):
                train(model, optimizer, range(60))
        else:
            train(model, optimizer, range(60))
        ends.append([bits(p) for p in model.parameters()] + [torch.get_rng_state().numpy()])
    for without, with_recorder in zip(*ends, strict=True):
        np.testing.assert_array_equal(without, with_recorder)
    assert recorded(tmp_path / "r.zarr").shape == (61, 12, 4)
    np.testing.assert_array_equal(recorded(tmp_path / "r.zarr")[-1], ends[0][0])
    assert dx.open_recording(tmp_path / "r.zarr").attrs["implementation"] == {"sgd": "foreach"}.get(kind, kind)


def test_the_gradient_is_read_before_the_optimizer_alters_it(tmp_path: Path) -> None:
    model = Tied()  # foreach SGD with Nesterov adds the momentum to the gradient itself
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(bits(model.embedding.weight.grad)))
    with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", variables=("W", "grad")):
        train(model, optimizer, range(5))
    np.testing.assert_array_equal(recorded(tmp_path / "r.zarr", "grad")[1:], np.stack(seen))
    assert (bits(model.embedding.weight.grad) != seen[-1]).any()


class TestTrainerLoops:
    @pytest.mark.parametrize("fused", [False, True])
    def test_accumulation_clipping_schedule_and_scaler(self, tmp_path: Path, fused: bool) -> None:
        """Attempts 3 and 4 overflow: they are not steps, and the next step records their number."""
        model = Tied(torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.9**t)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=10**6)
        weight, states, used, losses, rates = model.embedding.weight, [], [], [], []
        with dx.Recorder(weight, optimizer, tmp_path / "r.zarr", variables=ALL, scaler=scaler) as recorder:
            for attempt in range(8):
                for micro in range(2):
                    loss = model(2 * attempt + micro) / 2
                    scaler.scale(loss * (float("inf") if attempt in (3, 4) else 1)).backward()
                if not fused:
                    scaler.unscale_(optimizer)
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                rate, scale, scaled = optimizer.param_groups[0]["lr"], scaler.get_scale(), weight.grad.clone()
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                recorder.log(loss=loss)
                if attempt not in (3, 4):
                    used.append(to_numpy(scaled / scale if fused else scaled))
                    states.append(bits(weight))
                    losses.append(float(loss.detach()))
                    rates.append(rate)
                optimizer.zero_grad()
        assert "step" not in vars(scaler)  # it is restored
        ds = dx.open_recording(tmp_path / "r.zarr")
        assert ds.sizes["step"] == 7
        assert int(optimizer.state[weight]["step"]) == 6
        np.testing.assert_array_equal(recorded(tmp_path / "r.zarr")[1:], np.stack(states))
        np.testing.assert_allclose(ds.grad[1:], np.stack(used), rtol=1e-6)
        np.testing.assert_array_equal(ds.skipped_before, [0, 0, 0, 0, 2, 0, 0])
        np.testing.assert_allclose(ds.loss[1:], losses, rtol=1e-6)
        np.testing.assert_array_equal(ds.lr[1:], rates)
        assert (dx.motion(ds, precision="float32").moved_dims.sum("token") > 0).all()

    def test_without_the_scaler_a_skipped_attempt_overwrites_nothing(self, tmp_path: Path) -> None:
        model = Tied(torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr") as recorder:
            train(model, optimizer, range(1), lambda step, loss: recorder.log(loss=1.0))
            with pytest.warns(UserWarning, match="the first value is kept.*give Recorder scaler="):
                recorder.log(loss=2.0)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                recorder.log(loss=3.0)
        assert dx.open_recording(tmp_path / "r.zarr").loss[1] == 1.0

    def test_a_closure_computes_the_gradient_inside_the_step(self, tmp_path: Path) -> None:
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        used = []

        def closure(step: int) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(step)
            loss.backward()
            used.append(bits(model.embedding.weight.grad))
            return loss

        with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", variables=("W", "grad")):
            for step in range(4):
                optimizer.step(lambda step=step: closure(step))
        np.testing.assert_array_equal(recorded(tmp_path / "r.zarr", "grad")[1:], np.stack(used))

    def test_wrapped_optimizer(self, tmp_path: Path) -> None:
        class Wrapped(torch.optim.Optimizer):  # like accelerate.optimizer.AcceleratedOptimizer
            def __init__(self, optimizer: torch.optim.Optimizer) -> None:
                self.optimizer = optimizer

        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with dx.Recorder(model.embedding.weight, Wrapped(optimizer), tmp_path / "r.zarr"):
            train(model, optimizer, range(3))
        assert dx.open_recording(tmp_path / "r.zarr").sizes["step"] == 4

    def test_updates_that_skip_the_parameter_are_marked(self, tmp_path: Path) -> None:
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", variables=("W", "grad", "exp_avg")):
            train(model, optimizer, range(2))
            model.embedding.weight.grad = None
            optimizer.step()
            train(model, optimizer, range(2, 4))
        ds = dx.open_recording(tmp_path / "r.zarr")
        np.testing.assert_array_equal(ds.skipped, [False, False, False, True, False, False])
        assert np.isnan(ds.grad[3]).all()
        np.testing.assert_array_equal(ds.W[3], ds.W[2])

    def test_changing_settings_become_variables(self, tmp_path: Path) -> None:
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-2), weight_decay=0.5, foreach=False)

        def change(step: int, loss: Any) -> None:
            optimizer.param_groups[0]["weight_decay"] = 0.5 / (step + 1)
            optimizer.param_groups[0]["betas"] = (0.9, 0.999 if step < 2 else 0.99)
            optimizer.param_groups[0]["lr"].mul_(0.5)

        with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", memory=1):
            train(model, optimizer, range(4), change)
        ds = dx.open_recording(tmp_path / "r.zarr")
        np.testing.assert_allclose(ds.weight_decay[1:], [0.5, 0.5, 0.25, 0.5 / 3])
        np.testing.assert_allclose(ds.beta2[1:], [0.999, 0.999, 0.999, 0.99])
        np.testing.assert_allclose(ds.lr[1:], [1e-2, 5e-3, 2.5e-3, 1.25e-3], rtol=1e-6)
        assert "beta1" not in ds
        assert "eps" not in ds


class TestRecordedValues:
    def test_recording_selected_rows(self, tmp_path: Path) -> None:
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        weight, text = model.embedding.weight, [f"<{i}>" for i in range(12)]
        options: dict[str, Any] = {"variables": ALL, "dead": range(8, 12), "token_text": text}
        with (
            dx.Recorder(weight, optimizer, tmp_path / "all.zarr", **options),
            dx.Recorder(weight, optimizer, tmp_path / "dead.zarr", rows="dead", **options),
            dx.Recorder(weight, optimizer, tmp_path / "some.zarr", rows=[9, 2, 5], **options),
        ):
            train(model, optimizer, range(5))
        whole = dx.open_recording(tmp_path / "all.zarr")
        for name, ids in (("dead", [8, 9, 10, 11]), ("some", [2, 5, 9])):
            part = dx.open_recording(tmp_path / f"{name}.zarr")
            assert part.token.values.tolist() == ids
            assert part.token_text.values.tolist() == [f"<{i}>" for i in ids]
            assert part.dead.values.tolist() == [i >= 8 for i in ids]
            assert "source_row" not in part.coords
            for variable in ALL:
                np.testing.assert_array_equal(part[variable], whole[variable].sel(token=ids), err_msg=variable)

    def test_every_kth_update_as_pairs(self, tmp_path: Path) -> None:
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        weight = model.embedding.weight
        with (
            dx.Recorder(weight, optimizer, tmp_path / "all.zarr", variables=ALL) as whole,
            dx.Recorder(weight, optimizer, tmp_path / "some.zarr", variables=ALL, every=5) as some,
            dx.Recorder(weight, optimizer, tmp_path / "list.zarr", variables=ALL, steps=[2, 3, 11]) as listed,
        ):
            train(model, optimizer, range(13), lambda t, loss: [r.log(loss=loss) for r in (whole, some, listed)])
        everything = dx.open_recording(tmp_path / "all.zarr").load()
        for name, steps in (("some", [0, 4, 5, 9, 10]), ("list", [0, 1, 2, 3, 10, 11])):
            part = dx.open_recording(tmp_path / f"{name}.zarr").load()
            assert part.step.values.tolist() == steps
            for variable in (*ALL, "loss", "lr"):
                np.testing.assert_array_equal(part[variable], everything[variable].sel(step=steps))
        with pytest.raises(InputError, match="are missing"):
            dx.motion(dx.open_recording(tmp_path / "some.zarr"))

    def test_untied_parameters_in_groups_of_their_own(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        E, W = (torch.nn.Parameter(torch.randn(12, 4).bfloat16()) for _ in range(2))
        optimizer = torch.optim.AdamW([{"params": [W]}, {"params": [E], "lr": 3e-3, "weight_decay": 0.0}], lr=1e-2)
        seen = []
        with dx.Recorder(W, optimizer, tmp_path / "r.zarr", variables=ALL, also={"E": E}) as recorder:
            for step in range(4):
                optimizer.zero_grad()
                ids = torch.randint(8, (16,), generator=torch.Generator().manual_seed(step))
                functional.cross_entropy((E[ids] @ W.T).float(), ids).backward()
                optimizer.step()
                seen.append([bits(t) for p in (W, E) for t in (p, p.grad, *list(optimizer.state[p].values())[1:])])
        names = [f"{kind}{suffix}" for suffix in ("", "_E") for kind in ALL]
        names[4] = "E"
        for i, name in enumerate(names):
            np.testing.assert_array_equal(recorded(tmp_path / "r.zarr", name)[1:], [s[i] for s in seen], err_msg=name)
        ds = dx.open_recording(tmp_path / "r.zarr")
        np.testing.assert_array_equal(ds.lr_E[1:], [3e-3] * 4)
        assert ds.attrs["also"]["E"]["hyperparameters"]["weight_decay"] == 0.0
        assert not ds.attrs["tied"]
        assert "E: step 4" in recorder.report

    def test_attributes_of_optimizer_and_machine(self, tmp_path: Path) -> None:
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)
        names = ("W", "max_exp_avg_sq")
        with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", variables=names, attrs={"seed": 7}):
            train(model, optimizer, range(2))
        attrs = plain(dx.open_recording(tmp_path / "r.zarr").attrs)
        assert attrs["optimizer"] == "AdamW"
        assert attrs["optimizer_class"] == "torch.optim.adamw.AdamW"
        assert attrs["implementation"] == "single"  # what torch chooses on a CPU
        flags = {"foreach": None, "fused": None, "capturable": False, "amsgrad": True, "maximize": False}
        assert attrs["hyperparameters"].items() >= {**flags, "decoupled_weight_decay": True, "eps": 1e-8}.items()
        assert attrs["torch_version"] == torch.__version__
        assert attrs["device"] == "cpu"
        assert attrs["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
        assert attrs["num_threads"] == torch.get_num_threads()
        assert attrs["initial_seed"] == "0"
        assert not attrs["deterministic_algorithms"]
        assert attrs["dtypes"] == {"W": "bfloat16", "max_exp_avg_sq": "bfloat16"}
        assert attrs["seed"] == 7


class TestSelfCheck:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("kind", ["single", "fused"])
    def test_self_check_accepts_a_gradient_of_its_update(self, tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
        model = Tied(dtype)
        optimizer = OPTIMIZERS[kind](model.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", variables=ALL) as recorder:
                train(model, optimizer, range(20))
        assert "W: step 10: exp_avg" in recorder.report
        assert float(recorder.report.split("% of")[0].split()[-1]) > 95
        assert dx.open_recording(tmp_path / "r.zarr").attrs["self_check"] == recorder.report

    def test_warning_about_a_gradient_that_the_optimizer_did_not_use(self, tmp_path: Path) -> None:
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", variables=ALL):
                train_altering(model, optimizer)
        (one,) = [str(w.message) for w in said]
        assert "the recorded gradient of W is not the one that the optimizer used" in one


def train_altering(model: Tied, optimizer: torch.optim.Optimizer) -> None:
    """Train while a hook that runs after the recorder's own changes the gradients."""

    def alter(*_: Any) -> None:
        model.embedding.weight.grad.mul_(0.1)

    optimizer.register_step_pre_hook(alter)
    train(model, optimizer, range(20))


def test_self_check_replays_the_tenth_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def check(previous: Any, current: Any, settings: Any) -> str:
        asked.append((previous, current, settings))
        return "the updates close"

    monkeypatch.setattr("deadtok_xr.replay.compare.check", check)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", variables=ALL) as recorder:
        train(model, optimizer, range(20))
    assert "W: the updates close" in recorder.report
    ((previous, current, settings),) = asked
    ds = dx.open_recording(tmp_path / "r.zarr", raw=True)
    assert settings["step"] == 10
    assert settings["lr"] == 1e-2
    assert tuple(settings["betas"]) == (0.9, 0.999)
    for name in ALL:
        np.testing.assert_array_equal(ds[name][10], current[name])
    np.testing.assert_array_equal(ds.exp_avg[9], previous["exp_avg"])


class TestResume:
    def checkpoint(self, model: Tied, optimizer: Any) -> dict[str, Any]:
        return {
            "model": {k: v.clone() for k, v in model.state_dict().items()},
            "optimizer": json_safe(optimizer.state_dict()),
        }

    def restored(self, saved: dict[str, Any]) -> tuple[Tied, torch.optim.Optimizer]:
        model = Tied()
        model.load_state_dict(saved["model"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        optimizer.load_state_dict(json_safe(saved["optimizer"]))
        return model, optimizer

    def begun(self, path: Path, steps: int, save_at: int, **options: Any) -> dict[str, Any]:
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        saved: dict[str, Any] = {}
        with dx.Recorder(model.embedding.weight, optimizer, path, variables=ALL, **options) as recorder:
            for step in range(steps):
                train(model, optimizer, range(step, step + 1), lambda _, loss: recorder.log(loss=loss))
                if step + 1 == save_at:
                    saved = self.checkpoint(model, optimizer)
        return saved

    @pytest.mark.slow
    @pytest.mark.parametrize("save_at", [140, 150])
    def test_resumed_recording_equals_an_uninterrupted_one(self, tmp_path: Path, save_at: int) -> None:
        self.begun(tmp_path / "whole.zarr", 300, 300, dead=[9, 10])
        saved = self.begun(tmp_path / "r.zarr", 150, save_at, dead=[9, 10])
        model, optimizer = self.restored(saved)
        options: dict[str, Any] = {"variables": ALL, "dead": [9, 10], "resume": True}
        with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", **options) as recorder:
            assert recorder.step == save_at
            train(model, optimizer, range(save_at, 300), lambda _, loss: recorder.log(loss=loss))
        whole, resumed = (dx.open_recording(tmp_path / name).load() for name in ("whole.zarr", "r.zarr"))
        assert resumed.attrs["resumed"][0]["step"] == save_at
        assert resumed.sizes["step"] == 301
        for name in (*ALL, "loss", "lr", "step"):
            np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)

    def test_crash_during_an_append_keeps_complete_steps(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        saved = self.begun(tmp_path / "r.zarr", 150, 150)
        before = dx.open_recording(tmp_path / "r.zarr").load()
        places = chunk_bytes.write_chunk
        for survive in (0, 1, 3, 5):  # the number of files written before the disk fails
            model, optimizer = self.restored(saved)
            count = iter(range(survive))

            def failing(*chunk: Any, count: Any = count) -> None:
                if next(count, None) is None:
                    raise OSError(28, "No space left on device")
                places(*chunk)

            monkeypatch.setattr(chunk_bytes, "write_chunk", failing)
            with (
                pytest.raises(WriteError, match="its 151 steps up to 150 are complete and can be opened"),
                dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", variables=ALL, resume=True),
            ):
                train(model, optimizer, range(150, 200))
            with pytest.raises(IncompleteStoreError):
                dx.open_recording(tmp_path / "r.zarr")
            after = dx.open_recording(tmp_path / "r.zarr", partial=True).load()
            for name in before.variables:
                np.testing.assert_array_equal(before[name], after[name], err_msg=str(name))
        monkeypatch.undo()
        model, optimizer = self.restored(saved)
        with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", variables=ALL, resume=True):
            train(model, optimizer, range(150, 200))
        assert dx.open_recording(tmp_path / "r.zarr").sizes["step"] == 201

    def test_store_of_another_run_is_refused_unchanged(self, tmp_path: Path) -> None:
        saved = self.begun(tmp_path / "r.zarr", 10, 5)
        model, optimizer = self.restored(saved)
        with torch.no_grad():
            model.embedding.weight[0, 0] += 1
        weight = model.embedding.weight
        cases: list[tuple[str, Any, dict[str, Any]]] = [
            ("W of step 5 differs from the parameter's present values", optimizer, {"variables": ALL}),
            ("with the variables", optimizer, {}),
            ("holds 12 tokens that are not the 3", optimizer, {"variables": ALL, "rows": [1, 2, 3]}),
            ("or other dead ones", optimizer, {"variables": ALL, "dead": [1]}),
            ("with the optimizer AdamW; this Recorder has SGD", torch.optim.SGD([weight], lr=1.0), {"variables": ALL}),
        ]
        for match, other, options in cases:
            with (
                pytest.raises(InputError, match=match),
                dx.Recorder(weight, other, tmp_path / "r.zarr", resume=True, **options),
            ):
                pass
        assert dx.open_recording(tmp_path / "r.zarr").sizes["step"] == 11


def json_safe(state: Any) -> Any:
    """A deep copy of a state dict."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {k: json_safe(v) for k, v in state.items()}
    return [json_safe(v) for v in state] if isinstance(state, list) else state


class TestReadingWhileRecording:
    def test_another_thread_analyses_a_growing_store(self, tmp_path: Path) -> None:
        path, sizes, errors, stop = tmp_path / "r.zarr", [], [], threading.Event()

        def read() -> None:
            while not stop.is_set():
                try:
                    ds = dx.open_recording(path, partial=True)
                    n = ds.sizes["step"]
                    moved = dx.motion(ds).moved_dims.values if n > 1 else np.empty((0, 12))
                    sizes.append((n, np.isfinite(ds.loss.values[1:]).all(), moved.shape))
                except (IncompleteStoreError, InputError) as error:  # nothing has been written yet
                    if sizes:
                        errors.append(error)

        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        reader = threading.Thread(target=read)
        with dx.Recorder(model.embedding.weight, optimizer, path, variables=ALL, memory=2**13) as recorder:
            reader.start()
            for step in range(0, 20_000, 50):  # until the reader has seen the store grow
                train(model, optimizer, range(step, step + 50), lambda step, loss: recorder.log(loss=loss))
                if errors or len({n for n, *_ in sizes}) > 3:
                    break
            stop.set()
            reader.join()
        assert not errors
        assert len({n for n, *_ in sizes}) > 3  # the store grew during the reads
        assert all(finite and shape == (n - 1, 12) for n, finite, shape in sizes)
        assert [n for n, *_ in sizes] == sorted(n for n, *_ in sizes)

    def test_buffers_stay_within_the_memory(self, tmp_path: Path) -> None:
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", variables=ALL, memory=2**13) as r:
            train(model, optimizer, range(50))
            n_bytes = sum(t.nbytes for t in r._session._buffer.matrices.values())
        assert 2**11 < 2 * n_bytes <= 2**13
        assert dx.open_recording(tmp_path / "r.zarr").W.data.chunksize[0] == 8


FULL = """
import resource, sys, warnings
import torch
import deadtok_xr as dx
from deadtok_xr.store import chunk_bytes
from tests.recorder.test_training_loops import Wide

path, on_error = sys.argv[1:]
torch.set_num_threads(1)
model = Wide()
optimizer = torch.optim.SGD([model.weight], lr=0.1)
made = 0
try:
    with dx.Recorder(model.weight, optimizer, path, on_error=on_error, memory=2**22):
        for step in range(200):
            if step == 100:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # limits file sizes, like a full disk
            model.step(optimizer, step)
            made += 1
except dx.errors.WriteError as error:
    print(made, error)
"""


class Wide:
    """Enough rows to exceed a limit on file sizes; every element moves at every step."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.randn(512, 64, generator=torch.Generator().manual_seed(0)))

    def step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        self.weight.grad = torch.randn(512, 64, generator=torch.Generator().manual_seed(step))
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("on_error", ["raise", "continue"])
def test_full_disk_during_training(tmp_path: Path, on_error: str) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path / "r.zarr"), on_error]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    made, _, message = done.stdout.partition(" ")
    assert "recording stopped ([Errno 27] File too large)" in message
    assert "are complete and can be opened with partial=True" in message
    if on_error == "raise":
        assert 100 < int(made) < 200
    else:
        assert int(made) == 200
        assert done.stderr.count("The training continues without being recorded.") == 1
    ds = dx.open_recording(tmp_path / "r.zarr", partial=True)
    model = Wide()
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    states = [bits(model.weight)]
    for step in range(ds.sizes["step"] - 1):
        model.step(optimizer, step)
        states.append(bits(model.weight))
    assert len(states) >= 100 - 2 * 16  # except the buffer being filled and the one being written
    np.testing.assert_array_equal(ds.W.values.view(np.uint32), np.stack(states))


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"every": 0}, "every=0; expected a whole number of updates, 1 or more"),
            ({"every": 2.5}, "every=2.5; expected"),
            ({"steps": [5, 3]}, "steps must ascend: 3 follows 5"),
            ({"steps": [5, 5]}, "steps must ascend: 5 follows 5"),
            ({"steps": [-1]}, "steps holds -1"),
            ({"steps": [1], "every": 2}, "found both every= and steps="),
            ({"rows": "live"}, "rows='live'; expected 'dead', vocabulary ids"),
            ({"rows": "dead"}, "rows='dead' needs to know the dead tokens: give dead= too"),
            ({"rows": [3, 12]}, "rows lie between 3 and 12; expected 0 to 11"),
            ({"rows": []}, "rows names no token"),
            ({"rows": [3, 3]}, "rows names token 3 twice"),
            ({"variables": ()}, "choose from W, grad"),
            ({"token_text": ["a"]}, "token_text has 1 entries; expected one per row, 12"),
            ({"on_error": "ignore"}, "choose 'raise' or 'continue'"),
            ({"first_step": -1}, "first_step=-1"),
            ({"overwrite": True, "resume": True}, "both overwrite and resume"),
        ],
    )
    def test_invalid_options(self, tmp_path: Path, options: dict[str, Any], match: str) -> None:
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with pytest.raises(InputError, match=match):
            dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr", **options)
        assert not (tmp_path / "r.zarr").exists()

    def test_invalid_second_parameters(self, tmp_path: Path) -> None:
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        weight = model.embedding.weight
        for also, match in (
            ({"E": weight}, "E is the same parameter as W, so the model is tied"),
            ({"E": model.head.weight}, r"E has the shape \(4, 4\)"),
            ({"grad": model.head.weight}, "the name is reserved"),
        ):
            with pytest.raises(InputError, match=match):
                dx.Recorder(weight, optimizer, tmp_path / "r.zarr", also=also)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda data: data[:10].clone(), r"W has the shape \(10, 4\) at step 3; it had \(12, 4\) before"),
            (lambda data: data.float(), "W has the dtype torch.float32 at step 3; it had torch.bfloat16 before"),
        ],
    )
    def test_parameter_whose_shape_or_dtype_changes(self, tmp_path: Path, change: Any, match: str) -> None:
        weight = torch.nn.Parameter(torch.randn(12, 4).bfloat16())
        optimizer = torch.optim.SGD([weight], lr=0.1)
        with dx.Recorder(weight, optimizer, tmp_path / "r.zarr"):
            for _ in range(2):
                weight.grad = torch.ones_like(weight)
                optimizer.step()
            weight.grad = None
            weight.data = change(weight.data)
            with pytest.raises(InputError, match=match):
                optimizer.step()
        with pytest.raises(IncompleteStoreError):
            dx.open_recording(tmp_path / "r.zarr")
        assert dx.open_recording(tmp_path / "r.zarr", partial=True).sizes["step"] == 3

    def test_recorders_not_entered_or_entered_twice_are_refused(self, tmp_path: Path) -> None:
        model = Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        recorder = dx.Recorder(model.embedding.weight, optimizer, tmp_path / "r.zarr")
        for call in (lambda: recorder.log(loss=1.0), lambda: recorder.__exit__(None, None, None)):
            with pytest.raises(InputError, match="has not been entered"):
                call()
        with recorder, pytest.raises(InputError, match="was entered before"):
            recorder.__enter__()
        with pytest.raises(InputError, match="was entered before"), recorder:
            pass
        assert dx.open_recording(tmp_path / "r.zarr").sizes["step"] == 1


# --- copies from an accelerator -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.cpu, "Event"), reason="this torch has no streams for CPUs")
@pytest.mark.parametrize("rows", [None, [1, 8, 11]])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_snapshots_and_streams_keep_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rows: Any
) -> None:
    """The copies from a GPU, in the same order on a CPU, whose streams have always finished."""
    names = ("W", "grad", "momentum_buffer") if kind == "sgd" else ALL
    ends = []
    for devices in (("cuda",), ("cuda", "cpu")):
        monkeypatch.setattr(host_buffers, "STAGED", devices)
        model = Tied()
        optimizer = OPTIMIZERS[kind](model.parameters())
        path = tmp_path / f"{len(devices)}.zarr"
        with dx.Recorder(
            model.embedding.weight, optimizer, path, variables=names, rows=rows, every=3, memory=2**12
        ) as recorder:
            assert isinstance(recorder._session._copier, host_buffers.StagedCopier) == ("cpu" in devices)
            for step in range(30):
                optimizer.zero_grad()
                if step != 11:
                    model(step).backward()
                    optimizer.step()
                else:
                    model.head(torch.ones(4).bfloat16()).sum().backward()  # the embedding has no gradient
                    optimizer.step()
        ends.append({**{n: recorded(path, n) for n in names}, "end": bits(model.embedding.weight)})
    for name in ends[0]:
        np.testing.assert_array_equal(*(end[name] for end in ends), err_msg=name)


def test_snapshot_is_copied_before_it_is_overwritten() -> None:
    """The order of operations on a stream: wait for the previous copies, take snapshots, copy them."""
    said: list[str] = []
    copier = host_buffers.StagedCopier(torch.device("cpu"), None)
    stream = types.SimpleNamespace(wait_event=lambda event: said.append("training waits for arrival"))
    copier._api = types.SimpleNamespace(
        current_stream=lambda device: stream, stream=lambda s: contextlib.nullcontext(said.append("copies begin"))
    )
    copier._stream = types.SimpleNamespace(wait_stream=lambda s: said.append("copies wait for training"))
    copier._arrived = types.SimpleNamespace(
        record=lambda s: said.append("arrival recorded"), synchronize=lambda: said.append("writer waits")
    )
    tensor, host = torch.arange(6.0).view(3, 2), torch.zeros(2, 3, 2)
    for step in range(2):
        for name in ("W", "grad"):
            copier.copy(name, tensor + step, host[step])
        assert not host[step].any()  # only the snapshots were taken
        copier.send()
        assert (host[step] == tensor + step).all()
    copier.wait()
    one = ["training waits for arrival", "copies wait for training", "copies begin", "arrival recorded"]
    assert said == [*one, *one, "writer waits"]
