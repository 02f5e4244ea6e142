"""Find the output layer and the input embedding among the tensors of a model.

In the order of proof: names that only an output layer has; names that other layers have too, if the matrix has the
shape of the input embedding and lies outside the numbered layers; a bias of the size of the vocabulary beside it; what
config.json says. A matrix that could be the output layer, and that nothing proves to be one, stops the conversion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.plan import PART_BYTES
from deadtok_xr.conversion.readers.source import Source, slabs
from deadtok_xr.errors import InputError

_OUTPUT = (
    "lm_head", "embed_out", "unembed", "unembedding", "output_projection", "predictions.decoder", "lm_head.decoder",
    "generator_lm_head", "vocab_projector", "pred_layer.proj", "to_logits", "output_embedding", "output_embeddings",
    "lm_head.linear", "generator.proj", "logits_dense", "W_unembed", "W_U", "unembed.W_U", "lm_head_w",
)  # fmt: skip
"""Names of output layers alone."""
_AMBIGUOUS = (
    "head", "output", "out", "ff_out", "lm_loss", "decoder", "final_linear", "output_layer", "proj_out", "out_proj",
    "logits", "classifier", "fc", "fc_out", "linear", "generator", "readout", "predictions", "final", "to_vocab",
    "vocab_proj", "final_proj", "output_proj", "projection", "proj", "mlm_head", "cls", "softmax",
)  # fmt: skip
"""Names of output layers that other layers have too."""
_INPUT = (
    "wte", "embed_tokens", "word_embeddings", "word_embedding", "tok_embeddings", "tok_embedding", "token_embedding",
    "token_embeddings", "token_embedder", "embedding", "embeddings", "embed", "emb", "tok_emb", "token_emb", "shared",
    "embed_in", "tokens_embed", "token_embd", "tok_embed", "token_embed", "vocab_embed", "embedder", "W_E", "embed.W_E",
    "W_embed", "input_embedding", "input_embeddings", "lookup", "embedding_table",
)  # fmt: skip
_INPUT_IF_PAIRED = ("encoder",)
"""Names of input embeddings beside a ``decoder`` of the same shape."""
_LEAVES = (".weight", ".kernel", ".embedding", "")
_OPTIMIZER = re.compile(
    r"(^|[./])(state[./](\d+[./]\w+|.+[./](step|(max_)?exp_\w+|momentum_buffer|square_avg|sum|state\d))$"
    r"|param_states?[./]|param_groups[./]|optimi[sz]ers?([._/]|$)|optim[./]|optimizer_states?[./])"
)
_OTHER = re.compile(
    r"(^|[._/])(pos|position|positional|wpe|token_type|type|segment|seg|patch|time|speaker|task)", re.IGNORECASE
)
_COPY = re.compile(r"(^|[._/])(ema|swa|shadow|averaged)([._/]|$)", re.IGNORECASE)
_LAYER = re.compile(r"(^|[./])(?:\d+|[a-z_]*(?:layers?|blocks?|h)_?\d+)[./]", re.IGNORECASE)


@dataclass(frozen=True)
class Matrices:
    """The matrices of a model.

    Attributes
    ----------
    keys
        W and E -> their keys.
    same
        Other names of W: tied weights, and copies with the same bits.
    warnings
        What a user should know.
    """

    keys: dict[str, str] = field(default_factory=dict)
    same: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def find_matrices(source: Source, options: Options) -> Matrices:
    """Find W, and E if the model is untied; nothing if no name shows a model.

    Raises
    ------
    InputError
        If several matrices could be W. The message names them, the largest first.
    """
    given = {name: key for name, key in options.keys.items() if name in ("W", "E")}
    if "W" in given:
        return Matrices(given, tuple(_copies(source, given["W"])))
    inputs = _unique(source, _inputs(source))
    outputs = _unique(source, _outputs(source, inputs))
    inputs = [key for key in inputs if key not in outputs]
    if len(outputs) > 1:
        raise _unclear(source, outputs, inputs)
    if not outputs:
        return Matrices({**_without_output(source, inputs), **given})
    _refuse_turned(source, outputs[0], inputs)
    return _with_output(source, outputs[0], inputs, given)


def _refuse_turned(source: Source, output: str, inputs: Sequence[str]) -> None:
    """Ask whether a matrix with the turned shape of the input embedding is the output layer, if its name is no proof.

    The second matrix of a feed-forward block has this shape as well, if the block is as wide as the vocabulary.
    """
    shape = source.entries[output].shape[-2:]
    shapes = {source.entries[key].shape[-2:] for key in inputs}
    if shape in shapes or shape[::-1] not in shapes or named_output(output) or has_vocabulary_bias(source, output):
        return
    named = next(key for key in inputs if source.entries[key].shape[-2:] == shape[::-1])
    dims = (*(("step",) if len(source.entries[output].shape) == 3 else ()), "dim", "token")
    raise InputError(
        f"{source.path}: nothing proves whether {output!r} {source.entries[output]} is the output layer, stored as "
        f"(dim, token): it has the turned shape of the input embedding {named!r} {source.entries[named]}; if it is, "
        f"say --dims {output}={','.join(dims)} (dims={{{output!r}: {dims}}}); if the model is tied, say "
        f"--key W={named} (keys={{'W': {named!r}}})"
    )


def is_matrix(source: Source, key: str) -> bool:
    """Return whether an entry can be a parameter of a model with two axes, perhaps behind an axis of steps."""
    entry = source.entries[key]
    floats = entry.dtype is None or entry.dtype.kind in "fV"
    return floats and len(entry.shape) in (2, 3) and not is_of_optimizer(key)


def is_of_optimizer(key: str) -> bool:
    """Return whether a name is one of an optimizer's state or settings."""
    return bool(_OPTIMIZER.search(key))


