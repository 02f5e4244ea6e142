"""Notice the attempts in which a GradScaler does not call the optimizer at all, which runs none of its hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class ScalerWatch:
    """Wraps ``scaler.step`` until `restore` is called.

    Parameters
    ----------
    scaler
        The loop's GradScaler, or None.
    optimizer
        The torch optimizer.
    n_calls
        Returns how often the optimizer's step has been called.
    skipped
        Called after an attempt without such a call.
    """

    def __init__(self, scaler: Any, optimizer: Any, n_calls: Callable[[], int], skipped: Callable[[], None]) -> None:
        self._scaler = scaler
        if scaler is None:
            return
        inner, self._before = scaler.step, scaler.__dict__.get("step")

        def step(given: Any, *args: Any, **kwargs: Any) -> Any:
            before = n_calls()
            result = inner(given, *args, **kwargs)
            if given is optimizer and n_calls() == before:
                skipped()
            return result

        scaler.step = step

    def restore(self) -> None:
        """Put back the method that was there before."""
        if self._scaler is None:
            return
        if self._before is None:
            self._scaler.__dict__.pop("step", None)
        else:
            self._scaler.step = self._before
