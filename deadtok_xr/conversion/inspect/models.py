"""Find the embedding in the state dict of a model, and its moments in that of an optimizer.

State dicts name tensors by module, and the names differ by model. The end of the name shows which tensor is the
embedding; shapes show which of the optimizer's numbered states belongs to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.plan import PART_BYTES
from deadtok_xr.conversion.readers.source import Entry, Source, slabs
from deadtok_xr.errors import InputError

_OUTPUT = ("lm_head.weight", "embed_out.weight", "unembed.weight", "output_projection.weight", "W_unembed")
_INPUT = (
    "wte.weight", "embed_tokens.weight", "word_embeddings.weight", "tok_embeddings.weight", "token_embedding.weight",
    "token_embeddings.weight", "embedding.weight", "embeddings.weight", "embed.weight", "emb.weight",
)  # fmt: skip
_STATE = re.compile(r"(?P<before>(?:.*\.)?)state\.(?P<index>\d+)\.(?P<name>exp_avg|exp_avg_sq)$")
_POSITION = re.compile(r"(^|[._])(pos|position|positional|wpe)", re.IGNORECASE)


def model_keys(source: Source, options: Options) -> dict[str, str]:
    """Return the keys of W, E and Adam's moments in a checkpoint, or in stacked checkpoints; {} if there are none.

    Raises
    ------
    InputError
        If several tensors could be the embedding, or several states belong to it.
    """
    found = dict(options.keys)
    if "W" not in found:
        found |= _weights(source)
    if "W" in found:
        found |= {k: v for k, v in _moments(source, found["W"]).items() if k not in found}
    return found


def _weights(source: Source) -> dict[str, str]:
    outputs, inputs = _ending(source, _OUTPUT), _ending(source, _INPUT)
    for kind, keys in (("output", outputs), ("input", inputs)):
        if len(keys) > 1:
            raise InputError(
                f"{source.path}: {' and '.join(map(repr, keys))} could each be the {kind} embedding; name the one with "
                f"--key W={keys[0]} (keys={{'W': {keys[0]!r}}})"
            )
    if not outputs or not inputs:
        return {} if not outputs + inputs else {"W": (outputs + inputs)[0]}
    output, input_ = outputs[0], inputs[0]
    aliases: Mapping[str, str] = getattr(source, "aliases", {})
    if aliases.get(output, output) == aliases.get(input_, input_) or _equal(source, output, input_):
        return {"W": output}  # tied: one matrix under two names
    return {"W": output, "E": input_}


def _ending(source: Source, endings: tuple[str, ...]) -> list[str]:
    keys = [k for k in source.entries if _is_one_of(k, endings) and not _POSITION.search(k)]
    return [k for k in keys if len(source.entries[k].shape) in (2, 3) and ".state." not in k]


def _is_one_of(key: str, endings: tuple[str, ...]) -> bool:
    return any(key == ending or key.endswith((f".{ending}", f"_{ending}")) for ending in endings)


def _equal(source: Source, one: str, other: str) -> bool:
    a, b = source.entries[one], source.entries[other]
    if a.shape != b.shape or a.dtype is None or a.dtype != b.dtype:
        return False
    parts = slabs(a.shape, a.dtype.itemsize, PART_BYTES)
    return all(source.read(one, *where).tobytes() == source.read(other, *where).tobytes() for where in parts)


def _moments(source: Source, weights: str) -> dict[str, str]:
    """Return the optimizer's states of the weights: the only ones of their shape, or those at their position."""
    states: dict[tuple[str, int], dict[str, str]] = {}
    for key in source.entries:
        if match := _STATE.match(key):
            states.setdefault((match["before"], int(match["index"])), {})[match["name"]] = key
    if not states:
        return {}
    shape = _whole_shape(source.entries[weights])
    fitting = [keys for keys in states.values() if all(_whole_shape(source.entries[k]) == shape for k in keys.values())]
    if len(fitting) == 1:
        return fitting[0]
    by_position = _by_position(source, weights, states)
    if by_position is None and fitting:
        first = next(iter(fitting[0].values()))
        raise InputError(
            f"{source.path}: {len(fitting)} states of the optimizer have the shape of {weights!r}, and it is not "
            f"clear which belongs to it; name them with --key exp_avg={first} (keys={{'exp_avg': ...}})"
        )
    return by_position or {}


def _whole_shape(entry: Entry) -> tuple[int, ...]:
    """Return the shape that an array would have if it began at the first step."""
    return (entry.shape[0] + entry.late, *entry.shape[1:]) if entry.late else entry.shape


def _by_position(
    source: Source, weights: str, states: Mapping[tuple[str, int], dict[str, str]]
) -> dict[str, str] | None:
    """Return the states at the weights' position among the parameters, if every parameter has its state's shape."""
    aliases: Mapping[str, str] = getattr(source, "aliases", {})
    prefix = weights[: weights.rindex(".")].rpartition(".")[0]
    root = prefix.partition(".")[0]
    parameters = [k for k in source.entries if k.partition(".")[0] == root and k not in aliases and ".state." not in k]
    parameters = [k for k in parameters if _is_parameter(source.entries[k], weights, source)]
    ordered = [states[k] for k in sorted(states)]
    if len(ordered) != len(parameters):
        return None
    shapes = [{_whole_shape(source.entries[k]) for k in keys.values()} for keys in ordered]
    if any(found != {_whole_shape(source.entries[key])} for key, found in zip(parameters, shapes, strict=True)):
        return None
    return ordered[parameters.index(aliases.get(weights, weights))]


def _is_parameter(entry: Entry, weights: str, source: Source) -> bool:
    # a buffer would be a tensor without a state: then the counts differ, and the order proves nothing
    stacked = len(source.entries[weights].shape) - 2
    return entry.dtype is not None and entry.dtype.kind in "fV" and len(entry.shape) > stacked
