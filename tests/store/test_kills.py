"""A short run of the soak of kills and power cuts; a long one is started by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.soak_conversion import REPOSITORY


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what was flushed is found by way of /proc")
def test_kills_and_power_cuts_leave_nothing_wrong() -> None:
    command = [sys.executable, "-m", "tests.soak_kills", "--count", "6", "--seed", "3", "--only", "label,monitor"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
