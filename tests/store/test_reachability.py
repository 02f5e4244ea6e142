"""Tokens that text can become, by tokenizers made here: of bytes, and of words with a space before them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deadtok_xr.errors import InputError
from deadtok_xr.store.reachability import KINDS, load_tokenizer, token_kinds
from deadtok_xr.store.tokenizer import token_texts

TEXT = ["the cat sat on the mat, the dog sat too\n"] * 20


def byte_level(path: Path) -> dict[str, int]:
    """Save a byte-level tokenizer with a special token and one that no text becomes; return ids by printed text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(path))
    return {text.replace("\n", "\\n"): i for i, text in token_texts(path).items()}


def kinds(path: Path, ids: list[int]) -> list[str]:
    return [KINDS[k] for k in token_kinds(load_tokenizer(path), ids)]


def test_tokens_of_bytes(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    names = byte_level(path)
    found = kinds(path, [names["<|end|>"], names["the"], names[" cat"], names["\\xe2"], 10_000])
    assert found == ["special", "reachable", "reachable", "undecodable", "beyond_tokenizer"]


def test_tokens_that_only_other_tokens_become(tmp_path: Path) -> None:
    """No merge makes "xyz" or "<unused1>"."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models

    words = ["a", "b", "c", "ab", "bc", "abc", "xyz", "<unused1>"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("a", "b"), ("b", "c"), ("ab", "c")]))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = dict(zip(words, kinds(tmp_path / "tokenizer.json", list(range(8))), strict=True))
    assert found.pop("xyz") == "unreachable"
    assert found.pop("<unused1>") == "unreachable_special"
    assert set(found.values()) == {"reachable"}


def test_tokenizers_that_add_a_space(tmp_path: Path) -> None:
    """Such a tokenizer makes "▁the" of "the": the token without the space is reachable inside a text alone."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<unk>", "▁", "«", "»", "t", "e", "s", "▁t", "te", "▁te", "▁«", "▁»", "q"]
    merges = [("t", "e"), ("▁", "te"), ("▁", "t"), ("▁", "«"), ("▁", "»")]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = dict(zip(words, kinds(tmp_path / "tokenizer.json", list(range(len(words)))), strict=True))
    assert found["te"] == found["▁te"] == found["e"] == "reachable"
    assert found["▁t"] == "reachable"


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "list.json").write_text('["a", "b"]')
    with pytest.raises(InputError, match=r"list.json cannot be read as a tokenizer .* expected the tokenizer.json"):
        load_tokenizer(tmp_path / "list.json")
    with pytest.raises(InputError, match="no such file"):
        load_tokenizer(tmp_path / "none.json")
