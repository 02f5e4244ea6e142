"""One optimizer update again, with the arithmetic that torch used, from recorded tensors."""

from deadtok_xr.replay.compare import check
from deadtok_xr.replay.settings import Settings

__all__ = ["Settings", "check"]
