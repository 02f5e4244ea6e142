"""Every source returns the saved bits of any part of an array, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.readers.formats import open_source
from deadtok_xr.conversion.readers.source import Source, read_all
from deadtok_xr.errors import InputError

Arrays = dict[str, NDArray[Any]]
STEPS = (0, 5, 10, 100)


class Tiny(torch.nn.Module):
    """An embedding tied to the head, and a layer between them."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(12, 4)
        self.mid = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 12, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.tanh(self.mid(self.wte(ids))))
        return out


def as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    tensor = tensor.detach().clone().contiguous()
    return tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def train(save: Callable[[int, Tiny, torch.optim.Optimizer, float], None]) -> None:
    """Train for a few steps in bfloat16, and save the state after each update of `STEPS`."""
    torch.manual_seed(0)
    model = Tiny().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.randint(10, (8, 5))
    for step in range(max(STEPS) + 1):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in STEPS:
            save(step, model, optimizer, loss.item())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Arrays]]:
    """Save checkpoints in several formats; return their folder and their contents."""
    root = tmp_path_factory.mktemp("runs")
    kept: dict[int, Arrays] = {}

    def save(step: int, model: Tiny, optimizer: torch.optim.Optimizer, loss: float) -> None:
        for name in ("torch", "legacy", "safe", "npz", "h5", "hf"):
            (root / name).mkdir(exist_ok=True)
        state = {n: v.clone() for n, v in model.state_dict().items() if n != "head.weight"}
        checkpoint = {
            "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict(),
            "step": step, "loss": loss, "note": "tiny",
        }  # fmt: skip
        torch.save(checkpoint, root / "torch" / f"checkpoint_step_{step:05d}.pt")
        torch.save(checkpoint, root / "legacy" / f"step-{step}.pth", _use_new_zipfile_serialization=False)
        save_file(state, root / "safe" / f"step_{step}.safetensors")
        kept[step] = {n: as_numpy(v) for n, v in model.state_dict().items()}
        kept[step] |= {f"exp_avg.{i}": as_numpy(s["exp_avg"]) for i, s in optimizer.state_dict()["state"].items()}
        kept[step]["loss"] = np.float64(loss)[()]
        numbers = {n: v.view("u2") for n, v in kept[step].items() if n == "wte.weight"}
        (np.savez if step % 2 else np.savez_compressed)(root / "npz" / f"s{step}.npz", **numbers)
        with h5py.File(root / "h5" / f"s{step}.h5", "w") as file:
            file.update(numbers)
        folder = root / "hf" / f"checkpoint-{step}"
        folder.mkdir()
        save_sharded(folder, state)
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": 0.5, "log_history": [{}]}))
        (folder / "config.json").write_text(json.dumps({"vocab_size": 12}))

    train(save)
    return root, kept


def save_sharded(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """Two shards and their index."""
    names = [list(state)[::2], list(state)[1::2]]
    files = [f"model-{i}-of-00002.safetensors" for i in ("00001", "00002")]
    for file, mine in zip(files, names, strict=True):
        save_file({n: state[n].clone() for n in mine}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: f for f, mine in zip(files, names, strict=True) for n in mine}}))
    return index


def bits(x: Any) -> NDArray[Any]:
    x = np.ascontiguousarray(x)
    return x.view(f"u{x.dtype.itemsize}") if x.dtype.kind != "b" else x.view("u1")


def check_part(source: Source, name: str, expected: NDArray[Any], draw: st.DataObject) -> None:
    """Compare a drawn part of an entry with the saved array."""
    entry = source.entries[name]
    assert (entry.shape, entry.dtype) == (expected.shape, expected.dtype)
    n_axes = draw.draw(st.integers(min(1, expected.ndim), expected.ndim))
    where = []
    for n in expected.shape[:n_axes]:
        start = draw.draw(st.integers(0, n - 1))
        where.append(slice(start, draw.draw(st.integers(start, n))))
    found = source.read(name, *where)
    assert found.dtype == expected.dtype
    assert found.shape == expected[tuple(where)].shape
    np.testing.assert_array_equal(bits(found), bits(expected[tuple(where)]))


