"""The summary: one screen whose numbers are those of the results, and nothing about what is not there."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings

import deadtok_xr as dx
from deadtok_xr.analyses import ANALYSES
from deadtok_xr.analyses.common.summary_text import number, percent
from deadtok_xr.analyses.registry import Finding, KeyFigure
from deadtok_xr.engine import Output
from deadtok_xr.results import findings
from deadtok_xr.results.summary import COLUMNS, LINES, N_FINDINGS
from tests.conftest import N_DEAD
from tests.strategies import dataset, hostile

EMPTY = re.compile(r"\b(nan|inf|None)\b(?! of)|\b0 of 0\b|\bin 0 of\b|(?<!\S)-1(?![.\d])")
"""What stands for a number that does not exist."""


def table_of(text: str) -> dict[str, str]:
    """The line of each analysis in the table."""
    lines = text.split("\nanalysis ")[1].splitlines()[1:]
    return {line.split()[0]: line for line in lines if line.split()[0] in ANALYSES}


def test_one_screen(results: xr.DataTree) -> None:
    lines = dx.summary(results).splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS
    assert lines[0].endswith(f": {N_DEAD} dead tokens, steps 0 to 300")
    assert 5 <= sum(line.startswith("- ") for line in lines) <= N_FINDINGS
    assert list(table_of("\n".join(lines))) == list(results.children)


def test_numbers_are_those_of_the_results(results: xr.DataTree) -> None:
    text = " ".join(dx.summary(results).split())
    moved = (results["motion"].moved_dims > 0).sum("token")
    assert (
        f"All {int(moved[0])} dead tokens move at step 1, nothing moves after step {int(moved.step[moved > 0][-1])}."
        in text
    )
    frozen = int(results["phases"].transition_step[0])
    assert f"frozen at {frozen}." in text
    assert f"removed their updates ({int((results['mechanism'].freeze_cause == 1).sum())})" in text
    assert f"moved again {int(results['lifecycle'].thaw_count.sum())} times" in text
    rows = table_of(dx.summary(results))
    radius = results["kinematics"].radius.values
    assert rows["kinematics"].split()[-2:] == [f"{radius[0]:.3g}", f"{radius[-1]:.3g}"]


def test_most_important_first_and_all_in_sentences(results: xr.DataTree) -> None:
    found = findings.findings(findings.load(results))
    assert [f.importance for f in found] == sorted((f.importance for f in found), reverse=True)
    for finding in found:
        assert finding.text[0].isupper() or finding.text[0].isdigit()
        assert finding.text.endswith(".")
        assert not EMPTY.search(finding.text), finding


def test_every_built_in_analysis_has_findings_and_a_key_figure() -> None:
    for analysis in ANALYSES.values():
        assert analysis.findings
        assert analysis.key_figure


def test_details_have_every_line_of_every_analysis(results: xr.DataTree) -> None:
    text = dx.summary(results, details=True)
    assert f"{float(results['kinematics'].radius[-1]):.6f} last" in text
    for name, node in results.children.items():
        for line in ANALYSES[name].summary(node.to_dataset()):  # type: ignore[misc]
            assert line in text


@given(ds=hostile())
@settings(max_examples=5)
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid|divide|Mean of empty|Degrees).*:RuntimeWarning")
def test_any_bits_leave_no_number_that_is_none(ds: xr.Dataset) -> None:
    tree = dx.analyze(ds, precision="bfloat16").compute()
    text = dx.summary(tree)
    lines = text.splitlines()[1:]
    said = [line for line in lines if not line.startswith("coherence ")]  # a cosine may be -1
    assert not EMPTY.search("\n".join(said)), text
    assert all(len(line) <= COLUMNS for line in text.splitlines())
    assert len(text.splitlines()) <= LINES
    for line in dx.summary(tree, details=True).splitlines():
        assert "[nan]" not in line


def test_nan_is_one_warning() -> None:
    W = np.ones((6, 4, 3), np.float32)
    W[1:] += np.arange(5)[:, None, None]
    W[3, 2, 0] = np.nan
    tree = dx.analyze(dataset(W.astype(ml_dtypes.bfloat16), precision="bfloat16"))
    assert dx.summary(tree).count("Warning: ") == 1
    assert "Warning: 2 steps hold NaN or infinity, in at most 1 tokens" in dx.summary(tree)
    assert dx.summary(tree, details=True).count("warning: ") > 5


def test_nothing_moves() -> None:
    tree = dx.analyze(dataset(np.ones((5, 3, 2), ml_dtypes.bfloat16), precision="bfloat16"))
    text = dx.summary(tree)
    assert "No token moves at any of 4 steps." in text
    assert "to the bit: 3 at step 0, 3 at step 4" in text


def test_analyses_of_ones_own_have_findings_and_a_key_figure() -> None:
    @dx.analysis(outputs={"largest": Output("step", long_name="largest weight", units="1")})
    def largest(batch):  # type: ignore[no-untyped-def]
        return {"largest": batch.W.max((1, 2))}

    @dx.analysis(outputs={"total": Output(combine="sum")}, summary=lambda ds: iter(["it is what it is"]))
    def total(batch):  # type: ignore[no-untyped-def]
        return {"total": batch.W.sum()}

    W = np.arange(6, dtype=np.float32)[:, None, None] * np.ones((6, 3, 2), np.float32)
    tree = dx.analyze(dataset(W), analyses=["motion", "largest", "total"], precision="bfloat16")
    text = dx.summary(tree)
    assert "- Largest: largest weight: 0 at step 0 to 5 at step 5." in text
    assert "- Total: it is what it is." in text
    rows = table_of(text)
    assert rows["largest"].split() == ["largest", "largest", "weight", "0", "5"]
    assert rows["total"].split() == ["total", "total", "90"]
    ANALYSES["largest"].findings = lambda ds: iter([Finding(1.0, "This comes first.")])
    ANALYSES["largest"].key_figure = lambda ds: KeyFigure("mine", overall=7)
    text = dx.summary(tree)
    assert text.splitlines()[2] == "- This comes first."
    assert table_of(text)["largest"].split() == ["largest", "mine", "7"]


def test_a_tree_that_was_not_saved_reads_the_recording_once_for_all_small_results(
    recording: object, reads: list[str]
) -> None:
    tree = dx.analyze(str(recording), analyses=["kinematics", "freezing", "spectrum", "census"])
    reads.clear()
    dx.summary(tree)
    chunks = [key for key in reads if key.startswith("W/c/")]
    assert len(chunks) <= 2 * len(set(chunks))  # a chunk, and the first step of the next one


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0%"), (1.0, "100%"), (0.5, "50%"), (0.123, "12.3%"), (0.0002, "0.02%"), (0.9996, "99.96%"),
     (0.999999, "over 99.99%"), (1e-9, "under 0.001%"), (np.nan, "none")],
)  # fmt: skip
def test_shares_are_never_rounded_to_none_or_all(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("x", "text"),
    [(12_345, "12,345"), (0.123456, "0.123"), (7421.6, "7,422"), (1.4e6, "1.4e+06"), (np.nan, "none"), ("text", "text"),
     (None, ""), (np.int64(1000), "1,000"), (0.0, "0")],
)  # fmt: skip
def test_numbers_have_three_digits(x: float | str | None, text: str) -> None:
    assert number(x) == text


def test_a_cloud_that_never_moves_stands_still_and_does_not_grow() -> None:
    ds = dataset(np.ones((6, 5, 3), np.float32), precision="bfloat16")
    tree = dx.analyze(ds, analyses=["lifecycle", "epochs"]).compute()
    rows = table_of(dx.summary(tree))
    assert rows["lifecycle"].split()[-1] == "5"
    assert rows["epochs"].split()[-1] == "none"
    assert "grows fastest" not in dx.summary(tree).split("\nanalysis ")[0]
