"""Every command of docs/cluster.md runs as written, in separate processes and folders, and with an object store."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import deadtok_xr as dx
from tests.s3_server import BUCKET, free_port, server

pytestmark = pytest.mark.slow

boto3 = pytest.importorskip("boto3")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
OBJECT_STORAGE = (ROOT / "docs" / "how-to" / "object-storage.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def command(line: str) -> list[str]:
    """A line of the page as this environment runs it."""
    program, *words = shlex.split(line)
    if program == "deadtok":
        return [sys.executable, "-m", "deadtok_xr", *words]
    assert program == "dask"
    return [sys.executable, "-m", "dask", *words]


@pytest.fixture(scope="module")
def folder(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given: a recording of W, for which no process imports torch, and the same as a file."""
    folder = tmp_path_factory.mktemp("page")
    dx.convert(dx.export(recording, folder / "run.h5", variables=["W"]), folder / "run.zarr")
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """The page with ports that are free here, and the environment that it tells of, once all of it runs."""
    ours = tmp_path_factory.mktemp("processes")
    with server(ours / "s3") as address:
        text = PAGE.replace("http://127.0.0.1:5555", address).replace("127.0.0.1 --port 8799", "127.0.0.1 --port PORT")
        text = text.replace("PORT", port := str(free_port())).replace("8799", port)
        exports = re.findall(r"^export (.*)$", text, flags=re.MULTILINE)
        told = dict(word.split("=", 1) for line in exports for word in shlex.split(line))
        env = {**os.environ, "PYTHONPATH": str(ROOT), **told}
        boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
        ).create_bucket(Bucket=BUCKET)
        started = []
        for i, line in enumerate(re.findall(r"^dask .*$", text, flags=re.MULTILINE)):
            (ours / str(i)).mkdir()
            with (ours / f"{i}.log").open("wb") as log:
                started.append(subprocess.Popen(command(line), cwd=ours / str(i), env=env, stdout=log, stderr=log))
            time.sleep(1)
        yield text, env
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(20)


def test_every_block_is_run() -> None:
    assert {*re.findall(r"^```(\w+)$", PAGE, flags=re.MULTILINE)} == {"bash", "python", "text"}
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert all(line.split()[0] in ("deadtok", "dask", "export") for line in lines)
    assert len(blocks("python")) == 1
    assert len(blocks("text")) == 1
    assert "not tried here" in PAGE


def test_commands_of_the_page_run(
    page: tuple[str, dict[str, str]], folder: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, env = page
    for line in re.findall(r"^deadtok .*$", text, flags=re.MULTILINE):
        few = ["--only", "motion,topology"] if "-o s3://" in line else []  # the server is slow, and all were above
        done = subprocess.run([*command(line), *few], cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, env[name])
    expected = dx.motion(dx.open_recording(recording, tokens="dead")).compute()
    for place in (folder / "local.zarr", f"s3://{BUCKET}/results.zarr", f"s3://{BUCKET}/some.zarr"):
        found = dx.open_results(place)["motion"]
        np.testing.assert_array_equal(found["lattice_l2"], expected["lattice_l2"])


def test_blocks_of_the_object_storage_page_run(page: tuple[str, dict[str, str]], folder: Path, recording: Path) -> None:
    told = page[1]
    for line in re.findall(r"^export (.*)$", OBJECT_STORAGE, flags=re.MULTILINE):
        assert {word.partition("=")[0] for word in shlex.split(line)} <= set(told)
    lines = re.findall(r"^deadtok .*$", OBJECT_STORAGE, flags=re.MULTILINE)
    (code,) = re.findall(r"^```python\n(.*?)^```$", OBJECT_STORAGE, flags=re.MULTILINE | re.DOTALL)
    for words in [*map(command, lines), [sys.executable, "-c", code]]:
        done = subprocess.run(words, cwd=folder, env=told, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}\n{done.stderr}"
    expected = dx.phases(dx.open_recording(recording, tokens="dead")).fraction
    found = dx.open_results(folder / "from-the-bucket.zarr")["phases"].fraction
    np.testing.assert_array_equal(found, expected)
