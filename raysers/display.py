"""How text and pictures are shown: untrusted text made safe, and the one look of every picture.

Names of files, corpora and speakers may hold tables, links, HTML, control characters or half a
byte, and must read as text in every viewer.

The same figure gives the same bytes: no dates, no random ids, and the font that comes with
matplotlib, whatever the reader's settings are. Text is drawn as outlines, so no reader needs a
font, and a dollar in a file name is a dollar. Colours are those of a light page; a dark one
inverts the picture.
"""

from __future__ import annotations

import io
import math
import re
import shlex
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from raysers.types import DIMENSIONS

INK, SOFT, FAINT, PAPER = "#222222", "#6B6B6B", "#E4E4E4", "#FFFFFF"
#: Okabe & Ito's colours, distinguishable with any colour vision; the last is for the rest.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BETWEEN = "#CC79A7", "#56B4E9", "#6B6B6B"
SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BETWEEN)
#: The colour of each dimension, in every picture.
COLOURS: Mapping[str, str] = dict(zip(DIMENSIONS, (VERMILION, BLUE, GREEN), strict=True))
#: The two ends of a scale that has a middle.
LOW, HIGH = VERMILION, BLUE
#: Darker variants for text: the palette's contrast to white (3 to 5) is enough for marks only.
_FOR_WORDS: Mapping[str, str] = {
    BLUE: "#00639B",
    VERMILION: "#B34E00",
    GREEN: "#00775A",
    PURPLE: "#A34D80",
    ORANGE: "#8F6200",
    SKY: "#1C74A8",
}
#: A picture in its formats: `png` and `svg`; empty when there is nothing to show.
Picture = dict[str, bytes]

#: Sizes of type, and the width of a picture that spans a page.
TITLE_PT, TEXT_PT, SMALL_PT = 11.0, 9.0, 7.5
WIDTH_IN = 7.2
_DPI = 160
_FORMATS: Mapping[str, Mapping[str, Any]] = {
    "png": {"dpi": _DPI, "metadata": {"Software": None}},
    "svg": {"metadata": {"Date": None, "Creator": None}},
}
#: Letters of an axis' name in a line.
_LETTERS_WIDE, _LETTERS_NARROW = 84, 38
#: Of marks and lines.
LINE_PT, INTERVAL_PT, DOT_PT = 1.8, 1.4, 5.0

_RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": TEXT_PT,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "raysers",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.major.size": 0,
}


def word_colour(colour: str) -> str:
    """`colour` for words: contrast to white of at least 4.5."""
    return _FOR_WORDS.get(colour, colour)


def series_colour(index: int) -> str:
    """Colour of the `index`-th of several things; beyond the palette all are grey."""
    return SERIES[min(index, len(SERIES) - 1)]


def picture(draw: Callable[[], Any]) -> Picture:
    """The `matplotlib.figure.Figure` that `draw` makes, as `png` and `svg` on white.

    `draw` is called under this module's settings and does not use pyplot's global state.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    settings = {**matplotlib.rcParamsDefault, **_RC, "backend": "agg"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # a box stands for a letter the font lacks; the tables beside a picture have it
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = draw()
        _make_printable(figure)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not again for every format
        found = {}
        for kind, how in _FORMATS.items():
            file = io.BytesIO()
            figure.savefig(file, facecolor=PAPER, format=kind, **how)
            found[kind] = file.getvalue()
        return found


def _make_printable(figure: Any) -> None:
    """Replace characters that are no text in every text of the figure."""
    from matplotlib.text import Text

    for axis in (a for panel in figure.axes for a in (panel.xaxis, panel.yaxis)):
        ticks = [label.get_text() for label in axis.get_ticklabels()]
        if (clean := list(map(printable, ticks))) != ticks:
            axis.set_ticklabels(clean)  # the axis writes its labels anew with every drawing
    for text in figure.findobj(Text):
        text.set_text(printable(text.get_text()))


def new_figure(height_in: float, width_in: float = WIDTH_IN) -> Any:
    """An empty figure with constrained layout."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.12, hspace=0.02, wspace=0.02)
    return Figure(figsize=(width_in, height_in), layout=layout)


def panel_title(axis: Any, text: str, *, colour: str = INK, pad_pt: float = 10) -> None:
    """The name of a panel, flush left above it."""
    axis.set_title(text, loc="left", fontsize=TITLE_PT, color=colour, pad=pad_pt)


