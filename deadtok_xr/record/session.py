"""What happens between a training loop and a store: rows are captured, blocks filled, written and checked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deadtok_xr.errors import InputError, WriteError
from deadtok_xr.record import attributes, self_check
from deadtok_xr.record.host_buffers import Block, Column, Copier, before, to_numpy
from deadtok_xr.record.writer_thread import BLOCKS, Writer

if TYPE_CHECKING:
    from deadtok_xr.record.appender import Appender
    from deadtok_xr.record.recorded_parameter import Followed


def block_steps(followed: list[Followed], n_rows: int, most: int, memory: int) -> int:
    """How many steps a block may have, so that all blocks together stay within a memory."""
    parameter = followed[0].parameter
    matrices = sum(len(f.variables) for f in followed)
    step = max(1, matrices * n_rows * parameter.shape[1] * parameter.element_size())
    fit = max(1, memory // (BLOCKS * step))
    return most if fit >= most else 2 ** (fit.bit_length() - 1)


class Session:
    """One recording that is under way.

    Attributes
    ----------
    report
        What the check after a few updates found; empty before it.
    """

    def __init__(self, appender: Appender, followed: list[Followed], copier: Copier, *, on_error: str) -> None:
        self.appender, self.followed, self.on_error = appender, followed, on_error
        self.columns: dict[str, Column] = {}
        self.report = ""
        self.broken = False
        self._warning = ""
        self._constants: dict[str, float] = {}
        self._recorded = 0
        self._asked = False
        self._notes: dict[str, Any] = {}  # of the writer's thread alone
        self._writer = Writer(lambda: Block(appender.block_steps, copier), self._write)
        self._block = self._writer.free_block()
        self._shared = copier

    # ---- in the loop

    def make_room(self) -> None:
        """Have a row to fill; the last block is given away only now, for `log` comes after the update."""
        if self._block.full:
            self._submit()

    def put_gradients(self) -> None:
        """Copy the gradients that lie there now."""
        self._put("grad", initial=False)

    def put_states(self, *, initial: bool = False) -> None:
        """Copy parameters and moments, as they are after the update."""
        self._put("", initial=initial)

    def _put(self, only: str, *, initial: bool) -> None:
        for f in self.followed:
            for name, kind in f.variables.items():
                if (kind == "grad") != (only == "grad"):
                    continue
                tensor = f.gradient() if kind == "grad" else f.state(kind, initial=initial)
                self._block.put(name, tensor, before(kind))

    def put_no_gradients(self) -> None:
        """A step that has no update before it has no gradient."""
        for f in self.followed:
            for name, kind in f.variables.items():
                if kind == "grad":
                    self._block.put(name, None, before(kind))

    def commit(self, step: int, values: dict[str, Any]) -> None:
        """The step is whole, with the settings that its update used."""
        self._block.commit(step, values)
        self._recorded += 1
        if not self._asked and (self._recorded > self_check.UPDATES or self._block.full):
            self.check()

    def settings(self) -> dict[str, Any]:
        """Learning rates and other settings as they are now, before an update; those that change get a column."""
        values: dict[str, Any] = {}
        for f in self.followed:
            own = f is self.followed[0] or f.group_index != self.followed[0].group_index
            if not own:
                continue
            self.columns.setdefault(f"lr{f.suffix}", Column(("step",), (), np.float64))
            values[f"lr{f.suffix}"] = held(f.group.get("lr", np.nan))
            for name, value in attributes.numbers(f.group).items():
                name += f.suffix
                if value != self._constants.setdefault(name, value):
                    self.columns.setdefault(name, Column(("step",), (), np.float64, self._constants[name]))
                if name in self.columns:
                    values[name] = value
        return values

    def mark(self, values: dict[str, Any], name: str, value: Any, dtype: Any) -> None:
        """Note something rare, in a column that begins to exist with it."""
        self.columns.setdefault(name, Column(("step",), (), dtype, dtype(0)))
        values[name] = value

    def note_logged(self, step: int, name: str, value: Any) -> bool:
        """Add a logged value to the step, if that is the last one recorded; False if it has one of this name."""
        if not self._block.steps or self._block.steps[-1] != step:
            return True
        values = self._block.values[-1]
        if name in values:
            return False
        values[name] = value
        return True

    def surface(self) -> None:
        """Raise, or warn once, in the loop, of what went wrong in the writer's thread."""
        if self._warning:
            text, self._warning = self._warning, ""
            warnings.warn(text, UserWarning, stacklevel=5)
        if self._writer.error is None or self.broken:
            return
        self.broken = True
        if self.on_error != "continue":
            raise self.error()
        warnings.warn(f"{self.error()} The training goes on without being recorded.", UserWarning, stacklevel=5)

    def error(self) -> BaseException:
        """What went wrong in the writer's thread, as the user should see it."""
        cause = self._writer.error
        assert cause is not None
        if isinstance(cause, InputError):
            return cause
        steps = self.appender.steps_whole()
        error = WriteError(
            f"{self.appender.root}: recording stopped ({' '.join(str(cause).split()) or type(cause).__name__}); "
            f"{steps}: "
            "make room, then record anew or go on from a checkpoint with resume=True."
        )
        error.__cause__ = cause
        return error

    def close(self) -> BaseException | None:
        """Write what is left; the error of the writer, if there was one."""
        if not self._asked and self._recorded > 1:
            self.check()
        if len(self._block):
            self._submit(last=True)
        self._writer.close()
        return self._writer.error

    def _submit(self, *, last: bool = False) -> None:
        self._writer.submit(self._block)
        if not last:
            self._block = self._writer.free_block()

    # ---- in the writer's thread

    def _write(self, block: Block) -> None:
        matrices = {name: (values, block.fill[name]) for name, values in block.arrays().items()}
        columns = {name: (block.column(name, column), column) for name, column in list(self.columns.items())}
        self.appender.append(np.asarray(block.steps, np.int64), matrices, columns)
        dtypes = {name: values.dtype.name for name, (values, _) in matrices.items()}
        if self._notes.get("dtypes") != dtypes:  # moments show theirs at the first update
            self._notes["dtypes"] = dtypes
            self.appender.note(self._notes)

    # ---- the check

    def check(self) -> None:
        """Have the last update of this block checked, by the writer's thread."""
        block, n = self._block, len(self._block)
        if n < 2 or block.steps[-1] != block.steps[-2] + 1:
            return
        self._asked = True
        step = block.steps[-1]
        lr = {f.name: block.values[-1].get(f"lr{f.suffix}", block.values[-1].get("lr")) for f in self.followed}
        settings = {
            f.name: {**attributes.of_optimizer(f), "device": str(f.parameter.device), "step": step, "lr": lr[f.name]}
            for f in self.followed
        }
        self._writer.submit(lambda: self._check(block, n, settings))

    def _check(self, block: Block, n: int, settings: Mapping[str, dict[str, Any]]) -> None:
        try:
            self._self_check(block, n, settings)
        except Exception as error:  # a recording is worth more than its check
            self.report = f"the check of the recording failed: {type(error).__name__}: {error}"
        self._notes["self_check"] = self.report
        self.appender.note(self._notes)

    def _self_check(self, block: Block, n: int, settings: Mapping[str, dict[str, Any]]) -> None:
        self._shared.wait()
        lines = []
        for f in self.followed:
            now, last = (
                {
                    kind: to_numpy(block.matrices[name][row])
                    for name, kind in f.variables.items()
                    if name in block.matrices
                }
                for row in (n - 1, n - 2)
            )
            given = {**settings[f.name], "lr": float(settings[f.name]["lr"])}
            aligned, sentence = self_check.alignment(last, now, given)
            closes = self_check.closure(last, now, given)
            lines += [f"{f.name}: {sentence}", *([f"{f.name}: {closes}"] if closes else [])]
            if aligned is False:
                self._warning = (
                    f"the recorded gradient of {f.name} is not the one that the optimizer used ({sentence}): look for "
                    "what changes gradients inside or after the optimizer's step"
                )
        self.report = "\n".join(lines)


def held(value: Any) -> Any:
    """A number of the loop that stays what it is now; from a GPU without waiting for it."""
    if hasattr(value, "detach"):
        return value.detach().clone() if value.device.type != "cpu" else float(value)
    return float(value)
