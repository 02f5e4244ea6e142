"""Life cycles, freezing, epochs and the critical boundary against references, and each pitfall of the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given

import deadtok_xr as dx
from deadtok_xr.analyses.freezing import runs
from deadtok_xr.errors import InputError, OffGridError
from tests import reference
from tests import reference_lifecycle as expected_of
from tests.analyses.test_motion_phases_kinematics_coherence import dataset, hopping, hostile
from tests.reference import assert_agree

SCHEMES = ("lattice", "magnitude", "cells")
ON_TOKENS = {"lifecycle": dx.lifecycle, "freezing": dx.freezing, "epochs": dx.epochs}


def line(*values: float, dims: int = 1) -> np.ndarray:
    """The path of one token in bfloat16, (step, 1, dims)."""
    return np.repeat(np.array(values, np.float32)[:, None, None], dims, axis=2).astype(ml_dtypes.bfloat16)


def check_lifecycle(ds: xr.Dataset, scheme: str) -> xr.Dataset:
    found = dx.lifecycle(ds, scheme=scheme).compute()
    for name, value in expected_of.lifecycle(np.asarray(ds.W.values), scheme, ds.step.values).items():
        assert_agree(found[name], value, name)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lifecycle_of_real_runs(recording: Path, atom: Path, scheme: str) -> None:
    check_lifecycle(dx.open_recording(recording, tokens="dead"), scheme)
    check_lifecycle(dx.open_recording(recording, tokens="dead").isel(step=slice(0, 200)), scheme)
    check_lifecycle(dx.open_recording(atom, tokens="dead").isel(token=slice(0, 40)), scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lifecycle_of_hops_rests_and_thaws(scheme: str) -> None:
    found = check_lifecycle(hopping(), scheme)
    assert found.thaw_count.max() > 1
    assert (found.n_frozen, found.n_censored) == (24, 0)
    cut = check_lifecycle(hopping().isel(step=slice(0, 21)), scheme)  # its last transition moves all tokens
    assert (cut.n_frozen, cut.n_censored) == (0, 24)


@given(ds=hostile())
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
def test_lifecycle_of_hostile_bits(scheme: str, ds: xr.Dataset) -> None:
    check_lifecycle(ds, scheme)


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


def test_not_moved_is_that_of_mechanism(results: xr.DataTree) -> None:
    moved = results["mechanism"].cause.values == 2
    life = results["lifecycle"].to_dataset()
    np.testing.assert_array_equal(life.moved_steps, moved.sum(0))
    np.testing.assert_array_equal(life.last_motion, results["mechanism"].last_motion)
    np.testing.assert_allclose(life.frozen_fraction, 1 - moved.mean(1))
    np.testing.assert_array_equal(life.stratigraphy > 0, life.step <= life.last_motion)


def test_lifecycle_agrees_with_its_neighbours(results: xr.DataTree) -> None:
    life, phases = results["lifecycle"].to_dataset(), results["phases"].to_dataset()
    assert_agree(life.frozen_fraction, phases.fraction.sel(phase="frozen").values)
    predictors = results["freeze_predictors"].to_dataset()
    np.testing.assert_array_equal(life.last_motion + 1, predictors.freeze_step)
    freezing = results["freezing"].to_dataset()
    np.testing.assert_array_equal(life.global_freeze, freezing.global_freeze)
    assert_agree(life.frozen_fraction, freezing.frozen_fraction.values)
    assert_agree(results["epochs"].frozen_fraction[1:], freezing.frozen_fraction.values)
    total = int(life.passages.sum())
    assert total == 162 * 299
    assert int(life.reheats.sum() + life.cools.sum()) == total - int(np.trace(life.passages))


class TestPitfalls:
    """Catalogue 3.7, by their numbers; each of these fails under the pitfall."""

    def test_9_leaving_zero_is_no_freeze(self) -> None:
        """Norms that overflow were set to 0, and such a step counted as frozen."""
        ds = dataset(line(0.0, 1e4, 0.0, 0.0, dims=64))
        found = dx.lifecycle(ds, scheme="cells").compute()
        assert found.last_motion.values.tolist() == [2]
        assert found.first_freeze.values.tolist() == [3]
        assert found.last_step.sel(phase="hypernova").values.tolist() == [2]
        np.testing.assert_array_equal(dx.freezing(ds).n_frozen, [0, 0, 1])
        np.testing.assert_array_equal(dx.freezing(ds, definition="lattice_l2", threshold=0.1).n_frozen, [0, 0, 1])

    def test_38_a_leap_whose_squares_overflow_float32_is_hypernova(self) -> None:
        """L2 overflowed where L1 did not, so that the step was spherical and not hypernova."""
        found = dx.phases(dataset(line(0.0, 1e-3)), scheme="cells").compute()
        assert found.fraction.sel(phase="hypernova").values.tolist() == [1.0]

    def test_10_signed_zeros_are_equal_unless_bits_are_asked_for(self) -> None:
        ds = dataset(line(0.0, -0.0, 0.0, 1.0))
        assert dx.lifecycle(ds).last_motion.values.tolist() == [3]
        assert dx.lifecycle(ds).first_freeze.values.tolist() == [-1]
        np.testing.assert_array_equal(dx.freezing(ds).n_frozen, [1, 1, 0])
        np.testing.assert_array_equal(dx.freezing(ds, definition="bits").n_frozen, [0, 0, 0])

    def test_11_a_threshold_is_not_standing_still(self) -> None:
        """A move of 1e-5 is below 1e-4, and a move."""
        ds = dataset(line(1e-3, 1.0149e-3, 1.0149e-3))
        np.testing.assert_array_equal(dx.freezing(ds).n_frozen, [0, 1])
        np.testing.assert_array_equal(dx.freezing(ds, definition="displacement", threshold=1e-4).n_frozen, [1, 1])

    def test_18_a_transition_has_the_label_of_its_later_step(self) -> None:
        ds = dataset(line(1, 1, 2, 2), first=100)
        found = dx.lifecycle(ds).compute()
        assert found.last_motion.values.tolist() == [102]
        assert found.first_freeze.values.tolist() == [103]
        run = dx.freezing(ds).freeze_run
        assert run.step.values[run.values > 0].tolist() == [101, 103]

    def test_27_half_a_cell_stumbles(self) -> None:
        """By L2, stumbling was 0.1 to 1, which whole cells never reach; half a cell and one cell are in it here."""
        half = line(1.0, 1 - 2**-8, 1 - 2**-8 - 2**-8)  # inwards from a power of two, and on by a whole cell
        found = dx.phases(dataset(half), scheme="cells").compute()
        assert found.fraction.sel(phase="stumbling").values.tolist() == [1.0, 1.0]

    def test_24_invalid_tokens_are_not_frozen(self) -> None:
        W = np.ones((4, 3, 2), np.float32)
        W[:, 1] = np.nan
        W[2, 2, 0] = np.inf
        found = dx.lifecycle(dataset(W, precision="bfloat16")).compute()
        np.testing.assert_array_equal(found.frozen_fraction, [1, 1, 1])
        np.testing.assert_array_equal(found.n_invalid, [1, 2, 2])
        assert not found.global_freeze.any()
        np.testing.assert_array_equal(found.first_freeze, [-1, -1, -1])
        np.testing.assert_array_equal(found.censored, [0, -1, -1])
        np.testing.assert_array_equal(found.stratigraphy.sel(token=3), [-1, -1, -1])
        frozen = dx.freezing(dataset(W, precision="bfloat16")).compute()
        np.testing.assert_array_equal(frozen.n_frozen, [2, 1, 1])
        assert frozen.n_runs == 0
        assert frozen.permanent_freeze == 0
        for definition in ("bits", "lattice_l2"):
            options = {"threshold": 0.1} if definition == "lattice_l2" else {}
            found = dx.freezing(dataset(W, precision="bfloat16"), definition=definition, **options)
            np.testing.assert_array_equal(found.n_frozen, [2, 1, 1])
        allnan = dx.lifecycle(dataset(np.full((3, 2, 2), np.nan, np.float32), precision="bfloat16")).compute()
        assert np.isnan(allnan.frozen_fraction).all()
        assert not allnan.global_freeze.any()

    def test_34_who_never_moved_did_not_freeze_and_who_still_moves_neither(self) -> None:
        W = np.ones((5, 3, 1), np.float32)
        W[:, 1, 0] = [1, 2, 3, 4, 5]
        W[2:, 2] = 2
        found = dx.lifecycle(dataset(W, precision="bfloat16")).compute()
        np.testing.assert_array_equal(found.first_freeze, [-1, -1, 3])
        np.testing.assert_array_equal(found.last_motion, [-1, 4, 2])
        np.testing.assert_array_equal(found.censored, [0, 1, 0])
        assert [int(found[n]) for n in ("n_never_moved", "n_censored", "n_frozen")] == [1, 1, 1]
        np.testing.assert_array_equal(found.last_motion_range, [2, np.nan, np.nan])
        np.testing.assert_array_equal(found.first_freeze_range, [3, np.nan, np.nan])

    def test_37_a_cohort_has_the_label_of_its_step(self) -> None:
        found = dx.lifecycle(dataset(line(1, 3, 5, 5.03125, 5.03125))).compute()
        assert found.first_stumble.values.tolist() == [3]
        np.testing.assert_array_equal(found.stumble_cohort, [0, 0, 1, 0])
        assert found.last_thrust.values.tolist() == [2]
        assert found.thrust_period.values.tolist() == [1]

    def test_26_the_radius_from_the_origin_is_not_that_from_the_centroid(self) -> None:
        W = np.ones((3, 4, 2), np.float32) * np.array([1, 2, 4], np.float32)[:, None, None]
        np.testing.assert_allclose(dx.epochs(dataset(W)).radius, np.sqrt(2) * np.array([1, 2, 4]))
        np.testing.assert_array_equal(dx.epochs(dataset(W), radius="centroid").radius, [0, 0, 0])


def test_the_runs_of_thimble_5() -> None:
    """Catalogue 4.3: 55 runs of global freezes, 674 steps, mean 12.3, median 4, longest 82."""
    text = """1143-1145 1383-1384 1632-1633 1639-1640 1700-1701 1736-1738 1747-1751 1823-1824 1908 1917-1923 1929-1933
        2011-2013 2030 2050-2053 2097 2100-2110 2118-2122 2127-2128 2141-2147 2156-2159 2161-2164 2169-2177 2198-2201
        2215-2216 2219 2221 2223-2224 2227-2234 2238-2239 2259-2260 2273-2278 2283-2285 2292-2293 2295-2298 2300-2303
        2320-2350 2354-2381 2398-2425 2427-2431 2467-2492 2497-2504 2506-2518 2526-2528 2535-2542 2545-2560 2567-2610
        2614-2650 2658-2660 2663-2704 2711-2722 2731-2807 2811-2827 2830-2862 2878-2912 2918-2999"""
    spans = [[int(x) for x in part.split("-")] for part in text.split()]
    still = np.zeros(3000, bool)
    for span in spans:
        still[span[0] : span[-1] + 1] = True
    W = np.concatenate([[0], np.cumsum(~still) % 2]).astype(np.float32).reshape(-1, 1, 1) + 1
    found = dx.freezing(dataset(W, (500, 1, 1), precision="bfloat16")).compute()
    assert (int(found.n_runs), int(found.n_global), int(found.longest_run)) == (55, 674, 82)
    assert (round(float(found.mean_run), 1), float(found.median_run)) == (12.3, 4.0)
    begins = found.freeze_run[found.freeze_run > 0]
    assert begins.step.values.tolist() == [span[0] + 1 for span in spans]  # there, the label of the earlier step
    assert begins.values.tolist() == [span[-1] - span[0] + 1 for span in spans]
    assert int(found.permanent_freeze) == 82
    assert int(found.final_motion) == 2918


@given(ds=hostile())
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
def test_freezing_of_hostile_bits(ds: xr.Dataset) -> None:
    W = np.asarray(ds.W.values)
    m = reference.motion(W)
    bits = W.view("u2" if W.dtype == ml_dtypes.bfloat16 else "u4")
    valid = m["moved_dims"] >= 0
    definitions = {"value": m["moved_dims"] == 0, "bits": valid & (bits[1:] == bits[:-1]).all(2)}
    for name, threshold in (("displacement", 1e-3), ("displacement_ulp", 0.1), ("lattice_l1", 1.0),
                            ("lattice_l2", 0.7), ("lattice_linf", 1.5)):  # fmt: skip
        definitions[name] = m[name] < threshold
        found = dx.freezing(ds, definition=name, threshold=threshold).compute()
        np.testing.assert_array_equal(found.n_frozen, definitions[name].sum(1))
    for name in ("value", "bits"):
        found = dx.freezing(ds, definition=name).compute()
        still = definitions[name]
        np.testing.assert_array_equal(found.n_frozen, still.sum(1))
        np.testing.assert_array_equal(found.n_invalid, (~valid).sum(1))
        going = valid & ~still
        last = [expected_of.label(expected_of.last(list(column)), ds.step.values) for column in going.T]
        np.testing.assert_array_equal(found.last_motion, last)
        assert found.final_motion == max(last)
        everything = still.all(1)
        np.testing.assert_array_equal(found.global_freeze, everything)
        expected = np.zeros(len(everything), int)
        for start, length in expected_of.runs(list(everything)):
            expected[start] = length
        np.testing.assert_array_equal(found.freeze_run, expected)
        np.testing.assert_array_equal(runs(everything), expected)


@given(ds=hostile())
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
def test_epochs_of_hostile_bits(ds: xr.Dataset) -> None:
    W = np.asarray(ds.W.values).astype(np.float64)
    m = reference.motion(np.asarray(ds.W.values))
    found = dx.epochs(ds).compute()
    with np.errstate(invalid="ignore"):
        r = np.sqrt((W**2).sum(2)).mean(1)
    r[~np.isfinite(r)] = np.nan
    assert_agree(found.radius, r)
    assert_agree(found.velocity[1:], np.diff(r))
    valid, still = (m["moved_dims"] >= 0).sum(1), (m["moved_dims"] == 0).sum(1)
    frozen = np.array([s / v if v else np.nan for s, v in zip(still, valid, strict=True)])
    assert_agree(found.frozen_fraction[1:], frozen)
    np.testing.assert_array_equal(found.n_invalid[1:], ds.sizes["token"] - valid)
    over = [t for t in range(len(frozen)) if frozen[t] > 0.9]
    assert found.freeze_step == (ds.step.values[over[0] + 1] if over else -1)
    np.testing.assert_array_equal(found.epoch == -1, np.isnan(r))


def test_the_epochs_of_a_known_curve() -> None:
    """It shrinks for 2 steps, grows fastest at step 6, slows down, grows again from step 32 on, and freezes."""
    v = np.concatenate([[-4, -2], [6, 10, 14, 20], np.linspace(16, 2, 25), [1, 3, 4, 3], np.zeros(10)])
    r = 512 + np.concatenate([[0], np.cumsum(np.round(v))])
    found = dx.epochs(dataset(r.astype(np.float32).reshape(-1, 1, 1), (7, 1, 1)).assign_coords(step=np.arange(len(r))))
    found = found.compute()
    names = ("inhale_step", "sneeze_step", "reexpansion_step", "freeze_step")
    assert [int(found[name]) for name in names] == [2, 6, 32, 36]
    np.testing.assert_allclose(found.inhale_depth, 6 / 512)
    expected = np.where(np.arange(len(r)) <= 6, 1, 2)
    expected[:3], expected[36:] = 0, 3
    np.testing.assert_array_equal(found.epoch, expected)
    assert int(dx.epochs(dataset(r.astype(np.float32).reshape(-1, 1, 1)), smooth=5).sneeze_step) != -1


def test_smoothing_is_a_mean_of_what_is_known(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    found = dx.epochs(rec, smooth=5).compute()
    v = np.diff(np.sqrt((rec.W.values.astype(float) ** 2).sum(2)).mean(1))
    smooth = [v[max(0, i - 2) : i + 3].mean() for i in range(len(v))]
    assert int(found.sneeze_step) == int(np.argmax(smooth)) + 1
    centroid = dx.epochs(rec, radius="centroid").compute()
    assert_agree(centroid.radius, reference.kinematics(rec.W.values)["radius"])


class TestCriticalBoundary:
    def reference(self, rec: xr.Dataset, eps: float = 1e-8) -> tuple[np.ndarray, np.ndarray]:
        """Ratio of each element, and whether it moved, in plain numpy."""
        W, m, v = (rec[name].values.astype(np.float64) for name in ("W", "exp_avg", "exp_avg_sq"))
        t = rec.step.values[1:, None, None].astype(float)
        lr = rec.lr.values[1:, None, None]
        step = -lr * (m[1:] / (1 - 0.9**t)) / (np.sqrt(v[1:] / (1 - 0.999**t)) + eps)
        towards = np.where(step < 0, -1, 1) * np.where(W[:-1] < 0, -1, 1)
        gap = np.where((towards < 0) & (np.frexp(np.abs(W[:-1]))[0] == 0.5), 0.5, 1.0) * reference.ulp(W[:-1])
        return np.abs(step) / (gap / 2), W[1:] != W[:-1]

    def test_of_a_real_run(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead")
        found = dx.critical_boundary(rec).compute()
        ratio, moved = self.reference(rec)
        np.testing.assert_allclose(found.critical_ratio, ratio.max(2), rtol=1e-6)
        assert_agree(found.above_fraction, (ratio > 1).mean((1, 2)))
        assert_agree(found.tokens_above, (ratio > 1).any(2).mean(1))
        above = (ratio > 1).sum((1, 2))
        some = above > 0
        assert_agree(found.moved_above[some], ((ratio > 1) & moved).sum((1, 2))[some] / above[some])
        assert (found.n_invalid == 0).all()

    def test_it_is_where_motion_begins(self, recording: Path) -> None:
        """But for three roundings to bfloat16 in torch's denominator, 2⁻⁹ each."""
        rec = dx.open_recording(recording, tokens="dead")
        ratio, moved = dx.critical_boundary(rec).critical_ratio.values, dx.motion(rec).moved_dims.values > 0
        assert moved[ratio > 1.01].all()
        assert not moved[ratio < 0.99].any()

    def test_36_a_norm_over_all_dims_lies_above_what_no_dim_does(self) -> None:
        """Each element steps by 0.6 half gaps; the norm of 64 of them is 4.8, and nothing can move."""
        shape = (3, 2, 64)
        g = 1e-2
        t = np.arange(3)[:, None, None]
        m = np.broadcast_to(g * (1 - 0.9**t), shape).astype(np.float32)
        v = np.broadcast_to(g**2 * (1 - 0.999**t), shape).astype(np.float32)
        ds = dataset(np.full(shape, 1.5, np.float32), precision="bfloat16")
        lr = 0.6 * 2.0**-8  # the step is lr, half the gap 2^-8
        ds = ds.assign(exp_avg=(ds.W.dims, m), exp_avg_sq=(ds.W.dims, v))
        hyper = {"optimizer": "AdamW", "betas": (0.9, 0.999), "eps": 1e-12, "weight_decay": 0.0}
        found = dx.critical_boundary(ds, hyperparameters=hyper, lr=lr).compute()
        np.testing.assert_allclose(found.critical_ratio, 0.6, rtol=1e-4)  # at step 1 too: the bias is corrected
        assert (found.tokens_above == 0).all()
        up = dx.critical_boundary(ds, hyperparameters=hyper, lr=2 * lr).compute()
        assert (up.above_fraction == 1).all()

    def test_below_a_power_of_two_half_the_gap_is_half_as_wide(self) -> None:
        ds = dataset(np.ones((2, 2, 1), np.float32), precision="bfloat16")
        m = np.array([1e-3, -1e-3], np.float32).reshape(1, 2, 1).repeat(2, axis=0)  # down, and up
        ds = ds.assign(exp_avg=(ds.W.dims, m), exp_avg_sq=(ds.W.dims, np.full(m.shape, 1e-7, np.float32)))
        hyper = {"optimizer": "Adam", "betas": (0.9, 0.999), "eps": 0.0}
        found = dx.critical_boundary(ds, hyperparameters=hyper, lr=1e-3).compute()
        np.testing.assert_allclose(found.critical_ratio[0], [1e-3 * 2**9, 1e-3 * 2**8], rtol=1e-5)

    def test_what_is_not_known_is_nan(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead").isel(step=[0, 1, 2, 5, 6])
        with pytest.raises(InputError, match=r"critical_boundary: steps 3\.\.4 are missing"):
            dx.critical_boundary(rec)
        found = dx.critical_boundary(rec, allow_gaps=True).compute()
        np.testing.assert_array_equal(found.n_invalid, [0, 0, 162, 0])
        assert np.isnan(found.critical_ratio[2]).all()
        W = rec.W.load().copy()
        W[1, 3, 0] = np.nan
        holes = dx.critical_boundary(rec.assign(W=W), allow_gaps=True).compute()
        np.testing.assert_array_equal(holes.n_invalid, [1, 1, 162, 0])

    def test_what_it_needs(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead")
        with pytest.raises(InputError, match=r"critical_boundary needs 'exp_avg' and 'exp_avg_sq'"):
            dx.critical_boundary(rec.drop_vars(["exp_avg", "exp_avg_sq"]))
        with pytest.raises(InputError, match="is defined for Adam; this recording's optimizer is SGD"):
            dx.critical_boundary(rec, hyperparameters={"optimizer": "SGD"})


# --- what holds for all of them ----------------------------------------------------------------------------

ALL = {**ON_TOKENS, "critical_boundary": dx.critical_boundary}


@pytest.mark.parametrize("name", ALL)
def test_lazy_and_written_as_they_are(recording: Path, name: str, lazily: Any) -> None:
    for steps in (slice(0, 300), slice(100, 280), slice(127, 129)):
        with lazily():
            found = ALL[name](dx.open_recording(recording, tokens="dead").sel(step=steps))
        for key, variable in found.data_vars.items():
            assert variable.chunks is not None, key
            for sizes in variable.chunks:
                assert len(set(sizes[:-1])) <= 1, (key, sizes)
                assert not sizes or sizes[-1] <= sizes[0], (key, sizes)
            assert variable.attrs["long_name"], key
            assert variable.attrs["units"], key


@pytest.mark.parametrize("name", ALL)
def test_raw_bits_and_loaded_data_give_the_same(recording: Path, name: str) -> None:
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 150))
    expected = ALL[name](rec).compute()
    raw = dx.open_recording(recording, tokens="dead", raw=True).isel(step=slice(0, 150))
    xr.testing.assert_equal(ALL[name](raw).compute(), expected)
    xr.testing.assert_equal(ALL[name](rec.load()).compute(), expected)


