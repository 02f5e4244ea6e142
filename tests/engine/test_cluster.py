"""Threads, processes and clusters give the same results; lost workers only cost time; no large data are transferred."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import psutil
import pytest
import xarray as xr
from dask.callbacks import Callback
from dask.sizeof import sizeof
from distributed import Client, LocalCluster, WorkerPlugin

import deadtok_xr as dx
from deadtok_xr import cli, testing
from deadtok_xr.engine import cluster as engine_cluster
from deadtok_xr.errors import IncompleteStoreError
from deadtok_xr.results import save

pytestmark = pytest.mark.slow

ROOT = Path(dx.__file__).parents[1]
SOME = ("motion", "phases", "kinematics", "mechanism", "freeze_predictors")
"""Analyses of every kind: per token, per step, of several matrices, merged from row to row."""


def assert_same(found: xr.DataTree, expected: xr.DataTree) -> None:
    """Integers to the bit, floats within 1e-12 of their size."""
    for name, node in found.children.items():
        ours = node.to_dataset().compute()
        for key, variable in expected[name].to_dataset().compute().variables.items():
            assert ours[key].dtype == variable.dtype
            if variable.dtype.kind == "f":
                np.testing.assert_allclose(ours[key].values, variable.values, rtol=1e-12, atol=0, err_msg=str(key))
            else:
                np.testing.assert_array_equal(ours[key].values, variable.values, err_msg=str(key))


@pytest.fixture(scope="module")
def expected(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    """All analyses of all tokens of the real run, saved by threads."""
    with dask.config.set(scheduler="threads"):
        return dx.save_results(dx.analyze(recording, tokens="all"), tmp_path_factory.mktemp("threads") / "r.zarr")


@contextmanager
def cluster(n_workers: int = 2, **options: Any) -> Iterator[Client]:
    made = LocalCluster(
        n_workers=n_workers, threads_per_worker=1, dashboard_address=":0", silence_logs="CRITICAL", **options
    )
    with made, Client(made) as client:
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A cluster of two processes that lives as long as this file."""
    with cluster() as client:
        yield client


@pytest.mark.parametrize("scheduler", ["processes", "synchronous"])
def test_other_schedulers_of_one_machine(
    recording: Path, tmp_path: Path, expected: xr.DataTree, scheduler: str
) -> None:
    some = SOME if scheduler == "synchronous" else ("phases", "freeze_predictors")  # each process imports and loads
    with dask.config.set(scheduler=scheduler, num_workers=2):
        assert_same(dx.save_results(dx.analyze(recording, analyses=some, tokens="all"), tmp_path / "r.zarr"), expected)