# --- one file ------------------------------------------------------------------------------------

ARRAYS: Arrays = {
    "W": np.arange(7 * 5 * 3, dtype="u2").reshape(7, 5, 3),
    "a.b": np.random.default_rng(0).normal(size=(40, 30)),
    "fortran": np.asfortranarray(np.arange(24, dtype="i4").reshape(2, 3, 4)),
    "mask": np.arange(9) % 2 == 0,
    "scalar": np.array(3.5, "f4"),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@given(draw=st.data())
@settings(max_examples=25)
def test_npz_parts(tmp_path_factory: pytest.TempPathFactory, save: Any, draw: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    save(path, **ARRAYS, swapped=ARRAYS["W"].astype(">u2"), text=np.array("x"), things=np.array([None]))
    with open_source(path) as source:
        assert source.format == "npz"
        for _ in range(4):  # forwards and backwards
            for name, expected in ARRAYS.items():
                check_part(source, name, expected, draw)
            check_part(source, "swapped", ARRAYS["W"], draw)
        assert source.entries["things"].dtype is None
        assert source.entries["text"].dtype is None
        assert source.entries["W"].in_order == (save is np.savez_compressed)
        assert source.files() == [path]
        with pytest.raises(InputError, match="'things' cannot be read: it is Python objects"):
            source.read("things")


@given(draw=st.data())
@settings(max_examples=10)
def test_npy(tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    for name, expected in ARRAYS.items():
        path = tmp_path_factory.mktemp("npy") / f"{name}.npy"
        np.save(path, expected)
        with open_source(path) as source:
            check_part(source, name, expected, draw)


TENSORS = {
    **{name: torch.arange(60).reshape(5, 4, 3).to(getattr(torch, name)) for name in
       ("bfloat16", "float16", "float32", "float64", "int8", "uint8", "int32", "int64", "uint16")},
    "bool": torch.arange(6) % 2 == 0,
    "turned": torch.arange(60.0).reshape(5, 4, 3).permute(2, 0, 1),
    "part": torch.arange(60.0)[7:19:2],
    "zero": torch.tensor(2.5),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@given(draw=st.data())
@settings(max_examples=15)
def test_torch(tmp_path_factory: pytest.TempPathFactory, zipped: bool, draw: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("torch") / "a.pt"
    tensors = {n: t for n, t in TENSORS.items() if zipped or n != "uint16"}  # torch itself cannot load that one
    nested = {"x": [tensors, {"lr": 1e-3, "seed": 42, "decay": True, "name": "run"}], "losses": [1.0, 2.0], "dots.a": 1}
    torch.save(nested, path, _use_new_zipfile_serialization=zipped)
    with open_source(path) as source:
        for name, tensor in tensors.items():
            check_part(source, f"x.0.{name}", as_numpy(tensor), draw)
        for name, value in {"lr": 1e-3, "seed": 42, "decay": True}.items():
            check_part(source, f"x.1.{name}", np.array(value), draw)
        check_part(source, "losses", np.array([1.0, 2.0]), draw)
        assert source.attributes == {"x.1.name": "run"}
        assert "dots.a" in source.entries


def test_large_torch_reads_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that touches more of the file than may be mapped at once is divided."""
    from deadtok_xr.conversion.readers import torch_checkpoint

    monkeypatch.setattr(torch_checkpoint, "TOUCHED", 1000)
    torch.save({**TENSORS, "big": torch.arange(6000.0).reshape(20, 30, 10).permute(1, 2, 0)}, tmp_path / "a.pt")
    with open_source(tmp_path / "a.pt") as source:
        expected = np.arange(6000, dtype="f4").reshape(20, 30, 10).transpose(1, 2, 0)
        np.testing.assert_array_equal(read_all(source, "big"), expected)
        np.testing.assert_array_equal(source.read("big", slice(3, 17), slice(2, 9)), expected[3:17, 2:9])
        for name, tensor in TENSORS.items():
            np.testing.assert_array_equal(bits(read_all(source, name)), bits(as_numpy(tensor)))


def test_tied_weights_are_known(runs: tuple[Path, dict[int, Arrays]]) -> None:
    for folder in ("torch", "legacy"):
        with open_source(runs[0] / folder) as source:
            assert source.aliases == {"model_state_dict.head.weight": "model_state_dict.wte.weight"}


def test_sparse_and_quantized_tensors(tmp_path: Path) -> None:
    odd = {
        "expanded": torch.zeros(1).expand(10**15), "sparse": torch.eye(3).to_sparse(), "complex": torch.zeros(2) * 1j,
        "meta": torch.empty(3, device="meta"), "W": torch.ones(2),
    }  # fmt: skip
    torch.save(odd, tmp_path / "a.pt")
    with open_source(tmp_path / "a.pt") as source:
        assert [name for name, entry in source.entries.items() if entry.dtype is not None] == ["W"]
        with pytest.raises(InputError, match=r"'expanded' cannot be read: it is float32, expanded .*\.contiguous\(\)"):
            source.read("expanded", slice(0, 1))


# --- several files -------------------------------------------------------------------------------

PLACES = {
    "torch": {"wte.weight": "model_state_dict.wte.weight", "exp_avg.0": "optimizer_state_dict.state.0.exp_avg",
              "loss": "loss"},
    "legacy": {"mid.bias": "model_state_dict.mid.bias", "loss": "loss"},
    "safe": {"wte.weight": "wte.weight", "mid.bias": "mid.bias"},
    "hf": {"wte.weight": "wte.weight", "mid.weight": "mid.weight", "exp_avg.1": "optimizer.state.1.exp_avg"},
    "npz": {"wte.weight": "wte.weight"},
    "h5": {"wte.weight": "wte.weight"},
}  # fmt: skip


@pytest.mark.parametrize("habit", PLACES)
@given(draw=st.data())
@settings(max_examples=10)
def test_stacked_checkpoints(runs: tuple[Path, dict[int, Arrays]], habit: str, draw: st.DataObject) -> None:
    root, kept = runs
    with open_source(root / habit) as source:
        np.testing.assert_array_equal(read_all(source, "step"), STEPS)
        for name, key in PLACES[habit].items():
            expected = np.stack([kept[step][name] for step in STEPS])
            check_part(source, key, expected.view("u2") if habit in ("npz", "h5") else expected, draw)
        assert source.unwritten(next(iter(PLACES[habit].values()))) == []
        assert len(source.files()) == len(STEPS) * (6 if habit == "hf" else 1)


def test_settings_of_stacked_checkpoints(runs: tuple[Path, dict[int, Arrays]]) -> None:
    with open_source(runs[0] / "hf") as source:
        assert source.attributes["config.vocab_size"] == 12
        assert source.attributes["trainer_state.epoch"] == 0.5
        assert "trainer_state.global_step" not in source.attributes  # another in each
    with open_source(runs[0] / "torch") as source:
        assert source.attributes["note"] == "tiny"


def test_sharded_folder_with_its_index(runs: tuple[Path, dict[int, Arrays]]) -> None:
    root, kept = runs
    folder = root / "hf" / "checkpoint-10"
    for path in (folder, folder / "model.safetensors.index.json"):
        with open_source(path) as source:
            np.testing.assert_array_equal(bits(read_all(source, "wte.weight")), bits(kept[10]["wte.weight"]))
            assert folder / "model-00002-of-00002.safetensors" in source.files()


def test_folder_with_one_recording_and_small_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "run_7.npz", **ARRAYS)
    (tmp_path / "metadata.json").write_text("{}")
    (tmp_path / "loss.csv").write_text("1,2\n")
    with open_source(tmp_path) as source:
        np.testing.assert_array_equal(read_all(source, "W"), ARRAYS["W"])
    np.savez(tmp_path / "other.npz", **ARRAYS)
    with pytest.raises(InputError, match=r"it is not clear what to open: other.npz, run_7.npz"):
        open_source(tmp_path)


def test_steps_that_contradict_the_names(tmp_path: Path) -> None:
    for number, step in ((1, 30), (2, 20), (3, 10)):
        torch.save({"W": torch.full((2, 2), float(step)), "step": step}, tmp_path / f"ckpt{number}.pt")
    with pytest.raises(InputError, match=r"the steps are 1, 2, 3, but the checkpoints say 30, 20, 10 .*steps='names'"):
        open_source(tmp_path)
    for steps, labels, first in (("names", [1, 2, 3], 30), ("content", [10, 20, 30], 10)):
        with open_source(tmp_path, steps=steps) as source:  # type: ignore[arg-type]
            np.testing.assert_array_equal(read_all(source, "step"), labels)
            assert source.read("W", slice(0, 1))[0, 0, 0] == first


def test_arrays_that_only_some_checkpoints_have(tmp_path: Path) -> None:
    torch.save({"W": torch.zeros(2, 2), "losses": [1.0], "bias": torch.zeros(2)}, tmp_path / "step_1.pt")
    torch.save({"W": torch.zeros(2, 2), "losses": [1.0, 2.0], "exp_avg": torch.zeros(2, 2)}, tmp_path / "step_2.pt")
    torch.save({}, tmp_path / "final.pt")
    with open_source(tmp_path) as source:
        assert read_all(source, "W").shape == (2, 2, 2)
        assert read_all(source, "exp_avg").shape == (1, 2, 2)  # from the second on: states come with the first update
        assert source.entries["exp_avg"].late == 1
        for name, why in {
            "losses": "in step_2.pt",
            "bias": "step_2.pt does not have",
            "final.pt": "none of",
        }.items():
            with pytest.raises(InputError, match=why):
                source.read(name)


def test_torch_is_loaded_for_torch_files_alone(runs: tuple[Path, dict[int, Arrays]]) -> None:
    code = (
        "import sys\nfrom deadtok_xr.conversion.readers import folders, formats, merged, npz, stacked\n"
        f"formats.open_source({str(runs[0] / 'npz')!r}).close()\n"
        "assert not {'torch', 'h5py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- bounded memory ------------------------------------------------------------------------------

MEMORY = """
import sys
from pathlib import Path
import torch, numpy as np
from deadtok_xr.conversion.readers.formats import open_source

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

with open_source(sys.argv[1]) as source:
    source.read("W", slice(0, 1))
before = peak()
total = 0
with open_source(sys.argv[2]) as source:
    for name, entry in source.entries.items():
        for start in range(0, entry.shape[0], 200):
            total += int(source.read(name, slice(start, min(start + 200, entry.shape[0]))).sum(dtype="i8"))
print(peak() - before, total)
"""


def write_large(path: Path, values: NDArray[np.int32]) -> Path:
    if path.suffix == ".pt":
        tensor = torch.from_numpy(values)
        torch.save({"W": tensor, "turned": torch.from_numpy(values).transpose(0, 1).clone().transpose(0, 1)}, path)
    else:
        np.savez(path, W=values, again=values)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_memory_is_bounded(tmp_path: Path, suffix: str) -> None:
    """A file of 400 MB, half of it in another order of axes, in less than 200 MB."""
    small = write_large(tmp_path / f"small{suffix}", np.ones((3, 2), np.int32))
    values = np.arange(50_000_000, dtype=np.int32).reshape(2000, 25_000)
    large = write_large(tmp_path / f"large{suffix}", values)
    command = [sys.executable, "-c", MEMORY, small, large]
    grown, total = map(int, subprocess.run(command, check=True, capture_output=True).stdout.split())
    assert total == 2 * int(values.sum(dtype="i8"))
    assert grown < 200 * 2**20
