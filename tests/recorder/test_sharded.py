"""Recording an embedding that FSDP2 shards over two processes: one store, as a single process makes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deadtok_xr as dx
from tests.recorder.test_training_loops import ALL, Tied, train

pytestmark = pytest.mark.slow

SHARDED = """
import os, sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import deadtok_xr as dx
from tests.recorder.test_training_loops import ALL, Tied, train

rank, folder, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{kind}", rank=rank, world_size=2)
model = Tied()
fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
options = dict(variables=ALL, dead=range(8, 12), memory=2**12)
path, weight = f"{folder}/r.zarr", model.embedding.weight
if kind == "first":
    recorder = dx.Recorder(weight, optimizer, path, **options).__enter__()
    train(model, optimizer, range(21), lambda step, loss: recorder.log(loss=loss))
    while rank == 0 and dx.open_recording(path, partial=True).sizes["step"] < 16:
        pass
    dist.barrier()
    os._exit(0)  # the store is left as a kill leaves it
train(model, optimizer, range(12))  # as restored from a checkpoint of step 12
try:
    dx.Recorder(weight, optimizer, path, **options).__enter__()
except dx.errors.InputError as error:
    assert "exists already" in str(error)
with dx.Recorder(weight, optimizer, path, resume=True, **options) as recorder:
    train(model, optimizer, range(12, 25), lambda step, loss: recorder.log(loss=loss))
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_write_one_store_and_resume_it(tmp_path: Path) -> None:
    pytest.importorskip("torch.distributed.fsdp", reason="this torch has no FSDP2")
    import torch

    for kind in ("first", "second"):
        command = [sys.executable, "-c", SHARDED]
        processes = [
            subprocess.Popen(
                [*command, str(rank), str(tmp_path), kind], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE
            )
            for rank in range(2)
        ]
        for process in processes:
            assert process.wait(150) == 0, process.stderr.read().decode()[-3000:]  # type: ignore[union-attr]
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    options: dict[str, Any] = {"variables": ALL, "dead": range(8, 12)}
    with dx.Recorder(model.embedding.weight, optimizer, tmp_path / "alone.zarr", **options) as recorder:
        train(model, optimizer, range(25), lambda step, loss: recorder.log(loss=loss))
    found, alone = (dx.open_recording(tmp_path / name) for name in ("r.zarr", "alone.zarr"))
    assert found.sizes == alone.sizes
    for name in (*ALL, "loss", "lr"):
        np.testing.assert_array_equal(found[name].values, alone[name].values, err_msg=name)
    assert found.attrs["complete"]
    assert found.attrs["parameter_shape"] == [12, 4]
    why = dx.mechanism(found).compute()
    assert (why.replay_agreement == 1).all()
