"""Find the moments of a matrix in the state of an optimizer: by name, or by position in the parameter groups.

torch numbers the states in the order of the parameters, group by group, and each group lists its parameters in the
order of the model. A state belongs to a matrix only if no other order of the model's parameters fits; its shape alone
proves nothing. Formats that sort tensors by name have lost that order: there a state is known only if its shape is
unique among states and parameters, or in a model of transformers, whose input embedding comes first and whose output
layer comes last.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from deadtok_xr.conversion.inspect.models import Matrices, is_of_optimizer, named_output
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.readers.source import Entry, Source, read_all

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
_STATE = re.compile(
    r"(?P<before>(?:.*[./])?)state[./](?:(?P<number>\d+)[./](?P<any>\w+)"
    r"|(?P<of>.+)[./](?P<name>step|(?:max_)?exp_\w+|momentum_buffer|square_avg|sum|state\d))"
)
_WRAPPERS = re.compile(r"^(?:(?:_orig_mod|module|model|state_dict|model_state_dict|_fsdp_wrapped_module|net)\.)+")
_TRANSFORMERS = ("trainer_state.", "config.model_type", "config.transformers_version")

_TURNED = "the moments are left out: the weights are stored as (dim, token), and states at positions are not turned"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _State:
    """The tensors that an optimizer keeps for one parameter: name -> key. ``of`` is its number or name."""

    of: str
    keys: Mapping[str, str]


@dataclass
class _Optimizer:
    """The states of one optimizer, and its groups of parameter numbers."""

    states: dict[str, _State] = field(default_factory=dict)
    groups: list[list[str]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """Number of a parameter -> its name, if the groups hold names."""


def find_moments(source: Source, matrices: Matrices, options: Options) -> tuple[dict[str, str], list[str]]:
    """Return the keys of W's moments, and warnings about moments that are left out.

    Moments that the caller names are used, and with one of them the others of the same state.
    """
    given = {name: options.keys[name] for name in MOMENTS if name in options.keys}
    optimizers = _optimizers(source)
    weights = matrices.keys["W"]
    states = [state for optimizer in optimizers for state in optimizer.states.values()]
    if given:
        named = [state for state in states if {*given.values()} & {*state.keys.values()}]
        return ({**_moments(named[0]), **given} if len(named) == 1 else given), []
    for optimizer in optimizers:
        if (state := _by_name(optimizer, (weights, *matrices.same))) is not None:
            return _moments(state), _coded(source, state)
    if weights in getattr(source, "orders", {}):
        return {}, [_TURNED] if states else []
    proven, possible = [], []
    for optimizer in optimizers:
        found, certain = _by_position(source, optimizer, matrices)
        possible += found
        proven += found if certain else []
    if len(possible) == 1 and proven:
        return _moments(possible[0]), _coded(source, possible[0])
    coded = [text for state in states for text in _coded(source, state)][:1]
    return {}, [_left_out(source, weights, possible)] if possible else coded


def _optimizers(source: Source) -> list[_Optimizer]:
    found: dict[str, _Optimizer] = defaultdict(_Optimizer)
    tensors: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for key, entry in source.entries.items():
        match = _STATE.fullmatch(key)
        name = match and (match["name"] or match["any"])
        if match and name and entry.shape and name != "step":
            tensors[match["before"], match["number"] or match["of"]][name] = key
    for (before, of), keys in tensors.items():
        found[before].states[of] = _State(of, keys)
    for before, optimizer in found.items():
        optimizer.groups = _groups(source, before)
        optimizer.names = _names(source, before, optimizer.groups)
    return list(found.values())


def _groups(source: Source, before: str) -> list[list[str]]:
    groups: list[list[str]] = []
    while (key := f"{before}param_groups.{len(groups)}.params") in source.entries:
        entry = source.entries[key]
        if entry.dtype is None or entry.dtype.kind not in "iu":
            return []
        values = read_all(source, key)
        groups.append([str(n) for n in np.atleast_1d(values[-1] if values.ndim == 2 else values)])
    return groups


def _names(source: Source, before: str, groups: Sequence[Sequence[str]]) -> dict[str, str]:
    found = {}
    for i, group in enumerate(groups):
        for j, number in enumerate(group):
            name = source.attributes.get(f"{before}param_groups.{i}.param_names.{j}")
            if isinstance(name, str):
                found[number] = name
    return found


def _by_name(optimizer: _Optimizer, names: Sequence[str]) -> _State | None:
    """Return the state under the name of a matrix."""
    wanted = {_plain(name) for name in names}
    found = [s for of, s in optimizer.states.items() if _plain(optimizer.names.get(of, of)) in wanted]
    return found[0] if len(found) == 1 else None


def _plain(name: str) -> str:
    """Return a name without those of modules that wrap a model."""
    return _WRAPPERS.sub("", name.replace("/", ".").replace("_orig_mod.", ""))


def _by_position(source: Source, optimizer: _Optimizer, matrices: Matrices) -> tuple[list[_State], bool]:
    """Return the states that can belong to W, and whether W must have one of them."""
    if optimizer.names or not all(of.isdigit() for of in optimizer.states):
        return [], False
    weights = source.aliases.get(matrices.keys["W"], matrices.keys["W"])
    shape = _whole_shape(source.entries[weights])
    alike = [s for s in optimizer.states.values() if _shape(source, s) == shape]
    parameters = _parameters(source, weights, matrices)
    rivals = [key for key in parameters if _whole_shape(source.entries[key]) == shape]
    fits = len(optimizer.states) <= len(parameters)
    if not alike:
        return [], False
    if fits and len(alike) == len(rivals) == 1:
        return alike, True
    if fits and _in_order_of_transformers(source, optimizer, matrices, alike, rivals):
        return [alike[-1] if named_output(matrices.keys["W"]) else alike[0]], True
    if not (source.ordered and optimizer.groups and fits):
        return alike, False
    shapes = [_whole_shape(source.entries[key]) for key in parameters]
    at = parameters.index(weights)
    possible = [state for group in _ordered(optimizer) for state in _possible(source, group, shapes, at)]
    return (possible, len(alike) > len(rivals) - 1) if possible else (alike, False)


def _ordered(optimizer: _Optimizer) -> list[list[_State]]:
    return [[optimizer.states[n] for n in group if n in optimizer.states] for group in optimizer.groups]


def _possible(source: Source, group: Sequence[_State], parameters: Sequence[Shape], at: int) -> list[_State]:
    """Return the states of a group that can belong to the parameter at a position, if the group keeps the order."""
    shapes = [_shape(source, state) for state in group]
    return [
        state for j, state in enumerate(group)
        if shapes[j] == parameters[at] and _fits(shapes[:j], parameters[:at])
        and _fits(shapes[j + 1 :], parameters[at + 1 :])
    ]  # fmt: skip


def _fits(shapes: Sequence[Shape | None], parameters: Sequence[Shape]) -> bool:
    """Return whether states can be assigned to parameters in this order, some of which may have none."""
    remaining = iter(parameters)
    return all(shape is None or shape in remaining for shape in shapes)


def _parameters(source: Source, weights: str, matrices: Matrices) -> list[str]:
    """Return the tensors of the model in their order: one name of each, without copies of the whole model."""
    same = {weights, *matrices.same}
    n_lead = len(source.entries[weights].shape) - 2
    keys = [
        key for key, entry in source.entries.items()
        if key not in source.aliases and not is_of_optimizer(key) and _STATE.fullmatch(key) is None
        and entry.dtype is not None and entry.dtype.kind in "fV" and len(entry.shape) > n_lead
        and (key == weights or key not in same)
    ]  # fmt: skip
    roots: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        root, _, rest = key.partition(".")
        roots[root].add(rest)
    own = weights.partition(".")[0]
    copies = {root for root, names in roots.items() if root != own and len(names) > 1 and names == roots[own]}
    return [key for key in keys if key.partition(".")[0] not in copies]


def _in_order_of_transformers(
    source: Source, optimizer: _Optimizer, matrices: Matrices, alike: Sequence[_State], rivals: Sequence[str]
) -> bool:
    """Return whether input embedding and output layer, and no other parameter, have the two states of their shape.

    transformers puts all matrices in one group, in the order of the model, and vectors in another.
    """
    pair = {*matrices.keys.values()} if "E" in matrices.keys else set()
    known = any(name.startswith(_TRANSFORMERS) for name in (*source.attributes, *source.varying))
    together = any({state.of for state in alike} <= {*group} for group in optimizer.groups)
    return known and together and len(alike) == 2 and {*rivals} == pair and named_output(matrices.keys["W"])


def _whole_shape(entry: Entry) -> Shape:
    """Return the shape that an array would have if it began at the first step."""
    return (entry.shape[0] + entry.late, *entry.shape[1:]) if entry.late else entry.shape


def _shape(source: Source, state: _State) -> Shape | None:
    """Return the shape of the parameter of a state; None if nothing in it has that shape."""
    for name in (*MOMENTS, "state1"):
        if name in state.keys:
            return _whole_shape(source.entries[state.keys[name]])
    return None


def _moments(state: _State) -> dict[str, str]:
    return {name: state.keys[name] for name in MOMENTS if name in state.keys}


def _coded(source: Source, state: _State) -> list[str]:
    """Say what a state is whose moments are 8-bit codes."""
    codes = [name for name in ("state1", "state2") if name in state.keys]
    if not codes or {"exp_avg"} & {*state.keys}:
        return []
    keys = " and ".join(repr(state.keys[name]) for name in codes)
    return [
        f"the moments are left out: {keys} are 8-bit codes with scales of their own (as bitsandbytes writes them); "
        "decode them where they were made"
    ]


def _left_out(source: Source, weights: str, states: Sequence[_State]) -> str:
    """Say which states can belong to the weights, and how to name one."""
    found = [next(iter(_moments(state).values()), next(iter(state.keys.values()))) for state in states]
    shape = source.entries[weights].shape
    alike = [
        key for key, e in source.entries.items()
        if not is_of_optimizer(key) and _STATE.fullmatch(key) is None and e.shape == shape and e.dtype is not None
    ]  # fmt: skip
    named = ", ".join(map(repr, found[:8])) + (", ..." if len(found) > 8 else "")
    return (
        f"the moments are left out: nothing proves that {named} belongs to {weights!r} (the parameters of this shape "
        f"are {', '.join(map(repr, alike[:8]))}); find out which one does, and name it with --key exp_avg=NAME "
        f"(keys={{'exp_avg': NAME}})"
    )
