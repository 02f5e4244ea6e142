"""The markers of a conversion to an object store, beside the store there.

An object is written whole or not at all, and nothing is there when a plan is put down: what lies in the store then is
done, and only what was noticed in a chunk is noted, before the chunk. There is no lock: two equal conversions write the
same bytes, and of two that differ the second is refused, as it is in a folder.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from deadtok_xr.conversion.markers import Markers
from deadtok_xr.conversion.plan import fingerprint
from deadtok_xr.conversion.units import Finds
from deadtok_xr.store import location


class ObjectMarkers(Markers):
    """The markers of one destination behind an address; what is made of files is made in a temporary folder."""

    dest: Any

    def __init__(self, dest: str) -> None:
        super().__init__(Path(tempfile.gettempdir(), f"deadtok-{uuid.uuid4().hex}"))
        self.dest = dest.rstrip("/")
        above, _, name = self.dest.rpartition("/")
        self.place = f"{above}/.{name}.progress"

    @contextmanager
    def held(self) -> Iterator[Markers]:
        """A temporary folder for what is made of files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            yield self
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def begun(self) -> bool:
        return location.read(self.place, "plan.json") is not None

    def tidy(self) -> None:
        pass

    def read(self, name: str) -> bytes:
        data = location.read(self.place, name)
        if data is None:
            raise FileNotFoundError(f"{self.place}/{name}")
        return data

    def put(self, name: str, text: str) -> Path:
        location.write(self.place, name, text.encode())
        return self.folder / name

    def begin(self, facts: Mapping[str, Any]) -> None:
        location.remove(self.place)
        location.remove(self.dest)  # before the plan: what lies there then can only be of this one
        self.done = {}
        self.put("plan.json", json.dumps({"fingerprint": fingerprint(facts), "facts": facts}, default=str))

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """What was in the store when this began."""
        return location.objects(location.opened(self.dest))

    def is_intact(self, name: str, size: int, known: str) -> bool:
        return self._sizes.get(name) == size

    def resume(self) -> None:
        noted = [name for name in location.objects(location.opened(self.place)) if name.startswith("noted/")]
        finds: dict[str, Finds] = {}
        for name in noted:
            key, n_bad, first = json.loads(self.read(name))
            finds[key] = Finds(n_bad, tuple(first))
        self.done = {key: finds.get(key, Finds()) for key in self._sizes if "/c/" in key}

    def install(self, made: Path) -> None:
        files = [p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()]
        self.put_back(made, sorted(files, key=lambda name: name == "zarr.json"))  # the root last

    def put_back(self, made: Path, names: Sequence[str]) -> None:
        for name in names:
            location.write(self.dest, name, (made / name).read_bytes())

    def put_root(self, text: str) -> None:
        location.write(self.dest, "zarr.json", text.encode())

    def put_bounds(self, array: Any, position: tuple[int, ...], steps: Any, chunk: bytes) -> None:
        pass  # a request for each chunk costs more than they save

    def finish_chunk(self, key: str, data: bytes, finds: Finds) -> None:
        if finds.n_bad:
            self.put(f"noted/{key}", json.dumps([key, finds.n_bad, finds.first]))
        location.write(self.dest, key, data)
        self.done[key] = finds

    def remove(self) -> None:
        location.remove(self.place)
