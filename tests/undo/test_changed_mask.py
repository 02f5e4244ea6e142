"""`dx.changed_mask` against a kept copy: every value that changed is marked, over drawn settings and any bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr.errors import InputError

FLAGS: tuple[dict[str, Any], ...] = ({"foreach": False}, {"foreach": True}, {"fused": True})
EDGES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.99609375,
    1.0078125,
    2.0**-126,
    2.0**-133,
    2.0**-149,
    3.38e38,
    float("inf"),
    float("nan"),
]


@st.composite
def optimizers(draw: st.DrawFn) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """An optimizer with drawn settings, in one of torch's implementations."""
    flags = draw(st.sampled_from(FLAGS))
    lr = draw(st.sampled_from([1e-8, 3e-6, 1e-4, 2.0**-9, 0.003, 0.1]))
    maximize = draw(st.booleans())
    if draw(st.integers(0, 3)) == 0:
        momentum, dampening = draw(st.sampled_from([0.9, 0.5])), draw(st.sampled_from([0.0, 0.1]))
        decay = draw(st.sampled_from([0.0, 0.01]))
        return torch.optim.SGD, {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": decay, "maximize": maximize,
            **flags,
        }  # fmt: skip
    cls = draw(st.sampled_from([torch.optim.AdamW, torch.optim.Adam]))
    return cls, {
        "lr": lr, "betas": draw(st.sampled_from([(0.9, 0.999), (0.9, 0.95), (0.0, 0.99)])),
        "eps": draw(st.sampled_from([1e-8, 1e-15, 1e-4])), "weight_decay": draw(st.sampled_from([0.0, 0.1, 3.0])),
        "amsgrad": draw(st.booleans()), "maximize": maximize, **flags,
    }  # fmt: skip


def is_broken(cls: Any, options: dict[str, Any], dtype: torch.dtype) -> bool:
    """Fused SGD of 16 bits on CPUs (pytorch/pytorch#191763)."""
    return cls is torch.optim.SGD and bool(options.get("fused")) and dtype == torch.bfloat16


