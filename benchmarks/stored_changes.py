"""Compare ways to store a chunk of a recording in proportion to what changes in it, by size and by the time to use it.

    python -m benchmarks.stored_changes RECORDING [RECORDING ...]

For chunks from the beginning, the middle and the end of each recording, and for a simulated fine-tuning run of float32
masters with a small learning rate, the table gives for each way the size, the CPU time of decoding all values, and
the CPU time of a result (per token and step the squared displacement and the number of elements that moved), from the
stored bytes on:

- values: the chunk as our stores hold it, zstd over the words; the result from the values
- xor: each step XOR the one before, low bytes and high bytes apart, under zstd or lz4
- changes: the first step, and for each transition the positions and the new words of changed elements, byte planes
  under zstd; the result from the changes, without making the values
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numba import njit
from numcodecs.lz4 import LZ4
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

import deadtok_xr as dx

Words = NDArray[np.uint16]
Way = tuple[Callable[[Words], bytes], Callable[[bytes, tuple[int, ...]], Words]]
_ZSTD, _LZ4 = Zstd(level=1, checksum=True), LZ4()
REPEATS = 5


def planes(words: NDArray[Any]) -> bytes:
    """Return the bytes of unsigned integers, all lowest bytes first."""
    return np.ascontiguousarray(words.reshape(-1).view(np.uint8).reshape(-1, words.itemsize).T).tobytes()


@njit(cache=True)
def _from_planes16(data, out):  # type: ignore[no-untyped-def]
    n = len(out)
    for i in range(n):
        out[i] = np.uint16(data[i] | (np.uint16(data[n + i]) << np.uint16(8)))


@njit(cache=True)
def _undo_xor(steps):  # type: ignore[no-untyped-def]
    for t in range(1, steps.shape[0]):
        for i in range(steps.shape[1]):
            steps[t, i] ^= steps[t - 1, i]


def xor_encode(steps: Words, codec: Any) -> bytes:
    """Return the bytes of the first step and of each other one XOR the step before."""
    differences = steps.copy()
    differences[1:] ^= steps[:-1]
    return bytes(codec.encode(planes(differences)))


def xor_decode(data: bytes, shape: tuple[int, ...], codec: Any) -> Words:
    """Return the steps."""
    out = np.empty(int(np.prod(shape)), np.uint16)
    _from_planes16(np.frombuffer(codec.decode(data), np.uint8), out)
    steps = out.reshape(shape[0], -1)
    _undo_xor(steps)
    return steps.reshape(shape)


def changes_encode(steps: Words) -> bytes:
    """Return the first step, the number of changes of each transition, gaps between their positions, and new words."""
    flat = steps.reshape(len(steps), -1)
    changed = [np.flatnonzero(a != b) for a, b in itertools.pairwise(flat)]
    counts = np.array([len(i) for i in changed], np.uint32)
    gaps = np.concatenate([np.diff(i, prepend=0) for i in changed]).astype(np.uint32)
    words = np.concatenate([b[i] for b, i in zip(flat[1:], changed, strict=True)])
    head = np.array([len(words)], np.uint32).tobytes() + counts.tobytes() + flat[0].tobytes()
    return bytes(_ZSTD.encode(head + planes(gaps) + planes(words)))


def _parts(data: bytes, shape: tuple[int, ...]) -> tuple[NDArray[np.uint32], Words, NDArray[np.uint8]]:
    raw = np.frombuffer(_ZSTD.decode(data), np.uint8)
    start, row = 4 * shape[0], int(np.prod(shape[1:]))
    first = raw[start : start + 2 * row].view(np.uint16)
    return raw[4:start].view(np.uint32), first, raw[start + 2 * row :]


@njit(cache=True)
def _apply(counts, first, body, out):  # type: ignore[no-untyped-def]
    out[0] = first
    n, k = len(body) // 6, 0
    for t in range(len(counts)):
        out[t + 1] = out[t]
        place = np.uint32(0)
        for _ in range(counts[t]):
            for byte in range(4):
                place += np.uint32(body[byte * n + k]) << np.uint32(8 * byte)
            out[t + 1, place] = np.uint16(body[4 * n + k] | (np.uint16(body[5 * n + k]) << np.uint16(8)))
            k += 1


def changes_decode(data: bytes, shape: tuple[int, ...]) -> Words:
    """Return the steps."""
    out = np.empty((shape[0], int(np.prod(shape[1:]))), np.uint16)
    _apply(*_parts(data, shape), out)
    return out.reshape(shape)


@njit(cache=True)
def _value(word):  # type: ignore[no-untyped-def]
    return np.uint32(np.uint32(word) << np.uint32(16)).view(np.float32)


@njit(cache=True)
def _result_of_values(steps, squares, moved):  # type: ignore[no-untyped-def]
    for t in range(len(squares)):
        for n in range(steps.shape[1]):
            total, count = 0.0, 0
            different = np.uint16(0)
            for d in range(steps.shape[2]):
                different |= steps[t, n, d] ^ steps[t + 1, n, d]
            if different:  # as our kernels do: a row that rests is only compared
                for d in range(steps.shape[2]):
                    step = np.float64(_value(steps[t + 1, n, d])) - np.float64(_value(steps[t, n, d]))
                    total += step * step
                    count += step != 0
            squares[t, n], moved[t, n] = total, count


@njit(cache=True)
def _result_of_changes(counts, state, body, n_dims, squares, moved):  # type: ignore[no-untyped-def]
    n, k = len(body) // 6, 0
    squares[:] = 0.0
    moved[:] = 0
    for t in range(len(counts)):
        place = np.uint32(0)
        for _ in range(counts[t]):
            for byte in range(4):
                place += np.uint32(body[byte * n + k]) << np.uint32(8 * byte)
            word = np.uint16(body[4 * n + k] | (np.uint16(body[5 * n + k]) << np.uint16(8)))
            step = np.float64(_value(word)) - np.float64(_value(state[place]))
            squares[t, place // n_dims] += step * step
            moved[t, place // n_dims] += step != 0
            state[place] = word
            k += 1


def _empty(shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return np.empty((shape[0] - 1, shape[1])), np.empty((shape[0] - 1, shape[1]), np.int64)


def result_from_changes(data: bytes, shape: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the result from stored changes, without the values."""
    counts, first, body = _parts(data, shape)
    squares, moved = _empty(shape)
    _result_of_changes(counts, first.copy(), body, shape[2], squares, moved)
    return squares, moved


