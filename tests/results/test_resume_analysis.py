"""Interrupted analyses resume: finished blocks are not computed again, and results are as without interruption."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr import cli, store, testing
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.engine import journal
from deadtok_xr.engine.block_task import BlockTask
from deadtok_xr.engine.journal import NotPlain, ResumeJournal, from_bytes, to_bytes
from deadtok_xr.errors import DamagedStoreError, DestinationExistsError, IncompleteStoreError
from deadtok_xr.results import save as results
from deadtok_xr.store.in_progress import progress_path
from tests.conftest import once

pytestmark = pytest.mark.slow

STEPS = 513
"""Five rows of chunks, the last of which is a single step."""
FEW = ("freezing", "census")
"""What is merged from row to row, what is made of rows, and what is written by their tasks; no more, for speed."""


@pytest.fixture(autouse=True)
def in_order() -> Iterator[None]:
    """Rows one after the other."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return testing.synthetic_recording(tmp_path_factory.mktemp("small") / "run.zarr", steps=STEPS, tokens=40, dims=4)


@pytest.fixture(scope="module")
def undisturbed(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a few analyses, written at one go."""
    path = tmp_path_factory.mktemp("undisturbed") / "r.zarr"
    save(small, path)
    return path


def save(recording: Path, path: Path, analyses: Any = FEW, **options: Any) -> None:
    dx.save_results(dx.analyze(recording, analyses=analyses), path, **options)


def contents(path: Path) -> dict[str, Any]:
    """Every file of results; of the root's metadata, all but when they were made."""
    found: dict[str, Any] = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    root = json.loads(found["zarr.json"])
    assert root["attributes"].pop("analysed")
    return {**found, "zarr.json": root}


def check_whole(path: Path, undisturbed: Path) -> None:
    """The same files with the same bytes, and no trace of an interruption."""
    found, expected = contents(path), contents(undisturbed)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    assert not [p for p in path.parent.iterdir() if p.name.endswith(".progress")]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that are looked at, in order."""
    rows: list[int] = []
    real = BlockTask._reduce

    def look(self: BlockTask, i: int, *rest: Any) -> Any:
        rows.append(i)
        return real(self, i, *rest)

    monkeypatch.setattr(BlockTask, "_reduce", look)
    return rows


@contextmanager
def interrupted(after: int) -> Iterator[None]:
    """Break off when so many rows are done."""
    left, real = after, ResumeJournal.note

    def note(self: ResumeJournal, *args: Any) -> None:
        nonlocal left
        real(self, *args)
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumeJournal, "note", note)
        with pytest.raises(KeyboardInterrupt) as caught:
            yield
    assert "is left incomplete and will not open: the same command" in caught.value.__notes__[0]


def notes(path: Path) -> dict[int, Path]:
    """What rows passed on, by row."""
    return {int(p.name): p for p in Path(progress_path(path)).glob("pass-*/*")}


@pytest.fixture(scope="module")
def broken_off(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few results, broken off after three rows, in a folder with their notes."""
    path = tmp_path_factory.mktemp("broken_off") / "r.zarr"
    with dask.config.set(scheduler="synchronous"), interrupted(3):
        save(small, path)
    return path


@pytest.fixture
def begun(broken_off: Path, tmp_path: Path) -> Path:
    """The same, for a test to go on with."""
    shutil.copytree(broken_off.parent, tmp_path / "begun")
    return tmp_path / "begun" / "r.zarr"


# --- killed ----------------------------------------------------------------------------------------

PASSING = "census,lifecycle"
"""Analyses that pass on much from row to row."""
HELD = """
import sys, time
from deadtok_xr.engine.journal import ResumeJournal

real = ResumeJournal.note

def note(self, i, *passed):
    real(self, i, *passed)
    print("done", flush=True)
    time.sleep(600)

ResumeJournal.note = note
from deadtok_xr.cli import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_analysis_resumes_after_a_kill_and_an_interrupt(
    recording: Path, tmp_path: Path, decoded: Counter[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A real recording of three rows: one is done before kill -9, the second before Ctrl-C, the third in the end."""
    path = tmp_path / "r.zarr"
    words = [str(x) for x in ("analyze", recording, "-o", path, "--scheduler", "synchronous", "--only", PASSING)]
    said = []
    for how in (signal.SIGKILL, signal.SIGINT):
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", HELD, *words]
        with subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background of a shell
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
            process.send_signal(how)
            said.append(process.communicate(timeout=60)[1])
        with pytest.raises(IncompleteStoreError, match="the same command, .* resumes; --overwrite starts again"):
            dx.open_results(path)
    assert process.returncode == 1
    assert "resumes: 1 of 3 blocks of steps are finished" in said[1]
    assert (
        said[1].splitlines()[-1].startswith(f"deadtok: interrupted; {path} is left incomplete and will not open: the")
    )
    assert sorted(notes(path)) == [0, 1]
    decoded.clear()
    assert cli.status(lambda: cli.cli(words, prog_name="deadtok", standalone_mode=False)) == 0
    assert f"{path} resumes: 2 of 3 blocks of steps are finished" in capsys.readouterr().err
    assert decoded == {("W", 2): once(301, "W")["W", 2] - 1}  # its first step was the second's
    whole = tmp_path / "whole.zarr"
    save(recording, whole, PASSING.split(","))
    check_whole(path, whole)


# --- what is believed ------------------------------------------------------------------------------


def some_of_all(recording: Path) -> xr.DataTree:
    """Some variables of every analysis."""
    tree = dx.analyze(recording)
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    some = {
        name: ds[[name for i, name in enumerate(ds.data_vars) if i in (0, len(ds.data_vars) - 1)]]
        for name, ds in groups.items()
    }
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree.attrs), **some})


