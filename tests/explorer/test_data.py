"""What the explorer shows, without a page: bins, pictures, life cycles, the table, the cloud, one token's elements."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr

import deadtok_xr as dx
from deadtok_xr import testing
from deadtok_xr.errors import IncompleteStoreError, InputError, MissingFileError
from deadtok_xr.explorer import cloud, quantities, questions, rows, runs, story
from deadtok_xr.explorer.binned import Blocks, bin_steps, bins_of_columns, extremes, picture, rows_of_pixels
from deadtok_xr.explorer.in_words import line
from deadtok_xr.explorer.motion_so_far import MotionSoFar
from deadtok_xr.explorer.opening import Growing, open_runs, open_source
from deadtok_xr.explorer.scale import logarithmic, scale_of
from deadtok_xr.explorer.selection import Selection, from_query
from deadtok_xr.explorer.source import Source

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "$$x^2$$",
    r"\(y\)",
    "</script><script>alert(1)</script>",
    "\u202eabc",
    "a\nb",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with gradients, and token texts that are markup."""
    path = tmp_path_factory.mktemp("trained") / "run.zarr"
    train(path, 40)
    return path


def train(path: Path, steps: int, seen_enough: Callable[[], bool] = lambda: False) -> tuple[torch.Tensor, int]:
    """Record a run of ``steps``, or until enough was seen of it; return the weights and the number of steps."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(12, 8).to(torch.bfloat16))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    text = [*HOSTILE, *map(str, range(6))]
    with dx.Recorder(
        weight, optimizer, path, variables=("W", "grad", "exp_avg", "exp_avg_sq"), token_text=text, flush_every=1e-3
    ):
        for step in range(steps):
            weight.grad = torch.randn(12, 8, generator=torch.Generator().manual_seed(step)).to(torch.bfloat16)
            optimizer.step()
            time.sleep(2e-3)  # longer than flush_every
            if seen_enough():
                break
    return weight.detach().clone(), step + 1


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording without gradients, and its results beside it."""
    folder = tmp_path_factory.mktemp("synthetic")
    run = testing.synthetic_recording(folder / "run.zarr", steps=300, tokens=40, dims=8)
    dx.save_results(dx.analyze(run, analyses=["motion", "phases", "lifecycle"], tokens="all"), folder / "results.zarr")
    return folder


