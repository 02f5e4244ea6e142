"""Damaged and hostile files: one sentence that names the file, quickly, in bounded memory, without running any code."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import struct
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from deadtok_xr.conversion.readers import torch_checkpoint
from deadtok_xr.conversion.readers.formats import open_source
from deadtok_xr.conversion.readers.source import read_all
from deadtok_xr.errors import InputError

W = np.arange(600, dtype="f4").reshape(10, 20, 3)
Make = Callable[[Path], Path]
CASES: dict[str, tuple[Make, str]] = {}
"""Each makes something bad in a folder; the message names it, and has the words."""


def case(name: str, words: str = "") -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        assert name not in CASES
        CASES[name] = make, words
        return make

    return add


class Code:
    """Unpickled by anything that runs pickles, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


class Call:
    """Unpickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def peak() -> int:
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.exists() else 0


def read_file(path: Path) -> dict[str, NDArray[Any]]:
    with open_source(path) as source:
        return {name: read_all(source, name) for name in source.entries}


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Libraries are in memory before it is measured."""
    for path in (saved_torch, saved_npz, saved_safetensors):
        read_file(path(tmp_path_factory.mktemp("warm")))


# --- good files to damage ------------------------------------------------------------------------


def saved_npz(folder: Path, save: Any = np.savez) -> Path:
    save(folder / "bad.npz", W=W, loss=W[:, 0, 0])
    return folder / "bad.npz"


def saved_torch(folder: Path, content: Any = None, zipped: bool = True) -> Path:
    content = {"W": torch.from_numpy(W), "loss": [1.0, 2.0]} if content is None else content
    torch.save(content, folder / "bad.pt", _use_new_zipfile_serialization=zipped)
    return folder / "bad.pt"


def saved_safetensors(folder: Path) -> Path:
    save_file({"W": W}, folder / "bad.safetensors")
    return folder / "bad.safetensors"


def saved_npy(folder: Path) -> Path:
    np.save(folder / "bad.npy", W)
    return folder / "bad.npy"


KINDS: dict[str, Make] = {
    "npz": saved_npz,
    "packed npz": lambda folder: saved_npz(folder, np.savez_compressed),
    "npy": saved_npy,
    "torch": saved_torch,
    "legacy torch": lambda folder: saved_torch(folder, zipped=False),
}


def truncated(kind: str, tenths: int) -> Make:
    def make(folder: Path) -> Path:
        path = KINDS[kind](folder)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * tenths // 10 - (tenths == 10)])
        return path

    return make


for _kind, _tenths in itertools.product(KINDS, range(11)):
    CASES[f"{_kind} cut at {_tenths}/10"] = truncated(_kind, _tenths), ""


# --- .npz and .npy -------------------------------------------------------------------------------


def header(shape: str = "(10,)", descr: str = "'<f4'", order: str = "False", more: str = "") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}{more}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


NPY = {
    "absurd shape": header("(1000000000000000,)") + bytes(40),
    "overflowing shape": header("(4294967296, 4294967296, 4294967296)") + bytes(40),
    "negative shape": header("(-10,)") + bytes(40),
    "two negative axes": header("(-10, -1)") + bytes(40),
    "shape of truths": header("(True, 10)") + bytes(40),
    "shape of floats": header("(10.0,)") + bytes(40),
    "NaN as shape": header("(nan,)") + bytes(40),
    "no shape": header("None") + bytes(40),
    "too few bytes": header() + bytes(39),
    "too many bytes": header() + bytes(41),
    "unknown type": header(descr="'<q9'") + bytes(40),
    "code as type": header(descr="__import__('os').mkdir('ran')") + bytes(40),
    "nested parentheses": header("(" * 400 + ")" * 400) + bytes(40),
    "many minus signs": header("-" * 5000 + "1") + bytes(40),
    "long header": header("(10," + " " * 60_000 + ")") + bytes(40),
    "unknown version": header().replace(b"\x01\0", b"\x09\0", 1) + bytes(40),
    "more keys": header(more=", 'x': 1") + bytes(40),
    "no dict": b"\x93NUMPY\x01\0\x04\0[1]\n" + bytes(40),
    "header beyond the end": b"\x93NUMPY\x01\0\xff\xff{",
    "structured": header(descr="[('a', '<f4')]") + bytes(40),
}


