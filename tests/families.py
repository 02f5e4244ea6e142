"""The recordings that people hold, in their exact layouts, from a real run: one builder per family.

Each builder writes files as the family's notebooks do (`conversion/README.md` is the ledger) and says what a
faithful conversion holds, token ids ascending. Sizes are those of the run, not of the originals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from safetensors.torch import save_file

from deadtok_xr.bfloat16 import BFLOAT16, decode
from tests.conversion import streams
from tests.conversion.more_sources import write_dcp, write_gguf, write_orbax

Array = NDArray[Any]
T = 30
"""Steps after the initial state, in most families."""


@dataclass
class Built:
    """A file (or folder) of a family, and what its store must hold."""

    path: Path
    expected: dict[str, Array]
    """Variables as stored, tokens ascending."""
    steps: Array
    tokens: Array
    dead: Array | None = None
    options: dict[str, Any] = field(default_factory=dict)
    runs: int | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    precision: str = "bfloat16"
    ambiguous: str = ""
    """What conversion without the options must say, where there are two readings."""


Builder = Callable[[xr.Dataset, Path], Built]
FAMILIES: dict[str, Builder] = {}


def family(build: Builder) -> Builder:
    """Enter a builder under its name."""
    FAMILIES[build.__name__] = build
    return build


@dataclass
class Run:
    """The arrays of the real run, as they were in memory."""

    W: Array
    grad: Array
    exp_avg: Array
    exp_avg_sq: Array
    loss: Array
    h_mean: Array
    dead: Array

    @property
    def n(self) -> int:
        return len(self.dead)

    @property
    def dead_ids(self) -> Array:
        return np.flatnonzero(self.dead)

    @property
    def live_ids(self) -> Array:
        return np.flatnonzero(~self.dead)

    def four(self, rows: Any = slice(None)) -> dict[str, Array]:
        """W, gradient and moments as bfloat16."""
        return {name: getattr(self, name)[:, rows] for name in ("W", "grad", "exp_avg", "exp_avg_sq")}


def take(rec: xr.Dataset, n_steps: int = T + 1, start: int = 0) -> Run:
    """The first steps of the run; the gradient of the initial state is 0, as recorders have it."""
    part = rec.isel(step=slice(start, start + n_steps))
    arrays = {name: part[name].values.copy() for name in ("W", "grad", "exp_avg", "exp_avg_sq")}
    arrays["grad"][0] = 0
    loss = part["loss"].values.astype(np.float32)
    return Run(**arrays, loss=loss, h_mean=part["h_mean"].values.astype(np.float32), dead=part["dead"].values)


def tensor(x: Any) -> torch.Tensor:
    """An array as torch has it, bfloat16 included."""
    x = np.array(x, order="C")
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == BFLOAT16 else torch.from_numpy(x)


def save(path: Path, arrays: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: tensor(np.asarray(v)) for k, v in arrays.items()}, path)
    return path


def save_h5(path: Path, arrays: Mapping[str, Any], attrs: Mapping[str, Any], **big: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, **(big if np.ndim(values) == 3 else {}))
        file.attrs.update(attrs)
    return path


def u16(x: Array) -> Array:
    return x.view(np.uint16)


def nan_first(x: Array) -> Array:
    return np.concatenate([np.full((1, *x.shape[1:]), np.nan, x.dtype), x])


def f32(**values: float) -> dict[str, Array]:
    return {name: np.array(value, np.float32) for name, value in values.items()}


def as_f32(values: Mapping[str, Array]) -> dict[str, float]:
    return {name: float(v) for name, v in values.items()}


def lists(run: Run, kind: str = "token_ids") -> dict[str, Array]:
    return {f"dead_{kind}": run.dead_ids, f"live_{kind}": run.live_ids}


def masks(run: Run) -> dict[str, Array]:
    return {"live_mask": ~run.dead, "dead_mask": run.dead, "live_ids": run.live_ids, "dead_ids": run.dead_ids}


OLD = {"W": "embeddings", "grad": "grads", "exp_avg": "momentum", "exp_avg_sq": "variance"}
NEW = {"W": "W", "grad": "grad_W", "exp_avg": "momentum_W", "exp_avg_sq": "variance_W"}
SHORT = {"W": "W", "grad": "g", "exp_avg": "m", "exp_avg_sq": "v"}
STEPS = np.arange(T + 1)
ALL = np.arange(256)


# --- Gatsby --------------------------------------------------------------------------------------


@family
def gatsby(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    path = save(folder / "embedding_evolution.safetensors", {"embedding_history": run.W})
    return Built(path, {"W": run.W}, STEPS, ALL, options={"recipe": "gatsby"}, hyperparameters={"learning_rate": 1e-3})


@family
def gatsby_jiggling(rec: xr.Dataset, folder: Path) -> Built:
    built = gatsby(rec, folder)
    built.options, built.hyperparameters = {"recipe": "gatsby_jiggling"}, {"noise_sigma": 3e-6}
    return built


@family
def gatsby_f32_edition(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    extra = {"dead_token_ids": run.dead_ids, **f32(init_sigma=1e-5)}
    path = save(folder / "embedding_evolution.safetensors", {"embedding_history": run.W, **extra})
    return Built(path, {"W": run.W}, STEPS, ALL, run.dead, hyperparameters=as_f32(f32(init_sigma=1e-5)))


@family
def instrumented(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    w = decode(run.W)
    deltas = np.diff(w, axis=0, prepend=w[:1])
    scalars = f32(init_sigma=0.02, learning_rate=3e-3, weight_decay=0)
    arrays = {"recorded_steps": STEPS, **lists(run), "grads": decode(run.grad), "deltas": deltas, **scalars}
    path = save(folder / "gradient_delta_history.safetensors", arrays)
    expected = {"delta": deltas, "grad": run.grad}
    return Built(path, expected, STEPS, ALL, run.dead, {"recipe": "instrumented"}, hyperparameters=as_f32(scalars))


@family
def instrumented_with_initial(rec: xr.Dataset, folder: Path) -> Built:
    built = instrumented(rec, folder)
    run = take(rec)
    built.options = {"initial": save(folder / "W.safetensors", {"W": run.W[0]})}
    built.expected["W"] = run.W
    return built


@family
def instrumented_every_tenth(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec, 101)
    w = decode(run.W)
    deltas = np.diff(w, axis=0, prepend=w[:1])[::10]
    dead, live = run.dead_ids, run.live_ids[:10]
    arrays = {
        "recorded_steps": np.arange(0, 101, 10),
        "dead_grads": decode(run.grad[::10, dead]), "live_grads": decode(run.grad[::10, live]),
        "dead_deltas": deltas[:, dead], "live_deltas": deltas[:, live],
    }  # fmt: skip
    path = save(folder / "gradient_delta_history.safetensors", arrays)
    rows = np.concatenate([dead, live])
    order = np.argsort(rows)
    expected = {"delta": deltas[:, rows[order]], "grad": run.grad[::10, rows[order]]}
    told = {"token_ids": rows.tolist(), "dead_ids": dead.tolist()}
    return Built(path, expected, np.arange(0, 101, 10), rows[order], run.dead[rows[order]], told)


def _lil_gatsby(run: Run, *, upcast: bool) -> dict[str, Array]:
    wide: Callable[[Array], Array] = decode if upcast else (lambda x: x)
    logits = (run.W[:, :, 0].astype(np.float32) * 7).astype(BFLOAT16)
    arrays = {OLD[name]: wide(x) for name, x in run.four().items()}
    losses = np.nan_to_num(run.loss).astype(np.float32)
    arrays |= {"logits": wide(logits), "losses": losses if upcast else losses.astype(BFLOAT16), **lists(run)}
    return arrays | f32(init_sigma=0.02, learning_rate=1e-3, weight_decay=0.01, adam_beta1=0.9, adam_beta2=0.999)


@family
def lil_gatsby(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    arrays = _lil_gatsby(run, upcast=True) | {"init_method_code": np.array(1, np.int32)}
    labels = STEPS + (STEPS > 12) + (STEPS > 25)  # a hook that fires at the ends of epochs, too
    path = save(folder / "comprehensive_training_data.safetensors", {**arrays, "recorded_steps": labels})
    expected = {**run.four(), "loss": arrays["losses"], "logits": arrays["logits"]}
    return Built(
        path, expected, STEPS, ALL, run.dead, {"recipe": "lil_gatsby"}, hyperparameters={"init_method_code": 1},
        ambiguous="the labels drift",
    )  # fmt: skip


@family
def lil_gatsby_sgd(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    arrays = _lil_gatsby(run, upcast=False) | {"recorded_steps": STEPS}
    path = save(folder / "13.1a_training_data.safetensors", arrays)
    expected = {**run.four(), "loss": arrays["losses"], "logits": arrays["logits"]}
    return Built(path, expected, STEPS, ALL, run.dead, {"recipe": "lil_gatsby_sgd"})


@family
def pre_step(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    arrays = {"embeddings": np.concatenate([run.W[:1], run.W[:-1]]), **lists(run), **f32(init_sigma=0.02)}
    arrays |= {name: np.array(n, np.int32) for name, n in (("test_id", 1), ("seed", 1601), ("steps", 1000))}
    path = save(folder / "test001_f32_seed1601.safetensors", arrays)
    return Built(
        path, {"W": run.W[:-1]}, STEPS[:-1], ALL, run.dead, {"recipe": "pre_step"},
        hyperparameters={"seed": 1601, "steps": 1000}, ambiguous="before each optimizer step",
    )  # fmt: skip


# --- Wordybird, Flannel --------------------------------------------------------------------------


@family
def wordybird(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec, 101)
    arrays = {OLD[k]: v[::10] for k, v in run.four().items()}
    arrays |= {"losses": run.loss[::10], "logits": run.W[::10, :, 0], "recorded_steps": np.arange(0, 101, 10)}
    arrays |= {"n_trained": np.array(len(run.live_ids)), "n_untrained": np.array(len(run.dead_ids))}
    path = save(folder / "1.12d_wordybird_2.safetensors", arrays)
    trained = {"trained_mask": ~run.dead, "untrained_mask": run.dead}
    trained |= {"trained_indices": run.live_ids, "untrained_indices": run.dead_ids}
    save(folder / "fineweb_token_masks.safetensors", trained)
    expected = {k: v[::10] for k, v in run.four().items()} | {"loss": run.loss[::10], "logits": arrays["logits"]}
    told = {"recipe": "wordybird", "dead_ids": run.dead_ids.tolist()}
    return Built(path, expected, np.arange(0, 101, 10), ALL, run.dead, told)


FLANNEL = f32(init_scale=0.02, learning_rate=1e-3, weight_decay=0, adam_beta1=0.9, adam_beta2=0.999)


@family
def flannel_1(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    arrays = {OLD[k]: v for k, v in run.four().items()}
    arrays |= {"logits": run.W[:, :, 0], "losses": run.loss.astype(BFLOAT16), "recorded_steps": STEPS, **FLANNEL}
    path = save(folder / "1.20a_flannel_1.safetensors", arrays)
    expected = {**run.four(), "loss": arrays["losses"], "logits": arrays["logits"]}
    told = {"recipe": "flannel", "dead_ids": run.dead_ids.tolist()}
    return Built(path, expected, STEPS, ALL, run.dead, told, hyperparameters=as_f32(FLANNEL))


@family
def flannel_2(rec: xr.Dataset, folder: Path) -> Built:
    run, other = take(rec), take(rec, start=40)
    suffixed = {f"{OLD[k]}_{s}": v for s, r in (("W", run), ("E", other)) for k, v in r.four().items()}
    arrays = {**suffixed, "losses": run.loss.astype(BFLOAT16), "recorded_steps": STEPS, "tied_weights": np.array(0)}
    path = save(folder / "1.20b_flannel_2.safetensors", arrays)
    expected = {**run.four(), **{("E" if k == "W" else f"{k}_E"): v for k, v in other.four().items()}}
    expected["loss"] = arrays["losses"]
    return Built(path, expected, STEPS, ALL, options={"recipe": "flannel"}, hyperparameters={"tied_weights": 0})


def _runs(rec: xr.Dataset, n: int = 3) -> list[Run]:
    return [take(rec, start=20 * i) for i in range(n)]


@family
def flannel_3(rec: xr.Dataset, folder: Path) -> Built:
    runs = _runs(rec)
    dead = runs[0].dead_ids
    w = np.stack([r.W[:, dead] for r in runs])
    counts = {"n_runs": 3, "n_steps": T - 1, "n_dead": len(dead), "base_seed": 42}
    arrays = {"embeddings": w, "dead_indices": dead, **{k: np.array(v) for k, v in counts.items()}}
    path = save(folder / "1.20c_flannel_3.safetensors", arrays)
    told = {"recipe": "flannel_3"}
    return Built(path, {"W": w}, STEPS, dead, np.ones(len(dead), bool), told, runs=3, hyperparameters=counts)


@family
def flannel_4(rec: xr.Dataset, folder: Path) -> Built:
    runs = _runs(rec)
    w = np.stack([r.W for r in runs])
    losses = np.stack([nan_first(r.loss[1:]) for r in runs]).astype(BFLOAT16)
    flags = {f"recorded_{k}": np.array(k == "W") for k in ("W", "grads", "momentum", "variance", "logits")}
    arrays = {"W": w, "losses": losses, "n_runs": np.array(3), "base_seed": np.array(42), **flags, **FLANNEL}
    path = save(folder / "1.20d_flannel_4.safetensors", arrays)
    told = {"recipe": "flannel", "dead_ids": runs[0].dead_ids.tolist()}
    return Built(
        path, {"W": w, "loss": losses}, STEPS, ALL, runs[0].dead, told, runs=3,
        hyperparameters={"base_seed": 42, "recorded_W": True, **as_f32(FLANNEL)},
    )  # fmt: skip


@family
def flannel_5(rec: xr.Dataset, folder: Path) -> Built:
    built = flannel_4(rec, folder)
    runs = _runs(rec)
    scales = np.array([0.005, 0.01, 0.015], np.float32)
    arrays = {
        "W": built.expected["W"],
        "losses": built.expected["loss"],
        "init_scales": scales,
        "fixed_seed": np.array(42),
    }
    built.path = save(folder / "1.20e_flannel_5.safetensors", arrays)
    built.expected["init_scales"] = scales
    built.hyperparameters = {"fixed_seed": 42}
    built.dead = runs[0].dead
    return built


@family
def flannel_6(rec: xr.Dataset, folder: Path) -> Built:
    built = flannel_4(rec, folder)
    initial = built.expected["W"][0, 0]
    arrays = {
        "W": built.expected["W"],
        "losses": built.expected["loss"],
        "W_initial": initial,
        "init_seed": np.array(42),
    }
    built.path = save(folder / "1.20f_flannel_6.safetensors", {**arrays, "base_train_seed": np.array(43)})
    built.expected["W_initial"] = initial
    built.hyperparameters = {"init_seed": 42, "base_train_seed": 43}
    return built


@family
def flannel_7(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    four = {k: v[None] for k, v in run.four().items()}
    wide = {NEW[k]: decode(v) if k.startswith("exp") else v for k, v in four.items()}
    losses = run.loss[None].astype(BFLOAT16)
    path = save(folder / "1.20h_flannel_7.safetensors", {**wide, "losses": losses, "W_initial": run.W[0]})
    expected = {**four, "loss": losses, "W_initial": run.W[0]}
    return Built(path, expected, STEPS, ALL, options={"recipe": "flannel"}, runs=1)


# --- Thimble -------------------------------------------------------------------------------------

THIMBLE = f32(learning_rate=1e-3, weight_decay=0, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8, init_scale=0.02)
COUNTS = {"vocab_size": 256, "hidden_dim": 16, "n_layers": 2, "num_steps": T, "seed": 42}


def _thimble(rec: xr.Dataset, folder: Path, name: str, stored: Callable[[str, Array], Array], **extra: Any) -> Built:
    run = take(rec)
    arrays = {NEW[k]: stored(k, v) for k, v in run.four().items()}
    arrays |= {"losses": run.loss, **{k: np.array(v) for k, v in COUNTS.items()}, **THIMBLE, **extra}
    path = save(folder / f"{name}.safetensors", arrays)
    settings = {**COUNTS, **as_f32(THIMBLE)}
    return Built(path, {**run.four(), "loss": run.loss}, STEPS, ALL, hyperparameters=settings)


@family
def thimble_1(rec: xr.Dataset, folder: Path) -> Built:
    return _thimble(rec, folder, "thimble_1", lambda k, v: decode(v) if k.startswith("exp") else v)


@family
def thimble_2(rec: xr.Dataset, folder: Path) -> Built:
    """Trained in float32: the last places of its values are its own."""
    shift = np.float32(1) + np.float32(2**-20)
    built = _thimble(rec, folder, "thimble_2", lambda k, v: decode(v) * shift)
    built.expected |= {k: decode(v) * shift for k, v in take(rec).four().items()}
    built.precision = "none"
    return built


@family
def thimble_3(rec: xr.Dataset, folder: Path) -> Built:
    return _thimble(rec, folder, "thimble_3", lambda k, v: v)


@family
def thimble_4(rec: xr.Dataset, folder: Path) -> Built:
    built = _thimble(rec, folder, "thimble_4", lambda k, v: v, **masks(take(rec)))
    built.dead = take(rec).dead
    return built


def _thimble_6(rec: xr.Dataset, path: Path, **big: Any) -> Built:
    run = take(rec)
    half = {k: decode(v).astype(np.float16) for k, v in run.four().items()}
    arrays = {NEW[k]: v for k, v in half.items()} | {"losses": run.loss, **masks(run)}
    save_h5(path, arrays, {"vocab_size": 256, "seed": 42}, **big)
    told = {"recipe": "thimble_6"}
    return Built(path, {**half, "loss": run.loss}, STEPS, ALL, run.dead, told, hyperparameters={"seed": 42})


@family
def thimble_6(rec: xr.Dataset, folder: Path) -> Built:
    return _thimble_6(rec, folder / "thimble_6.h5", chunks=(1, 256, 16), compression="gzip", compression_opts=1)


@family
def thimble_6_chunky(rec: xr.Dataset, folder: Path) -> Built:
    return _thimble_6(rec, folder / "thimble_6_chunky.h5", chunks=(13, 256, 16))


@family
def thimble_7(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    arrays = {NEW[k]: u16(v) for k, v in run.four().items()} | {"losses": run.loss, **masks(run)}
    path = save_h5(folder / "thimble_7.h5", arrays, {"vocab_size": 256, "seed": 42}, chunks=(16, 256, 16))
    return Built(path, {**run.four(), "loss": run.loss}, STEPS, ALL, run.dead, hyperparameters={"seed": 42})


@family
def thimble_8(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    dead = run.dead_ids
    loss = np.nan_to_num(run.loss).astype(np.float32)
    four = run.four(dead)
    arrays = {SHORT[k]: u16(v) if k == "W" else decode(v) for k, v in four.items()}
    arrays |= {"loss": loss, "dead_mask": run.dead, "dead_indices": dead}
    path = save(folder / "thimble_8_trajectory.safetensors", arrays)
    (folder / "metadata.json").write_text(json.dumps({"batch_size": 128, "optimizer": "AdamW"}))
    told = {"recipe": "thimble_8"}
    return Built(
        path, {**four, "loss": loss}, STEPS, dead, np.ones(len(dead), bool), told,
        hyperparameters={"batch_size": 128, "learning_rate": 3e-4, "weight_decay": 0.1},
    )  # fmt: skip


@family
def thimble_9(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    dead = run.dead_ids[::-1].copy()  # in another order than the vocabulary's
    arrays = {"W": u16(run.W[:, dead]), "loss": run.loss, "dead_mask": run.dead, "dead_indices": dead}
    path = save(folder / "thimble_9_trajectory.safetensors", arrays)
    expected = {"W": run.W[:, run.dead_ids], "loss": run.loss}
    return Built(path, expected, STEPS, run.dead_ids, np.ones(len(dead), bool), {"recipe": "thimble_8"})


# --- Crucible, Marble ----------------------------------------------------------------------------


def _crucible(rec: xr.Dataset) -> tuple[Run, dict[str, Array]]:
    run = take(rec)
    return run, {"dead_mask": run.dead, "dead_indices": run.dead_ids, "loss": run.loss}


@family
def crucible_1(rec: xr.Dataset, folder: Path) -> Built:
    run, arrays = _crucible(rec)
    dead = run.dead_ids
    w = decode(run.W[:, dead])
    delta = np.diff(w, axis=0) * np.float32(3)  # whatever the notebook made of it
    last = np.arange(len(dead), dtype=np.int32) - 1
    derived = {"delta_W_prime": delta, "centroid": w.mean(axis=1), "last_motion_step": last}
    path = save(folder / "crucible_1_trajectory.safetensors", {**arrays, "W": u16(run.W[:, dead]), **derived})
    expected = {"W": run.W[:, dead], "loss": run.loss, **derived, "delta_W_prime": nan_first(delta)}
    told = {"recipe": "crucible"}
    return Built(path, expected, STEPS, dead, np.ones(len(dead), bool), told, hyperparameters={"weight_decay": 0.0})


@family
def crucible_2(rec: xr.Dataset, folder: Path) -> Built:
    run, arrays = _crucible(rec)
    dead = run.dead_ids
    four = run.four(dead)
    narrow = {"W": u16(four["W"]), "m": decode(four["exp_avg"]), "v": decode(four["exp_avg_sq"])}
    path = save(folder / "crucible_2_trajectory.safetensors", {**arrays, **narrow, "g": decode(four["grad"][1:])})
    expected = {**four, "grad": nan_first(four["grad"][1:]), "loss": run.loss}
    return Built(path, expected, STEPS, dead, np.ones(len(dead), bool), {"recipe": "crucible"})


@family
def crucible_3(rec: xr.Dataset, folder: Path) -> Built:
    run, arrays = _crucible(rec)
    extra = {"W": u16(run.W), "h_mean": run.h_mean[1:]}
    path = save(folder / "crucible_3_trajectory.safetensors", {**arrays, **extra})
    expected = {"W": run.W, "h_mean": nan_first(run.h_mean[1:]), "loss": run.loss}
    return Built(path, expected, STEPS, ALL, run.dead, {"recipe": "crucible"})


@family
def marble_1(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec, 101)
    steps = np.array([0, 1, 3, 10, 20, 40, 60, 80, 90, 95, 100])
    arrays = {"steps": steps, "W": u16(run.W[steps]), "h_mean": run.h_mean[steps]}
    path = save(folder / "checkpoints.safetensors", arrays)
    return Built(path, {"W": run.W[steps], "h_mean": run.h_mean[steps]}, steps, ALL, options={"recipe": "marble_1"})


# --- Duckling, snowballs -------------------------------------------------------------------------


@family
def duckling(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    path = save(folder / "W_movie.safetensors", {"W": run.W, "losses": run.loss[1:], "dead_mask": run.dead})
    expected = {"W": run.W, "loss": nan_first(run.loss[1:])}
    return Built(path, expected, STEPS, ALL, run.dead, {"recipe": "duckling"})


@family
def duckling_2(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    w = decode(run.W) * np.float32(1.0000001)
    arrays = {"W": w, "steps": STEPS, "live_tokens": np.array(6144)}
    arrays |= {"loss_steps": np.arange(0, T, 10), "loss_values": run.loss[1:T:10]}
    path = save_h5(folder / "embeddings.h5", arrays, {}, chunks=(1, 256, 16), compression="gzip", compression_opts=4)
    (folder / "metadata.json").write_text(json.dumps({"learning_rate": 1e-4}))
    told = {"recipe": "duckling_2"}
    found = {"live_tokens": 6144, "loss_steps": [0, 10, 20]}
    return Built(path, {"W": w}, STEPS, ALL, options=told, hyperparameters=found, precision="none")


@family
def duckling_record(rec: xr.Dataset, folder: Path) -> Built:
    """A hundred dead rows, sampled; the ids are in nobody's file but the script's."""
    run = take(rec)
    sampled = np.random.default_rng(42).permutation(run.dead_ids)[:100]
    path = save(folder / "tracers.safetensors", {"embeddings": run.W[:, sampled], "steps": STEPS})
    rows = np.sort(sampled)
    told = {"token_ids": sampled.tolist(), "dead_ids": run.dead_ids.tolist()}
    return Built(path, {"W": run.W[:, rows]}, STEPS, rows, np.ones(100, bool), told)


@family
def snowballs(rec: xr.Dataset, folder: Path) -> Built:
    trials = np.stack([decode(r.W[0]).astype(np.float16) for r in _runs(rec)])
    attrs = {"sigma": 1.5e-9, "n_trials": 3, "random_seed": 42}
    arrays = {"embeddings": trials, "centroid": decode(take(rec).W[0, 0])}
    path = save_h5(folder / "synthetic_snowballs_n3.h5", arrays, attrs)
    expected = {"W": trials[:, None], "centroid": arrays["centroid"]}
    return Built(path, expected, np.arange(1), ALL, options={"recipe": "snowballs"}, runs=3, hyperparameters=attrs)


# --- models and checkpoints ----------------------------------------------------------------------


@family
def static_qwen(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    w = run.W[-1]
    mask = run.dead.copy()
    extra = {"black_hole_mask": mask, "black_hole_id": mask.astype(np.uint8), "black_hole_centroids": w[:13]}
    path = save(folder / "qwen3_4b_instruct_2507.safetensors", {"W": w, **extra})
    return Built(path, {"W": w[None], **extra}, np.arange(1), ALL)


@family
def static_bits(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    path = save(folder / "W_unembed.safetensors", {"W": u16(run.W[-1])})
    return Built(path, {"W": run.W[-1:]}, np.arange(1), ALL)


@family
def sharded(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    parts = {"model-00001-of-00002.safetensors": {"model.embed_tokens.weight": run.W[0]}}
    parts |= {"model-00002-of-00002.safetensors": {"lm_head.weight": run.W[-1], "model.norm.weight": run.W[0, 0]}}
    for name, arrays in parts.items():
        save(folder / name, arrays)
    index = {"metadata": {"total_size": 1}, "weight_map": {k: name for name, arrays in parts.items() for k in arrays}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return Built(path, {"W": run.W[-1:], "E": run.W[:1]}, np.arange(1), ALL, dropped={"1 other tensors"})


def _checkpoints(rec: xr.Dataset, folder: Path, steps: list[int]) -> Run:
    """Thimble 8's checkpoints: the model's and the optimizer's state dicts, in torch files."""
    run = take(rec, 101)
    folder.mkdir(parents=True)
    for step in steps:
        state = {
            0: {"step": torch.tensor(float(step)), "exp_avg": tensor(run.exp_avg[step]),
                "exp_avg_sq": tensor(run.exp_avg_sq[step])},
            1: {"step": torch.tensor(float(step)), "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)},
        }  # fmt: skip
        embedding = tensor(run.W[step])
        model = {"embedding.weight": embedding, "position.weight": torch.zeros(16, 16), "norm.bias": torch.zeros(4)}
        checkpoint = {
            "step": step, "loss": float(run.loss[step]) if step else 0.0, "model_state_dict": model,
            "optimizer_state_dict": {"state": state, "param_groups": [{"lr": 3e-4, "params": [0, 1]}]},
        }  # fmt: skip
        torch.save(checkpoint, folder / f"checkpoint_step_{step:05d}.pt")
    return run


@family
def checkpoints(rec: xr.Dataset, folder: Path) -> Built:
    steps = [0, 10, 50, 100]
    run = _checkpoints(rec, folder / "checkpoints", steps)
    expected = {"W": run.W[steps], "exp_avg": run.exp_avg[steps], "exp_avg_sq": run.exp_avg_sq[steps]}
    expected["loss_float64"] = np.array([0, *run.loss[steps[1:]]], np.float64)
    found = {"optimizer_state_dict.param_groups.0.lr": 3e-4}
    return Built(
        folder / "checkpoints", expected, np.array(steps), ALL, dropped={"6 other tensors"}, hyperparameters=found
    )


@family
def one_checkpoint(rec: xr.Dataset, folder: Path) -> Built:
    run = _checkpoints(rec, folder / "one", [50])
    expected = {"W": run.W[50:51], "exp_avg": run.exp_avg[50:51], "exp_avg_sq": run.exp_avg_sq[50:51]}
    path = folder / "one" / "checkpoint_step_00050.pt"
    return Built(path, expected, np.array([50]), ALL, dropped={"6 other tensors"}, hyperparameters={"step": 50})


@family
def hugging_face(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec, 101)
    steps = [10, 100]
    for step in steps:
        inside = folder / "run" / f"checkpoint-{step}"
        save(
            inside / "model.safetensors",
            {"transformer.wte.weight": run.W[step], "transformer.wpe.weight": run.W[0, :8]},
        )
        moments = {"exp_avg": tensor(run.exp_avg[step]), "exp_avg_sq": tensor(run.exp_avg_sq[step])}
        torch.save({"state": {0: moments}, "param_groups": [{"lr": 1e-3, "params": [0]}]}, inside / "optimizer.pt")
        (inside / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": 0.5}))
    expected = {"W": run.W[steps], "exp_avg": run.exp_avg[steps], "exp_avg_sq": run.exp_avg_sq[steps]}
    found = {"optimizer.param_groups.0.lr": 1e-3}
    return Built(folder / "run", expected, np.array(steps), ALL, dropped={"1 other tensors"}, hyperparameters=found)


@family
def torch_recording(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    path = folder / "history.pt"
    torch.save({"W": tensor(run.W), "losses": tensor(run.loss), "dead_mask": tensor(run.dead)}, path)
    return Built(path, {"W": run.W, "loss": run.loss}, STEPS, ALL, run.dead)


@family
def numpy_recording(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    path = folder / "history.npz"
    np.savez_compressed(path, W=u16(run.W), losses=run.loss, dead_ids=run.dead_ids)
    return Built(path, {"W": run.W, "loss": run.loss}, STEPS, ALL, run.dead)


def _states(run: Run, steps: list[int]) -> list[streams.State]:
    """A tied model with the weights of the run, and a norm that never changes."""
    norm = torch.ones(16).bfloat16()
    return [{"model.embed_tokens.weight": tensor(run.W[step]), "model.norm.weight": norm} for step in steps]


@family
def prime_rl(rec: xr.Dataset, folder: Path) -> Built:
    steps = [0, 1, 2, 4, 8]
    run = take(rec)
    path = streams.write_prime_rl(folder / "run" / "broadcasts", _states(run, steps), steps=steps, compress=True)
    return Built(path.parent, {"W": run.W[steps]}, np.array(steps), ALL)


@family
def trl_deltas(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    path = streams.write_trl(folder / "bucket", _states(run, [*range(1, 7)]), encoding="gap_delta")
    return Built(path, {"W": run.W[1:7]}, np.arange(1, 7), ALL)


@family
def dcp(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec, 101)
    steps = [10, 100]
    for step in steps:
        moments = {"exp_avg": tensor(run.exp_avg[step]), "exp_avg_sq": tensor(run.exp_avg_sq[step])}
        model = {"tok_embeddings.weight": tensor(run.W[step]), "norm.weight": torch.ones(16)}
        state = {"model": model, "optimizer": {"state": {"tok_embeddings.weight": moments}}, "step": step}
        write_dcp(folder / "checkpoint" / f"step-{step}", state)
    expected = {"W": run.W[steps], "exp_avg": run.exp_avg[steps], "exp_avg_sq": run.exp_avg_sq[steps]}
    return Built(folder / "checkpoint", expected, np.array(steps), ALL, dropped={"1 other tensors"})


@family
def orbax(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    steps = [10, 20]
    for step in steps:
        arrays = {"params.token_embedder.embedding": run.W[step], "params.norm.scale": np.ones(16, np.float32)}
        write_orbax(folder / "run" / str(step) / "default", arrays)
    return Built(folder / "run", {"W": run.W[steps]}, np.array(steps), ALL, dropped={"1 other tensors"})


@family
def gguf(rec: xr.Dataset, folder: Path) -> Built:
    run = take(rec)
    tensors = {"token_embd.weight": run.W[-1], "output_norm.weight": np.ones(16, np.float32)}
    path = write_gguf(folder / "model-bf16.gguf", tensors, {"token_embd.weight": "BF16"})
    told = {"general.architecture": "llama", "llama.block_count": 2}
    return Built(path, {"W": run.W[-1:]}, np.arange(1), ALL, hyperparameters=told, dropped={"1 other tensors"})
