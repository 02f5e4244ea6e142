"""Kill commands at random moments, repeat them, and compare what they leave with what an undisturbed run leaves.

    python -m tests.soak_kills --count 300 --seed 1

Each attempt runs in a process that is forked from this one, in which all modules and kernels are loaded, and is killed
by SIGKILL: half of them after a random time, the others at a random one of the calls that change the disk (before or
after it). Its own workers must then end by themselves. With probability ``--power`` the kill is a power cut: every file
whose present content was never flushed to the disk (`os.fsync`, `os.sync`) is then kept, cut, zeroed or dropped at
random. After every kill, what is left is checked: what passes for complete must be the same as an undisturbed run's,
and the steps of a recording that can be read must have the right values. Then the same command is given again, until it
has been killed a few times, and at last to its end.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import dask
import numpy as np
import xarray as xr
import zarr
from blake3 import blake3

import deadtok_xr as dx
from deadtok_xr import testing
from deadtok_xr.cli import cli, status
from deadtok_xr.conversion.verify import verify
from deadtok_xr.store import manifest, manifest_write, motion_index

TIMES = ("created", "analysed", "labelled")
"""Attributes in which two undisturbed runs differ."""
RESUMED = ("resumed", "self_check")
"""Attributes of a Recorder that say when it was resumed, and which update it checked last."""
REFUSED = (ValueError, OSError)
"""How a store that is not whole is refused."""
LONGEST = 300.0
"""Seconds after which a command is taken to wait for ever."""
MOST_KILLS = 8
"""Kills of one work before it is done to its end."""
TRAINED, CHECKPOINT_EVERY = 160, 24
MEMORY = 2 * 16 * 3 * 48 * 8 * 4
"""Bytes of a Recorder's two buffers, of 16 steps, which are also its chunks."""
ANALYSES = ("--only", "motion,phases", "-q")
FORKED = {"multiprocessing.context": "fork", "distributed.worker.multiprocessing-method": "fork"}
"""How workers start: a new interpreter would take seconds, and nothing of theirs is written meanwhile."""


# --- in the process that is killed ----------------------------------------------------------------


class Watched:
    """Counts the calls that change the disk, kills at one of them, and notes what has been flushed to the disk."""

    def __init__(self, log: Path, folder: Path, at: float | None) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._folder, self._at, self._process, self.n = folder, at, os.getpid(), 0
        for name in ("replace", "rename", "unlink", "mkdir", "rmdir"):
            setattr(os, name, self._counting(getattr(os, name)))
        self._fsync, self._sync = os.fsync, os.sync
        os.fsync, os.sync = self._counting(self._flush), self._counting(self._flush_all)

    def _counting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.n += 1
            strikes = self._at is not None and self.n == int(self._at) and os.getpid() == self._process
            if strikes and self._at % 1 < 0.5:
                os.kill(self._process, signal.SIGKILL)
            result = real(*args, **options)
            if strikes:
                os.kill(self._process, signal.SIGKILL)
            return result

        return call

    def _flush(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}")
        if path.is_file():
            self._note(path)

    def _flush_all(self) -> None:
        for path in self._folder.rglob("*"):
            try:
                if path.is_file():
                    self._note(path)
            except OSError:
                continue

    def _note(self, path: Path) -> None:
        os.write(self._log, entry(path).encode())


def entry(path: Path) -> str:
    """Return the line of the log that says that a file has been flushed."""
    return f"{path.stat().st_ino} {blake3(path.read_bytes()).hexdigest()}\n"