def is_average_of(key: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether a name is that of an average over time of another parameter of the same shape."""
    found = _COPY.search(key)
    return found is not None and any(
        shapes[other] == shapes[key] and other.endswith(key[found.end() :]) and not _COPY.search(other)
        for other in shapes
    )


def is_named(key: str, names: Iterable[str]) -> bool:
    """Return whether a key ends in one of several names of a module."""
    key = key.replace("/", ".")
    for leaf in _LEAVES:
        module = key.removesuffix(leaf) if leaf and key.endswith(leaf) else key if not leaf else None
        if module and any(module == n or module.endswith((f".{n}", f"_{n}")) for n in names):
            return True
    return False


def named_output(key: str) -> bool:
    """Return whether only an output layer has this name."""
    return is_named(key, _OUTPUT) and not _OTHER.search(key)


def is_named_like_output(key: str) -> bool:
    """Return whether an output layer has this name, perhaps with other layers."""
    return named_output(key) or (is_named(key, _AMBIGUOUS) and not _LAYER.search(key) and not _OTHER.search(key))


def named_input(key: str) -> bool:
    """Return whether an input embedding has this name."""
    return is_named(key, _INPUT) and not _OTHER.search(key)


def _inputs(source: Source) -> list[str]:
    """Return the matrices with the name of an input embedding; those in numbered layers if there are no others."""
    keys = _without_copies([key for key in source.entries if is_matrix(source, key)])
    found = [key for key in keys if named_input(key) and not named_output(key)]
    decoders = {source.entries[key].shape for key in keys if is_named(key, ("decoder",))}
    paired = [key for key in keys if is_named(key, _INPUT_IF_PAIRED) and source.entries[key].shape in decoders]
    found = found or paired
    outside = [key for key in found if not _LAYER.search(key)]
    return outside or found


def _without_copies(keys: list[str]) -> list[str]:
    """Return matrices without averages of the weights over time, if the weights themselves are there."""
    return [key for key in keys if not _COPY.search(key)] or keys


def _outputs(source: Source, inputs: Sequence[str]) -> list[str]:
    """Return the matrices that are proven to be the output layer, by the strongest proof that there is."""
    keys = [key for key in source.entries if is_matrix(source, key) and not _LAYER.search(key)]
    keys = _without_copies(keys)
    if named := [key for key in keys if named_output(key)]:
        return named
    alike = [key for key in keys if key not in inputs and any(_alike(source, key, one) for one in inputs)]
    alike = [key for key in alike if not _OTHER.search(key)]
    named = [key for key in alike if is_named(key, _AMBIGUOUS)]
    return [key for key in named or alike if len(named) == 1 or has_vocabulary_bias(source, key)] or named


def _alike(source: Source, one: str, other: str) -> bool:
    """Return whether two matrices have the same sizes along token and dim, in either order."""
    a, b = source.entries[one].shape[-2:], source.entries[other].shape[-2:]
    return a == b or a == b[::-1]


def has_vocabulary_bias(source: Source, key: str) -> bool:
    """Return whether a bias of one number per token lies beside a matrix."""
    return bias_size(source, key) in source.entries[key].shape[-2:]


def bias_size(source: Source, key: str) -> int | None:
    """Return the size of the bias beside a matrix, None if there is none."""
    stem, _, leaf = key.rpartition(".")
    names = [f"{stem}.bias"] if leaf in ("weight", "kernel") else []
    if leaf.startswith("W_"):
        names.append(f"{stem}.b_{leaf[2:]}" if stem else f"b_{leaf[2:]}")
    for name in names:
        entry = source.entries.get(name)
        if entry is not None and entry.shape:
            return entry.shape[-1]
    return None


def _unique(source: Source, keys: Sequence[str]) -> list[str]:
    """Return one name of each matrix: aliases and copies with the same bits are left out."""
    found: list[str] = []
    for key in keys:
        if not any(_same(source, key, other) for other in found):
            found.append(key)
    return found


def _same(source: Source, one: str, other: str) -> bool:
    aliases: Mapping[str, str] = source.aliases
    return aliases.get(one, one) == aliases.get(other, other) or _equal(source, one, other)


def _equal(source: Source, one: str, other: str) -> bool:
    a, b = source.entries[one], source.entries[other]
    if a.shape != b.shape or a.dtype is None or a.dtype != b.dtype:
        return False
    parts = slabs(a.shape, a.dtype.itemsize, PART_BYTES)
    return all(source.read(one, *where).tobytes() == source.read(other, *where).tobytes() for where in parts)


def _copies(source: Source, key: str) -> list[str]:
    """Return the other names under which a matrix is known to be shared."""
    first = source.aliases.get(key, key)
    return [other for other in source.entries if other != key and source.aliases.get(other, other) == first]


def _with_output(source: Source, output: str, inputs: list[str], given: Mapping[str, str]) -> Matrices:
    tied = [key for key in inputs if _same(source, output, key)]
    others = [key for key in inputs if key not in tied]
    same = tuple({*_copies(source, output), *tied} - {output})
    if "E" in given:
        return Matrices({"W": output, **given}, same)
    if tied or not others:
        return Matrices({"W": output}, same)
    if len(others) > 1:
        others = [key for key in others if _alike(source, key, output)] or others
    if len(others) == 1:
        return Matrices({"W": output, "E": others[0]}, same)
    named = _listed(source, others)
    return Matrices(
        {"W": output}, same, (f"{named} could each be the input embedding, and none is stored as E: name it with "
                              f"--key E={others[0]} (keys={{'E': {others[0]!r}}})",)
    )  # fmt: skip


def _without_output(source: Source, inputs: list[str]) -> dict[str, str]:
    """Return W for a model without an output layer: its input embedding, if it is tied or nothing else can be W."""
    if len(inputs) > 1:
        raise _unclear(source, inputs, [])
    if not inputs:
        return {}
    tied = source.attributes.get("config.tie_word_embeddings")
    layered = bool(_LAYER.search(inputs[0]))
    matrices = [k for k in source.entries if is_matrix(source, k) and not _OTHER.search(k) and k not in inputs]
    outside = [key for key in _without_copies(matrices) if layered or not _LAYER.search(key)]
    rivals = [k for k in outside if _alike(source, k, inputs[0]) and not _same(source, k, inputs[0])]
    if tied is not True and (rivals or tied is False):
        raise _unclear(source, [*inputs, *rivals], [])
    return {"W": inputs[0]}


def _listed(source: Source, keys: Sequence[str]) -> str:
    """Name matrices with their shapes, the largest first."""
    ordered = sorted(keys, key=lambda k: -source.entries[k].nbytes)
    return " and ".join(f"{key!r} {source.entries[key]}" for key in ordered)


def _unclear(source: Source, candidates: Sequence[str], inputs: Sequence[str]) -> InputError:
    ordered = sorted(candidates, key=lambda k: -source.entries[k].nbytes)
    beside = f"; the input embedding is {' or '.join(map(repr, inputs))}" if inputs else ""
    return InputError(
        f"{source.path}: nothing proves which matrix is the output embedding, W: {_listed(source, ordered)} could be "
        f"it{beside}; name it with --key W={ordered[0]} (keys={{'W': {ordered[0]!r}}}), and the input embedding of an "
        "untied model with --key E=NAME (keys={'E': NAME})"
    )
