"""The report as one page: works from a disk, without a network, on paper, in light and dark.

The page forbids itself everything but its own style sheet and script, which it names by their
hashes; so even markup that slipped through could load and run nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources

from raysers.report.blocks import section_block
from raysers.report.html import Html, element, joined, raw
from raysers.report.parts import Exhibit, Missing, Section, Tile
from raysers.report.svg import Styles

_DARK_PAGE = (
    "--page:#15181d;--ink:#eceef1;--soft:#a3a9b3;--rule:#343a44;--tint:#1f242b;--link:#7cc0f5;"
    "--mark:#ff9c5c;--focus:#7cc0f5;"
)
_LIGHT_PAGE = (
    "--page:#fff;--ink:#1d2026;--soft:#5b616b;--rule:#e1e4e8;--tint:#f5f6f8;--link:#005a91;"
    "--mark:#b34e00;--focus:#0072b2;"
)


def page(
    title: str,
    lead: str,
    tiles: Sequence[Tile],
    sections: Sequence[Section],
    missing: Sequence[Missing],
    closing: str,
) -> str:
    """The whole document.

    Args:
        title: of the report.
        lead: under it.
        tiles: what to see first.
        sections: chapters; those without exhibits are left out.
        missing: what the runs have no data for.
        closing: at the end: what made the page, from what.
    """
    styles = Styles()
    there = [section for section in sections if section.exhibits]
    body = joined(
        element("a", "Skip to the results", class_="skip", href="#main"),
        element(
            "div",
            _header(title, lead),
            _tiles(tiles),
            _contents(there, missing),
            element(
                "main",
                [section_block(section, styles) for section in there],
                _missing(missing),
                id="main",
                tabindex="-1",
            ),
            element("footer", element("p", closing)),
            class_="frame",
        ),
    )
    return "<!doctype html>\n" + element("html", _head(title, styles), _body(body), lang="en")


def _body(body: Html) -> Html:
    return element("body", body, element("script", raw(_asset("page.js"))))


def _head(title: str, styles: Styles) -> Html:
    sheet = _sheet(styles)
    policy = (
        f"default-src 'none'; style-src '{_hash(sheet)}'; script-src '{_hash(_asset('page.js'))}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", raw(sheet)),
    )


def _sheet(styles: Styles) -> str:
    light = _LIGHT_PAGE + styles.variables(on_dark=False)
    dark = _DARK_PAGE + styles.variables(on_dark=True)
    return (
        f":root{{{light}}}{_asset('page.css')}{styles.rules()}"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}"
        ":root[data-theme=light]{color-scheme:light}"
        f"@media print{{:root,:root[data-theme],:root:not([data-theme=light])"
        f"{{color-scheme:light;{light}}}}}"
    )


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


@cache
def _asset(name: str) -> str:
    return resources.files("raysers").joinpath(f"assets/report/{name}").read_text("utf-8")


def _header(title: str, lead: str) -> Html:
    toggle = element("button", "Dark theme", id="theme", type="button", hidden=True)
    return element("header", element("div", element("h1", title), element("p", lead)), toggle)


def _tiles(tiles: Sequence[Tile]) -> Html | None:
    if not tiles:
        return None
    cells = [
        element(
            "div",
            element("dt", tile.label),
            element("dd", tile.value, class_="value"),
            element("dd", tile.note, class_="note") if tile.note else None,
        )
        for tile in tiles
    ]
    return element("div", element("dl", cells, class_="tiles"), class_="tiles-row")


def _contents(sections: Sequence[Section], missing: Sequence[Missing]) -> Html:
    items = [
        element(
            "li",
            element("a", section.title, href=f"#{section.key}"),
            element("ul", [_entry(e) for e in section.exhibits]),
        )
        for section in sections
    ]
    if missing:
        items.append(element("li", element("a", "What is missing", href="#missing")))
    heading = element("h2", "Contents", id="contents")
    return element("nav", heading, element("ul", items), aria_labelledby="contents")


def _entry(exhibit: Exhibit) -> Html:
    words = f"{exhibit.name}: {exhibit.title}" if exhibit.name else exhibit.title
    return element("li", element("a", words, href=f"#{exhibit.key}"))


def _missing(missing: Sequence[Missing]) -> Html | None:
    if not missing:
        return None
    items = [
        element(
            "li",
            element("span", one.name, class_="no"),
            element("strong", one.title),
            element("p", one.why),
            element("pre", element("code", one.command)),
        )
        for one in missing
    ]
    return element(
        "section",
        element("h2", "What is missing", id="missing-title"),
        element(
            "p",
            "The given runs have no data for these. Each command makes what is needed; then add "
            "its output to --runs.",
            class_="lead",
        ),
        element("ul", items, class_="missing"),
        id="missing",
        aria_labelledby="missing-title",
    )
