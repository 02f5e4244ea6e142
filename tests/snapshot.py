"""Keep, to the bit, what every analysis, conversion, summary, report and plot gives, and compare later code with it.

    python -m tests.snapshot write FILE [--cases DIR]
    python -m tests.snapshot compare FILE [--cases DIR] [--values-only] [--only PREFIX] [--sections analyses,stored]

Run it before a restructuring and after each step, in the same environment and on the same machine: hashes of
floating-point results, of compressed chunks and of pixels differ between CPUs and between versions of libraries.
``--cases DIR`` adds conversions of every file and folder below DIR, which another program has built.

Keys begin with what they are of: values/, attrs/, text/ (long names, formulas, summaries, reports, error messages),
pixels/. It uses public names alone, so that internal modules may move.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import html
import inspect
import io
import json
import re
import runpy
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors import safe_open

import deadtok_xr as dx
from tests import snapshot_recordings as recordings

Call = Callable[[xr.Dataset], Any]
VOLATILE = (
    "analysed",
    "analysed_with",
    "begun",
    "created",
    "labelled",
    "memory_to_analyse",
    "seconds_to_analyse",
    "software",
    "torch",
)
"""Attributes that differ between two runs of the same code, or with the versions of libraries."""
TEXTS = ("long_name", "comment", "formula", "description", "index_convention", "left_out")
ADAM = {"hyperparameters": recordings.ADAMW}


def _each(name: str, option: str, values: tuple[Any, ...], **others: Any) -> Iterator[tuple[str, Call]]:
    for value in values:
        keywords = {option: value, **others}
        said = ",".join(f"{k}={'Adam' if v is recordings.ADAMW else v}" for k, v in keywords.items())
        yield f"{name}({said})", lambda ds, kw=keywords: getattr(dx, name)(ds, **kw)  # type: ignore[misc]


def _calls() -> dict[str, Call]:
    """Every public analysis with its defaults, and with its main options."""
    calls: dict[str, Call] = {}
    plain = (
        "census", "centroid_origin", "checkpoint", "cloud", "clusters", "coherence", "components", "connectivity",
        "critical_boundary", "elements", "epochs", "exponents", "find_arithmetic", "freeze_predictors", "freezing",
        "grid_test", "h_persistence", "kinematics", "lattice", "lattice_gaps", "lifecycle", "mechanism", "motion",
        "neighbour_preservation", "phases", "replay_open_loop", "spectrum", "topology", "velocity_autocorrelation",
    )  # fmt: skip
    for name in plain:
        calls[name] = lambda ds, name=name: getattr(dx, name)(ds)  # type: ignore[misc]
    calls["component_events"] = lambda ds: dx.component_events(dx.components(ds))
    calls["compare_runs"] = lambda ds: dx.compare_runs(ds, ds)
    calls["compare_runs(inner)"] = lambda ds: dx.compare_runs(ds, ds.isel(step=slice(0, 9), token=[0, 2]), join="inner")
    return calls


def _options() -> dict[str, Call]:
    """The same with their main options."""
    steps, gaps = (0, 5, 10), {"allow_gaps": True}
    across = (
        "motion", "phases", "lifecycle", "freezing", "kinematics", "epochs", "lattice", "cloud", "mechanism",
        "critical_boundary", "coherence", "h_persistence", "centroid_origin", "freeze_predictors", "elements",
        "velocity_autocorrelation", "neighbour_preservation",
    )  # fmt: skip
    pairs = [
        *_each("census", "at", ([0, 10], [5])),
        *_each("census", "signed_zero", ("distinct",), at=[0]),
        *_each("phases", "scheme", ("magnitude", "cells")),
        *_each("lifecycle", "scheme", ("magnitude", "cells")),
        *_each("topology", "spacing", ("pair", "element", "ordinal")),
        *_each("topology", "coincident", ("linked",)),
        *_each("topology", "coincident", ("linked",), spacing="element", k=2.0),
        *_each("topology", "k", (0.5, 4.0)),
        *_each("topology", "held", ("threshold", "positions")),
        *_each("components", "spacing", ("pair", "element", "ordinal")),
        *_each("components", "coincident", ("linked",), k=3.0),
        *_each("connectivity", "steps", (steps,)),
        *_each("spectrum", "steps", (steps,)),
        *_each("clusters", "steps", (steps,), seed=3, max_tokens=20),
        *_each("clusters", "k", ((2, 6),), steps=(0, 10)),
        *_each("neighbour_preservation", "steps", ((1, 5, 10),), max_tokens=25),
        *_each("checkpoint", "step", (0, 10), norm_bins=20),
        *_each("checkpoint", "reference", ([3, 5],), step=10),
        *_each("lattice_gaps", "step", (10,)),
        *_each("epochs", "radius", ("centroid",), smooth=5),
        *_each("epochs", "frozen_above", (0.5,)),
        *_each("freezing", "definition", ("bits",)),
        *_each("freezing", "definition", ("displacement", "displacement_ulp"), threshold=0.01),
        *_each("freezing", "definition", ("lattice_l1", "lattice_l2", "lattice_linf"), threshold=1.5),
        *_each("cloud", "max_lag", (7,)),
        *_each("velocity_autocorrelation", "max_lag", (7,)),
        *_each("h_persistence", "max_lag", (7,)),
        *_each("mechanism", "arithmetic", ("auto", "find", "single", "foreach", "fused", "float32_once"), **ADAM),
        *_each("mechanism", "lr", (1e-3,), updates_before=5, **ADAM),
        *_each("mechanism", "hyperparameters", ({"optimizer": "SGD"},)),
        *_each("critical_boundary", "hyperparameters", (recordings.ADAMW,)),
        *_each("critical_boundary", "lr", (1e-3,), **ADAM),
        *_each("find_arithmetic", "steps", ((5, 10),), **ADAM),
        *_each("replay_open_loop", "scheme", ("nearest", "float32_master", "stochastic", "kahan"), **ADAM),
        *_each("replay_open_loop", "moments", ("recorded",), scheme="stochastic", seed=4, **ADAM),
        *_each("motion", "precision", ("bfloat16", "float16", "float32")),
        *_each("topology", "precision", ("float32",)),
        *_each("lattice", "precision", ("float32",)),
        *_each("exponents", "precision", ("float32",)),
        *_each("elements", "variable", ("grad",)),
        *_each("census", "variable", ("grad",)),
        *_each("kinematics", "variable", ("delta", "exp_avg")),
        *_each("grid_test", "variables", (("W", "grad"),)),
        *((name.replace("True", "yes"), call) for a in across for name, call in _each(a, "allow_gaps", (True,))),
        ("mechanism(gaps,Adam)", lambda ds: dx.mechanism(ds, **ADAM, **gaps)),
    ]
    return dict(pairs)


EVERY_OPTION = ("bfloat16", "float16", "float32", "invalid", "recorded", "gaps", "sgd")
"""The stores that all options are tried on; the others are analysed with the defaults."""
TREES = ("bfloat16", "invalid", "float16", "gaps", "delta", "synthetic", "recorded")
REPORTED = ("recorded", "delta")
TOKENS = {"synthetic": "dead"}


class Snapshot:
    """Results by key, one line of text each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, str] = {}

    def put(self, key: str, value: Any) -> None:
        """Enter a value as JSON, the temporary folder left out."""
        if key in self.found:
            raise KeyError(f"{key} is entered twice")
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=_plain)
        self.found[key] = text.replace(str(self.folder), "DIR")

    def attempt(self, key: str, make: Callable[[], Any]) -> None:
        """Enter what a call gives, or that it refuses and in which words."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                value = make()
                self.result(key, value)
        except Exception as error:
            said = str(error)
            if isinstance(error, dx.errors.OffGridError):
                said = re.sub(r"\d+ rows", "some rows", said)  # of the block that a thread came to first
            self.put(f"values/{key}/refused", type(error).__name__)
            self.put(f"text/{key}/refused", said)
        if caught:
            self.put(f"text/{key}/warnings", sorted({_words(str(w.message)) for w in caught}))

    def result(self, key: str, value: Any) -> None:
        """Enter a result of any kind."""
        if isinstance(value, xr.DataTree):
            self.put(f"values/{key}/groups", list(value.children))
            self.attributes(key, value.attrs)
            for name, node in value.children.items():
                self.dataset(f"{key}/{name}", node.to_dataset())
        elif isinstance(value, xr.Dataset):
            self.dataset(key, value)
        elif isinstance(value, np.ndarray):
            self.put(f"values/{key}", _array(value))
        elif isinstance(value, Path):
            self.put(f"values/{key}", "a path")
        else:
            self.put(f"values/{key}", value)

    def dataset(self, key: str, ds: xr.Dataset) -> None:
        """Enter every variable of a dataset: dimensions, dtype, shape, hash of its values; and the attributes."""
        self.put(f"values/{key}", {"data_vars": sorted(map(str, ds.data_vars)), "coords": sorted(map(str, ds.coords))})
        self.attributes(key, ds.attrs)
        ds = ds.drop_vars(
            [name for name in (*VOLATILE, "source") if name in ds]
        )  # of several runs these are coordinates
        for name, variable in sorted(ds.compute().variables.items(), key=str):
            self.put(f"values/{key}/{name}", f"{','.join(map(str, variable.dims))} {_array(variable.values)}")
            self.attributes(f"{key}/{name}", variable.attrs)

    def attributes(self, key: str, attrs: Mapping[Any, Any]) -> None:
        """Enter attributes, those that hold words apart."""
        attrs = _steady(attrs)
        for name in TEXTS:
            if name in attrs:
                self.put(f"text/{key}/{name}", attrs.pop(name))
        self.put(f"attrs/{key}", attrs)

    def files(self, key: str, store: Path) -> None:
        """Enter every file of a Zarr store: chunks by their hash, metadata without what varies."""
        for path in sorted(p for p in store.rglob("*") if p.is_file()):
            place = f"{key}/{path.relative_to(store)}"
            if path.name != "zarr.json":
                self.put(f"values/{place}", _sha(path.read_bytes()))
                continue
            metadata = json.loads(path.read_text())
            self.attributes(place, metadata.pop("attributes", {}))
            self.put(f"values/{place}", metadata)

    def figure(self, key: str, draw: Callable[[Figure], Any]) -> None:
        """Enter what is drawn on a figure: its numbers, and its pixels (in which there is text, too)."""
        figure = Figure(figsize=(8, 6), dpi=80, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                draw(figure)
                canvas.draw()
        except Exception as error:
            self.put(f"values/{key}/refused", type(error).__name__)
            self.put(f"text/{key}/refused", str(error))
            return
        self.put(f"values/{key}", [_drawn(axes) for axes in figure.axes])
        self.put(f"pixels/{key}", _array(np.asarray(canvas.buffer_rgba())))


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _array(values: np.ndarray) -> str:
    if values.dtype.kind in "OTUS":
        data = "\0".join(map(str, values.ravel().tolist())).encode()
        kind = "text"
    else:
        data, kind = np.ascontiguousarray(values).tobytes(), str(values.dtype)
    return f"{kind} {list(values.shape)} {_sha(data)}"


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return repr(value)


def _steady(attrs: Any) -> Any:
    if isinstance(attrs, Mapping):
        return {str(k): _steady(v) for k, v in attrs.items() if k not in VOLATILE}
    return [_steady(v) for v in attrs] if isinstance(attrs, (list, tuple)) else attrs


def _words(text: str) -> str:
    """Text without times, versions and the names of temporary files."""
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?( UTC|\+00:00|Z)?", "TIME", text)
    return re.sub(r"\b\d+ threads?\b", "THREADS", re.sub(r"about [\d.]+ [kMG]B", "SIZE", text))


def _floats(values: Any) -> str:
    return "none" if values is None else _array(np.ma.filled(np.ma.asarray(values, np.float64), np.nan))


def _drawn(axes: Any) -> dict[str, Any]:
    """The numbers of what is drawn on axes."""
    lines = [_floats(line.get_xydata()) for line in axes.get_lines()]
    images = [_floats(i.get_array()) for i in axes.get_images()]
    several = [
        [_floats(c.get_offsets()), *(_floats(p.vertices) for p in c.get_paths()[:50]), _floats(c.get_array())]
        for c in axes.collections
    ]
    patches = [_floats(p.get_path().vertices) for p in axes.patches]
    view = [axes.get_xscale(), axes.get_yscale(), *axes.get_xlim(), *axes.get_ylim()]
    return {"lines": lines, "images": images, "collections": several, "patches": patches, "view": view}


def deadtok(*arguments: Any) -> tuple[int, str]:
    """Run the command line in this process: its exit status, and what it printed."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = ["deadtok", *map(str, arguments)]
    status: Any = 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_module("deadtok_xr", run_name="__main__")
    except SystemExit as stop:
        status = stop.code
    finally:
        sys.argv = before
    return int(status or 0), printed.getvalue()


