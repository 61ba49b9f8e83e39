"""Whatever a stranger writes comes out as text, and pictures become parts of a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from raysers.report.html import element, foreign, joined, text
from raysers.report.svg import Styles, inline
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


@given(st.text() | st.sampled_from(EVIL))
def test_any_text_reads_back_in_an_element_and_in_an_attribute(words):
    for markup in (foreign(words), element("bdi", words, title=words)):
        read = Reader(markup)
        assert [tag for tag, _ in read.tags] == ["bdi"]
        for shown in (read.words, read.tags[0][1].get("title", read.words)):
            assert len(shown) == len(words)
            assert all(
                a == b or (b == "\ufffd" and not a.isprintable())
                for a, b in zip(words, shown, strict=True)
            )


def test_markup_made_here_is_not_escaped_twice_and_none_is_left_out():
    inner = element("b", "a < b")
    assert joined(inner, None, ["&", inner]) == "<b>a &lt; b</b>&amp;<b>a &lt; b</b>"
    assert text(inner) == "&lt;b&gt;a &amp;lt; b&lt;/b&gt;"
    assert element("input", hidden=True, disabled=None, checked=False) == "<input hidden>"


def test_a_picture_in_a_page_has_no_style_attributes_and_ids_of_its_own():
    from raysers.plotting import picture

    svg, styles = picture(draw)["svg"], Styles()
    one, other = inline(svg, "one", styles), inline(svg, "two", styles)
    roots = [ElementTree.fromstring(markup) for markup in (one, other)]
    ids = [{n.get("id") for n in root.iter() if n.get("id")} for root in roots]
    assert ids[0]
    assert not ids[0] & ids[1]
    for root, own in zip(roots, ids, strict=True):
        assert not [
            n for n in root.iter() if n.get("style") or n.tag.endswith(("}style", "}metadata"))
        ]
        wanted = {n.get("href")[1:] for n in root.iter() if n.get("href")}
        wanted |= set(
            re.findall(r"url\(#([^)]+)\)", ElementTree.tostring(root, encoding="unicode"))
        )
        assert wanted <= own
    known = set(re.findall(r"\.(p\d+)\{", styles.rules()))
    assert known == {n.get("class") for root in roots for n in root.iter() if n.get("class")}
