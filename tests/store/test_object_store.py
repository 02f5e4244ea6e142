"""Recordings and results on S3: a real server on loopback, and its failures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

import deadtok_xr as dx
from deadtok_xr import cli, store
from deadtok_xr.errors import (
    DamagedStoreError,
    DestinationExistsError,
    IncompleteStoreError,
    StorageError,
)
from deadtok_xr.store import chunk_reader, lease, location
from deadtok_xr.store.in_progress import InProgress
from tests.s3_server import BUCKET, KEYS, Proxy, server

pytestmark = pytest.mark.slow

boto3 = pytest.importorskip("boto3")
obstore = pytest.importorskip("obstore")


def client(address: str, service: str = "s3", **keys: str) -> Any:
    return boto3.client(
        service, endpoint_url=address, region_name="us-east-1", aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"], **keys,
    )  # fmt: skip


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with one empty bucket."""
    with server(tmp_path_factory.mktemp("s3") / "log") as address:
        client(address).create_bucket(Bucket=BUCKET)
        yield address


@pytest.fixture
def here(s3: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The environment of somebody who uses the server, and a place of the test's own."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3}.items():
        monkeypatch.setenv(name, value)
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return f"s3://{BUCKET}/{name}"


@pytest.fixture(scope="module")
def source(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real run as a file to convert."""
    path = tmp_path_factory.mktemp("source") / "run.safetensors"
    dx.export(recording, path)
    return path


def bits(path: str | Path, name: str = "W") -> NDArray[np.uint16]:
    return dx.open_recording(path, raw=True)[name].values.view(np.uint16)


def keys(place: str) -> dict[str, int]:
    return location.key_sizes(location.zarr_store(place))


@pytest.mark.parametrize("shard", [None, "1.5MB"])
def test_store_on_s3_round_trips(here: str, source: Path, recording: Path, shard: str | None) -> None:
    """Converted, opened, verified, analysed, results saved and opened: all behind an address."""
    place = f"{here}/run.zarr"
    assert dx.convert(source, place, shard=shard, dead_ids=_dead(recording)) == place
    for name in ("W", "grad", "exp_avg", "exp_avg_sq"):
        np.testing.assert_array_equal(bits(place, name), bits(recording, name))
    assert not any(".progress" in key for key in keys(here))
    found = dx.verify(place, source)
    assert not found.problems
    assert {"W", "grad"} <= set(found.compared)
    tree = dx.save_results(dx.analyze(place, analyses=["motion", "kinematics"]), f"{here}/results.zarr")
    dead = dx.open_recording(recording, tokens="dead")
    for name, expected in (("motion", dx.motion(dead)), ("kinematics", dx.kinematics(dead))):
        for key in tree[name].data_vars:
            np.testing.assert_array_equal(tree[name][key], expected[key], err_msg=str(key))
    assert dx.open_results(f"{here}/results.zarr").attrs["complete"]


def _dead(recording: Path) -> list[int]:
    rec = dx.open_recording(recording)
    return [int(t) for t in rec.token[rec.dead]]


def test_commands_on_addresses(here: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def deadtok(*words: Any) -> tuple[int, str, str]:
        status = cli.status(lambda: cli.cli([str(w) for w in words], prog_name="deadtok", standalone_mode=False))
        return status, *capsys.readouterr()

    place = f"{here}/run.zarr"
    status, out, err = deadtok("convert", source, place, "--shard", "1MB", "-q")
    assert status == 0, err
    assert f"{place}: recording format" in out
    assert deadtok("info", place)[1].startswith(out)
    assert "all as they were written; the same bits" in deadtok("verify", place, "--source", source, "-q")[1]
    status, out, err = deadtok("analyze", place, "-o", f"{here}/r.zarr", "--only", "motion", "-q")
    assert status == 0, err
    assert f"results: {here}/r.zarr" in out
    for words, sentence in (
        (["convert", source, place], "exists already and is left as it is"),
        (["analyze", place, "-o", place, "--overwrite"], "is or lies in the recording"),
        (["analyze", place, "-o", f"{place}/r", "--overwrite"], "is or lies in the recording"),
        (["info", f"{here}/none.zarr"], "no such object or bucket"),
        (["info", "s3://"], "expected a bucket and a name in it"),
        (["info", f"{here}/r.zarr"], "not a recording"),
        (["convert", source, place, "--shard", "none"], "--shard none: expected: a size"),
    ):
        status, _, err = deadtok(*words)
        assert (status, len(err.splitlines())) == (2, 1), err
        assert sentence in err


def test_reading_the_first_step_of_a_chunk_fetches_little_of_it(
    here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little more than the first step, in requests that grow."""
    from deadtok_xr import testing
    from deadtok_xr.store import chunk_bytes

    place = f"{here}/run.zarr"
    upload(testing.synthetic_recording(tmp_path / "run.zarr", steps=256, tokens=512, dead=0, frozen_at=9), place)
    asked: list[tuple[str, int, int]] = []
    real = chunk_bytes._read_range

    def noted(store: Any, name: str, start: int, stop: int) -> Any:
        asked.append((name, start, stop))
        return real(store, name, start, stop)

    monkeypatch.setattr(chunk_bytes, "_read_range", noted)
    dx.motion(dx.open_recording(place))["moved_dims"][:128].compute()
    of_next = [(start, stop) for name, start, stop in asked if name.startswith("W/c/1/")]
    whole = keys(place)["W/c/1/0/0"]
    assert min(of_next) == (0, chunk_bytes._FIRST_REQUEST)
    assert max(stop for _, stop in of_next) < whole / 2
    first = sorted((start, stop) for name, start, stop in asked if name == "W/c/0/0/0")
    assert [start for start, _ in first] == [0, *(stop for _, stop in first[:-1])]


def test_interrupted_analysis_resumes(here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its notes lie in the bucket, too; rows that are done are not fetched again."""
    from deadtok_xr import testing
    from deadtok_xr.engine.block_task import BlockTask
    from tests.results.test_resume_analysis import interrupted

    place, looked, real = f"{here}/run.zarr", list[int](), BlockTask._reduce
    upload(testing.synthetic_recording(tmp_path / "run.zarr", steps=400, tokens=30, dims=4), place)

    def look(self: BlockTask, i: int, *rest: Any) -> Any:
        looked.append(i)
        return real(self, i, *rest)

    monkeypatch.setattr(BlockTask, "_reduce", look)
    some = {"analyses": ["connectivity"]}  # of few variables
    with dask.config.set(scheduler="synchronous"):
        with interrupted(3):
            dx.save_results(dx.analyze(place, **some), f"{here}/r.zarr")
        assert len([key for key in keys(here) if key.startswith(".r.zarr.progress/pass-")]) == 3
        with pytest.raises(DestinationExistsError, match="differs in the analyses, their options or the tokens"):
            dx.save_results(dx.analyze(place, tokens="all", **some), f"{here}/r.zarr")
        dx.save_results(dx.analyze(place, **some), f"{here}/r.zarr")
        assert sorted(looked) == [0, 1, 2, 3]
        assert not [key for key in keys(here) if ".progress" in key]
        dx.save_results(dx.analyze(place, **some), tmp_path / "whole.zarr")
    assert keys(f"{here}/r.zarr").keys() == location.key_sizes(LocalStore(tmp_path / "whole.zarr")).keys()
    for key in keys(f"{here}/r.zarr").keys() - {"zarr.json"}:
        assert location.read(f"{here}/r.zarr", key) == location.read(tmp_path / "whole.zarr", key), key


def upload(path: Path, place: str) -> None:
    """Copy a store, as any tool for S3 would."""
    for file in path.rglob("*"):
        if file.is_file():
            location.write(place, file.relative_to(path).as_posix(), file.read_bytes())


def test_listing_takes_one_request_per_thousand_keys(
    here: str, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(recording, f"{here}/run.zarr")
    listings: list[str | None] = []
    real = obstore.list

    def noted(store: Any, prefix: str | None = None, **options: Any) -> Any:
        listings.append(prefix)
        return real(store, prefix, **options)

    monkeypatch.setattr(obstore, "list", noted)
    store.open_group(f"{here}/run.zarr")
    assert len(listings) == 2  # whether it is there, and what is there


@pytest.fixture(scope="module")
def sharded(source: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real run with several chunks in a file."""
    path = tmp_path_factory.mktemp("shards") / "run.zarr"
    return Path(dx.convert(source, path, shard="2MB", dead_ids=_dead(recording)))


class TestShards:
    def test_fewer_files_with_the_same_values(self, sharded: Path, recording: Path) -> None:
        group, _ = store.open_group(sharded)
        array = group["W"]
        assert isinstance(array, zarr.Array)
        assert array.shards is not None
        assert array.shards[1] > array.chunks[1]
        np.testing.assert_array_equal(bits(sharded), bits(recording))
        n_files = len([p for p in (sharded / "W" / "c").rglob("*") if p.is_file()])
        assert n_files == 3

    def test_zarr_reads_the_same_values(self, sharded: Path, recording: Path) -> None:
        plain = xr.open_zarr(sharded, consolidated=False)
        ours = dx.open_recording(recording, raw=True).sel(token=plain.token.values)
        np.testing.assert_array_equal(plain.W.values.view("u2"), ours.W.values.view("u2"))

    def test_shards_equal_those_of_zarr_byte_for_byte(self, sharded: Path, tmp_path: Path) -> None:
        """The same chunks, readable either way, through an array that zarr filled itself."""
        group, _ = store.open_group(sharded)
        ours: Any = group["W"]
        theirs = store.create_array(
            zarr.create_group(str(tmp_path / "z")), "W", ours.shape, ("step", "token", "dim"), ours.dtype, ours.chunks,
            ours.shards,
        )  # fmt: skip
        theirs[...] = ours[...]
        one, other = chunk_reader.chunk_reader(ours), chunk_reader.chunk_reader(theirs)
        assert one.direct
        assert other.direct
        for position in np.ndindex(*ours.cdata_shape):
            np.testing.assert_array_equal(one(position).view("u2"), other(position).view("u2"))

    def test_analyses_read_only_the_chunks_they_need(self, sharded: Path, recording: Path) -> None:
        found = dx.motion(dx.open_recording(sharded, tokens="dead")).compute()
        expected = dx.motion(dx.open_recording(recording, tokens="dead")).compute()
        np.testing.assert_array_equal(found.lattice_l2, expected.lattice_l2)

    @pytest.mark.parametrize("where", ["a chunk", "the index", "the end"])
    def test_damaged_shards_are_errors(self, sharded: Path, source: Path, tmp_path: Path, where: str) -> None:
        copy = Path(shutil.copytree(sharded, tmp_path / "run.zarr"))
        file = copy / "W" / "c" / "1" / "0" / "0"
        data = bytearray(file.read_bytes())
        if where == "the end":
            data = data[:-3]
        else:
            data[200 if where == "a chunk" else -20] ^= 4
        file.write_bytes(data)
        with pytest.raises(DamagedStoreError, match="step positions 128..255"):
            dx.open_recording(copy)["W"].compute()
        assert dx.verify(copy).problems
        file.unlink()
        with pytest.raises(IncompleteStoreError, match="missing"):
            dx.open_recording(copy)

    def test_another_shard_size_does_not_resume(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            dx.convert(source, tmp_path / "r.zarr", shard="1MB", progress=stop_at(0.4))
        with pytest.raises(DestinationExistsError, match="differs in the variables"):
            dx.convert(source, tmp_path / "r.zarr", shard="2MB")
        dx.convert(source, tmp_path / "r.zarr", shard="1MB")
        assert not dx.verify(tmp_path / "r.zarr", source).problems


def test_two_writers_of_one_destination_are_told_apart(
    here: str, source: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{here}/run.zarr"
    with InProgress(place, "conversion").held() as first:
        taken = r"is being written by another conversion \(process \d+ on .* s ago\): wait for it"
        with pytest.raises(DestinationExistsError, match=taken):
            dx.convert(source, place)
        first.check_held()
        with monkeypatch.context() as patch:
            patch.setattr(lease, "LEASE_SECONDS", -1)  # as if the first had not renewed its lock for long
            with InProgress(place, "conversion").held():
                first._lease._renew_once()  # type: ignore[union-attr]
                with pytest.raises(DestinationExistsError, match="which took over because this process had stopped"):
                    first.check_held()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = {**lease._this_process(), "pid": ended.pid}  # killed
    location.write(InProgress(place, "conversion").place, lease.NAME, json.dumps(owner).encode())
    dx.convert(source, place)
    assert not location.exists(InProgress(place, "conversion").place)
    before = keys(place)
    dx.convert(source, place)  # the same conversion is complete
    assert keys(place) == before


def stop_at(share: float) -> Any:
    def progress(done: int, total: int) -> None:
        if done > share * total:
            raise KeyboardInterrupt

    return progress


class TestConnectionFailures:
    @pytest.fixture
    def proxy(self, s3: str, here: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
        made = Proxy(s3, cuts=0, after=50_000)
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.address)
        yield made
        made.close()

    def test_connections_cut_in_the_middle_of_writes(self, proxy: Proxy, here: str, source: Path) -> None:
        proxy.cuts = 4
        dx.convert(source, f"{here}/run.zarr", shard="1MB")
        assert proxy.n_cut == 4
        assert not dx.verify(f"{here}/run.zarr", source).problems

    def test_connections_cut_while_results_are_written(self, proxy: Proxy, here: str, recording: Path) -> None:
        proxy.cuts, proxy.after = 3, 5_000
        tree = dx.save_results(dx.analyze(recording, analyses=["motion"]), f"{here}/r.zarr")
        assert proxy.n_cut == 3
        expected = dx.motion(dx.open_recording(recording, tokens="dead")).compute()
        np.testing.assert_array_equal(tree["motion"]["displacement"], expected["displacement"])

    def test_conversion_resumes_after_the_server_was_unreachable(self, proxy: Proxy, here: str, source: Path) -> None:
        place = f"{here}/run.zarr"

        def pull(done: int, total: int) -> None:
            proxy.dead = done > 0.5 * total

        with pytest.raises(StorageError, match=r"cannot connect: check the network.*the same command resumes"):
            dx.convert(source, place, progress=pull)
        proxy.dead = False
        with pytest.raises(IncompleteStoreError, match="was not written to its end"):
            dx.open_recording(place)
        there = {key for key in keys(place) if key.startswith("W/c/")}
        written: list[int] = []
        dx.convert(source, place, progress=lambda done, total: written.append(done))
        assert there
        assert written[0] > 0  # what is there is not written again
        assert not dx.verify(place, source).problems

    def test_interrupted_conversion_resumes(self, here: str, source: Path) -> None:
        place = f"{here}/run.zarr"
        with pytest.raises(KeyboardInterrupt):
            dx.convert(source, place, progress=stop_at(0.5))
        began = {key: location.read(place, key) for key in keys(place)}
        with pytest.raises(DestinationExistsError, match="differs in the settings"):
            dx.convert(source, place, shard="1MB")
        dx.convert(source, place)
        assert {key: location.read(place, key) for key in began if "zarr.json" not in key} == {
            key: data for key, data in began.items() if "zarr.json" not in key
        }
        assert not dx.verify(place, source).problems

    def test_lost_object_is_reported_as_missing_chunk(self, here: str, recording: Path) -> None:
        place = f"{here}/run.zarr"
        upload(recording, place)
        rec = dx.open_recording(place)
        obstore.delete(location.zarr_store(place).store, "W/c/1/0/0")
        with pytest.raises(DamagedStoreError, match="step positions 128..255.*missing or damaged"):
            rec["W"].compute()
        with pytest.raises(IncompleteStoreError, match="'W' are missing"):
            dx.open_recording(place)

    @pytest.mark.parametrize("command", ["open", "convert", "save"])
    def test_missing_bucket_is_reported(self, here: str, source: Path, recording: Path, command: str) -> None:
        do(command, "s3://no-such-bucket/run.zarr", source, recording, "the bucket does not exist: create it")

    @pytest.mark.parametrize("command", ["open", "convert", "save"])
    def test_unreachable_server_is_reported(
        self, proxy: Proxy, here: str, source: Path, recording: Path, command: str
    ) -> None:
        proxy.dead = True
        do(command, f"{here}/run.zarr", source, recording, "cannot connect: check the network")

    def test_denied_access_is_reported(
        self, tmp_path: Path, source: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with server(tmp_path / "log", INITIAL_NO_AUTH_ACTION_COUNT="3") as address:
            client(address).create_bucket(Bucket=BUCKET)
            iam = client(address, "iam")
            iam.create_user(UserName="reader")
            made = iam.create_access_key(UserName="reader")["AccessKey"]
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            monkeypatch.setenv("AWS_REGION", "us-east-1")
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
            for command in ("open", "convert", "save"):
                do(command, f"s3://{BUCKET}/run.zarr", source, recording, "access is denied")
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
            do("open", f"s3://{BUCKET}/run.zarr", source, recording, "the access key is unknown")


def do(command: str, place: str, source: Path, recording: Path, match: str) -> None:
    commands: dict[str, Callable[[], Any]] = {
        "open": lambda: dx.open_recording(place),
        "convert": lambda: dx.convert(source, place),
        "save": lambda: dx.save_results(dx.analyze(recording, analyses=["motion"]), place),
    }
    with pytest.raises(StorageError, match=match):
        commands[command]()


def test_tasks_contain_no_secrets(here: str, recording: Path) -> None:
    import cloudpickle

    upload(recording, f"{here}/run.zarr")
    rec = dx.open_recording(f"{here}/run.zarr")
    sent = cloudpickle.dumps(dict(dx.motion(rec)["lattice_l2"].__dask_graph__()))
    assert KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in sent
    assert f"{BUCKET}".encode() in sent
