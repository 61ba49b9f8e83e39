"""Embeddings of clips on a plane, coloured by what is known of the clips (Figure 8).

t-SNE keeps neighbours together; distances between groups, and their sizes, mean nothing. The same
clips give the same plane: it starts from their principal components, and its seed is fixed. The
table is of the space of the embeddings itself: how much of a clip's neighbourhood is of its group.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysers import display
from raysers.display import BLUE, SOFT, VERMILION, series_colour, word_colour
from raysers.report.charts import Cell, Chart, shown, table
from raysers.report.evidence import Evidence, ReportRun, columns_of, frame_of, stream
from raysers.types import DIMENSIONS, Status

#: Fewer clips than this make no map; more than `MOST` are sampled.
FEWEST, MOST = 20, 800
_KNOWN = ("corpus", "sex", "speaker")
_PERPLEXITY, _COMPONENTS, _SEED, _NEIGHBOURS, _NAMED = 30.0, 50, 0, 10, 6
#: Steps of a scale from low to high, through grey.
_STEPS = (VERMILION, "#E09A63", "#A9A9A9", "#6FA6CC", BLUE)


def map_charts(found: Evidence) -> Iterator[Chart]:
    """A map per annotation with embeddings of enough clips; those of studies side by side."""
    if importlib.util.find_spec("sklearn") is None:
        return
    folders = [run.folder for run in (*found.runs, *found.cell_runs)]
    alone, together = list[tuple[str, pd.DataFrame]](), list[tuple[str, pd.DataFrame]]()
    for run in found.of_job("annotate"):
        if len(clips := read_map(run, folders)) >= FEWEST:
            (together if run.model else alone).append((run.model or run.name, clips))
    groups = [*([one] for one in alone), *filter(None, [together])]
    for number, maps in enumerate(groups):
        names = ", ".join(name for name, _ in maps)
        known = [n for n in (*_KNOWN, *DIMENSIONS) if any(len(_known(c, n)) for _, c in maps)]
        named = [name for name in known if name in _KNOWN]
        rows = [[name, *row] for name, clips in maps for row in neighbours(clips, named)]
        key = f"figure-8-{number}" if number else "figure-8"
        alt = f"Maps of the embeddings of {names}, {len(maps[0][1]):,} clips, coloured by "
        alt += f"{', '.join(known)}. The table is about their neighbourhoods."
        pictures = {key: display.picture(partial(_draw, maps, known))}
        caption = "Of the ten nearest clips of a group's clips, the share that is of the group"
        head = ["model", "known", "group", "clips", "nearest of the same", "by chance"]
        title = names if len(groups) > 1 else ""
        yield Chart(title, alt, pictures, table(caption, head, rows))


def _known(clips: pd.DataFrame, name: str) -> pd.Series:
    return clips[name][(clips[name] != "") & clips[name].notna()]


def read_map(run: ReportRun, folders: Sequence[str], *, most: int = MOST) -> pd.DataFrame:
    """A sample of the clips with embeddings, with what the manifests of `folders` know of them.

    The sample is of the clips whose hashed ids are smallest: the same in any order of the parts.
    """
    if "embedding" not in columns_of(run.folder, "annotations"):
        return pd.DataFrame()
    clips = frame_of(run.folder, "annotations", ("clip_id", "status"))
    clips = clips[clips.status == str(Status.OK)]
    rank = pd.util.hash_array(clips.clip_id.to_numpy(object))
    wanted = pa.array(clips.clip_id.iloc[np.argsort(rank, kind="stable")[:most]].sort_values())
    columns = ("clip_id", "embedding", *DIMENSIONS)
    parts = [
        part.filter(pc.is_in(part["clip_id"], wanted))
        for part in stream(run.folder, "annotations", columns)
    ]
    found = pa.concat_tables(parts).to_pandas().sort_values("clip_id", ignore_index=True)
    labels = [pd.DataFrame(columns=["clip_id", *_KNOWN, *DIMENSIONS])]
    for folder, name in product(dict.fromkeys(folders), ("manifest", "clips")):
        if {*columns_of(folder, name)} & {*_KNOWN, *DIMENSIONS}:
            for part in stream(folder, name, labels[0].columns):
                labels.append(part.filter(pc.is_in(part["clip_id"], wanted)).to_pandas())
    known = (
        pd.concat(labels).groupby("clip_id").first().reindex(found.clip_id).reset_index(drop=True)
    )
    for name in DIMENSIONS:
        is_label = bool(known[name].notna().any())
        values = pd.to_numeric(known[name] if is_label else found.get(name, math.nan))
        found = found.assign(**{name: values, f"{name}_is_label": is_label})
    return found.assign(**known[[*_KNOWN]].astype(object).fillna(""))


def neighbours(clips: pd.DataFrame, known: Sequence[str]) -> Iterator[list[Cell]]:
    """Per group, how much of its clips' neighbourhoods is of the group, and its share of all."""
    embedding = np.stack(clips.embedding.to_list()).astype(np.float64)
    squares = (embedding**2).sum(axis=1)
    distance = squares[:, None] + squares[None, :] - 2 * embedding @ embedding.T
    np.fill_diagonal(distance, math.inf)
    order = np.argsort(distance, axis=1, kind="stable")
    nearest = order[:, : min(_NEIGHBOURS, len(embedding) - 1)]
    for name in known:
        labels = clips[name].to_numpy(object)
        for value, count in _known(clips, name).value_counts(sort=True).items():
            share = float((labels[nearest[labels == value]] == value).mean())
            yield [name, str(value), int(count), shown(share, 2), shown(count / len(labels), 2)]


