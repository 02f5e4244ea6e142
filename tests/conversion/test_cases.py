"""Files that other programs leave behind: each is converted right, or refused with advice.

`CASES` says for each file which arrays, steps and tokens must come out, or which words a refusal must have. Where both
are given, both are right; other values, other labels, or a choice made without a word are not.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests.conversion.foreign_files import build

TENS = (0, 10, 20, 30, 40, 50)
SIX = (0, 1, 2, 3, 4, 5)
PER_STEP = (0, 100, 200, 1000)
SAVES = (500, 1000, 1500, 2000)
OLMO = (0, 1000, 2000, 10000)
LENS = (0, 1000, 2000, 3000)


@dataclass(frozen=True)
class Case:
    """A file, the options of its conversion, and what is right.

    Attributes
    ----------
    values
        Variable -> key among the right values; None: the case must stop.
    at
        The position of the only step among the right values; None for all of them.
    steps
        The labels; a number of steps if any labels are right.
    optional
        Variables that may be there, with their key among the right values.
    settings
        The end of a setting's name -> its value.
    late
        Whether the first step has no moments, which are NaN there.
    stops
        Regular expressions that the message has if the conversion stops; None: it must not.
    warned
        A regular expression that a warning must have.
    """

    source: str
    values: Mapping[str, str] | None = None
    steps: tuple[int, ...] | int = 1
    at: int | None = None
    tokens: tuple[int, int] | None = None
    dead: tuple[int, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    absent: tuple[str, ...] = ("E", "exp_avg", "exp_avg_sq")
    late: bool = False
    stops: tuple[str, ...] | None = None
    warned: str | None = None


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


MERGE = (r"rank|part", r"merge|join")
PART = (r"part|rank",)
BOTH = (r"--key",)
BITS = {"bits": "bfloat16"}
MOMENTS = same("W", "exp_avg", "exp_avg_sq")
STACK = (r"step", r"stack")
FLOAT8 = (r"float8", r"bfloat16|float32")
LOSS = ("loss_float64",)
TRAINED = {"betas": [0.9, 0.95]}

CASES: dict[str, Case] = {
    "01a": Case("01-npz/recording.npz", same("W", "grad"), SIX, dead=(30, 40), options=BITS),
    "01b": Case("01-npz/recording.npz", same("W", "grad"), SIX, dead=(30, 40), stops=("--bits bfloat16",)),
    "01c": Case("01-npz/compressed.npz", same("W", "grad"), SIX, dead=(30, 40), options=BITS),
    "01d": Case("01-npz/W.npy", same("W"), SIX, options=BITS),
    "01e": Case("01-npz/workaround.npy", same("W"), SIX, options={"keys": {"W": "workaround"}}),
    "01f": Case("01-npz/float8_e4m3.npz", stops=FLOAT8),
    "01g": Case("01-npz/float8_e5m2.npz", stops=FLOAT8),
    "02a": Case("02-hdf5/opaque.h5", same("W"), SIX, options=BITS),
    "02b": Case("02-hdf5/opaque.h5", same("W"), SIX, stops=("--bits bfloat16",)),
    "02c": Case("02-hdf5/model.weights.h5", same("W"), 1, 5, options={"keys": {"W": "layers/embedding/vars/0"}}),
    "02d1": Case("02-hdf5/float_of_16_bits.h5", same("W"), SIX),
    "02d2": Case("02-hdf5/int16.h5", same("W"), SIX),
    "02d3": Case("02-hdf5/big_endian.h5", same("W"), SIX),
    "03a": Case("03-zarr/void.zarr", same("W"), SIX, options=BITS),
    "03b": Case("03-zarr/void.zarr/W", same("W"), SIX, options=BITS),
    "03c": Case("03-zarr/tensorstore/W", same("W"), SIX),
    "03d": Case("03-zarr/xarray_v3.zarr", same("W"), TENS, tokens=(100, 140), dead=(130, 140), others=LOSS),
    "03e": Case("03-zarr/xarray_v2.zarr", same("W"), TENS, tokens=(100, 140), dead=(130, 140), others=LOSS),
    "03g": Case("03-zarr/t5x", {"W": "W_t5x"}, (0, 1000), options={"keys": {"W": "target.token_embedder.embedding"}}),
    "03h": Case("03-zarr/t5x/checkpoint_1000/target.token_embedder.embedding", {"W": "W_t5x"}, 1, 1),
    "03i1": Case("03-zarr/orbax", stops=("Orbax", "OCDBT", r"np\.savez")),
    "03i2": Case("03-zarr/orbax/100/default", stops=("Orbax", "OCDBT", r"np\.savez")),
    "04a": Case("04-nanogpt/out/ckpt.pt", MOMENTS, (150,), 3, settings=TRAINED, absent=("E",)),
    "04b": Case("04-nanogpt/every", MOMENTS, (0, 50, 100, 150), settings=TRAINED, absent=("E",)),
    "06a": Case("06-ranks/llama", same("W", "E"), 1, stops=MERGE, absent=()),
    "06b": Case("06-ranks/llama/consolidated.01.pth", stops=PART),
    "06c": Case("06-ranks/llama_of_one/consolidated.00.pth", same("W", "E"), 1, absent=()),
    "06d": Case("06-ranks/neox/global_step1000", same("W", "E"), (1000,), stops=MERGE, absent=()),
    "06e": Case("06-ranks/neox", same("W", "E"), (1000, 2000), stops=MERGE, absent=()),
    "06f": Case("06-ranks/neox/global_step1000/layer_05-model_01-model_states.pt", stops=PART),
    "06g1": Case("06-ranks/megatron", {"W": "E"}, (1000,), stops=MERGE),
    "06g2": Case("06-ranks/megatron/iter_0001000", {"W": "E"}, (1000,), stops=MERGE),
    "06h": Case("06-ranks/deepspeed/global_step1000/mp_rank_00_model_states.pt", {"W": "E"}, (1000,)),
    "06i": Case("06-ranks/deepspeed", {"W": "E"}, (1000,), stops=("mp_rank_00_model_states.pt",)),
    "08a": Case("08-lightning/epoch_and_step", MOMENTS, (100, 200, 300), settings=TRAINED, absent=("E",),
                warned=r"last\.ckpt"),
    "08b": Case("08-lightning/step", MOMENTS, (100, 200, 300), settings=TRAINED, absent=("E",)),
    "08c": Case("08-lightning/epoch_and_step/epoch=1-step=200.ckpt", MOMENTS, (200,), 1, absent=("E",)),
    "08d": Case("08-lightning/numpy_number", MOMENTS, (100, 200, 300), absent=("E",),
                stops=(r"\.ckpt", "numpy")),
    "10a": Case("10-frozen/embed_tokens_alone", {"W": "W_embed_tokens_alone", "E": "E_embed_tokens_alone"}, (10, 20),
                optional={"exp_avg_E": "exp_avg_embed_tokens_alone"}, absent=("exp_avg", "exp_avg_sq"),
                stops=(r"lm_head\.weight", r"model\.embed_tokens\.weight")),
    "10b": Case("10-frozen/lm_head_alone", {"W": "W_lm_head_alone", "E": "E_lm_head_alone"}, (10, 20),
                optional={"exp_avg": "exp_avg_lm_head_alone"}, absent=("exp_avg_E", "exp_avg_sq_E"),
                stops=(r"lm_head\.weight", r"model\.embed_tokens\.weight")),
    "10c": Case("10-frozen/bytes", {"W": "W_bytes"}, (1, 2, 3), stops=("lm_head.weight|wte.weight", "c_fc.weight")),
    "11a": Case("11-transposed/run", same("W", "E"), LENS, stops=(r"unembed\.W_U", r"embed\.W_E"), absent=()),
    "11b": Case("11-transposed/run", same("W"), LENS, optional=same("E"), options={"keys": {"W": "unembed.W_U"}},
                stops=("--dims",), absent=()),
    "11c": Case("11-transposed/run", same("W", "E"), LENS, absent=(),
                options={"keys": {"W": "unembed.W_U", "E": "embed.W_E"},
                         "dims": {"unembed.W_U": ("step", "dim", "token")}}),
    "11d": Case("11-transposed/run/step1000.pt", same("W"), 1, 1, absent=(), optional=same("E"),
                options={"keys": {"W": "unembed.W_U"}, "dims": {"unembed.W_U": ("dim", "token")}}),
    "11e": Case("11-transposed/stacked.npz", same("W", "E"), LENS, absent=(),
                options={"keys": {"W": "W_U", "E": "W_E"}, "dims": {"W_U": ("step", "dim", "token")}}),
    **{f"12a {name}": Case(f"12-families/{name}.safetensors", {"W": "W_tied"})
       for name in ("bert", "sentence_t5", "opt", "bloom", "gemma3", "gpt2")},
    **{f"12b {name}": Case(f"12-families/{name}.safetensors", {"W": "W_untied", "E": "E_untied"}, absent=())
       for name in ("bert_untied", "t5", "gpt_j", "gpt_neox", "deepseek_mtp")},
    **{f"12c {name}": Case(f"12-families/{name}.safetensors", {"W": "W_untied", "E": "E_untied"}, absent=(),
                           stops=(re.escape(one), re.escape(other)))
       for name, one, other in (
           ("llama_meta", "output.weight", "tok_embeddings.weight"), ("rwkv", "head.weight", "emb.weight"),
           ("from_scratch", "out_head.weight", "tok_emb.weight"),
           ("olmo", "transformer.ff_out.weight", "transformer.wte.weight"),
           ("xlnet", "lm_loss.weight", "transformer.word_embedding.weight"),
           ("word_language_model", "decoder.weight", "encoder.weight"))},
    "13a": Case("13-step-names/accelerate", stops=("0, 1, 2, 3", "500, 1000, 1500, 2000", "--steps names",
                                                    "--steps content")),
    "13b": Case("13-step-names/accelerate", MOMENTS, SAVES, options={"steps": "content"}, absent=("E",)),
    "13c1": Case("13-step-names/saves", stops=("0, 1, 2, 3", "500, 1000, 1500, 2000", "--steps names",
                                               "--steps content")),
    "13c2": Case("13-step-names/saves", MOMENTS, SAVES, options={"steps": "content"}, absent=("E",)),
    "13c3": Case("13-step-names/saves", MOMENTS, (0, 1, 2, 3), options={"steps": "names"}, absent=("E",)),
    "13d": Case("13-step-names/olmo", MOMENTS, OLMO, absent=("E",), late=True),
    "13e": Case("13-step-names/olmo_tokens", same("W"), OLMO),
    "13f": Case("13-step-names/thousands", same("W"), (1000, 2000, 10000, 100000), stops=("1k",)),
    **{f"13g {name}": Case(f"13-step-names/{name}", same("W"), SAVES)
       for name in ("epochs", "middle", "loss", "loss_last")},
    **{f"17a {name}": Case(f"17-per-step/{name}", same("W"), PER_STEP, stops=STACK)
       for name in ("names.npz", "names.safetensors", "prefix.safetensors", "datasets.h5")},
    **{f"17b {name}": Case(f"17-per-step/{name}", same("W"), PER_STEP, stops=STACK)
       for name in ("dict.pt", "records.pt", "list_and_steps.pt")},
    "17c": Case("17-per-step/groups.h5", same("W", "grad"), PER_STEP, stops=STACK),
    "17d positions": Case("17-per-step/positions.npz", same("W"), (0, 1, 2, 3), stops=STACK),
    "17d list": Case("17-per-step/list.pt", same("W"), (0, 1, 2, 3), stops=STACK),
    "17f objects": Case("17-per-step/objects.npy", stops=("pickle", "stack|save")),
    "17f list": Case("17-per-step/list.pkl", stops=("pickle", "stack|save")),
    "17g": Case("17-per-step/npy", same("W"), PER_STEP),
    "17h": Case("17-per-step/npz", same("W", "grad"), PER_STEP),
    **{f"23{letter} {name}": Case(f"23-labels/{name}", same("W"), TENS, tokens=(100, 140), dead=(130, 140),
                                  others=LOSS)
       for letter, name in (("a", "plain.nc"), ("b", "token_first.nc"), ("b", "dim_before_token.nc"))},
    "23c": Case("23-labels/other_names.nc", same("W"), TENS, tokens=(100, 140), stops=("dim",)),
    "23d dead": Case("23-labels/token_dead.npz", same("W"), TENS, tokens=(100, 140), dead=(130, 140)),
    "23d token": Case("23-labels/token.npz", same("W"), TENS, tokens=(100, 140)),
    "23e": Case("23-labels/token_dead_100.npz", {"W": "W_100"}, (0, 1, 2, 3), tokens=(1000, 1100), dead=(1090, 1100)),
    "23f": Case("23-labels/vocab_ids.npz", same("W"), TENS, warned=r"'vocab_ids' .*--token-ids"),
    "23f told": Case("23-labels/vocab_ids.npz", same("W"), TENS, tokens=(100, 140),
                     options={"keys": {"token": "vocab_ids"}}),
}  # fmt: skip

NEVER = (r"--drop (?:W|E)\b", "copy it again", "Traceback", "copy the file again")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("foreign"))


def bits(values: Any) -> NDArray[Any]:
    values = np.ascontiguousarray(values)
    return values.view(f"u{values.dtype.itemsize}") if values.dtype.kind in "fV" else values


def convert(source: Path, dest: Path, **options: Any) -> list[str]:
    """Convert, and return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dx.convert(source, dest, **options)
    return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, files: Path, tmp_path: Path) -> None:
    case, out = CASES[name], tmp_path / "out.zarr"
    source = files / case.source
    try:
        warned = convert(source, out, **case.options)
    except InputError as error:
        sentence = error.advice
        assert case.stops is not None, sentence
        for pattern in case.stops:
            assert re.search(pattern, sentence), (pattern, sentence)
        for pattern in NEVER:
            assert not re.search(pattern, sentence), (pattern, sentence)
        assert "\n" not in sentence
        return
    found = dx.open_recording(out, raw=True, tokens="all").load()
    assert case.values is not None, f"read as {found}"
    check(case, found, np.load(files / "right" / f"{case.source.partition('/')[0]}.npz"))
    verified = dx.verify(out, source)
    assert not verified.problems
    if case.warned:
        assert any(re.search(case.warned, text) for text in warned), warned


