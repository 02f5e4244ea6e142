"""Interrupted conversions: the same call resumes, repeats only unfinished chunks, and gives the same bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

import deadtok_xr as dx
from deadtok_xr.conversion import empty_store, write
from deadtok_xr.conversion.finished_chunks import FinishedChunks
from deadtok_xr.conversion.opening import open_with_options
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.plan import ConversionPlan
from deadtok_xr.conversion.planning import make_plan
from deadtok_xr.conversion.units import divide
from deadtok_xr.errors import DestinationExistsError, IncompleteStoreError
from deadtok_xr.store.in_progress import InProgress, progress_path
from tests.conversion.test_conversion import bits, raw
from tests.soak_conversion import differences, soak

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
STEPS, TOKENS, DIMS = 300, 20, 4
DEAD = np.isin(np.arange(TOKENS), [1, 2, 5, 8, 13, 17, 19])  # chunks of seven tokens
W_CHUNKS = 3 * 3
CHUNKS = 2 * W_CHUNKS + 1
"""Of `uint16`: W and its gradient, 3 x 3 each, and the loss."""


def words(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint16]:
    """Return random bits of bfloat16, including NaNs and infinities."""
    return np.random.default_rng(seed).integers(0, 2**16, shape, dtype=np.uint16)


def write_h5(path: Path, seed: int = 0, **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        for i, name in enumerate(("W", "grad_W")):
            file.create_dataset(name, data=words((STEPS, TOKENS, DIMS), seed + i), **options)
        file["losses"] = np.arange(STEPS, dtype=np.float32)
        file["dead_mask"] = DEAD
    return path


def uint16(folder: Path) -> Path:
    return write_h5(folder / "a.h5")


def compressed(folder: Path) -> Path:
    return write_h5(folder / "a.h5", compression="gzip", chunks=(50, TOKENS, DIMS))


def float32(folder: Path) -> Path:
    w = (words((STEPS, TOKENS, DIMS)).astype(np.uint32) << 16).view(np.float32)
    save_file({"W": w, "dead_ids": np.flatnonzero(DEAD)}, folder / "a.safetensors")
    return folder / "a.safetensors"


def runs(folder: Path) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        file["W"] = words((3, 140, TOKENS, DIMS))
        file["dead_mask"] = DEAD
    return folder / "a.h5"


def checkpoints(folder: Path) -> Path:
    (folder / "checkpoints").mkdir()
    values = words((140, TOKENS, DIMS)) & 0x7F7F  # finite
    for step, w in enumerate(values):
        state = {"wte.weight": torch.from_numpy(w.view(np.int16)).view(torch.bfloat16)}
        torch.save({"model_state_dict": state, "step": step}, folder / "checkpoints" / f"step_{step}.pt")
    return folder / "checkpoints"


SOURCES = {f.__name__: f for f in (uint16, compressed, float32, runs, checkpoints)}


class Watch:
    """Records the keys of written chunks; interrupts when ``left`` are written."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.left = -1

    def written(self) -> list[str]:
        keys, self.keys, self.left = self.keys, [], -1
        return keys


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Count the chunks that are written, on one thread."""
    seen, real = Watch(), FinishedChunks.write

    def write_chunk(self: FinishedChunks, key: str, *args: Any) -> None:
        if len(seen.keys) == seen.left:
            raise KeyboardInterrupt
        seen.keys.append(key)
        real(self, key, *args)

    monkeypatch.setattr(FinishedChunks, "write", write_chunk)
    monkeypatch.setattr(write, "CPU_COUNT", 1)  # so that no two pass the count at once
    return seen


def broken_off(watch: Watch, source: Path, dest: Path, after: int, **options: Any) -> list[str]:
    """Interrupt a conversion after so many chunks; return their keys."""
    watch.keys, watch.left = [], after
    with pytest.raises(KeyboardInterrupt):
        dx.convert(source, dest, **options)
    return watch.written()


def check_whole(dest: Path, undisturbed: Path) -> None:
    assert differences(dest, undisturbed) == []
    assert not notes(dest).exists()
    raw(dest)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, int]]:
    """Return for a kind of source: its path, the store of an uninterrupted conversion, and its number of chunks."""
    made: dict[str, tuple[Path, Path, int]] = {}

    def get(kind: str) -> tuple[Path, Path, int]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            source = SOURCES[kind](folder)
            store = dx.convert(source, folder / "a.zarr", **options_of(kind))
            with open_with_options(source, Options(**options_of(kind))) as (opened, options):
                plan = make_plan(opened, options)
            made[kind] = source, store, sum(len(unit.token_chunks) for unit in divide(plan, 2**20))
        return made[kind]

    return get


def options_of(kind: str) -> dict[str, Any]:
    return {"dead_ids": tuple(np.flatnonzero(DEAD).tolist())} if kind == "checkpoints" else {}


# --- interrupted at every point ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_only_unfinished_chunks_are_written_again(tmp_path: Path, whole: Any, watch: Watch, kind: str) -> None:
    source, undisturbed, n_chunks = whole(kind)
    assert n_chunks >= 3
    for after in {0, 1, n_chunks // 2, n_chunks - 1}:
        dest = tmp_path / f"{after}.zarr"
        done = broken_off(watch, source, dest, after, **options_of(kind))
        assert len(done) == after
        with pytest.raises(IncompleteStoreError):
            dx.open_recording(dest)
        dx.convert(source, dest, **options_of(kind))
        again = watch.written()
        assert len(again) == n_chunks - after
        assert not {*again} & {*done}
        check_whole(dest, undisturbed)


def test_several_interruptions(tmp_path: Path, whole: Any, watch: Watch) -> None:
    source, undisturbed, n_chunks = whole("uint16")
    assert n_chunks == CHUNKS
    written = []
    for _ in range(n_chunks // 4):
        written += broken_off(watch, source, tmp_path / "a.zarr", 4)
    dx.convert(source, tmp_path / "a.zarr")
    written += watch.written()
    assert sorted(written) == sorted({*written})
    assert len(written) == n_chunks
    check_whole(tmp_path / "a.zarr", undisturbed)


def test_warnings_include_chunks_written_before_an_interruption(tmp_path: Path, whole: Any, watch: Watch) -> None:
    source, _, _ = whole("uint16")
    said = []
    for after in (None, 12):
        dest = tmp_path / f"{after}.zarr"
        if after:
            broken_off(watch, source, dest, after)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dx.convert(source, dest)
        said.append([str(w.message) for w in caught])
    assert "values that are NaN or infinite" in said[0][0]
    assert said[0] == said[1]


def test_resuming_with_another_memory_limit(
    tmp_path: Path, whole: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, undisturbed, n_chunks = whole("uint16")
    rooms = []
    for n_at_once, after in ((1, 2), (2, 6), (3, None)):
        monkeypatch.setattr(
            ConversionPlan, "unit_bytes", lambda self, memory=0, n=n_at_once: n * self.variables[0].chunk_bytes
        )
        if after is not None:
            rooms += broken_off(watch, source, tmp_path / "a.zarr", after)
    dx.convert(source, tmp_path / "a.zarr", memory="2GB")
    rooms += watch.written()
    assert sorted(rooms) == sorted({*rooms})
    assert len(rooms) == n_chunks
    check_whole(tmp_path / "a.zarr", undisturbed)


# --- torn ----------------------------------------------------------------------------------------

AFTER = 10


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def notes(dest: Path) -> Path:
    """The folder of the notes on a conversion."""
    return Path(progress_path(dest))


def entries(dest: Path) -> list[Path]:
    """The journal's entries, the last one last."""
    return sorted((p for p in (notes(dest) / "journal").rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime_ns)


@pytest.mark.parametrize("tear", [truncated, emptied, flipped, zeroed, Path.unlink])
def test_only_damaged_chunks_are_written_again(
    tmp_path: Path, whole: Any, watch: Watch, tear: Callable[[Path], None]
) -> None:
    source, undisturbed, n_chunks = whole("uint16")
    dest = tmp_path / "a.zarr"
    done = broken_off(watch, source, dest, AFTER)
    for key in done[2:4]:
        tear(dest / key)
    dx.convert(source, dest)
    again = watch.written()
    assert {*again} & {*done} == {*done[2:4]}
    assert len(again) == n_chunks - AFTER + 2
    check_whole(dest, undisturbed)


def entry_truncated(dest: Path) -> None:
    truncated(entries(dest)[-1])


def entry_zeroed(dest: Path) -> None:
    zeroed(entries(dest)[-1])


def partial_files(dest: Path) -> None:
    for path in (notes(dest) / "job.json.12.partial", dest / "W" / "c" / "0.12.partial"):
        path.write_bytes(b"half")


def temporary_store_of_another_attempt(dest: Path) -> None:
    (notes(dest) / "empty-store-1" / "store").mkdir(parents=True)
    (notes(dest) / "empty-store-1" / "store" / "zarr.json").write_text("{")


def root_lost(dest: Path) -> None:
    (dest / "zarr.json").unlink()


def root_torn(dest: Path) -> None:
    truncated(dest / "zarr.json")


def metadata_zeroed(dest: Path) -> None:
    zeroed(dest / "W" / "zarr.json")


def coordinates_lost(dest: Path) -> None:
    shutil.rmtree(dest / "token")
    zeroed(dest / "step" / "c" / "0")


def store_lost(dest: Path) -> None:
    shutil.rmtree(dest)


def notes_lost(dest: Path) -> None:
    shutil.rmtree(notes(dest))


def journal_lost(dest: Path) -> None:
    shutil.rmtree(notes(dest) / "journal")


def facts_truncated(dest: Path) -> None:
    truncated(notes(dest) / "job.json")


def facts_of_another_kind(dest: Path) -> None:
    (notes(dest) / "job.json").write_text("[1, 2]")


def facts_changed(dest: Path) -> None:
    path = notes(dest) / "job.json"
    path.write_text(path.read_text().replace('"bfloat16"', '"bfloat17"'))


@pytest.mark.parametrize(
    ("tear", "lost"),
    [
        (entry_truncated, 1), (entry_zeroed, 1), (partial_files, 0), (temporary_store_of_another_attempt, 0),
        (root_lost, 0), (root_torn, 0), (metadata_zeroed, 0), (coordinates_lost, 0), (store_lost, AFTER),
        (notes_lost, AFTER), (journal_lost, AFTER), (facts_truncated, AFTER), (facts_of_another_kind, AFTER),
        (facts_changed, AFTER),
    ],
)  # fmt: skip
def test_damaged_notes_and_stores(
    tmp_path: Path, whole: Any, watch: Watch, tear: Callable[[Path], None], lost: int
) -> None:
    """``lost``: how many finished chunks can no longer be verified, and are written again."""
    source, undisturbed, n_chunks = whole("uint16")
    dest = tmp_path / "a.zarr"
    broken_off(watch, source, dest, AFTER)
    tear(dest)
    again = broken_off(watch, source, dest, 2)  # a repaired store survives a second interruption
    dx.convert(source, dest)
    again += watch.written()
    assert len(again) == n_chunks - AFTER + lost
    check_whole(dest, undisturbed)


def test_interrupted_between_completion_and_removal_of_the_notes(
    tmp_path: Path, whole: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call finishes without an error, and repairs damaged files."""
    source, undisturbed, _ = whole("uint16")
    dest = tmp_path / "a.zarr"
    finish = InProgress.finish

    def interrupted(self: InProgress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(InProgress, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dx.convert(source, dest)
    keys = watch.written()
    raw(dest)
    monkeypatch.setattr(InProgress, "finish", finish)
    shutil.copytree(notes(dest), tmp_path / "kept")
    dx.convert(source, dest)
    assert watch.written() == []
    check_whole(dest, undisturbed)
    for tear in (lambda: flipped(dest / keys[3]), lambda: root_torn(dest)):
        shutil.copytree(tmp_path / "kept", notes(dest))
        tear()
        dx.convert(source, dest)
        check_whole(dest, undisturbed)
    assert watch.written() == [keys[3]]


# --- other options, another source, other stores ---------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bits": "float16"}, "differs in the variables"),
        ({"dead_ids": [3], "drop": ["dead_mask"]}, "differs in .*the tokens"),
        ({"steps": "position"}, "differs in the settings"),
        ({"drop": ["grad_W"]}, "differs in the variables and the settings"),
    ],
)
def test_other_options_are_refused(
    tmp_path: Path, whole: Any, watch: Watch, options: dict[str, Any], sentence: str
) -> None:
    source, undisturbed, _ = whole("uint16")
    dest = tmp_path / "a.zarr"
    broken_off(watch, source, dest, AFTER)
    with pytest.raises(DestinationExistsError, match=f"holds an unfinished conversion that {sentence}") as caught:
        dx.convert(source, dest, **options)
    assert "\n" not in str(caught.value)
    assert watch.written() == []
    dx.convert(source, tmp_path / "other.zarr", **options)
    watch.written()
    broken_off(watch, source, dest, 2, overwrite=True, **options)
    dx.convert(source, dest, **options)
    check_whole(dest, tmp_path / "other.zarr")
    dx.convert(source, dest, overwrite=True)  # and back
    check_whole(dest, undisturbed)


def test_another_keep_dtype_is_refused(tmp_path: Path, whole: Any, watch: Watch) -> None:
    source, _, _ = whole("float32")
    broken_off(watch, source, tmp_path / "a.zarr", 2)
    with pytest.raises(DestinationExistsError, match="differs in the variables and the settings"):
        dx.convert(source, tmp_path / "a.zarr", keep_dtype=True)


def test_a_changed_source_starts_again(tmp_path: Path, watch: Watch) -> None:
    source, dest = write_h5(tmp_path / "a.h5"), tmp_path / "a.zarr"
    broken_off(watch, source, dest, AFTER)
    write_h5(source, seed=7)  # the same size
    os.utime(source, ns=(1, 1))
    dx.convert(source, dest)
    assert len(watch.written()) == CHUNKS
    np.testing.assert_array_equal(bits(raw(dest)["W"].values), words((STEPS, TOKENS, DIMS), 7))


def test_another_source_is_refused(tmp_path: Path, whole: Any, watch: Watch) -> None:
    source, undisturbed, _ = whole("uint16")
    dest = tmp_path / "a.zarr"
    broken_off(watch, source, dest, AFTER)
    with pytest.raises(DestinationExistsError, match="exists already and is left as it is"):
        dx.convert(write_h5(tmp_path / "b.h5"), dest)
    dx.convert(source, dest)
    assert len(watch.written()) == CHUNKS - AFTER
    check_whole(dest, undisturbed)


@pytest.mark.parametrize("moment", ["create", "_build"])
def test_a_complete_store_survives_an_interrupted_replacement(
    tmp_path: Path, whole: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    source, undisturbed, _ = whole("uint16")
    dest = tmp_path / "a.zarr"
    (tmp_path / "old").mkdir()
    dx.convert(write_h5(tmp_path / "old" / "a.h5", 3), dest)
    shutil.copytree(dest, tmp_path / "copy.zarr")
    real = getattr(empty_store, moment)

    def killed(*args: Any, **kwargs: Any) -> None:
        if moment == "_build":
            real(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(empty_store, moment, killed)
    with pytest.raises(KeyboardInterrupt):
        dx.convert(source, dest, overwrite=True)
    monkeypatch.setattr(empty_store, moment, real)
    with pytest.raises(DestinationExistsError, match="exists already and is left as it is"):
        dx.convert(source, dest)
    assert differences(dest, tmp_path / "copy.zarr") == []
    dx.convert(source, dest, overwrite=True)
    check_whole(dest, undisturbed)


def test_another_store_at_the_destination_is_not_replaced(tmp_path: Path, whole: Any, watch: Watch) -> None:
    source, undisturbed, _ = whole("uint16")
    dest = tmp_path / "a.zarr"
    broken_off(watch, source, dest, AFTER)
    shutil.rmtree(dest)
    (tmp_path / "old").mkdir()
    other = dx.convert(write_h5(tmp_path / "old" / "a.h5", 3), tmp_path / "other.zarr")
    shutil.copytree(other, dest)
    with pytest.raises(DestinationExistsError, match="exists already and is left as it is"):
        dx.convert(source, dest)
    assert differences(dest, other) == []
    dx.convert(source, dest, overwrite=True)
    check_whole(dest, undisturbed)


def test_remaining_notes_of_a_complete_store_are_removed(tmp_path: Path, whole: Any) -> None:
    """Killed while the notes were removed: the store is complete, and the same call leaves it so."""
    source, undisturbed, _ = whole("uint16")
    dest = dx.convert(source, tmp_path / "a.zarr")
    (notes(dest) / "journal").mkdir(parents=True)
    (notes(dest) / "journal" / "1").write_text("[")
    dx.convert(source, dest)
    assert not notes(dest).exists()
    check_whole(dest, undisturbed)


def test_other_options_are_accepted_when_the_store_is_removed(tmp_path: Path, whole: Any, watch: Watch) -> None:
    source, _, _ = whole("uint16")
    broken_off(watch, source, tmp_path / "a.zarr", AFTER)
    shutil.rmtree(tmp_path / "a.zarr")
    dx.convert(source, tmp_path / "a.zarr", drop=["grad_W"])
    assert len(watch.written()) == W_CHUNKS + 1
    assert "grad" not in raw(tmp_path / "a.zarr")


# --- two at once, no disk space ------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
import deadtok_xr as dx

def wait(done, total):
    if done:
        print("writing", flush=True)
        time.sleep(600)

dx.convert(sys.argv[1], sys.argv[2], progress=wait)
"""


def test_a_second_conversion_to_the_same_destination_is_refused(tmp_path: Path, whole: Any) -> None:
    source, undisturbed, _ = whole("uint16")
    dest = tmp_path / "a.zarr"
    with subprocess.Popen([sys.executable, "-c", HOLD, source, dest], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "writing\n"
            for overwrite in (False, True):
                began = time.perf_counter()
                with pytest.raises(DestinationExistsError, match="is being written by another conversion"):
                    dx.convert(source, dest, overwrite=overwrite)
                assert time.perf_counter() - began < 60  # it does not wait for the other one (600 s)
            command = [sys.executable, "-m", "deadtok_xr", "convert", source, dest]
            said = subprocess.run(command, capture_output=True, text=True)
            assert said.returncode == 2
            assert said.stderr.strip() == (
                f"deadtok: {dest} is being written by another conversion: wait for it, or choose another destination"
            )
        finally:
            first.kill()
    dx.convert(source, dest)
    check_whole(dest, undisturbed)


FULL_DISK = """
import resource, sys
import deadtok_xr as dx
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    dx.convert(sys.argv[1], sys.argv[2], progress=lambda done, total: print(done))
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_resumes_after_files_were_too_large(tmp_path: Path, watch: Watch) -> None:
    """The system refuses every file beyond a size: here those of the gradient, which compresses less."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["W"] = np.zeros((STEPS, TOKENS, DIMS), np.uint16)
        file["grad_W"] = words((STEPS, TOKENS, DIMS))
        file["dead_mask"] = DEAD
    undisturbed = dx.convert(tmp_path / "a.h5", tmp_path / "undisturbed.zarr")
    watch.written()
    dest = tmp_path / "a.zarr"
    command = [sys.executable, "-c", FULL_DISK, tmp_path / "a.h5", dest, "5000"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"{dest} cannot be written: File too large" in said
    assert "give the same command again, which resumes" in said
    dx.convert(tmp_path / "a.h5", dest)
    assert sorted(watch.written()) == [f"grad/c/{t}/{n}/0" for t in range(3) for n in range(3)]
    check_whole(dest, undisturbed)


def can_mount() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.mark.skipif(not can_mount(), reason="only root mounts a small disk")
def test_resumes_after_a_full_disk(tmp_path: Path, watch: Watch) -> None:
    source = tmp_path / "a.h5"
    with h5py.File(source, "w") as file:
        file["W"] = words((1200, 60, 8))  # 1.2 MB that cannot be compressed
        file["dead_mask"] = np.resize(DEAD, 60)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(OSError, match="No space left on device, after [1-9]"):
            dx.convert(source, disk / "a.zarr")
        done = {p.relative_to(disk / "a.zarr").as_posix() for p in (disk / "a.zarr" / "W" / "c").rglob("0")}
        watch.written()
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        dx.convert(source, disk / "a.zarr")
        assert done
        assert not done & {*watch.written()}
        check_whole(disk / "a.zarr", dx.convert(source, tmp_path / "undisturbed.zarr"))
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    kills = 3
    found = soak(tmp_path, kills=kills, megabytes=30)
    assert found.wrong == []
    assert found.kills.total() == kills
    assert found.kills["writing"] >= 1
    assert (
        found.written - found.finished * found.n_chunks + found.torn <= 2 * kills
    )  # never more than was at work when it died


# --- anything --------------------------------------------------------------------------------------

DTYPES = {"uint16": np.uint16, "float16": np.float16, "float32": np.float32}


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_recording_interrupted_anywhere(
    tmp_path_factory: pytest.TempPathFactory, watch: Watch, data: st.DataObject
) -> None:
    """Shape, dtype, dead tokens, memory and interruptions are drawn; the result is compared with the saved bits."""
    shape = data.draw(st.tuples(st.integers(2, 400), st.integers(1, 12), st.integers(1, 4)), "shape")
    dtype = DTYPES[data.draw(st.sampled_from([*DTYPES]), "dtype")]
    dead = np.array(data.draw(st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]), "dead"))
    saved = np.random.default_rng(data.draw(st.integers(0, 99), "seed")).integers(0, 2**16, shape, dtype=np.uint16)
    saved[0] = ~saved[1]  # recorded after the optimizer's step
    if dtype == np.float32:
        saved = (saved.astype(np.uint32) << 16) | data.draw(st.sampled_from([0, 1]), "off the grid")
    folder = tmp_path_factory.mktemp("any")
    with h5py.File(folder / "a.h5", "w") as file:
        file["W"] = saved.view(dtype)
        file["dead_mask"] = dead
    interruptions = data.draw(st.lists(st.integers(0, 6), max_size=3), "interruptions")
    with pytest.MonkeyPatch.context() as patch:
        for after in [*interruptions, -1]:
            n = data.draw(st.integers(1, 4), "chunks at a time")
            patch.setattr(
                ConversionPlan, "unit_bytes", lambda self, memory=0, n=n: n * max(v.chunk_bytes for v in self.variables)
            )
            watch.keys, watch.left = [], after
            try:
                dx.convert(folder / "a.h5", folder / "a.zarr")
            except KeyboardInterrupt:
                continue
            break
    rec = raw(folder / "a.zarr")
    found = bits(rec["W"].values)
    np.testing.assert_array_equal(found.astype(np.uint32) << 8 * (saved.itemsize - found.itemsize), saved)
    np.testing.assert_array_equal(rec["dead"], dead)
    shutil.rmtree(folder)
