"""The hooks of an optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def register_step_hooks(
    optimizer: torch.optim.Optimizer, before: Callable[..., Any], after: Callable[..., None]
) -> list[Any]:
    """Register functions before and after each step; return the handles that remove them.

    torch.compile leaves the functions as they are when it compiles the step.
    """
    import torch

    hooks: tuple[Any, Any] = torch.compiler.disable(before), torch.compiler.disable(after)
    return [optimizer.register_step_pre_hook(hooks[0]), optimizer.register_step_post_hook(hooks[1])]