HELD = """
import os, sys, time
import dask, xarray as xr
import dask.array as da
import deadtok_xr as dx

def hold(block, folder):
    os.close(os.open(f"{folder}/{os.getpid()}", os.O_CREAT))
    time.sleep(600)

if __name__ == "__main__":
    folder = sys.argv[1]
    held = da.zeros(1).map_blocks(hold, folder=folder, meta=0)
    with dask.config.set(scheduler="processes", num_workers=1):
        dx.save_results(xr.DataTree.from_dict({"held": xr.Dataset({"x": ("step", held)})}), folder + "/r.zarr")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_worker_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HELD, tmp_path]) as parent:
        while not (found := [path for path in tmp_path.iterdir() if path.name.isdigit()]):
            assert parent.poll() is None
            time.sleep(0.05)
        parent.kill()
    worker = int(found[0].name)
    deadline = time.monotonic() + 60
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.usefixtures("client")
def test_cluster_gives_the_same_results(recording: Path, tmp_path: Path, expected: xr.DataTree) -> None:
    tree = dx.save_results(dx.analyze(recording, tokens="all"), tmp_path / "r.zarr")
    assert list(tree.children) == list(expected.children)
    assert_same(tree, expected)


@pytest.mark.usefixtures("client")
def test_derived_arrays_on_a_cluster(recording: Path, tmp_path: Path, expected: xr.DataTree) -> None:
    rec = dx.open_recording(recording, chunks={"step": 50, "token": 100})
    tree = dx.save_results(dx.analyze(rec, analyses=["motion"]), tmp_path / "r.zarr")
    for name in ("lattice_l1", "lattice_linf", "moved_dims", "n_invalid"):
        np.testing.assert_array_equal(tree["motion"][name], expected["motion"][name])


@pytest.mark.usefixtures("client")
def test_single_analysis_computes_on_the_cluster(recording: Path, expected: xr.DataTree) -> None:
    motion = dx.motion(dx.open_recording(recording)).compute()
    np.testing.assert_array_equal(motion["lattice_l2"], expected["motion"]["lattice_l2"])


class Accidents(WorkerPlugin):  # type: ignore[misc]
    """Each happens once, to whichever worker first begins with row 1, 2, ..."""

    def __init__(self, folder: Path, kinds: Sequence[str]) -> None:
        self.folder, self.kinds = folder, kinds

    def setup(self, worker: Any) -> None:
        self.worker = worker

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        if finish != "executing" or not (isinstance(key, tuple) and str(key[0]).startswith("pass-")):
            return
        what = dict(enumerate(self.kinds, start=1)).get(key[1])
        if what is None:
            return
        try:
            (self.folder / what).touch(exist_ok=False)
        except FileExistsError:
            return
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "out of memory":
            self.hoard = np.ones(2**27)  # 1 GiB, which the nanny sees and ends
            time.sleep(60)
        else:
            self.worker.loop.add_callback(self.worker.close, reason="closed by a test", nanny=True)


@pytest.mark.parametrize("kinds", [("killed", "lost for good"), ("out of memory",)])
def test_results_are_the_same_after_losing_workers(
    recording: Path, tmp_path: Path, expected: xr.DataTree, kinds: tuple[str, ...]
) -> None:
    with cluster(memory_limit="900MB" if "out of memory" in kinds else "auto") as client:
        before = set(client.run(os.getpid).values())
        client.register_plugin(Accidents(tmp_path, kinds))
        tree = dx.save_results(dx.analyze(recording, analyses=SOME, tokens="all"), tmp_path / "r.zarr")
        after = set(client.run(os.getpid).values())
    assert all((tmp_path / what).exists() for what in kinds)
    assert before - after
    assert_same(tree, expected)


class KillsAtEachBlock(WorkerPlugin):  # type: ignore[misc]
    """Ends every worker that begins with the second block of steps."""

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        if finish == "executing" and isinstance(key, tuple) and str(key[0]).startswith("pass-") and key[1] == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def test_block_that_kills_workers_is_a_sentence_and_resumes_on_a_cluster_that_adapts(
    recording: Path, tmp_path: Path, expected: xr.DataTree, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["analyze", recording, "-o", tmp_path / "r.zarr", "--tokens", "all", "--only", "motion", "--scheduler"]
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), cluster(1) as client:
        client.register_plugin(KillsAtEachBlock(), name="kills")
        status, err = deadtok(capsys, *words, client.scheduler.address)
        assert status == 1
        assert "the workers failed, KilledWorker" in err.splitlines()[-1]
        assert "the same command" in err.splitlines()[-1]
        client.wait_for_workers(1)
        client.unregister_worker_plugin("kills")
        client.cluster.adapt(minimum=1, maximum=2, interval="200ms")
        status, err = deadtok(capsys, *words, client.scheduler.address)
        assert status == 0, err
    assert_same(dx.open_results(tmp_path / "r.zarr"), expected)


ENDS = """
import os, pathlib, signal
from distributed import WorkerPlugin

struck = pathlib.Path("{folder}/struck")

class Ends(WorkerPlugin):
    def transition(self, key, start, finish, **kwargs):
        if finish == "executing" and isinstance(key, tuple) and str(key[0]).startswith("pass-") and key[1] == 1:
            struck.touch()
            os.kill(os.getpid(), signal.SIGKILL)

