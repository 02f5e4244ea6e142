"""The documentation builds without a warning; its links resolve, and every public name has an entry."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

import deadtok_xr as dx
from deadtok_xr import schema
from deadtok_xr.cli import cli

pytestmark = pytest.mark.slow

pytest.importorskip("mkdocs")
ROOT = Path(__file__).parents[2]
ROOMS = {"how-to", "reference", "explanation"}
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""What a browser asks for when it shows a page; a link is followed by a person."""


@dataclass
class Page(HTMLParser):
    """What a page of the site links to, asks for, and can be linked to."""

    text: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = {name: value for name, value in attrs if value is not None}
        self.ids |= {has[name] for name in ("id", "name") if name in has}
        if tag == "a" and "href" in has:
            self.links.append(has["href"])
        if FETCHED.get(tag) in has:
            self.fetched.append(has[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}  # an advertisement of its theme
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path.read_text("utf-8")) for path in site.rglob("*.html")}


def test_every_page_is_built(pages: dict[str, Page]) -> None:
    sources = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {name.removesuffix(".md") + ".html" for name in sources} == set(pages) - {"404.html"}
    assert {name.partition("/")[0] for name in sources if "/" in name} == ROOMS


def test_links_and_anchors_resolve(site: Path, pages: dict[str, Page]) -> None:
    broken = []
    for name, page in pages.items():
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or (name == "404.html" and link.startswith("/")):
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            target = target / "index.html" if target.is_dir() else target
            there = target.resolve().relative_to(site.resolve()).as_posix()
            missing = parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].ids
            if not target.is_file() or missing:
                broken.append(f"{name}: {link}")
    assert not broken


def test_site_loads_nothing_from_other_hosts(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        assert not [url for url in page.fetched if re.match(r"(https?:)?//", url)], name
        scripts = re.findall(r"<script(?:(?!src=)[^>])*>(.*?)</script>", page.text, re.DOTALL)
        assert not [text for text in scripts if "http" in text], name
        # for these two the theme's own script would fetch something
        assert 'class="mermaid"' not in page.text
        assert 'data-md-component="source"' not in page.text
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", path.read_text("utf-8")), path


def test_every_public_name_has_an_entry(pages: dict[str, Page]) -> None:
    ids = {name for page, found in pages.items() if page.startswith("reference/") for name in found.ids}
    modules = [name for name in dx.__all__ if inspect.ismodule(getattr(dx, name))]
    names = [name for name in dx.__all__ if name not in modules and name != "__version__"]
    for module in modules:
        members = getattr(dx, module)
        public = getattr(members, "__all__", None) or [
            key
            for key, value in vars(members).items()
            if not key.startswith("_")
            and getattr(value, "__module__", None) == members.__name__
            and (inspect.isfunction(value) or inspect.isclass(value))
        ]
        names += [f"{module}.{key}" for key in public]
    assert {"Recorder", "motion", "plot.phases", "bfloat16.ulp", "errors.InputError"} <= set(names)
    assert not [name for name in names if f"deadtok_xr.{name}" not in ids]
    assert "__version__" in pages["reference/index.html"].text


def test_every_command_and_option_has_an_entry(pages: dict[str, Page]) -> None:
    page = pages["reference/command-line.html"]
    text = unescape(re.sub(r"<[^>]+>", "", page.text))
    assert "--tokens [all|live|dead]" in text
    assert isinstance(cli, click.Group)
    for name, command in cli.commands.items():
        assert f"deadtok-{name}" in page.ids
        assert all(option in text for parameter in command.params for option in parameter.opts if option[0] == "-")
    assert text.count("Example:") == len(cli.commands)


def test_the_store_format_is_that_of_the_schema() -> None:
    text = (ROOT / "docs" / "reference" / "store.md").read_text("utf-8")
    rows = [
        f"| `{v.name}` | {', '.join(v.dims)} | {', '.join(v.dtypes)} | {v.units} | {v.meaning} | {v.valid_from} |"
        for v in schema.VARIABLES.values()
    ]
    section = text.split("## Variables")[1].split("## Coordinates")[0]
    assert re.findall(r"^\| `\w+` \| [^|]*\|[^|]*\|[^|]*\|[^|]*\|[^|]*\|$", section, re.MULTILINE) == rows
    coordinates = text.split("## Coordinates")[1].split("## Attributes")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| \w+ \| (.*) \|$", coordinates, re.MULTILINE)) == dict(schema.COORDINATES)
    assert f"Version {schema.FORMAT_VERSION}." in text


def test_parameters_that_share_a_description_keep_their_types(pages: dict[str, Page]) -> None:
    section = pages["reference/analyses.html"].text.split('id="deadtok_xr.phases"')[1]
    text = " ".join(re.sub(r"<[^>]+>", "", section).split())
    assert "allow_gaps (bool, default: False )" in text.partition("Returns:")[0]