def npy(content: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / "bad.npy").write_bytes(content)
        return folder / "bad.npy"

    return make


def npz(content: bytes, method: int) -> Make:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "bad.npz", "w", method) as archive:
            archive.writestr("W.npy", content)
        return folder / "bad.npz"

    return make


for _name, _content in NPY.items():
    CASES[f"npy: {_name}"] = npy(_content), ""
    CASES[f"npz: {_name}"] = npz(_content, zipfile.ZIP_STORED), ""
    CASES[f"packed npz: {_name}"] = npz(_content, zipfile.ZIP_DEFLATED), ""


@case("npz: pickled objects that run code", "Python objects")
def _(folder: Path) -> Path:
    np.savez(folder / "bad.npz", W=np.array([Code(folder / "ran")], object))
    return folder / "bad.npz"


@case("npy: pickled objects that run code", "Python objects")
def _(folder: Path) -> Path:
    np.save(folder / "bad.npy", np.array([Code(folder / "ran")], object))
    return folder / "bad.npy"


@case("npz: zip bomb", "which needs 40 bytes, but there are 300000000")
def _(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bad.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("W.npy", "w") as file:
        file.write(header())
        for _i in range(300):
            file.write(bytes(10**6))
    return folder / "bad.npz"


@case("npz: size that cannot be", "bytes cannot hold the")
def _(folder: Path) -> Path:
    path = saved_npz(folder, np.savez_compressed)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"loss.npy"))
    struct.pack_into("<I", content, at + 24, 4_000_000_000)
    path.write_bytes(content)
    return path


@case("npz: checksum", "checksum|CRC-32")
def _(folder: Path) -> Path:
    return flipped(saved_npz(folder), 1000)


@case("packed npz: bits", "variable 'W'")
def _(folder: Path) -> Path:
    return flipped(saved_npz(folder, np.savez_compressed), 300)


