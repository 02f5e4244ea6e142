"""Damage stores of recordings and results at random, read them in every way, and count what comes out.

    python -m tests.fuzz_store --seconds 600 --seed 0

A file of a store is cut, flipped, overwritten, emptied, lengthened or removed, exchanged with another or replaced by
another, also by one of another store; a whole array is removed or exchanged with another; a value in its metadata is
replaced, removed, or changed a little. Then the store is read: opened and loaded, analysed, verified, described,
exported, plotted and reported. Right are only two outcomes: the same values as before, or an error of one sentence.
In addition, `verify` may not find a recording good that cannot be read. Anything else is printed, and is wrong: other
values, other exceptions, more than 20 s, more than 300 MB.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import click
import dask
import numpy as np
import xarray as xr

import deadtok_xr as dx
from deadtok_xr.cli import cli
from deadtok_xr.cli.failures import status
from deadtok_xr.errors import DamagedStoreError, InputError
from deadtok_xr.explorer.opening import open_source
from tests import snapshot_recordings as recordings
from tests.damages import Outcomes, bounded, flipped, overwritten

ANALYSES = ("motion", "phases", "census")
TIMES = ("@created", "@analysed", "@labelled")
"""No result depends on these attributes, which may change."""
Random = random.Random
Digests = dict[str, str]


# --- stores ---------------------------------------------------------------------------------------


def recorded(folder: Path, seed: int = 0) -> Path:
    """Write a recording of all that a Recorder knows."""
    path = folder / f"recorded {seed}.zarr"
    recordings.recorded(path, steps=12)
    return path


def converted(folder: Path, seed: int = 0) -> Path:
    """Convert a recording of several chunks along steps, in shards."""
    w = recordings.walk(recordings.BFLOAT16, 140, seed)
    extras = {k: v for k, v in recordings.extras(w, seed).items() if k in ("loss", "lr")}
    source = recordings.save_npz(folder / "source.npz", {"W": w, **extras, "dead_ids": recordings.DEAD_IDS})
    path = folder / f"converted {seed}.zarr"
    dx.convert(source, path, shard="64kB")
    return path


def several_runs(folder: Path, seed: int = 0) -> Path:
    """Convert a recording of two runs."""
    several = np.stack([recordings.walk(recordings.BFLOAT16, 20, seed + i) for i in (5, 6)])
    dead = {"dead_ids": recordings.DEAD_IDS}
    source = recordings.save_npz(folder / "runs.npz", {"W": several, "n_runs": np.array(2), **dead})
    path = folder / f"runs {seed}.zarr"
    dx.convert(source, path, axis="run")
    return path


def results(folder: Path, seed: int = 0) -> Path:
    """Save the results of some analyses."""
    path = folder / f"results {seed}.zarr"
    dx.save_results(dx.analyze(recorded(folder, seed + 7), analyses=ANALYSES), path)
    return path


def samples(folder: Path, seed: int = 0) -> Path:
    """Record samples of parameters in two parts."""
    path = folder / f"samples {seed}.zarr"
    model, optimizer = _training(seed)
    with dx.Recorder(model, optimizer, path, sample=8, variables=["W", "grad"]):
        _train(model, optimizer)
    return path


def monitored(folder: Path, seed: int = 0) -> Path:
    """Monitor a training."""
    path = folder / f"monitored {seed}.zarr"
    model, optimizer = _training(seed)
    with dx.Monitor(model, optimizer, path):
        _train(model, optimizer)
    return path


def _training(seed: int) -> tuple[Any, Any]:
    """Return a model with parameters of two dtypes, and its optimizer."""
    import torch

    torch.manual_seed(seed)
    model = torch.nn.ModuleDict({"a": torch.nn.Embedding(12, 4).bfloat16(), "b": torch.nn.Linear(4, 3)})
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def _train(model: Any, optimizer: Any) -> None:
    import torch

    for step in range(20):
        optimizer.zero_grad()
        ids = torch.randint(12, (8,), generator=torch.Generator().manual_seed(step))
        model["b"](model["a"](ids).float()).square().sum().backward()
        optimizer.step()


STORES: dict[str, Callable[[Path, int], Path]] = {
    "recorded": recorded,
    "converted": converted,
    "runs": several_runs,
    "results": results,
    "samples": samples,
    "monitored": monitored,
}
RECORDINGS = ("recorded", "converted", "runs")


# --- damages --------------------------------------------------------------------------------------


@dataclass
class Place:
    """A damaged copy of a store, and another store of the same kind."""

    store: Path
    other: Path
    rng: Random

    def files(self) -> list[Path]:
        """The files of the store, those of metadata as often as the others."""
        found = sorted(f for f in self.store.rglob("*") if f.is_file())
        metadata = [f for f in found if f.name == "zarr.json"]
        return self.rng.choice([metadata, [f for f in found if f.name != "zarr.json"]])

    def file(self) -> Path:
        return self.rng.choice(self.files())

    def arrays(self) -> list[Path]:
        return sorted(f.parent for f in self.store.rglob("zarr.json") if f.parent != self.store)


def _replace(file: Path, content: bytes) -> None:
    file.unlink()  # copies are links to the files of the undamaged store
    file.write_bytes(content)


def flip(place: Place) -> None:
    file = place.file()
    _replace(file, flipped(file.read_bytes(), place.rng))


def cut(place: Place) -> None:
    file = place.file()
    content = file.read_bytes()
    n = place.rng.choice([0, len(content) - 1, place.rng.randrange(len(content))])
    _replace(file, content[: max(0, n)])


def overwrite(place: Place) -> None:
    file = place.file()
    _replace(file, overwritten(file.read_bytes(), place.rng))


def lengthen(place: Place) -> None:
    file, rng = place.file(), place.rng
    content = file.read_bytes()
    _replace(file, content + rng.choice([bytes(rng.randrange(1, 100)), rng.randbytes(30), content]))


def remove(place: Place) -> None:
    place.file().unlink()


def remove_array(place: Place) -> None:
    shutil.rmtree(place.rng.choice(place.arrays()))


def exchange(place: Place) -> None:
    files = place.files()
    one = place.rng.choice(files)
    alike = [f for f in files if f.stat().st_size == one.stat().st_size and f != one]
    two = place.rng.choice(alike if alike and place.rng.random() < 0.3 else files)
    first, second = one.read_bytes(), two.read_bytes()
    _replace(one, second)
    _replace(two, first)


def repeat(place: Place) -> None:
    """Replace a file by another one of the store."""
    files = place.files()
    _replace(place.rng.choice(files), place.rng.choice(files).read_bytes())


def restore_wrong(place: Place) -> None:
    """Replace a file, or an array, by the one of another store at the same place."""
    if place.rng.random() < 0.5:
        file = place.file()
        other = place.other / file.relative_to(place.store)
        if other.exists():
            _replace(file, other.read_bytes())
        return
    array = place.rng.choice(place.arrays())
    other = place.other / array.relative_to(place.store)
    if other.exists():
        shutil.rmtree(array)
        shutil.copytree(other, array)


def exchange_arrays(place: Place) -> None:
    arrays = place.arrays()
    one, two = place.rng.sample(arrays, 2)
    if one in two.parents or two in one.parents:
        return
    aside = place.store / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**9, 10**18, -(10**30), 1e308, 0.5, "", "no", "x" * 5000, "../../etc", "\x1b[31m",
    "<script>alert(1)</script>", [], {}, [[]], [-1], ["step", "step"], {"name": "x"}, "float16", "float32", "int64",
)  # fmt: skip


def _parts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all parts of a value of JSON."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _parts(part, (*path, key))


def edit(place: Place) -> None:
    """Change a part of the metadata of a group or array."""
    rng = place.rng
    file = rng.choice(sorted(place.store.rglob("zarr.json")))
    if rng.random() < 0.05:
        deep = rng.choice(["[", '{"a":']) * 100_000
        _replace(file, deep.encode())
        return
    try:
        tree = json.loads(file.read_bytes())
    except ValueError:
        return  # damaged already
    path = rng.choice([*_parts(tree)][1:])
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    last, old = path[-1], parent[path[-1]]
    kind = rng.random()
    if kind < 0.2:
        del parent[last]
    elif kind < 0.5 and isinstance(old, (int, float)):
        parent[last] = rng.choice([old + 1, old - 1, old * 2, old / 2, not old, str(old)])
    elif kind < 0.5 and isinstance(old, list) and len(old) > 1:
        rng.shuffle(old)
    elif kind < 0.6:
        siblings = [*parent.values()] if isinstance(parent, dict) else parent
        parent[last] = copy.deepcopy(rng.choice(siblings))
    else:
        parent[last] = rng.choice(STRANGE)
    _replace(file, json.dumps(tree).encode())


CONTENT = (flip, flip, cut, overwrite, lengthen, remove, remove_array)
PLACES = (exchange, exchange, repeat, restore_wrong, exchange_arrays)
"""Damages that only a manifest can show: whole files at the wrong place."""
DAMAGES = (*CONTENT, *PLACES, edit, edit, edit, edit)


# --- reading --------------------------------------------------------------------------------------


def _digest(variable: xr.Variable) -> str:
    values = np.asarray(variable.values)
    text = values.dtype.kind in "OTU"
    data = "\0".join(map(str, values.ravel().tolist())).encode() if text else np.ascontiguousarray(values).tobytes()
    kind = "text" if text else values.dtype.name
    return f"{variable.dims} {values.shape} {kind} {hashlib.sha256(data).hexdigest()[:16]}"


def _digests(ds: xr.Dataset, group: str = "") -> Digests:
    found = {f"{group}{name}": _digest(v) for name, v in ds.compute().variables.items()}
    attrs = [("", ds.attrs), *((str(name), v.attrs) for name, v in ds.variables.items())]
    shown = {f"{group}{name}@{key}": str(value) for name, held in attrs for key, value in held.items()}
    return found | {key: value for key, value in shown.items() if not key.endswith(("@source", *TIMES))}


def load(path: Path) -> Digests:
    return _digests(dx.open_recording(path, raw=True))


def load_results(path: Path) -> Digests:
    return _of_tree(dx.open_results(path))


def load_samples(path: Path) -> Digests:
    return _of_tree(dx.open_recording(path, raw=True))


def load_monitored(path: Path) -> Digests:
    return _digests(dx.open_monitor(path))


def _of_tree(tree: Any) -> Digests:
    groups = {f"{name}/": node.to_dataset() for name, node in tree.children.items()}
    return {k: v for name, ds in groups.items() for k, v in _digests(ds, name).items()}


def analyse_samples(path: Path) -> Digests:
    return _of_tree(dx.motion(dx.open_recording(path)))


def explored(path: Path) -> Digests:
    """Open a store as a page that shows it does."""
    groups = open_source(path, live=True).groups.items()
    return {k: v for name, ds in groups for k, v in _digests(ds, f"{name}/").items()}


def analyse(path: Path) -> Digests:
    """Measure motion, which reads the chunks step by step."""
    rec = dx.open_recording(path)
    return _digests(dx.motion(rec.isel(run=0) if "run" in rec.dims else rec).drop_attrs())


def through_xarray(path: Path) -> Digests:
    ds = xr.open_dataset(path, engine="deadtok")
    return {name: value for name, value in _digests(ds.load()).items() if "@" not in name}


def verify(path: Path) -> Digests:
    problems = dx.verify(path).problems
    if problems:
        raise DamagedStoreError("; ".join(problems))
    return {}


def summarise(path: Path) -> Digests:
    return {"summary": dx.summary(dx.open_results(path)).replace(str(path), "")}


def command(*words: str) -> Callable[[Path], Digests]:
    """Return a function that runs a command of `deadtok` on a store."""

    def run(path: Path) -> Digests:
        out, err = StringIO(), StringIO()
        made = path.parent / "made"
        given = [str(path) if word == "STORE" else word.replace("OUT", str(made)) for word in words]
        with redirect_stdout(out), redirect_stderr(err):
            ended = status(lambda: cli(given, standalone_mode=False))
        for left in path.parent.glob("made*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        said = [line for line in err.getvalue().splitlines() if not line.startswith("deadtok: warning")]
        assert ended in (0, 1, 2), ended
        if ended == 0:
            return {}
        assert len(said) == 1, said
        assert said[0].startswith("deadtok: "), said
        raise DamagedStoreError(said[0].removeprefix("deadtok: "))

    run.__name__ = words[0]
    return run


Reader = Callable[[Path], Digests]
_OPEN: tuple[Reader, ...] = (analyse, through_xarray, command("info", "STORE"), command("info", "STORE", "--json"))


def readers_of(name: str) -> tuple[Reader, Sequence[Reader], Sequence[Reader]]:
    """Return what reads all of a store, other readers of which one is used, and slow ones, used in one of 40 tries."""
    if name == "results":
        return load_results, (summarise,), (command("report", "STORE", "-o", "OUT.html"),)
    if name == "samples":
        return load_samples, (analyse_samples,), ()
    if name == "monitored":
        return load_monitored, (explored,), ()
    one = ("--run", "0") if name == "runs" else ()
    export = command("export", "STORE", "OUT.npz", "-q", *one)
    slow = command("analyze", "STORE", "-o", "OUT.zarr", "--only", "motion,phases", "-q", *one)
    return load, (*_OPEN, export), (slow,)


# --- outcomes -------------------------------------------------------------------------------------


def attempt(read: Callable[[Path], Digests], path: Path, expected: Digests | None) -> str:
    """Read a damaged store; return the sentence that refuses it, or "" for the same values.

    Raises
    ------
    AssertionError
        For any other outcome.
    """
    message = ""
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(path)
    except (InputError, OSError) as error:
        message = str(error)
        assert message, "no message"
        assert message.isprintable(), repr(message)
        assert len(message) < 2500, message[:3000]
        assert str(path) in message or "/made" in message, message
        assert "should not happen" not in message, message
    else:
        wrong = {} if expected is None else {k: (v, found.get(k)) for k, v in expected.items() if found.get(k) != v}
        assert not wrong, f"other values: {wrong}"
    return message


class Fuzzer:
    """Damages copies of stores that it writes once."""

    def __init__(self, folder: Path, stores: Sequence[str] = tuple(STORES), slow: bool = True) -> None:
        self.folder, self.slow = folder, slow
        self.whole: dict[str, Path] = {}
        self.others: dict[str, Path] = {}
        self.expected: dict[tuple[str, str], Digests] = {}
        for name in stores:
            for seed, made in enumerate((self.whole, self.others)):
                place = folder / f"{name} {seed}"
                place.mkdir()
                made[name] = STORES[name](place, seed)
            first, others, more = readers_of(name)
            for read in (first, *others, *(more if slow else ())):
                self.expected[name, read.__name__] = read(self.whole[name])

    def attempt(self, seed: int, outcomes: Outcomes) -> None:
        """Damage one store and read it."""
        rng = Random(seed)
        name = rng.choice([*self.whole])
        path = self.folder / f"try {seed}.zarr"
        shutil.copytree(self.whole[name], path, copy_function=os.link)
        damages = [rng.choice(DAMAGES) for _ in range(rng.choice([1, 1, 1, 1, 2]))]
        try:
            for damage in damages:
                damage(Place(path, self.others[name], rng))
            outcomes.damages.update(damage.__name__ for damage in damages)
            refused = self._read(name, path, rng)
            outcomes.ends["refused" if refused else "same values"] += 1
        except Exception:
            outcomes.ends["wrong"] += 1
            kinds = ", ".join(damage.__name__ for damage in damages)
            changed = [
                str(f.relative_to(path)) for f in sorted(path.rglob("*")) if f.is_file() and f.stat().st_nlink == 1
            ]
            text = f"seed {seed}: {name}, {kinds}, {changed[:5]}\n{traceback.format_exc(limit=-6)}"
            outcomes.wrong.append(text)
        shutil.rmtree(path, ignore_errors=True)

    def _read(self, name: str, path: Path, rng: Random) -> str:
        first, others, more = readers_of(name)
        loaded = attempt(first, path, self.expected[name, first.__name__])
        read = rng.choice(more if more and rng.random() < 1 / 40 and self.slow else others)
        attempt(read, path, self.expected[name, read.__name__])
        if name in RECORDINGS:
            verified = attempt(verify, path, None)
            assert verified or not loaded, f"verify finds nothing, but: {loaded}"
        return loaded


def fuzz(tries: int | None = None, seed: int = 0, seconds: float | None = None, **options: Any) -> Outcomes:
    """Damage stores so many times, or for so long."""
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as temporary, dask.config.set(scheduler="synchronous"):
        fuzzer = Fuzzer(Path(temporary), **options)
        end = None if seconds is None else time.monotonic() + seconds
        i = 0
        while (tries is None or i < tries) and (end is None or time.monotonic() < end):
            fuzzer.attempt(seed * 1_000_003 + i, outcomes)
            i += 1
    return outcomes


@click.command()
@click.option("--seconds", default=600.0, show_default=True)
@click.option("--tries", type=int, help="Stop after so many. Default: as many as there is time for.")
@click.option("--seed", default=0, show_default=True)
@click.option("--stores", help="Kinds of stores, separated by commas. Default: all.")
@click.option("--only", help="The seed of one try, as a line of the output says.", type=int)
def main(seconds: float, tries: int | None, seed: int, stores: str | None, only: int | None) -> None:
    """Damage stores at random, and read them."""
    kinds = stores.split(",") if stores else [*STORES]
    if only is not None:
        outcomes = Outcomes()
        with tempfile.TemporaryDirectory() as temporary, dask.config.set(scheduler="synchronous"):
            Fuzzer(Path(temporary), kinds).attempt(only, outcomes)
    else:
        outcomes = fuzz(tries, seed, seconds, stores=kinds)
    click.echo("\n".join([*outcomes.wrong, str(outcomes)]))
    raise SystemExit(bool(outcomes.wrong))


if __name__ == "__main__":
    main()
