"""The command line: its output, its exit status, and one sentence for every error."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pytest
import torch
import zarr
from dask.system import CPU_COUNT
from dask.utils import format_bytes
from numpy.typing import NDArray

import deadtok_xr as dx
from deadtok_xr import cli, demo, kernels, store, testing
from deadtok_xr.analyses import plan_analyses
from deadtok_xr.engine import cluster
from deadtok_xr.errors import IncompleteStoreError, InputError
from tests.conftest import GROUPS

COMMANDS = ("demo", "convert", "info", "verify", "analyze", "label", "export", "warm-up")
NAN, INF = 0x7FC0, 0x7F80


@dataclass(frozen=True)
class Ran:
    """What a command left behind: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one sentence of a failure."""
        lines = [line for line in self.err.splitlines() if line.startswith("deadtok: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("deadtok: ")


Deadtok = Callable[..., Ran]


@pytest.fixture
def deadtok(capsys: pytest.CaptureFixture[str]) -> Deadtok:
    """The command in this process."""

    def run(*words: str | Path) -> Ran:
        capsys.readouterr()
        args = [str(word) for word in words]
        status = cli.status(lambda: cli.cli(args, prog_name="deadtok", standalone_mode=False))
        return Ran(status, *capsys.readouterr())

    return run


def process(*words: str | Path, before: str = "", **options: Any) -> Ran:
    """The command in a process of its own, after a line of Python if need be."""
    start = [sys.executable, "-c", f"{before}\nfrom deadtok_xr.cli import main; main()"] if before else [
        sys.executable, "-m", "deadtok_xr"]  # fmt: skip
    done = subprocess.run([*start, *map(str, words)], capture_output=True, text=True, check=False, **options)
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def run_zarr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store that no test may change: 200 steps, 40 tokens, 8 dims, two chunks of steps."""
    path = tmp_path_factory.mktemp("run") / "run.zarr"
    return testing.synthetic_recording(path, steps=200, tokens=40, dims=8)


@pytest.fixture
def copy(run_zarr: Path, tmp_path: Path) -> Path:
    """A store that a test may damage."""
    return Path(shutil.copytree(run_zarr, tmp_path / "copy.zarr"))


@pytest.fixture(scope="module")
def weights(run_zarr: Path) -> NDArray[np.uint16]:
    return dx.open_recording(run_zarr, raw=True)["W"].values.view("u2")


def thimble(path: Path, w: NDArray[Any] | None, **changes: Any) -> Path:
    """A file in the layout of Thimble 7, with arrays replaced, or left out where they are None."""
    n = 40 if w is None else w.shape[1]
    dead = np.arange(n) % 3 == 0
    arrays = {"W": w, "live_mask": ~dead, "dead_mask": dead, "losses": np.ones(200 if w is None else len(w), "f4")}
    with h5py.File(path, "w") as file:
        for name, values in {**arrays, **changes}.items():
            if values is not None:
                file[name] = values
        file.attrs["seed"] = 42
    return path


def groups(path: Path) -> list[str]:
    return list(dx.open_results(path).children)


