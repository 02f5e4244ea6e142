"""One line about a run, for the terminal."""

from __future__ import annotations

import numpy as np

from deadtok_xr.explorer.source import Source


def line(source: Source) -> str:
    """Return one line about the last step of a source: phases or outcomes, frozen tokens, displacement, loss."""
    parts = [f"step {source.steps[1]:,}"]
    if (phases := source.groups.get("phases")) is not None and phases.sizes.get("step"):
        last = phases["fraction"].isel(step=-1)
        shares = zip(last.values.tolist(), phases["phase"].values.tolist(), strict=True)
        largest = sorted(shares, reverse=True)
        words = [f"{share:.1%} {str(name).replace('_', ' ')}" for share, name in largest if share > 0]
        parts += [", ".join(words)] if words else []
    if (so_far := source.motion_so_far()) is not None:
        last_motion = so_far.columns()["last_motion"]
        still = int((last_motion < source.steps[1]).sum())
        parts.append(f"{still:,} of {len(last_motion):,} tokens stand still")
    motion = source.groups.get("motion")
    if motion is not None and motion.sizes.get("step"):
        parts.append(f"mean displacement {float(motion['displacement_ulp_mean'][-1]):.3g} norm ULP")
    recording = source.recording
    if recording is not None and "loss" in recording and np.isfinite(loss := float(recording["loss"][-1])):
        parts.append(f"loss {loss:.4g}")
    return "; ".join(parts) + ("" if source.grows else "; complete")