def in_child(
    work: Callable[[], int],
    folder: Path,
    log: Path,
    at: float | None,
    seconds: float | None,
    ends_workers: bool = False,
    victim: str = "command",
) -> int | None:
    """Run a function in a forked process; return its status, or None if it was killed.

    Its workers must end by themselves, unless ``ends_workers``. If the ``victim`` is a "worker", one of them is killed
    instead, and the function must end by itself.

    Raises
    ------
    AssertionError
        If it does not end within `LONGEST`.
    """
    process = os.fork()
    if process == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            with (folder.parent / "out").open("a") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            watched = Watched(log, folder, at)
            code = work()
            (folder.parent / "calls").write_text(str(watched.n))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    began = time.monotonic()
    until = None if seconds is None else began + seconds
    while True:
        done, how = os.waitpid(process, os.WNOHANG)
        if done and os.WIFSIGNALED(how):
            with suppress(ProcessLookupError):
                if ends_workers:
                    os.killpg(process, signal.SIGKILL)
            wait_for_workers(process)
            return None
        if done:
            return os.waitstatus_to_exitcode(how)
        if time.monotonic() - began > LONGEST:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise AssertionError("it does not end")
        if until is not None and time.monotonic() > until:
            workers = [pid for pid in processes_of(process) if pid != process] if victim == "worker" else [process]
            for pid in workers[-1:]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            until = None
        time.sleep(0.002)


def processes_of(group: int) -> list[int]:
    """Return the processes of a group, but for zombies."""
    return sorted(int(pid.name) for pid in Path("/proc").iterdir() if pid.name.isdigit() and is_of(pid, group))


def wait_for_workers(group: int) -> None:
    """Wait until no process of a group is left.

    Raises
    ------
    AssertionError
        If that takes more than 30 s.
    """
    until = time.monotonic() + 30
    while left := processes_of(group):
        if time.monotonic() > until:
            os.killpg(group, signal.SIGKILL)
            raise AssertionError(f"{len(left)} processes are left")
        time.sleep(0.01)


def is_of(process: Path, group: int) -> bool:
    """Return whether a folder of /proc is that of a process of a group, and no zombie."""
    try:
        state, _, its_group, *_ = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return int(its_group) == group and state != "Z"


def cut_power(folder: Path, log: Path, rng: random.Random, history: list[str]) -> int:
    """Damage the files whose content was not flushed; return how many."""
    flushed = {tuple(line.split()) for line in log.read_text().splitlines()} if log.exists() else set()
    n = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "lock"):
        content = path.read_bytes()
        if tuple(entry(path).split()) in flushed:
            continue
        fate = rng.choice(["kept", "kept", "cut", "zeroed", "emptied", "dropped"])
        n += fate != "kept"
        if fate != "kept":
            history.append(f"{fate} {path.relative_to(folder)}")
        if fate == "dropped":
            path.unlink()
        elif fate != "kept":
            kept = rng.randrange(len(content) + 1) if fate != "emptied" else 0
            path.write_bytes(content[:kept] + (bytes(len(content) - kept) if fate == "zeroed" else b""))
    return n


# --- the works ------------------------------------------------------------------------------------


def deadtok(*words: object) -> Callable[[], int]:
    return lambda: status(lambda: cli([str(w) for w in words], prog_name="deadtok", standalone_mode=False))


def contents(path: Path, *, resumed: bool = False) -> dict[str, Any]:
    """Return the files of a store or the bytes of a file, without times.

    Of a Recorder that was ``resumed`` also without what that changes: two attributes, their digests in the manifest
    (its arrays and chunks are compared), and the motion index, which a power cut damages and a store can do without.
    """
    if path.is_file():
        return {"": path.read_bytes()}
    found: dict[str, Any] = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    if resumed:
        found = {name: content for name, content in found.items() if not name.startswith(f"{motion_index.GROUP}/")}
        found[manifest.KEY] = members(path)
    for name in [name for name in found if name.endswith("zarr.json")]:
        found[name] = json.loads(found[name])
        for changing in (*TIMES, *(RESUMED if resumed else ())):
            found[name]["attributes"].pop(changing, None)
    return found


