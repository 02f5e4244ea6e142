"""Readers of one chunk that decode it a few steps at a time, from its first step on."""

from __future__ import annotations

from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from zstandard import ZstdDecompressor

from deadtok_xr.store import motion_index
from deadtok_xr.store.chunk_reader import BROKEN, ChunkReader


class SelectedTokens:
    """Reads selected tokens of one chunk, which is opened at the first read.

    Parameters
    ----------
    reader, block_id
        Opens the chunk at a grid position.
    tokens
        Positions of the selected tokens within the chunk, ascending.
    into
        Where these tokens lie along axis 1 of the arrays that `read` fills.
    buffer
        Room for steps of the chunk, (t, n, d), which readers share that take turns.
    """

    def __init__(
        self, reader: ChunkReader, block_id: tuple[int, ...], tokens: NDArray[np.int64], into: NDArray[np.intp],
        buffer: NDArray[Any],
    ) -> None:  # fmt: skip
        self.chunk = Stream(reader, block_id) if reader.direct else _DecodedWhole(reader, block_id)
        self._selected, self._into = _as_slice(tokens), _as_slice(into)
        in_place = len(tokens) == reader.array.chunks[-2] and isinstance(self._into, slice)
        self._buffer = None if in_place else buffer
        self._entry, self._tokens = (reader.array, block_id), tokens
        self._height, self._position = reader.array.chunks[-3], 0
        self._last_values: NDArray[Any] | None = None

    def read(self, out: NDArray[Any]) -> None:
        """Fill these tokens of ``out`` with the next steps; steps after the last motion are copied, not decoded."""
        stop = self._position + len(out)
        n = len(out) if stop == 1 else max(0, min(stop, self._n_moving) - self._position)
        if n:
            self._decode(out[:n])
            if stop == 1 or stop >= self._n_moving:
                self._last_values = out[n - 1, self._into].copy()
        if n < len(out):
            out[n:, self._into] = self._last_values
        self._position = stop

    @cached_property
    def _n_moving(self) -> int:
        """The number of steps up to the last motion of a selected token; all steps without a motion index."""
        bounds = motion_index.read(*self._entry)
        return self._height if bounds is None else int(bounds[1, self._tokens].max()) + 1

    def finish(self) -> None:
        """Read to the end, where the checksum of all values is, also if the motion index says that nothing moves."""
        self.chunk.finish()

    def _decode(self, out: NDArray[Any]) -> None:
        if self._buffer is None:
            self.chunk.read(out, self._into)
            return
        for begin in range(0, len(out), len(self._buffer)):
            steps = out[begin : begin + len(self._buffer)]
            decoded = self._buffer[: len(steps)]
            self.chunk.read(decoded, slice(None))
            steps[:, self._into] = decoded[:, self._selected]


def _as_slice(positions: NDArray[Any]) -> Any:
    """Return ascending positions without a gap as a slice, others as they are."""
    return slice(int(positions[0]), int(positions[-1]) + 1) if (np.diff(positions) == 1).all() else positions


_READ_BYTES = 2**15
"""Bytes that are read at once from each of the chunks of a step, which can be thousands."""
_idle: list[ZstdDecompressor] = []
"""Unused decompressors, kept so that their windows of half a megabyte are not allocated again for each chunk."""


class Stream:
    """A zstd-compressed chunk of plain values, decompressed only as far as it is read."""

    def __init__(self, reader: ChunkReader, block_id: tuple[int, ...]) -> None:
        self._reader, self._id = reader, block_id
        self._source: Any = None
        self._decompressor: ZstdDecompressor | None = None

    def read(self, out: NDArray[Any], tokens: slice) -> None:
        """Fill these tokens of ``out``, contiguous (t, n, d), with the next steps."""
        steps = out[:, tokens]
        try:
            source = self._open()
            for part in [steps] if steps.flags.c_contiguous else steps:
                if source.readinto(part.view(np.uint8).data) != part.nbytes:
                    raise ValueError("the chunk ends too early")
        except BROKEN as error:
            raise self._reader.damaged(self._id, error) from error

    def _open(self) -> Any:
        if self._source is None:
            file: Any = _WithEndFrame(self._reader.open(self._id))
            self._decompressor = _idle.pop() if _idle else ZstdDecompressor()
            self._source = self._decompressor.stream_reader(file, read_size=_READ_BYTES)
        return self._source

    def finish(self) -> None:
        """Read to the end, where zstd checks the checksum."""
        try:
            while self._source is not None and self._source.read(2**17):
                pass
        except BROKEN as error:
            raise self._reader.damaged(self._id, error) from error

    def close(self) -> None:
        """Close the file."""
        if self._source is not None and self._decompressor is not None:
            self._source.close()
            _idle.append(self._decompressor)
            self._source = self._decompressor = None


class _DecodedWhole:
    """A chunk with other codecs, decoded completely at the first read."""

    def __init__(self, reader: ChunkReader, block_id: tuple[int, ...]) -> None:
        self._reader, self._id = reader, block_id
        self._steps: Any = None

    def read(self, out: NDArray[Any], tokens: slice) -> None:
        if self._steps is None:
            block = self._reader(self._id)
            self._steps = iter((block[0] if block.ndim == 4 else block).view(f"u{block.dtype.itemsize}"))
        for step in out[:, tokens]:
            values = next(self._steps)
            step[: len(values)] = values  # the last chunk along an axis may hold fewer values

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


class _WithEndFrame:
    """A file followed by an empty skippable frame of zstd.

    If the last bytes of a chunk are missing, a decoder alone returns without an error before it has checked the
    checksum. With this frame after it the truncated chunk is an error; a complete chunk is decoded as before.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._end = file, b"\x50\x2a\x4d\x18" + bytes(4)

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if not data:
            data, self._end = self._end, b""
        return data

    def close(self) -> None:
        self._file.close()
