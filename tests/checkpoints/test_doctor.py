"""`dx.doctor` and `deadtok doctor`: against adding ±lr and rounding, over any bits; every reader; what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import deadtok_xr as dx
from deadtok_xr.cli import main
from deadtok_xr.errors import InputError

FORMATS: dict[str, tuple[Any, Any]] = {
    "bfloat16": (ml_dtypes.bfloat16, torch.bfloat16),
    "float16": (np.float16, torch.float16),
    "float32": (np.float32, torch.float32),
    "float64": (np.float64, torch.float64),
}
EDGES = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, float("inf"), float("-inf"), float("nan"))


def tensor(values: np.ndarray) -> torch.Tensor:
    name = np.dtype(values.dtype).name
    width = np.dtype(values.dtype).itemsize
    return torch.from_numpy(values.view(f"i{width}").copy()).view(FORMATS[name][1])


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Any bits of any format, with edges: zeros, ones, powers of two, subnormals, infinities, NaN."""
    kind = np.dtype(FORMATS[draw(st.sampled_from(sorted(FORMATS)))][0])
    width = 8 * kind.itemsize
    words = draw(st.lists(st.integers(0, 2**width - 1), min_size=1, max_size=40))
    bits = np.array(words, np.uint64).astype(f"u{kind.itemsize}").view(kind)
    subnormals = np.array([1, 2, 3], f"u{kind.itemsize}").view(kind)
    edges = draw(st.lists(st.sampled_from([*EDGES, 2.0**-3, 2.0**5]), max_size=10))
    return np.concatenate([bits, np.array(edges, kind), subnormals[: draw(st.integers(0, 3))]])


def rounded(exact: Fraction, kind: np.dtype[Any]) -> float:
    """Round to nearest, ties to even, by distance alone: infinity stands one gap beyond the largest number."""
    largest = float(ml_dtypes.finfo(kind).max)
    with np.errstate(over="ignore"):
        near = kind.type(float(exact))
    near = near if np.isfinite(near.astype(np.float64)) else kind.type(np.copysign(largest, float(exact)))
    around = [near, *(np.nextafter(near, kind.type(s * np.inf)) for s in (1, -1))]
    beyond = Fraction(largest) + (Fraction(largest) - Fraction(float(np.nextafter(kind.type(largest), kind.type(0)))))

    def at(x: Any) -> Fraction:
        return Fraction(float(x)) if np.isfinite(float(x)) else (beyond if float(x) > 0 else -beyond)

    def key(x: Any) -> tuple[Fraction, int]:
        return abs(at(x) - exact), int(np.array(x).view(f"u{kind.itemsize}")) & 1

    return float(min(around, key=key))


@settings(max_examples=30, deadline=None)
@given(arrays(), st.data())
def test_stuck_is_what_adding_and_rounding_says(tmp_path_factory: Any, values: np.ndarray, data: st.DataObject) -> None:
    kind = values.dtype
    finite = [float(x) for x in values if np.isfinite(float(x))]
    gaps = [abs(float(np.nextafter(kind.type(x), kind.type(0))) - x) / 2 for x in finite if x] or [1.0]
    factor = data.draw(st.sampled_from([1, 2, 0.5, 1 + 2**-8, 1 - 2**-8]))
    lr = data.draw(st.sampled_from(gaps)) * factor or 1e-3
    if not np.isfinite(lr):
        lr = 1e-3
    file = tmp_path_factory.mktemp("stuck") / "model.safetensors"
    save_file({"w": tensor(values)}, file)
    found = dx.doctor(file, lr=lr).isel(parameter=0)
    step = Fraction(lr)
    stays = [[rounded(Fraction(x) + sign * step, kind) == x for sign in (1, -1)] for x in finite]
    outward = [stay[0] if x >= 0 else stay[1] for x, stay in zip(finite, stays, strict=True)]
    assert int(found.n_not_finite) == len(values) - len(finite)
    if not finite:
        assert np.isnan([found.stuck_fraction, found.lr_to_move_half, found.at_one_fraction]).all()
        return
    assert float(found.stuck_fraction) == sum(map(all, stays)) / len(finite)
    assert float(found.stuck_outward_fraction) == sum(outward) / len(finite)
    assert float(found.at_one_fraction) == finite.count(1.0) / len(finite)
    assert float(found.at_zero_fraction) == finite.count(0.0) / len(finite)
    for share, rate in ((0.5, found.lr_to_move_half), (1.0, found.lr_to_move_all)):
        at = Fraction(float(rate))
        if not at:
            continue  # 2^-1075, half the smallest number of float64
        for around, enough in ((at * Fraction(1001, 1000), True), (at * Fraction(999, 1000), False)):
            moves = [any(rounded(Fraction(x) + s * around, kind) != x for s in (1, -1)) for x in finite]
            assert (sum(moves) >= share * len(finite)) is enough


