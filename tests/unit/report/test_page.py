"""The page as a document: untrusted text stays text, and the policy names its own parts only."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from raysers.plotting import picture
from raysers.report.page import Chart, Exhibit, Missing, Section, page, shown, table, with_bounds
from tests.made_runs import EVIL
from tests.unit.test_plotting import draw


class Reader(HTMLParser):
    """Tags, attributes and text of a document, as a browser would have them."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def document() -> str:
    rows = [[EVIL[2], "0.635 [0.600, 0.660]", 12000], [EVIL[4], None, 0.5], *[["x", 1, 2]] * 401]
    numbers = table(EVIL[0], ["model", EVIL[1], "n"], rows)
    chart = Chart(title=EVIL[5], alt=EVIL[1], pictures={"a": picture(draw)}, numbers=numbers)
    clip = {"why": [EVIL[0]], "audio": "", "silent": EVIL[1], "numbers": {EVIL[1]: (0.5, "0.50")}}
    clips = {
        "rows": [clip | {"file": EVIL[2], "error": EVIL[0]}],
        "reasons": [EVIL[0]],
        "columns": [EVIL[1]],
        "ratings": "rate.csv",
    }
    exhibit = Exhibit(
        key="figure-2",
        name="Figure 2",
        title=EVIL[3],
        lead=EVIL[2],
        charts=[chart],
        tables=[numbers],
        notes=EVIL,
        facts=numbers,
        clips=clips,
    )
    return page(
        title=EVIL[0],
        lead=EVIL[0],
        tiles=[("label", EVIL[0], EVIL[1])],
        sections=[Section(key="figures", title=EVIL[0], exhibits=[exhibit])],
        missing=[Missing(name=EVIL[0], title="Gone", why=EVIL[0], command=EVIL[1])],
        gap=EVIL[0],
        closing=EVIL[2],
    )


def test_no_hostile_text_becomes_an_element_or_an_attribute_that_acts(document):
    read = Reader(document)
    tags = [tag for tag, _ in read.tags]
    assert tags.count("script") == 1
    assert [a["src"][:19] for tag, a in read.tags if tag == "img"] == ["data:image/svg+xml;"]
    names = {name for _, attributes in read.tags for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "style"]
    for evil in EVIL[:5]:
        assert evil in read.words
    assert "\x00" not in document
    assert "12,000" in read.words
    assert "3 more rows" in read.words


def test_the_page_allows_itself_its_own_sheet_and_script_only(document):
    tags = Reader(document).tags
    (policy,) = [a["content"] for t, a in tags if t == "meta" and "http-equiv" in a]
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert allowed["default-src"] == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", document, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed[rule] == f"'sha256-{digest}'"


def test_headings_go_down_one_step_at_a_time_and_ids_are_unique(document):
    tags = Reader(document).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        target = attributes.get("href") or ""
        assert not target.startswith("#") or target[1:] in ids


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
