"""Markup that cannot be broken by what it shows: text is escaped unless it was built here.

Names of files, models and speakers and whatever was said in a clip come from strangers. A plain
`str` is always text; only `Html`, which this module alone makes from parts, is markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from raysers.text import printable

#: Elements without an end.
_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


class Html(str):
    """Markup that is shown as it is."""

    __slots__ = ()


Child = str | Iterable[str] | None


def text(value: object) -> Html:
    """The value as text, with a mark for every character that is none."""
    return Html(html.escape(printable(str(value)), quote=True))


def foreign(value: object) -> Html:
    """Text from the data, which may run in the other direction without turning its neighbours."""
    return element("bdi", str(value))


def element(name: str, /, *children: Child, **attributes: object) -> Html:
    """`<name attribute="…">children</name>`.

    Args:
        name: of the element; a constant, never from data.
        children: markup, text (escaped), lists of them; None is left out.
        attributes: `class_` is `class`, `aria_label` is `aria-label`; True is an attribute without
            a value, None and False leave it out; values are escaped.

    >>> element("a", "1 < 2", href='x"y')
    '<a href="x&quot;y">1 &lt; 2</a>'
    """
    opening = f"<{name}{''.join(_attribute(*pair) for pair in attributes.items())}>"
    if name in _VOID:
        return Html(opening)
    return Html(f"{opening}{joined(*children)}</{name}>")


def joined(*children: Child) -> Html:
    """The children one after the other."""
    return Html("".join(_markup(child) for child in children))


def raw(markup: str) -> Html:
    """Markup made by this package elsewhere: a picture, a style sheet. Never anything read."""
    return Html(markup)


def _markup(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return text(child)
    return joined(*child)


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    plain = name.rstrip("_").replace("_", "-")
    return f" {plain}" if value is True else f' {plain}="{text(value)}"'
