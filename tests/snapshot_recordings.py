"""Small recordings that are the same in every run, built with public names alone: the input of `tests.snapshot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import deadtok_xr as dx

Array = NDArray[Any]
Arrays = dict[str, Array]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
N, D = 40, 6
"""Tokens and dims of the recordings of numpy arrays."""
DEAD_IDS = np.arange(3, N, 2)
ADAMW = {"optimizer": "AdamW", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
"""Settings that an analysis needs if a recording does not hold those of its optimizer."""


def walk(dtype: Any, n_steps: int, seed: int, *, size: float = 3e-3) -> Array:
    """A cloud that drifts, hops and freezes, (step, token, dim), in the given dtype."""
    rng = np.random.default_rng(seed)
    states = [rng.normal(0, 0.02, (N, D)).astype(dtype)]
    drift = rng.normal(size=D)
    for t in range(1, n_steps):
        step = size * 10 ** (-3.0 * t / n_steps) * (drift + 0.4 * rng.normal(size=(N, D)))
        step[rng.random(N) < 0.2] = 0
        states.append((states[-1].astype(np.float64) + (step if t < 0.8 * n_steps else 0)).astype(dtype))
    return np.stack(states)


def with_edges(w: Array) -> Array:
    """The same with coincident tokens, hops at powers of two, both zeros and a subnormal."""
    w = w.copy()
    power, tiny = np.array(2.0**-6, w.dtype), np.array(1, f"u{w.dtype.itemsize}").view(w.dtype)
    one_down = (power.view(f"u{w.dtype.itemsize}") - np.array(1, f"u{w.dtype.itemsize}")).view(w.dtype)
    n = len(w)
    w[:, 1] = w[:, 0]  # live and dead tokens in one place all the time
    w[:, 5] = w[:, 3]
    w[n // 2 :, 9] = w[n // 2 :, 7]  # and from half of the run on
    w[:, 11, 0] = np.where(np.arange(n) % 2, power, one_down)
    w[:, 13, 0] = np.where(np.arange(n) % 3, np.array(-0.0, w.dtype), np.array(0.0, w.dtype))
    w[:, 13, 1:] = w[0, 13, 1:]
    w[:, 15, 1] = np.where(np.arange(n) % 4 < 2, tiny, -tiny)
    w[:, 17] = 0
    return w


def with_invalid(w: Array) -> Array:
    """The same with NaN and infinities, for some steps and to the end."""
    w = w.copy()
    w[10:14, 3, 2] = np.nan
    w[20, 4, 0], w[21, 5, 1] = np.inf, -np.inf
    w[40:, 7] = np.nan
    w.view(f"u{w.dtype.itemsize}")[5, 9, 3] |= 0xFF81 if w.dtype.itemsize == 2 else 0xFF800001
    return w


def extras(w: Array, seed: int) -> Arrays:
    """Return the variables that are recorded with the weights: a gradient, moments that follow from it, and series."""
    rng = np.random.default_rng(seed)
    n_steps, n_tokens, n_dims = w.shape
    h = rng.normal(size=(n_steps, n_dims)).cumsum(0)
    grad = 1e-3 * h[:, None] * rng.random((1, n_tokens, 1)) + 1e-4 * rng.normal(size=w.shape)
    grad[0] = 0
    grad[:, 2::8] = 0
    first, second = np.zeros_like(grad), np.zeros_like(grad)
    for t in range(1, n_steps):
        first[t] = 0.9 * first[t - 1] + 0.1 * grad[t]
        second[t] = 0.999 * second[t - 1] + 0.001 * grad[t] ** 2
    return {
        "grad": grad.astype(w.dtype), "exp_avg": first.astype(w.dtype), "exp_avg_sq": second.astype(w.dtype),
        "loss": (5 / np.sqrt(np.arange(1, n_steps + 1))).astype(np.float32),
        "lr": np.linspace(3e-3, 1e-4, n_steps),
        "h_mean": h.astype(np.float32), "p_h_dead": (0.1 * h).astype(np.float32),
        "p_dead": rng.random(n_steps).astype(np.float32), "h_norm": np.linalg.norm(h, axis=1).astype(np.float32),
    }  # fmt: skip


def save_h5(path: Path, arrays: Arrays, **attrs: Any) -> Path:
    """Write arrays as HDF5, bfloat16 as its bits."""
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values.view(np.uint16) if values.dtype == BFLOAT16 else values)
        file.attrs.update(attrs)
    return path


def save_npz(path: Path, arrays: Arrays) -> Path:
    """Write arrays as npz, bfloat16 as its bits."""
    plain: Any = {k: v.view(np.uint16) if v.dtype == BFLOAT16 else v for k, v in arrays.items()}
    np.savez(path, **plain)
    return path


def recorded(path: Path, *, steps: int = 60, optimizer: str = "AdamW", **options: Any) -> Path:
    """Record a tiny untied model in training: 48 tokens of which 28 are dead, 8 dims, bfloat16."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    n, d = 48, 8
    output, inner = nn.Linear(d, n, bias=False, dtype=torch.bfloat16), nn.Embedding(n, d, dtype=torch.bfloat16)
    nn.init.normal_(output.weight, std=0.02)
    output.weight.data[30:40] = output.weight.data[30]
    parameters = [*output.parameters(), *inner.parameters()]
    settings = {"lr": 3e-3, "momentum": 0.9} if optimizer == "SGD" else {"lr": 3e-3, "weight_decay": 0.01}
    rule = getattr(torch.optim, optimizer)(parameters, **settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(rule, lambda t: 1 - t / steps)
    moments = ("W", "grad", "momentum_buffer") if optimizer == "SGD" else ("W", "grad", "exp_avg", "exp_avg_sq")
    told = {"variables": moments, "dead": range(20, n), "attrs": {"seed": 7}, "token_text": [f"t{i}" for i in range(n)]}
    ids = torch.randint(20, (steps, 2, 9))
    with dx.Recorder(output.weight, rule, path, **{**told, **options}) as recorder:  # type: ignore[arg-type]
        for batch in ids:
            hidden = inner(batch[:, :-1])
            logits = output(hidden)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
            rule.zero_grad()
            loss.backward()
            rule.step()
            schedule.step()
            with torch.no_grad():
                p = logits.float().softmax(-1)[..., 20:].mean(-1)
                h = hidden.float()
                recorder.log(loss=loss, h_mean=h.mean((0, 1)), p_dead=p.mean(), h_norm=h.norm(dim=-1).mean(),
                             p_h_dead=torch.einsum("bl,bld->d", p, h) / p.numel())  # fmt: skip
    return path


def sources(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Files to convert, by the names of their stores, each with the options of `convert`."""
    adam: dict[str, Any] = {"learning_rate": 3e-3, "seed": 1, "weight_decay": 0.01}
    labels = {"dead_ids": DEAD_IDS}
    w = with_edges(walk(BFLOAT16, 150, 1))
    invalid = with_invalid(with_edges(walk(BFLOAT16, 60, 2)))
    half, single = (with_edges(walk(t, 60, s)) for t, s in ((np.float16, 3), (np.float32, 4)))
    several = np.stack([with_edges(walk(BFLOAT16, 30, s)) for s in (5, 6)])
    deltas = np.diff(w[:50].astype(np.float32), axis=0, prepend=w[:1].astype(np.float32))
    upcast = {"W": with_edges(walk(BFLOAT16, 40, 7)).astype(np.float32), **labels}
    gaps = np.r_[0:20, 25:45, 50:100:10]
    chosen = {"token_ids": range(100, 100 + N), "dead_ids": [105, 110]}
    tight = 0.5 + walk(np.float32, 40, 8, size=5e-3).astype(np.float32) / 8
    initial = save_npz(folder / "initial.npz", {"W": w[0]})
    return {
        "bfloat16": (save_h5(folder / "bfloat16.h5", {"W": w, **extras(w, 11), **labels}, **adam), {}),
        "invalid": (save_h5(folder / "invalid.h5", {"W": invalid, **extras(invalid, 12), **labels}, **adam), {}),
        "float16": (save_npz(folder / "float16.npz", {"W": half, **extras(half, 13), **labels}), {}),
        "float32": (save_npz(folder / "float32.npz", {"W": single, **extras(single, 14), **labels}), {}),
        "gaps": (save_npz(folder / "gaps.npz", {"W": w[gaps], "steps": gaps, **labels}), {}),
        "tight": (save_npz(folder / "tight.npz", {"W": tight.astype(BFLOAT16), **labels}), {}),
        "runs": (save_npz(folder / "runs.npz", {"W": several, "n_runs": np.array(2), **labels}), {"axis": "run"}),
        "delta": (save_npz(folder / "delta.npz", {"delta": deltas, "grad": extras(w, 11)["grad"][:50], **labels}), {}),
        "delta_initial": (folder / "delta.npz", {"initial": initial}),
        "upcast": (save_npz(folder / "upcast.npz", upcast), {}),
        "upcast_kept": (folder / "upcast.npz", {"keep_dtype": True}),
        "sharded": (folder / "bfloat16.h5", {"shard": "64kB", "include": ()}),
        "chosen": (save_npz(folder / "chosen.npz", {"W": w[:20]}), chosen),
    }  # fmt: skip


def stores(folder: Path) -> dict[str, Path]:
    """All recordings as stores in a folder."""
    made = {}
    for name, (source, options) in sources(folder).items():
        made[name] = Path(dx.convert(source, folder / f"{name}.zarr", **options))
    made["synthetic"] = dx.testing.synthetic_recording(
        folder / "synthetic.zarr", steps=280, tokens=600, dims=4, dead=0.9, seed=3
    )
    made["recorded"] = recorded(folder / "recorded.zarr")
    made["sgd"] = recorded(folder / "sgd.zarr", steps=20, optimizer="SGD")
    made["adam_rows"] = recorded(folder / "adam_rows.zarr", steps=30, optimizer="Adam", every=3, rows="dead")
    return made
