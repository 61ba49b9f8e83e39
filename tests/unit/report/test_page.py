"""The page as a document: what assistive programs, printers and strict browsers need."""

from __future__ import annotations

import base64
import hashlib
import re
from itertools import pairwise

import pytest

from raysers.plotting import picture
from raysers.report.page import page
from raysers.report.parts import (
    Chart,
    Exhibit,
    Fact,
    Grid,
    Missing,
    Section,
    Tile,
    shown,
    with_bounds,
)
from tests.made_runs import EVIL
from tests.unit.report.test_html import Reader
from tests.unit.test_plotting import draw


def made() -> str:
    grid = Grid(
        caption=EVIL[0],
        columns=["model", EVIL[1], "n"],
        rows=[[EVIL[2], "0.635 [0.600, 0.660]", 12000], [EVIL[4], None, 0.5]],
        left_out=3,
    )
    chart = Chart(key="figure-2", title=EVIL[5], alt=EVIL[1], picture=picture(draw), grid=grid)
    exhibit = Exhibit(
        key="figure-2",
        name="Figure 2",
        title=EVIL[3],
        lead=EVIL[2],
        charts=[chart],
        grids=[grid],
        notes=EVIL,
        facts=[Fact(claim="it is", value=".5", section="4.1")],
    )
    sections = [
        Section(key="figures", title="Figures", exhibits=[exhibit]),
        Section(key="empty", title="Nothing"),
    ]
    missing = [Missing(name="Figure 3", title="Gone", why=EVIL[0], command=EVIL[1])]
    return page("Report", EVIL[0], [Tile(label="l", value=EVIL[0])], sections, missing, EVIL[2])


@pytest.fixture(scope="module")
def document() -> str:
    return made()


@pytest.fixture(scope="module")
def read(document) -> Reader:
    return Reader(document)


def test_no_hostile_text_becomes_an_element_or_an_attribute_that_acts(read):
    tags = [tag for tag, _ in read.tags]
    assert tags.count("script") == 1
    assert "img" not in tags
    names = {name for _, attributes in read.tags for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "style"]
    for evil in EVIL[:5]:
        assert evil in read.words


def test_the_page_allows_itself_its_own_sheet_and_script_only(document, read):
    (policy,) = [a["content"] for t, a in read.tags if t == "meta" and "http-equiv" in a]
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert allowed["default-src"] == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", document, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed[rule] == f"'sha256-{digest}'"


def test_headings_go_down_one_step_at_a_time_and_ids_are_unique(read):
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [a["id"] for _, a in read.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in read.tags:
        target = attributes.get("href") or ""
        assert not target.startswith("#") or target[1:] in ids
        named = attributes.get("aria-labelledby")
        assert named is None or named in ids


def test_landmarks_tables_and_figures_can_be_found_and_named(read):
    tags = [tag for tag, _ in read.tags]
    for landmark in ("header", "nav", "main", "footer"):
        assert tags.count(landmark) == 1
    assert tags.count("table") == tags.count("caption") == 3
    heads = [a.get("scope") for t, a in read.tags if t == "th"]
    assert set(heads) == {"col", "row"}
    pictures = [a for t, a in read.tags if a.get("role") == "img"]
    assert [p["aria-label"] for p in pictures] == [EVIL[1]]
    drawings = [a for t, a in read.tags if t == "svg"]
    assert all(a["aria-hidden"] == "true" for a in drawings)
    first = next(a for t, a in read.tags if t == "a")
    assert first == {"class": "skip", "href": "#main"}
    scrolled = [a for _, a in read.tags if a.get("class") == "scroll"]
    assert scrolled
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolled)
    assert "details" in tags
    assert "12,000" in read.words
    assert "3 more rows" in read.words


@pytest.mark.parametrize(
    ("value", "said"), [(-0.25, "−0.250"), (-0.0001, "0.000"), (None, "–"), (float("nan"), "–")]
)
def test_numbers_of_a_page(value, said):
    assert shown(value) == said


def test_a_value_stands_with_both_bounds_or_with_none():
    nan = float("nan")
    assert with_bounds(0.5, 0.4, 0.6) == "0.500 [0.400, 0.600]"
    assert with_bounds(0.5, nan, 0.6) == "0.500"
    assert with_bounds(nan, 0.4, 0.6) == "–"