@pytest.mark.parametrize("name", ON_TOKENS)
def test_gaps_and_single_steps(name: str) -> None:
    ds = dataset(np.ones((6, 2, 2), np.float32), precision="bfloat16").isel(step=[0, 1, 3, 5])
    with pytest.raises(InputError, match=rf"{name}: steps 2\.\.2 are missing, and 1 more gaps.*allow_gaps=True"):
        ON_TOKENS[name](ds)
    np.testing.assert_array_equal(ON_TOKENS[name](ds, allow_gaps=True).step_span[-3:], [1, 2, 2])
    with pytest.raises(InputError, match=f"{name} needs at least two steps"):
        ON_TOKENS[name](ds.isel(step=[1]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("steps", [2, 5])
def test_one_token_and_tokens_that_never_move(steps: int) -> None:
    ds = dataset(np.ones((steps, 1, 2), np.float32), precision="bfloat16")
    life = dx.lifecycle(ds).compute()
    assert life.last_motion.values.tolist() == [-1]
    assert life.global_freeze.all()
    assert np.isnan(life.last_motion_range).all()
    assert dx.freezing(ds).permanent_freeze == steps - 1
    assert dx.freezing(ds).final_motion == -1
    assert int(dx.epochs(ds).freeze_step) == 1


def test_without_a_lattice(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 30))
    none = rec.assign(W=rec.W.assign_attrs(precision="none"))
    with pytest.raises(InputError, match="unknown precision"):
        dx.lifecycle(none)
    with pytest.raises(InputError, match="unknown precision"):
        dx.freezing(none, definition="lattice_l2", threshold=0.1)
    assert_agree(dx.freezing(none).n_frozen, dx.freezing(rec).n_frozen.values)
    assert_agree(dx.epochs(none).radius, dx.epochs(rec).radius.values)
    off = none.assign(W=(none.W.dims, none.W.values + np.float32(1e-6), {"precision": "bfloat16"}))
    with pytest.raises(OffGridError):
        dx.lifecycle(off).compute()


def test_options_are_checked(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    with pytest.raises(InputError, match="choose one of lattice, magnitude, cells"):
        dx.lifecycle(rec, scheme="v1")
    with pytest.raises(InputError, match="choose one of value, bits, displacement"):
        dx.freezing(rec, definition="exact")
    with pytest.raises(InputError, match="needs a threshold, which is None: say threshold= with a positive number"):
        dx.freezing(rec, definition="lattice_l2")
    with pytest.raises(InputError, match="takes no threshold"):
        dx.freezing(rec, threshold=0.1)
    with pytest.raises(InputError, match="choose one of origin, centroid"):
        dx.epochs(rec, radius="max")
    with pytest.raises(InputError, match="smooth=4; expected an odd number"):
        dx.epochs(rec, smooth=4)
    with pytest.raises(InputError, match=r"frozen_above=1\.5; expected a share"):
        dx.epochs(rec, frozen_above=1.5)
