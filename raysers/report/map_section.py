"""Figure 8 of the report: a map of the embeddings of every run that has them.

The table behind it is of the groups: where their middles are, and how much of a clip's
neighbourhood is of the same group, which is what the eye takes from such a picture.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from raysers.evaluation.metrics import Floats
from raysers.plotting import short
from raysers.report.evidence import ReportData
from raysers.report.map_figure import FEWEST, Embedded, has_tsne, map_chart, places
from raysers.report.parts import Cell, Chart, Grid, shown

_NEIGHBOURS = 10


def map_charts(found: ReportData) -> Iterator[Chart | None]:
    """A map per run with embeddings of enough clips."""
    if not has_tsne():
        return
    several = len(found.maps) > 1
    for number, (folder, clips) in enumerate(found.maps.items()):
        if len(clips.clip_id) < FEWEST:
            continue
        plane = places(clips.embedding)
        picture = map_chart(clips, plane)
        if picture:
            yield Chart(
                key=f"figure-8-{number}" if number else "figure-8",
                title=short(folder.rstrip("/").rpartition("/")[2], 40) if several else "",
                alt=_in_words(clips),
                picture=picture,
                grid=neighbour_grid(clips),
                narrow=map_chart(clips, plane, narrow=True),
            )


def neighbour_grid(clips: Embedded) -> Grid:
    """How much of the neighbourhood of a group's clips is of the same group.

    The neighbourhood is the ten nearest clips in the space of the embeddings, not on the map; by
    chance it would hold the group's own share of the clips.
    """
    nearest = _nearest(np.asarray(clips.embedding, np.float64))
    rows: list[list[Cell]] = []
    for name, values in clips.known.items():
        labels = np.array(values, dtype=object)
        for value, count in Counter(v for v in values if v).most_common():
            mine = labels == value
            share = float((labels[nearest[mine]] == value).mean())
            rows.append([name, value, count, shown(share, 2), shown(count / len(labels), 2)])
    return Grid(
        caption="Of the ten nearest clips of a group's clips, the share that is of the group",
        columns=["known", "group", "clips", "nearest of the same", "by chance"],
        rows=rows,
    )


def _nearest(embedding: Floats) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    """Row numbers of the nearest other clips, [n, hidden] -> [n, at most 10]."""
    squares = (embedding**2).sum(axis=1)
    distance = squares[:, None] + squares[None, :] - 2 * embedding @ embedding.T
    np.fill_diagonal(distance, math.inf)
    order = np.argsort(distance, axis=1, kind="stable")
    return np.asarray(order[:, : min(_NEIGHBOURS, len(embedding) - 1)], np.intp)


def _in_words(clips: Embedded) -> str:
    known = [name for name, values in clips.known.items() if any(values)]
    return (
        f"Map of the embeddings of {len(clips.clip_id):,} clips, coloured by "
        f"{_listed([*known, 'valence'])}. The table below says how much of a group's "
        "neighbourhood is its own."
    )


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]
