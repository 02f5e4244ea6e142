"""Name tokens in sentences: by id, and by text where it is known."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr

from deadtok_xr.text import quoted

_WIDTH = 24


def token_name(ds: xr.Dataset, token: int) -> str:
    """Return a token as ``131 "the"``; its id alone if its text is not known."""
    text = _text(ds, token)
    return f"{token} {quoted(text, _WIDTH)}" if text else str(token)


def token_names(ds: xr.Dataset, tokens: Iterable[int], at_most: int = 3) -> str:
    """Return tokens as words: ``token 131 "the"``, ``tokens 3, 17 and 12 more``."""
    ids = [int(token) for token in tokens]
    shown = [token_name(ds, token) for token in ids[:at_most]]
    more = len(ids) - len(shown)
    last = f" and {more:,} more" if more else ""
    if not more and len(shown) > 1:
        last = f" and {shown.pop()}"
    return f"token{'s' if len(ids) > 1 else ''} {', '.join(shown)}{last}"


def _text(ds: xr.Dataset, token: int) -> str:
    if "token_text" not in ds.coords or "token" not in ds.coords or ds["token_text"].dims[-1:] != ("token",):
        return ""
    at = np.flatnonzero(ds["token"].values == token)
    values = ds["token_text"].values
    return str((values if values.ndim == 1 else values[0])[at[0]]) if at.size else ""
