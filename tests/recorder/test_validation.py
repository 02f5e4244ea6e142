"""Arguments of a Recorder: which are refused, and which may have several forms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deadtok_xr as dx
from deadtok_xr.errors import InputError

MASK = np.arange(12) >= 8


def made(folder: Path, log: Mapping[str, Any] = {}, **options: Any) -> Any:
    """Two updates, recorded."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(12, 4).bfloat16())
    given = {"parameter": weight, "optimizer": torch.optim.AdamW([weight], lr=1e-2), "path": folder / "r.zarr"}
    with dx.Recorder(**{**given, **options}) as recorder:
        for _ in range(2):
            weight.grad = torch.randn(12, 4).bfloat16()
            given["optimizer"].step()
            recorder.log(**log)
    return dx.open_recording(folder / "r.zarr")


@pytest.mark.parametrize(
    "dead", [MASK, torch.from_numpy(MASK), MASK.tolist(), torch.arange(8, 12), [8.0, 9, 10, 11, 11]]
)
def test_dead_tokens_are_ids_or_a_mask(tmp_path: Path, dead: Any) -> None:
    ds = made(tmp_path, dead=dead)
    assert ds.token[ds.dead].values.tolist() == [8, 9, 10, 11]


def test_rows_may_be_a_mask(tmp_path: Path) -> None:
    assert made(tmp_path, rows=MASK).token.values.tolist() == [8, 9, 10, 11]


def test_attrs_may_be_numpy_or_torch_values(tmp_path: Path) -> None:
    facts = {
        "lr0": np.float32(0.5),
        "ids": np.arange(2),
        "scale": torch.tensor(2),
        "file": Path("a"),
        "plain": [1, "b"],
    }
    attrs = made(tmp_path, attrs=facts).attrs
    found = [attrs[name] for name in facts]
    assert found == [0.5, [0, 1], 2, "a", [1, "b"]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"dead": [True, False]},
            "dead ids: found 2 bools; expected vocabulary ids from 0 to 11, or one bool per row, 12",
        ),
        ({"dead": [8, 8.5]}, "dead ids: found 8.5; expected vocabulary ids"),
        ({"dead": ["a"]}, "dead ids: found 'a'"),
        ({"dead": 8}, "dead ids: found int of the shape"),
        ({"rows": [1, 1]}, "rows names token 1 twice"),
        ({"steps": 3}, "steps=3; expected a list of update numbers; every=k"),
        ({"memory": "1GB"}, "memory='1GB'; expected a number of bytes"),
        ({"memory": 0}, "memory=0; expected"),
        ({"first_step": 1.5}, "first_step=1.5; expected the number of updates"),
        ({"attrs": {"x": object()}}, "which JSON cannot hold"),
        ({"attrs": [1]}, "attrs is a list"),
        ({"attrs": {"complete": True}}, "the recorder writes 'complete' itself"),
        ({"token_text": "abcdefghijkl"}, "expected a list with one text per row"),
        ({"token_text": list(range(12))}, "expected a list with one text per row"),
        ({"variables": None}, "cannot record ''"),
        ({"scaler": object()}, "scaler is a object; expected the loop's GradScaler"),
        ({"also": [1]}, "also is a list; expected parameters by name"),
        ({"optimizer": None}, "the optimizer is a NoneType; expected a torch optimizer"),
        ({"path": "s3://bucket/r.zarr"}, "is an address; expected a path on this machine"),
        ({"path": None}, "path=None; expected the folder to write"),
        ({"log": {"train/loss": 1.0}}, "log\\('train/loss'=...\\): expected a name of letters"),
        ({"log": {"zarr.json": 1.0}}, "expected a name of letters"),
        ({"log": {"x": []}}, "found the shape \\(0,\\); expected a scalar or a vector"),
    ],
)
def test_invalid_arguments_are_refused_immediately(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        made(tmp_path, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_dtypes_that_cannot_be_stored_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 4).to(dtype), requires_grad=False)
    with pytest.raises(InputError, match=f"W has the dtype {str(dtype)[6:]}; expected bfloat16, float16, float32"):
        dx.Recorder(weight, torch.optim.SGD([weight]), tmp_path / "r.zarr")


def test_log_after_the_with_block_is_refused(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    with dx.Recorder(weight, torch.optim.SGD([weight]), tmp_path / "r.zarr") as recorder:
        pass
    with pytest.raises(InputError, match="after the Recorder was left"):
        recorder.log(loss=1.0)