def test_finished_blocks_are_not_computed_again(
    small: Path, tmp_path: Path, looked: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    path, whole = tmp_path / "r.zarr", tmp_path / "whole" / "r.zarr"
    with interrupted(4):
        dx.save_results(some_of_all(small), path)
    assert len(looked) == 4
    next(path.glob("*/*/c")).joinpath("0.1234.partial").touch()  # as zarr leaves it when it is killed
    with caplog.at_level("INFO", "deadtok_xr.results.save"):
        dx.save_results(some_of_all(small), path)
    assert caplog.messages == [f"{path} resumes: 4 of 5 blocks of steps are finished"]
    assert sorted(looked) == [0, 1, 2, 3, 4]
    dx.save_results(some_of_all(small), whole)
    check_whole(path, whole)


def test_resuming_with_all_blocks_finished(small: Path, undisturbed: Path, tmp_path: Path, looked: list[int]) -> None:
    with interrupted(5):
        save(small, tmp_path / "r.zarr")
    looked.clear()
    with dask.config.set(scheduler="threads"):
        save(small, tmp_path / "r.zarr")
    assert looked == []
    check_whole(tmp_path / "r.zarr", undisturbed)


def test_incomplete_blocks_are_computed_again(
    small: Path, undisturbed: Path, tmp_path: Path, looked: list[int]
) -> None:
    path = tmp_path / "r.zarr"
    with interrupted(5):
        save(small, path)
    (torn, other, *_), chunks = (note for _, note in sorted(notes(path).items())), path / "census" / "n_unique" / "c"
    torn.write_bytes(torn.read_bytes()[:-3])
    other.write_bytes(to_bytes(("other chunks", {})))
    (chunks / "2").unlink()
    (chunks / "3").write_bytes(b"")
    holes = bytearray((chunks / "4").read_bytes())  # as a power cut may leave them: of the right size and end
    holes[8:-8] = bytes(len(holes) - 16)
    (chunks / "4").write_bytes(holes)
    looked.clear()
    save(small, path)
    assert sorted(looked) == [0, 1, 2, 3, 4]
    check_whole(path, undisturbed)


@pytest.mark.parametrize("damage", ["exchanged", "cut", "of other results"])
def test_results_with_a_chunk_that_was_not_written_there_do_not_open(
    undisturbed: Path, tmp_path: Path, damage: str
) -> None:
    path = Path(shutil.copytree(undisturbed, tmp_path / "r.zarr"))
    chunks = sorted(path.glob("*/*/c/*"))
    pairs = ((a, b) for a, b in itertools.pairwise(chunks) if a.parent == b.parent and a.is_file() and b.is_file())
    first, second = next((a, b) for a, b in pairs if a.read_bytes() != b.read_bytes())
    content = first.read_bytes()
    first.write_bytes(content[:-1] if damage == "cut" else second.read_bytes())
    if damage == "exchanged":
        second.write_bytes(content)
    with pytest.raises(DamagedStoreError, match="the chunk of '.*' at .* positions .* is not the one"):
        dx.open_results(path)


def test_resumes_after_a_damaged_chunk_was_restored(
    small: Path, undisturbed: Path, tmp_path: Path, looked: list[int]
) -> None:
    """Rows that were made of it are done again when it is mended: that of its first step as well."""
    path, chunk = tmp_path / "r.zarr", small / "W" / "c" / "3" / "0" / "0"
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-20])
    with pytest.raises(DamagedStoreError, match="restore the file from a copy") as caught:
        save(small, path)
    chunk.write_bytes(data)
    assert "the same command, or save_results with the same arguments, resumes" in caught.value.__notes__[0]
    done = set(notes(path))
    assert done
    assert not done & {2, 3}
    looked.clear()
    save(small, path)
    assert sorted(looked) == sorted(set(range(5)) - done)
    check_whole(path, undisturbed)


