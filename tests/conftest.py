"""What the tests share: one real recording, its results, and a scheduler that refuses to compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import settings
from zarr.storage import LocalStore

import deadtok_xr as dx
from deadtok_xr import demo
from deadtok_xr.analyses import ANALYSES
from deadtok_xr.store import chunk_streams, motion_index
from deadtok_xr.store.chunk_layout import CHUNK_STEPS
from deadtok_xr.store.chunk_reader import ChunkReader

settings.register_profile("default", deadline=None, max_examples=15)
settings.register_profile("thorough", deadline=None, max_examples=400)  # pytest --hypothesis-profile thorough
settings.register_profile("few", deadline=None, max_examples=6)  # .ci/run, with Dask's expressions
settings.load_profile("default")
torch.set_num_threads(1)  # two test processes with two threads each spend their time waiting


def pytest_configure(config: pytest.Config) -> None:
    """Leave out what is slow, unless files, tests or marks are named."""
    if config.args_source is not pytest.Config.ArgsSource.ARGS and not config.option.markexpr:
        config.option.markexpr = "not slow"


RUN = demo.Run(
    steps=300, batch=4, length=16, dims=16, layers=1, lr=3e-3, decay=True,
    variables=("W", "grad", "exp_avg", "exp_avg_sq"),
)  # fmt: skip


N_DEAD = 256 - len(np.unique(demo.corpus()))
"""The dead tokens of `recording`: bytes that Python's documentation lacks, which depends on the version of Python."""
GROUPS = [
    "motion",
    "phases",
    "phases_magnitude",
    "phases_cells",
    "lifecycle",
    "freezing",
    "kinematics",
    "epochs",
    "topology",
    "census",
    "lattice",
    "exponents",
    "cloud",
    "spectrum",
    "connectivity",
    "mechanism",
    "critical_boundary",
    "coherence",
    "h_persistence",
    "centroid_origin",
    "freeze_predictors",
    "token_indicators",
]
"""The groups of all results, in their order."""


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run whose dead tokens move, hop, freeze and thaw: 301 steps, 256 tokens, 16 dims."""
    path = tmp_path_factory.mktemp("recording") / "run.zarr"
    return demo.train(path, demo.corpus(), 256, RUN)


@pytest.fixture(scope="session")
def atom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run that begins as a tight cluster: many coincident and adjacent tokens."""
    path = tmp_path_factory.mktemp("atom") / "run.zarr"
    run = demo.Run(steps=150, batch=4, length=16, dims=16, layers=1, lr=3e-3, decay=True, atom=5e-4)
    return demo.train(path, demo.corpus(), 256, run)


@pytest.fixture(scope="session")
def results(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    """All analyses of the dead tokens of the real run, computed in one pass."""
    tree = dx.save_results(dx.analyze(recording), tmp_path_factory.mktemp("results") / "r.zarr", full=True)
    for node in tree.children.values():
        node.dataset = node.to_dataset().compute()
    return tree


@pytest.fixture(autouse=True)
def own_analyses_are_forgotten() -> Iterator[None]:
    """Forget the analyses that a test, a page or a notebook defines."""
    known = dict(ANALYSES)
    yield
    ANALYSES.clear()
    ANALYSES.update(known)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of stores that are read, in order, directly or through zarr: "W/c/0/0/0"."""
    keys: list[str] = []
    through_zarr, direct = LocalStore.get, ChunkReader.open

    async def get(self: LocalStore, key: str, *args: Any, **kwargs: Any) -> Any:
        keys.append(key)
        return await through_zarr(self, key, *args, **kwargs)

    def opened(self: ChunkReader, block_id: tuple[int, ...]) -> Any:
        keys.append(f"{self.array.basename}/c/{'/'.join(map(str, block_id))}")
        return direct(self, block_id)

    monkeypatch.setattr(LocalStore, "get", get)
    monkeypatch.setattr(ChunkReader, "open", opened)
    return keys


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How many steps are decoded of the chunks of each variable and row of chunks, for one chunk of tokens.

    Without what stores know of motion, by which less is decoded: see test_motion_bounds.
    """
    monkeypatch.setattr(motion_index, "read", lambda array, position: None)
    counts: Counter[tuple[str, int]] = Counter()
    read = chunk_streams.Stream.read

    def counted(self: chunk_streams.Stream, out: Any, rows: slice) -> None:
        counts[self._reader.array.basename, self._id[-3]] += len(out) if self._id[-2] == 0 else 0
        read(self, out, rows)

    monkeypatch.setattr(chunk_streams.Stream, "read", counted)
    return counts


def once(n_steps: int, *names: str, after: int = 1, ends: bool = False) -> dict[tuple[str, int], int]:
    """What `decoded` is when every step is decoded once, and the first ones of each row again for the row before.

    With ``ends``, the first step is decoded once more, beside the last.
    """
    lengths = [min(CHUNK_STEPS, n_steps - first) for first in range(0, n_steps, CHUNK_STEPS)]
    return {(name, i): n + (min(after, n) if i else ends) for name in names for i, n in enumerate(lengths)}


@contextmanager
def _refuse() -> Iterator[None]:
    def scheduler(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something computed that should have stayed lazy")

    with dask.config.set(scheduler=scheduler):
        yield


@pytest.fixture
def lazily() -> Callable[[], AbstractContextManager[None]]:
    """A context in which any Dask computation is an error."""
    return _refuse