class TestBins:
    def test_means_of_finite_values_and_the_last_of_categories(self) -> None:
        values, words = (
            np.array([[1.0, np.nan], [3.0, np.inf], [5.0, 2.0]], np.float32),
            np.array([[1], [3], [5]], np.int8),
        )
        np.testing.assert_array_equal(bin_steps(values, 2), [[2, np.nan], [5, 2]])
        np.testing.assert_array_equal(bin_steps(words, 2, last_value=True), [[3], [5]])

    def test_lines_keep_the_smallest_and_the_largest_value_of_each_bin(self) -> None:
        values = np.array([1, 0.5, 1, 2, np.nan, 3, np.nan, np.nan, 4])
        assert extremes(values, 3).tolist() == [1, 3, 5, 8]
        assert extremes(values, 9).tolist() == list(range(9))
        assert extremes(values[:0]).size == 0

    def test_blocks_are_read_once_and_only_those_that_are_visible(self) -> None:
        read = []

        def count(block: np.ndarray) -> np.ndarray:
            read.append(int(block[0, 0]))
            return block

        values = da.from_array(np.arange(40.0)[:, None] * np.ones(3), chunks=(10, 3))
        x = xr.DataArray(
            values.map_blocks(count, meta=np.empty((0, 0))), dims=("step", "token"), coords={"step": np.arange(40) * 2}
        )
        blocks = Blocks()
        found = blocks.binned("x", x, 30, 50)
        assert sorted(read) == [10, 20]
        assert found.first.tolist() == list(range(30, 51, 2))
        np.testing.assert_array_equal(found.values[:, 0], np.arange(15, 26))
        blocks.binned("x", x, 30, 50)
        assert len(read) == 2
        coarse = blocks.binned("x", x, max_bins=11)
        assert coarse.width == 4
        np.testing.assert_array_equal(coarse.values[:3, 0], [1.5, 5.5, 8.5])  # bins end with their block

    def test_pictures_follow_the_order_and_average_rows_that_share_a_pixel(self) -> None:
        x = xr.DataArray(np.arange(8.0).reshape(2, 4), dims=("step", "token"), coords={"step": [1, 2]})
        found = Blocks().binned("x", x)
        order = np.array([3, 2, 1, 0])
        assert picture(found, order, (0.5, 2.5), (4, 100)).tolist() == [[3, 7], [2, 6], [1, 5], [0, 4]]
        assert picture(found, order, (0.5, 2.5), (2, 100)).tolist() == [[2.5, 6.5], [0.5, 4.5]]
        assert picture(found, order, (0.5, 2.5), (2, 100), mean=False).tolist() == [[3, 7], [1, 5]]

    def test_the_named_steps_and_rows_of_a_pixel_are_those_that_it_shows(self) -> None:
        steps, order, size = np.arange(100, 123), np.array([3, 0, 4, 1, 2]), (2, 8)
        values = np.random.default_rng(0).random((len(steps), 5), np.float32)
        x = xr.DataArray(values, dims=("step", "token"), coords={"step": steps}).chunk(step=5)  # bins end with a block
        found, span = Blocks().binned("x", x, max_bins=12), (99.5, 122.5)
        columns, row = bins_of_columns(found, span, size[1]), [*rows_of_pixels(5, size[0]), 5]
        image = picture(found, order, span, size)
        assert found.spans[2:4] == ["104", "105 to 106"]
        for j, i in np.ndindex(image.shape):
            tokens, first, last = order[row[j] : row[j + 1]], found.first[columns[i]], found.last[columns[i]]
            np.testing.assert_allclose(image[j, i], x.sel(step=slice(first, last))[:, tokens].mean(), rtol=1e-5)

        causes = Blocks().binned("cause", xr.DataArray(steps[1:-1, None] % 100, dims=("step", "token"), coords={
            "step": steps[1:-1]}, attrs={"flag_meanings": "a b"}).chunk(step=7), max_bins=12)  # fmt: skip
        at, there = causes.value_within(found.first, found.last)
        assert there.sum() > 5
        shown = causes.last[at[there]]
        assert ((found.first[there] <= shown) & (shown <= found.last[there])).all()
        np.testing.assert_array_equal(causes.values[at[there], 0], shown % 100)


def test_only_exact_zeros_are_below_the_colours_of_a_logarithmic_scale() -> None:
    values = np.geomspace(1e-3, 1, 700, dtype=np.float32)[None].repeat(100, 0)
    values[50, 0], values[60] = 1e-7, 0  # one tiny motion, and a step without any
    whole = scale_of(values)
    assert whole.log
    x = xr.DataArray(values, dims=("step", "token"), coords={"step": np.arange(100)})
    image = picture(Blocks().binned("x", x), np.arange(700), (-0.5, 99.5), (350, 1000))
    mapper = logarithmic(values, whole, ["first", *"abc"], rows_per_pixel=2)
    with np.errstate(divide="ignore"):
        colour = np.floor(
            np.log(image / mapper["low"]) / np.log(mapper["high"] / mapper["low"]) * len(mapper["palette"])
        )
    np.testing.assert_array_equal(colour < 0, image == 0)  # as BokehJS finds the colour of a value
    assert mapper["palette"][int(colour[0, 50])] == "first"
    assert mapper["palette"][-4:] == ["first", *"abc"]
    assert not scale_of(values[:50, 600:]).log