@case("npz: one name twice", "twice")
def _(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
        for name in ("W.npy", "V.npy"):
            archive.writestr(name, header() + bytes(40))
    path = folder / "bad.npz"
    path.write_bytes(path.read_bytes().replace(b"V.npy", b"W.npy"))
    return path


@case("npz: encrypted", "encrypted")
def _(folder: Path) -> Path:
    path = saved_npz(folder)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    return path


@case("npz: large and in Fortran order", "Fortran order .*ascontiguousarray")
def _(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bad.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("W.npy", "w") as file:
        file.write(header("(5000, 5000)", order="True"))
        file.write(bytes(10**8))
    return folder / "bad.npz"


@case("zip of something else", "a zip archive that holds neither")
def _(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bad", "w") as archive:
        archive.writestr("a.txt", "x")
    return folder / "bad"


def flipped(path: Path, at: int, bit: int = 3) -> Path:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return path


# --- torch ---------------------------------------------------------------------------------------


def deep(depth: int) -> Any:
    value: Any = "x"
    for _i in range(depth):
        value = [value]
    return value


def wide(doublings: int) -> Any:
    value: Any = ["x", "y"]
    for _i in range(doublings):
        value = [value, value]
    return value


def endless() -> Any:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def claimed(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Call:
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(8).untyped_storage(), dtype=torch.float32, _internal=True
    )
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, OrderedDict())


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code": (lambda mark: Code(mark), "mkdir, which could run code and was not loaded"),
    "code inside": (lambda mark: {"a": [1, {"b": Code(mark)}]}, "could run code"),
    "eval": (lambda mark: Call(eval, f"__import__('os').mkdir({str(mark)!r})"), "could run code"),
    "a class": (lambda mark: np.float64(3), "could run code"),
    "bytearray": (lambda mark: Call(bytearray, 10**12), "bytearray"),
    "deep": (lambda mark: deep(200), "nested more than"),
    "wide": (lambda mark: wide(40), "more than 100000 names"),
    "one list often": (lambda mark: [[list(range(10**5))] * 2] * 5000, "more than 10000000 numbers"),
    "endless": (lambda mark: endless(), "nested more than"),
    "NaN names": (lambda mark: {float("nan"): 1, float("nan") * 2: 2}, "two entries have the name 'nan'"),
    "names that meet": (lambda mark: {"a.b": 1, "a": {"b": 2}}, "two entries have the name 'a.b'"),
    "absurd tensor": (lambda mark: claimed((10**15,), (1,)), ""),
    "overflowing tensor": (lambda mark: claimed((2**40, 2**40), (2**40, 1)), ""),
    "large tensor": (lambda mark: claimed((2**20, 2**13), (2**13, 1)), ""),
    "tensor beyond": (lambda mark: claimed((9,), (1,)), ""),
    "offset beyond": (lambda mark: claimed((8,), (1,), 1), ""),
    "negative shape": (lambda mark: claimed((-8,), (1,)), ""),
    "negative stride": (lambda mark: claimed((8,), (-1,)), ""),
    "expanded": (lambda mark: claimed((10**15,), (0,)), "contiguous"),
    "absurd storage": (lambda mark: Call(torch.FloatTensor, 10**15), ""),
}


def hostile(content: Callable[[Path], Any], zipped: bool) -> Make:
    return lambda folder: saved_torch(folder, content(folder / "ran"), zipped)


for _name, (_make, _words) in HOSTILE.items():
    CASES[f"torch: {_name}"] = hostile(_make, True), _words
    CASES[f"legacy torch: {_name}"] = hostile(_make, False), _words


def rezipped(change: Callable[[str, bytes], tuple[str, bytes] | None], method: int = zipfile.ZIP_STORED) -> Make:
    """A checkpoint whose members are changed, or left out where None."""

    def make(folder: Path) -> Path:
        path = saved_torch(folder)
        with zipfile.ZipFile(path) as archive:
            members = [change(name, archive.read(name)) for name in archive.namelist()]
        with zipfile.ZipFile(path, "w", method) as archive:
            for member in filter(None, members):
                archive.writestr(*member)
        return path

    return make


CASES |= {
    "torch: without its tensors": (rezipped(lambda n, b: None if "/data/" in n else (n, b)), ""),
    "torch: with half its tensors": (rezipped(lambda n, b: (n, b[: len(b) // 2] if "/data/" in n else b)), ""),
    "torch: of another byte order": (rezipped(lambda n, b: (n, b"big" if "byteorder" in n else b)), "byte order"),
    "torch: zip bomb": (
        rezipped(lambda n, b: (n, bytes(10**8) if "/data/" in n else b), zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "torch: two top folders": (rezipped(lambda n, b: (f"{len(b) % 3}/{n.split('/', 1)[1]}", b)), ""),
    "torch: empty pickle": (rezipped(lambda n, b: (n, b"" if n.endswith(".pkl") else b)), ""),
    "torch: random pickle": (rezipped(lambda n, b: (n, b"\x80\x02nonsense" if n.endswith(".pkl") else b)), ""),
    "torch: script": (rezipped(lambda n, b: (n.replace("byteorder", "constants.pkl"), b)), ""),
}


@case("a bare pickle that runs code", "a pickle that is not a torch checkpoint")
def _(folder: Path) -> Path:
    (folder / "bad.pkl").write_bytes(pickle.dumps(Code(folder / "ran"), 2))
    return folder / "bad.pkl"


@case("legacy torch: code after the magic number", "could run code")
def _(folder: Path) -> Path:
    content = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {}, Code(folder / "ran")):
        pickle.dump(value, content, 2)
    (folder / "bad.pt").write_bytes(content.getvalue())
    return folder / "bad.pt"


@case("torch: a script of code", "")
def _(folder: Path) -> Path:
    with warnings.catch_warnings(action="ignore"):  # torch has moved on
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), folder / "bad.pt")
    return folder / "bad.pt"


# --- shards --------------------------------------------------------------------------------------


def index(weight_map: Any, text: str | None = None) -> Make:
    def make(folder: Path) -> Path:
        inner = folder / "bad"
        inner.mkdir()
        save_file({"W": W}, inner / "a.safetensors")
        save_file({"W": W, "V": W}, inner / "b.safetensors")
        save_file({"V": W}, folder / "outside.safetensors")
        (inner / "link.safetensors").symlink_to(folder / "outside.safetensors")
        (inner / "loop.safetensors").symlink_to(inner / "loop.safetensors")
        (inner / "gone.safetensors").symlink_to(inner / "nothing")
        (inner / "cut.safetensors").write_bytes((inner / "a.safetensors").read_bytes()[:-9])
        (inner / "text.safetensors").write_text("hello")
        (inner / "folder").mkdir()
        os.mkfifo(inner / "pipe")
        absolute = str(folder / "outside.safetensors")
        content = json.dumps({"metadata": {}, "weight_map": weight_map}).replace("ABSOLUTE", absolute)
        (inner / "model.safetensors.index.json").write_text(content if text is None else text)
        return inner / "model.safetensors.index.json"

    return make


for _file, _words in {
    "../outside.safetensors": "not in its own folder",
    "ABSOLUTE": "not in its own folder",
    "/etc/passwd": "not in its own folder",
    "folder/../../outside.safetensors": "not in its own folder",
    "..\\outside.safetensors": "not in its own folder",
    "link.safetensors": "not in its own folder",
    "a.safetensors\0": "not in its own folder",
    "": "not in its own folder",
    ".": "not in its own folder",
    "loop.safetensors": "loop.safetensors",
    "gone.safetensors": "not there",
    "missing.safetensors": "not there",
    "folder": "not there",
    "pipe": "not there",
    "x" * 5000: "",
    "a.safetensors": "says that 'V' is in a.safetensors, but it is not",
    "cut.safetensors": "truncated",
    "text.safetensors": "looks like text",
    "model.safetensors.index.json": "",
}.items():
    CASES[f"index: {_file[:40]!r}"] = index({"V": _file}), _words
CASES |= {
    "index: a tensor twice": (index({"W": "a.safetensors", "V": "b.safetensors"}), "'W' is in a.safetensors and in b"),
    "index: no files": (index({}), "no weight_map"),
    "index: a list": (index(["a.safetensors"]), "no weight_map"),
    "index: numbers": (index({"W": 1}), "no weight_map"),
    "index: NaN": (index(float("nan")), "no weight_map"),
    "index: not one object": (index(None, "[1, 2]"), "cannot be read as JSON"),
    "index: empty": (index(None, ""), "cannot be read as JSON"),
    "index: cut": (index(None, '{"weight_map": {"W": "a.sa'), "cannot be read as JSON"),
    "index: nested": (index(None, "[" * 100_000), "cannot be read as JSON"),
    "index: not UTF-8": (index(None, '{"weight_map": "\udcff"}'.encode("utf-8", "replace").decode()), "weight_map"),
}


# --- folders -------------------------------------------------------------------------------------


def folder_of(files: dict[str, Any]) -> Make:
    def make(folder: Path) -> Path:
        inner = folder / "bad"
        inner.mkdir()
        for name, content in files.items():
            (inner / name).parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                (inner / name).write_bytes(content)
            else:
                torch.save(content(folder / "ran") if callable(content) else content, inner / name)
        return inner

    return make


GOOD = {"W": torch.zeros(3, 2)}
CASES |= {
    "folder: empty": (folder_of({}), "without a recording"),
    "folder: other files": (folder_of({"a.txt": b"x"}), "without a recording"),
    "folder: Zarr": (folder_of({"zarr.json": b"{}"}), "a Zarr group without arrays"),
    "folder: two recordings": (folder_of({"a.pt": GOOD, "b.pt": GOOD}), "not clear what to open: a.pt, b.pt"),
    "folder: two runs": (folder_of({f"{r}_{i}.pt": GOOD for r in "ab" for i in (1, 2)}), r"a_\*.pt, b_\*.pt"),
    "folder: two formats": (
        folder_of({f"a_{i}.{s}": GOOD for s in ("pt", "bin") for i in (1, 2)}), r"a_\*.bin, a_\*.pt",
    ),
    "folder: one step twice": (folder_of({"a_1.pt": GOOD, "a_01.pt": GOOD}), "both have the number 1"),
    "folder: another shape": (
        folder_of({"a_1.pt": GOOD, "a_2.pt": {"W": torch.zeros(4, 2)}}),
        r"a_2.pt: 'W' is float32 \(4, 2\), but in a_1.pt it is float32 \(3, 2\)",
    ),
    "folder: another dtype": (folder_of({"a_1.pt": GOOD, "a_2.pt": {"W": GOOD["W"].half()}}), "'W' is float16"),
    "folder: another rank": (folder_of({"a_1.pt": GOOD, "a_2.pt": {"W": torch.zeros(6)}}), r"'W' is float32 \(6,\)"),
    "folder: without W": (folder_of({"a_1.pt": GOOD, "a_2.pt": {}}), "which a_2.pt does not have"),
    "folder: steps contradict": (
        folder_of({f"a_{i}.pt": {**GOOD, "step": 10 * i} for i in (1, 2)}), "the steps are 1, 2, but .* say 10, 20",
    ),
    "folder: a hostile member": (folder_of({"a_1.pt": GOOD, "a_2.pt": Code}), "a_2.pt holds .*could run code"),
    "folder: a damaged member": (folder_of({"a_1.pt": GOOD, "a_2.pt": b"PK\x03\x04" + bytes(60)}), "a_2.pt"),
    "folder: an empty member": (folder_of({"a_1.pt": GOOD, "a_2.pt": b""}), "a_2.pt looks like an empty file"),
    "folder: shards without index": (
        folder_of({f"model-0000{i}-of-00002.safetensors": b"" for i in (1, 2)}), "without their index",
    ),
    "folder: several runs": (
        folder_of({f"{r}-{i}/pytorch_model.bin": GOOD for r in "ab" for i in (1, 2)}), r"several runs: a-\*, b-\*",
    ),
    "folder: bad trainer state": (
        folder_of({"c-1/pytorch_model.bin": GOOD, "c-1/trainer_state.json": b"{"}), "trainer_state.json",
    ),
    "folder: hostile optimizer": (
        folder_of({"c-1/pytorch_model.bin": GOOD, "c-1/optimizer.pt": Code}), "could run code",
    ),
    "folder: number beyond 64 bits": (folder_of({f"a_{i}{'9' * 30}.pt": GOOD for i in (1, 2)}), ""),
}  # fmt: skip


@case("a pipe", "not a regular file")
def _(folder: Path) -> Path:
    os.mkfifo(folder / "bad.pt")
    return folder / "bad.pt"


@case("a link to itself", "no such file")
def _(folder: Path) -> Path:
    (folder / "bad.pt").symlink_to(folder / "bad.pt")
    return folder / "bad.pt"


@pytest.mark.parametrize("name", CASES)
def test_damaged_and_hostile_files_are_refused(tmp_path: Path, name: str) -> None:
    make, words = CASES[name]
    path = make(tmp_path)
    before, begun = peak(), time.monotonic()
    with pytest.raises(InputError, match=words or None) as caught:
        read_file(path)
    assert time.monotonic() - begun < 20
    assert peak() - before < 150 * 2**20
    message = str(caught.value)
    assert str(path.parent) in message
    assert path.name in message or path.name.endswith(".json")  # or the shard that an index names
    assert "\n" not in message
    assert len(message) < 800 or len(name) > 40
    assert not (tmp_path / "ran").exists()
    assert not Path("ran").exists()


def test_all_cases_of_damage_are_tested() -> None:
    assert len(CASES) >= 100


def test_large_pickles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, zipped, words in (("_PICKLE", True, "its data.pkl has"), ("_LEGACY", False, "before 1.6")):
        monkeypatch.setattr(torch_checkpoint, limit, 50)
        with pytest.raises(InputError, match=words):
            read_file(saved_torch(tmp_path, zipped=zipped))


# --- single bits ---------------------------------------------------------------------------------


def flips(kind: str, size: int) -> Iterator[tuple[int, int]]:
    """Places in the headers: the first bytes, and the last ones of archives."""
    ends = range(size - 300, size) if kind not in ("npy", "legacy torch") else range(0)
    for i, at in enumerate([*range(0, 400, 5), *list(ends)[::5]]):
        yield at, i % 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_refused_or_harmless(tmp_path: Path, kind: str) -> None:
    """For any bit of a header: one sentence, or arrays of the saved size; with a checksum, the same bits."""
    content = KINDS[kind](tmp_path).read_bytes()
    refused = []
    for at, bit in flips(kind, len(content)):
        path = flipped(KINDS[kind](tmp_path), at, bit)
        try:
            found = read_file(path)
        except InputError as error:
            refused.append(str(error))
            continue
        if "npz" in kind:
            assert {v.tobytes() for v in found.values()} <= {W.tobytes(), W[:, 0, 0].tobytes()}
        assert sum(v.nbytes for v in found.values()) <= W.nbytes + 1000
    assert len(refused) > 10
    assert all(str(path) in message and "\n" not in message for message in refused)