@settings(max_examples=25, deadline=None)
@given(
    optimizers(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.02, 1e-30, 5]),
)
def test_every_value_that_changed_is_marked(optimizer: Any, dtype: torch.dtype, seed: int, size: float) -> None:
    cls, options = optimizer
    if is_broken(cls, options, dtype):
        return
    rng = np.random.default_rng(seed)
    bits = torch.from_numpy(rng.integers(0, 2**32, 200, dtype=np.uint32).view(np.float32))
    near = torch.tensor(rng.choice([1.0, 0.5, 0.25, 0.0078125], 300) * (1 + rng.integers(-3, 4, 300) * 2.0**-24))
    normal = torch.tensor(rng.standard_normal(1500) * size)
    ties = (normal.bfloat16().double() * (1 + 2.0**-8)).float()  # near the middle between two numbers
    start = torch.cat([torch.tensor(EDGES), bits, near.float(), normal.float(), ties]).to(dtype)
    w = torch.nn.Parameter(start)
    made = cls([w], **options)
    for _ in range(3):
        w.grad = torch.tensor(rng.standard_normal(len(start)) * 10.0 ** rng.integers(-8, 1, len(start))).to(dtype)
        w.grad[rng.random(len(start)) < 0.1] = 0
        old = w.detach().clone()
        made.step()
        mask = dx.changed_mask(w, made)
        changed = old.bfloat16() != w.detach().bfloat16()
        assert (mask | ~changed).all(), (old[changed & ~mask], w[changed & ~mask])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (torch.optim.AdamW, {"lr": 3e-6, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"lr": 1e-3, "betas": (0.9, 0.95)}),
        (torch.optim.Adam, {"lr": 1e-5, "weight_decay": 0.1, "amsgrad": True, "maximize": True}),
        (torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9, "weight_decay": 0.01}),
    ],
)
def test_few_others_are_marked(cls: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    """Weights and gradients as in a model; several tiles. Fused bfloat16 does not keep the moments that it used."""
    for flags in FLAGS:
        if is_broken(cls, flags, dtype):
            continue
        generator = torch.Generator().manual_seed(0)
        w = torch.nn.Parameter(torch.randn(250, 400, generator=generator).mul_(0.02).to(dtype))
        optimizer = cls([w], **options, **flags)
        n_marked = n_changed = 0
        for _ in range(5):
            size = torch.rand(w.shape, generator=generator) ** 3
            w.grad = torch.randn(w.shape, generator=generator).mul_(size).to(dtype)
            old = w.detach().clone()
            optimizer.step()
            mask = dx.changed_mask(w, optimizer)
            changed = old.bfloat16() != w.detach().bfloat16()
            assert (mask | ~changed).all()
            assert mask.shape == w.shape
            n_marked, n_changed = n_marked + int(mask.sum()), n_changed + int(changed.sum())
        least = 0.9999 if dtype == torch.float32 else 0.98 if flags.get("fused") else 0.99
        assert n_changed / n_marked > least, flags


def test_what_stands_still_is_not_marked() -> None:
    """No gradient ever: an untouched parameter; and rows of zeros with zero moments beside others."""
    w, other = (torch.nn.Parameter(torch.zeros(4, 8, dtype=torch.bfloat16)) for _ in range(2))
    for flags in FLAGS:
        optimizer = torch.optim.AdamW([w, other], lr=1e-3, **flags)
        w.grad = torch.zeros_like(w)
        w.grad[0] = 1
        optimizer.step()
        assert not dx.changed_mask(other, optimizer).any()
        assert dx.changed_mask(w, optimizer)[0].all()
        assert not dx.changed_mask(w, optimizer)[1:].any()


def test_a_schedule_needs_the_rate_of_the_step() -> None:
    w = torch.nn.Parameter(torch.randn(2000).mul_(0.02))
    optimizer = torch.optim.AdamW([w], lr=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.01)
    for _ in range(3):
        w.grad = torch.randn(2000)
        old, rate = w.detach().clone(), schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        with pytest.raises(InputError, match="pass lr= with the rate that the step used"):
            dx.changed_mask(w, optimizer)
        changed = old.bfloat16() != w.detach().bfloat16()
        assert (dx.changed_mask(w, optimizer, lr=rate) | ~changed).all()


class Own(torch.optim.AdamW):
    """An optimizer of a user."""


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda w: Own([w]), r"the optimizer is tests\S+Own; only updates of AdamW, Adam, SGD of torch.optim"),
        (lambda w: torch.optim.RMSprop([w]), "RMSprop; only updates of"),
        (
            lambda w: torch.optim.SGD([w], lr=0.1, momentum=0.9, nesterov=True),
            "SGD with nesterov updates by the gradient",
        ),
        (lambda w: torch.optim.AdamW([w], lr=0.1, weight_decay=11), "leaves nothing of the old values"),
        (lambda w: torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]), "does not have this parameter"),
    ],
)
def test_what_cannot_be_undone_is_refused_by_name(make: Any, sentence: str) -> None:
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = make(w)
    w.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(InputError, match=sentence):
        dx.changed_mask(w, optimizer)


def test_other_parameters_are_refused() -> None:
    for dtype, name in ((torch.float16, "float16"), (torch.complex64, "complex64")):
        w = torch.nn.Parameter(torch.ones(3, dtype=dtype))
        with pytest.raises(InputError, match=f"has the dtype {name}; expected: float32 or bfloat16"):
            dx.changed_mask(w, torch.optim.AdamW([w]))
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9, fused=True)
    w.grad = torch.ones_like(w)
    optimizer.step()
    with pytest.raises(InputError, match="pytorch/pytorch#191763"):
        dx.changed_mask(w, optimizer)
    plain = torch.optim.SGD([w], lr=0.1)
    with pytest.raises(InputError, match="without momentum"):
        dx.changed_mask(w, plain)


def test_a_dtensor_gives_the_mask_of_its_shard(tmp_path: Path) -> None:
    from torch import distributed
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        values, gradient = torch.randn(64, 8).mul_(0.02), torch.randn(64, 8)
        sharded = torch.nn.Parameter(distribute_tensor(values, mesh, [Shard(0)]))
        plain = torch.nn.Parameter(values.clone())
        masks = []
        for w, g in ((sharded, distribute_tensor(gradient, mesh, [Shard(0)])), (plain, gradient)):
            optimizer = torch.optim.AdamW([w], lr=1e-4)
            w.grad = g
            optimizer.step()
            masks.append(dx.changed_mask(w, optimizer))
        assert torch.equal(*masks)
    finally:
        distributed.destroy_process_group()
