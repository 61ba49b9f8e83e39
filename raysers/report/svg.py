"""Pictures as part of a page: colours follow its theme, styles are classes, ids are unique.

A page without `style` attributes can forbid them, and with them whatever a stranger's text might
smuggle in. Only pictures made by `raysers.plotting` are taken: nothing that was read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.etree import ElementTree

from raysers.plotting import dark
from raysers.report.html import Html, raw

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b|#[0-9a-fA-F]{3}\b")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
#: What matplotlib writes that a page has no use for.
_NOT_SHOWN = frozenset({f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"})
_POINTS_PER_PX = 0.75


@dataclass(slots=True)
class Styles:
    """The styles of all pictures of a page: declarations by class, and the colours in them."""

    classes: dict[str, str] = field(default_factory=dict)
    colours: dict[str, None] = field(default_factory=dict)

    def class_of(self, declarations: str) -> str:
        """The class that stands for these declarations."""
        themed = _COLOUR.sub(self._variable, declarations)
        return self.classes.setdefault(themed, f"p{len(self.classes)}")

    def _variable(self, found: re.Match[str]) -> str:
        colour = found.group().lower()
        colour = colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
        self.colours[colour] = None
        return f"var(--c{colour[1:]})"

    def rules(self) -> str:
        """One rule per class."""
        return "".join(f".{name}{{{text}}}" for text, name in self.classes.items())

    def variables(self, *, on_dark: bool) -> str:
        """The colours of the pictures on a light or a dark page."""
        pairs = ((c, dark(c) if on_dark else c) for c in self.colours)
        return "".join(f"--c{name[1:]}:{value.lower()};" for name, value in pairs)


def inline(svg: bytes, prefix: str, styles: Styles) -> Html:
    """The picture as an `svg` element of a page.

    Args:
        svg: as `style.picture` makes it.
        prefix: put before every id, so that two pictures of a page share none.
        styles: of the page; the picture's are added.
    """
    root = ElementTree.fromstring(svg)
    _drop(root)
    for node in root.iter():
        _rename(node, prefix)
        _restyle(node, styles)
    width, height = (float(root.get(n, "0").rstrip("pt")) / _POINTS_PER_PX for n in _SIZE)
    root.attrib |= {"width": f"{width:.0f}", "height": f"{height:.0f}", "aria-hidden": "true"}
    root.attrib |= {"focusable": "false"}
    root.attrib.pop("version", None)
    ElementTree.register_namespace("", _SVG)
    markup = ElementTree.tostring(root, encoding="unicode")
    return raw(re.sub(r">\s+<", "><", markup.replace(f' xmlns="{_SVG}"', "", 1)))


_SIZE = ("width", "height")


def _drop(root: ElementTree.Element) -> None:
    """Remove what is not shown, and the paper behind the figure: the page has its own."""
    for parent in root.iter():
        for child in [c for c in parent if c.tag in _NOT_SHOWN]:
            parent.remove(child)
    for figure in root.iter(f"{{{_SVG}}}g"):
        for child in [c for c in figure if figure.get("id") == "figure_1" and _is_paper(c)]:
            figure.remove(child)


def _is_paper(node: ElementTree.Element) -> bool:
    return node.get("id") == "patch_1"


def _rename(node: ElementTree.Element, prefix: str) -> None:
    if node.tag == f"{{{_SVG}}}g":
        node.attrib.pop("id", None)  # groups are never referred to
    if name := node.get("id"):
        node.set("id", f"{prefix}-{name}")
    link = node.attrib.pop(f"{{{_XLINK}}}href", None)
    if link:
        node.set("href", f"#{prefix}-{link[1:]}")
    for key, value in list(node.attrib.items()):
        if "url(#" in value:
            node.set(key, _REFERENCE.sub(rf"url(#{prefix}-\1)", value))


def _restyle(node: ElementTree.Element, styles: Styles) -> None:
    declarations = ";".join(_declarations(node.attrib.pop("style", "")))
    if declarations:
        node.set("class", styles.class_of(declarations))


def _declarations(style: str) -> Iterator[str]:
    for part in filter(None, (p.strip() for p in style.split(";"))):
        name, _, value = part.partition(":")
        yield f"{name.strip()}:{value.strip()}"
