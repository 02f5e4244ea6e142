"""`python -m deadtok_xr` is `deadtok`."""

import os
import sys
from typing import NoReturn

_OWN_THREADS = ("analyze", "demo")


def main() -> NoReturn:
    """Run the command line.

    Dask gives each thread a block to analyse. If BLAS starts threads of its own in each, they wait for one another at
    the cost of a sixth of the CPU time, and the last bits of eigenvalues depend on their number. Dask's workers have
    one thread each as well. NumPy reads the variable when it is imported.
    """
    if sys.argv[1:2] and sys.argv[1] in _OWN_THREADS:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from deadtok_xr.cli import main as run

    run()


if __name__ == "__main__":
    main()