def analyses(snap: Snapshot, stores: Mapping[str, Path]) -> None:
    """Enter every analysis of every recording."""
    for store, path in stores.items():
        if store in ("upcast_kept", "chosen"):  # they are there for how they are stored and opened
            continue
        ds: Any = dx.open_recording(path, tokens=TOKENS.get(store, "all"))  # type: ignore[arg-type]
        ds = ds.isel(run=1) if "run" in ds.dims else ds
        calls = _calls() | (_options() if store in EVERY_OPTION else {})
        for name, call in calls.items():
            snap.attempt(f"analyses/{store}/{name}", partial(call, ds))


def trees(snap: Snapshot, stores: Mapping[str, Path]) -> None:
    """Enter trees of results, as they are computed, saved and opened again, with summary, report and pictures."""
    for store in TREES:
        path = stores[store]
        options = {"mechanism": ADAM, "critical_boundary": ADAM} if store == "bfloat16" else {}
        tree = dx.analyze(path, options=options, allow_gaps=store == "gaps")
        saved = snap.folder / f"{store}-results.zarr"
        snap.result(f"saved/{store}", dx.save_results(tree, saved, full=store == "recorded"))
        snap.files(f"results/{store}", saved)
        again = dx.open_results(saved)
        snap.put(f"text/summary/{store}", dx.summary(again))
        if store in REPORTED:
            snap.put(f"text/report/{store}", _page(snap, store, dx.report(again, snap.folder / f"{store}.html")))
        if store == "gaps":
            folder = snap.folder / f"{store}-figures"
            dx.plot.save_figures(again, folder, dpi=50)
            snap.put(f"values/save_figures/{store}", sorted(image.name for image in folder.iterdir()))
    for store in ("bfloat16", "recorded", "invalid", "synthetic"):
        for device in ("cpu", "torch-cpu"):
            names = ("motion", "phases", "kinematics", "topology", "census")
            names = (*names, "mechanism") if store == "recorded" else names
            snap.attempt(f"device/{store}/{device}", partial(dx.analyze, stores[store], analyses=names, device=device))
    snap.attempt("analyze/opened", lambda: dx.analyze(stores["bfloat16"], tokens="live", analyses=["motion", "census"]))
    snap.attempt("analyze/unknown", lambda: dx.analyze(stores["bfloat16"], analyses=["nothing"]))


