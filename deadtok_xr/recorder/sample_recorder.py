"""Record a sample of the elements of every parameter of a model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zarr

from deadtok_xr import store
from deadtok_xr.errors import InputError
from deadtok_xr.recorder import validation
from deadtok_xr.recorder.sampled_parameters import SampledParameters, sampled_parameters
from deadtok_xr.recorder.schedule import is_integer
from deadtok_xr.store import location, manifest, manifest_write
from deadtok_xr.store.destination import refuse_existing
from deadtok_xr.store.sample import ELEMENTS, FORMAT, KIND, PART, PART_MANIFESTS

if TYPE_CHECKING:
    import torch


class SampleRecorder:
    """What ``Recorder(model, optimizer, path, sample=n)`` makes: a recorder for each group, dtype and device.

    It has the methods and attributes `log`, `step` and `report` of `Recorder`, whose other options it takes but for
    ``also``, ``rows``, ``dead`` and ``token_text``, which are about tokens; ``recorder`` is that class.
    """

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        path: str | Path,
        *,
        recorder: type,
        sample: int,
        variables: Sequence[str] = ("W",),
        memory: int,
        overwrite: bool = False,
        resume: bool = False,
        attrs: Mapping[str, Any] = {},
        **options: Any,
    ) -> None:
        if not is_integer(sample) or sample < 1:
            raise InputError(f"sample={sample!r}; expected a number of elements per parameter, 1 or more")
        if overwrite and resume:
            raise InputError("found both overwrite and resume; expected at most one of them")
        of_tokens = [name for name in ("also", "rows", "dead", "token_text") if options.pop(name, None) is not None]
        if of_tokens:
            raise InputError(f"{of_tokens[0]}= is about tokens; with sample= every parameter is recorded: leave it out")
        self.path, self.sample = validation.check_path(path), int(sample)
        inner = validation.unwrap_optimizer(optimizer)
        kinds = validation.check_variables(variables)
        self._parts: list[SampledParameters] = sampled_parameters(model, inner, kinds, self.sample)
        self._overwrite, self._resume = overwrite, resume
        share = max(1, validation.check_memory(memory) // len(self._parts))
        self._recorders = [
            recorder(
                part, optimizer, self.path / PART.format(i), variables=kinds, memory=share, resume=resume, attrs=attrs,
                **options,
            )
            for i, part in enumerate(self._parts)
        ]  # fmt: skip

    @property
    def step(self) -> int:
        """The number of the last update."""
        return int(self._recorders[0].step)

    @property
    def report(self) -> str:
        """The results of the self-checks after ten recorded updates; empty before them."""
        return "\n".join(recorder.report for recorder in self._recorders if recorder.report)

    def log(self, **values: Any) -> None:
        """Record values of the update just made; see `Recorder.log`."""
        for recorder in self._recorders:
            recorder.log(**values)

    def __enter__(self) -> Self:
        resumed = self._resume and self.path.exists()
        if resumed:
            self._check_same_sample()
            self._list_parts(None)
        else:
            refuse_existing(self.path, overwrite=self._overwrite, kind=KIND)
            if self.path.exists():
                shutil.rmtree(self.path)
        with ExitStack() as stack:
            for recorder in self._recorders:
                stack.enter_context(recorder)
            if not resumed:
                self._write_index()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        digests = [manifest.digest_at(self.path / PART.format(i)) for i in range(len(self._parts))]
        if None not in digests:
            self._list_parts(digests)

    def _write_index(self) -> None:
        """Write which elements the stores of the parts hold; afterwards, because no store is created inside another."""
        members = [m for part in self._parts for m in part.members]
        group = zarr.create_group(
            location.zarr_store(self.path),
            attributes={
                KIND: FORMAT, "software": store.software_versions(), "sample": self.sample,
                "parts": [[m.attributes() for m in part.members] for part in self._parts],
            },
        )  # fmt: skip
        elements = np.concatenate([m.elements for m in members])
        array = store.create_array(group, ELEMENTS, elements.shape, ("row",), np.int64, (len(elements),))
        array[...] = elements
        manifest_write.write(group, {ELEMENTS: array}, group.attrs.asdict())

    def _list_parts(self, digests: list[str | None] | None) -> None:
        """Note the digests of the parts' manifests when all are complete, and remove them before that changes."""
        group = zarr.open_group(location.zarr_store(self.path), mode="r+")
        attrs = {name: value for name, value in group.attrs.items() if name != PART_MANIFESTS}
        added = {} if digests is None else {PART_MANIFESTS: digests}
        manifest_write.put_attributes(group, attrs | added)

    def _check_same_sample(self) -> None:
        group = zarr.open_group(location.zarr_store(self.path), mode="r")
        members = [m for part in self._parts for m in part.members]
        parts = [[m.attributes() for m in part.members] for part in self._parts]
        elements = np.concatenate([m.elements for m in members])
        if group.attrs.get("parts") != parts or not np.array_equal(store.read_coordinate(group, ELEMENTS), elements):
            raise InputError(
                f"{self.path} holds a sample of other parameters or elements: resume with the model and the sample= of "
                "the recording, or choose another store"
            )