# --- what each command does ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_recording_from_file_to_results(weights: NDArray[np.uint16], tmp_path: Path) -> None:
    source = thimble(tmp_path / "thimble 7 ü.h5", weights)
    converted = process("convert", source.name, "thimble 7.zarr", cwd=tmp_path)
    assert converted.status == 0, converted.err
    assert "200: 0 to 199" in converted.out
    assert "converting: 100% after" in converted.err
    done = process("analyze", "thimble 7.zarr", "-o", "Δ.zarr", "-q", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert "14 dead tokens" in done.out
    assert "results: Δ.zarr" in done.out
    assert groups(tmp_path / "Δ.zarr") == [
        g for g in GROUPS if g not in ("mechanism", "critical_boundary", "h_persistence")
    ]
    again = process("convert", source.name, "thimble 7.zarr", "-q", cwd=tmp_path)
    assert again.status == 0
    assert again.out.startswith("thimble 7.zarr is already complete: nothing was written\n")
    again = process("convert", source.name, "thimble 7.zarr", "--keep-dtype", cwd=tmp_path)
    assert again.status == 2
    assert "exists already and is left as it is" in again.sentence


def test_info_describes_a_store(deadtok: Deadtok, run_zarr: Path) -> None:
    said = deadtok("info", run_zarr)
    assert (said.status, said.err) == (0, "")
    for text in ("200 x 40 x 8", "bfloat16", "dead", "memory to analyse the dead tokens with"):
        assert text in said.out


def test_info_shows_the_optimizer_settings(deadtok: Deadtok, recording: Path) -> None:
    said = deadtok("info", recording).out
    for line in (
        "optimizer  AdamW, computed as single; torch 2.",
        "settings   betas 0.9 0.999, eps 1e-08, weight_decay 0.0\n",
        "lr         0.003 first, 1e-05 last, [1e-05, 0.003]\n",
        "self-check W: step 10: exp_avg = β1·exp_avg[t-1] + (1-β1)·grad[t] within rounding in 100.00%",
    ):
        assert f"\n  {line}" in said
    assert "the updates are reproduced by single, which torch was set to use" in " ".join(said.split())
    assert max(map(len, said.splitlines())) < 120


def test_options_only_tokens_and_overwrite(deadtok: Deadtok, run_zarr: Path, tmp_path: Path) -> None:
    results = tmp_path / "r.zarr"
    assert deadtok("analyze", run_zarr, "-o", results, "--only", "topology", "--tokens", "live").status == 0
    assert groups(results) == ["topology"]
    assert dx.open_results(results).attrs["tokens"] == "live"
    said = deadtok("analyze", run_zarr, "-o", results, "--only", "motion")
    assert said.status == 2
    assert "exists already" in said.sentence
    said = deadtok("analyze", run_zarr, "-o", results, "--only", "motion, phases", "--tokens", "all", "--overwrite")
    assert said.status == 0
    assert "40 tokens" in said.out
    assert groups(results) == ["motion", "phases"]


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes"])
def test_schedulers_of_one_machine(deadtok: Deadtok, run_zarr: Path, tmp_path: Path, scheduler: str) -> None:
    said = deadtok("analyze", run_zarr, "-o", tmp_path / "r", "--only", "phases", "--scheduler", scheduler)
    assert said.status == 0, said.err


@pytest.mark.slow
def test_scheduler_at_an_address(
    deadtok: Deadtok, run_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are relative to where the command is run, not to where the workers were started."""
    from distributed import LocalCluster

    shutil.copytree(run_zarr, tmp_path / "run.zarr")
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster:
        monkeypatch.chdir(tmp_path)
        address = cluster.scheduler_address
        said = deadtok("analyze", "run.zarr", "-o", "r.zarr", "--only", "motion,topology", "--scheduler", address)
        assert said.status == 0, said.err
        (tmp_path / "run.zarr" / "W" / "c" / "1" / "0" / "0").write_bytes(b"damaged")
        bad = deadtok("analyze", "run.zarr", "-o", "bad.zarr", "--only", "motion", "-q", "--scheduler", address)
    assert groups(tmp_path / "r.zarr") == ["motion", "topology"]
    assert bad.status == 1
    assert "missing or damaged" in bad.err


def test_scheduler_address_without_a_scheduler(
    deadtok: Deadtok, run_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_TIMEOUT", "1s")
    for address in ("tcp://127.0.0.1:1", "nonsense"):
        said = deadtok("analyze", run_zarr, "-o", tmp_path / "r", "--scheduler", address)
        assert said.status == 2
        assert f"cannot connect to a Dask scheduler at {address!r}" in said.sentence
        assert not (tmp_path / "r").exists()


@pytest.fixture
def quick_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "QUICK", dataclasses.replace(demo.QUICK, steps=30))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_demo")
def test_demo_writes_recording_results_and_figures(
    deadtok: Deadtok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = deadtok("demo", "mine", "--quick")
    assert first.status == 0, first.err
    assert "training: 100% after" in first.err
    assert "dead tokens" in first.out
    assert dx.open_recording("mine/recording.zarr").sizes["step"] == 31
    assert {*groups(Path("mine/results.zarr"))} == {*cli.demo._QUICK}
    again = deadtok("demo", "mine", "--quick")
    assert again.status == 2
    assert "mine exists already and is left as it is: name another folder" in again.sentence
    assert dx.open_recording("mine/recording.zarr").sizes["step"] == 31


def test_demo_without_a_folder_takes_the_next_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("deadtok-demo", "deadtok-demo-2"):
        assert cli.demo._next_free("deadtok-demo") == Path(name)
        Path(name).mkdir()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_an_example(deadtok: Deadtok, command: str) -> None:
    said = deadtok(*([command] if command else []), "--help")
    assert said.status == 0
    assert "deadtok " + (command or "convert") in said.out.split("Options:")[0].split("\n", 1)[1]


def test_shells_complete_commands_and_options() -> None:
    environment = {**os.environ, "_DEADTOK_COMPLETE": "bash_complete", "COMP_CWORD": "1", "COMP_WORDS": "deadtok a"}
    start = [sys.executable, "-c", "from deadtok_xr.cli import main; main()"]
    done = subprocess.run(start, env=environment, capture_output=True, text=True, check=False)
    assert "plain,analyze" in done.stdout


def test_no_arguments_show_the_commands_of_a_first_hour(deadtok: Deadtok) -> None:
    said = deadtok()
    assert (said.status, said.err) == (0, "")
    shown = [line.split()[1] for line in said.out.splitlines() if line.startswith("  deadtok ")]
    assert shown == [*("demo", "convert", "analyze", "explore", "report", "compare", "watch", "doctor", "tokens")]
    assert "All commands: deadtok --help" in said.out
    assert max(map(len, said.out.splitlines())) <= 100


@pytest.mark.slow
def test_one_screen_after_an_analysis_ends_with_the_next_command(
    deadtok: Deadtok, recording: Path, tmp_path: Path
) -> None:
    said = deadtok("analyze", recording, "-o", tmp_path / "r.zarr", "--figures", tmp_path / "figures", "-q")
    lines = said.out.splitlines()
    assert len(lines) <= 40
    places = {line.split(": ")[0]: line.split(": ")[1].strip() for line in lines[-3:]}
    assert list(places) == ["results", "figures", "next"]
    assert all(len(line) <= 100 for line in lines[1:-3])  # without paths
    assert places["results"] == str(tmp_path / "r.zarr")
    assert places["figures"] == f"{tmp_path / 'figures'} (23 files)"
    command = shlex.split(places["next"].split("   ")[0])
    assert command[:2] == ["deadtok", "report"]
    assert deadtok(*command[1:]).status == 0
    assert "What was found" in Path(command[-1]).read_text("utf-8")
    said = deadtok("analyze", recording, "-o", tmp_path / "d.zarr", "-q", "--details", "--only", "motion")
    assert "moving tokens" in said.out


def test_advice_is_spelled_as_an_option(deadtok: Deadtok, weights: NDArray[np.uint16], tmp_path: Path) -> None:
    source = thimble(tmp_path / "a.h5", weights[[0, 1, 5, 6]], recorded_steps=np.array([0, 1, 5, 6]))
    assert deadtok("convert", source, tmp_path / "a.zarr", "-q").status == 0
    said = deadtok("analyze", tmp_path / "a.zarr", "-o", tmp_path / "r.zarr", "--only", "motion")
    assert said.status == 2
    assert "say --allow-gaps to measure it anyway" in said.sentence
    assert "allow_gaps" not in said.sentence
    said = deadtok("analyze", tmp_path / "a.zarr", "-o", tmp_path / "r.zarr", "-q")
    assert "say --allow-gaps to measure it anyway" in " ".join(said.out.split())
    assert "allow_gaps" not in said.out


def test_dead_ids_from_a_file(deadtok: Deadtok, weights: NDArray[np.uint16], tmp_path: Path) -> None:
    source = thimble(tmp_path / "a.h5", weights, dead_mask=None, live_mask=None)
    (tmp_path / "ids.txt").write_text("1, 2\n3\n")
    (tmp_path / "ids.json").write_text("[1, 2, 3]")
    np.save(tmp_path / "ids.npy", np.array([1, 2, 3]))
    for name in ("ids.txt", "ids.json", "ids.npy"):
        assert deadtok("convert", source, tmp_path / f"{name}.zarr", "--dead-ids", tmp_path / name).status == 0
        np.testing.assert_array_equal(dx.open_recording(tmp_path / f"{name}.zarr", tokens="dead")["token"], [1, 2, 3])
    (tmp_path / "ids.txt").write_text("the, of")
    said = deadtok("convert", source, tmp_path / "b.zarr", "--dead-ids", tmp_path / "ids.txt")
    assert said.status == 2
    assert "cannot be read as token ids" in said.sentence
    assert deadtok("convert", source, tmp_path / "b.zarr", "--dead-ids", tmp_path / "none.txt").status == 2


# --- files that cannot be converted --------------------------------------------------------------

BAD_FILES: dict[str, tuple[Callable[[Path, NDArray[Any]], Any], str]] = {
    "missing": (lambda path, w: None, "no such file"),
    "text": (lambda path, w: path.write_text("a,b\n1,2\n"), "looks like text"),
    "empty": (lambda path, w: path.touch(), "an empty file"),
    "folder": (lambda path, w: path.mkdir(), "is a folder"),
    "truncated": (
        lambda path, w: path.write_bytes(thimble(path, w).read_bytes()[:-9000]),
        "damaged, truncated or still being written",
    ),
    "no W": (lambda path, w: thimble(path, None), "holds no weights"),
    "rank": (lambda path, w: thimble(path, w, W=w[0, 0]), r"'W' has the shape (8,); expected: three axes"),
    "dtype": (lambda path, w: thimble(path, w.astype("i8")), "'W' has the dtype int64"),
    "mask": (
        lambda path, w: thimble(path, w, dead_mask=np.ones(7, bool), live_mask=None),
        "'dead_mask' has 7 entries",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_cannot_be_converted(
    deadtok: Deadtok, weights: NDArray[np.uint16], tmp_path: Path, case: str
) -> None:
    make, sentence = BAD_FILES[case]
    make(tmp_path / "bad.h5", weights)
    said = deadtok("convert", tmp_path / "bad.h5", tmp_path / "out.zarr")
    assert said.status == 2
    assert sentence in said.sentence
    assert "bad.h5" in said.sentence
    assert not (tmp_path / "out.zarr").exists()


# --- recordings with something odd in them -------------------------------------------------------


@pytest.mark.slow
def test_nan_and_infinity_are_kept_and_reported(deadtok: Deadtok, weights: NDArray[np.uint16], tmp_path: Path) -> None:
    w = weights.copy()
    w[5, 3, 2], w[100, :, 0] = NAN, INF
    said = deadtok("convert", thimble(tmp_path / "a.h5", w), tmp_path / "a.zarr", "-q")
    assert said.status == 0
    assert said.sentence.startswith("warning: ")
    assert "41 values that are NaN or infinite, the first at step 5, token 3; they are kept" in said.sentence
    assert "UserWarning" not in said.err
    said = deadtok("analyze", tmp_path / "a.zarr", "-o", tmp_path / "r.zarr", "-q", "--details")
    assert (said.status, said.err) == (0, "")
    assert "warning: 4 steps hold NaN or infinity (n_invalid is at most 14 tokens)" in said.out
    assert "which have no graph" in said.out
    assert "-1" not in said.out.split("Topology")[1].partition("results:")[0]


@pytest.mark.slow
def test_recording_of_only_nan(deadtok: Deadtok, weights: NDArray[np.uint16], tmp_path: Path) -> None:
    deadtok("convert", thimble(tmp_path / "a.h5", np.full_like(weights, NAN)), tmp_path / "a.zarr")
    said = deadtok("analyze", tmp_path / "a.zarr", "-o", tmp_path / "r.zarr", "-q")
    assert (said.status, said.err) == (0, "")
    assert "Warning: 200 steps hold NaN or infinity, in at most 14 tokens" in said.out
    screen = said.out.split("\n", 1)[1].partition("results:")[0]  # without paths
    for words in ("nan", "no token moved", "0 of 0", "None"):
        assert words not in screen


@pytest.mark.slow
def test_recording_of_a_single_step(deadtok: Deadtok, weights: NDArray[np.uint16], tmp_path: Path) -> None:
    deadtok("convert", thimble(tmp_path / "a.h5", weights[:1]), tmp_path / "a.zarr")
    said = deadtok("analyze", tmp_path / "a.zarr", "-o", tmp_path / "r.zarr", "--figures", tmp_path / "figs")
    assert said.status == 0, said.err
    assert "motion, phases, " in said.out
    assert ": left out. motion needs at least two steps" in " ".join(said.out.split())
    assert len(said.out.splitlines()) <= 40
    assert groups(tmp_path / "r.zarr") == ["kinematics", "topology", "census", "exponents", "spectrum", "connectivity"]
    said = deadtok("analyze", tmp_path / "a.zarr", "-o", tmp_path / "m.zarr", "--only", "motion")
    assert said.status == 2
    assert "needs at least two steps" in said.sentence
    assert not (tmp_path / "m.zarr").exists()


@pytest.mark.slow
def test_float32_training_has_a_lattice_only_on_request(deadtok: Deadtok, tmp_path: Path) -> None:
    w = np.random.default_rng(0).normal(size=(5, 8, 3)).astype(np.float32)
    source = thimble(tmp_path / "f.h5", None, W=w, dead_mask=np.arange(8) < 4, live_mask=None, losses=None)
    assert "not on the bfloat16 grid" in deadtok("convert", source, tmp_path / "f.zarr").err
    said = deadtok("analyze", tmp_path / "f.zarr", "-o", tmp_path / "a.zarr")
    assert said.status == 0
    assert "freeze_predictors: left out. W has unknown precision" in " ".join(said.out.split())
    assert groups(tmp_path / "a.zarr") == [
        "motion", "lifecycle", "freezing", "kinematics", "epochs", "census", "cloud", "spectrum", "coherence",
        "centroid_origin", "token_indicators",
    ]  # fmt: skip
    said = deadtok("analyze", tmp_path / "f.zarr", "-o", tmp_path / "b.zarr", "--precision", "float32")
    assert said.status == 0
    assert len(groups(tmp_path / "b.zarr")) == 19


def test_no_dead_tokens(deadtok: Deadtok, weights: NDArray[np.uint16], tmp_path: Path) -> None:
    source = thimble(tmp_path / "a.h5", weights, dead_mask=np.zeros(40, bool), live_mask=np.ones(40, bool))
    assert deadtok("convert", source, tmp_path / "a.zarr").status == 0
    said = deadtok("analyze", tmp_path / "a.zarr", "-o", tmp_path / "r.zarr", "--only", "phases")
    assert said.status == 0
    assert ": 40 tokens" in said.out
    said = deadtok("analyze", tmp_path / "a.zarr", "-o", tmp_path / "d.zarr", "--tokens", "dead")
    assert said.status == 2
    assert "has no dead tokens" in said.sentence


# --- stores that are not whole -------------------------------------------------------------------


def test_damaged_chunk_is_reported(deadtok: Deadtok, copy: Path, tmp_path: Path) -> None:
    chunk = copy / "W" / "c" / "1" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    said = deadtok("analyze", copy, "-o", tmp_path / "r.zarr", "-q")
    assert said.status == 1
    assert "step positions 128..199, token positions" in said.sentence
    with pytest.raises(IncompleteStoreError):
        dx.open_results(tmp_path / "r.zarr")


def test_missing_chunk_is_reported(deadtok: Deadtok, copy: Path, tmp_path: Path) -> None:
    (copy / "W" / "c" / "1" / "0" / "0").unlink()
    for command in (("info", copy), ("analyze", copy, "-o", tmp_path / "r.zarr")):
        said = deadtok(*command)
        assert said.status == 2
        assert "1 chunk(s) of variable 'W' are missing" in said.sentence
    said = deadtok("analyze", copy, "-o", tmp_path / "r.zarr", "--partial", "--only", "motion,topology")
    assert said.status == 0, said.err
    assert dx.open_results(tmp_path / "r.zarr")["topology"].sizes["step"] == 128
    assert "not" not in deadtok("info", copy, "--partial").err


def test_results_with_a_missing_chunk_are_refused(run_zarr: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.zarr"
    dx.save_results(dx.analyze(run_zarr, analyses=["topology"]), path)
    (path / "topology" / "density" / "c" / "1").unlink()
    with pytest.raises(IncompleteStoreError, match=r"1 chunk\(s\) of 'density' of topology are missing"):
        dx.open_results(path)


def test_unfinished_store_is_refused(deadtok: Deadtok, copy: Path, tmp_path: Path) -> None:
    zarr.open_group(str(copy)).attrs["complete"] = False
    said = deadtok("info", copy)
    assert said.status == 2
    assert "was not written to its end" in said.sentence
    assert "warning" in deadtok("info", copy, "--partial").out


def test_results_and_recordings_are_not_mistaken_for_each_other(
    deadtok: Deadtok, run_zarr: Path, tmp_path: Path
) -> None:
    results = tmp_path / "r.zarr"
    assert deadtok("analyze", run_zarr, "-o", results, "--only", "topology").status == 0
    for command in (("info", results), ("analyze", results, "-o", tmp_path / "x")):
        said = deadtok(*command)
        assert said.status == 2
        assert "not a recording" in said.sentence
    with pytest.raises(InputError, match="holds no results"):
        dx.open_results(run_zarr)


# --- what must not be destroyed ------------------------------------------------------------------


@pytest.mark.parametrize("results", ["copy.zarr", "copy.zarr/results", "other.zarr", "link.zarr", "notes"])
def test_results_never_replace_other_files(deadtok: Deadtok, copy: Path, tmp_path: Path, results: str) -> None:
    other = shutil.copytree(copy, tmp_path / "other.zarr")
    (tmp_path / "link.zarr").symlink_to(copy)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").touch()
    said = deadtok("analyze", copy, "-o", tmp_path / results, "--overwrite")
    assert said.status == 2
    assert results in said.sentence
    assert (tmp_path / "notes" / "thesis.txt").exists()
    for path in (copy, Path(other)):
        store.open_group(path)
        assert not (path / "results").exists()


def test_a_conversion_never_replaces_results(
    deadtok: Deadtok, run_zarr: Path, weights: NDArray[np.uint16], tmp_path: Path
) -> None:
    deadtok("analyze", run_zarr, "-o", tmp_path / "r.zarr", "--only", "topology")
    said = deadtok("convert", thimble(tmp_path / "a.h5", weights), tmp_path / "r.zarr", "--overwrite")
    assert said.status == 2
    assert "holds no recording, so it is not replaced" in said.sentence
    assert groups(tmp_path / "r.zarr") == ["topology"]


# --- odd arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tokens", "undead"], "'undead' is not one of 'all', 'live', 'dead'"),
        (["--device", "abacus"], "'abacus' is not one of"),
        (
            ["--device", "mps" if torch.cuda.is_available() else "cuda"],
            "finds none on this machine; choose cpu or auto",
        ),
        (["--only", "motion,entropy"], "unknown analysis 'entropy': choose from "),
        (["--only", "motin"], "unknown analysis 'motin' (did you mean motion?): choose from "),
        (["--only", "motion," * 30_000 + "x"], "unknown analysis 'x'"),
        (["--only", " , "], "names no analysis"),
        (["--only", ""], "names no analysis"),
        (["--figures", "file"], "file: File exists"),
        (["-o", "file/r.zarr"], "file/r.zarr"),
        (["-o", "file", "--overwrite"], "is not a Zarr store"),
        (["-o", "r" * 300], "File name too long"),
        (["--figures", "STORE"], "lies in the Zarr store"),
        (["-o", "dangling"], "is a broken symbolic link"),
        (["-o", ""], "it is empty; expected: a path"),
        (["-o", "s3://bucket"], "expected a bucket and a name in it"),
        (["--scheduler", ""], "cannot connect to a Dask scheduler at ''"),
        (["--nonsense"], "No such option"),
        (["extra"], "extra: no such file or folder"),
    ],
)
def test_invalid_options_are_refused(
    deadtok: Deadtok, run_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("dangling").symlink_to("nowhere")
    options = [str(run_zarr) if word == "STORE" else word for word in options]
    said = deadtok("analyze", run_zarr, *([] if "-o" in options else ["-o", "r.zarr"]), *options)
    assert said.status == 2
    assert sentence.lower() in said.sentence.lower()
    assert not Path("r.zarr").exists()


@pytest.mark.parametrize("words", [["nonsense"], ["info"], ["analyze", "x.zarr"], ["convert", "x.h5"], ["--nonsense"]])
def test_invalid_commands_are_refused(deadtok: Deadtok, words: list[str]) -> None:
    said = deadtok(*words)
    assert said.status == 2
    assert said.sentence.endswith("--help")


@pytest.mark.parametrize("name", ["none.zarr", "empty", "file", "two\nlines"])
def test_paths_that_are_not_stores_are_refused(deadtok: Deadtok, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for command in (["info", tmp_path / name], ["analyze", tmp_path / name, "-o", tmp_path / "r"]):
        said = deadtok(*command)
        assert said.status == 2
        assert str(tmp_path / name).replace("\n", " ") in said.sentence


def test_a_store_is_never_written_into_another(
    deadtok: Deadtok, copy: Path, weights: NDArray[np.uint16], tmp_path: Path
) -> None:
    said = deadtok("convert", thimble(tmp_path / "a.h5", weights), copy / "inner")
    assert said.status == 2
    assert "lies in the Zarr store" in said.sentence
    assert not (copy / "inner").exists()


def test_symbolic_links_to_the_source_are_not_replaced(
    deadtok: Deadtok, run_zarr: Path, weights: NDArray[np.uint16], tmp_path: Path
) -> None:
    thimble(tmp_path / "a.h5", weights)
    (tmp_path / "link.h5").symlink_to("a.h5")
    (tmp_path / "link.zarr").symlink_to(run_zarr)
    assert deadtok("convert", tmp_path / "link.h5", tmp_path / "a.zarr").status == 0
    assert deadtok("analyze", tmp_path / "link.zarr", "-o", tmp_path / "new" / "r", "--only", "phases").status == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_write_permission(deadtok: Deadtok, run_zarr: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    said = deadtok("analyze", run_zarr, "-o", tmp_path / "locked" / "r.zarr")
    assert said.status == 2
    assert "Permission denied" in said.sentence


# --- what the machine could not do ---------------------------------------------------------------

FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))"


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose chunks, and whose results, are larger than the limit above."""
    path = tmp_path_factory.mktemp("larger") / "run.zarr"
    return testing.synthetic_recording(path, steps=1000, tokens=400, dims=8)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_full_disk_is_reported(larger: Path, tmp_path: Path) -> None:
    w = dx.open_recording(larger, raw=True)["W"].values.view("u2")
    said = process("convert", thimble(tmp_path / "a.h5", w), tmp_path / "a.zarr", "-q", before=FULL)
    assert said.status == 1
    assert "a.zarr cannot be written: File too large" in said.sentence
    with pytest.raises(IncompleteStoreError):
        dx.open_recording(tmp_path / "a.zarr")
    said = process("analyze", larger, "-o", tmp_path / "r.zarr", "-q", "--only", "motion", before=FULL)
    assert said.status == 1
    assert "r.zarr cannot be written: File too large; free disk space, or choose another" in said.sentence
    assert "r.zarr is left incomplete and will not open: the same command" in said.sentence
    with pytest.raises(IncompleteStoreError):
        dx.open_results(tmp_path / "r.zarr")


@pytest.fixture
def working(larger: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """An analysis in the middle of its work."""
    command = [sys.executable, "-m", "deadtok_xr", "analyze", larger, "-o", tmp_path / "r.zarr", "--tokens", "all"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*map(str, command)], stdout=pipe, stderr=pipe, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where pytest runs in the background
    ) as running:  # fmt: skip
        assert running.stderr is not None
        assert any("analysing: " in line for line in running.stderr)
        yield running


def test_memory_is_printed_before_the_work(deadtok: Deadtok, run_zarr: Path, tmp_path: Path) -> None:
    said = deadtok("analyze", run_zarr, "-o", tmp_path / "r.zarr", "--only", "motion", "--tokens", "dead")
    plan = said.err.splitlines()[0]
    assert plan.startswith("analysing 200 steps x 14 tokens x 8 dims: 1 analysis, about ")
    needed = plan_analyses(dx.open_recording(run_zarr, tokens="dead"), analyses=["motion"]).cost.memory(CPU_COUNT)
    assert f"of CPU time and {format_bytes(needed)} of memory" in plan


def test_a_budget_and_a_limit_of_memory_say_what_would_fit(deadtok: Deadtok, run_zarr: Path, tmp_path: Path) -> None:
    words = ("analyze", run_zarr, "-o", tmp_path / "r.zarr")
    assert "--budget; expected a time, such as 90s" in deadtok(*words, "--budget", "soon").sentence
    assert "motion is expected to take" in deadtok(*words, "--only", "motion", "--budget", "1e-9s").sentence
    said = deadtok(*words, "--only", "motion,cloud", "--memory", "1MB")
    assert "are allowed: motion alone needs" in said.sentence
    assert "allow more with --memory" in said.sentence


def test_compilation_of_kernels_is_announced(
    deadtok: Deadtok, run_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    kept = tmp_path / "numba" / "__pycache__"
    kept.mkdir(parents=True)
    words = ("analyze", run_zarr, "--only", "motion", "--overwrite", "-o", tmp_path / "r.zarr")
    assert "compiling the kernels" in deadtok(*words).err
    assert "compiling" not in deadtok(*words, "-q").err
    (kept / "motion._motion-1.py311.nbi").touch()
    assert "compiling" not in deadtok(*words).err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupted_commands_say_how_to_resume(working: subprocess.Popen[str], tmp_path: Path) -> None:
    working.send_signal(signal.SIGINT)
    out, err = working.communicate(timeout=60)
    said = Ran(working.returncode, out, err)
    assert said.status == 1
    assert f"interrupted; {tmp_path / 'r.zarr'} is left incomplete and will not open: the same command" in said.sentence
    with pytest.raises(IncompleteStoreError):
        dx.open_results(tmp_path / "r.zarr")


def _failing(error: BaseException) -> Ran:
    def run() -> None:
        raise error

    return Ran(cli.status(run), "", "")


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (MemoryError(), 1, "not enough memory"),
        (OSError(28, "No space left on device", "/x"), 1, "/x: No space left on device; free disk space"),
        (PermissionError(13, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (OSError("odd"), 1, "odd"),
        (ZeroDivisionError("division\nby zero"), 1, "ZeroDivisionError: division by zero; run the command again with"),
        (KeyError("x"), 1, "DEADTOK_TRACEBACK=1"),
        (KeyboardInterrupt(), 1, "interrupted"),
        (click.exceptions.Abort(), 1, "interrupted"),
    ],
)
def test_every_error_is_one_sentence(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, sentence: str
) -> None:
    said = Ran(_failing(error).status, "", capsys.readouterr().err)
    assert said.status == status
    assert sentence in said.sentence
    assert len(said.err.splitlines()) == 1


def test_traceback_is_printed_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEADTOK_TRACEBACK", "1")
    assert _failing(ZeroDivisionError()).status == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_warnings_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.status(lambda: warnings.warn("two\nlines", stacklevel=1)) == 0
    assert capsys.readouterr().err == "deadtok: warning: two lines\n"


def test_closed_output_pipe(run_zarr: Path) -> None:
    command = [sys.executable, "-m", "deadtok_xr", "info", str(run_zarr)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.stderr is not None
        assert "Traceback" not in running.stderr.read()


def test_control_characters_of_a_store_are_escaped(deadtok: Deadtok, tmp_path: Path) -> None:
    """Nothing in a store reaches the terminal that it would act on: attributes, names of arrays, errors."""
    hostile, path = "\x1b]0;owned\x07\x1b[2J\u202e", tmp_path / "run.zarr"
    attrs = {"optimizer": hostile, "hyperparameters": {hostile: hostile}, "made_by": hostile}
    writer = store.create(path, store.TokenTable(np.arange(2)), attrs)
    writer.add_variable(hostile, ("step",), (), np.float32)
    writer.extend(np.arange(3))
    writer.write(hostile, 0, np.ones(3, np.float32))
    writer.finish()
    said = deadtok("info", path)
    assert said.status == 0
    assert "\\x1b]0;owned\\x07\\x1b[2J\\u202e" in said.out
    (path / hostile / "zarr.json").write_text(hostile)
    refused = deadtok("info", path)
    assert refused.status == 1
    assert "\\x1b" in refused.err
    assert not any(c in text for text in (said.out, refused.err) for c in "\x1b\x07\u202e")
