"""Settings of the training that a store lacks, given to `analyze` and on the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests.cli.test_cli import Deadtok, deadtok
from tests.conftest import N_DEAD
from tests.manifests import accept

__all__ = ["deadtok"]
ADAMW = ("--optimizer", "adamw", "--hyperparameter", "betas=0.9,0.999", "--hyperparameter", "eps=1e-8")


@pytest.fixture(scope="module")
def untold(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real recording, without a word on its optimizer and its learning rates."""
    path = tmp_path_factory.mktemp("untold") / "run.zarr"
    shutil.copytree(recording, path)
    group = zarr.open_group(path, mode="r+")
    for name in ("optimizer", "optimizer_class", "hyperparameters", "implementation"):
        del group.attrs[name]
    shutil.rmtree(path / "lr")
    accept(path)
    return path


def test_options_reach_one_analysis(recording: Path) -> None:
    options = {"mechanism": {"arithmetic": "float32_once"}, "topology": {"coincident": "linked"}}
    tree = dx.analyze(recording, options=options)
    assert tree["mechanism"].attrs["arithmetic"] == "float32_once"
    assert tree["topology"].attrs["coincident"] == "linked"
    assert "phases" in tree.children


def test_option_variable_affects_only_its_analysis(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    rec["E"] = rec.W.isel(step=slice(None, None, -1)).assign_coords(step=rec.step)
    names = ["motion", "phases", "kinematics"]
    tree = dx.analyze(rec, analyses=names, options={"phases": {"variable": "E"}})
    assert list(tree.children) == names
    xr.testing.assert_identical(tree["motion"].to_dataset().compute(), dx.motion(rec).compute())
    xr.testing.assert_identical(tree["phases"].to_dataset().compute(), dx.phases(rec, variable="E").compute())
    assert (tree["phases"].fraction != dx.phases(rec).fraction).any()


def test_options_that_cannot_be_used_are_refused(recording: Path, untold: Path) -> None:
    for options, sentence in (
        ({"mechanism": {"rate": 1.0}}, "mechanism has no option 'rate': choose from arithmetic, hyperparameters, lr"),
        ({"entropy": {}}, "there are options for 'entropy', which is not among the analyses .*motion, phases"),
        ({"mechanism": 1e-3}, "options\\['mechanism'\\] is a float"),
    ):
        with pytest.raises(InputError, match=sentence):
            dx.analyze(recording, options=options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not among the analyses motion$"):
        dx.analyze(recording, analyses=["motion"], options={"mechanism": {}})
    with pytest.raises(InputError, match="does not say which optimizer"):  # not left out: it was asked for
        dx.analyze(untold, options={"mechanism": {"lr": 1e-3}})


@pytest.mark.parametrize("suffix", [".txt", ".npy"])
def test_command_replays_with_the_given_settings(
    deadtok: Deadtok, recording: Path, untold: Path, tmp_path: Path, suffix: str
) -> None:
    rates = dx.open_recording(recording).lr.values
    file = tmp_path / f"lr{suffix}"
    if suffix == ".npy":
        np.save(file, rates)
    else:
        file.write_text("\n".join(map(repr, rates[1:].tolist())))
    options = ("--lr", file, *ADAMW, "--arithmetic", "find")
    said = deadtok("analyze", untold, "-o", tmp_path / "r.zarr", "--only", "mechanism", "--details", *options)
    assert said.status == 0, said.err
    assert "AdamW replayed (single)\n" in said.out
    assert f"replay            100.0000% of {N_DEAD * 16 * 300} elements to the bit, 0 missed" in said.out


def test_command_without_settings_names_them(deadtok: Deadtok, untold: Path, tmp_path: Path) -> None:
    said = deadtok("analyze", untold, "-o", tmp_path / "r.zarr", "--only", "mechanism")
    assert said.status == 2
    assert "does not say which optimizer made it" in said.sentence
    assert "give --optimizer AdamW" in said.sentence
    said = deadtok("analyze", untold, "-o", tmp_path / "r.zarr", "--only", "mechanism", *ADAMW)
    assert "give --lr" in said.sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--lr", "fast"), "--lr fast: found neither a number nor a file"),
        (
            ("--lr", "EMPTY"),
            "lr has the shape (0,); expected one number, one per step (301,), or one per update (300,)",
        ),
        (("--lr", "WORDS"), "cannot be read (could not convert string to float: 'soon'); expected: a number"),
        (("--lr", "nan"), "lr is NaN"),
        (("--hyperparameter", "betas=fast,slow"), "betas=fast,slow: expected: a number"),
        (("--hyperparameter", "betas=0.9"), "betas is 0.9 in hyperparameters; expected: two numbers"),
        (("--hyperparameter", "beta1=0.9"), "unknown hyperparameter 'beta1'; choose from optimizer, lr, betas"),
        (("--hyperparameter", "eps"), "expected: KEY=VALUE"),
        (("--hyperparameter", "lr=1"), "use --lr"),
        (("--optimizer", "Lion"), "the optimizer is Lion; only AdamW, Adam, SGD"),
        (("--arithmetic", "guess"), "choose 'auto', 'find' or one of single, foreach"),
        (("--arithmetic", "find", "--only", "motion"), "are for mechanism: add it to --only"),
    ],
)
def test_invalid_options_are_refused(
    deadtok: Deadtok, recording: Path, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "words").write_text("1e-3 soon")
    files = {"EMPTY": str(tmp_path / "empty"), "WORDS": str(tmp_path / "words")}
    said = deadtok("analyze", recording, "-o", tmp_path / "r.zarr", *(files.get(word, word) for word in options))
    assert said.status == 2
    assert sentence in said.sentence
    assert not (tmp_path / "r.zarr").exists()
