"""Motion, phases, kinematics and topology against an independent float64 reference, on real runs and hostile bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr.errors import InputError, OffGridError
from tests import reference
from tests import reference_lifecycle as expected_of
from tests.reference import assert_agree
from tests.strategies import dataset, hopping, hostile

ANALYSES: dict[str, Callable[..., xr.Dataset]] = {
    "motion": dx.motion, "phases": dx.phases, "kinematics": dx.kinematics, "topology": dx.topology,
}  # fmt: skip


def check_motion(ds: xr.Dataset) -> None:
    found, expected = dx.motion(ds).compute(), reference.motion(np.asarray(ds.W.values))
    assert list(found.data_vars) == list(expected)
    for name, value in expected.items():
        assert_agree(found[name], value, name)
    np.testing.assert_array_equal(found.step, ds.step[1:])


def check_phases(ds: xr.Dataset) -> None:
    for scheme in ("lattice", "magnitude"):
        found = dx.phases(ds, scheme=scheme).compute()
        fraction, begins = reference.phases(np.asarray(ds.W.values), scheme)
        assert_agree(found.fraction, fraction, scheme)
        np.testing.assert_array_equal(found.transition_step, [-1 if b < 0 else ds.step.values[b] for b in begins])


def check_kinematics(ds: xr.Dataset) -> None:
    found, expected = dx.kinematics(ds).compute(), reference.kinematics(np.asarray(ds.W.values))
    for name, value in expected.items():
        assert_agree(found[name], value, name)


def check_topology(ds: xr.Dataset) -> None:
    centroid = reference.round_to_bfloat16(reference.kinematics(np.asarray(ds.W.values))["centroid"])
    for coincident in ("separate", "linked"):
        found = dx.topology(ds, coincident=coincident).compute()
        expected = reference.topology(np.asarray(ds.W.values), centroid, linked=coincident == "linked")
        for name, value in expected.items():
            assert_agree(found[name], value, f"{name}, {coincident}")


CHECKS = {
    "motion": check_motion,
    "phases": check_phases,
    "kinematics": check_kinematics,
    "topology": check_topology,
}


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["dead", "live", "all"])
@pytest.mark.parametrize("analysis", CHECKS)
def test_analyses_of_a_real_recording(recording: Path, analysis: str, tokens: str) -> None:
    CHECKS[analysis](dx.open_recording(recording, tokens=tokens))  # type: ignore[arg-type]


@pytest.mark.parametrize("analysis", CHECKS)
def test_analyses_of_a_tight_cluster(atom: Path, analysis: str) -> None:
    CHECKS[analysis](dx.open_recording(atom, tokens="dead"))


@pytest.mark.parametrize("analysis", CHECKS)
def test_analyses_of_hops_rests_and_thaws(analysis: str) -> None:
    CHECKS[analysis](hopping())


def test_built_recording_contains_hops_rests_and_thaws() -> None:
    """Trained recordings differ by CPU: nothing of this is asserted of them."""
    result = dx.motion(hopping()).compute()
    moved = result.moved_dims.values > 0
    assert (~moved[:-1] & moved[1:]).sum() > 20  # thaws
    assert moved[19].all()
    assert ~moved[40:].any()  # all frozen at the end
    assert (result.lattice_linf.values % 1 == 0.5).any()  # half cells, across powers of two
    assert (dx.phases(hopping()).fraction.max("step") > 0).all()
    graph = dx.topology(hopping()).compute()
    assert 0 < graph.density.max() < 1
    assert graph.largest_component.max() > 2
    assert graph.n_components.min() < graph.n_components.max()


@given(ds=hostile())
@pytest.mark.parametrize("analysis", ["motion", "phases", "kinematics"])
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid|Mean of empty).*:RuntimeWarning")
def test_hostile_bits_and_chunks(analysis: str, ds: xr.Dataset) -> None:
    CHECKS[analysis](ds)


@pytest.mark.parametrize("grid", ["float16", "float32"])
def test_other_formats_have_their_own_lattice(recording: Path, grid: str) -> None:
    rng = np.random.default_rng(3)
    W = (rng.normal(size=(4, 5, 6)) * 10.0 ** rng.integers(-7, 3, (4, 5, 6))).astype(grid)
    W[2, 1] = W[1, 1]
    found = dx.motion(dataset(W, precision=grid)).compute()
    mantissa, smallest = {"float16": (10, -14), "float32": (23, -126)}[grid]
    x = W.astype(np.float64)
    cells = np.abs(np.diff(x, axis=0)) / reference.ulp(x[:-1], mantissa, smallest)
    assert_agree(found.lattice_l1, cells.sum(-1))
    assert_agree(found.lattice_linf, cells.max(-1))


def test_every_float16_is_on_its_grid_and_others_are_not() -> None:
    values = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = values[np.isfinite(values)].astype(np.float32).reshape(1, -1, 1)
    ds = dataset(np.repeat(finite, 2, axis=0), precision="float16")
    assert (dx.motion(ds).moved_dims.values == 0).all()
    for off in (1 + 2.0**-11, 2.0**-25, 2.0**-24 * 1.5, 65536.0):
        with pytest.raises(OffGridError, match="1 rows"):
            dx.motion(dataset(np.full((2, 1, 1), off, np.float32), precision="float16")).compute()


def test_signed_zeros_are_equal() -> None:
    W = np.array([0.0, -0.0, 0.0], np.float32).reshape(3, 1, 1)
    result = dx.motion(dataset(W, precision="bfloat16")).compute()
    assert (result.moved_dims == 0).all()
    assert (result.lattice_l1 == 0).all()
    assert (dx.phases(dataset(W, precision="bfloat16")).fraction.sel(phase="frozen") == 1).all()


def test_leaving_zero_does_not_overflow() -> None:
    W = np.array([0.0, 1e4], np.float32).astype(ml_dtypes.bfloat16).reshape(2, 1, 1)
    result = dx.motion(dataset(np.repeat(W, 4, axis=2))).compute()
    cells = float(W[1, 0, 0]) * 2.0**133
    assert_agree(result.lattice_l2, np.full((1, 1), 2 * cells))


def test_invalid_tokens_are_never_frozen() -> None:
    W = np.ones((3, 4, 2), np.float32)
    W[:, 1, 0] = np.nan
    W[2, 2, 1] = np.inf
    ds = dataset(W, precision="bfloat16")
    result = dx.motion(ds).compute()
    np.testing.assert_array_equal(result.n_invalid, [1, 2])
    assert np.isnan(result.lattice_l1.sel(token=3)).all()
    assert (result.moved_dims.sel(token=3) == -1).all()
    fraction = dx.phases(ds).compute().fraction
    np.testing.assert_array_equal(fraction.sum("phase"), [1, 1])  # of the valid ones
    graph = dx.topology(ds).compute()
    np.testing.assert_array_equal(graph.n_invalid, [1, 1, 2])
    assert np.isnan(graph.density).all()
    assert (graph.n_singletons == -1).all()
    assert np.isnan(dx.kinematics(ds).radius).all()


def test_all_tokens_invalid_give_nan_fractions() -> None:
    result = dx.phases(dataset(np.full((3, 2, 2), np.nan, np.float32), precision="bfloat16")).compute()
    assert np.isnan(result.fraction).all()
    assert (result.transition_step == -1).all()


def test_one_token() -> None:
    ds = dataset(np.arange(6, dtype=np.float32).reshape(3, 1, 2), precision="bfloat16")
    assert np.isnan(dx.motion(ds).displacement_ulp_std).all()
    assert (dx.topology(ds).density == 0).all()
    assert (dx.kinematics(ds).radius == 0).all()


class TestGaps:
    def gapped(self) -> xr.Dataset:
        return dataset(np.ones((6, 2, 2), np.float32), precision="bfloat16").isel(step=[0, 1, 3, 5])

    @pytest.mark.parametrize("analysis", ["motion", "phases", "kinematics"])
    def test_gaps_are_refused_by_name(self, analysis: str) -> None:
        with pytest.raises(InputError, match=rf"{analysis}: step 2 is missing, and 1 more gaps.*allow_gaps=True"):
            ANALYSES[analysis](self.gapped())

    @pytest.mark.parametrize("analysis", ["motion", "phases", "kinematics"])
    def test_gaps_are_allowed_on_request_with_their_span(self, analysis: str) -> None:
        result = ANALYSES[analysis](self.gapped(), allow_gaps=True).compute()
        span = result.step_span.values
        np.testing.assert_array_equal(span[-3:], [1, 2, 2])

    def test_topology_accepts_gaps(self) -> None:
        assert dx.topology(self.gapped()).sizes["step"] == 4

    def test_steps_must_ascend(self) -> None:
        with pytest.raises(InputError, match="steps must ascend; step 0 does not"):
            dx.motion(self.gapped().isel(step=[1, 0]))


@pytest.mark.parametrize("analysis", ["motion", "phases"])
def test_analyses_of_a_single_step(recording: Path, analysis: str) -> None:
    with pytest.raises(InputError, match=f"{analysis} needs at least two steps; this dataset has one"):
        ANALYSES[analysis](dx.open_recording(recording).isel(step=[4]))


def test_kinematics_of_a_single_step(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead").isel(step=[4])
    result = dx.kinematics(rec).compute()
    assert np.isnan(result.bulk_velocity).all()
    assert_agree(result.radius, reference.kinematics(rec.W.values)["radius"])
    assert dx.topology(rec).n_components.values > 0


@pytest.mark.parametrize("analysis", ANALYSES)
def test_missing_variable(analysis: str) -> None:
    ds = dataset(np.ones((3, 2, 2), np.float32)).rename(W="logits")
    with pytest.raises(InputError, match=f"{analysis} needs the variable 'W'; this dataset has logits"):
        ANALYSES[analysis](ds)


class TestDisplacementsAlone:
    def deltas(self, recording: Path) -> tuple[xr.Dataset, xr.Dataset]:
        rec = dx.open_recording(recording, tokens="dead")
        delta = rec.W.diff("step").pad(step=(1, 0), constant_values=0).astype("f4").chunk(step=50)
        ds = xr.Dataset({"delta": delta.assign_attrs(precision="none")}).assign_coords(step=rec.step)
        return ds, rec

    def test_positions_are_relative_to_the_first_step(self, recording: Path) -> None:
        ds, rec = self.deltas(recording)
        found = dx.kinematics(ds).compute()
        assert found.attrs["origin"] == "relative"
        start = rec.W.values[0].astype(np.float64)
        expected = reference.kinematics(rec.W.values.astype(np.float64) - start)
        for name in ("position", "centroid", "bulk_speed", "thermal_rms", "radius"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-9, err_msg=name)

    @pytest.mark.parametrize("analysis", ["motion", "phases", "topology"])
    def test_analyses_of_positions_refuse_displacements(self, recording: Path, analysis: str) -> None:
        ds, _ = self.deltas(recording)
        with pytest.raises(InputError, match="without an initial W, and absolute positions are not known"):
            ANALYSES[analysis](ds)


def test_sanity_check_of_the_notebook(results: xr.DataTree) -> None:
    kin = results["kinematics"].to_dataset()
    assert kin.thermal_residual.max() < 1e-12
    np.testing.assert_allclose(kin.thermal_velocity.sum("token")[1:], 0, atol=1e-13)


def test_the_order_of_dimensions_does_not_matter(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 20))
    xr.testing.assert_equal(dx.motion(rec.transpose("dim", "token", "step")).compute(), dx.motion(rec).compute())


def test_unknown_options(recording: Path) -> None:
    rec = dx.open_recording(recording)
    with pytest.raises(InputError, match="choose one of lattice, magnitude, cells"):
        dx.phases(rec, scheme="v1")
    with pytest.raises(InputError, match="choose one of separate, linked"):
        dx.topology(rec, coincident="merged")
    with pytest.raises(InputError, match="unknown number format 'int8'"):
        dx.motion(rec.assign(W=rec.W.assign_attrs(precision="int8"))).compute()
    with pytest.raises(InputError, match="W has unknown precision"):
        dx.phases(rec.assign(W=rec.W.assign_attrs(precision="none")))


def test_skipped_updates_do_not_count_as_freezing() -> None:
    W = np.zeros((5, 3, 2), np.float32)
    W[1:], W[3:], W[4:] = 1.0, 1.5, 1.75  # the update to step 2 moves nothing, and had nothing to move with
    ds = dataset(W).assign(skipped=("step", np.array([False, False, True, False, False])))
    phases, motion = dx.phases(ds), dx.motion(ds)
    assert np.isnan(phases.fraction.sel(step=2)).all()
    assert (phases.fraction.sel(step=[1, 3, 4]).sum("phase") == 1).all()
    assert int(phases.transition_step.sel(phase="frozen")) == -1
    assert int(dx.phases(ds.drop_vars("skipped")).transition_step.sel(phase="frozen")) == 2
    np.testing.assert_array_equal(motion.skipped, [False, True, False, False])
    tree = dx.analyze(ds, analyses=["motion"])
    assert "no token moved" not in dx.summary(tree, details=True)


@given(ds=hostile())
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid|Mean of empty).*:RuntimeWarning")
def test_phases_of_cells(ds: xr.Dataset) -> None:
    found = dx.phases(ds, scheme="cells").compute()
    code = expected_of.codes(np.asarray(ds.W.values), "cells")
    valid = (code >= 0).sum(1)
    fraction = [[(row == k).sum() / n if n else np.nan for k in range(5)] for row, n in zip(code, valid, strict=True)]
    assert_agree(found.fraction, np.array(fraction))
    assert found.phase.values.tolist() == list(expected_of.NAMES["cells"])
    for k in range(5):
        over = [t for t in range(len(code)) if 2 * ((code[t] >= 0) & (code[t] <= k)).sum() > valid[t]]
        assert found.transition_step[k] == (ds.step.values[over[0] + 1] if over else -1)


@given(data=st.data(), n=st.integers(1, 40), dims=st.integers(1, 4))
def test_topology_of_few_places(data: st.DataObject, n: int, dims: int) -> None:
    """Positions on a small grid, so that pairs coincide, touch exactly at the threshold, or just miss it."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size = data.draw(st.sampled_from([2, 4, 12]))
    base = data.draw(st.sampled_from([1.0, -1.0, 0.0, 0.375]))
    W = (base + rng.integers(-size, size, (3, n, dims)) * 2.0**-8).astype(ml_dtypes.bfloat16)
    W[2] = W[1]
    check_topology(dataset(W, data.draw(st.sampled_from([None, (2, max(1, n // 2), dims)]))))


@given(ds=hostile())
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
def test_topology_of_hostile_bits(ds: xr.Dataset) -> None:
    check_topology(ds)
