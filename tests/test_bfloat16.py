"""The number format, over every pattern of the 16-bit formats, against definitions by enumeration."""

from __future__ import annotations

import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadtok_xr import bfloat16 as bf
from deadtok_xr.errors import InputError, OffGridError

PATTERNS = np.arange(65536, dtype=np.uint16)
FORMATS = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def exact_value(pattern: int, name: str) -> float:
    """The value of a bit pattern by the definition of the format, without any float library."""
    e_bits, m_bits = {"bfloat16": (8, 7), "float16": (5, 10), "float32": (8, 23)}[name]
    sign = -1.0 if pattern >> (e_bits + m_bits) else 1.0
    e, m = (pattern >> m_bits) & (2**e_bits - 1), pattern & (2**m_bits - 1)
    bias = 2 ** (e_bits - 1) - 1
    if e == 2**e_bits - 1:
        return sign * float("inf") if m == 0 else float("nan")
    return sign * ((m if e == 0 else m + 2**m_bits) * 2.0 ** (max(e, 1) - bias - m_bits))


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def values(name: str) -> np.ndarray:
    return np.array([exact_value(int(p), name) for p in PATTERNS])


@pytest.fixture(params=["own dtype", "float32"])
def held(request: pytest.FixtureRequest, name: str) -> np.ndarray:
    own = PATTERNS.view(FORMATS[name])
    return own if request.param == "own dtype" else own.astype(np.float32)


def test_decode_every_pattern(name: str, values: np.ndarray) -> None:
    decoded = bf.from_bits(PATTERNS, name)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, values.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(decoded), PATTERNS >> 15)


def test_bits_round_trip(name: str, held: np.ndarray, values: np.ndarray) -> None:
    bits = bf.to_bits(held, name)
    number = ~np.isnan(values)  # a NaN held in float32 may lose its payload
    np.testing.assert_array_equal(bits[number], PATTERNS[number])
    assert np.isnan(bf.from_bits(bits[~number], name)).all()


def test_ulp_is_the_gap_to_the_next_larger_magnitude(name: str, held: np.ndarray, values: np.ndarray) -> None:
    largest = 2 ** (15 - (7 if name == "bfloat16" else 10)) - 1
    magnitude = values[: largest << (7 if name == "bfloat16" else 10)]  # 0, smallest, ..., largest finite
    gaps = np.diff(magnitude)
    gaps = np.append(gaps, gaps[-1])  # the largest finite number has no finite neighbour
    expected = np.full(65536, np.nan)
    expected[: len(gaps)] = gaps
    expected[32768 : 32768 + len(gaps)] = gaps
    found = bf.ulp(held, name)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)


def test_ordinal_counts_representable_numbers(name: str, held: np.ndarray, values: np.ndarray) -> None:
    number = np.isfinite(values)
    ranks = np.unique(values[number])  # -0 and +0 are one number
    zero = np.searchsorted(ranks, 0.0)
    expected = np.searchsorted(ranks, values[number]) - zero
    np.testing.assert_array_equal(bf.ordinal(held, name)[number], expected)


def test_exponent_field(name: str, values: np.ndarray) -> None:
    m_bits = 7 if name == "bfloat16" else 10
    np.testing.assert_array_equal(bf.exponent(PATTERNS.view(FORMATS[name])), (PATTERNS & 0x7FFF) >> m_bits)


def test_on_grid(name: str, held: np.ndarray) -> None:
    assert bf.on_grid(held, name).all()
    finite = PATTERNS[np.isfinite(held.astype(np.float32))].view(FORMATS[name]).astype(np.float64)
    assert not bf.on_grid(finite[finite != 0] * (1 + 2.0**-20), name).any()


@pytest.mark.parametrize(
    ("before", "after", "cells"),
    [
        (1.0, 1.0078125, 1.0),
        (1.0, 0.99609375, -0.5),
        (0.0, 2.0**-133, 1.0),
        (0.0, 1.0, 2.0**133),
        (-1.0, 1.0, 256.0),
    ],
)
def test_lattice_step(before: float, after: float, cells: float) -> None:
    assert bf.lattice_step(np.float32(after), np.float32(before), "bfloat16") == cells


def test_published_ulps() -> None:
    table = {
        1: 7.8125e-3,
        0.5: 3.90625e-3,
        0.1: 4.882812e-4,
        0.01: 6.103516e-5,
        1e-3: 7.629395e-6,
        1e-5: 5.960464e-8,
    }
    x = np.array(list(table), dtype=ml_dtypes.bfloat16)
    np.testing.assert_allclose(bf.ulp(x), list(table.values()), rtol=1e-6)


def test_ordinal_distance_across_zero() -> None:
    x = np.array([-(2.0**-133), 2.0**-133], np.float32)
    assert bf.ordinal_distance(x[1], x[0], "bfloat16") == 2


@given(st.integers(0, 2**32 - 1))
def test_float32_against_the_definition(pattern: int) -> None:
    x = np.array(pattern, np.uint32).view(np.float32)
    value = exact_value(pattern, "float32")
    if np.isfinite(value):
        assert float(x) == value
        up = struct.unpack("<f", struct.pack("<I", (pattern & 0x7FFFFFFF) + 1))[0]
        if np.isfinite(up):
            assert bf.ulp(x) == up - abs(value)
        assert bf.ordinal(x) == (pattern if pattern < 2**31 else -(pattern - 2**31))
    else:
        assert np.isnan(bf.ulp(x))
    assert bf.on_grid(x, "bfloat16") == (np.isnan(value) or pattern & 0xFFFF == 0)


def test_off_grid_values_are_refused_with_their_number() -> None:
    with pytest.raises(OffGridError, match=r"1 of 3 values are not on the bfloat16 grid.*1\.00390625"):
        bf.ulp(np.array([1.0, 1.00390625, 2.0], np.float32), "bfloat16")


def test_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="bfloat16, float16, float32"):
        bf.ulp(np.ones(1, np.float64))
