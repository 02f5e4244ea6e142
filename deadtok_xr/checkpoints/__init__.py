"""Examine saved models parameter by parameter: what can move at a learning rate, and what changed between two.

In: paths of checkpoints, in every format that `conversion.readers` reads. Out: a dataset over `parameter`, and its
findings as sentences and a table.

contents       which arrays of a checkpoint are parameters, and which are compared
counts         one pass over the values of a parameter, in bounded memory
doctor         the public function: counts as variables
findings       the sentences and the table of `deadtok doctor`
weights        the embedding of a saved model as a lazy dataset, without converting it

It imports `conversion`, `recording`, `dask_arrays`, `kernels`, `bfloat16`, `attributes`, `text` and `errors`.
"""

from deadtok_xr.checkpoints.doctor import doctor

__all__ = ["doctor"]