def result_from_values(steps: Words) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the result from the values."""
    squares, moved = _empty(steps.shape)
    _result_of_values(steps, squares, moved)
    return squares, moved


WAYS: dict[str, Way] = {
    "values, zstd": (
        lambda steps: bytes(_ZSTD.encode(steps)),
        lambda data, shape: np.frombuffer(_ZSTD.decode(data), np.uint16).reshape(shape),
    ),
    "xor, zstd": (lambda s: xor_encode(s, _ZSTD), lambda data, shape: xor_decode(data, shape, _ZSTD)),
    "xor, lz4": (lambda s: xor_encode(s, _LZ4), lambda data, shape: xor_decode(data, shape, _LZ4)),
    "changes, zstd": (changes_encode, changes_decode),
}


def seconds(work: Callable[[], object]) -> float:
    """Return the least CPU time of a few calls."""
    taken = []
    for _ in range(REPEATS):
        began = time.thread_time()
        work()
        taken.append(time.thread_time() - began)
    return min(taken)


def measure(steps: Words) -> dict[str, tuple[int, float, float]]:
    """Return for each way the bytes, the seconds to decode, and the seconds to the result from the bytes."""
    found, expected = {}, result_from_values(steps)
    for name, (encode, decode) in WAYS.items():
        data = encode(steps)
        np.testing.assert_array_equal(decode(data, steps.shape), steps)

        def result(data: bytes = data, decode: Any = decode, name: str = name) -> tuple[NDArray[Any], NDArray[Any]]:
            if name.startswith("changes"):
                return result_from_changes(data, steps.shape)
            return result_from_values(decode(data, steps.shape))

        np.testing.assert_array_equal(result()[1], expected[1])
        np.testing.assert_allclose(result()[0], expected[0], rtol=1e-12)
        decoding = seconds(lambda data=data, decode=decode: decode(data, steps.shape))  # type: ignore[misc]
        found[name] = (len(data), decoding, seconds(result))
    return found


def fine_tuning(steps: int, tokens: int, dims: int, rate: float = 1e-6, seed: int = 0) -> Words:
    """Return bfloat16 words of float32 masters that Adam-like updates of a small learning rate move."""
    rng = np.random.default_rng(seed)
    masters = (0.02 * rng.standard_normal((tokens, dims))).astype(np.float32)
    direction = rng.standard_normal((tokens, dims)).astype(np.float32)
    out = np.empty((steps, tokens, dims), np.uint16)
    for t in range(steps):
        out[t] = masters.astype(dx.bfloat16.BFLOAT16).view(np.uint16)
        direction += 0.3 * (rng.standard_normal((tokens, dims)).astype(np.float32) - direction)
        masters -= np.float32(rate) * np.clip(direction, -1, 1)
    return out


def chunks(path: Path) -> Iterator[tuple[str, Words]]:
    """Yield a chunk from the beginning, the middle and the end of a recording."""
    rec = dx.open_recording(path, raw=True)
    size = rec.W.chunksizes["step"][0]
    rows = len(rec.W.chunksizes["step"])
    for where, row in (("beginning", 0), ("middle", rows // 2), ("end", max(rows - 2, 0))):
        yield f"{path.parent.name}/{path.name} {where}", rec.W[row * size : (row + 1) * size].values.view(np.uint16)


@click.command()
@click.argument("recordings", nargs=-1, type=click.Path(exists=True, path_type=Path))
def main(recordings: tuple[Path, ...]) -> None:
    """Print the table."""
    cases = [case for path in recordings for case in chunks(path)]
    cases.append(("fine-tuning at 1e-6, 768 dims", fine_tuning(128, 40, 768)))
    for name, steps in cases:
        changed = float((steps[1:] != steps[:-1]).mean())
        click.echo(f"{name}: {steps.shape}, {changed:.2%} of the elements change at a step")
        found = measure(steps)
        _, decoding, whole = found["values, zstd"]
        for way, (size, decode, result) in found.items():
            click.echo(
                f"  {way:14} {steps.nbytes / size:8.1f}x smaller {steps.nbytes / decode / 1e9:7.2f} GB/s decoded "
                f"{decode / decoding:6.2f}x the decoding {result / whole:6.2f}x the time to the result"
            )


if __name__ == "__main__":
    main()