def members(path: Path) -> Any:
    """Return the arrays and chunks that a manifest lists."""
    listed = manifest.load(zarr.open_group(str(path), mode="r"))
    return listed and {
        name: [(state.facts, state.attributes, state.entries.tolist()) for state in listed.states(name)]
        for name in listed.members
    }


@dataclass
class Work:
    """A command whose killing is tried.

    Attributes
    ----------
    name
        For the report.
    begin
        Prepares the folder in which the command works.
    run
        The command, of that folder.
    result
        What it writes, in the folder.
    check
        Checks what a kill has left, given the result of an undisturbed run.
    share
        In which share of the rounds it is killed.
    has_workers
        Whether it has worker processes, one of which is killed instead of the command in a quarter of the attempts.
    ends_workers
        Whether its workers are killed too: those of distributed, if they are forked at the same time, hold each other's
        ends of the pipes by which they notice that their parent has ended.
    life, calls
        Seconds of an undisturbed run, and its calls that change the disk.
    """

    name: str
    begin: Callable[[Path], None]
    run: Callable[[Path], Callable[[], int]]
    result: str
    check: Callable[[Path, Path], None]
    share: float = 1.0
    has_workers: bool = False
    ends_workers: bool = False
    life: float = 0.0
    calls: int = 1


def same(path: Path, expected: Path, *, resumed: bool = False) -> None:
    ours, theirs = contents(path, resumed=resumed), contents(expected, resumed=resumed)
    different = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    if different:
        raise AssertionError(f"{path} differs in {different[:5]}")


def whole_or_refused(open_: Callable[[Path], Any]) -> Callable[[Path, Path], None]:
    """What opens must be whole."""

    def check(path: Path, expected: Path) -> None:
        try:
            open_(path)
        except REFUSED:
            return
        same(path, expected)

    return check


def whole_file(path: Path, expected: Path) -> None:
    if path.exists():
        same(path, expected)


def opens(path: Path, expected: Path) -> None:
    """A store that is labelled, or gets a manifest, always opens, and its data stay."""
    assert verify(path).problems == [], verify(path).problems
    np.testing.assert_array_equal(dx.open_recording(path).W.values, dx.open_recording(expected).W.values)


def recorded(path: Path, expected: Path) -> None:
    """The steps of a recording that can be read have the right values."""
    theirs = dx.open_recording(expected)
    try:
        ours = dx.open_recording(path)
        assert ours.sizes["step"] == theirs.sizes["step"]
    except REFUSED:
        try:
            ours = dx.open_recording(path, partial=True)
        except REFUSED:
            return
    names = ("W", "grad", "exp_avg", "step", "lr")
    known = [name for name in names if name in ours]
    assert len(known) == len(names) or ours.step.values.tolist() == [0], known  # the others begin with the first update
    same_beginning(ours, theirs, known)


def monitored(path: Path, expected: Path) -> None:
    """What a Monitor has written always opens, and its updates have the right values."""
    if not path.exists():
        return
    theirs, ours = dx.open_monitor(expected), dx.open_monitor(path)
    assert not ours.attrs["complete"] or ours.sizes == theirs.sizes
    same_beginning(ours, theirs, list(theirs.variables))


def same_beginning(ours: xr.Dataset, theirs: xr.Dataset, names: Sequence[str]) -> None:
    """Check that the steps of a dataset have the values of the first steps of another."""
    theirs = theirs.isel(step=slice(ours.sizes["step"]))
    for name in names:
        np.testing.assert_array_equal(ours[name].values, theirs[name].values, name)


