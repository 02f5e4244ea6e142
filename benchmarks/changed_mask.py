"""Compare ways to know which bfloat16 values an update changed: recall, precision and time.

    python -m benchmarks.changed_mask [--millions 4] [--steps 10] [--device cpu]

`copy` keeps the old bfloat16 values and compares; it is the truth, and takes 2 bytes a value. `|u| >= |w|/256` and
`half gap` are rules that people tried: a value is taken to change if the step of Adam, computed from (m, v), exceeds
|w|/256, or half the gap between bfloat16 numbers at w. `changed_mask` is `dx.changed_mask`. Weights are normal with a
deviation of 0.02; gradients are noise of different sizes. Times are nanoseconds a value, the median over the steps,
with that of the optimizer's step beside them; on a CPU, of all threads together.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import click
import torch
from torch import Tensor

import deadtok_xr as dx
from deadtok_xr.text import table

Optimizers = dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]]
CASES: Optimizers = {
    "AdamW 1e-6": (torch.optim.AdamW, {"lr": 1e-6, "weight_decay": 0.0}),
    "AdamW 3e-6, decay 0.1": (torch.optim.AdamW, {"lr": 3e-6, "weight_decay": 0.1}),
    "AdamW 1e-3, decay 0.1": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    "Adam 1e-5, amsgrad, L2": (torch.optim.Adam, {"lr": 1e-5, "weight_decay": 0.01, "amsgrad": True}),
    "SGD 1e-4, momentum": (torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9}),
}
FLAGS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def step_of(parameter: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """The step that people compute from the state."""
    group, state = optimizer.param_groups[0], optimizer.state[parameter]
    if "momentum_buffer" in state:
        return state["momentum_buffer"].float() * -group["lr"]  # type: ignore[no-any-return]
    b1, b2 = group["betas"]
    t = float(state["step"])
    m, v = state["exp_avg"].float(), state["exp_avg_sq"].float()
    return -group["lr"] / (1 - b1**t) * m / (v.sqrt() / (1 - b2**t) ** 0.5 + group["eps"])  # type: ignore[no-any-return]


def by_magnitude(parameter: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """|u| >= |w| / 256."""
    return step_of(parameter, optimizer).abs() >= parameter.detach().float().abs() / 256


def by_half_gap(parameter: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """|u| >= half the gap between bfloat16 numbers at w."""
    exponent = torch.frexp(parameter.detach().float())[1]
    return step_of(parameter, optimizer).abs() >= torch.ldexp(
        torch.ones_like(parameter, dtype=torch.float32), exponent - 9
    )


RULES: dict[str, Callable[[Tensor, torch.optim.Optimizer], Tensor]] = {
    "|u| >= |w|/256": by_magnitude,
    "half gap": by_half_gap,
    "changed_mask": dx.changed_mask,
}


def timed(call: Callable[[], Any], device: str) -> tuple[Any, float]:
    """The result of a call and its seconds, on a CPU those of all its threads."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    found = call()
    if device != "cpu":
        torch.cuda.synchronize()
    return found, clock() - began


def measure(case: str, flags: dict[str, Any], dtype: torch.dtype, n: int, steps: int, device: str) -> dict[str, Any]:
    """Counts and seconds by rule, after a few steps of warm-up."""
    generator = torch.Generator(device).manual_seed(0)
    cls, options = CASES[case]
    weight = torch.nn.Parameter(torch.randn(n, generator=generator, device=device).mul_(0.02).to(dtype))
    optimizer = cls([weight], **options, **flags)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    seconds: dict[str, list[float]] = defaultdict(list)
    for step in range(steps + 2):
        size = torch.rand(n, generator=generator, device=device).pow_(3)
        weight.grad = torch.randn(n, generator=generator, device=device).mul_(size).to(dtype)
        old, kept = timed(lambda: weight.detach().to(torch.bfloat16, copy=True), device)
        _, seconds_step = timed(optimizer.step, device)
        truth, compared = timed(lambda old=old: old != weight.detach().bfloat16(), device)  # type: ignore[misc]
        marked = {name: timed(lambda rule=rule: rule(weight, optimizer), device) for name, rule in RULES.items()}  # type: ignore[misc]
        if step < 2:
            continue
        seconds["step"].append(seconds_step)
        for name, (mask, spent) in {**marked, "copy": (truth, kept + compared)}.items():
            seconds[name].append(spent)
            for i, kind in enumerate((mask & truth, mask & ~truth, ~mask & truth)):
                counts[name][i] += int(kind.sum())
    return {"counts": counts, "ns": {name: 1e9 * statistics.median(spent) / n for name, spent in seconds.items()}}


@click.command()
@click.option("--millions", default=4.0, show_default=True, help="Values.")
@click.option("--steps", default=10, show_default=True, help="Updates.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=int, help="Of torch.")
def main(millions: float, steps: int, device: str, threads: int | None) -> None:
    """Measure."""
    if threads is not None:
        torch.set_num_threads(threads)
    n = int(millions * 1e6)
    rows = [("weights", "optimizer", "arithmetic", "changed", "rule", "recall", "precision", "ns/value", "step")]
    for dtype in (torch.float32, torch.bfloat16):
        for case in CASES:
            for name, flags in FLAGS.items():
                if name != "fused" and case != "AdamW 3e-6, decay 0.1":
                    continue  # the time does not depend on it
                if dtype == torch.bfloat16 and "SGD" in case and device == "cpu":
                    continue  # pytorch/pytorch#191763
                found = measure(case, flags, dtype, n, steps, device)
                for rule in ("copy", *RULES):
                    hit, extra, missed = found["counts"][rule]
                    rows.append((
                        str(dtype).removeprefix("torch."), case, name, f"{(hit + missed) / n / steps:.3%}", rule,
                        f"{hit / max(1, hit + missed):.6f}", f"{hit / max(1, hit + extra):.6f}",
                        f"{found['ns'][rule]:.2f}", f"{found['ns']['step']:.2f}",
                    ))  # fmt: skip
    click.echo("\n".join(table(rows, "<<<><>>>>")))


if __name__ == "__main__":
    main()
