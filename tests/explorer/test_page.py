"""The page of the explorer in a real browser: every view, the mouse, the keyboard, two widths, and who may see it."""

from __future__ import annotations

import http.client
import io
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests.explorer.test_data import train

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ANALYSES = ["motion", "phases", "lifecycle", "mechanism", "coherence", "census"]
MARKUP = "<img src=x onerror=alert(1)>.zarr"
pytest.importorskip("bokeh")

FRAME = """(name) => {
  for (const root of Object.values(Bokeh.index)) {
    if (root.model.name !== name) continue
    const views = [root]
    while (views.length) {
      const view = views.shift()
      if (view.model.type === "Figure" && view.model.visible) {
        view.el.scrollIntoView({block: "center"})
        const box = view.canvas_view.el.getBoundingClientRect(), frame = view.frame.bbox
        return [box.x + frame.x, box.y + frame.y, frame.width, frame.height]
      }
      views.push(...(view.child_views ?? []))
    }
  }
  return null
}"""
COUNTS = """() => {
  const found = {}
  for (const model of window.Bokeh?.documents[0]?._all_models.values() ?? []) {
    if (model.type === "Slider" && model.value < model.end) found.step = model.value
    if (model.type !== "ColumnDataSource") continue
    const get = (key) => model.data instanceof Map ? model.data.get(key) : model.data[key]
    if (get("cause") && get("image")) found.heat_map = get("image")[0].length
    else if (get("image")) found.story = get("image")[0].length
    if (get("frozen")) found.phases = get("frozen").length
    if (get("xs")) found.trajectories = get("xs").length
    if (get("phase")) found.cloud = get("x").length
    if (get("last motion")) { found.table = get("token").length; found.chosen = model.selected.indices.length }
    if (get("value")) found.series = (found.series ?? 0) + (get("value").length > 0)
    if (get("margin")) found.margins = get("margin").length
  }
  return found
}"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a short run whose token texts, name and label are markup."""
    folder = tmp_path_factory.mktemp("page")
    train(folder / "run.zarr", 60)
    dx.save_results(dx.analyze(folder / "run.zarr", analyses=ANALYSES), folder / MARKUP)
    return folder / MARKUP


@pytest.fixture
def served(results: Path) -> Iterator[str]:
    explorer = dx.explore(results)
    yield explorer.url
    explorer.close()


@pytest.fixture
def served_runs(results: Path) -> Iterator[str]:
    explorer = dx.explore([results, results.parent / "run.zarr"])
    yield explorer.url
    explorer.close()


