"""Embeddings of clips on a plane, coloured by what is known of the clips (Figure 8).

t-SNE keeps neighbours together; distances between groups, and their sizes, mean nothing. The same
clips give the same plane: it starts from their principal components, and its seed is fixed. The
table is of the space of the embeddings itself: how much of a clip's neighbourhood is of its group.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysers import plotting
from raysers.plotting import BLUE, SOFT, VERMILION, series_colour, word_colour
from raysers.report.evidence import Evidence, ReportRun, columns_of, frame_of, stream
from raysers.report.page import Cell, Chart, shown, table
from raysers.types import Status

#: Fewer clips than this make no map; more than `MOST` are sampled.
FEWEST, MOST = 20, 800
_KNOWN = ("corpus", "sex", "speaker")
_PERPLEXITY, _COMPONENTS, _SEED, _NEIGHBOURS, _NAMED = 30.0, 50, 0, 10, 6
#: Steps of a scale from low to high, through grey.
_STEPS = (VERMILION, "#E09A63", "#A9A9A9", "#6FA6CC", BLUE)


def map_charts(found: Evidence) -> Iterator[Chart]:
    """A map per annotation with embeddings of enough clips."""
    if importlib.util.find_spec("sklearn") is None:
        return
    folders = [run.folder for run in (*found.runs, *found.cell_runs)]
    maps = [(run, read_map(run, folders)) for run in found.of_job("annotate")]
    there = [(run, clips) for run, clips in maps if len(clips) >= FEWEST]
    for number, (run, clips) in enumerate(there):
        embedding = np.stack(clips.embedding.to_list()).astype(np.float64)
        plane = places(embedding)
        panels = [name for name in _KNOWN if (clips[name] != "").any()]
        scored = bool(clips.valence.notna().any())
        key = f"figure-8-{number}" if number else "figure-8"
        yield Chart(
            title=run.name if len(there) > 1 else "",
            alt=f"Map of the embeddings of {len(clips):,} clips, coloured by "
            f"{', '.join([*panels, 'valence'])}. The table is about their neighbourhoods.",
            pictures={key: plotting.picture(lambda: _draw(clips, plane, panels, scored))},  # noqa: B023
            numbers=table(
                "Of the ten nearest clips of a group's clips, the share that is of the group",
                ["known", "group", "clips", "nearest of the same", "by chance"],
                list(neighbours(clips, embedding, panels)),
            ),
        )


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
    columns = ("clip_id", "embedding", "valence")
    parts = [
        part.filter(pc.is_in(part["clip_id"], wanted))
        for part in stream(run.folder, "annotations", columns)
    ]
    found = pa.concat_tables(parts).to_pandas().sort_values("clip_id", ignore_index=True)
    labels = [pd.DataFrame(columns=["clip_id", *_KNOWN, "valence"])]
    for folder, name in product(dict.fromkeys(folders), ("manifest", "clips")):
        if {*columns_of(folder, name)} & {*_KNOWN, "valence"}:
            for part in stream(folder, name, labels[0].columns):
                labels.append(part.filter(pc.is_in(part["clip_id"], wanted)).to_pandas())
    known = (
        pd.concat(labels).groupby("clip_id").first().reindex(found.clip_id).reset_index(drop=True)
    )
    is_label = bool(known.valence.notna().any())
    valence = known.valence if is_label else found.valence
    texts = known[[*_KNOWN]].astype(object).fillna("")
    return found.assign(**texts, valence=pd.to_numeric(valence), is_label=is_label)


def neighbours(
    clips: pd.DataFrame, embedding: NDArray[np.float64], known: Sequence[str]
) -> Iterator[list[Cell]]:
    """Per group, how much of its clips' neighbourhoods is of the group, and its share of all."""
    squares = (embedding**2).sum(axis=1)
    distance = squares[:, None] + squares[None, :] - 2 * embedding @ embedding.T
    np.fill_diagonal(distance, math.inf)
    order = np.argsort(distance, axis=1, kind="stable")
    nearest = order[:, : min(_NEIGHBOURS, len(embedding) - 1)]
    for name in known:
        labels = clips[name].to_numpy(object)
        for value, count in clips[name][clips[name] != ""].value_counts(sort=True).items():
            share = float((labels[nearest[labels == value]] == value).mean())
            yield [name, str(value), int(count), shown(share, 2), shown(count / len(labels), 2)]