async def dask_setup(worker):
    if struck.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    await worker.plugin_add(Ends())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_workers_that_cannot_be_started_again_are_not_awaited_for_ever(
    recording: Path, tmp_path: Path, expected: xr.DataTree, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The worker is killed at the second block, and then whenever it starts; the same command resumes without it."""
    (tmp_path / "ends.py").write_text(ENDS.format(folder=tmp_path))
    monkeypatch.setattr(engine_cluster, "_PATIENCE_S", 0.5)
    words = ["analyze", recording, "-o", tmp_path / "r.zarr", "--tokens", "all", "--only", "motion", "-q"]
    with dask.config.set({"distributed.worker.preload": [str(tmp_path / "ends.py")]}):
        status, err = deadtok(capsys, *words, "--workers", "1")
        assert status == 1, err
        assert "all worker processes ended, and none could be started again within" in err.splitlines()[-1]
        assert "the same command" in err.splitlines()[-1]
        status, err = deadtok(capsys, *words, "--workers", "1")
        assert status == 1, err
        assert "the worker processes could not be started (" in err.splitlines()[-1]
    status, err = deadtok(capsys, *words)
    assert status == 0, err
    assert_same(dx.open_results(tmp_path / "r.zarr"), expected)


def test_graph_sent_to_the_scheduler_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph has a few tasks per row, and its size does not depend on the number of tokens times that of rows."""
    sizes, made = [], save.write_all

    def weighed(*given: Any) -> Any:
        task = made(*given)
        sizes.append((len(task.dask), [len(cloudpickle.dumps(part)) for part in task.dask.values()]))
        raise InterruptedError  # the graph is enough

    monkeypatch.setattr(save, "write_all", weighed)
    for n, tokens in enumerate((20, 5000)):
        path = testing.synthetic_recording(tmp_path / f"{n}.zarr", steps=1000, tokens=tokens, dims=2)
        with pytest.raises(InterruptedError):
            dx.save_results(dx.analyze(path, tokens="all"), tmp_path / f"r{n}.zarr")
    (few, small), (many, large) = sizes
    assert few == many < 200 * 8  # for each row a few of every variable that is put together from small parts
    heavy = [size for size in large if size > 20_000]  # what names every token: the sweep, and what is made at the end
    assert len(heavy) <= 2
    assert sum(large) < sum(small) + 10 * 5000 * 8  # one list of the tokens, not one for each row


def test_results_are_written_by_the_tasks_that_compute_them(recording: Path, tmp_path: Path) -> None:
    """What a task of a row passes on is nothing beside what it writes."""
    passed: dict[str, int] = {}

    def note(key: Any, result: Any, *rest: Any) -> None:
        passed[str(key)] = sizeof(result)

    with Callback(posttask=note), dask.config.set(scheduler="threads"):
        tree = dx.save_results(dx.analyze(recording, tokens="all"), tmp_path / "r.zarr")
    written = sum(node.to_dataset().nbytes for node in tree.children.values())
    rows = {key: size for key, size in passed.items() if key.startswith("('pass-")}
    assert len(rows) >= 3
    assert max(passed.values()) < written / 10
    assert sum(rows.values()) < written / 5


def deadtok(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    status = cli.status(lambda: cli.cli([str(w) for w in words], prog_name="deadtok", standalone_mode=False))
    return status, capsys.readouterr().err


def test_command_with_workers(
    recording: Path, tmp_path: Path, expected: xr.DataTree, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["analyze", recording, "-o", tmp_path / "r.zarr", "--tokens", "all", "--only", ",".join(SOME)]
    status, err = deadtok(capsys, *words, "--workers", "2")
    assert status == 0, err
    assert "analysing: 100% after" in err
    assert_same(dx.open_results(tmp_path / "r.zarr"), expected)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--workers", "0"], "--workers 0: expected 1 or more"),
        (["--workers", "2", "--scheduler", "processes"], "exclude each other: give one"),
        (["--workers", "two"], "'two' is not a valid int"),
    ],
)
def test_invalid_numbers_of_workers_are_refused(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    status, err = deadtok(capsys, "analyze", recording, "-o", tmp_path / "r", *options)
    assert status == 2
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A scheduler without workers, in a process of its own: its address, and the file that tells it to workers."""
    folder = tmp_path_factory.mktemp("scheduler")
    said = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", said]
    with _process(["-m", "distributed.cli.dask_scheduler", *options], folder / "home"):
        _wait(said.exists)
        yield json.loads(said.read_text())["address"], said


@contextmanager
def worker(scheduler: tuple[str, Path], folder: Path, before: Sequence[str] = (), **environment: str) -> Iterator[str]:
    """A worker of the scheduler, as a process of its own in a folder of its own; the scheduler's address."""
    address, said = scheduler
    options = ["--scheduler-file", said, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    with (
        _process(["-m", "distributed.cli.dask_worker", *options], folder, before, **environment),
        Client(address, timeout=60) as client,
    ):
        client.wait_for_workers(1, timeout=60)
        yield address
    with Client(address, timeout=60) as client:
        _wait(lambda: not client.scheduler_info()["workers"])


@contextmanager
def _process(command: list[Any], folder: Path, before: Sequence[str] = (), **environment: str) -> Iterator[None]:
    folder.mkdir()
    words = [str(word) for word in (*before, sys.executable, *command)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "10", **environment}
    with (folder / "log").open("wb") as log, subprocess.Popen(words, cwd=folder, env=env, stdout=log, stderr=log) as it:
        try:
            yield
        finally:
            it.terminate()
            it.wait(20)


def _wait(ready: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_workers_with_other_versions_are_refused(
    scheduler: tuple[str, Path], recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None at all; those with another version of the package; one that does not have it."""
    words = ["analyze", recording, "-o", tmp_path / "r.zarr", "--scheduler", scheduler[0]]
    status, err = deadtok(capsys, *words)
    assert status == 2
    assert "has no workers: start some" in err
    other = tmp_path / "other"
    shutil.copytree(ROOT / "deadtok_xr", other / "deadtok_xr", ignore=shutil.ignore_patterns("__pycache__"))
    home = other / "deadtok_xr" / "__init__.py"
    version = home.with_name("_version.py")
    version.write_text(version.read_text().replace(f'"{dx.__version__}"', '"0.0.1"'))
    with worker(scheduler, tmp_path / "a", PYTHONPATH=str(other)):
        status, err = deadtok(capsys, *words)
    assert status == 2
    assert f"has deadtok_xr 0.0.1, and this process has {dx.__version__}: install the same" in err
    home.write_text("raise ImportError('not here')")
    with worker(scheduler, tmp_path / "b", PYTHONPATH=str(other)):
        status, err = deadtok(capsys, *words)
    assert status == 2
    assert "cannot import deadtok_xr" in err
    assert not (tmp_path / "r.zarr").exists()


def can_hide() -> bool:
    """Whether a process can be given folders of its own here."""
    tried = subprocess.run(["unshare", "-r", "-m", "true"], check=False, capture_output=True)
    return tried.returncode == 0


@pytest.mark.skipif(shutil.which("unshare") is None or not can_hide(), reason="needs a file system of its own")
@pytest.mark.parametrize("hidden", ["recording", "results"])
def test_workers_without_access_to_the_store_are_refused(
    scheduler: tuple[str, Path], recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], hidden: str
) -> None:
    (tmp_path / "results").mkdir()
    folder = recording.parent if hidden == "recording" else tmp_path / "results"
    blind = ("unshare", "-r", "-m", "sh", "-c", f'mount -t tmpfs none "{folder}" && exec "$@"', "sh")
    where = tmp_path / "results" / "r.zarr"
    with worker(scheduler, tmp_path / "worker", before=blind) as address:
        status, err = deadtok(capsys, "analyze", recording, "-o", where, "--only", "motion", "--scheduler", address)
    assert status == 2
    assert "the worker tcp://" in err
    assert (
        f"sees nothing at {recording if hidden == 'recording' else where}, where the {hidden} lie: workers need" in err
    )
    with pytest.raises(IncompleteStoreError):
        dx.open_results(where)


@pytest.mark.skipif(shutil.which("unshare") is None or not can_hide(), reason="needs a file system of its own")
def test_workers_without_write_permission_are_refused(
    scheduler: tuple[str, Path], recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    script = f'mount --bind "{folder}" "{folder}" && mount -o remount,bind,ro "{folder}" && exec "$@"'
    words = ["analyze", recording, "-o", folder / "r.zarr", "--only", "motion", "--scheduler"]
    with worker(scheduler, tmp_path / "worker", before=("unshare", "-r", "-m", "sh", "-c", script, "sh")) as address:
        status, err = deadtok(capsys, *words, address)
    assert status == 2
    assert "deadtok: the worker tcp://" in err
    assert f"cannot write {folder / 'r.zarr'} (Read-only file system): let it write there, or choose another" in err
    assert len(err.splitlines()) <= 2  # the address of the dashboard


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_resumes_after_the_disk_of_a_worker_was_full(
    recording: Path, tmp_path: Path, expected: xr.DataTree, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file of a worker may grow beyond a size, as on a full disk; the same command resumes when it may."""
    where = tmp_path / "r.zarr"
    words = ["analyze", recording, "-o", where, "--tokens", "all", "--only", "census,kinematics", "--scheduler"]
    client.run(_limit, 7000)
    try:
        status, err = deadtok(capsys, *words, client.scheduler.address, "-q")
    finally:
        client.run(_limit, None)
    assert status == 1
    assert f"deadtok: {where} cannot be written by a worker: File too large; free disk space, or choose another" in err
    assert f"{where} is left incomplete and will not open: the same command" in err
    assert len(err.splitlines()) == 1
    with pytest.raises(IncompleteStoreError, match="the same command, .* resumes"):
        dx.open_results(where)
    status, err = deadtok(capsys, *words, client.scheduler.address)
    assert status == 0, err
    assert f"{where} resumes: " in err
    assert_same(dx.open_results(where), expected)


def _limit(size: int | None) -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def test_items_are_mapped_in_order_on_threads_and_workers(client: Client) -> None:
    from deadtok_xr.engine.cluster import map_items

    assert list(map_items(str, range(20))) == list(map(str, range(20)))
    with dask.config.set(scheduler="threads"):
        here = list(map_items(lambda i: (i, threading.get_ident()), range(20)))
    assert [i for i, _ in here] == list(range(20))


@pytest.mark.usefixtures("client")
def test_verification_on_a_cluster(recording: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(recording, tmp_path / "copy.zarr"))
    good = dx.verify(copy)
    assert good.n_chunks > 20
    assert not good.problems
    chunk = copy / "W" / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    (problem,) = dx.verify(copy).problems
    assert "step positions 128..255" in problem


def test_json_for_scripts(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: str | Path) -> dict[str, Any]:
        assert cli.status(lambda: cli.cli([str(w) for w in words], prog_name="deadtok", standalone_mode=False)) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    said = printed("info", recording, "--json")
    assert (said["n_steps"], said["n_tokens"], said["complete"]) == (301, 256, True)
    assert said["variables"]["W"]["shape"] == [301, 256, 16]
    assert printed("verify", recording, "--json", "-q")["problems"] == []
    said = printed("analyze", recording, "-o", tmp_path / "r", "--only", "motion", "--json", "-q")
    assert said == {"results": str(tmp_path / "r"), "groups": ["motion"], "left_out": {}, "figures": []}
