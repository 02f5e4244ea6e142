"""Read the texts of tokens from the files in which tokenizers keep them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deadtok_xr.errors import InputError, MissingFileError


def token_texts(source: str | Path | Mapping[str, int] | Sequence[str]) -> dict[int, str]:
    """Return the text of each token id.

    Parameters
    ----------
    source
        A Hugging Face ``tokenizer.json``; another JSON file with a list of texts or ``{token: id}``; a text
        file with one token per line, the first being token 0; or such a list or dict.

    Returns
    -------
    dict[int, str]
        Text by id. Tokens of a byte-level tokenizer are decoded; bytes that are not valid UTF-8 by themselves become
        escapes (``\\xe2``). Tokens of other vocabularies are kept as they are (``##ing``, ``▁the``).

    Raises
    ------
    InputError
        If the file is missing or has none of these contents.
    """
    if isinstance(source, (str, Path)):
        return _from_file(Path(source))
    return _from_json(source, "token_text=")


def _from_file(path: Path) -> dict[int, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason}); expected a tokenizer.json or a text file"
        ) from error
    if path.suffix != ".json":
        lines = text.split("\n")  # not splitlines: a token may be any other character that ends a line
        return dict(enumerate(line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)))
    try:
        return _from_json(json.loads(text), str(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}); expected a tokenizer.json") from error


def _from_json(found: Any, name: str) -> dict[int, str]:
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        return _from_tokenizer(found, name)
    if isinstance(found, Mapping):
        return _unique_texts(((i, token) for token, i in found.items()), name)
    if isinstance(found, Sequence) and not isinstance(found, (str, bytes)):
        return _unique_texts(enumerate(found), name)
    raise InputError(
        f"{name} holds a {type(found).__name__}; expected a tokenizer.json, a list of texts or {{token: id}}"
    )


def _from_tokenizer(found: Mapping[str, Any], name: str) -> dict[int, str]:
    vocabulary = found["model"].get("vocab")
    if isinstance(vocabulary, Mapping):
        texts = _unique_texts(((i, token) for token, i in vocabulary.items()), name)
    elif isinstance(vocabulary, list):  # Unigram: [text, score]
        texts = _unique_texts(((i, entry[0] if entry else None) for i, entry in enumerate(vocabulary)), name)
    else:
        raise InputError(f"{name}: model.vocab is missing; expected a tokenizer.json that holds its vocabulary")
    if _is_byte_level(found):
        texts = {i: decode_bytes(token) for i, token in texts.items()}
    added = found.get("added_tokens") or []
    return texts | _unique_texts(((entry.get("id"), entry.get("content")) for entry in added), name)


def _unique_texts(pairs: Any, name: str) -> dict[int, str]:
    texts: dict[int, str] = {}
    for i, token in pairs:
        if not isinstance(token, str) or not isinstance(i, int) or isinstance(i, bool) or i < 0:
            raise InputError(
                f"{name}: found the token {token!r} with the id {i!r}; expected a text and an integer from 0"
            )
        if i in texts:
            raise InputError(f"{name}: the id {i} has two texts, {texts[i]!r} and {token!r}; expected one text per id")
        texts[i] = token
    return texts


def _is_byte_level(found: Mapping[str, Any]) -> bool:
    return any(
        part.get("type") == "ByteLevel" for key in ("pre_tokenizer", "decoder") for part in _parts(found.get(key))
    )


def _parts(component: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(component, Mapping):
        yield component
        for key in ("pretokenizers", "decoders"):
            for part in component.get(key) or ():
                yield from _parts(part)


def _byte_of_letter() -> dict[str, int]:
    """Return the byte of each letter of a byte-level tokenizer: printable bytes as they are, others from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_of_letter()


def decode_bytes(token: str) -> str:
    """Return the text of a token of a byte-level tokenizer."""
    if not all(letter in _BYTES for letter in token):
        return token
    return bytes(_BYTES[letter] for letter in token).decode("utf-8", "backslashreplace")
