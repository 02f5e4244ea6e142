"""Take a step from the training loop to the store: fill buffers, collect settings and logged values, submit, check."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deadtok_xr.errors import InputError, WriteError
from deadtok_xr.recorder import self_check
from deadtok_xr.recorder.attributes import optimizer_attributes, scheduled_settings
from deadtok_xr.recorder.host_buffers import Column, Copier, HostBuffer, default_value, to_numpy
from deadtok_xr.recorder.writer_thread import N_BUFFERS, WriterThread

if TYPE_CHECKING:
    from deadtok_xr.recorder.appender import Appender
    from deadtok_xr.recorder.recorded_parameter import RecordedParameter


def buffer_steps(recorded: list[RecordedParameter], n_rows: int, most: int, memory: int) -> int:
    """Return how many steps a buffer holds so that all buffers together stay within ``memory`` bytes."""
    parameter = recorded[0].parameter
    matrices = sum(len(r.variables) for r in recorded)
    step = max(1, matrices * n_rows * parameter.shape[1] * parameter.element_size())
    fit = max(1, memory // (N_BUFFERS * step))
    return most if fit >= most else 2 ** (fit.bit_length() - 1)


class Session:
    """The state of a recording between entering and leaving the Recorder.

    Attributes
    ----------
    report
        The result of the self-check after the first updates; empty before it.
    stopped
        True once a write has failed and the error was raised or warned of.
    """

    def __init__(
        self,
        appender: Appender,
        recorded: list[RecordedParameter],
        copier: Copier,
        *,
        on_error: str,
        flush_every: float | None = None,
    ) -> None:
        self.appender, self.recorded, self.on_error = appender, recorded, on_error
        self.columns: dict[str, Column] = {}
        self.report = ""
        self.stopped = False
        self._warning = ""
        self._constants: dict[str, float] = {}
        self._n_recorded = 0
        self._check_submitted = False
        self._attributes: dict[str, Any] = {}  # used only by the writer thread
        self._copier = copier
        self._writer = WriterThread(lambda: HostBuffer(appender.buffer_steps, copier), self._write)
        self._buffer = self._writer.free_buffer()
        self._flush_every, self._written_at = flush_every, time.monotonic()
        self._n_submitted = appender.n_steps

    # ---- called from the training loop

    def ensure_space(self) -> None:
        """Submit a buffer that is full, fills a chunk, or has waited for ``flush_every``.

        Only before the next update, because `Recorder.log` may still add to its last step.
        """
        n = len(self._buffer)
        fills_chunk = (self._n_submitted + n) % self._buffer.capacity == 0
        if n and (self._buffer.is_full or fills_chunk or self._must_flush()):
            self._submit()

    def _must_flush(self) -> bool:
        if self._flush_every is None or not self._writer.has_free_buffer:  # the loop never waits for this
            return False
        return time.monotonic() - self._written_at >= self._flush_every

    def copy_gradients(self) -> None:
        """Copy the current gradients."""
        for r in self.recorded:
            for name, kind in r.variables.items():
                if kind == "grad":
                    self._buffer.put(name, r.gradient(), default_value(kind))

    def copy_states(self, *, initial: bool = False) -> None:
        """Copy parameters and moments, as they are after the update."""
        for r in self.recorded:
            for name, kind in r.variables.items():
                if kind != "grad":
                    self._buffer.put(name, r.state(kind, initial=initial), default_value(kind))

    def fill_gradients(self) -> None:
        """Fill the gradients of a step without an update with NaN."""
        for r in self.recorded:
            for name, kind in r.variables.items():
                if kind == "grad":
                    self._buffer.put(name, None, default_value(kind))

    def commit(self, step: int, values: dict[str, Any]) -> None:
        """End the step, with the settings that its update used."""
        self._buffer.commit(step, values)
        self._n_recorded += 1
        if not self._check_submitted and (self._n_recorded > self_check.UPDATES or self._buffer.is_full):
            self.submit_check()

    def settings(self) -> dict[str, Any]:
        """Return learning rates and other settings before an update; those that change become columns."""
        values: dict[str, Any] = {}
        for r in self.recorded:
            if r is not self.recorded[0] and r.group_index == self.recorded[0].group_index:
                continue  # it shares the settings of the first parameter
            self.columns.setdefault(f"lr{r.suffix}", Column(("step",), (), np.float64))
            values[f"lr{r.suffix}"] = _snapshot(r.group.get("lr", np.nan))
            for name, value in scheduled_settings(r.group).items():
                name += r.suffix
                if value != self._constants.setdefault(name, value):
                    self.columns.setdefault(name, Column(("step",), (), np.float64, self._constants[name]))
                if name in self.columns:
                    values[name] = value
        return values

    def add_value(self, values: dict[str, Any], name: str, value: Any, dtype: Any) -> None:
        """Add a value to those of a step; its column is created when it first occurs, with 0 for other steps."""
        self.columns.setdefault(name, Column(("step",), (), dtype, dtype(0)))
        values[name] = value

    def add_logged(self, step: int, name: str, value: Any) -> bool:
        """Add a logged value to the step if that is the last one recorded; False if the step has the name already."""
        if not self._buffer.steps or self._buffer.steps[-1] != step:
            return True
        values = self._buffer.values[-1]
        if name in values:
            return False
        values[name] = value
        return True

    def raise_pending(self) -> None:
        """Raise, or warn once, of an error in the writer thread; also issue the warning of the self-check."""
        if self._warning:
            text, self._warning = self._warning, ""
            warnings.warn(text, UserWarning, stacklevel=5)
        if self._writer.error is None or self.stopped:
            return
        self.stopped = True
        if self.on_error != "continue":
            raise self.error()
        warnings.warn(f"{self.error()} The training continues without being recorded.", UserWarning, stacklevel=5)

    def error(self) -> BaseException:
        """Return the error of the writer thread as a user should see it."""
        cause = self._writer.error
        assert cause is not None
        if isinstance(cause, InputError):
            return cause
        error = WriteError(
            f"{self.appender.root}: recording stopped ({' '.join(str(cause).split()) or type(cause).__name__}); "
            f"{self.appender.describe_complete_steps()}: free disk space, then start a new recording or resume "
            "this one from a checkpoint with resume=True."
        )
        error.__cause__ = cause
        return error

    def close(self) -> BaseException | None:
        """Write the remaining steps and end the writer thread; return its error, if there was one."""
        if not self._check_submitted and self._n_recorded > 1:
            self.submit_check()
        if len(self._buffer):
            self._writer.submit(self._buffer)
        self._writer.close()
        return self._writer.error

    def _submit(self) -> None:
        self._n_submitted += len(self._buffer)
        self._written_at = time.monotonic()
        self._writer.submit(self._buffer)
        self._buffer = self._writer.free_buffer()

    def submit_check(self) -> None:
        """Let the writer thread check the last update of the buffer."""
        buffer, n = self._buffer, len(self._buffer)
        if n < 2 or buffer.steps[-1] != buffer.steps[-2] + 1:
            return
        self._check_submitted = True
        values = buffer.values[-1]
        settings = {
            r.name: {
                **optimizer_attributes(r),
                "device": str(r.parameter.device),
                "step": buffer.steps[-1],
                "lr": values.get(f"lr{r.suffix}", values.get("lr")),
            }
            for r in self.recorded
        }
        self._writer.submit(lambda: self._check(buffer, n, settings))

    # ---- called in the writer thread

    def _write(self, buffer: HostBuffer) -> None:
        matrices = {name: (values, buffer.fill[name]) for name, values in buffer.arrays().items()}
        columns = {name: (buffer.column(name, column), column) for name, column in list(self.columns.items())}
        self.appender.append(np.asarray(buffer.steps, np.int64), matrices, columns)
        dtypes = {name: values.dtype.name for name, (values, _) in matrices.items()}
        if self._attributes.get("dtypes") != dtypes:  # the dtypes of moments are known after the first update
            self._attributes["dtypes"] = dtypes
            self.appender.set_attributes(self._attributes)

    def _check(self, buffer: HostBuffer, n: int, settings: Mapping[str, dict[str, Any]]) -> None:
        try:
            self._copier.wait()
            self.report = "\n".join(line for r in self.recorded for line in self._check_one(r, buffer, n, settings))
        except Exception as error:  # an error in the check must not stop the recording
            self.report = f"the check of the recording failed: {type(error).__name__}: {error}"
        self._attributes["self_check"] = self.report
        self.appender.set_attributes(self._attributes)

    def _check_one(
        self, r: RecordedParameter, buffer: HostBuffer, n: int, settings: Mapping[str, dict[str, Any]]
    ) -> list[str]:
        """Check the update of one parameter that led to row n - 1 of a buffer; return lines of the report."""
        current, previous = (
            {
                kind: to_numpy(buffer.matrices[name][row])
                for name, kind in r.variables.items()
                if name in buffer.matrices
            }
            for row in (n - 1, n - 2)
        )
        known = {**settings[r.name], "lr": float(settings[r.name]["lr"])}
        belongs, sentence = self_check.check_gradient(previous, current, known)
        if belongs is False:
            self._warning = (
                f"the recorded gradient of {r.name} is not the one that the optimizer used ({sentence}): find out what "
                "changes gradients inside or after the optimizer's step"
            )
        return [f"{r.name}: {sentence}", f"{r.name}: {self_check.check_replay(previous, current, known)}"]


def _snapshot(value: Any) -> Any:
    """Return a number that later changes of a tensor do not affect; from a GPU without waiting for it."""
    if hasattr(value, "detach"):
        return value.detach().clone() if value.device.type != "cpu" else float(value)
    return float(value)
