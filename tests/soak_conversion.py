"""Kill conversions many times, at random moments, resume them, and compare the final stores.

    python -m tests.soak_conversion --kills 100

starts `deadtok convert`, kills it (SIGKILL), starts the same command again, until it has been killed so often;
whenever a conversion gets to its end, its store is compared bit for bit with an undisturbed one, and the next
begins. Half of the moments are drawn over the life of the process, half over the chunks that it writes.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import click
import h5py
import numpy as np

from deadtok_xr.store.in_progress import InProgress, Journal, progress_path

REPOSITORY = Path(__file__).parents[1]


@dataclass
class Soak:
    """What happened.

    Attributes
    ----------
    kills
        In which phase how many: "start" before anything is written, "begun" before the first chunk, "writing"
        between the first chunk and the last, "end" after that, "done" after the process had come to its end.
    finished
        How many conversions came to their end.
    n_chunks
        Chunks of one conversion.
    written
        Chunks that were written in all.
    torn
        Chunks that a kill left half written.
    wrong
        Files that differ from the undisturbed store; none.
    """

    kills: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    n_chunks: int = 0
    written: int = 0
    torn: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        phases = ", ".join(f"{n} {phase}" for phase, n in self.kills.items())
        again = self.written - self.finished * self.n_chunks + self.torn
        return (
            f"{self.kills.total()} kills ({phases}); {self.finished} conversions finished, {len(self.wrong)} files "
            f"wrong; {self.written} chunks written and {self.torn} half written, so {again} were "
            f"written again, of {self.n_chunks} per conversion"
        )


def files_of(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def differences(store: Path, undisturbed: Path) -> list[str]:
    """Return the files in which two stores differ, except for their time of creation."""
    found = []
    a, b = files_of(store), files_of(undisturbed)
    for files in (a, b):
        root = json.loads(files["zarr.json"])
        del root["attributes"]["created"]
        files["zarr.json"] = json.dumps(root).encode()
    for name in sorted({*a, *b}):
        if a.get(name) != b.get(name):
            found.append(name)
    return found


def write_source(path: Path, megabytes: int) -> int:
    """A recording of two variables that takes a while; returns how many chunks of them there will be."""
    rng = np.random.default_rng(0)
    n_steps = max(1, round(megabytes * 1e6 / (2 * 400 * 64 * 2) / 128)) * 128
    with h5py.File(path, "w") as file:
        for name in ("W", "grad_W"):
            data = file.create_dataset(name, (n_steps, 400, 64), "u2", chunks=(64, 400, 64), compression=1)
            for start in range(0, n_steps, 128):
                data[start : start + 128] = rng.integers(0x3C00, 0x3E00, (128, 400, 64), dtype=np.uint16)
        file["dead_mask"] = np.arange(400) % 8 == 0
    return 2 * (n_steps // 128) * 8


def command(source: Path, dest: Path) -> list[str]:
    return [sys.executable, "-m", "deadtok_xr", "convert", str(source), str(dest), "-q"]


def n_written(dest: Path) -> int:
    """How many recorded chunks are in the store."""
    return sum((dest / key).is_file() for key in Journal(progress_path(dest)).parts())


def attempt(source: Path, dest: Path, at: float, chunks: int | None, soak: Soak) -> bool:
    """Start, and kill after ``at`` seconds, counted from when so many chunks are written; whether it was done."""
    before = n_written(dest)
    with subprocess.Popen(command(source, dest), cwd=REPOSITORY, stdout=subprocess.DEVNULL) as process:
        while chunks is not None and process.poll() is None and n_written(dest) < chunks:
            time.sleep(0.001)
        try:
            process.wait(at)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.returncode == 0:
        return True
    if process.returncode != -9:
        raise SystemExit(f"the conversion ended with the exit status {process.returncode}")
    soak.kills[phase(dest, soak.n_chunks)] += 1
    soak.written += max(0, n_written(dest) - before)
    soak.torn += len([*dest.rglob("*.partial")])
    return False


def begun(dest: Path) -> bool:
    return InProgress(dest, "conversion").begun()


def phase(dest: Path, n_chunks: int) -> str:
    if not begun(dest):
        return "done" if dest.exists() else "start"
    n = n_written(dest)
    return "begun" if n == 0 else "writing" if n < n_chunks else "end"


def soak(folder: Path, kills: int, megabytes: int, seed: int = 0) -> Soak:
    """Kill so often, and compare every store that is completed."""
    rng, found = random.Random(seed), Soak()
    source, undisturbed = folder / "source.h5", folder / "undisturbed.zarr"
    found.n_chunks = write_source(source, megabytes)
    lives = []
    for _ in range(2):  # the second without compiling anything
        shutil.rmtree(undisturbed, ignore_errors=True)
        began = time.perf_counter()
        subprocess.run(command(source, undisturbed), cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        lives.append(time.perf_counter() - began)
    while found.kills.total() < kills:
        dest = folder / "killed.zarr"
        done = False
        while not done:
            enough = found.kills.total() >= kills
            before = n_written(dest)
            chunks = None if enough or rng.random() < 0.5 else rng.randint(before, found.n_chunks)
            at = 600 if enough else rng.uniform(0, lives[1] * 1.05 if chunks is None else 0.05)
            done = attempt(source, dest, at, chunks, found)
            done = done or (dest.exists() and not begun(dest))  # killed on its way out
            if done:
                found.written += max(0, found.n_chunks - before)
        found.finished += 1
        found.wrong += differences(dest, undisturbed)
        shutil.rmtree(dest)
    return found


@click.command()
@click.option("--kills", default=100, show_default=True)
@click.option("--megabytes", default=150, show_default=True, help="Size of the source's values.")
@click.option("--seed", default=0, show_default=True)
def main(kills: int, megabytes: int, seed: int) -> None:
    """Kill conversions and compare the final stores."""
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), kills, megabytes, seed)
    click.echo(str(found))
    if found.wrong:
        raise SystemExit(f"wrong: {found.wrong[:10]}")


if __name__ == "__main__":
    main()