def _page(snap: Snapshot, store: str, page: Path) -> str:
    """The words of a report; its series are numbers."""
    text = page.read_text("utf-8")
    series = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    snap.put(f"text/report/{store}/series", _sha(series[1].encode()) if series else "none")
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
    lines = (html.unescape(re.sub(r"<[^>]*>", "", line)).strip() for line in text.splitlines())
    kept = (line for line in lines if line and not re.search(r"\b(deadtok_xr|numpy|zarr|ml_dtypes|torch) \d", line))
    return _words("\n".join(kept))


def plots(snap: Snapshot, stores: Mapping[str, Path]) -> None:
    """Enter every picture of a few recordings."""
    groups = {"cooling": "motion", "displacement": "motion", "heat_map": "motion", "trajectories": "motion",
              "radius": "kinematics", "speeds": "kinematics"}  # fmt: skip
    for store in ("recorded", "invalid"):
        ds = dx.open_recording(stores[store], tokens="dead")
        tree = dx.analyze(ds, options={"mechanism": ADAM, "critical_boundary": ADAM})
        found = {name: node.to_dataset().compute() for name, node in tree.children.items()}
        found |= {"checkpoint": dx.checkpoint(ds, step=10), "compare_runs": dx.compare_runs(ds, ds.copy())}
        found |= {name: found[group] for name, group in groups.items()}
        for name in sorted({*dx.plot.__all__} & {*found}):
            snap.figure(f"plot/{store}/{name}", partial(_draw, name, found[name]))
        for scheme in ("magnitude", "cells"):
            snap.figure(f"plot/{store}/phases_{scheme}", partial(_draw, "phases", found[f"phases_{scheme}"]))
        for measure in ("lattice_l2", "displacement"):
            snap.figure(
                f"plot/{store}/heat_map({measure})", partial(_draw, "heat_map", found["motion"], measure=measure)
            )
        snap.figure(f"plot/{store}/gradient_and_moments", partial(_draw, "gradient_and_moments", ds))
        for centre in ("centroid", "origin"):
            snap.figure(f"plot/{store}/sky_map({centre})", partial(_sky_map, ds, centre))


