"""Arrays that are made shorter can be read at every moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from deadtok_xr import store
from deadtok_xr.store import length


@pytest.mark.parametrize("after", [0, 1, 99])
def test_all_arrays_are_shorter_before_a_chunk_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The process ends before the removal of chunks of the first array, of the second, or not at all."""
    root = zarr.create_group(str(tmp_path / "s"))
    values = {"step": np.arange(20), "x": np.arange(60.0).reshape(20, 3)}
    for name, value in values.items():
        array = store.create_array(
            root, name, value.shape, ("step", "dim")[: value.ndim], value.dtype, (4, 3)[: value.ndim]
        )
        array[...] = value
    removed: list[Path] = []
    real = length._remove_chunks

    def remove(folder: Path, first: int) -> None:
        if len(removed) == after:
            raise KeyboardInterrupt
        real(folder, first)
        removed.append(folder)

    monkeypatch.setattr(length, "_remove_chunks", remove)
    arrays: dict[str, Any] = dict(root.arrays())
    if after < 2:
        with pytest.raises(KeyboardInterrupt):
            length.set_n_steps(root, arrays, 7)
    else:
        arrays = length.set_n_steps(root, arrays, 7)
        assert {name: array.shape[0] for name, array in arrays.items()} == {"step": 7, "x": 7}
        assert not (tmp_path / "s/x/c/2").exists()
        assert not (tmp_path / "s/step/c/2").exists()
    for name, value in values.items():
        np.testing.assert_array_equal(zarr.open_group(str(tmp_path / "s"), mode="r")[name][...], value[:7])  # type: ignore[index]
