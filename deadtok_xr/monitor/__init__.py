"""Monitor a training in low precision: which updates move the parameters, and which are rounded away.

In: parameters of any shape, and their optimizer. Out: counts and norms per monitored update and parameter, to a store
that can be read while it grows, to a logger, or in memory. May import: `recorder` (how torch runs an optimizer),
`replay` (its update rules), `kernels`, `store`, and what lies below them.

monitor        the context manager and the hooks of the optimizer
selection      the parameters that are watched, and their names; what cannot be watched is refused
observation    one monitored update: before it, after it, and the transfer of its figures from the devices
predict        an update computed before the optimizer makes it, on copies of a tile
counting       sums over tiles, and the checksum that proves a prediction
tiles          parts of a parameter
workers        threads for the tiles of a CPU
ranks          sums over the ranks of sharded parameters
variables      names, dims and units
rows           monitored updates as a dataset, and as values for a logger
growing_store  a store that grows at its end; opening it
report         findings in words
"""

from deadtok_xr.monitor.growing_store import open_monitor
from deadtok_xr.monitor.monitor import Monitor

__all__ = ["Monitor", "open_monitor"]