def places(clips: pd.DataFrame) -> NDArray[np.float64]:
    """Where each clip is on the plane: [n, 2] in -1..1 (van der Maaten and Hinton 2008)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    embedding = np.stack(clips.embedding.to_list()).astype(np.float64)
    centred = embedding - embedding.mean(axis=0)
    parts = min(_COMPONENTS, *centred.shape)
    reduced = PCA(n_components=parts, random_state=_SEED, svd_solver="full").fit_transform(centred)
    perplexity = min(_PERPLEXITY, (len(centred) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=_SEED, n_jobs=1)
    found = plane.fit_transform(reduced)
    found = found - found.mean(axis=0)
    return np.asarray(found / (np.abs(found).max() or 1.0), np.float64)


def _draw(maps: Sequence[tuple[str, pd.DataFrame]], known: Sequence[str]) -> Any:
    """A row of panels per thing known, in it every model; of one model two panels a row."""
    planes = [places(clips) for _, clips in maps]
    wide = len(maps) if len(maps) > 1 else 2
    down = math.ceil(len(known) * len(maps) / wide)
    shape = max(np.ptp(plane[:, 1]) / np.ptp(plane[:, 0]) for plane in planes)
    height_in = min(max(6.6 / wide * (1.3 * shape + 0.3), 2.0), 9.0 / wide)
    figure = display.new_figure(down * height_in)
    axes = figure.subplots(down, wide, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
        axis.set_aspect("equal", anchor="NW")
    panels = product(known, zip(maps, planes, strict=True))
    for axis, (name, ((model, clips), plane)) in zip(axes.flat, panels, strict=False):
        title = {"corpus": "data source"}.get(name, name)
        if name in DIMENSIONS:
            _scale(axis, plane, clips[name].to_numpy(float))
            title += ", labels" if clips[f"{name}_is_label"].iloc[0] else ", predicted"
        else:
            named = sorted(_known(clips, name).value_counts().index[:_NAMED])
            _dots(axis, plane[~clips[name].isin(named)], SOFT, "others")
            for index, value in enumerate(named):
                _dots(axis, plane[clips[name] == value], series_colour(index), str(value))
        if len(maps) > 1 and name == known[0]:
            title = f"{display.short(model, 20)}: {title}"
        _titled(axis, title, plane, wide)
    return figure


def _scale(axis: Any, plane: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    """Five steps from low to high, the ends named by their values."""
    if not np.isfinite(values).any():
        return
    edges = np.nanquantile(values, np.linspace(0, 1, len(_STEPS) + 1)[1:-1])
    step = np.searchsorted(edges, values, side="right")
    low, high = np.nanquantile(values, [0.1, 0.9])
    used = step[np.isfinite(values)]  # equal values may leave the outer steps empty
    names = {used.min(): f"low, about {low:.2f}", used.max(): f"high, about {high:.2f}"}
    for index, colour in enumerate(_STEPS):
        name = names.get(index, "")
        _dots(axis, plane[np.isfinite(values) & (step == index)], colour, name)


def _dots(axis: Any, plane: NDArray[np.float64], colour: str, name: str) -> None:
    if len(plane):
        label = display.short(name, 12 if not name.startswith(("low,", "high,")) else 20)
        axis.plot(
            np.round(plane[:, 0], 3), np.round(plane[:, 1], 3), "o", color=colour, ms=3, mew=0,
            alpha=0.8, label=label or "_hidden",
        )  # fmt: skip


def _titled(axis: Any, title: str, plane: NDArray[np.float64], wide: int) -> None:
    """The panel's title, and the names of its colours above the dots; `wide` panels are a row."""
    (left, low), (right, high) = plane.min(axis=0) - 0.05, plane.max(axis=0) + 0.05
    columns = 3 if wide < 3 else 2
    lines = math.ceil(len(axis.get_legend_handles_labels()[1]) / columns)
    axis.set_xlim(left, right)
    axis.set_ylim(low, high + (right - left) * (0.19 * lines + 0.04) * wide / display.WIDTH_IN)
    display.panel_title(axis, title, pad_pt=4)
    legend = axis.legend(
        loc="upper left", ncols=columns, frameon=False, fontsize=display.SMALL_PT,
        borderaxespad=0, handletextpad=0.1, columnspacing=0.8, handlelength=1.2,
    )  # fmt: skip
    for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
        text.set_color(word_colour(handle.get_color()))
