"""The compiled replay of Adam gives what torch's operations give, to the bit, for tensors of any bits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadtok_xr import kernels
from deadtok_xr.analyses.common import fused_replay, replay_verdict, replayed_updates
from deadtok_xr.bfloat16 import get_grid
from deadtok_xr.replay import Settings
from deadtok_xr.replay.arithmetic import to_tensor

N, D = 4, 64
SPECIAL = {
    "bfloat16": [0, 0x8000, 1, 0x8001, 0x7F, 0x80, 0x3F80, 0xBF80, 0x3F7F, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0, 0x7F81],
    "float32": [
        0,
        1 << 31,
        1,
        0x7FFFFF,
        0x800000,
        0x3F800000,
        0xBF800000,
        0x7F7FFFFF,
        0x7F800000,
        0xFF800000,
        0x7FC00001,
    ],
}
SETTINGS = st.builds(
    Settings,
    st.sampled_from(["Adam", "AdamW"]),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.9999)),
    eps=st.sampled_from([0.0, 1e-8, 1e-3]),
    weight_decay=st.sampled_from([0.0, 0.01, 0.5]),
    amsgrad=st.booleans(),
    maximize=st.booleans(),
).filter(lambda s: not s.added_decay)


def tensors(rng: np.random.Generator, grid: str, random_bits: float) -> dict[str, Any]:
    """Tensors of usual sizes, and a share of them of random and special bits."""
    words = np.dtype(f"u{get_grid(grid).dtype.itemsize}")
    found = {}
    for name in (*fused_replay.NEEDED, "max_exp_avg_sq"):
        x = (rng.normal(size=(N, D)) * 10.0 ** rng.integers(-4, 1, (N, D))).astype(get_grid(grid).dtype).view(words)
        bits = rng.integers(0, np.iinfo(words).max, (N, D), words, endpoint=True)
        bits = np.where(rng.random((N, D)) < 0.5, bits, rng.choice(np.array(SPECIAL[grid], words), (N, D)))
        x = np.where(rng.random((N, D)) < random_bits, bits, x)
        x = x & np.iinfo(words).max // 2 if name.endswith("sq") else x
        found[name] = x.astype(words).view(get_grid(grid).dtype)
    return found


@pytest.mark.parametrize("grid", ["bfloat16", "float32"])
@pytest.mark.parametrize("arithmetic", ["single", "foreach"])
@given(s=SETTINGS, t=st.sampled_from([1, 2, 1000]), lr=st.sampled_from([0.0, 1e-5, 0.1]),
       random_bits=st.sampled_from([0.0, 0.1, 1.0]), seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_the_kernel_replays_what_torch_does(
    grid: str, arithmetic: str, s: Settings, t: int, lr: float, random_bits: float, seed: int
) -> None:
    grids = dict.fromkeys((*fused_replay.NEEDED, "max_exp_avg_sq"), grid)
    fuses = fused_replay.fused_operations(s, arithmetic, grids)
    if fuses is None:
        pytest.skip("torch computes otherwise on this CPU, and is used")
    rng = np.random.default_rng(seed)
    before, after = tensors(rng, grid, random_bits), tensors(rng, grid, random_bits)
    if seed % 4:  # else nearly no element equals the replay
        with np.errstate(all="ignore"):
            fused_replay.updated(s, arithmetic, t, lr, before, after)
    lattice = kernels.lattice(grid)
    out = fused_replay.outputs(N, D)
    fused_replay.replay(s, arithmetic, fuses, t, lr, before, after, lattice, out)

    partial = np.zeros(1, replayed_updates.PARTIAL)
    of_tokens = {"cause": np.zeros(N, np.int8), "margin": np.zeros(N), "intended": np.zeros(N, np.float32)}
    net = np.zeros((N, 2, D))
    by_torch = ({name: to_tensor(x) for name, x in x.items()} for x in (before, after))
    engine = kernels.engine("mechanism", False)
    replayed_updates._replay(engine, s, arithmetic, lattice, t, lr, *by_torch, of_tokens, net, partial[0])
    for name, expected in {**of_tokens, "net": net}.items():
        np.testing.assert_array_equal(out["length" if name == "intended" else name], expected, err_msg=name)
    names = (*replayed_updates.COUNTS, *replayed_updates.SUMS[:-1], *fused_replay.OPTIMIZER_COUNTS)
    found = dict(zip(names, (*out["counts"], *out["sums"], *out["optimizer"]), strict=True))
    for name, value in found.items():
        np.testing.assert_array_equal(value, partial[0][name], err_msg=name)


@pytest.mark.parametrize("grid", ["bfloat16", "float32"])
def test_the_trial_tells_fused_operations_from_others(grid: str) -> None:
    fuses = fused_replay.tried("single", grid)
    if fuses is None:
        pytest.skip("torch computes otherwise on this CPU, and is used")
    assert not fused_replay._agrees("single", grid, not fuses)


def test_the_verdict_is_kept_for_processes_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cache_folder", lambda: tmp_path)
    kept = replay_verdict.Verdict(fuses=True)
    replay_verdict.write("single-bfloat16", kept)
    assert replay_verdict.read("single-bfloat16") is None  # it may have changed how torch computes
    monkeypatch.delitem(sys.modules, "torch")
    assert replay_verdict.read("single-bfloat16") == kept
    assert replay_verdict.read("foreach-bfloat16") is None
    (file,) = tmp_path.iterdir()
    file.chmod(0o666)
    assert replay_verdict.read("single-bfloat16") is None
    file.write_text("not JSON")
    file.chmod(0o644)
    assert replay_verdict.read("single-bfloat16") is None