def _sky_map(ds: xr.Dataset, centre: str, figure: Figure) -> None:
    dx.plot.sky_map(ds, step=9, centre=centre, ax=figure.add_subplot(projection="mollweide"))


def _draw(name: str, results: xr.Dataset, figure: Figure, **options: Any) -> None:
    """Draw with a function of `plot`, on as many axes as it asks for."""
    plot = getattr(dx.plot, name)
    if "ax" in inspect.signature(plot).parameters:
        plot(results, ax=figure.subplots(), **options)
        return
    for n in range(1, 9):
        figure.clear()
        try:
            plot(results, axes=figure.subplots(n, squeeze=False)[:, 0], **options)
        except ValueError:  # InputError is one
            if n == 8:
                raise
        else:
            return


def stored(snap: Snapshot, stores: Mapping[str, Path]) -> None:
    """Enter stores: how they are opened, described, verified, exported, labelled and put together."""
    for store, path in stores.items():
        snap.files(f"store/{store}", path)
        for raw in (False, True):
            for tokens in ("all", "dead", "live"):
                key = f"open/{store}/{tokens}{'/raw' if raw else ''}"
                snap.attempt(key, partial(dx.open_recording, path, tokens=tokens, raw=raw))
        status, printed = deadtok("info", path, "--json")
        snap.put(f"values/info/{store}", [status, _steady(json.loads(printed))])
        snap.put(f"text/info/{store}", _words(deadtok("info", path)[1]))
        status, printed = deadtok("verify", path, "--json", "-q")
        snap.put(f"values/verify/{store}", [status, json.loads(printed)])
        for suffix in ("safetensors", "h5", "npz"):
            _exported(snap, f"export/{store}.{suffix}", path, suffix)
    source = snap.folder / "bfloat16.h5"
    snap.attempt("verify/source", lambda: vars(dx.verify(stores["bfloat16"], source)))
    _exported(snap, "export/uint16", stores["bfloat16"], "safetensors", uint16=True, tokens="dead")
    _exported(snap, "export/source_dtype", stores["upcast"], "npz", source_dtype=True, variables=["W"])
    _exported(snap, "export/run", stores["runs"], "npz", run=1)
    snap.attempt("xarray_engine", partial(xr.open_dataset, stores["bfloat16"], engine="deadtok", chunks={}))
    pair = [stores["bfloat16"], stores["invalid"]]
    for join in ("exact", "inner", "outer"):
        snap.attempt(f"concat_runs/{join}", partial(dx.concat_runs, pair, join=join, run=[3, 4]))
    snap.attempt("concat_runs/names", lambda: dx.concat_runs([stores["upcast"], stores["tight"]], tokens="dead"))
    one, other = (dx.open_recording(p) for p in pair)
    snap.attempt("compare_runs/inner", lambda: dx.compare_runs(one, other, join="inner"))
    snap.attempt("compare_runs/exact", lambda: dx.compare_runs(one, other))
    copy = shutil.copytree(stores["tight"], snap.folder / "labelled.zarr")
    dx.label(copy, dead_ids=[1, 2, 30], token_text=[f"text {i}" for i in range(recordings.N)], overwrite=True)
    snap.files("label", copy)
    snap.attempt("label/open", lambda: dx.open_recording(copy, tokens="dead"))
    _unfinished(snap, stores["bfloat16"])


