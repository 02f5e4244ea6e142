"""`python -m deadtok_xr` is `deadtok`."""

from deadtok_xr.cli import main

main()
