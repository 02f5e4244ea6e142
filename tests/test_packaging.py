"""What `pip install` installs: code, the marker for type checkers, and the recipes."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RECIPES = {path.stem for path in (ROOT / "conversion").glob("*.toml")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of the wheel, in a folder of their own."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_installed_wheel_finds_its_recipes(installed: Path, tmp_path: Path) -> None:
    code = (
        "import deadtok_xr, deadtok_xr.conversion as c; "
        "print(deadtok_xr.__file__); print(*sorted(c.recipes()), sep=chr(10))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(installed)}
    )
    where, *names = done.stdout.split()
    assert Path(where).is_relative_to(installed)
    assert set(names) == RECIPES


def test_source_tree_finds_its_recipes() -> None:
    from deadtok_xr import conversion

    assert set(conversion.recipes()) == RECIPES


def test_the_wheel_is_typed(installed: Path) -> None:
    assert (installed / "deadtok_xr" / "py.typed").exists()