def places(embedding: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where each clip is on the plane: [n, hidden] -> [n, 2], in -1..1.

    Needs `FEWEST` clips and scikit-learn (van der Maaten and Hinton 2008).
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    centred = embedding - embedding.mean(axis=0)
    parts = min(_COMPONENTS, *centred.shape)
    reduced = PCA(n_components=parts, random_state=_SEED, svd_solver="full").fit_transform(centred)
    perplexity = min(_PERPLEXITY, (len(centred) - 1) / 3)
    found = TSNE(
        n_components=2, perplexity=perplexity, init="pca", random_state=_SEED, n_jobs=1
    ).fit_transform(reduced)
    found = found - found.mean(axis=0)
    return np.asarray(found / (np.abs(found).max() or 1.0), np.float64)


def _draw(
    clips: pd.DataFrame, plane: NDArray[np.float64], known: Sequence[str], scored: bool
) -> Any:
    down = math.ceil((len(known) + scored) / 2)
    across, up = np.ptp(plane, axis=0)
    figure = plotting.new_figure(down * min(max(3.3 * (1.3 * up + 0.2) / across, 2.0), 4.5))
    axes = list(figure.subplots(down, 2, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
        axis.set_aspect("equal", anchor="NW")
    for axis, name in zip(axes, known, strict=False):
        counts = clips[name][clips[name] != ""].value_counts()
        named = sorted(counts.index[:_NAMED])
        _dots(axis, plane[~clips[name].isin(named)], SOFT, "others")
        for index, value in enumerate(named):
            _dots(axis, plane[clips[name] == value], series_colour(index), str(value))
        _titled(axis, name, plane)
    if scored:
        valence = clips.valence.to_numpy(float)
        edges = np.nanquantile(valence, np.linspace(0, 1, len(_STEPS) + 1)[1:-1])
        step = np.searchsorted(edges, valence, side="right")
        low, high = (
            f"{end}, about {np.nanquantile(valence, q):.2f}"
            for end, q in (("low", 0.1), ("high", 0.9))
        )
        for index, colour in enumerate(_STEPS):
            name = {0: low, len(_STEPS) - 1: high}.get(index, "")
            _dots(axes[len(known)], plane[np.isfinite(valence) & (step == index)], colour, name)
        source = "labels" if clips.is_label.iloc[0] else "predicted"
        _titled(axes[len(known)], f"valence, {source}", plane)
    return figure


def _dots(axis: Any, plane: NDArray[np.float64], colour: str, name: str) -> None:
    if len(plane):
        label = plotting.short(name, 12 if not name.startswith(("low,", "high,")) else 20)
        axis.plot(
            np.round(plane[:, 0], 3), np.round(plane[:, 1], 3), "o", color=colour, ms=3, mew=0,
            alpha=0.8, label=label or "_hidden",
        )  # fmt: skip


def _titled(axis: Any, title: str, plane: NDArray[np.float64]) -> None:
    """The panel's title, and the names of its colours above the dots."""
    (left, low), (right, high) = plane.min(axis=0) - 0.05, plane.max(axis=0) + 0.05
    axis.set_xlim(left, right)
    axis.set_ylim(low, high + 0.2 * (high - low))
    plotting.panel_title(axis, title, pad_pt=4)
    legend = axis.legend(
        loc="upper left", ncols=3, frameon=False, fontsize=plotting.SMALL_PT, borderaxespad=0,
        handletextpad=0.1, columnspacing=0.8, handlelength=1.2,
    )  # fmt: skip
    for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
        text.set_color(word_colour(handle.get_color()))