def value_grid(axis: Any, along: str = "y", *, most: int = 6) -> None:
    """Faint lines across the panel at round values of the axis `along`."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10])
    (axis.yaxis if along == "y" else axis.xaxis).set_major_locator(ticks)
    axis.grid(axis=along)


def axis_name(axis: Any, text: str) -> None:
    """The name of the lower axis, flush right below it; its width takes no part in the layout."""
    wide = axis.figure.get_figwidth() > WIDTH_IN / 2 + 1
    lines = textwrap.wrap(text, _LETTERS_WIDE if wide else _LETTERS_NARROW)
    axis.set_xlabel("\n".join(" " for _ in lines))
    axis.annotate(
        "\n".join(lines), (1, 0), xytext=(0, -20), xycoords="axes fraction", ha="right",
        textcoords="offset points", va="top", color=SOFT, annotation_clip=False,
    ).set_in_layout(False)  # fmt: skip


def name_rows(axis: Any, names: Sequence[str]) -> None:
    """The vertical axis as a list of names, the first on top."""
    axis.set_yticks(range(len(names)), list(names), color=INK)
    axis.set_ylim(len(names) - 0.5, -0.5)


def guide(axis: Any, at: float) -> None:
    """A dotted upright line at a reference value: chance, zero, the kept epoch."""
    axis.axvline(at, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)


def interval(axis: Any, value: float, bounds: tuple[float, float], at: float, colour: str) -> None:
    """A dot at `value` (NaN draws nothing) with its level interval; NaN bounds leave it alone."""
    if math.isnan(value):
        return
    if not any(map(math.isnan, bounds)):
        axis.hlines(at, *bounds, color=colour, linewidth=INTERVAL_PT, zorder=2)
    dot(axis, value, at, colour)


def dot(axis: Any, value: float, at: float, colour: str, along: str = "x", **how: Any) -> None:
    """A mark with a rim of the page's colour, not cut by the panel's edge."""
    x, y = (value, at) if along == "x" else (at, value)
    style = {"marker": "o", "ms": DOT_PT, "mec": PAPER, "mew": 0.8, "zorder": 4, **how}
    axis.plot([x], [y], linestyle="", color=colour, clip_on=False, **style)


def published(axis: Any, value: float, at: float, marker: str = "D") -> None:
    """The hollow mark of a published value."""
    if not math.isnan(value):
        dot(axis, value, at, INK, mfc="none", mec=INK, mew=1.1, ms=6, marker=marker, zorder=3)


def line(axis: Any, x: Sequence[float], y: Sequence[float], colour: str, **how: Any) -> None:
    """A line along the panel that is not cut in half at its edge; NaN leaves a gap."""
    style = {"linewidth": LINE_PT, "solid_capstyle": "round", "clip_on": False, "zorder": 3, **how}
    axis.plot(list(x), list(y), color=colour, **style)


def band(
    axis: Any, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str
) -> None:
    """The interval around a line."""
    axis.fill_between(list(x), list(low), list(high), color=colour, alpha=0.18, linewidth=0)


def end_label(axis: Any, height: float, text: str, colour: str) -> None:
    """The name of a line, to the right of the panel at that height."""
    axis.annotate(
        text, (1.0, height), xytext=(6, 0), xycoords=("axes fraction", "data"), va="center",
        textcoords="offset points", color=word_colour(colour), annotation_clip=False,
    )  # fmt: skip


def end_labels(axis: Any, lines: Mapping[str, tuple[float, str]], *, gap: float = 0.065) -> None:
    """Names of lines right of the panel (its limits are final), moved apart where they overlap.

    `lines` maps a name to the height at which its line ends and its colour; `gap` is the least
    distance as a share of the panel's height.
    """
    low, high = sorted(axis.get_ylim())
    apart = (high - low) * gap
    ends = {name: height for name, (height, _) in lines.items()}
    for name, height in spread(ends, gap=apart, low=low, high=high - apart / 2).items():
        end_label(axis, height, name, lines[name][1])


def above(
    axis: Any, where: tuple[float, float], coords: Any, right_pt: float, text: str, **how: Any
) -> None:
    """Soft text over the upper edge of a panel."""
    axis.annotate(
        text, where, xytext=(right_pt, 5), xycoords=coords, textcoords="offset points",
        color=SOFT, annotation_clip=False, **how,
    )  # fmt: skip


def spread(
    heights: Mapping[str, float], *, gap: float, low: float, high: float
) -> dict[str, float]:
    """Heights at least `gap` apart within `low..high`, in the same order, close to where they were.

    Those that touch move apart around their common middle.
    """
    names = sorted(heights, key=lambda name: heights[name])
    groups: list[list[str]] = [[name] for name in names]

    def placed(group: list[str]) -> list[float]:
        half = gap * (len(group) - 1) / 2
        middle = sum(heights[name] for name in group) / len(group)
        middle = min(max(middle, low + half), high - half)
        return [middle - half + gap * i for i in range(len(group))]

    i = 0
    while i + 1 < len(groups):
        if placed(groups[i + 1])[0] - placed(groups[i])[-1] < gap:
            groups[i : i + 2] = [groups[i] + groups[i + 1]]
            i = max(0, i - 1)
        else:
            i += 1
    return {n: y for group in groups for n, y in zip(group, placed(group), strict=True)}


def short(text: str, most: int = 28) -> str:
    """The text on one line, cut in its middle to at most so many characters."""
    line = " ".join(text.split())
    half = (most - 1) // 2
    return line if len(line) <= most else f"{line[: most - 1 - half]}…{line[-half:]}"


def model_names(models: Sequence[str], most: int = 28) -> dict[str, str]:
    """A short name of every model: its last folder, or more where that is not unique."""
    last = {model: model.rstrip("/").rpartition("/")[2] or model for model in models}
    twice = {name for name in last.values() if list(last.values()).count(name) > 1}
    return {m: short(m if name in twice else name, most) for m, name in last.items()}


#: What begins a construct somewhere in a line, bare addresses and mentions included.
_SPECIAL = re.compile(r"[\\`*_\[\]<>&|~$@#]|:(?=//)|(?<=www)\.", re.IGNORECASE)
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_LONGEST = 300
_NAMED = 3
#: Shown for a character that cannot be.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
#: Characters that are no text: controls, half characters, and those no document may hold.
_NO_TEXT = frozenset({"Cc", "Cs", "Cn"})


def visible(value: object) -> str:
    """The value with a space for every control, line end and stray byte."""
    return "".join(" " if unicodedata.category(c) in _INVISIBLE else c for c in str(value))


def one_line(value: object) -> str:
    """The value as one visible line."""
    return " ".join(visible(value).split())


def plain(value: object) -> str:
    """The value as text within a sentence, a heading or a table's cell; cut when very long."""
    text = one_line(value)
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return _SPECIAL.sub(lambda match: "\\" + match.group(), text)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: int = 0) -> str:
    """A table of plain cells; its last `numbers` columns are flush right."""
    words = len(head) - numbers
    rule = ["---"] * words + ["---:"] * numbers
    lines = [[plain(name) for name in head], rule, *([plain(cell) for cell in r] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fenced(text: str, language: str) -> str:
    """A block of code that no run of backticks within can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def printable(text: str) -> str:
    r"""The text with a visible mark for every character that is none; line ends and tabs stay.

    >>> printable("s\x1b1"), printable("a\ud800b"), printable("two\nlines")
    ('s�1', 'a�b', 'two\nlines')
    """
    return "".join(
        REPLACEMENT if unicodedata.category(c) in _NO_TEXT and c not in "\n\t" else c for c in text
    )


def some(names: Iterable[str]) -> str:
    """How many names there are and the first few of them, for a note.

    >>> some(["d", "b", "a", "c"])
    '4 (a, b, c, ...)'
    """
    found = sorted(names)
    more = ", ..." if len(found) > _NAMED else ""
    return f"{len(found):,} ({', '.join(found[:_NAMED])}{more})"


_EXTRA = re.compile(r"pip install '?raysers\[(\w+)\]'?")


def with_packages(message: str) -> str:
    """The message with `pip install 'raysers[EXTRA]'` as pip can do it.

    In a clone that is the clone's path; elsewhere the packages of the extra themselves.
    """

    def install(advice: re.Match[str]) -> str:
        clone = Path(__file__).parents[1]
        if (clone / "pyproject.toml").is_file():
            return f"pip install {shlex.quote(f'{clone}[{advice[1]}]')}"
        mark = re.compile(rf"\s*;\s*extra == ['\"]{advice[1]}['\"]$")
        lines = metadata.requires("raysers") or []
        return (
            f"pip install {shlex.join(mark.sub('', line) for line in lines if mark.search(line))}"
        )

    return _EXTRA.sub(install, message)
