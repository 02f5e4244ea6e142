"""The variables that a recording may hold: dimensions, dtypes, units and meaning of each.

A variable that is not listed here is stored under its own name, unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deadtok_xr.errors import InputError

FORMAT_VERSION, RESULTS_VERSION = "1.0", "1.0"
"""Of recordings, and of results. Readers take any version with the same number before the dot."""
RECORDING, RESULTS, MONITOR = "deadtok_format", "deadtok_results", "deadtok_monitor"
"""The root attribute of each kind of store; its value is the version of its format."""
INDEX_CONVENTION = (
    "W, exp_avg and exp_avg_sq at step t are the values after t optimizer updates (t = 0: the initial state); "
    "grad, delta, loss, lr, h_mean and p_h_dead at step t belong to update t, which led from t - 1 to t"
)
FLOATS = ("bfloat16", "float16", "float32")
MATRIX = ("step", "token", "dim")
RUN = "run"
"""The leading dimension in a store of several runs; the dimensions below are then those of each run."""


@dataclass(frozen=True)
class Variable:
    """One variable of a recording: its dimensions, its possible stored dtypes, and its meaning at step t."""

    name: str
    dims: tuple[str, ...]
    dtypes: tuple[str, ...]
    units: str
    meaning: str
    valid_from: int = 0
    """The first step at which the variable has a meaning."""

    def attributes(self) -> dict[str, Any]:
        """Return the attributes that the variable has in every store."""
        return {"long_name": self.meaning, "units": self.units, "valid_from": self.valid_from}


_VARIABLES = (
    Variable("W", MATRIX, FLOATS, "1", "embedding weights after t updates"),
    Variable("E", MATRIX, FLOATS, "1", "input embedding of an untied model after t updates"),
    Variable("delta", MATRIX, FLOATS, "1", "W[t] - W[t-1], as recorded", valid_from=1),
    Variable("grad", MATRIX, FLOATS, "1", "gradient of the loss that update t used", valid_from=1),
    Variable("exp_avg", MATRIX, FLOATS, "1", "Adam's first moment after update t"),
    Variable("exp_avg_sq", MATRIX, FLOATS, "1", "Adam's second moment after update t"),
    Variable("grad_E", MATRIX, FLOATS, "1", "gradient of the input embedding that update t used", valid_from=1),
    Variable("exp_avg_E", MATRIX, FLOATS, "1", "Adam's first moment of the input embedding after update t"),
    Variable("exp_avg_sq_E", MATRIX, FLOATS, "1", "Adam's second moment of the input embedding after update t"),
    Variable("max_exp_avg_sq", MATRIX, FLOATS, "1", "largest second moment of amsgrad after update t"),
    Variable("momentum_buffer", MATRIX, FLOATS, "1", "SGD's momentum after update t"),
    Variable(
        "skipped",
        ("step",),
        ("bool",),
        "1",
        "whether update t left the parameter out, which had no gradient: not moved, and not frozen",
        valid_from=1,
    ),
    Variable(
        "skipped_before",
        ("step",),
        ("int32",),
        "1",
        "attempts that a gradient scaler skipped between t - 1 and t: no updates, and no steps of their own",
        valid_from=1,
    ),
    Variable("loss", ("step",), FLOATS, "nat", "training loss of the batch of update t", valid_from=1),
    Variable("lr", ("step",), ("float64",), "1", "learning rate that update t used", valid_from=1),
    Variable(
        "h_mean",
        ("step", "dim"),
        FLOATS,
        "1",
        "final hidden state, mean over batch and sequence",
        valid_from=1,
    ),
    Variable(
        "p_h_dead",
        ("step", "dim"),
        FLOATS,
        "1",
        "sum over positions of p_dead·h: the exact mean gradient of a dead row",
        valid_from=1,
    ),
    Variable("p_dead", ("step",), FLOATS, "1", "mean softmax probability on the dead tokens", valid_from=1),
    Variable("h_norm", ("step",), FLOATS, "1", "mean norm of the final hidden state", valid_from=1),
)
VARIABLES: Mapping[str, Variable] = {v.name: v for v in _VARIABLES}

COORDINATES: Mapping[str, str] = {
    "run": "one of several runs of an experiment",
    "step": "number of optimizer updates made",
    "token": "vocabulary id",
    "dead": "whether the token never occurs in the training data",
    "token_text": "the token as text",
    "count": "occurrences of the token in the training data",
    "source_row": "row of the token in what it was recorded from, where that is not its place in the vocabulary",
}
MOTION_INDEXED = ("W", "E")
"""The weights, for which a store keeps the first and last motion of each token in each chunk."""
TOKEN_COORDINATES = ("dead", "token_text", "count", "source_row")
"""The coordinates along `token`, beside the ids themselves."""


def attributes(name: str) -> dict[str, Any]:
    """Return the attributes of a variable by name; an unknown one has a meaning from step 0 on."""
    return VARIABLES[name].attributes() if name in VARIABLES else {"valid_from": 0}


def without_run(dims: Sequence[str] | None) -> tuple[str, ...]:
    """Return dimensions without a leading `run`."""
    dims = tuple(dims or ())
    return dims[1:] if dims[:1] == (RUN,) else dims


def check_variable(name: str, dims: Sequence[str], dtype: str, *, where: str) -> None:
    """Check a variable's dimensions (apart from a leading `run`) and dtype against its entry.

    Raises
    ------
    InputError
        If they differ. The message names ``where`` (the file), the variable, what was found and what was expected.
    """
    spec = VARIABLES.get(name)
    if spec is None:
        return
    if without_run(dims) != spec.dims:
        raise InputError(
            f"{where}: variable {name!r} has the dimensions ({', '.join(dims)}); expected ({', '.join(spec.dims)})"
        )
    if dtype not in spec.dtypes:
        raise InputError(f"{where}: variable {name!r} has the dtype {dtype}; expected {' or '.join(spec.dtypes)}")
