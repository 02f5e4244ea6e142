"""Every value of the analyses against an independent float64 reference, on real runs and on hostile bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr.analyses.topology import VERDICT_ATTRS
from deadtok_xr.errors import InputError, OffGridError
from tests import reference
from tests.reference import assert_agree

ANALYSES: dict[str, Callable[..., xr.Dataset]] = {
    "motion": dx.motion, "phases": dx.phases, "kinematics": dx.kinematics, "topology": dx.topology,
}  # fmt: skip


def dataset(W: np.ndarray, chunks: Any = None, *, first: int = 0, **attrs: Any) -> xr.Dataset:
    """A recording in memory, or in Dask chunks."""
    data = W if chunks is None else da.from_array(W, chunks)
    steps, tokens = np.arange(first, first + len(W)), np.arange(W.shape[1]) * 3
    return xr.Dataset({"W": (("step", "token", "dim"), data, attrs)}, {"step": steps, "token": tokens})


@st.composite
def hostile(draw: st.DrawFn) -> xr.Dataset:
    """Any bits: few distinct values so that rows coincide, rest, hop, cross exponents, overflow, are NaN."""
    steps, n, dims = draw(st.integers(2, 9)), draw(st.integers(1, 7)), draw(st.integers(1, 5))
    edges = [0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x0080, 0x3F80, 0x3F7F, 0x3F81, 0xBF80, 0x7F7F, 0x3C00]
    special = draw(st.sampled_from([[], [0x7F80, 0xFF80, 0x7FC0, 0x7FA5]]))
    pool = np.array(edges + special + draw(st.lists(st.integers(0, 0x7F7F), max_size=4)), np.uint16)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = pool[rng.integers(0, len(pool), (steps, n, dims))]
    still = rng.random((steps, n, dims)) < draw(st.sampled_from([0.0, 0.6, 0.95]))
    for t in range(1, steps):
        bits[t] = np.where(still[t], bits[t - 1], bits[t])
    values = bits.view(ml_dtypes.bfloat16)
    if draw(st.booleans()):
        with np.errstate(invalid="ignore"):
            values = values.astype(np.float32)
    chunks = tuple(draw(st.integers(1, size)) for size in bits.shape)
    return dataset(values, draw(st.sampled_from([None, chunks])), precision="bfloat16")


def hopping() -> xr.Dataset:
    """A recording made of integers, the same on every CPU: 24 tokens hop by bfloat16 numbers, rest, thaw and freeze.

    They start at 1, where the ULP changes, and at -1 in the last dim, whose sign changes every fifth step. The first 12
    hop by one number and stay together; the others by ever fewer. All move at step 20, and none after step 40.
    """
    rng = np.random.default_rng(0)
    shape = (61, 24, 6)
    hops = rng.integers(0, 3, shape) * (2 * rng.integers(0, 2, shape) - 1)
    hops[..., 0] = rng.integers(1, 3, shape[:2])  # no hop is empty
    hops[:, 12:] *= np.array([60, 20, 5, 1, 1])[np.minimum(np.arange(61) // 8, 4), None, None]
    hops[:, :12] = np.sign(hops[:, :12])
    hops[..., 0] *= 1 - 2 * (np.arange(61) % 2)[:, None]  # to and fro
    hops *= rng.integers(0, 2, (61, 24, 1)) | (np.arange(61) == 20)[:, None, None]
    hops[0], hops[41:] = 0, 0
    bits = (0x3F80 + np.cumsum(hops, axis=0)).astype(np.uint16)
    bits[..., 5] |= (np.minimum(np.arange(61), 40) % 10 < 5).astype(np.uint16)[:, None] << 15
    return dataset(bits.view(ml_dtypes.bfloat16))


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


@pytest.mark.parametrize("tokens", ["dead", "live", "all"])
@pytest.mark.parametrize("analysis", CHECKS)
def test_real_recording(recording: Path, analysis: str, tokens: str) -> None:
    CHECKS[analysis](dx.open_recording(recording, tokens=tokens))  # type: ignore[arg-type]


@pytest.mark.parametrize("analysis", CHECKS)
def test_tight_cluster(atom: Path, analysis: str) -> None:
    CHECKS[analysis](dx.open_recording(atom, tokens="dead"))


@pytest.mark.parametrize("analysis", CHECKS)
def test_hops_rests_and_thaws(analysis: str) -> None:
    CHECKS[analysis](hopping())


def test_the_built_recording_has_what_is_to_be_tested() -> None:
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


@pytest.mark.parametrize("analysis", ANALYSES)
def test_lazy(recording: Path, analysis: str, lazily: Any) -> None:
    with lazily():
        found = ANALYSES[analysis](dx.open_recording(recording, tokens="dead"))
    for name, variable in found.data_vars.items():
        assert variable.chunks is not None, name


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("steps", [slice(0, 300), slice(100, 280), slice(127, 129), slice(1, 2)])
def test_chunks_can_be_written_as_they_are(recording: Path, analysis: str, steps: slice) -> None:
    found = ANALYSES[analysis](dx.open_recording(recording).sel(step=steps))
    for name, variable in found.data_vars.items():
        for sizes in variable.chunks:
            assert len(set(sizes[:-1])) <= 1, (name, sizes)
            assert sizes[-1] <= sizes[0], (name, sizes)


@pytest.mark.parametrize("analysis", ANALYSES)
def test_a_slice_gives_what_the_whole_gives_there(recording: Path, analysis: str) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    whole = ANALYSES[analysis](rec).sel(step=slice(121, 200)).compute()
    part = ANALYSES[analysis](rec.sel(step=slice(120, 200))).sel(step=slice(121, 200)).compute()
    drop = [v for v in ("transition_step", *VERDICT_ATTRS) if v in whole]
    xr.testing.assert_equal(whole.drop_vars(drop), part.drop_vars(drop))


@pytest.mark.parametrize("analysis", ANALYSES)
def test_raw_bits_and_loaded_data_give_the_same(recording: Path, analysis: str) -> None:
    run = ANALYSES[analysis]
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 150))
    expected = run(rec).compute()
    raw = dx.open_recording(recording, tokens="dead", raw=True).isel(step=slice(0, 150))
    xr.testing.assert_equal(run(raw).compute(), expected)
    xr.testing.assert_equal(run(rec.load()).compute(), expected)


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
    def test_refused_by_name(self, analysis: str) -> None:
        with pytest.raises(
            InputError, match=rf"{analysis}: steps 2\.\.2 are missing, and 1 more gaps.*allow_gaps=True"
        ):
            ANALYSES[analysis](self.gapped())

    @pytest.mark.parametrize("analysis", ["motion", "phases", "kinematics"])
    def test_allowed_on_request_with_their_span(self, analysis: str) -> None:
        result = ANALYSES[analysis](self.gapped(), allow_gaps=True).compute()
        span = result.step_span.values
        np.testing.assert_array_equal(span[-3:], [1, 2, 2])

    def test_topology_accepts_them(self) -> None:
        assert dx.topology(self.gapped()).sizes["step"] == 4

    def test_steps_must_ascend(self) -> None:
        with pytest.raises(InputError, match="steps must ascend; step 0 does not"):
            dx.motion(self.gapped().isel(step=[1, 0]))


@pytest.mark.parametrize("analysis", ["motion", "phases"])
def test_a_single_step(recording: Path, analysis: str) -> None:
    with pytest.raises(InputError, match=f"{analysis} needs at least two steps; this dataset has one"):
        ANALYSES[analysis](dx.open_recording(recording).isel(step=[4]))


def test_a_single_step_has_a_place_and_no_velocity(recording: Path) -> None:
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
    def test_what_needs_absolute_positions_refuses(self, recording: Path, analysis: str) -> None:
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
        dx.motion(rec.assign(W=rec.W.assign_attrs(precision="none")))


def test_every_variable_is_described(results: xr.DataTree) -> None:
    for node in results.children.values():
        for name, variable in node.to_dataset().data_vars.items():
            assert variable.attrs["long_name"], name
            assert variable.attrs["units"], name


@pytest.mark.parametrize(
    ("group", "names", "dtype"),
    [
        ("motion", ("displacement", "displacement_ulp"), "float32"),
        ("motion", ("lattice_l1", "lattice_l2", "lattice_linf", "displacement_ulp_mean"), "float64"),
        ("motion", ("moved_dims", "n_invalid"), "int64"),
        ("phases", ("fraction",), "float64"),
        ("phases", ("transition_step",), "int64"),
        (
            "kinematics",
            ("centroid", "bulk_velocity", "bulk_speed", "thermal_rms", "radius", "radius_max"),
            "float64",
        ),
        ("topology", ("mean_ulp", "density"), "float64"),
        ("topology", ("largest_component", "n_singletons", "n_components"), "int64"),
    ],
)
def test_dtypes_are_those_of_the_contract(results: xr.DataTree, group: str, names: tuple[str, ...], dtype: str) -> None:
    for name in names:
        assert results[group][name].dtype == dtype, name


def test_updates_that_left_the_variable_out_tell_nothing_of_freezing() -> None:
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
    assert "no token moved in 0 of 4 steps" in dx.summary(tree)


@pytest.mark.parametrize("name", ["h_mean", "lr"])
def test_a_series_without_steps_is_refused_by_name(name: str) -> None:
    ds = dataset(np.zeros((3, 3, 2), np.float32)).assign({name: ("dim", np.ones(2))})
    ds.attrs.update(optimizer="AdamW", hyperparameters={"lr": 0.1, "eps": 1e-8})
    ds["grad"] = ds.W.dims, np.ones((3, 3, 2), np.float32)
    with pytest.raises(InputError, match=rf"'{name}' has the dimensions \('dim',\); expected .* per step"):
        dx.coherence(ds)