def check(case: Case, found: Any, right: Mapping[str, NDArray[Any]]) -> None:
    assert case.values is not None
    wanted = {**case.values, **{k: v for k, v in case.optional.items() if k in found}}
    for variable, key in wanted.items():
        values = right[key] if case.at is None else right[key][case.at : case.at + 1]
        assert found[variable].dtype == "bfloat16", variable
        if case.late and variable.startswith("exp_avg"):
            assert np.isnan(found[variable].values[0].astype(np.float32)).all()
            values = np.concatenate([bits(found[variable].values[:1]), values[1:]])
        np.testing.assert_array_equal(bits(found[variable].values), values, err_msg=variable)
    assert not {*case.absent} & {*found.data_vars}
    assert {*case.others} <= {*found.data_vars}
    n_tokens = found.sizes["token"]
    np.testing.assert_array_equal(found["token"], np.arange(*(case.tokens or (0, n_tokens))))
    if case.dead is None:
        assert "dead" not in found.coords
    else:
        np.testing.assert_array_equal(found["token"][found["dead"]], np.arange(*case.dead))
    if isinstance(case.steps, int):
        assert found.sizes["step"] == case.steps
    else:
        assert found["step"].values.tolist() == [*case.steps]
    for end, value in case.settings.items():
        assert [v for k, v in found.attrs["hyperparameters"].items() if k.endswith(f".{end}")][:1] == [value]
        assert not any(k.endswith(f".{end}") for k in found.attrs.get("dropped", {}))
