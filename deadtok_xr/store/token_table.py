"""The tokens of a store: the vocabulary id of each row of the caller's matrices, whether it is dead, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import InputError


@dataclass(frozen=True)
class TokenTable:
    """The tokens of a store, one per row of the matrices that the caller writes.

    Attributes
    ----------
    tokens
        int64 vocabulary ids, one per row, distinct.
    dead
        bool per row, or None when it is not known which tokens are dead.
    text
        The tokens as text, or None.
    rows_are_ids
        True if the rows of the source are numbered by vocabulary id even though only some of them are stored, as
        when chosen rows of a parameter are recorded. The store then needs no coordinate `source_row`.
    """

    tokens: NDArray[np.int64]
    dead: NDArray[np.bool_] | None = None
    text: Sequence[str] | None = None
    rows_are_ids: bool = False

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if (np.diff(np.sort(self.tokens)) == 0).any():  # several times as fast as counting them
            raise InputError(f"token ids must be distinct: {n} rows have {len(np.unique(self.tokens))} ids")
        for name, values in (("dead mask", self.dead), ("list of token texts", self.text)):
            if values is not None and len(values) != n:
                raise InputError(f"the {name} has {len(values)} entries; expected one per row, {n}")

    @property
    def n_dead(self) -> int:
        """The number of dead tokens; 0 when it is not known which tokens are dead."""
        return 0 if self.dead is None else int(self.dead.sum())

    def disk_order(self) -> NDArray[np.int64]:
        """Return the caller's row numbers in the order of the store: dead tokens first, ids ascending in each group."""
        live = np.zeros(len(self.tokens), bool) if self.dead is None else ~self.dead
        return np.lexsort((self.tokens, live)).astype(np.int64)
