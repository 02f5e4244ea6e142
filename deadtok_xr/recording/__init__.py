"""A store as a labelled lazy dataset (step, token, dim), several as one, and a store as one plain file.

In: the path of a store. Out: `xarray.Dataset`. It imports `store` and what lies below it.
"""

from deadtok_xr.recording.opening import Tokens, open_recording
from deadtok_xr.recording.runs import concat_runs

__all__ = ["Tokens", "concat_runs", "open_recording"]
