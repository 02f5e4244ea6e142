"""Reductions, checks, the selection of steps and formatting that several analyses share."""
