"""Record parameters and their optimizer state while a training loop runs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from deadtok_xr.errors import InputError
from deadtok_xr.recorder import sharded, validation
from deadtok_xr.recorder.appender import Appender, create_appender, open_appender
from deadtok_xr.recorder.attributes import machine_attributes, optimizer_attributes
from deadtok_xr.recorder.hooks import register_step_hooks
from deadtok_xr.recorder.host_buffers import copier_for
from deadtok_xr.recorder.logged_values import LoggedValues
from deadtok_xr.recorder.resume import resume_position
from deadtok_xr.recorder.sampled_parameters import SampledParameters
from deadtok_xr.recorder.scaler import ScalerWatch
from deadtok_xr.recorder.schedule import Schedule
from deadtok_xr.recorder.session import Session, buffer_steps
from deadtok_xr.store.chunk_layout import chunk_shape
from deadtok_xr.store.writer_lock import WriterLock

if TYPE_CHECKING:
    import torch

MEMORY = 2 * 2**30


class Recorder:
    """Record a parameter after every optimizer step, as a context manager.

    Parameters
    ----------
    parameter
        The embedding matrix, (vocabulary, hidden), one of the optimizer's parameters. If it is sharded over ranks (a
        DTensor, as of FSDP2), all ranks need a Recorder, and one of them writes.
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
        the steps t - 1 and t, so that it can be replayed. The initial state is always recorded.
    dead
        Vocabulary ids that never occur in the data; None when that is not known.
    token_text
        One text per vocabulary id.
    scaler
        The loop's GradScaler. With it, attempts that it skips are counted (`skipped_before`), and what is logged
        after one is left out.
    attrs
        Attributes of the store about the run (seed, corpus, schedule).
    overwrite
        Replace a recording that exists.
    resume
        Append to an existing recording, after the training was restored from a checkpoint; create one if there is
        none. Steps after that of the checkpoint are recorded again.
    first_step
        How many updates have been made already; None for the optimizer's own count (Adam has one).
    on_error
        When writing fails: ``"raise"`` in the loop at the next step, or ``"continue"`` the training with a warning,
        and raise on exit.
    memory
        Maximum size of the buffers in bytes; if they fill faster than they are written, the loop waits.
    sample
        With a model instead of a parameter: record this many elements, chosen at random once, of each of its
        parameters that the optimizer has, of any shape (all of those that are smaller). `open_recording` then returns a
        tree with a group (step, element) for each parameter. Options about tokens do not apply.
    flush_every
        Seconds after which recorded steps are written at the latest, before the next update, so that they can be read
        while the training runs. None: when a chunk is full, which is up to 128 steps. Steps that were written
        before their chunk was full are written again with it.

    Attributes
    ----------
    step
        The number of the last update.
    report
        The result of the self-check after ten recorded updates; empty before it.

    Raises
    ------
    InputError
        For what cannot be recorded: on construction, on entering, or at the step where it becomes known.
    DestinationExistsError
        On entering, if the store exists.
    WriteError
        In the loop or on exit, if writing fails. What was written is kept.

    Notes
    -----
    `log` describes the update just made. A gradient is read before the optimizer's step, so it is the one that
    the optimizer used: accumulated, unscaled and clipped. With a closure, or a fused step that unscales, it is read
    after the step. A thread writes chunks as they fill, or by time (``flush_every``). While the store grows it can be
    opened with ``partial=True``; if the loop raises, everything recorded so far is kept and can be opened in the same
    way.

    Examples
    --------
    A plain loop:

        with Recorder(model.embedding.weight, optimizer, "run.zarr", dead=dead_ids) as recorder:
            for batch in batches:
                loss = train_one(batch)      # calls optimizer.step()
                recorder.log(loss=loss)

    A loop with accumulation, clipping, a schedule and a scaler needs no other changes:

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

    def __new__(cls, *args: Any, sample: int | None = None, **options: Any) -> Any:
        if sample is None:
            return super().__new__(cls)
        from deadtok_xr.recorder.sample_recorder import SampleRecorder

        return SampleRecorder(*args, recorder=cls, sample=sample, **{"memory": MEMORY, **options})

    def __init__(
        self,
        parameter: torch.nn.Parameter | SampledParameters,
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
        flush_every: float | None = None,
        sample: int | None = None,
    ) -> None:
        if on_error not in ("raise", "continue"):
            raise InputError(f"on_error={on_error!r}: choose 'raise' or 'continue'")
        if overwrite and resume:
            raise InputError("found both overwrite and resume; expected at most one of them")
        self.optimizer: torch.optim.Optimizer = validation.unwrap_optimizer(optimizer)
        self.parameter, self.path = parameter, validation.check_path(path)
        self.variables = validation.check_variables(variables)
        self.recorded = validation.recorded_parameters(parameter, also or {}, self.optimizer, self.variables)
        self.schedule = Schedule(every, steps)
        self.token_table = validation.token_table(parameter.shape[0], rows, dead, token_text)
        self.step = 0
        self._first_step = validation.check_first_step(first_step)
        self._scaler, self._attrs = validation.check_scaler(scaler), validation.json_attributes(attrs)
        self._memory = validation.check_memory(memory)
        self._flush_every = validation.check_flush_every(flush_every)
        self._overwrite, self._resume, self._on_error = overwrite, resume, on_error
        self._session: Session | None = None
        self._lock = WriterLock(self.path)
        self._mesh = sharded.mesh_of(self.recorded)
        if self._mesh is not None and on_error == "continue":
            raise InputError("on_error='continue': the ranks of a sharded parameter must all record; expected 'raise'")
        self._entered = self._left = self._failed = self._attempt_skipped = self._warned_of_repeat = False
        self._logged = LoggedValues(self.recorded)
        self._n_calls = self._n_skipped = 0

    @property
    def group(self) -> dict[str, Any]:
        """The parameter group of the optimizer that holds the parameter."""
        return self.recorded[0].group

    @property
    def report(self) -> str:
        """The result of the self-check after ten recorded updates; empty before it."""
        return self._session.report if self._session else ""

    def __enter__(self) -> Self:
        if self._entered:
            raise InputError(
                "this Recorder was entered before; expected a new one, with resume=True to append to the store"
            )
        values: dict[str, Any] = {r.name: r.state("W", initial=True) for r in self.recorded} if self._resume else {}
        begin = None if sharded.follows(self._mesh) else lambda: self._begin(values)
        self.step, initial = sharded.agree(self._mesh, begin)
        self._session = self._session or cast(Session, sharded.Follower(self.recorded))
        self._entered = True
        if initial:
            values = {name: np.nan for name in self._session.settings() if name.startswith("lr")}
            self._session.copy_states(initial=True)
            self._session.fill_gradients()
            self._session.commit(self.step, values)
        self._hooks = register_step_hooks(self.optimizer, self._before_step, self._after_step)
        self._scaler_watch = ScalerWatch(self._scaler, self.optimizer, lambda: self._n_calls, self._skip)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._entered_session()
        self._left = True
        for hook in self._hooks:
            hook.remove()
        self._scaler_watch.restore()
        with closing(self._lock):
            failure = session.close()
            if failure is None and kind is None and not self._failed:
                session.appender.finish()
        if failure is None:
            session.raise_pending()
        elif kind is None:
            raise session.error()
        elif error is not None and not session.stopped:
            error.add_note(str(session.error()))

    # ---- called from the training loop

    def log(self, **values: Any) -> None:
        """Record values of the update just made; the learning rate is recorded automatically.

        Values of steps that are not recorded, and of attempts that a scaler skipped, are ignored. If a name is logged
        twice before the next update, the first value is kept.

        Parameters
        ----------
        **values
            ``loss``, ``p_dead``, ``h_norm`` (scalars), ``h_mean``, ``p_h_dead`` (one value per dim), kept in
            float32; or any other name, a scalar or a vector of always the same length, kept in float64.

        Raises
        ------
        InputError
            For a name that the recorder writes itself, or a value with a shape that is not allowed.
        """
        session = self._entered_session()
        if sharded.follows(self._mesh):
            return
        if self._left:
            raise InputError("log(...) was called after the Recorder was left; expected a call inside its with block")
        for name, value in values.items():
            copy = self._logged.checked_copy(session, name, value)
            if self._attempt_skipped or session.add_logged(self.step, name, copy) or self._warned_of_repeat:
                continue
            self._warned_of_repeat = True
            warnings.warn(
                f"log({name}=...) was called again before the next update, and the first value is kept: log after "
                "optimizer.step(); where a GradScaler skips updates, give Recorder scaler=",
                UserWarning,
                stacklevel=2,
            )

    # ---- called by the optimizer

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        session = self._entered_session()
        session.raise_pending()
        found_inf = getattr(optimizer, "found_inf", None)  # set by a scaler for a fused step
        self._no_update = found_inf is not None and bool(found_inf)  # on a GPU this waits, but the step label needs it
        self._is_recorded = not self._no_update and not session.stopped and self.step + 1 in self.schedule
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        self._gradient_after_step = closure is not None or getattr(optimizer, "grad_scale", None) is not None
        if self._is_recorded:
            with self._noting_failure():
                for r in self.recorded:
                    r.check(self.step + 1)
                session.ensure_space()
                self._values = session.settings()
                self._had_gradient = [r.parameter.grad is not None for r in self.recorded]
                if not self._gradient_after_step:
                    session.copy_gradients()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        session = self._entered_session()
        self._n_calls += 1
        if self._no_update:
            self._skip()
            return
        self.step += 1
        self._attempt_skipped = False
        if not self._is_recorded:
            return
        with self._noting_failure():
            if self._gradient_after_step:
                session.copy_gradients()
                self._had_gradient = [r.parameter.grad is not None for r in self.recorded]
            session.copy_states()
            for r, had_gradient in zip(self.recorded, self._had_gradient, strict=True):
                if not had_gradient:
                    session.add_value(self._values, f"skipped{r.suffix}", True, np.bool_)
            if self._n_skipped:
                session.add_value(self._values, "skipped_before", self._n_skipped, np.int32)
                self._n_skipped = 0
            session.commit(self.step, self._values)

    def _skip(self) -> None:
        """Count an attempt that made no update: it has no step, and the next step records the count."""
        self._n_skipped += 1
        self._attempt_skipped = True

    # ---- creating and resuming a store

    def _begin(self, values: Mapping[str, Any]) -> tuple[int, bool]:
        """Create or open the store; return the step that the training is at, and whether to record its state."""
        with self._lock.acquired():
            if self._resume and self.path.exists():
                appender, step, initial = self._resume_store(values)
            else:
                appender, step, initial = self._create_store(), self._updates_made(0), True
        tokens = self.token_table.tokens
        rows = None if np.array_equal(tokens, np.arange(self.parameter.shape[0])) else tokens
        copier = copier_for(self.parameter.device, rows)
        self._session = Session(appender, self.recorded, copier, on_error=self._on_error, flush_every=self._flush_every)
        return step, initial

    def _create_store(self) -> Appender:
        also = {r.name: optimizer_attributes(r) for r in self.recorded[1:]}
        attrs = {
            "made_by": "Recorder",
            **optimizer_attributes(self.recorded[0]),
            **({"also": also, "tied": False} if also else {}),
            **machine_attributes(self.parameter.device),
            **self.schedule.attributes(),
            "recorded_variables": [name for r in self.recorded for name in r.variables],
            "parameter_dtype": str(self.parameter.dtype).removeprefix("torch."),
            "parameter_shape": list(self.parameter.shape),
            "written_every_steps": self._buffer_steps(),
            **({} if self._flush_every is None else {"written_every_seconds": self._flush_every}),
            **self._attrs,
        }
        return create_appender(self.path, self.token_table, attrs, self._buffer_steps(), overwrite=self._overwrite)

    def _resume_store(self, values: Mapping[str, Any]) -> tuple[Appender, int, bool]:
        """Return the store to append to, the step that the training is at, and whether to record its state."""
        appender = open_appender(self.path, self.token_table, self._buffer_steps())
        step, keep = resume_position(appender, self.recorded, values, self.token_table, self._updates_made(None))
        appender.truncate(keep)
        earlier = appender.group.attrs.get("resumed", [])
        assert isinstance(earlier, list)
        now = {"step": step, **optimizer_attributes(self.recorded[0]), **machine_attributes(self.parameter.device)}
        appender.set_attributes({"resumed": [*earlier, now]})
        return appender, step, step != appender.steps()[-1]

    def _buffer_steps(self) -> int:
        n, parameter = len(self.token_table.tokens), self.parameter
        most = chunk_shape(n, parameter.shape[1], parameter.element_size())[0]
        return buffer_steps(self.recorded, n, most, self._memory)

    def _updates_made(self, default: Any) -> Any:
        """Return how many updates were made before, as given or counted by the optimizer; else ``default``."""
        if self._first_step is not None:
            return self._first_step
        counted = self.recorded[0].updates()
        return default if counted is None else counted

    def _entered_session(self) -> Session:
        if self._session is None:
            raise InputError("this Recorder has not been entered; use it as: with Recorder(...) as recorder:")
        return self._session

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """Remember that a step failed, so that the store is not marked as complete."""
        try:
            yield
        except BaseException:
            self._failed = True
            raise


_signature = inspect.signature(Recorder.__init__)
# for help(): without it, that of __new__
Recorder.__signature__ = _signature.replace(  # type: ignore[attr-defined]
    parameters=list(_signature.parameters.values())[1:], return_annotation=inspect.Signature.empty
)
