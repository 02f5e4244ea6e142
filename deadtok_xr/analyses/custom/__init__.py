"""Analyses that users define: a function of a batch of steps, in the same pass as the built-in ones.

`definition` has the decorator and checks what is declared, `batch` is what the user's function is given, `reduction`
calls it and checks what it returns, `results` makes the dataset, `code` tells one version of a function from another.
"""

from deadtok_xr.analyses.custom.batch import UserBatch
from deadtok_xr.analyses.custom.definition import analysis

__all__ = ["UserBatch", "analysis"]
