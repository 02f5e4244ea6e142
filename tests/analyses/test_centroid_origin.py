"""The parts of the final centroid, against a direct computation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import deadtok_xr as dx
from tests import reference
from tests.reference import assert_agree
from tests.strategies import dataset


@pytest.mark.parametrize("tokens", ["dead", "all"])
def test_origin_of_a_real_centroid(recording: Path, tokens: str) -> None:
    rec = dx.open_recording(recording, tokens=tokens)  # type: ignore[arg-type]
    found = dx.centroid_origin(rec).compute()
    C = rec.W.values.astype(float).mean(1)
    drift, last = C - C[0], C[-1]
    assert_agree(found.initial, C[0])
    assert_agree(found.final, last)
    np.testing.assert_allclose(found.initial + found.drift, found.final, atol=1e-15)
    np.testing.assert_allclose(found.drift_projection, drift @ last / (last @ last), atol=1e-12)
    np.testing.assert_allclose(found.drift_projection[-1] + found.initial_projection, 1.0, rtol=1e-12)
    assert_agree(found.cosine_initial, np.array([reference.cos(c, C[0]) for c in C]))
    path = np.concatenate([[0], np.cumsum(np.sqrt((np.diff(C, axis=0) ** 2).sum(1)))])
    assert_agree(found.path_length, path)
    assert_agree(found.straightness[1:], np.sqrt((drift[1:] ** 2).sum(1)) / path[1:])
    push = -np.cumsum(rec.lr.values[1:, None] * rec.h_mean.values[1:].astype(float), axis=0)
    expected = [reference.cos(a, b) for a, b in zip(drift[1:], push, strict=True)]
    np.testing.assert_allclose(found.drift_h_cosine, [np.nan, *expected], atol=1e-9)


def test_clouds_at_rest_and_drifting() -> None:
    start = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    still = dx.centroid_origin(dataset(np.stack([start] * 4))).compute()
    assert (still.drift == 0).all()
    assert float(still.initial_projection) == 1
    assert np.isnan(still.straightness).all()
    back = dx.centroid_origin(dataset(np.stack([start, start + 1, start]))).compute()
    np.testing.assert_allclose(back.straightness[1:], [1, 0])
    np.testing.assert_allclose(back.path_length, [0, math.sqrt(2), 2 * math.sqrt(2)])
    assert back.attrs["left_out"] == {"drift_h_cosine": "the dataset has no h_mean"}
