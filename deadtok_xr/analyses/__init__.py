"""The analyses, one module each: a recording's dataset in, a lazy dataset out; `analyze` runs many in one pass.

A module contains everything about its analysis: the variables that it needs, its outputs with long names, units and
formulas, the reduction that computes them, the lines of its summary, its pictures and how to read them. `registry`
lists the analyses, `custom` turns a user's function into one, and `common` holds what several modules share. The
modules import `engine`, `kernels`, `recording`, `replay` and the packages below these.
"""

from deadtok_xr.analyses.analyze import analyze, knows_dead_tokens, open_for_analysis, plan_analyses
from deadtok_xr.analyses.registry import ANALYSES

__all__ = ["ANALYSES", "analyze", "knows_dead_tokens", "open_for_analysis", "plan_analyses"]
