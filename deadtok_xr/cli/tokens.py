"""`deadtok tokens`: which tokens of a saved model may be under-trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deadtok_xr.cli.options import JSON, PATH, PLACE, QUIET, pairs, print_json, read_ids
from deadtok_xr.cli.output import echo
from deadtok_xr.cli.spelling import options_alone
from deadtok_xr.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

_EXPENSIVE = ("cosine_distance_without_pc1", "pc1_gap")


@click.command()
@click.argument("checkpoint", type=PLACE)
@click.option("--tokenizer", type=PATH, help="The tokenizer.json of the model: texts, and what text cannot become.")
@click.option(
    "--reference",
    default="auto",
    show_default=True,
    metavar="IDS",
    help="Untrained tokens: ids with commas, a file of ids, or black_hole, beyond_tokenizer, dead, zeros.",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.02,
    show_default=True,
    help="Share of the tokens that are candidates.",
)
@click.option("--step", type=int, default=-1, help="Label of a step, of several. Default: the last one.")
@click.option("--key", "keys", multiple=True, metavar="VARIABLE=KEY", help="Which array of CHECKPOINT is W, or E.")
@click.option("--csv", "csv_file", type=PATH, help="Write all tokens and indicators to this file, by rank.")
@click.option("--without-pc1", is_flag=True, help="Also the distance without the first principal component; slow.")
@JSON
@QUIET
def tokens(
    checkpoint: Path | str, tokenizer: Path | None, reference: str, share: float, step: int, keys: tuple[str, ...],
    csv_file: Path | None, without_pc1: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Say which tokens of a model may be under-trained, from its embedding alone.

    CHECKPOINT is a safetensors, torch, HDF5 or NumPy file, the index of a sharded model, the folder of one, a
    store, or hf://ORG/MODEL. Its embedding is read twice, in bounded memory, and no code in it is run.

    The first principal component needs some five more readings, six times as long as everything else.

    \b
    Example:  deadtok tokens model.safetensors --tokenizer tokenizer.json
              deadtok tokens model/ --reference 128002,128003 --csv tokens.csv
    """
    from deadtok_xr.analyses.undertrained import findings, undertrained
    from deadtok_xr.checkpoints.weights import open_weights
    from deadtok_xr.conversion.options import Options
    from deadtok_xr.engine.progress import dask_progress

    if csv_file is not None:
        from deadtok_xr.store.destination import refuse_inside_store

        refuse_inside_store(csv_file)
    options = Options.from_arguments(keys=pairs(keys, "--key", "VARIABLE=KEY"))
    lazy = undertrained(
        open_weights(checkpoint, options), step=step, reference=_reference(reference), tokenizer=tokenizer, share=share
    )
    wanted = lazy if without_pc1 else lazy.drop_vars(_EXPENSIVE)
    with dask_progress("reading", quiet=quiet or as_json):
        found = wanted.compute()
    if csv_file is not None:
        _write_csv(found, csv_file)
    if as_json:
        print_json(**_facts(found))
        return
    echo(options_alone(findings.describe(found)))
    if csv_file is not None:
        echo(f"\n{csv_file}: {found.sizes['token']:,} tokens")


def _reference(text: str) -> str | list[int]:
    """Return the ids of an option, or of the file that it names; the name of a kind as it is."""
    from deadtok_xr.analyses.undertrained.references import FOUND

    if text in ("auto", *FOUND):
        return text
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words and all(word.isdigit() for word in words):
        return [int(word) for word in words]
    if Path(text).exists():
        return read_ids(Path(text))
    raise InputError(
        f"--reference {text}: expected: ids with commas, such as 128002,128003, a file of ids, auto, {', '.join(FOUND)}"
    )


def _write_csv(found: xr.Dataset, file: Path) -> None:
    import csv

    from deadtok_xr.analyses.undertrained.findings import rows
    from deadtok_xr.text import escaped

    with file.open("w", newline="", encoding="utf-8") as opened:
        writer: Any = None
        for row in rows(found):
            if "text" in row:
                row["text"] = escaped(row["text"])
            if writer is None:
                writer = csv.DictWriter(opened, list(row))
                writer.writeheader()
            writer.writerow(row)


def _facts(found: xr.Dataset) -> dict[str, Any]:
    """Return attributes, findings and candidates as values of JSON, which has no NaN: it becomes null."""
    import math

    import numpy as np

    from deadtok_xr.analyses.undertrained import findings
    from deadtok_xr.attributes import plain

    at = np.flatnonzero(found["candidate"].values)
    at = at[np.argsort(found["rank"].values[at])]
    candidates = [
        {name: None if isinstance(x, float) and math.isnan(x) else x for name, x in row.items()}
        for row in findings.rows(found, at)
    ]
    kinds = found["reference"].values.tolist()
    return {
        **plain(found.attrs), "indicator": findings.indicator(found), "threshold": float(found["threshold"]),
        "references": {kind: int(n) for kind, n in zip(kinds, found["reference_size"].values, strict=True)},
        "findings": findings.sentences(found), "candidates": candidates,
    }  # fmt: skip
