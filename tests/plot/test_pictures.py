"""The most used pictures equal the reviewed reference images in tests/plot/pictures/.

python -m tests.plot.test_pictures    # draws them again; review them before they are committed
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import xarray as xr
from matplotlib.testing.compare import compare_images

import deadtok_xr as dx
from deadtok_xr import plot, testing

KEPT = Path(__file__).parent / "pictures"
ANALYSES = ("motion", "phases", "lifecycle", "freezing", "kinematics", "topology", "census")
FILES = ("displacement.png", "trajectories.png", "phases.png", "lifecycle.png", "freezing.png", "speeds.png",
         "topology.png", "census.png")  # fmt: skip
TOLERANCE = 6.0
"""Root mean square of the difference, of 255: other releases of FreeType move letters by parts of a pixel."""


def drawn(folder: Path) -> Path:
    """The pictures of a small recording that is the same everywhere."""
    recording = testing.synthetic_recording(folder / "run.zarr", steps=120, tokens=30, dims=8)
    tree = dx.analyze(recording, analyses=ANALYSES, tokens="all")
    plot.save_figures(tree, folder / "figures", dpi=50)
    return folder / "figures"


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("file", FILES)
def test_pictures_equal_the_reference_images(figures: Path, file: str) -> None:
    assert compare_images(str(KEPT / file), str(figures / file), TOLERANCE) is None


def test_different_picture_is_detected(figures: Path, tmp_path: Path) -> None:
    tree = dx.analyze(testing.synthetic_recording(tmp_path / "b.zarr", steps=120, tokens=30, dims=8, frozen_at=0.4))
    part = xr.DataTree.from_dict({"phases": tree["phases"].to_dataset()})
    (other,) = plot.save_figures(part, tmp_path, dpi=50)
    assert compare_images(str(KEPT / "phases.png"), str(other), TOLERANCE) is not None


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        new = drawn(Path(temporary))
        KEPT.mkdir(exist_ok=True)
        for file in FILES:
            shutil.copy(new / file, KEPT / file)