def _unfinished(snap: Snapshot, store: Path) -> None:
    copy = shutil.copytree(store, snap.folder / "unfinished.zarr")
    for chunk in (copy / "W/c").glob("1/*/0"):
        chunk.unlink()
    snap.attempt("partial/refused", lambda: dx.open_recording(copy))
    snap.attempt("partial/opened", lambda: dx.open_recording(copy, partial=True))
    snap.attempt("partial/analyses", lambda: dx.analyze(copy, partial=True, analyses=["motion", "topology"]))


def _exported(snap: Snapshot, key: str, path: Path, suffix: str, **options: Any) -> None:
    out = snap.folder / f"exported.{suffix}"
    try:
        dx.export(path, out, overwrite=True, **options)
    except dx.errors.InputError as error:
        snap.put(f"values/{key}/refused", type(error).__name__)
        snap.put(f"text/{key}/refused", str(error))
        return
    for name, values in _members(out).items():
        snap.put(f"values/{key}/{name}", values)


def _members(path: Path) -> dict[str, str]:
    """The arrays of a plain file, by name."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: _array(file[name]) for name in file.files if name != "metadata"}
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return {name: _array(np.asarray(file[name])) for name in file if isinstance(file[name], h5py.Dataset)}
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {k: f"{t.dtype} {list(t.shape)} {_sha(t.contiguous().view(torch.uint8).numpy().tobytes())}" if t.ndim else
            str(t) for k, t in tensors.items()}  # fmt: skip


def commands(snap: Snapshot, stores: Mapping[str, Path]) -> None:
    """Enter what the command line analyses and prints."""
    out = snap.folder / "cli-results.zarr"
    status, printed = deadtok(
        "analyze", stores["recorded"], "-o", out, "--tokens", "all", "--only", "motion,phases", "-q"
    )
    snap.put("values/cli/analyze", status)
    snap.put("text/cli/analyze", _words(printed))
    snap.result("cli/analyze/results", dx.open_results(out))
    mechanism = ("--optimizer", "AdamW", "--lr", "3e-3", "--hyperparameter", "betas=0.9,0.999", "--hyperparameter",
                 "eps=1e-8", "--arithmetic", "find", "--only", "mechanism", "-q")  # fmt: skip
    out = snap.folder / "cli-mechanism.zarr"
    snap.put("values/cli/mechanism", deadtok("analyze", stores["bfloat16"], "-o", out, *mechanism)[0])
    snap.result("cli/mechanism/results", dx.open_results(out))
    for words in (
        ("--version",),
        ("recipes",),
        ("info", "nothing"),
        ("analyze", stores["gaps"], "-o", snap.folder / "x"),
    ):
        key = " ".join(map(str, words)).replace(str(snap.folder), "DIR")
        snap.put(f"values/cli/{key}", deadtok(*words)[0])


EXTRA_CASES = (
    "01-npz/recording.npz --bits bfloat16", "01-npz/compressed.npz --bits bfloat16", "01-npz/W.npy --bits bfloat16",
    "01-npz/workaround.npy --key W=workaround", "02-hdf5/opaque.h5 --bits bfloat16",
    "02-hdf5/model.weights.h5 --key W=layers/embedding/vars/0", "03-zarr/void.zarr --bits bfloat16",
    "03-zarr/void.zarr/W --bits bfloat16", "03-zarr/tensorstore/W", "03-zarr/orbax/100/default",
    "03-zarr/t5x --key W=target.token_embedder.embedding",
    "03-zarr/t5x/checkpoint_1000/target.token_embedder.embedding", "06-ranks/llama/consolidated.01.pth",
    "06-ranks/llama_of_one/consolidated.00.pth", "06-ranks/neox/global_step1000", "06-ranks/megatron/iter_0001000",
    "06-ranks/neox/global_step1000/layer_05-model_01-model_states.pt", "04-nanogpt/out/ckpt.pt",
    "06-ranks/deepspeed/global_step1000/mp_rank_00_model_states.pt",
    "08-lightning/epoch_and_step/epoch=1-step=200.ckpt", "11-transposed/run --key W=unembed.W_U",
    "11-transposed/run --key W=unembed.W_U --key E=embed.W_E --dims unembed.W_U=step,dim,token",
    "11-transposed/run/step1000.pt --key W=unembed.W_U --dims unembed.W_U=dim,token",
    "11-transposed/stacked.npz --key W=W_U --key E=W_E --dims W_U=step,dim,token",
    "13-step-names/accelerate --steps content", "13-step-names/accelerate --steps names",
    "13-step-names/saves --steps content", "13-step-names/saves --steps names",
    "17-per-step/names.npz --key W=step_200",
)  # fmt: skip


def conversions(snap: Snapshot, cases: Path) -> None:
    """Enter what `deadtok convert` makes of every file and folder of the cases, and of some with options."""
    found = sorted(p.relative_to(cases) for p in cases.glob("*/*") if p.parent.name != "right")
    for words in (*map(str, found), *EXTRA_CASES):
        path, *options = words.split(" ")
        out = snap.folder / "case.zarr"
        status, _ = deadtok("convert", cases / path, out, "-q", *options)
        snap.put(f"values/convert/{words}", status)
        if not out.exists():
            continue
        if status == 0:
            ds = dx.open_recording(out, raw=True)
            for name, variable in sorted(ds.compute().variables.items(), key=str):
                key = f"values/convert/{words}/{name}"
                snap.put(key, f"{','.join(map(str, variable.dims))} {_array(variable.values)}")
            snap.put(f"attrs/convert/{words}", _steady({k: v for k, v in ds.attrs.items() if k != "source"}))
        shutil.rmtree(out)


def numbers(snap: Snapshot, stores: Mapping[str, Path]) -> None:
    """Enter the number formats, over all patterns of 16 bits, and the toy."""
    rng = np.random.default_rng(0)
    words = {"bfloat16": np.arange(2**16, dtype=np.uint16), "float16": np.arange(2**16, dtype=np.uint16),
             "float32": rng.integers(0, 2**32, 2**16, dtype=np.uint32)}  # fmt: skip
    for grid, bits in words.items():
        x = dx.bfloat16.from_bits(bits, grid)
        snap.result(f"bfloat16/{grid}/from_bits", x)
        other = rng.permutation(x)
        for name in ("ulp", "exponent", "ordinal", "lattice_coordinate", "to_bits", "on_grid"):
            snap.attempt(f"bfloat16/{grid}/{name}", partial(getattr(dx.bfloat16, name), x, grid))
        for name in ("lattice_step", "ordinal_distance"):
            snap.attempt(f"bfloat16/{grid}/{name}", partial(getattr(dx.bfloat16, name), x, other, grid))
    start, pull = rng.normal(size=(12, 3)), rng.normal(size=3)
    snap.attempt("tidal_toy", lambda: dx.testing.tidal_toy(start, pull, steps=20))


SECTIONS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "numbers": (numbers, ("bfloat16", "tidal_toy")),
    "analyses": (analyses, ("analyses",)),
    "trees": (trees, ("saved", "results", "summary", "report", "save_figures", "device", "analyze")),
    "plots": (plots, ("plot",)),
    "stored": (
        stored,
        (
            *("store", "open", "info", "verify", "export", "label", "partial"),
            *("xarray_engine", "concat_runs", "compare_runs"),
        ),
    ),
    "commands": (commands, ("cli",)),
    "conversions": (conversions, ("convert",)),
}
"""What a snapshot is made of, and the second part of the keys of each."""


def taken(sections: Sequence[str], cases: Path | None) -> dict[str, str]:
    """The results of the code that is imported."""
    import matplotlib as mpl

    mpl.use("Agg")
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        snap = Snapshot(Path(folder))
        stores = recordings.stores(snap.folder)
        for section in sections:
            enter, heads = SECTIONS[section]
            known = {*snap.found}
            enter(snap, cases if section == "conversions" else stores)
            stray = {key.split("/")[1] for key in {*snap.found} - known} - {*heads}
            assert not stray, f"{section} enters {stray}, which SECTIONS does not name"
    return snap.found


def differences(was: Mapping[str, str], now: Mapping[str, str], prefix: str) -> list[str]:
    """Three lines for each key whose value is another one, or which is in one alone."""
    there = "(absent)"
    return [
        f"{key}\n  was {was.get(key, there)}\n  is  {now.get(key, there)}"
        for key in sorted({*was, *now})
        if key.startswith(prefix) and was.get(key, there) != now.get(key, there)
    ]


def main() -> int:
    """Write or compare a snapshot: 0 if all is the same, 1 if something differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.snapshot", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("write", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", type=Path, help="a folder of folders of files to convert; skipped when not given")
    parser.add_argument("--values-only", action="store_true", help="compare neither text, nor attributes, nor pixels")
    parser.add_argument("--only", default="", help="compare keys that begin so")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which of %(default)s")
    given = parser.parse_args()
    sections = [name for name in given.sections.split(",") if name != "conversions" or given.cases]
    print(f"deadtok_xr is {Path(dx.__file__).parent}")
    now = taken(sections, given.cases and given.cases.resolve())
    if given.what == "write":
        given.file.write_text(json.dumps(now, indent=0, sort_keys=True))
        print(f"{len(now)} results written to {given.file}")
        return 0
    heads = {head for name in sections for head in SECTIONS[name][1]}
    was = {key: value for key, value in json.loads(given.file.read_text()).items() if key.split("/")[1] in heads}
    prefix = given.only or ("values/" if given.values_only else "")
    found = differences(was, now, prefix)
    print(*found, f"{len(found)} of {len(was)} results differ", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