def test_results_of_derived_arrays_resume(small: Path, tmp_path: Path, reads: list[str]) -> None:
    """Rows that are done ask for nothing."""

    def tree() -> Any:
        return dx.analyze(dx.open_recording(small, chunks={"token": 15}), analyses=FEW)

    whole = tmp_path / "whole" / "r.zarr"
    dx.save_results(tree(), whole)
    with interrupted(2):
        dx.save_results(tree(), tmp_path / "r.zarr")
    done = set(notes(tmp_path / "r.zarr"))
    reads.clear()
    dx.save_results(tree(), tmp_path / "r.zarr")
    assert {key.split("/")[2] for key in reads if key.startswith("W/c/")} == {
        str(row + after) for row in {0, 1, 2, 3, 4} - done for after in (0, 1) if row + after < 5
    }
    check_whole(tmp_path / "r.zarr", whole)


# --- whose work it is ------------------------------------------------------------------------------


ASKED = "differs in the analyses, their options or the tokens: repeat the command that began it to resume, or say"


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"analyses": ["census"]}, ASKED),
        ({"analyses": FEW, "options": {"census": {"at": [3]}}}, ASKED),
        ({"analyses": FEW, "tokens": "live"}, ASKED),
        ("versions", r"differs in the version of numpy \(.*, now 0.1\): repeat"),
        ("label", "differs in the recording: repeat"),
    ],
)
def test_resuming_with_another_analysis_is_refused(
    small: Path, begun: Path, monkeypatch: pytest.MonkeyPatch, other: Any, sentence: str
) -> None:
    label = small / "dead" / "c" / "0"
    was, software, before = label.stat().st_mtime_ns, store.software_versions(), contents(begun)
    if other == "versions":
        monkeypatch.setattr(store, "software_versions", lambda: {**software, "numpy": "0.1"})
    elif other == "label":
        os.utime(label)
    tree = dx.analyze(small, **(other if isinstance(other, dict) else {"analyses": FEW}))
    with pytest.raises(DestinationExistsError, match=sentence):
        dx.save_results(tree, begun)
    os.utime(label, ns=(was, was))
    assert contents(begun) == before
    assert len(notes(begun)) == 3


