"""Find out which tokens text can become, by decoding and encoding each with the library `tokenizers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import InputError, MissingFileError

KINDS = ("reachable", "special", "unreachable", "unreachable_special", "undecodable", "beyond_tokenizer")
"""What a token is: its text becomes this token again; the same for a special token; its text becomes other tokens; the
same for one that looks special, such as <unused1>; its bytes are no text by themselves; the tokenizer lacks its id."""
_SPACES = (" ", "▁", "_", "Ġ")
_PREFIXES = ("«", "»", "§")
_BRACKETS = {"<": ">", "[": "]"}


def load_tokenizer(path: str | Path) -> Any:
    """Return the tokenizer of a ``tokenizer.json``, without truncation and padding.

    Raises
    ------
    InputError
        If the library `tokenizers` is not installed, or the file is missing or no tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError(
            f"{path} is a tokenizer, whose use needs the library tokenizers: pip install 'deadtok_xr[tokenizers]'"
        ) from None
    if not Path(path).is_file():
        raise MissingFileError(f"{path}: no such file; expected a tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path} cannot be read as a tokenizer ({reason}); expected the tokenizer.json of the model, as "
            "`tokenizers` and `transformers` save it"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_kinds(tokenizer: Any, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int8]:
    """Return for each token id the position of its kind in `KINDS`."""
    ids = [int(i) for i in tokens]
    known = [i for i in ids if tokenizer.id_to_token(i) is not None]
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    texts, same = _encode_again(tokenizer, known)
    kinds = {i: _kind(texts[i], same[i], i in special) for i in known}
    return np.array([KINDS.index(kinds.get(i, "beyond_tokenizer")) for i in ids], np.int8)


def _kind(text: str, same: bool, special: bool) -> str:
    if same:
        return "special" if special else "reachable"
    bracketed = len(text) > 2 and _BRACKETS.get(text[0]) == text[-1] and any(letter.isalpha() for letter in text)
    if special or bracketed:
        return "unreachable_special"
    return "undecodable" if "\ufffd" in text else "unreachable"


def _encode_again(tokenizer: Any, ids: list[int]) -> tuple[dict[int, str], dict[int, bool]]:
    """Return the text of each token, and whether this text becomes the token alone.

    A tokenizer that adds a space at the beginning, or removes one, is given another text before the token.
    """
    first = tokenizer.encode("test", add_special_tokens=False).tokens
    prefixes = _PREFIXES if first and first[0].startswith(_SPACES) else ("",)
    texts: dict[int, str] = {}
    same = dict.fromkeys(ids, False)
    left = ids
    for prefix in prefixes:
        before = tokenizer.encode(prefix, add_special_tokens=False).ids
        start = tokenizer.decode(before, skip_special_tokens=False)
        decoded = tokenizer.decode_batch([[*before, i] for i in left], skip_special_tokens=False)
        alone = [text.removeprefix(start) for text in decoded]
        encoded = tokenizer.encode_batch_fast([prefix + text for text in alone], add_special_tokens=False)
        texts |= {i: text for i, text in zip(left, alone, strict=True) if i not in texts}
        same |= {i: e.ids == [*before, i] for i, e in zip(left, encoded, strict=True)}
        # where the token and the text before it became one, another text may show more
        left = [i for i, e in zip(left, encoded, strict=True) if e.ids[: len(before)] != before]
        if not left:
            break
    return texts, same