def test_life_cycles_that_grow_block_by_block_are_those_of_lifecycle(synthetic: Path) -> None:
    rec = dx.open_recording(synthetic / "run.zarr")
    expected, moved = dx.lifecycle(rec).compute(), dx.motion(rec).moved_dims.compute()
    so_far = MotionSoFar(rec.sizes["token"])
    for a, b in ((0, 1), (1, 1), (1, 90), (90, 299)):
        so_far.add(moved["step"].values[a:b], moved.values[a:b])
    columns = so_far.columns()
    for name in ("first_freeze", "last_motion", "thaw_count", "censored", "moved_steps"):
        np.testing.assert_array_equal(columns[name], expected[name], name)
    thawed = (moved.values[1:] > 0) & (moved.values[:-1] == 0)
    for token in np.flatnonzero(columns["thaw_count"]):
        assert columns["last_thaw"][token] == moved["step"].values[1:][thawed[:, token]].max()


def test_selections_as_python_and_as_links() -> None:
    selection = Selection((3, 35), (10, 20), 15, "motion/displacement", "thaws")
    assert selection.as_python() == "rec.sel(token=[3, 35], step=slice(10, 20))"
    assert Selection(("a.weight",)).as_python("parameter") == "rec.sel(parameter=['a.weight'])"
    assert Selection().as_python() == "rec"
    assert Selection().as_query() == ""
    query = {"token": [b"3", b"35"], "steps": [b"10-20"], "step": [b"15"], "quantity": [b"motion/displacement"],
             "order": [b"thaws"]}  # fmt: skip
    assert from_query(query) == selection
    assert from_query({"run": [b"b"]}) == Selection(run="b")
    assert from_query({"steps": [b"20-10"], "step": ["²".encode(), b"1"]}) == Selection()


def test_the_table_is_searched_by_text_expressions_and_ids(trained: Path) -> None:
    source = open_source(trained)
    frame = rows.table(source, source.motion_so_far())
    assert rows.matching(frame, "IMG").nonzero()[0].tolist() == [0]
    assert rows.matching(frame, "/^[345]$/").nonzero()[0].tolist() == [3, 4, 5, 9, 10, 11]  # ids and texts
    assert rows.matching(frame, "2, 7").nonzero()[0].tolist() == [2, 7]
    assert rows.matching(frame, " ").all()
    for condition, expected in (
        ("Moved steps >= 30", frame["moved steps"] >= 30),
        ("at the end = moving", frame["at the end"] == "moving"),
        ("text != 3", frame["text"] != "3"),
    ):
        np.testing.assert_array_equal(rows.matching(frame, condition), expected, condition)
    for pattern, message in (("/[/", "no regular expression"), ("thaws > x", "is none"), ("text < b", "holds words"),
                             ("thaws >", "a number is missing"), ("Cohort > 3", "there is no column 'Cohort'"),
                             ("motion > 3", "no column 'motion', but last motion")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            rows.matching(frame, pattern)
    assert {"token", "text", "last motion", "thaws", "last thaw", "at the end"} <= set(rows.shown_columns(frame))
    order = rows.ordered(frame, "moved steps")
    assert (np.diff(frame["moved steps"].to_numpy()[order]) >= 0).all()


def test_questions_are_answered_by_tokens_and_steps(synthetic: Path) -> None:
    source = open_source(synthetic / "results.zarr")
    source.refresh()
    frame, lifecycle = rows.table(source, source.motion_so_far()), source.groups["lifecycle"]
    asked = "the tokens that froze first"
    *known, hole, coherence = questions.offered(frame, source).items()
    assert known[-1] == (asked, asked)
    assert (hole[1], coherence[1]) == tuple(f"{q} (not analysed)" for q in (questions.HOLE, questions.LEAST_COHERENT))
    assert "--only census" in questions.answer(questions.HOLE, frame, source).text
    found = questions.answer(asked, frame, source)
    freeze = lifecycle["first_freeze"].values
    assert found.step == freeze[freeze > 0].min()
    np.testing.assert_array_equal(found.rows, np.flatnonzero(freeze == found.step))
    assert re.fullmatch(rf"(All )?{len(found.rows or [])} tokens? stood still first, at .* {found.step}\.", found.text)
    step = source.groups["motion"]["step"]
    cosine = xr.DataArray(np.cos(np.arange(len(step))), dims="step", coords={"step": step})
    source.groups["coherence"] = xr.Dataset({"displacement_cosine_mean": cosine})
    assert questions.answer(questions.LEAST_COHERENT, frame, source).step == int(cosine.idxmin())
    source.groups["census"] = xr.Dataset(coords={"census_step": [100, 299]})
    hole = questions.answer(questions.HOLE, frame.assign(**{"black hole": [1, 2, 2, 1, *[0] * 36]}), source)
    assert hole == questions.Answer(
        "2 tokens are equal to the bit at step 299; another place holds as many: 1, 2.", [0, 3], 299
    )


def test_no_name_of_a_token_is_taken_for_a_formula_or_hides_letters(trained: Path) -> None:
    names = rows.names(open_source(trained))
    assert names[0] == '0 "<img src=x onerror=aler…"'  # markup stays text: pages escape it
    assert not any("$$" in name or r"\(" in name for name in names)
    assert names[4] == r'4 "\u202eabc"'
    assert names[5] == r'5 "a\nb"'


def test_the_cloud_is_projected_on_its_principal_axes(synthetic: Path) -> None:
    w = dx.open_recording(synthetic / "run.zarr").W
    axes = cloud.principal_axes(w, 250)
    x = w.sel(step=250).values.astype(np.float64)
    _, singular, vectors = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(vectors[:2] @ axes.vectors), np.eye(2), atol=1e-6)
    np.testing.assert_allclose(axes.share, (singular**2 / (singular**2).sum())[:2], rtol=1e-6)
    expected = (w.sel(step=130).values - axes.mean) @ axes.vectors
    drawn, places = cloud.Projection(w, axes).at(130)
    assert drawn == 130
    np.testing.assert_allclose(places, expected, atol=1e-6)
    assert cloud.Projection(w, axes).at(10_000)[0] == w.step[-1]  # of a run that is shorter than the others


