"""Checkpoints of real runs of a few steps: a tied model, and models of which one matrix alone is trained."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from tests.conversion.foreign_arrays import BF16

Array = NDArray[Any]


def to_numpy(x: torch.Tensor) -> Array:
    return x.detach().clone().view(torch.int16).numpy().view(BF16)


class Tied(nn.Module):
    """A model with nanoGPT's names, its output layer tied to its input."""

    def __init__(self, n_tokens: int, n_dims: int) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(n_tokens, n_dims),
                "wpe": nn.Embedding(16, n_dims),
                "h": nn.ModuleList([nn.ModuleDict({"ln_1": nn.LayerNorm(n_dims, bias=False),
                                                   "c_fc": nn.Linear(n_dims, n_dims, bias=False)})]),
                "ln_f": nn.LayerNorm(n_dims, bias=False),
            }
        )  # fmt: skip
        self.lm_head = nn.Linear(n_dims, n_tokens, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids: torch.Tensor) -> Any:
        parts: Any = self.transformer
        x = parts["wte"](ids) + parts["wpe"](torch.arange(ids.shape[1]))
        for block in parts["h"]:
            x = x + F.gelu(block["c_fc"](block["ln_1"](x)))
        return self.lm_head(parts["ln_f"](x))


class Untied(nn.Module):
    def __init__(self, n_tokens: int, n_dims: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"embed_tokens": nn.Embedding(n_tokens, n_dims), "proj": nn.Linear(n_dims, n_dims)})
        self.lm_head = nn.Linear(n_dims, n_tokens, bias=False)

    def forward(self, ids: torch.Tensor) -> Any:
        return self.lm_head(torch.tanh(self.model["proj"](self.model["embed_tokens"](ids))))


class Bytes(nn.Module):
    """256 tokens and 64 dims: the layer that widens 64 to 256 has the shape of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.lm_head = nn.Embedding(256, 64), nn.Linear(64, 256, bias=False)
        self.c_fc, self.c_proj = nn.Linear(64, 256, bias=False), nn.Linear(256, 64, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> Any:
        x = self.wte(ids)
        return self.lm_head(x + self.c_proj(F.gelu(self.c_fc(x))))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, n_tokens: int) -> torch.Tensor:
    ids = torch.randint(n_tokens, (2, 9))
    loss = F.cross_entropy(model(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def nanogpt(at: Path) -> dict[str, Array]:
    """A compiled model, decayed and other parameters in two groups, a checkpoint before the first update."""
    torch.manual_seed(0)
    model = Tied(128, 48).bfloat16()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    right = defaultdict(list)
    (at / "every").mkdir()
    (at / "out").mkdir()
    weights, loss = model.lm_head.weight, torch.tensor(1e9)
    for step in range(151):
        if step % 50 == 0:
            state = {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}
            torch.save(
                {"model": state, "optimizer": optimizer.state_dict(), "iter_num": step, "best_val_loss": loss,
                 "model_args": {"n_layer": 1, "n_embd": 48, "vocab_size": 128, "dropout": 0.0},
                 "config": {"max_iters": 600000, "dtype": "bfloat16", "learning_rate": 1e-3}},
                at / "every" / f"ckpt_{step}.pt",
            )  # fmt: skip
            right["W"].append(to_numpy(weights))
            for name in ("exp_avg", "exp_avg_sq"):
                none = np.full(weights.shape, np.nan, BF16)
                right[name].append(to_numpy(optimizer.state[weights][name]) if step else none)
        loss = update(model, optimizer, 65)
    shutil.copy(at / "every" / "ckpt_150.pt", at / "out" / "ckpt.pt")
    return {name: np.stack(values) for name, values in right.items()}


def frozen(at: Path) -> dict[str, Array]:
    right: dict[str, list[Array]] = defaultdict(list)
    for name in ("embed_tokens", "lm_head"):
        torch.manual_seed(0)
        model = Untied(40, 16).bfloat16()
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(name in key)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(1, 21):
            update(model, optimizer, 40)
            if step % 10 == 0:
                save_hugging_face(at / f"{name}_alone" / f"checkpoint-{step}", model, optimizer, step)
                state = next(iter(optimizer.state.values()))
                right[f"W_{name}_alone"].append(to_numpy(model.lm_head.weight))
                right[f"E_{name}_alone"].append(to_numpy(model.model["embed_tokens"].weight))  # type: ignore[arg-type]
                right[f"exp_avg_{name}_alone"].append(to_numpy(state["exp_avg"]))
    torch.manual_seed(0)
    small = Bytes().bfloat16()
    small.wte.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in small.parameters() if p.requires_grad], lr=1e-2)
    (at / "bytes").mkdir()
    for step in (1, 2, 3):
        update(small, optimizer, 256)
        torch.save({"model": small.state_dict(), "optimizer": optimizer.state_dict(), "step": step},
                   at / "bytes" / f"step_{step}.pt")  # fmt: skip
        right["W_bytes"].append(to_numpy(small.wte.weight))
    return {name: np.stack(values) for name, values in right.items()}


def save_hugging_face(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    folder.mkdir(parents=True)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"epoch": 1.0, "global_step": step}))
