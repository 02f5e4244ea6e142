"""Count, while a training loop runs, which updates move the parameters and which are rounded away."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from deadtok_xr.errors import InputError, WriteError
from deadtok_xr.monitor import growing_store, ranks, rows
from deadtok_xr.monitor.observation import Observation
from deadtok_xr.monitor.predict import rule_name
from deadtok_xr.monitor.report import Totals, report
from deadtok_xr.monitor.selection import watched_parameters
from deadtok_xr.monitor.workers import Workers
from deadtok_xr.recorder import validation
from deadtok_xr.recorder.attributes import implementation, json_settings, machine_attributes
from deadtok_xr.recorder.hooks import register_step_hooks
from deadtok_xr.recorder.scaler import ScalerWatch
from deadtok_xr.recorder.schedule import Schedule
from deadtok_xr.store.writer_lock import WriterLock

if TYPE_CHECKING:
    import torch
    import xarray as xr

FLUSH_SECONDS = 10.0
"""Rows wait in memory for at most this long, and until the next monitored update, before they are written."""


class Monitor:
    """Count at every k-th update which elements of each parameter move, and why the others do not.

    A context manager around a training loop, which does not change: the optimizer's own step hooks are used. Before a
    monitored update, torch's own update is computed on copies of small parts (tiles) of each parameter, on its device,
    and compared with the weights; after the update, a checksum of the weights proves that the optimizer did the same.
    There is no second copy of the weights, and the training is the same to the bit.

    Parameters
    ----------
    model_or_parameters
        A model, of which the parameters that the optimizer has are watched; or a parameter, parameters, pairs (name,
        parameter), or a mapping of names to parameters. Of any shape, in bfloat16, float16 or float32.
    optimizer
        torch's AdamW, Adam or SGD (single, foreach or fused), or one that Accelerate or Lightning has wrapped. Any
        other optimizer with ``copy=True``.
    path
        A store to write, which `open_monitor` reads, also meanwhile. None keeps the figures in memory.
    every
        Monitor the updates whose number is a multiple of this.
    log
        Called as ``log(values, step=update)`` after each monitored update, with a dict of numbers: ``wandb.log``,
        ``mlflow.log_metrics``, ``accelerator.log``. Names are ``updates/moved``, ``moved/NAME`` and the like.
    copy
        Keep a copy of the watched weights during monitored updates. `moved`, `visible` and `realised_norm` are then
        exact for any optimizer; for an unknown one, why an element did not move is `unknown`.
    scaler
        The loop's GradScaler, so that attempts that it skips are counted (`skipped_before`). Skipped fused steps are
        counted without it.
    overwrite
        Replace a store that exists.
    resume
        Append to an existing store, after the training was restored from a checkpoint; create one if there is none.
        Updates after the checkpoint are replaced.
    first_step
        The number of updates made before; by default as the optimizer counts them. SGD does not: pass the number if
        the training was restored from a checkpoint.
    attrs
        Attributes of the store about the run.

    Attributes
    ----------
    step
        The number of the last update.
    report
        Findings so far in words, and the parameters that lose most to rounding; empty before the first update.

    Raises
    ------
    InputError
        For what cannot be watched: a parameter that the optimizer does not have, that is complex, of integers, or on
        the meta device; an optimizer of an unknown kind without ``copy=True``; at a step, a sparse gradient.
    DestinationExistsError
        On entering, if the store exists.
    WriteError
        In the loop or on exit, if writing fails.

    Notes
    -----
    An element is `moved` if its value changed; else `no_gradient` if its gradient and its update u are 0, else
    `rounded_to_zero`. Elements with NaN or infinity are `unknown`. Figures are those of the gradient that the update
    uses: accumulated, clipped, unscaled, and with a closure the one that it computes.

    The variable `exact` is false where the checksum differs: something else changed the weights inside the step, such
    as another hook. The counts are then those of the predicted update, and a warning names the parameters.

    Sharded parameters (DTensor, as of FSDP2) are counted on each rank, and the sums are taken over the ranks; all ranks
    need a Monitor. Only rank 0 writes and logs.

    Examples
    --------
    >>> import torch
    >>> norm = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    >>> optimizer = torch.optim.AdamW([norm], lr=1e-4)
    >>> with Monitor({"norm": norm}, optimizer) as monitor:
    ...     for _ in range(3):
    ...         norm.grad = torch.full_like(norm, 0.5)
    ...         optimizer.step()
    >>> monitor.dataset().rounded_to_zero.values.tolist()
    [[8], [8], [8]]
    """

    def __init__(
        self,
        model_or_parameters: Any,
        optimizer: torch.optim.Optimizer,
        path: str | Path | None = None,
        *,
        every: int = 1,
        log: Callable[..., Any] | None = None,
        copy: bool = False,
        scaler: Any = None,
        overwrite: bool = False,
        resume: bool = False,
        first_step: int | None = None,
        attrs: Mapping[str, Any] = {},
    ) -> None:
        if overwrite and resume:
            raise InputError("found both overwrite and resume; expected at most one of them")
        if log is not None and not callable(log):
            raise InputError(f"log is a {type(log).__name__}; expected a function log(values, step=...), or None")
        self.every = Schedule(1 if every is None else every).every or 1
        self.optimizer: torch.optim.Optimizer = validation.unwrap_optimizer(optimizer)
        self.path = None if path is None else validation.check_path(path)
        self._watched, self._not_in_optimizer = watched_parameters(model_or_parameters, self.optimizer)
        self._rule, self._copy = rule_name(self.optimizer), copy
        if self._rule is None and not copy:
            n_bytes = sum(w.parameter.numel() * w.parameter.element_size() for w in self._watched)
            raise InputError(
                f"the optimizer is {type(self.optimizer).__name__}, whose arithmetic is not known (torch's AdamW, "
                f"Adam and SGD are): copy=True counts what moved by comparing with a copy of the weights, "
                f"{n_bytes / 2**20:,.1f} MiB during a monitored update"
            )
        self._scaler, self._attrs = validation.check_scaler(scaler), validation.json_attributes(attrs)
        self._log, self._overwrite, self._resume = log, overwrite, resume
        self._fixed = rows.coordinates(self._watched, [self._method(w.group) for w in self._watched])
        self._totals = Totals(self._fixed)
        self._first_step = validation.check_first_step(first_step)
        self.step = self._n_calls = self._n_skipped = 0
        self._rows: list[rows.Row] = []
        self._first_row = 0
        self._observation: Observation | None = None
        self._skips: Any = None
        self._store: growing_store.GrowingStore | None = None
        self._lock = WriterLock(self.path)
        self._written: Future[None] | None = None
        self._entered = self._left = self._warned = False

    @property
    def report(self) -> str:
        """Findings so far in words; empty before the first update."""
        if self._n_calls and not self._totals.n_updates:
            return f"No update was monitored: every={self.every}, and the last update is {self.step}."
        return report(self._totals)

    def dataset(self) -> xr.Dataset:
        """Return the figures so far, as `open_monitor` does."""
        if self._store is None:
            return rows.to_dataset(rows.columns(self._rows, self._fixed), self._fixed, self._attributes())
        if not self._left:
            self._flush()
            self._wait()
        assert self.path is not None
        return growing_store.open_monitor(self.path)

    def __enter__(self) -> Self:
        if self._entered:
            raise InputError("this Monitor was entered before; expected a new one")
        self._entered = True
        self.step = self._updates_made()
        self._next = self._next_monitored()
        self._writer = ranks.is_writer()
        if self.path is not None and self._writer:
            with self._lock.acquired():
                self._open_store(self.path)
        self._workers = Workers()
        self._executor = ThreadPoolExecutor(1, "deadtok-monitor-writer")
        self._hooks = register_step_hooks(self.optimizer, self._before_step, self._after_step)
        self._scaler_watch = ScalerWatch(self._scaler, self.optimizer, lambda: self._n_calls, self._skip)
        return self

    def _updates_made(self) -> int:
        if self._first_step is not None:
            return self._first_step
        counts = [int(w.step) for w in self._watched if w.step is not None]
        if not counts and self._resume and self.path is not None and (last := growing_store.last_step(self.path)):
            raise InputError(
                f"{self.path} ends at update {last}, and the optimizer "
                f"({type(self.optimizer).__name__}) does not say how many updates it has made: pass the number as "
                "first_step=, which is 0 for a training from the beginning"
            )
        return max(counts, default=0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._entered:
            raise InputError("this Monitor has not been entered; use it as: with Monitor(...) as monitor:")
        self._left = True
        for hook in self._hooks:
            hook.remove()
        self._scaler_watch.restore()
        self._workers.close()
        try:
            self._flush()
            self._wait()
            if self._store is not None and kind is None:
                self._store.finish()
        except WriteError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            self._executor.shutdown()
            self._lock.close()

    # ---- called by the optimizer

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        self._n_calls += 1
        found_inf = getattr(optimizer, "found_inf", None)  # set by a scaler for a fused step; read when it is needed
        if found_inf is not None:
            self._last_skip = found_inf.detach().clone()
            self._skips = self._last_skip if self._skips is None else self._skips + self._last_skip
        self._observation = None
        if self.step + 1 < self._next:
            return None
        observation = self._observation = Observation(self._watched, self._rule, self._copy, self._workers)
        observation.copy()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            observation.predict(optimizer)
            return None

        def observed() -> Any:
            loss = closure()
            if not observation.predicted:
                observation.predict(optimizer)
            return loss

        return ((args[0],), {**kwargs, "closure": observed}) if "closure" in kwargs else (
            (args[0], observed, *args[2:]), kwargs
        )  # fmt: skip

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.step += 1
        observation, self._observation = self._observation, None
        if observation is None or not observation.predicted:
            return
        observation.compare()
        if self._skips is not None and self._count_skips():
            return
        if self.step < self._next:  # some of the updates before were skipped
            return
        row = {**observation.row(), "step": self.step, "skipped_before": self._n_skipped}
        self._n_skipped = 0
        self._next = self._next_monitored()
        self._add(row)

    def _count_skips(self) -> bool:
        """Count the fused steps that a scaler skipped; return whether the last one was skipped."""
        import torch

        n, last = torch.stack([self._skips.sum(), self._last_skip.sum()]).tolist()
        self.step -= int(n)
        self._n_skipped += int(n)
        self._skips = None
        return bool(last)

    def _skip(self) -> None:
        self._n_skipped += 1

    def _next_monitored(self) -> int:
        return (self.step // self.every + 1) * self.every

    # ---- rows

    def _add(self, row: rows.Row) -> None:
        self._totals.add(row)
        self._warn_of_estimates(row)
        if self.path is None or self._writer:
            self._rows.append(row)
        if self._store is not None:
            self._raise_error()
            full = len(self._rows) == self._store.chunk
            if full or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
                self._flush()
            if full:
                self._first_row, self._rows = self._first_row + len(self._rows), []
        if self._log is not None and self._writer:
            self._log(rows.logged(row, self._fixed), step=self.step)

    def _warn_of_estimates(self, row: rows.Row) -> None:
        wrong = np.flatnonzero(~row["exact"])
        if len(wrong) and not self._warned:
            self._warned = True
            first, method = (self._fixed[name][wrong[0]] for name in ("parameter", "method"))
            warnings.warn(
                f"the weights of {len(wrong)} parameters ({first}{', ...' * (len(wrong) > 1)}) after update "
                f"{self.step} are not those that {method.partition(',')[0]} gives: something else changes "
                "them inside the step, such as a hook or torch.compile; their counts are estimates (exact is False), "
                "and copy=True counts what moved exactly",
                UserWarning,
                stacklevel=6,
            )

    def _flush(self) -> None:
        """Write the rows of the current chunk, in another thread."""
        if self._store is not None and self._rows:
            self._flushed_at = time.monotonic()
            self._written = self._executor.submit(self._store.write, self._first_row, list(self._rows))

    def _wait(self) -> None:
        if self._written is not None:
            self._written.exception()  # waits
            self._raise_error()

    def _raise_error(self) -> None:
        if self._written is None or not self._written.done() or (error := self._written.exception()) is None:
            return
        self._store = self._written = None  # raised once; later updates are kept in memory
        raise WriteError(
            f"{self.path}: writing what the Monitor found failed ({' '.join(str(error).split())}); what was written "
            "before can be opened with open_monitor: free disk space, or choose another store"
        ) from error

    # ---- the store

    def _open_store(self, path: Path) -> None:
        self._flushed_at = time.monotonic()
        if not (self._resume and path.exists()):
            attrs = self._attributes()
            self._store = growing_store.create(path, self._fixed, attrs, overwrite=self._overwrite)
            return
        self._store = growing_store.reopen(path, self._fixed)
        self._first_row, found = self._store.rows_to_resume(self.step)
        self._rows = list(found)

    def _attributes(self) -> dict[str, Any]:
        groups = [
            {k: v for k, v in json_settings(g).items() if k != "param_names"} for g in self.optimizer.param_groups
        ]
        return {
            "optimizer": type(self.optimizer).__name__,
            "param_groups": groups,
            "monitored_every": self.every,
            "not_in_optimizer": self._not_in_optimizer,
            **machine_attributes(self._watched[0].weights.device),
            **self._attrs,
        }

    def _method(self, group: Mapping[str, Any]) -> str:
        if self._rule is None:
            return f"{type(self.optimizer).__name__}, compared with a copy"
        name = f"{self._rule} ({implementation(group)})"
        return f"{name}, compared with a copy" if self._copy else f"{name}, predicted and compared by a checksum"
