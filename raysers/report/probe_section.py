"""Figures 10 and 11 of the report: the probe's own pictures, with the tables they come from.

The pictures are those of `words.figures`; only what a page needs around them is made here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.evaluation.rows import Row
from raysers.plotting import Picture, short
from raysers.report.evidence import ReportData
from raysers.report.parts import Cell, Chart, Grid, last_part, shown, with_bounds
from raysers.types import DIMENSIONS
from raysers.words.figures import (
    ccc_figure,
    distribution_figure,
    sentiment_figure,
    word_chart,
    word_cloud,
)

_MOST = 400


def word_charts(found: ReportData) -> Iterator[Chart | None]:
    """The words of each probe, as clouds (where the package for it is there) and as dots."""
    for number, words in enumerate(by_source(found.words)):
        ranked = [row for row in words.to_pylist() if row["side"]]
        if not ranked:
            continue
        grid = _word_grid(ranked)
        source = short(last_part(ranked[0]["source"] or "labels"), 40)
        ends = f"Lowest: {_some(ranked, 'low')}. Highest: {_some(ranked, 'high')}."
        clouds = word_cloud(words) if importlib.util.find_spec("wordcloud") else {}
        title = f"words by valence, {source}"
        yield _chart(f"figure-10-cloud-{number}", title, ends, clouds, grid)
        title = f"the most extreme of them, {source}"
        yield _chart(f"figure-10-words-{number}", title, ends, word_chart(words), grid)


def by_source(tables: Sequence[pa.Table]) -> Iterator[pa.Table]:
    """The words as the labels rate them, then as each model does."""
    for table in tables:
        for source in pc.unique(table["source"]).to_pylist():
            yield table.filter(pc.equal(table["source"], source))


def sentence_charts(found: ReportData) -> Iterator[Chart | None]:
    """Scores of the sentences by the sentiment of their words."""
    rows = [row for row in found.rows() if row.group == "sentiment"]
    for number, table in enumerate(found.sentences):
        shifts = [row for row in rows if row.metric == "mean_shift"]
        grid = _row_grid("Shift of the mean score by the sentiment of the words", shifts)
        said = "Distributions of the scores of positive, neutral and negative sentences."
        picture = sentiment_figure(table, rows)
        yield _chart(f"figure-10-sentences-{number}", "spoken sentences", said, picture, grid)


def respoken_charts(found: ReportData) -> Iterator[Chart | None]:
    """CCC before and after re-speaking, and the distributions of the scores."""
    rows = [row for row in found.rows() if row.group == "speech"]
    ccc = [row for row in rows if row.metric == "ccc"]
    grid = _row_grid("CCC with the labels, and of the re-spoken scores with the original", ccc)
    said = "CCC of the original and of the re-spoken clips, by model and dimension."
    yield _chart("figure-11", "agreement with the labels", said, ccc_figure(rows), grid)
    for number, table in enumerate(found.respoken):
        means = [row for row in rows if row.metric in ("mean", "sd", "js_distance")]
        caption = "Mean and spread of the scores, and how far the distributions are apart"
        said = "Distributions of labels, original and re-spoken scores."
        picture = distribution_figure(table, rows)
        own = _row_grid(caption, means)
        yield _chart(f"figure-11-scores-{number}", "distribution of the scores", said, picture, own)


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _chart(key: str, title: str, alt: str, picture: Picture, grid: Grid) -> Chart | None:
    if not picture:
        return None
    return Chart(key=key, title=title, alt=alt, picture=picture, grid=grid)


def _some(rows: Sequence[Mapping[str, Any]], side: str) -> str:
    mine = sorted((r for r in rows if r["side"] == side), key=lambda r: r["rank"])
    return ", ".join(f"{r['word']} ({shown(r['valence'], 2)})" for r in mine[:5]) or "none"


def _word_grid(rows: Sequence[Mapping[str, Any]]) -> Grid:
    cells: list[list[Cell]] = [
        [
            row["word"],
            row["side"],
            with_bounds(row["valence"], _number(row["ci_low"]), _number(row["ci_high"])),
            row["occurrences"],
        ]
        for row in sorted(rows, key=lambda r: r["valence"])
    ]
    return Grid(
        caption="Words by the mean valence of the clips they are said in",
        columns=["word", "side", "valence [95 %]", "occurrences"],
        rows=cells[:_MOST],
        left_out=max(0, len(cells) - _MOST),
    )


def _row_grid(caption: str, rows: Sequence[Row]) -> Grid:
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        key = row.group_value, row.metric, row.model, f"{row.dataset} {row.split}"
        lines.setdefault(key, {})[row.dimension] = row
    cells: list[list[Cell]] = [
        [
            key[0],
            key[1].replace("_", " "),
            key[2],
            key[3],
            *(_bounded(found.get(d)) for d in DIMENSIONS),
        ]
        for key, found in lines.items()
    ]
    columns = ["of", "measure", "model", "data", *(f"{d} [95 %]" for d in DIMENSIONS)]
    left = max(0, len(cells) - _MOST)
    return Grid(caption=caption, columns=columns, rows=cells[:_MOST], left_out=left)


def _bounded(row: Row | None) -> Cell:
    return "–" if row is None else with_bounds(row.value, row.ci_low, row.ci_high)
