"""Attributes of a store about the optimizer and the machine of a recording, so that updates can be replayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from deadtok_xr.recorder.recorded_parameter import RecordedParameter


def optimizer_attributes(recorded: RecordedParameter) -> dict[str, Any]:
    """Return the optimizer's class, its settings for this parameter, and the implementation that torch chooses."""
    optimizer, group = recorded.optimizer, recorded.group
    kind = type(optimizer)
    return {
        "optimizer": kind.__name__,
        "optimizer_class": f"{kind.__module__}.{kind.__qualname__}",
        "hyperparameters": json_settings(group),
        "implementation": implementation(group),
        "param_group": recorded.group_index,
    }


def machine_attributes(device: torch.device) -> dict[str, Any]:
    """Return the versions, device, threads, flags and seed that the numerical results depend on."""
    import torch

    attrs: dict[str, Any] = {
        "torch_version": torch.__version__,
        "device": str(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "num_threads": torch.get_num_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "initial_seed": str(torch.initial_seed()),  # up to 64 bits, and numbers in JSON are often read as floats
    }
    if device.type == "cuda":
        attrs["device_name"] = torch.cuda.get_device_name(device)
        attrs["cuda_version"] = torch.version.cuda
        attrs["cudnn_deterministic"] = torch.backends.cudnn.deterministic
        attrs["cudnn_benchmark"] = torch.backends.cudnn.benchmark
    return attrs


def implementation(group: Mapping[str, Any]) -> str:
    """Return which implementation torch runs for a parameter group: single, foreach, fused, or unknown."""
    import torch
    from torch.optim import optimizer as torch_optimizer

    fused, foreach = group.get("fused"), group.get("foreach")
    if fused is None and foreach is None and "foreach" in group:
        choose = getattr(torch_optimizer, "_default_to_fused_or_foreach", None)  # private, so it may disappear
        if choose is None:
            return "unknown"
        _, foreach = choose(group["params"], group.get("differentiable", False), use_fused=False)
        if foreach and torch.is_tensor(group.get("lr")) and not group.get("capturable"):
            foreach = False  # as in torch.optim.adam.adam
    return "fused" if fused else "foreach" if foreach else "single"


def json_settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a parameter group that JSON can hold."""
    values = {k: _json_value(v) for k, v in group.items() if k != "params"}
    return {k: v for k, v in values.items() if isinstance(v, (bool, int, float, str, list, type(None)))}


def _json_value(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_json_value(v) for v in value]
    if (hasattr(value, "detach") and value.ndim == 0) or isinstance(value, np.generic):
        return value.item()
    return value


def scheduled_settings(group: Mapping[str, Any]) -> dict[str, float]:
    """Return the numeric settings that a schedule may change, without the learning rate; betas are beta1 and beta2.

    Tensors on a device are left out, because reading one would wait for the device at every step.
    """
    found: dict[str, float] = {}
    for name, value in group.items():
        if name == "betas":
            found.update({f"beta{i}": float(b) for i, b in enumerate(value, 1) if _is_host_number(b)})
        elif name not in ("lr", "params") and not name.startswith(_SCHEDULER_PREFIXES) and _is_host_number(value):
            found[name] = float(value)
    return found


_SCHEDULER_PREFIXES = ("initial_", "max_", "min_", "base_")


def _is_host_number(value: Any) -> bool:
    if hasattr(value, "detach"):
        return value.ndim == 0 and value.device.type == "cpu"
    return isinstance(value, (int, float)) and not isinstance(value, bool)