def train(
    folder: Path, steps: Callable[[Path], Sequence[int]], watch: Callable[..., AbstractContextManager[Any]]
) -> Callable[[], int]:
    """Return a training that resumes from the newest checkpoint up to which it has been watched.

    Parameters
    ----------
    folder
        Where the checkpoints and the store are.
    steps
        Returns the steps of a store; raises one of `REFUSED` if it cannot be read.
    watch
        Returns a Recorder or Monitor of the model, optimizer, store, first step and further options.
    """

    def run() -> int:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = torch.nn.Embedding(48, 8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        path, first = folder / "run.zarr", 0
        try:
            last = max(steps(path), default=0)
        except REFUSED:
            last = -1
        checkpoints = sorted((p for p in folder.glob("*.pt") if int(p.stem) <= last), key=lambda p: int(p.stem))
        if checkpoints:
            state = torch.load(checkpoints[-1])
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            first = int(checkpoints[-1].stem)
        with watch(model, optimizer, path, first, **({"resume": True} if checkpoints else {"overwrite": True})):
            for step in range(first + 1, TRAINED + 1):
                optimizer.param_groups[0]["lr"] = 1e-2 / step
                ids = torch.randint(0, 40, (16,), generator=torch.Generator().manual_seed(step))
                optimizer.zero_grad()
                (model(ids) ** 2).sum().backward()
                optimizer.step()
                if step % CHECKPOINT_EVERY == 0:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    with (folder / "new").open("wb") as file:
                        torch.save(state, file)
                        file.flush()
                        os.fsync(file.fileno())
                    (folder / "new").replace(folder / f"{step}.pt")
        return 0

    return run


def record(folder: Path) -> Callable[[], int]:
    """Return a training with a Recorder."""

    def watch(model: Any, optimizer: Any, path: Path, first: int, **options: Any) -> AbstractContextManager[Any]:
        options |= {"variables": ["W", "grad", "exp_avg"], "flush_every": 0.02, "first_step": first, "memory": MEMORY}
        return dx.Recorder(model.weight, optimizer, path, **options)

    return train(folder, lambda path: dx.open_recording(path, partial=True).step.values.tolist(), watch)


def monitor(folder: Path) -> Callable[[], int]:
    """Return a training with a Monitor that writes often, and small chunks."""

    def watch(model: Any, optimizer: Any, path: Path, first: int, **options: Any) -> AbstractContextManager[Any]:
        from deadtok_xr.monitor import growing_store
        from deadtok_xr.monitor import monitor as module

        module.FLUSH_SECONDS, growing_store._CHUNK_BYTES = 0.02, 2**13
        return dx.Monitor(model, optimizer, path, every=4, **options)

    return train(folder, lambda path: dx.open_monitor(path).step.values.tolist(), watch)


def make_inputs(inputs: Path) -> int:
    """Make what the works read."""
    recording = inputs / "recording.zarr"
    testing.synthetic_recording(recording, steps=500, tokens=40, dims=8)
    dx.export(recording, inputs / "source.npz")
    (inputs / "texts.json").write_text(json.dumps([f"t{i}" for i in range(40)]))
    (inputs / "ids.txt").write_text("3 5 8")
    shutil.copytree(recording, inputs / "older.zarr")
    manifest_write.remove(zarr.open_group(str(inputs / "older.zarr"), mode="r+"))
    shutil.rmtree(inputs / "older.zarr" / manifest.GROUP)
    return 0


def works(inputs: Path) -> list[Work]:
    """List the works."""
    recording = inputs / "recording.zarr"

    def convert(folder: Path) -> Callable[[], int]:
        return deadtok("convert", inputs / "source.npz", folder / "s.zarr", "-q")

    def analyse(*options: str) -> Callable[[Path], Callable[[], int]]:
        return lambda folder: deadtok("analyze", recording, "-o", folder / "r.zarr", *ANALYSES, *options)

    def label(folder: Path) -> Callable[[], int]:
        words = ("--dead-ids", inputs / "ids.txt", "--token-text", inputs / "texts.json", "--overwrite")
        return deadtok("label", folder / "s.zarr", *words)

    def export(folder: Path) -> Callable[[], int]:
        return deadtok("export", recording, folder / "x.h5", "-q")

    def add_manifest(folder: Path) -> Callable[[], int]:
        return deadtok("verify", folder / "s.zarr", "--write-manifest", "-q")

    def copy(name: str) -> Callable[[Path], None]:
        def begin(folder: Path) -> None:
            shutil.copytree(inputs / name, folder / "s.zarr")

        return begin

    def nothing(folder: Path) -> None:
        pass

    results = whole_or_refused(dx.open_results)
    return [
        Work("convert", nothing, convert, "s.zarr", whole_or_refused(dx.open_recording)),
        Work("analyze", nothing, analyse(), "r.zarr", results),
        Work("record", nothing, record, "run.zarr", recorded),
        Work("monitor", nothing, monitor, "run.zarr", monitored),
        Work("label", copy("recording.zarr"), label, "s.zarr", opens),
        Work("export", nothing, export, "x.h5", whole_file),
        Work("add a manifest", copy("older.zarr"), add_manifest, "s.zarr", opens),
        Work("processes", nothing, analyse("--scheduler", "processes"), "r.zarr", results, has_workers=True),
        Work(
            "workers",
            nothing,
            analyse("--workers", "2"),
            "r.zarr",
            results,
            share=0.3,
            has_workers=True,
            ends_workers=True,
        ),
    ]


# --- the soak -------------------------------------------------------------------------------------


@dataclass
class Soak:
    """What happened, by work.

    Attributes
    ----------
    kills
        Commands that were killed, or that ended with a sentence because a worker was.
    cuts
        Kills that were power cuts.
    survived
        Commands that lost a worker, or had none any more, and came to their end.
    finished
        Works that were done to their end and compared.
    damaged
        Files that power cuts damaged.
    faults
        What went wrong.
    """

    kills: Counter[str] = field(default_factory=Counter)
    cuts: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    damaged: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{name}: {n} kills, {self.cuts[name]} of them power cuts; {self.finished[name]} times to the end"
            + (f", {self.survived[name]} times without a worker that was killed" if self.survived[name] else "")
            for name, n in self.kills.items()
        ]
        total = f"{self.kills.total()} kills, {self.cuts.total()} of them power cuts that damaged {self.damaged} files"
        return "\n".join([*lines, f"{total}; {self.finished.total()} works finished; {len(self.faults)} faults"])


