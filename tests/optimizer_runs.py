"""Short recorded trainings with every optimizer and implementation, and updates of single elements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import xarray as xr

import deadtok_xr as dx
from deadtok_xr import demo

BF16 = ml_dtypes.bfloat16


STEPS = 40


LEARNED = ("W", "grad", "exp_avg", "exp_avg_sq")


RUNS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "AdamW": (torch.optim.AdamW, {"lr": 2e-3, "weight_decay": 0.0}),
    "AdamW, large decay": (torch.optim.AdamW, {"lr": 2e-3, "weight_decay": 8.0, "betas": (0.9, 0.95), "eps": 1e-6}),
    "AdamW, amsgrad": (torch.optim.AdamW, {"lr": 2e-3, "amsgrad": True, "maximize": True}),
    "Adam, L2": (torch.optim.Adam, {"lr": 2e-3, "weight_decay": 0.1}),
    "SGD": (torch.optim.SGD, {"lr": 0.5}),
    "SGD, momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
}


FLAGS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def train(
    path: Path,
    cls: Any,
    options: dict[str, Any],
    dtype: torch.dtype,
    *,
    schedule: bool = False,
    device: str = "cpu",
    kept: list[torch.Tensor] | None = None,
) -> xr.Dataset:
    """A tiny language model on the demo's corpus, recorded; ``kept`` gets a copy of W before and after each update."""
    run = demo.Run(steps=STEPS, batch=2, length=8, dims=16, layers=1)
    torch.manual_seed(3)
    model = demo.TinyLM(256, run).to(device, dtype)
    optimizer = cls(model.parameters(), **options)
    weight = model.embedding.weight
    variables = LEARNED if "Adam" in cls.__name__ else LEARNED[:2]
    sign = -1 if options.get("maximize") else 1
    copies = [] if kept is None else kept
    copies.append(weight.detach().clone())
    with dx.Recorder(weight, optimizer, path, variables=variables) as recorder:
        for step, batch in enumerate(demo._batches(demo.corpus(), run)):
            if schedule:
                optimizer.param_groups[0]["lr"] = options["lr"] * (1 - step / STEPS)
            batch = batch.to(device)
            logits = model(batch[:, :-1]) @ weight.T
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
            optimizer.zero_grad()
            (sign * loss).backward()
            optimizer.step()
            recorder.log(loss=loss)
            copies.append(weight.detach().clone())
    return dx.open_recording(path)


def with_flags(run: tuple[Any, dict[str, Any]], flags: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return run[0], {**run[1], **flags}


def elements(W: Any, g: Any, *, lr: float = 0.1, **more: Any) -> xr.Dataset:
    """A recording of SGD of one token."""
    dims = ("step", "token", "dim")
    values = {"W": np.array(W, BF16)[:, None], "grad": np.array(g, BF16)[:, None]}
    data = {n: (dims, x, {"precision": "bfloat16"}) for n, x in values.items()}
    attrs = {"optimizer": "SGD", "hyperparameters": {"lr": lr, **more}}
    return xr.Dataset(data, {"step": np.arange(len(W)), "token": [7]}, attrs)
