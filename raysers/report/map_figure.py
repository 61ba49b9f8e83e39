"""Embeddings of clips on a plane, coloured by what is known of the clips (Figure 8).

t-SNE keeps neighbours together; distances between groups, and their sizes, mean nothing. The same
clips give the same plane: it starts from their principal components, and its seed is fixed.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysers import plotting
from raysers.evaluation.metrics import Floats
from raysers.plotting import BLUE, SOFT, VERMILION, Picture, series_colour, word_colour
from raysers.report.dots import NARROW_IN

#: Fewer clips than this make no map; more than `MOST` are sampled.
FEWEST, MOST = 20, 800
_PERPLEXITY, _COMPONENTS, _SEED = 30.0, 50, 0
_PANEL_IN, _DOT_AREA = 3.4, 9.0
_NAMED = 6
#: Letters in a line of names over a panel, and the height of the line on the plane.
_LETTERS, _LINE = 44, 0.12
#: Steps of a scale from low to high, through grey.
_STEPS = (VERMILION, "#E09A63", "#A9A9A9", "#6FA6CC", BLUE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Clips with their embeddings and what is known of them.

    Attributes:
        clip_id: [n].
        embedding: [n, hidden].
        known: by name (`corpus`, `sex`, `speaker`), a text per clip; empty: unknown.
        valence: label, or else prediction, per clip; NaN: neither.
        labelled: whether `valence` is the label.
    """

    clip_id: Sequence[str]
    embedding: Floats
    known: Mapping[str, Sequence[str]]
    valence: Floats
    labelled: bool


def has_tsne() -> bool:
    """Whether the package that makes the map is installed."""
    return importlib.util.find_spec("sklearn") is not None


def places(embedding: Floats) -> Floats:
    """Where each clip is on the plane: [n, hidden] -> [n, 2], in -1..1.

    Needs `FEWEST` clips and scikit-learn (van der Maaten and Hinton 2008).
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    centred = np.asarray(embedding, np.float64)
    centred = centred - centred.mean(axis=0)
    parts = min(_COMPONENTS, *centred.shape)
    reduced = PCA(n_components=parts, random_state=_SEED, svd_solver="full").fit_transform(centred)
    perplexity = min(_PERPLEXITY, (len(centred) - 1) / 3)
    found = TSNE(
        n_components=2, perplexity=perplexity, init="pca", random_state=_SEED, n_jobs=1
    ).fit_transform(reduced)
    found = found - found.mean(axis=0)
    return np.asarray(found / (np.abs(found).max() or 1.0), np.float64)


def map_chart(clips: Embedded, plane: Floats, *, narrow: bool = False) -> Picture:
    """A panel for each thing known of the clips, all of the same plane [n, 2]."""
    names = [name for name, values in clips.known.items() if any(values)]
    scored = bool(np.isfinite(clips.valence).any())
    if not len(clips.clip_id) or not (names or scored):
        return {}
    return plotting.picture(
        lambda: _draw(clips, plane, names, scored, narrow=narrow), plotting.formats(narrow=narrow)
    )


def _draw(
    clips: Embedded, plane: Floats, names: Sequence[str], scored: bool, *, narrow: bool
) -> Any:
    count = len(names) + scored
    across = 1 if narrow else min(2, count)
    down = math.ceil(count / across)
    width_in = NARROW_IN if narrow else plotting.WIDTH_IN
    figure = plotting.new_figure(down * (width_in / across if across > 1 else _PANEL_IN), width_in)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, name in zip(axes, names, strict=False):
        _frame(axis, name)
        _groups(axis, plane, clips.known[name])
    if scored:
        _frame(axes[len(names)], "valence, labels" if clips.labelled else "valence, predicted")
        _scale(axes[len(names)], plane, clips.valence)
    return figure


def _frame(axis: Any, title: str) -> None:
    axis.set_xlim(-1.08, 1.08)
    axis.set_aspect("equal", anchor="NW")
    plotting.panel_title(axis, title, pad_pt=4)


def _groups(axis: Any, plane: Floats, values: Sequence[str]) -> None:
    """Dots by group, the larger ones each in a colour and named in it over the panel."""
    named = sorted(name for name, _ in Counter(v for v in values if v).most_common(_NAMED))
    labels = np.array(values, dtype=object)
    rest = ~np.isin(labels, named)
    _dots(axis, plane[rest], SOFT)
    words = []
    for index, name in enumerate(named):
        _dots(axis, plane[labels == name], series_colour(index))
        words.append((plotting.short(name, 12), series_colour(index)))
    _words(axis, [*words, ("others", SOFT)] if rest.any() else words)


def _words(axis: Any, words: Sequence[tuple[str, str]]) -> None:
    """Words over the dots, each behind a dot of its colour, in as many lines as they need."""
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea, VPacker

    lines: list[list[tuple[str, str]]] = [[]]
    for word in words:
        if lines[-1] and sum(len(text) + 4 for text, _ in [*lines[-1], word]) > _LETTERS:
            lines.append([])
        lines[-1].append(word)
    rows: list[Any] = []
    for line in lines:
        entries: list[Any] = []
        for text, colour in line:
            parts = (("\N{BLACK CIRCLE}", colour), (text, word_colour(colour)))
            areas: list[Any] = [
                TextArea(part, textprops={"color": c, "fontsize": plotting.SMALL_PT + 0.5})
                for part, c in parts
            ]
            entries.append(HPacker(children=areas, pad=0, sep=2))
        rows.append(HPacker(children=entries, pad=0, sep=8))
    axis.set_ylim(-1.08, 1.08 + _LINE * len(rows))
    box = AnchoredOffsetbox(
        "upper left",
        child=VPacker(children=rows, pad=0, sep=3),
        pad=0,
        borderpad=0.2,
        frameon=False,
    )
    box.set_in_layout(False)  # or wide words would leave the panels no room
    axis.add_artist(box)


def _scale(axis: Any, plane: Floats, valence: Floats) -> None:
    """Dots by the fifth of the clips their valence is in, from low to high."""
    there = np.isfinite(valence)
    edges = np.quantile(valence[there], np.linspace(0, 1, len(_STEPS) + 1)[1:-1])
    step = np.searchsorted(edges, valence, side="right")
    for index, colour in enumerate(_STEPS):
        _dots(axis, plane[there & (step == index)], colour)
    low, high = (float(np.quantile(valence[there], q)) for q in (0.1, 0.9))
    _words(axis, [(f"low, about {low:.2f}", VERMILION), (f"high, about {high:.2f}", BLUE)])


def _dots(axis: Any, plane: Floats, colour: str) -> None:
    if len(plane):
        size = math.sqrt(_DOT_AREA)
        axis.plot(
            np.round(plane[:, 0], 3), np.round(plane[:, 1], 3), "o", color=colour, ms=size, mew=0,
            alpha=0.8, linestyle="",
        )  # fmt: skip
