"""Every family of recordings converts bit for bit, and the ledger says so."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

import deadtok_xr as dx
from deadtok_xr.conversion import recipes
from deadtok_xr.errors import InputError
from tests.families import FAMILIES, Built, save

LEDGER = (Path(__file__).parents[2] / "conversion" / "README.md").read_text()


@pytest.fixture(scope="module")
def real(recording: Path) -> xr.Dataset:
    """The real run, in memory, as stored, ascending by token."""
    return dx.open_recording(recording, raw=True).load()


def bits(x: Any) -> NDArray[Any]:
    x = np.ascontiguousarray(x)
    return x.view(f"u{x.dtype.itemsize}")


def convert(built: Built, dest: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is left out; asserted by its attribute
        return dx.convert(built.path, dest, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_converts_bit_for_bit(name: str, real: xr.Dataset, tmp_path: Path) -> None:
    built = FAMILIES[name](real, tmp_path)
    store = convert(built, tmp_path / "out.zarr", **built.options)
    rec = dx.open_recording(store, raw=True)
    assert set(rec.data_vars) == {*built.expected}
    for variable, expected in built.expected.items():
        found = rec[variable].values
        assert found.dtype == expected.dtype, variable
        assert found.shape == expected.shape, variable
        np.testing.assert_array_equal(bits(found), bits(expected), err_msg=variable)
    np.testing.assert_array_equal(rec["step"], built.steps)
    np.testing.assert_array_equal(rec["token"], built.tokens)
    if built.dead is None:
        assert "dead" not in rec.coords
    else:
        np.testing.assert_array_equal(rec["dead"], built.dead)
    assert rec.sizes.get("run") == built.runs
    if "W" in rec:
        lossy = built.expected["W"].dtype == np.float16 and "precision" not in rec.attrs.get("conversion", {})
        assert lossy or rec["W"].attrs["precision"] == built.precision
    found_settings = rec.attrs["hyperparameters"]
    assert {k: found_settings.get(k) for k in built.hyperparameters} == built.hyperparameters
    assert set(rec.attrs.get("dropped", {})) == built.dropped
    initial = built.options.get("initial")
    verified = dx.verify(store, built.path, initial=initial)
    assert not verified.problems
    assert set(verified.compared) == {*rec.data_vars}


@pytest.mark.parametrize("name", ["lil_gatsby", "pre_step"])
def test_ambiguous_sources_are_refused(name: str, real: xr.Dataset, tmp_path: Path) -> None:
    built = FAMILIES[name](real, tmp_path)
    with pytest.raises(InputError, match=rf"Either .* or .*{built.ambiguous}|{built.ambiguous}.* or ") as caught:
        convert(built, tmp_path / "out.zarr")
    assert len(re.findall("--(?:steps|recorded) ", caught.value.advice)) == 2  # an option for each reading
    assert not (tmp_path / "out.zarr").exists()


def test_initial_weights_with_sampled_displacements_are_refused(real: xr.Dataset, tmp_path: Path) -> None:
    built = FAMILIES["instrumented_every_tenth"](real, tmp_path)
    rec = dx.open_recording(convert(built, tmp_path / "out.zarr", **built.options))
    for allow_gaps in (False, True):
        with pytest.raises(InputError, match="kinematics: .*missing, and 9 more gaps"):
            dx.kinematics(rec, allow_gaps=allow_gaps)


def test_initial_weights_of_another_run_are_refused(real: xr.Dataset, tmp_path: Path) -> None:
    built = FAMILIES["instrumented_with_initial"](real, tmp_path)
    other = save(tmp_path / "other.safetensors", {"W": real["W"].values[100]})
    with pytest.raises(InputError, match=r"off the bfloat16 grid of .*other.safetensors"):
        convert(built, tmp_path / "out.zarr", initial=other)


def test_initial_weights_cannot_bridge_gaps(real: xr.Dataset, tmp_path: Path) -> None:
    built = FAMILIES["instrumented_every_tenth"](real, tmp_path)
    initial = save(tmp_path / "W.safetensors", {"W": real["W"].values[0, built.tokens]})
    with pytest.raises(InputError, match="'recorded_steps' skips steps"):
        convert(built, tmp_path / "out.zarr", initial=initial, **built.options)


def test_lists_that_could_be_steps_or_tokens_are_refused(tmp_path: Path) -> None:
    w = np.ones((6, 6, 2), np.float32)
    path = save(tmp_path / "a.safetensors", {"W": w, "odd": np.arange(6)})
    with pytest.raises(
        InputError, match=r"'odd' has 6 entries, .* dims={'odd': \('step',\)} or dims={'odd': \('token',\)}"
    ):
        dx.convert(path, tmp_path / "out.zarr")
    rec = dx.open_recording(dx.convert(path, tmp_path / "out.zarr", dims={"odd": ["token"]}))
    assert rec["odd"].dims == ("token",)


def test_two_embeddings_are_refused_until_one_is_named(real: xr.Dataset, tmp_path: Path) -> None:
    w = real["W"].values
    path = save(tmp_path / "model.safetensors", {"a.embed_tokens.weight": w[0], "b.embed_tokens.weight": w[1]})
    with pytest.raises(
        InputError, match=r"nothing proves which matrix .* 'a.embed_tokens.weight' .* name it with keys={'W': "
    ):
        dx.convert(path, tmp_path / "out.zarr")
    rec = dx.open_recording(
        convert(Built(path, {}, w, w), tmp_path / "out.zarr", keys={"W": "b.embed_tokens.weight"}), raw=True
    )
    np.testing.assert_array_equal(bits(rec["W"].values[0]), bits(w[1]))


def test_float32_copies_can_be_kept(real: xr.Dataset, tmp_path: Path) -> None:
    built = FAMILIES["thimble_1"](real, tmp_path)
    rec = dx.open_recording(convert(built, tmp_path / "out.zarr", keep_dtype=True), raw=True)
    assert rec["exp_avg"].dtype == np.float32
    np.testing.assert_array_equal(rec["exp_avg"].values, built.expected["exp_avg"].astype(np.float32))


def test_bits_of_float16(real: xr.Dataset, tmp_path: Path) -> None:
    built = FAMILIES["thimble_7"](real, tmp_path)
    rec = dx.open_recording(convert(built, tmp_path / "out.zarr", bits="float16"), raw=True)
    assert rec["W"].dtype == np.float16
    np.testing.assert_array_equal(bits(rec["W"].values), bits(built.expected["W"]))


def test_files_without_weights_are_refused(real: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "lifecycle_trajectories.npz"
    np.savez(path, L1_history=np.zeros((5, 3)), losses=np.zeros(5))
    with pytest.raises(InputError, match="lifecycle_trajectories.npz holds no weights"):
        dx.convert(path, tmp_path / "out.zarr")


def _ledger() -> dict[str, str]:
    """Return the rows of the ledger by the family that tests them."""
    rows = [line for line in LEDGER.splitlines() if line.startswith("| ") and "`" in line.split("|")[1]]
    return {name: row for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_the_ledger_has_every_family_and_no_other() -> None:
    assert set(_ledger()) == set(FAMILIES)


def test_the_ledger_names_the_recipe_of_every_family(real: xr.Dataset, tmp_path: Path) -> None:
    named = set(re.findall(r"recipe `(\w+)`", LEDGER))
    assert named == set(recipes())
    for i, (name, build) in enumerate(FAMILIES.items()):
        folder = tmp_path / str(i)
        folder.mkdir()
        recipe = build(real, folder).options.get("recipe")
        row = _ledger()[name]
        assert recipe is None or f"recipe `{recipe}`" in row or re.search(r"\| (as [A-Z]|the same)", row)