def load(inputs: Path) -> None:
    """Import what the works import, and load their kernels, so that the processes that are forked need not.

    Raises
    ------
    AssertionError
        If this starts threads other than those of Zarr, which starts others after a fork.
    """
    for name in (
        "h5py",
        "torch._dynamo",
        "distributed",
        "distributed.deploy",
        "deadtok_xr.recorder.recorder",
        "deadtok_xr.monitor.monitor",
    ):
        importlib.import_module(name)
    place = new_folder(inputs / "loading")
    one_thread = dask.config.set(scheduler="synchronous")
    with (place / "out").open("w") as out, redirect_stdout(out), redirect_stderr(out), one_thread:
        for work in works(inputs):
            if work.name in ("convert", "label", "export"):
                work.begin(place)
                assert work.run(place)() == 0, work.name
                work.check(place / work.result, place / work.result)
                new_folder(place)
        options = ("--scheduler", "synchronous", *ANALYSES)
        assert deadtok("analyze", inputs / "recording.zarr", "-o", place / "r.zarr", *options)() == 0
    shutil.rmtree(place)
    others = [t.name for t in threading.enumerate() if not t.name.startswith(("MainThread", "zarr_io", "asyncio_"))]
    assert not others, others
    gc.freeze()  # a collection in a forked process would copy the memory of all objects


