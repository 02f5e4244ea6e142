"""The report: one page for any results, which loads nothing from elsewhere and agrees with the results."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import deadtok_xr as dx
from deadtok_xr.analyses import ANALYSES
from deadtok_xr.analyses.common.summary_text import percent
from deadtok_xr.attributes import portable
from deadtok_xr.errors import DestinationExistsError, InputError
from deadtok_xr.plot import save_figures
from deadtok_xr.results.report import series
from tests.conftest import N_DEAD

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a page is made of: its elements with their attributes, and whether they are closed in order."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(results: xr.DataTree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dx.report(results, tmp_path_factory.mktemp("report") / "report.html")


def test_page_is_complete_and_loads_nothing(page: Path) -> None:
    text = page.read_text("utf-8")
    found = Page(text)
    for tag, attrs in found.elements:
        for name in ("src", "href"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", text)
    ids = {attrs["id"] for _, attrs in found.elements if "id" in attrs}
    assert {a["href"].removeprefix("#") for a in found.of("a") if a["href"]} <= ids


def test_every_picture_has_alternative_text(page: Path, results: xr.DataTree) -> None:
    images = [i for i in Page(page.read_text("utf-8")).of("img") if i.get("src")]
    pictures = [(picture, node) for name, node in results.children.items() for picture in ANALYSES[name].pictures or ()]
    assert len(images) == sum(not picture.shows_nothing(node.to_dataset()) for picture, node in pictures)
    assert all(len(i["alt"] or "") > 60 for i in images)


def test_every_picture_has_a_title_and_two_lines() -> None:
    for analysis in ANALYSES.values():
        assert analysis.pictures
        for picture in analysis.pictures:
            assert picture.title
            assert len(picture.reading) > 60


def test_heading_levels_are_not_skipped(page: Path) -> None:
    levels = [int(tag[1]) for tag, _ in Page(page.read_text("utf-8")).elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_findings_match_the_results(page: Path, results: xr.DataTree) -> None:
    text = page.read_text("utf-8")
    moved = (results["motion"].moved_dims > 0).sum("token")
    last = int(moved.step[moved > 0][-1])
    assert f"All {int(moved[0])} dead tokens move at step 1, nothing moves after step {last}." in text
    share = float(results["phases"].fraction.sel(phase="frozen")[-1])
    assert f"{percent(share)} of the tokens are frozen" in text
    for name in results["motion"].data_vars:
        assert f"<code>{name}</code>" in text


def test_findings_come_first_each_with_its_picture(page: Path, results: xr.DataTree) -> None:
    text = page.read_text("utf-8")
    found = text.split('<section id="found">')[1].split("</section>")[0]
    articles = dict(re.findall(r'<article id="(\w+)">(.*?)</article>', found, re.DOTALL))
    shown = " ".join(dx.summary(results).split("\nanalysis ")[0].split()).split(" - ")[1:]
    assert set(shown) <= {html.unescape(line) for line in re.findall(r'<p class="finding">(.*?)</p>', found)}
    assert list(articles)[:2] == ["motion", "lifecycle"]
    for name, article in articles.items():
        assert f'<a href="#{name}">' in text.split("</nav>")[0]
        if name != "nothing":
            assert article.index('<p class="finding">') < article.index("<img")
    assert text.index("</nav>") < text.index('<section id="found">') < text.index('<section id="recorded">')


def test_nothing_is_said_instead_of_drawn(page: Path, results: xr.DataTree) -> None:
    text = page.read_text("utf-8")
    assert not results["census"].population.any()
    nothing = text.split('<article id="nothing">')[1].split("</article>")[0]
    assert "<li>No two tokens are ever in the same place.</li>" in nothing
    assert 'id="picture-census"' not in text
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=results.attrs), "census": results["census"].to_dataset()})
    assert next(iter(save_figures(tree, page.parent / "figures"))).name == "census.png"


def test_what_matters_about_the_recording_comes_first(page: Path) -> None:
    text = page.read_text("utf-8")
    recorded = text.split('<section id="recorded">')[1].split("</section>")[0]
    first, folded = recorded.split("<details>")
    names = re.findall("<dt>(.*?)</dt>", first)
    assert names[:5] == ["model", "vocabulary", "steps", "optimizer", "learning rate"]
    assert f"256 tokens of 16 dims; {N_DEAD} analysed, the dead ones" in first
    assert "bfloat16" in first
    assert "foreach" not in first
    assert "<dt>foreach</dt><dd>None</dd>" in folded
    assert "<dt>torch_version</dt>" in folded


def test_series_match_the_results(page: Path, results: xr.DataTree) -> None:
    text = page.read_text("utf-8")
    (data,) = re.findall(r'<script type="text/plain" id="data">(.*?)</script>', text, re.DOTALL)
    told = json.loads(zlib.decompress(base64.b64decode(data)))
    found = {s["name"]: s for s in told["series"]}
    speed = found["kinematics: bulk_speed"]
    expected = results["kinematics"].bulk_speed.values
    assert told["steps"][speed["steps"]] == results["kinematics"].step.values.tolist()
    assert speed["values"][0] is None
    np.testing.assert_allclose(speed["values"][1:], expected[1:], rtol=1e-5)


def test_thinning_keeps_spikes_and_gaps() -> None:
    values = np.zeros(50_000)
    values[31_234], values[7], values[40_000:] = 9.0, -3.0, np.nan
    at = series._thin(values)
    assert len(at) <= series.MAX_POINTS + 2
    assert {31_234, 7, 0, 49_999} <= set(at.tolist())
    assert np.isnan(values[at]).sum() > 100
    assert (np.diff(at) > 0).all()


@pytest.mark.parametrize("group", ["motion", "phases", "kinematics", "topology", "freeze_predictors"])
def test_a_report_of_one_group(results: xr.DataTree, tmp_path: Path, group: str) -> None:
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=results.attrs), group: results[group].to_dataset()})
    Page(dx.report(tree, tmp_path / "r.html").read_text("utf-8"))


@pytest.mark.slow
def test_left_out_analyses_and_warnings_are_listed_and_escaped(recording: Path, tmp_path: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead").drop_vars(["exp_avg", "exp_avg_sq"])
    rec.attrs["source"] = "<script>alert(1)</script>.zarr"
    rec["W"] = rec.W.where(rec.step != 7)
    tree = dx.analyze(rec, precision="bfloat16").compute()
    text = dx.report(tree, tmp_path / "r.html").read_text("utf-8")
    assert "left out. mechanism" in text
    assert "hold NaN or infinity" in text
    assert "<script>alert(1)" not in text
    Page(text)


def test_an_existing_file_is_kept(results: xr.DataTree, tmp_path: Path) -> None:
    results = xr.DataTree.from_dict({"/": xr.Dataset(attrs=results.attrs), "phases": results["phases"].to_dataset()})
    out = tmp_path / "r.html"
    out.write_text("mine")
    with pytest.raises(DestinationExistsError, match=r"r\.html already exists"):
        dx.report(results, out)
    assert out.read_text() == "mine"
    assert dx.report(results, out, overwrite=True).read_text("utf-8").startswith("<!doctype html>")
    with pytest.raises(DestinationExistsError):
        dx.report(results, tmp_path, overwrite=True)


def test_results_without_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hold no groups"):
        dx.report(xr.DataTree(), tmp_path / "r.html")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [375, 1440])
def test_page_in_a_browser_has_no_errors_and_no_overflow(page: Path, tmp_path: Path, width: int) -> None:
    probe = (
        "<script>addEventListener('error', e => document.title = 'failed: ' + e.message);"
        "addEventListener('load', () => { const d = document.documentElement;"
        " document.body.dataset.wide = d.scrollWidth - d.clientWidth;"
        " document.body.dataset.title = document.title; });</script></head>"
    )
    probed = tmp_path / "probed.html"
    # an iframe of the width that is to be tried: a window of Chromium is never narrower than 500
    probed.write_text(page.read_text("utf-8").replace("</head>", probe), "utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<iframe src='probed.html' width={width} height=900 style='border:0'></iframe><pre></pre><script>"
        "const f = document.querySelector('iframe'); const said = document.querySelector('pre');"
        " f.onload = () => setTimeout(() => {"
        " const { body } = f.contentDocument;"
        " body.dataset.options = body.querySelectorAll('#which option').length;"
        " said.textContent = JSON.stringify(body.dataset); }, 500);</script>",
        "utf-8",
    )
    out = _chromium("--dump-dom", "--virtual-time-budget=8000", "--allow-file-access-from-files", frame.as_uri())
    (data,) = re.findall(r"<pre>(\{.*?\})</pre>", out.stdout)
    found = json.loads(data)
    assert found["wide"] == "0"
    assert int(found["options"]) > 20
    assert not found["title"].startswith("failed")
    assert "CONSOLE" not in out.stderr


def _chromium(*args: Any) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


RUN = "document.documentElement.dataset.ran=1"
HOSTILE = (
    f"<script>{RUN}</script>", f"</script><script>{RUN}</script><!--", f"\"><img src=x onerror='{RUN}'>",
    f"'><svg onload={RUN}>", f"javascript:{RUN}", "{{ 1/0 }}", "$\\frac{$", "\x1b[31m\x07", "\u202e\u2028]]>",
)  # fmt: skip


def hostile_results(results: xr.DataTree) -> xr.DataTree:
    """Return results in which all names, texts and attributes that a store can have are markup."""
    every = " ".join(HOSTILE)
    steps = np.arange(3)
    own = xr.Dataset(
        {
            name.replace("/", "\\"): ("step", np.arange(3.0), {"long_name": name, "units": name, "formula": name})
            for name in HOSTILE
        },
        {"step": ("step", steps, {"long_name": every, "units": every})},
        attrs={"precision": every},
    )
    recording = dict.fromkeys(("model", "optimizer", "parameter_dtype", "device", "made_by", "created"), every)
    settings = {name: name for name in HOSTILE} | {"betas": [every], "eps": every}
    attrs = {
        "source": every, "analysed": every, "tokens": every, "n_tokens": every,
        "analysed_with": {every: every}, "left_out": {every: every},
        "recording": {**recording, "hyperparameters": settings, "sources": [{"name": every, "bytes": every}]},
    }  # fmt: skip
    motion = results["motion"].to_dataset()
    motion = motion.assign_coords(
        token_text=("token", [HOSTILE[i % len(HOSTILE)] for i in range(motion.sizes["token"])])
    )
    groups = {"motion": motion, HOSTILE[0].replace("/", "\\"): own, "own": own}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=portable(attrs)), **groups})


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.filterwarnings("ignore:Glyph:UserWarning", "ignore:constrained_layout:UserWarning")
def test_names_and_attributes_never_become_markup(results: xr.DataTree, tmp_path: Path) -> None:
    tree = hostile_results(results)
    path = dx.report(tree, tmp_path / "hostile.html")
    text = path.read_text("utf-8")
    assert sum(tag in ("script", "svg") for tag, _ in Page(text).elements) == 2  # the series, and the page's own
    assert all("onerror" not in attrs and "onload" not in attrs for _, attrs in Page(text).elements)
    done = _chromium("--dump-dom", "--virtual-time-budget=3000", path.as_uri())
    assert "data-ran" not in re.sub(r"<body.*", "", done.stdout, flags=re.DOTALL)
    assert "with-scripts" in done.stdout  # the page's own script ran
    assert html.escape(HOSTILE[0]) in text