def test_overwrite_starts_again(small: Path, undisturbed: Path, begun: Path, looked: list[int]) -> None:
    with interrupted(1):
        save(small, begun, overwrite=True)
    assert len(notes(begun)) == 1
    save(small, begun)
    assert sorted(looked) == [0, 1, 2, 3, 4]
    check_whole(begun, undisturbed)
    before = contents(begun)
    save(small, begun)  # the same work: nothing is written
    assert contents(begun) == before
    with pytest.raises(DestinationExistsError, match="exists already and is left as it is"):
        dx.save_results(dx.analyze(small, analyses=["motion"]), begun)


@pytest.mark.parametrize("lost", ["the results", "the job", "before the first row"])
def test_without_notes_everything_is_computed_again(
    small: Path, undisturbed: Path, begun: Path, looked: list[int], lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lost == "before the first row":
        with monkeypatch.context() as patch:
            patch.setattr(results, "_coordinates", _interrupt)  # in the middle of making arrays
            with pytest.raises(KeyboardInterrupt):
                save(small, begun, overwrite=True)
    elif lost == "the job":
        Path(progress_path(begun), "job.json").write_text('{"begun": ')
    else:
        shutil.rmtree(begun)
    save(small, begun)
    assert sorted(looked) == [0, 1, 2, 3, 4]
    check_whole(begun, undisturbed)


def _interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


def test_finished_blocks_without_outputs_are_not_computed_again(small: Path, tmp_path: Path, looked: list[int]) -> None:
    with interrupted(2):
        save(small, tmp_path / "r.zarr", "connectivity")
    save(small, tmp_path / "r.zarr", "connectivity")
    assert sorted(looked) == [0, 1, 2, 3, 4]


def test_second_of_two_simultaneous_analyses_is_refused(small: Path, tmp_path: Path) -> None:
    class Second:
        def __enter__(self) -> None:
            for overwrite in (False, True):
                with pytest.raises(DestinationExistsError, match="is being written by another analysis: wait"):
                    save(small, tmp_path / "r.zarr", overwrite=overwrite)

        def __exit__(self, *args: object) -> None:
            pass

    save(small, tmp_path / "r.zarr", progress=Second())  # type: ignore[arg-type]
    assert not Path(progress_path(tmp_path / "r.zarr")).exists()


# --- as bytes --------------------------------------------------------------------------------------

NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
KEYS = st.integers() | st.text(max_size=3) | st.tuples(st.integers(), st.text(max_size=2))
PARTS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PARTS)
def test_journal_restores_plain_values(x: Any) -> None:
    assert repr(from_bytes(to_bytes(x))) == repr(x)  # NaN, too


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", BFLOAT16, "i8", "u2", "i1", "?", "U3", ">i4"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_journal_restores_arrays(dtype: Any, shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    found = from_bytes(to_bytes({3: (x, x.T[()])}))[3]
    for ours, theirs in zip(found, (x, x.T[()]), strict=True):
        assert type(ours) is type(theirs)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours, theirs)
    if shape:
        assert found[0].flags.writeable
        assert found[0].flags.aligned


def test_journal_refuses_other_objects(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that would have to be run when it is read; a row that passes such things on is done again."""
    for odd in (object(), {1, 2}, np.array([None]), np.zeros(1, "i4,f4"), type("Mine", (dict,), {})()):
        with pytest.raises(NotPlain):
            to_bytes([odd])
    assert from_bytes(b"") is None
    assert from_bytes(to_bytes([1])[:-1]) is None
    assert journal.from_bytes(b"\x80\x04.") is None  # a pickle
    monkeypatch.setattr(journal, "_PLAIN", "")
    with interrupted(2):
        save(small, tmp_path / "r.zarr")
    assert notes(tmp_path / "r.zarr") == {}
    save(small, tmp_path / "r.zarr")
