"""A few consecutive steps, as the function of a user gets them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from deadtok_xr.engine import Batch


class UserBatch:
    """A few consecutive steps of a recording, as a function decorated with `deadtok_xr.analysis` gets them.

    Each variable that the analysis needs is an attribute: ``batch.W`` is an array (t, n, d) of t steps, n tokens and d
    dims, float32, or float64 where it was recorded so. Arrays are read-only, because other analyses of the same pass
    use them as well; they may be kept.

    The batches of a recording follow each other, and each step and each update is in one of them. How many steps a
    batch has depends on the size of a step. Its u updates are those that begin at its steps: as many as steps, one
    fewer at the end of the recording, where there may be none.

    Attributes
    ----------
    steps
        The labels of the steps, (t,).
    later_steps
        The labels of the steps that the updates lead to, (u,).
    tokens
        The ids of the tokens, (n,).
    before, after
        The first variable before and after each update, (u, n, d) each.
    """

    def __init__(self, batch: Batch, needs: tuple[str, ...], steps: NDArray[Any], tokens: NDArray[Any]) -> None:
        self._batch, self._needs = batch, needs
        first, n = batch.block.first + batch.start, batch.n_states
        self.steps = read_only(steps[first : first + n])
        self.later_steps = read_only(steps[first + 1 : first + 1 + batch.n_transitions])
        self.tokens = read_only(tokens)

    def __getattr__(self, name: str) -> NDArray[Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._values(name)[: self._batch.n_states]

    def __repr__(self) -> str:
        block = self._batch.block
        return (
            f"<UserBatch of {', '.join(self._needs)}: {len(self.steps)} steps x {block.n_tokens} tokens x "
            f"{block.n_dims} dims, {len(self.later_steps)} updates>"
        )

    def pairs(self, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return a variable before and after each update, (u, n, d) each."""
        values = self._values(name)
        return values[:-1], values[1:]

    @cached_property
    def before(self) -> NDArray[Any]:
        """The first variable before each update."""
        return self.pairs(self._needs[0])[0]

    @cached_property
    def after(self) -> NDArray[Any]:
        """The first variable after each update."""
        return self.pairs(self._needs[0])[1]

    def _values(self, name: str) -> NDArray[Any]:
        if name not in self._needs:
            raise AttributeError(f"this batch has {', '.join(self._needs)}, and no {name}: name it in needs=")
        return read_only(self._batch.kept_floats(name))


def read_only(x: NDArray[Any]) -> NDArray[Any]:
    """Return a view that cannot be written to."""
    view = x.view()
    view.flags.writeable = False
    return view
