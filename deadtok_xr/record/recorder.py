"""Record parameters and their optimizer state while a training loop runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from deadtok_xr import schema
from deadtok_xr.errors import InputError
from deadtok_xr.record import appender as appending
from deadtok_xr.record import attributes as facts
from deadtok_xr.record import validation
from deadtok_xr.record.host_buffers import Column, copier_for, to_numpy
from deadtok_xr.record.recorded_parameter import RECORDABLE
from deadtok_xr.record.resume import place_to_go_on
from deadtok_xr.record.schedule import Schedule
from deadtok_xr.record.session import Session, block_steps
from deadtok_xr.store.chunk_layout import chunk_shape

if TYPE_CHECKING:
    import torch

__all__ = ["RECORDABLE", "Recorder", "to_numpy"]

MEMORY = 2 * 2**30
_MATRICES = [name for name, v in schema.VARIABLES.items() if v.dims == schema.MATRIX]
_NOT_LOGGED = {*_MATRICES, *schema.COORDINATES, "dim", "run", "lr", "skipped", "skipped_before"}


class Recorder:
    """Record a parameter after every optimizer step, as a context manager.

    Parameters
    ----------
    parameter
        The embedding matrix, (vocabulary, hidden), one of the optimizer's parameters.
    optimizer
        A torch optimizer, or one that Accelerate or Lightning has wrapped; its own step hooks are used, so the
        training loop does not change.
    path
        The store to write; it must not exist unless ``overwrite`` or ``resume``.
    variables
        Any of W, grad, exp_avg, exp_avg_sq, max_exp_avg_sq (amsgrad), momentum_buffer (SGD).
    also
        Further parameters of the same shape by name, of which the same variables are recorded: ``{"E": wte.weight}``
        for an untied model gives E, grad_E, exp_avg_E, ... beside W.
    rows
        Vocabulary ids to record, or ``"dead"``; None for all.
    every, steps
        Record every k-th update, or the updates of an ascending list; None for all. An update t is recorded as
        the steps t - 1 and t, so that it can be replayed. The state at the beginning always is.
    dead
        Vocabulary ids that never occur in the data; None when that is not known.
    token_text
        One text per vocabulary id.
    scaler
        The loop's GradScaler. With it, attempts that it skips are counted (`skipped_before`), and what is logged
        after one is left out.
    attrs
        Facts about the run for the store's attributes (seed, corpus, schedule).
    overwrite
        Replace a recording that is there.
    resume
        Append to a recording that is there, which the training has been brought back to from a checkpoint; begin
        one where there is none. Steps after that of the checkpoint are recorded again.
    first_step
        How many updates have been made already; None asks the optimizer, where it counts them (Adam does).
    on_error
        When the store cannot be written on: ``"raise"`` in the loop at the next step, or ``"continue"`` the training
        with a warning, and raise on exit.
    memory
        Bytes that buffers may take; where they fill faster than the disk takes them, the loop waits.

    Attributes
    ----------
    step
        The number of the last update.
    report
        What the check after ten recorded updates found; empty before it.

    Raises
    ------
    InputError
        For what cannot be recorded: on construction, on entering, or at the step that shows it.
    DestinationExistsError
        On entering, if the store exists.
    WriteError
        In the loop or on exit, if the store cannot be written on. What was written stays.

    Notes
    -----
    `log` describes the update just made. A gradient is read before the optimizer's step, so it is the one that
    the optimizer used: accumulated, unscaled and clipped; with a closure, or under a fused step that unscales, after
    it. Whole chunks are written by a thread as they fill. A store that grows can be opened with ``partial=True``;
    if the loop raises, everything recorded so far is kept, and opens in the same way.

    Examples
    --------
    A plain loop:

        with Recorder(model.embedding.weight, optimizer, "run.zarr", dead=dead_ids) as recorder:
            for batch in batches:
                loss = train_one(batch)      # calls optimizer.step()
                recorder.log(loss=loss)

    A loop as trainers have it, with accumulation, clipping, a schedule and a scaler, changes no more:

        with Recorder(weight, optimizer, "run.zarr", variables=("W", "grad"), scaler=scaler) as recorder:
            for i, batch in enumerate(batches, start=1):
                loss = model(batch) / accumulate
                scaler.scale(loss).backward()
                if i % accumulate == 0:
                    scaler.unscale_(optimizer)
                    clip_grad_norm_(model.parameters(), 1.0)
                    scaler.step(optimizer)       # recorded, unless it is skipped
                    scaler.update()
                    schedule.step()
                    optimizer.zero_grad()
                    recorder.log(loss=loss)
    """

    def __init__(
        self,
        parameter: torch.nn.Parameter,
        optimizer: torch.optim.Optimizer,
        path: str | Path,
        *,
        variables: Sequence[str] = ("W",),
        also: Mapping[str, torch.nn.Parameter] | None = None,
        rows: Iterable[int] | str | None = None,
        every: int | None = None,
        steps: Iterable[int] | None = None,
        dead: Iterable[int] | None = None,
        token_text: Sequence[str] | None = None,
        scaler: Any = None,
        attrs: Mapping[str, Any] = {},
        overwrite: bool = False,
        resume: bool = False,
        first_step: int | None = None,
        on_error: str = "raise",
        memory: int = MEMORY,
    ) -> None:
        if on_error not in ("raise", "continue"):
            raise InputError(f"on_error={on_error!r}: choose 'raise' or 'continue'")
        if overwrite and resume:
            raise InputError("found both overwrite and resume; expected one of them at most")
        self.optimizer: torch.optim.Optimizer = validation.inner_optimizer(optimizer)
        self.parameter, self.path = parameter, validation.local_path(path)
        self.variables = validation.checked_variables(variables)
        self.followed = validation.all_followed(parameter, also or {}, self.optimizer, self.variables)
        self.schedule = Schedule(every, steps)
        self.rows = validation.recorded_rows(parameter.shape[0], rows, dead, token_text)
        self.step = 0
        self._first_step = validation.checked_first(first_step)
        self._scaler, self._attrs = validation.checked_scaler(scaler), validation.plain_attrs(attrs)
        self._memory = validation.checked_memory(memory)
        self._overwrite, self._resume, self._on_error = overwrite, resume, on_error
        self._session: Session | None = None
        self._entered = self._left = self._failed = self._attempt_skipped = self._said_again = False
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._calls = self._skipped = 0

    @property
    def group(self) -> dict[str, Any]:
        """The parameter group of the optimizer that holds the parameter."""
        return self.followed[0].group

    @property
    def report(self) -> str:
        """What the check after ten recorded updates found; empty before it."""
        return self._session.report if self._session else ""

    def __enter__(self) -> Self:
        if self._entered:
            raise InputError(
                "this Recorder was entered before; expected a new one, with resume=True to go on in a store"
            )
        if self._resume and self.path.exists():
            appender, self.step, initial = self._going_on()
        else:
            appender, self.step, initial = self._beginning(), self._updates_made(0), True
        device = self.parameter.device
        chosen = None if len(self.rows.tokens) == self.parameter.shape[0] and self._in_order() else self.rows.tokens
        self._session = Session(appender, self.followed, copier_for(device, chosen), on_error=self._on_error)
        self._entered = True
        if initial:
            values = {name: np.nan for name in self._session.settings() if name.startswith("lr")}
            self._session.put_states(initial=True)
            self._session.put_no_gradients()
            self._session.commit(self.step, values)
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        self._watch_scaler()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._entered_session()
        self._left = True
        for hook in self._hooks:
            hook.remove()
        if self._scaler is not None:
            self._scaler.__dict__.pop("step", None)
        failure = session.close()
        if failure is None and kind is None and not self._failed:
            session.appender.finish()
        if failure is None:
            session.surface()
        elif kind is None:
            raise session.error()
        elif error is not None and not session.broken:
            error.add_note(str(session.error()))

    # ---- what the loop calls

    def log(self, **values: Any) -> None:
        """Note values of the update just made; the learning rate is noted by itself.

        Of steps that are not recorded, and of attempts that a scaler skipped, nothing is kept. A name that is given
        again before the next update keeps its first value.

        Parameters
        ----------
        **values
            ``loss``, ``p_dead``, ``h_norm`` (scalars), ``h_mean``, ``p_h_dead`` (one value per dim), kept in
            float32; or any other name, a scalar or a vector of always the same length, kept in float64.

        Raises
        ------
        InputError
            For a name that the recorder writes itself, or a value of another shape.
        """
        session = self._entered_session()
        if self._left:
            raise InputError("log(...) was called after the Recorder was left; expected inside its with block")
        for name, value in values.items():
            held = self._checked(name, value)
            if self._attempt_skipped or session.note_logged(self.step, name, held) or self._said_again:
                continue
            self._said_again = True
            warnings.warn(
                f"log({name}=...) was called again before the next update, and the first value is kept: log after "
                "optimizer.step(); where a GradScaler skips updates, give Recorder scaler=",
                UserWarning,
                stacklevel=2,
            )

    def _checked(self, name: str, value: Any) -> Any:
        """A copy of a logged value, or an error now rather than after the training."""
        session = self._entered_session()
        validation.checked_name(name)
        owned = {*_NOT_LOGGED, *(v for f in self.followed for v in (*f.variables, f"lr{f.suffix}"))}
        if name in owned or name in facts.numbers(self.group):
            raise InputError(f"log({name}=...): the recorder writes {name!r} itself; leave it out, or rename it")
        spec = schema.VARIABLES.get(name)
        dtype = np.float32 if spec else np.float64
        held, shape = validation.copied(value, dtype)
        if shape is None or len(shape) > 1 or shape == (0,):
            found = type(value).__name__ if shape is None else f"the shape {shape}"
            raise InputError(f"log({name}=...): found {found}; expected a scalar or a vector of numbers")
        due = None if spec is None else (self.parameter.shape[1],) if "dim" in spec.dims else ()
        if due is not None and shape != due:
            raise InputError(f"log({name}=...): found the shape {shape}; expected {due}")
        earlier = session.appender.array(name)
        known = self._shapes.setdefault(name, shape if earlier is None else tuple(earlier.shape[1:]))
        if shape != known:
            raise InputError(f"log({name}=...): found the shape {shape}; expected {known}, as before")
        dims = spec.dims if spec else ("step", f"{name}_component") if shape else ("step",)
        session.columns.setdefault(name, Column(dims, shape, dtype))
        return held

    # ---- what the optimizer calls

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        session = self._entered_session()
        session.surface()
        found_inf = getattr(optimizer, "found_inf", None)  # a fused step under a scaler looks at it by itself
        self._void = found_inf is not None and bool(found_inf)  # on a GPU this waits; the label depends on it
        self._records = not self._void and not session.broken and self.step + 1 in self.schedule
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        self._late = closure is not None or getattr(optimizer, "grad_scale", None) is not None
        if self._records:
            with self._marking_failure():
                for f in self.followed:
                    f.check(self.step + 1)
                session.make_room()
                self._values = session.settings()
                self._had_gradient = [f.parameter.grad is not None for f in self.followed]
                if not self._late:
                    session.put_gradients()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        session = self._entered_session()
        self._calls += 1
        if self._void:
            self._skip()
            return
        self.step += 1
        self._attempt_skipped = False
        if not self._records:
            return
        with self._marking_failure():
            if self._late:
                session.put_gradients()
                self._had_gradient = [f.parameter.grad is not None for f in self.followed]
            session.put_states()
            for f, had in zip(self.followed, self._had_gradient, strict=True):
                if not had:
                    session.mark(self._values, f"skipped{f.suffix}", True, np.bool_)
            if self._skipped:
                session.mark(self._values, "skipped_before", self._skipped, np.int32)
                self._skipped = 0
            session.commit(self.step, self._values)

    def _skip(self) -> None:
        """An attempt that made no update: it has no step, and the next update says that it was there."""
        self._skipped += 1
        self._attempt_skipped = True

    def _watch_scaler(self) -> None:
        """Notice when a GradScaler does not call the optimizer at all, which no hook of an optimizer can."""
        if self._scaler is None:
            return
        inner = self._scaler.step

        def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            before = self._calls
            result = inner(optimizer, *args, **kwargs)
            if optimizer is self.optimizer and self._calls == before:
                self._skip()
            return result

        self._scaler.step = step

    # ---- beginning and going on

    def _beginning(self) -> appending.Appender:
        f = self.followed[0]
        also = {g.name: facts.of_optimizer(g) for g in self.followed[1:]}
        attrs = {
            "made_by": "Recorder",
            **facts.of_optimizer(f),
            **({"also": also, "tied": False} if also else {}),
            **facts.of_machine(self.parameter.device),
            **self.schedule.attributes(),
            "recorded_variables": [name for g in self.followed for name in g.variables],
            "parameter_dtype": str(self.parameter.dtype).removeprefix("torch."),
            "parameter_shape": list(self.parameter.shape),
            **self._attrs,
        }
        return appending.begin(self.path, self.rows, attrs, self._block_steps(), overwrite=self._overwrite)

    def _going_on(self) -> tuple[appending.Appender, int, bool]:
        """The store to append to, the step that the training is at, and whether its state is to be recorded."""
        appender = appending.resume(self.path, self.rows, self._block_steps())
        step, keep = place_to_go_on(appender, self.followed, self.rows, self._updates_made(None))
        appender.cut(keep)
        earlier = appender.group.attrs.get("resumed", [])
        assert isinstance(earlier, list)
        here = {"step": step, **facts.of_optimizer(self.followed[0]), **facts.of_machine(self.parameter.device)}
        appender.note({"resumed": [*earlier, here]})
        return appender, step, step != appender.steps()[-1]

    def _block_steps(self) -> int:
        n, parameter = len(self.rows.tokens), self.parameter
        most = chunk_shape(n, parameter.shape[1], parameter.element_size())[0]
        return block_steps(self.followed, n, most, self._memory)

    def _updates_made(self, unknown: Any) -> Any:
        counted = self.followed[0].updates()
        return self._first_step if self._first_step is not None else unknown if counted is None else counted

    def _in_order(self) -> bool:
        return bool((np.diff(self.rows.tokens) == 1).all())

    def _entered_session(self) -> Session:
        if self._session is None:
            raise InputError("this Recorder has not been entered; expected with Recorder(...) as recorder:")
        return self._session

    @contextmanager
    def _marking_failure(self) -> Iterator[None]:
        """A recording in which a step failed is not declared whole."""
        try:
            yield
        except BaseException:
            self._failed = True
            raise
