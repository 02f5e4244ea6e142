"""One process of a machine compiles the kernels first; without a folder for the cache they work too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import pytest

from deadtok_xr import kernels
from deadtok_xr.engine.compiling import compiling_together, one_process_compiles


def test_second_waits_until_the_first_has_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert kernels.needs_compiling()
    entered = Event()

    def second() -> None:
        with one_process_compiles():
            entered.set()

    with one_process_compiles():
        waiting = Thread(target=second)
        waiting.start()
        assert not entered.wait(0.3)
        with compiling_together(), one_process_compiles():
            pass  # as processes do that compile different kernels
        kernels.cache_folder().mkdir()
        (kernels.cache_folder() / "motion._motion-1.py311.nbi").touch()
        with one_process_compiles():  # nothing to wait for: it is compiled
            assert not kernels.needs_compiling()
    waiting.join(10)
    assert entered.is_set()


PRINTED = """
from deadtok_xr import kernels
from deadtok_xr.kernels.numba import ranks
print(ranks.concordance.stats.cache_path == str(kernels.cache_folder()))
"""


@pytest.mark.parametrize("given", [True, False])
def test_cache_folder_is_that_of_numba(tmp_path: Path, given: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path)} if given else {}
    start = [sys.executable, "-c", PRINTED]
    done = subprocess.run(start, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_compiled_kernels_follow_the_functions_that_they_call(tmp_path: Path) -> None:
    """numba compares only the file of the function that Python calls, and would go on with the old inner one."""
    package = tmp_path / "deadtok_xr"
    shutil.copytree(Path(kernels.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    folder = package / "kernels" / "numba"
    jit = "from deadtok_xr.kernels.numba.jit import "
    (folder / "called.py").write_text(f"{jit}inner\n@inner\ndef called():\n    return 1\n")
    (folder / "between.py").write_text("from deadtok_xr.kernels.numba.called import called\n")
    caller = f"{jit}compiled\nfrom deadtok_xr.kernels.numba.between import called\n"
    (folder / "caller.py").write_text(f"{caller}@compiled\ndef caller():\n    return called()\n")
    ask = "from deadtok_xr.kernels.numba.caller import caller as c; print(c(), len(c.stats.cache_hits))"

    def run() -> str:
        environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
        start = [sys.executable, "-c", ask]
        return subprocess.run(start, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    assert [run(), run()] == ["1 0\n", "1 1\n"]
    (folder / "called.py").write_text(f"{jit}inner\n@inner\ndef called():\n    return 2\n")
    assert run() == "2 0\n"


def test_cache_that_others_may_write_is_not_read(tmp_path: Path) -> None:
    """numba runs what lies there."""
    owned, foreign = tmp_path / "owned", tmp_path / "foreign"
    code = "from deadtok_xr.kernels.numba import ranks as r; import numpy as np; x = np.arange(3.0); "
    code += "print(r.concordance._cache.__class__.__name__)"
    said = {}
    for folder in (owned, foreign):
        folder.mkdir()
        folder.chmod(0o777 if folder == foreign else 0o700)
        start = [sys.executable, "-c", code]
        done = subprocess.run(
            start, env={**os.environ, "NUMBA_CACHE_DIR": str(folder)}, capture_output=True, text=True, check=True
        )
        said[folder] = done.stdout.strip(), "may be written by everyone" in done.stderr
    assert said == {owned: ("FunctionCache", False), foreign: ("NullCache", True)}


def test_kernels_work_where_no_folder_can_be_written() -> None:
    environment = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}  # the package is not in a zip file
    code = "import numpy as np; from deadtok_xr.kernels.numba.sparse_directions import _finite; "
    code += "print(_finite(np.ones((1, 3, 2)), 0).sum())"
    start = [sys.executable, "-c", code]
    done = subprocess.run(start, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"