def finite(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaN
        return np.isfinite(x.astype(np.float64))


@settings(max_examples=30, deadline=None)
@given(arrays(), st.data())
def test_differences_of_two_checkpoints(tmp_path_factory: Any, a: np.ndarray, data: st.DataObject) -> None:
    kind, folder = a.dtype, tmp_path_factory.mktemp("two")
    words = a.view(f"u{kind.itemsize}").copy()
    flips = data.draw(
        st.lists(st.sampled_from([0, 0, 1, 3, 2 ** (8 * kind.itemsize - 1)]), min_size=len(a), max_size=len(a))
    )
    b = (words ^ np.array(flips, words.dtype)).view(kind)
    save_file({"w": tensor(a)}, folder / "a.safetensors")
    save_file({"w": tensor(b)}, folder / "b.safetensors")
    found = dx.doctor(folder / "a.safetensors", folder / "b.safetensors").isel(parameter=0)
    changed = sum(map(bool, flips))
    assert int(found.changed) == changed
    assert float(found.unchanged_fraction) == pytest.approx(1 - changed / len(a), abs=1e-15)
    magnitude = 2 ** (8 * kind.itemsize - 1) - 1

    def position(word: np.unsignedinteger[Any]) -> int:
        return (int(word) & magnitude) * (-1 if int(word) > magnitude else 1)

    pairs = zip(words, b.view(words.dtype), finite(a) & finite(b), strict=True)
    far = [abs(position(x) - position(y)) for x, y, both in pairs if both]
    assert int(found.max_ulp_distance) == (min(max(far), 2**63 - 1) if far else -1)
    assert "stuck_fraction" not in found


# --- files -----------------------------------------------------------------------------------------


def tiny(dtype: torch.dtype = torch.bfloat16, layers: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {"embed.weight": torch.randn(30, 8, generator=generator).mul(0.02).to(dtype)}
    for i in range(layers):
        found[f"layers.{i}.input_layernorm.weight"] = torch.ones(8, dtype=dtype)
        found[f"layers.{i}.mlp.weight"] = torch.randn(8, 8, generator=generator).mul(0.02).to(dtype)
        found[f"layers.{i}.mlp.bias"] = torch.zeros(8, dtype=dtype)
    return found


def test_every_form_of_a_checkpoint_gives_the_same(tmp_path: Path) -> None:
    """One file, shards with an index in a folder, a torch file with tied names and an optimizer, and its folder."""
    model = tiny()
    save_file(model, tmp_path / "model.safetensors")
    expected = dx.doctor(tmp_path / "model.safetensors", lr=1e-4).sortby("parameter")
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = sorted(model)
    for i, part in enumerate((names[:3], names[3:]), start=1):
        save_file({name: model[name] for name in part}, folder / f"model-0000{i}-of-00002.safetensors")
    weight_map = {name: f"model-0000{1 if name in names[:3] else 2}-of-00002.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    parameters = [torch.nn.Parameter(x) for x in model.values()]
    optimizer = torch.optim.AdamW(parameters)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    state = {
        "model": {**model, "lm_head.weight": model["embed.weight"]},
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
    }
    torch.save(state, tmp_path / "all.pt")
    for form in (folder, folder / "model.safetensors.index.json"):
        assert dx.doctor(form, lr=1e-4).sortby("parameter").identical(expected.assign_attrs(a=str(form)))
    found = dx.doctor(tmp_path / "all.pt", lr=1e-4)
    found = found.assign_coords(parameter=[str(name).removeprefix("model.") for name in found.parameter.values])
    assert found.sortby("parameter").drop_attrs().equals(expected.drop_attrs())
    left_out = found.attrs["left_out"]
    assert left_out["model.lm_head.weight"] == "the same memory as 'model.embed.weight'"
    assert left_out["epoch"] == "int64, not a number format of weights"
    assert left_out["optimizer.state.0.exp_avg"] == "of the optimizer"


def test_what_cannot_be_examined_or_compared_is_named(tmp_path: Path) -> None:
    a, b = tiny(), tiny()
    a["quantized"] = torch.ones(4).to(torch.float8_e4m3fn)
    a["ids"] = torch.arange(4)
    a["empty"] = torch.ones(0)
    b["embed.weight"] = b["embed.weight"].float()
    b["layers.0.mlp.bias"] = torch.zeros(9, dtype=torch.bfloat16)
    del b["layers.1.mlp.bias"]
    b["extra"] = torch.ones(3)
    b["layers.0.mlp.weight"][0, 0] = float("nan")
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    found = dx.doctor(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert found.attrs["left_out"] == {
        "quantized": "not examined: F8_E4M3",
        "ids": "int64, not a number format of weights",
        "empty": "without elements",
    }
    assert found.attrs["not_compared"] == {
        "embed.weight": "bfloat16 became float32",
        "layers.0.mlp.bias": "the shape (8,) became (9,)",
        "layers.1.mlp.bias": "not in the second checkpoint",
    }
    assert found.attrs["only_in_b"] == ["extra"]
    refused = found.sel(parameter=list(found.attrs["not_compared"]))
    assert (refused.changed == -1).all()
    assert (refused.max_ulp_distance == -1).all()
    assert refused.unchanged_fraction.isnull().all()
    assert int(found.changed.sel(parameter="layers.0.mlp.weight")) == 1
    found.to_netcdf(tmp_path / "found.nc")


def test_averages_are_left_out_and_prefixes_too(tmp_path: Path) -> None:
    plain, later = tiny(), tiny()
    later["embed.weight"][3] *= 2
    torch.save({"ema": tiny(), "model": later}, tmp_path / "both.pt")
    save_file(plain, tmp_path / "plain.safetensors")
    both, one = (dx.doctor(tmp_path / name, lr=1e-4) for name in ("both.pt", "plain.safetensors"))
    assert both.parameter.values.tolist() == [f"model.{name}" for name in later]
    assert set(both.attrs["left_out"].values()) == {"an average of the weights over time"}
    for a, b in (("both.pt", "plain.safetensors"), ("plain.safetensors", "both.pt")):
        found = dx.doctor(tmp_path / a, tmp_path / b)
        assert not found.attrs["not_compared"]
        assert [bool(n) for n in found.changed] == ["embed.weight" in name for name in found.parameter.values]
    assert int(one.numel.sum()) == int(both.numel.sum())


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    save_file(tiny(), tmp_path / "a.safetensors")
    save_file({"other": torch.ones(3)}, tmp_path / "b.safetensors")
    save_file({"ids": torch.arange(3)}, tmp_path / "c.safetensors")
    for step in (1, 2):
        save_file(tiny(), tmp_path / f"run_step_{step}.safetensors")
    a = tmp_path / "a.safetensors"
    for lr in (0.0, -1.0, float("nan"), float("inf"), "1e-5"):
        with pytest.raises(InputError, match="expected: a positive number, such as lr=1e-5"):
            dx.doctor(a, lr=lr)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="have no parameter in common: 'embed.weight' is in the first, 'other' in"):
        dx.doctor(a, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="holds no parameters: ids int64"):
        dx.doctor(tmp_path / "c.safetensors")
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.safetensors").rename(tmp_path / f"{name}.kept")
    with pytest.raises(
        InputError, match="holds the checkpoints of several steps; expected: that of one: give .*run_step_1.safetensors"
    ):
        dx.doctor(tmp_path)


# --- the command -----------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["deadtok", "doctor", "-q", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().out


def test_the_command_says_what_is_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny(layers=33)
    model |= {f"{'very_long_name_' * 8}{chr(97 + i % 26)}{chr(97 + i // 26)}.mix": torch.ones(4) for i in range(90)}
    model["broken"] = torch.full((3,), float("nan"))
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(model, a)
    save_file({**model, "embed.weight": model["embed.weight"] + 1}, b)
    status, printed = run(monkeypatch, capsys, a, b, "--lr", "1e-5")
    lines = printed.splitlines()
    assert status == 3
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert lines[0] == "33 norm weights of the first checkpoint cannot move at lr 1e-5: keep them in float32."
    assert "3 values of 1 parameter are NaN or infinite and not counted (broken)." in lines
    assert "All values of 33 norm weights are exactly 1.0 in both checkpoints." in lines
    assert any(line.split()[:4] == ["layers.*.input_layernorm.weight", "33", "bf16", "264"] for line in lines)
    assert lines[-1].endswith("more lines: --details shows all")
    assert run(monkeypatch, capsys, a, b, "--details")[1].count("\n") > 190
    status, printed = run(monkeypatch, capsys, a, b, "--lr", "1e-5", "--json")
    facts = json.loads(printed)
    assert (status, facts["stuck"], facts["lr"]) == (3, True, 1e-5)
    assert facts["findings"][0] == lines[0]
    by_name = {row["parameter"]: row for row in facts["parameters"]}
    assert len(by_name) == len(model)
    assert by_name["broken"]["stuck_fraction"] is None
    assert by_name["embed.weight"]["changed"] > 0


def test_the_exit_status_is_for_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    single, half = tmp_path / "single.safetensors", tmp_path / "half.safetensors"
    save_file(tiny(torch.float32), single)
    values = torch.cat([torch.full((1,), 4.0), torch.full((99,), 2.0**-20)]).bfloat16()
    save_file({"w": values}, half)
    status, printed = run(monkeypatch, capsys, single, "--lr", "1e-5")
    assert (status, printed.splitlines()[0]) == (
        0, "Nothing is stuck: at lr 1e-5 every finite value of 7 parameters can move.",
    )  # fmt: skip
    assert run(monkeypatch, capsys, half, "--lr", "1e-5")[0] == 3
    assert run(monkeypatch, capsys, half, "--lr", "1e-5", "--allow", "0.01")[0] == 0
    assert run(monkeypatch, capsys, half)[0] == 0  # without a rate nothing is counted
    assert run(monkeypatch, capsys, half, half)[0] == 3  # no value changed
    assert run(monkeypatch, capsys, tmp_path / "nothing")[0] == 2


MEMORY = """
import sys, deadtok_xr as dx
from pathlib import Path
def status(key): return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024
small, large = sys.argv[1:]
dx.doctor(small, small, lr=1e-5)
before = status("VmHWM")
dx.doctor(large, large, lr=1e-5)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Six slabs of 2 MiB for each of two checkpoints of 400 MB."""
    block = torch.randn(100_000_000).mul(0.02).bfloat16()
    save_file({"a.weight": block, "b.weight": block.clone()}, tmp_path / "large.safetensors")
    save_file({"a.weight": block[:10]}, tmp_path / "small.safetensors")
    command = [sys.executable, "-c", MEMORY, tmp_path / "small.safetensors", tmp_path / "large.safetensors"]
    assert int(subprocess.run(command, check=True, capture_output=True).stdout) < 64e6


def test_what_can_only_shrink_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1.0 moves down at half the rate that it needs to move up."""
    save_file({"w": torch.ones(64, dtype=torch.bfloat16)}, tmp_path / "ones.safetensors")
    for lr, how in (("0.003", ", 100.0% of them towards zero alone."), ("0.005", ".")):
        said = " ".join(run(monkeypatch, capsys, tmp_path / "ones.safetensors", "--lr", lr)[1].split())
        assert said.startswith(f"Nothing is stuck: at lr {lr} every finite value of 1 parameter can move{how}")


def test_a_store_without_weights_is_no_checkpoint(tmp_path: Path) -> None:
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([p], lr=0.1)
    with dx.Monitor([("p", p)], optimizer, tmp_path / "monitor.zarr"):
        p.grad = torch.ones(4)
        optimizer.step()
    with pytest.raises(InputError, match=r"monitor.zarr holds what a Monitor counted, and no weights.*open_monitor"):
        dx.doctor(tmp_path / "monitor.zarr")
    recording = dx.testing.synthetic_recording(tmp_path / "r.zarr", steps=4, tokens=3, dims=2)
    dx.save_results(dx.analyze(recording, analyses=["motion"], tokens="all"), tmp_path / "results.zarr")
    with pytest.raises(InputError, match=r"results.zarr holds the results of analyses, and no weights.*open_results"):
        dx.doctor(tmp_path / "results.zarr")