def test_the_elements_of_a_token_are_those_of_elements_and_mechanism(trained: Path) -> None:
    rec = dx.open_recording(trained)
    part = story.around(rec, 7, 20, steps=3)
    found = story.elements_of(part).merge(story.updates_of(part), join="left")
    assert part.step.values.tolist() == list(range(16, 24))  # one before, for the displacement of the first
    expected = dx.mechanism(rec.sel(step=slice(16, 23))).compute()
    np.testing.assert_array_equal(found.margin.sel(step=20).max(), expected.margin.sel(token=7, step=20))
    frame = story.at_step(found, 20)
    assert len(frame) == 8
    np.testing.assert_array_equal(frame["before"], rec.W.sel(step=19, token=7))
    moved = frame["after"] != frame["before"]
    assert ((frame["moved by, in gaps"] != 0) == moved).all()
    assert ((frame["cause"] == "moved") == moved).all()


class TestSources:
    def test_results_open_in_two_parts(self, synthetic: Path) -> None:
        source = open_source(synthetic / "results.zarr")
        assert source.grows
        assert set(source.groups["motion"]) == {"displacement"}
        at_once = source.in_python()
        assert at_once == f"dx.open_recording({str(synthetic / 'run.zarr')!r})"
        assert source.refresh()
        assert source.in_python() == at_once
        assert source.recording is not None
        found = quantities.of_rows(source)
        assert {quantities.PHASE, quantities.NORM, quantities.DISTANCE, "lifecycle/stratigraphy"} <= set(found)
        phase = found[quantities.PHASE]
        shares = [(phase == k).mean("token").values for k in range(4)]
        np.testing.assert_array_equal(np.stack(shares, 1), source.groups["phases"]["fraction"])

    def test_moved_results_find_the_recording_beside_them_or_say_what_is_missing(
        self, synthetic: Path, tmp_path: Path
    ) -> None:
        tree = dx.open_results(synthetic / "results.zarr")
        assert open_source(tree).notes == []
        tree.attrs = {**tree.attrs, "source": str(tmp_path / "gone.zarr")}
        source = open_source(tree)
        assert source.recording is None
        assert "no such file" in source.notes[0]
        assert source.in_python().startswith("...")
        source.saved_at = synthetic / "results.zarr"
        exec(Selection((3, 5)).as_program(source.in_python()).replace("\nrec.sel", "\nfound = rec.sel"), made := {})
        assert made["found"].displacement.token.values.tolist() == [3, 5]

    def test_what_cannot_be_explored_is_said_in_a_sentence(self, synthetic: Path, tmp_path: Path) -> None:
        with pytest.raises(MissingFileError, match="does not exist"):
            open_source(tmp_path / "nothing")
        for attributes, message in (
            ('{"deadtok_results": "2.0", "complete": true}', "format 2.0; this version"),
            ('{"deadtok_results": "1.0", "complete": false, "groups": []}', "was not completed"),
            ('{"deadtok_sample": "1.0"}', "samples of many parameters"),
            ('{"deadtok_format": "1.0", "complete": false}', "deadtok watch"),
            ('{"deadtok_format": "2.0", "complete": true}', "recording format 2.0"),
            ("{}", "nothing to explore"),
        ):
            (tmp_path / "x.zarr").mkdir(exist_ok=True)
            meta = f'{{"zarr_format": 3, "node_type": "group", "attributes": {attributes}}}'
            (tmp_path / "x.zarr" / "zarr.json").write_text(meta, "utf-8")
            with pytest.raises(InputError, match=message):
                open_source(tmp_path / "x.zarr")
        with pytest.raises(InputError, match="do not grow"):
            open_source(synthetic / "results.zarr", live=True)
        with pytest.raises(InputError, match="several runs"):
            open_source(dx.concat_runs([synthetic / "run.zarr"] * 2, run=["a", "b"]))
        with pytest.raises(InputError, match="nothing to explore"):
            open_runs([])

    def test_several_runs_of_one_store_of_a_dataset_or_of_a_list(self, synthetic: Path, tmp_path: Path) -> None:
        recordings = dx.concat_runs([synthetic / "run.zarr"] * 2, run=["a", "b"], tokens="all")
        dx.save_results(dx.analyze(recordings, analyses=["motion", "compare_runs"]), tmp_path / "runs.zarr")
        found = open_runs(tmp_path / "runs.zarr")
        assert list(found) == list(open_runs(recordings)) == ["a", "b"]
        assert found["b"].groups["motion"].displacement.dims == ("step", "token")
        assert found["b"].recording is not None
        assert runs.overview(found)["differs from a"].tolist() == ["", "equal to the bit"]
        assert runs.in_common(found) == []
        assert list(open_runs(tmp_path / "runs.zarr", run="b")) == ["b"]
        for path, run in ((tmp_path / "runs.zarr", "c"), (synthetic / "results.zarr", "a")):
            with pytest.raises(InputError, match="no run"):
                open_source(path, run=run)
        both = [synthetic / "results.zarr", tmp_path / "runs.zarr"]
        found = open_runs(both)
        assert list(found) == ["results", "runs a", "runs b"]
        assert all(source.refresh() for source in found.values())
        assert runs.overview(found)["differs from results"].tolist() == ["", "equal to the bit", "equal to the bit"]

    def test_runs_of_other_tokens_and_steps_are_compared_as_far_as_they_go(self, synthetic: Path) -> None:
        rec = dx.open_recording(synthetic / "run.zarr")
        other = rec.isel(step=slice(0, 50), token=slice(10, None)).assign_coords(token_text=("token", ["x"] * 30))
        found = open_runs([rec.assign_coords(token_text=("token", list("abcd") * 10)), other])
        assert runs.in_common(found) == [
            "The runs have different tokens (40 in 1, 30 in 2); 30 are in all of them.",
            "30 tokens have another text in another run: the same id may mean another token.",
        ]
        frame = runs.overview(found)
        assert frame["steps"].tolist() == ["0 to 299", "0 to 49"]
        assert re.fullmatch(r"[12](?: and 2)? froze first: half .* at step \d+\.", runs.froze_first(found))
        static = rec.assign(W=rec.W.isel(step=[0] * rec.sizes["step"]).assign_coords(step=rec["step"]))
        assert runs.froze_first(open_runs([static, static])) == ""  # what never moves does not freeze
        assert frame["differs from 1"].tolist() == ["", "equal to the bit"]
        assert runs.positions(found["2"], np.array([5, 10, 39])).tolist() == [-1, 0, 29]
        assert [heading for heading, _ in runs.findings(found)][1] == "Where the runs differ (1 / 2):"
        one, two = found.values()
        two.recording, two.groups = rec.isel(token=[0]).assign_coords(token=[99]), {}
        one.comparison = None
        assert "differs from 1" not in runs.overview(found)
        given = {"hyperparameters": {"lr": 1.0, "eps": 0}, "model": {"lr": 1.0, "seed": 0}, "created": 3}
        other = {"hyperparameters": {"lr": 2.0, "eps": 0}, "model": {"lr": 2.0, "seed": 1}, "created": 4}
        assert runs.differing_settings([given, other]) == {
            "model.seed": ["0", "1"],
            "learning rate at first": ["1.0", "2.0"],
        }

    def test_a_recording_alone_shows_motion_and_offers_to_analyse(self, synthetic: Path) -> None:
        source = open_source(synthetic / "run.zarr", tokens="all")
        assert "deadtok analyze" in source.notes[0]
        saved = dx.open_results(synthetic / "results.zarr")["motion"].displacement
        found = source.blocks.binned("displacement", quantities.of_rows(source)["motion/displacement"])
        np.testing.assert_array_equal(found.values, saved)
        assert line(source).startswith("step 299; 100.0% frozen; 40 of 40 tokens stand still; mean displacement 0")

    def test_a_run_is_the_same_to_the_bit_when_it_is_watched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("deadtok_xr.explorer.opening._WAIT", 0.0)
        with pytest.raises(MissingFileError):
            Growing(tmp_path / "watched.zarr", None)
        sources: list[Source] = []
        seen: set[int] = set()

        def grew_twice() -> bool:
            try:
                sources[:] = sources or [open_source(tmp_path / "watched.zarr", live=True)]
            except IncompleteStoreError:  # nothing is written yet
                return False
            sources[0].refresh()
            so_far = sources[0].motion_so_far()
            assert so_far is None or so_far.step == sources[0].steps[1]
            seen.add(sources[0].steps[1])
            return len(seen) == 3

        watched, steps = train(tmp_path / "watched.zarr", 100_000, grew_twice)  # however late the writer writes
        alone, _ = train(tmp_path / "alone.zarr", steps)
        assert torch.equal(alone, watched)
        assert len(seen) == 3
        assert sources[0].refresh()
        assert line(sources[0]).endswith("; complete")
        a, b = (dx.open_recording(tmp_path / f"{name}.zarr").W for name in ("alone", "watched"))
        assert a.equals(b)

    def test_a_monitor_is_watched_by_parameter(self, tmp_path: Path) -> None:
        model = torch.nn.LayerNorm(24, bias=False, dtype=torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
        with dx.Monitor(model, optimizer, tmp_path / "m", every=1):
            for _ in range(3):
                model.weight.grad = torch.ones_like(model.weight)
                optimizer.step()
        source = open_source(tmp_path / "m", live=True)
        assert source.rows == "parameter"
        assert quantities.of_rows(source)["monitor/rounded_to_zero_fraction"].values.tolist() == [[1.0]] * 3
        assert line(source) == "step 3; 100.0% rounded to zero; complete"
        assert rows.table(source)["parameter"].tolist() == source.labels.tolist()