def test_only_who_knows_the_token_sees_the_page(results: Path) -> None:
    page = dx.explore(results)
    try:
        root, _, token = page.url.rpartition("/")
        assert root.startswith("http://127.0.0.1:")
        assert len(token) > 20
        assert page.url in page._repr_html_()
        for path in ("", "/", "/other", f"/{token[:-1]}"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(root + path, timeout=30)
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==", "Origin": "http://example.org"}  # fmt: skip
        connection = http.client.HTTPConnection(root.removeprefix("http://"), timeout=30)
        connection.request("GET", f"/{token}/ws", headers=upgrade)
        assert connection.getresponse().status == 403
        with pytest.raises(InputError, match="is in use"):
            dx.explore(results, port=int(root.rpartition(":")[2]))
    finally:
        page.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_selection_with_the_mouse_changes_every_view(served: str, served_runs: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(60_000)
        playwright.expect.set_options(timeout=60_000)
        requests: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(f"dialog: {dialog.message}"))
        page.goto(served)

        def wait_for(**counts: int) -> None:
            enough = "Object.entries(wanted).every(([name, n]) => found[name] >= n)"
            page.wait_for_function(f"(wanted) => {{ const found = ({COUNTS})(); return {enough} }}", arg=counts)

        def box(name: str) -> Any:
            """Return where a plot is, once nothing moves it any more: later data may change what is above it."""
            before = None
            while (found := page.evaluate(FRAME, name)) != before or found is None:
                before = found
                page.wait_for_timeout(250)
            return found

        wait_for(heat_map=12 * 60, phases=60, table=12, cloud=12, series=2)
        page.get_by_text("rounded to zero").first.wait_for()
        # every row is drawn again with what was opened later
        playwright.expect(page.get_by_text("(null)")).to_have_count(0)
        python = page.get_by_label("Selection in Python")
        playwright.expect(python).to_have_value("rec")

        x, y, width, height = box("heat_map")
        page.mouse.move(x + 0.3 * width, y + 0.06 * height)
        page.mouse.down()
        page.mouse.move(x + 0.5 * width, y + 0.1 * height, steps=3)
        page.mouse.move(x + 0.6 * width, y + 0.21 * height, steps=3)
        page.mouse.up()
        wait_for(trajectories=3, chosen=3, story=8, margins=8)
        playwright.expect(python).to_have_value(re.compile(r"^rec\.sel\(token=\["))

        x, y, width, height = box("phases")
        page.mouse.click(x + 0.5 * width, y + 0.5 * height)
        wait_for(step=25)
        step = page.evaluate(COUNTS)["step"]
        assert 25 <= step <= 35

        link = page.wait_for_function(  # the server changes it after the slider
            "() => [...Bokeh.documents[0]._all_models.values()].map((m) => m.value)"
            ".find((value) => typeof value === 'string' && /^http.*[?&]step=/.test(value))"
        ).json_value()
        chosen = python.input_value()

        search = page.get_by_label("Find tokens")
        for _ in range(80):  # by keyboard alone
            page.keyboard.press("Tab")
            if search.evaluate("(element) => element.getRootNode().activeElement === element"):
                break
        page.keyboard.type("/img|x.2/")
        page.keyboard.press("Enter")
        page.get_by_text("2 of 12").wait_for()
        page.get_by_role("button", name="Select the found").focus()
        page.keyboard.press("Enter")
        page.wait_for_function(f"() => ({COUNTS})().trajectories === 2")
        assert page.locator("img").count() == 0

        page.goto(link)
        wait_for(trajectories=3)
        playwright.expect(python).to_have_value(chosen)
        page.wait_for_function(f"() => ({COUNTS})().step === {step}")
        for quantity in ("distance from step 0", "length of the displacement"):  # colours of another scale, and back
            page.get_by_label("Heat map shows").select_option(quantity)
            page.locator("div.bk-clearfix", has_text=re.compile(f"^{quantity}")).first.wait_for()
            x, y, width, height = box("heat_map")
            clip = {"x": x + 0.1 * width, "y": y + 0.1 * height, "width": 0.3 * width, "height": 0.8 * height}
            shown = Image.open(io.BytesIO(page.screenshot(clip=clip)))
            assert len(shown.getcolors(2**24) or []) > 20
        page.get_by_label("Find and select").select_option("the step of least coherence")
        page.get_by_text("is smallest at step").wait_for()
        page.set_viewport_size({"width": 375, "height": 800})
        page.wait_for_function("() => document.documentElement.scrollWidth <= 375")

        page.goto(served_runs)  # results and a recording of two runs, of which all lines are drawn
        page.get_by_text("first step with half frozen").wait_for()
        search.fill("2, 3")
        search.press("Enter")
        page.get_by_text("2 of 12").wait_for()
        page.get_by_role("button", name="Select the found").click()
        page.wait_for_function(f"() => ({COUNTS})().trajectories === 4")
        page.get_by_label("Run of the map").select_option("run")
        page.get_by_text("run: length of the displacement").wait_for()
        playwright.expect(python).to_have_value("rec.sel(token=[2, 3])")
        page.wait_for_function("() => document.documentElement.scrollWidth <= 375")
        assert page.locator("img").count() == 0
        browser.close()
    assert errors == []
    hosts = {request.split("/")[2] for request in requests if not request.startswith(("data:", "blob:"))}
    assert hosts == {url.split("/")[2] for url in (served, served_runs)}
