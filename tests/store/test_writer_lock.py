"""Two processes do not record into one store at the same time."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from deadtok_xr.store.writer_lock import WriterLock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")


def in_another_process(function: Callable[[], object]) -> str:
    """Return the message of the error that a function raises in a forked process; empty if it raises none."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            function()
        except InputError as error:
            os.write(write, str(error).encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        os._exit(0)
    os.close(write)
    message = os.read(read, 10_000).decode()
    os.close(read)
    os.waitpid(child, 0)
    return message


def lock(path: Path) -> WriterLock:
    made = WriterLock(path)
    with made.acquired():
        pass
    return made


def model() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.randn(6, 4).bfloat16())
    return weight, torch.optim.AdamW([weight], lr=0.01, foreach=False)


@pytest.mark.parametrize("recorder", [dx.Recorder, dx.Monitor])
def test_a_second_process_is_refused_and_nothing_is_lost(recorder: Callable[..., object], tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    weight, optimizer = model()
    what = weight if recorder is dx.Recorder else {"weight": weight}

    def enter() -> None:
        recorder(what, optimizer, path, resume=True).__enter__()  # type: ignore[attr-defined]

    with recorder(what, optimizer, path):  # type: ignore[attr-defined]
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        message = in_another_process(enter)
        assert f"{path} is being written by process {os.getpid()} on " in message
        assert "end it, or choose another store" in message
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]
    if recorder is dx.Recorder:
        assert dx.open_recording(path).sizes["step"] == 2
        assert not dx.verify(path).problems


def test_a_process_that_ends_releases_its_lock_even_while_processes_that_it_forked_live(tmp_path: Path) -> None:
    def hold() -> None:
        lock(tmp_path / "a")
        if (child := os.fork()) == 0:
            signal.pause()
        raise InputError(str(child))

    child = int(in_another_process(hold))
    try:
        lock(tmp_path / "a").close()
    finally:
        os.kill(child, signal.SIGKILL)
    assert not list(tmp_path.iterdir())


def test_one_process_may_begin_again(tmp_path: Path) -> None:
    lock(tmp_path / "a")
    again = lock(tmp_path / "a")
    again.close()
    assert in_another_process(lambda: lock(tmp_path / "a")) == ""


def test_an_error_while_it_begins_releases_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), WriterLock(tmp_path / "a").acquired():
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_not_reported_here(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lock(tmp_path / "file" / "a").close()


def test_the_name_of_a_holder_is_only_shown_if_it_is_plain_text(tmp_path: Path) -> None:
    held = lock(tmp_path / "a")
    # not in this process, which would release the lock when it closes the file
    in_another_process(lambda: (tmp_path / ".a.writer").write_bytes(b"\x1b[2J"))
    assert "by another process: end it" in in_another_process(lambda: lock(tmp_path / "a"))
    held.close()
