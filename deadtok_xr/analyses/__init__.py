"""The questions of the field, one module each: a recording's dataset in, a lazy dataset out; and many in one pass.

A module says everything about its analysis: what it needs, its outputs with their long names, units and formulas, the
reduction that finds them, the lines of its summary, its pictures and how to read them. `registry` lists the analyses,
`analyze` runs many in one pass, `custom` makes one of a function of a user's own. The modules import `engine`,
`kernels`, `recording`, `replay` and what lies below these, and of each other only what `common` holds.
"""

from deadtok_xr.analyses.analyze import analyze, open_for_analysis
from deadtok_xr.analyses.registry import ANALYSES

__all__ = ["ANALYSES", "analyze", "open_for_analysis"]
