"""Counts of concordant pairs per token: the tree against a loop over all pairs."""

from __future__ import annotations

import time as clock
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.ranks import concordance


def pairwise(time: NDArray[Any], censored: NDArray[Any], x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The definition: a pair counts if the earlier one is an event, at the same time if the other one is censored."""
    agree, comparable = np.zeros((2, len(time)), np.int64)
    for i in range(len(time)):
        for j in range(i):
            if time[i] == time[j]:
                order = int(censored[i]) - int(censored[j])
            else:
                earlier = i if time[i] < time[j] else j
                order = 0 if censored[earlier] else (-1 if earlier == i else 1)
            sign = int(x[i] > x[j]) - int(x[i] < x[j])
            agree[[i, j]] += order * sign
            comparable[[i, j]] += abs(order)
    return agree, comparable


def counted(time: NDArray[Any], censored: NDArray[Any], x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    agree, comparable = np.zeros((2, len(time)), np.int64)
    concordance(time, censored, x, agree, comparable)
    return agree, comparable


VALUES = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1e-300, 0.5, 1.0, 2.0, np.inf, np.nan])


@settings(max_examples=300)
@given(
    tokens=st.lists(
        st.tuples(st.integers(0, 7), st.booleans(), st.one_of(VALUES, st.floats(allow_subnormal=False))), max_size=40
    )
)
def test_every_token_has_the_counts_of_the_definition(tokens: list[tuple[int, bool, float]]) -> None:
    time, censored, x = (np.array([t[k] for t in tokens], d) for k, d in enumerate((np.int64, np.bool_, np.float64)))
    for found, expected in zip(counted(time, censored, x), pairwise(time, censored, x), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_large_vocabulary_is_fast() -> None:
    rng = np.random.default_rng(0)
    n = 50_000
    time, censored, x = rng.integers(1, 2400, n), rng.random(n) < 0.2, rng.standard_normal(n)
    counted(time[:9], censored[:9], x[:9])
    began = clock.thread_time()
    agree, comparable = counted(time, censored, x)
    assert clock.thread_time() - began < 1.0  # every pair would take several seconds
    assert comparable.sum() % 2 == agree.sum() % 2 == 0
    chosen = rng.choice(n, 5)
    for i in chosen:
        later = np.where(time == time[i], censored[i] & ~censored, (time < time[i]) & ~censored)
        earlier = np.where(time == time[i], ~censored[i] & censored, (time > time[i]) & ~censored[i])
        sign = np.sign(x[i] - x)
        assert agree[i] == (later * sign).sum() - (earlier * sign).sum()
        assert comparable[i] == later.sum() + earlier.sum()