def soak(folder: Path, count: int, seed: int, power: float, only: str = "") -> Soak:
    """Kill so many times."""
    rng, found = random.Random(seed), Soak()
    inputs = folder / "inputs"
    inputs.mkdir()
    must(lambda: make_inputs(inputs), inputs)
    load(inputs)
    chosen = [work for work in works(inputs) if not only or work.name in only.split(",")]
    for work in chosen:
        place = new_folder(folder / work.name / "undisturbed")
        work.begin(place)
        began = time.monotonic()
        must(work.run(place), place)
        work.life = time.monotonic() - began
        work.calls = int((place.parent / "calls").read_text())
    while found.kills.total() < count:
        for work in (work for work in chosen if rng.random() < work.share):
            kill_and_repeat(work, folder / work.name, rng, power, found)
        print(str(found).splitlines()[-1], flush=True)
    return found


def kill_and_repeat(work: Work, folder: Path, rng: random.Random, power: float, found: Soak) -> None:
    """Kill a work a few times, check what is left each time, and at last let it come to its end."""
    place, undisturbed, log = new_folder(folder / "killed"), folder / "undisturbed", folder / "log"
    log.unlink(missing_ok=True)
    result, expected = place / work.result, undisturbed / work.result
    work.begin(place)
    log.write_text("".join(entry(path) for path in place.rglob("*") if path.is_file()))
    history: list[str] = []
    try:
        for _ in range(rng.randint(1, MOST_KILLS)):
            aimed, cut = rng.random() < 0.5, rng.random() < power
            at = rng.uniform(1, work.calls + 1) if aimed else None
            seconds = None if aimed else rng.uniform(0, work.life * 1.05)
            victim = "worker" if work.has_workers and not aimed and rng.random() < 0.5 else "command"
            status = in_child(work.run(place), place, log, at, seconds, work.ends_workers, victim)
            if status == 0:
                found.survived[work.name] += victim == "worker"
                break
            assert status is None or "deadtok: " in last_line(place), f"status {status}: {last_line(place)}"
            found.kills[work.name] += 1
            history.append(f"{victim} killed at {at or seconds}")
            if cut:
                found.cuts[work.name] += 1
                found.damaged += cut_power(place, log, rng, history)
            must(lambda: work.check(result, expected) or 0, place)
        for _ in range(2):  # the second time it is complete already
            must(work.run(place), place, log)
        must(lambda: same(result, expected, resumed=work.name == "record") or 0, place)
        left = {p.name for p in place.iterdir()} - {p.name for p in undisturbed.iterdir()}
        assert not left, f"{left} is left"
        found.finished[work.name] += 1
    except AssertionError as error:
        found.faults.append(f"{work.name}: {'; '.join(history)}: {error}")
        click.echo(found.faults[-1])
        place.rename(folder / f"fault{len(found.faults)}")


def last_line(place: Path) -> str:
    """Return the last line that a work has printed."""
    out = place.parent / "out"
    return (out.read_text().splitlines() or [""])[-1] if out.exists() else ""


def must(function: Callable[[], Any], place: Path, log: Path | None = None) -> None:
    """Run a function in a child, and raise an AssertionError with what it printed unless it succeeds."""
    out = place.parent / "out"
    out.unlink(missing_ok=True)
    code = in_child(function, place, log or place.parent / "log", None, None)
    assert code == 0, f"status {code}: {out.read_text()[-1500:] if out.exists() else ''}"


def new_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


@click.command()
@click.option("--count", default=100, show_default=True, help="Number of kills.")
@click.option("--seed", default=0, show_default=True)
@click.option("--power", default=0.5, show_default=True, help="Share of the kills that are power cuts.")
@click.option("--only", default="", help="These works alone, by their names, with commas between.")
@click.option("--keep", is_flag=True, help="Keep the folder.")
def main(count: int, seed: int, power: float, only: str, keep: bool) -> None:
    """Kill commands, repeat them, and compare what they leave."""
    folder = Path(tempfile.mkdtemp(prefix="soak-kills-"))
    with dask.config.set(FORKED):
        found = soak(folder, count, seed, power, only)
    click.echo(str(found))
    if not keep:
        shutil.rmtree(folder)
    if found.faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
