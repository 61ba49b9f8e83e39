"""Test clips spoken again by a neutral voice: what remains of the scores (5.3, Figures 10c, 11).

A model that uses the delivery alone gives all re-spoken clips about the same score, so its CCC
with the labels is 0; what stays above 0 comes from the text. Only clips that a model scored in
both versions are compared. A clip spoken by several voices has the mean of their scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import rel_entr

from raysers.errors import ConfigError
from raysers.evaluation.bootstrap import Bootstrap, draw_metrics, drawn_counts, interval, pairs
from raysers.evaluation.correctness import comparison_rows
from raysers.evaluation.join import COLUMNS
from raysers.evaluation.metrics import METRICS, Floats, mean_error, per_dimension
from raysers.evaluation.rows import Row, dimension_rows
from raysers.evaluation.scores import Scores, Subset, base_subsets
from raysers.types import DIMENSIONS, Status
from raysers.words.ratings import described

GROUP = "speech"
ORIGINAL, RESPOKEN_CLIP, LABELS = "original", "respoken", "labels"
DIFFERENCE, AGREEMENT = "respoken - original", "respoken, original"
#: Edges of the ten bins of the distributions; the outer bins are open.
_EDGES = np.arange(0.1, 0.95, 0.1)
_DIMENSIONS = list(DIMENSIONS)
#: Columns of the table: labels, then the scores of each version.
_OF = {"": "label of the original, 0..1"} | {
    f"_{version}": f"predicted for the {version} clip" for version in (ORIGINAL, RESPOKEN_CLIP)
}

#: Labels and both scores, one clip and model a row.
RESPOKEN = pa.schema(
    [
        described("clip_id", pa.string(), "the original clip"),
        described("model", pa.string(), "model that scored both"),
        *(
            described(f"{name}{suffix}", pa.float32(), f"{name} {meaning}")
            for suffix, meaning in _OF.items()
            for name in DIMENSIONS
        ),
        described("run_id", pa.string(), "run that wrote the row"),
    ]
)


def respoken_table(
    labels: pa.Table,
    originals: Mapping[str, pa.Table],
    respoken: Mapping[str, pa.Table],
    link: Mapping[str, str],
    run_id: str = "",
) -> pa.Table:
    """Labels and the scores of both versions, a table of `RESPOKEN`.

    Args:
        labels: clips with `clip_id` and the dimensions where there are labels.
        originals: by model, tables with `clip_id`, the dimensions and, unless all rows are good,
            `status`.
        respoken: by model, the same of the re-spoken clips.
        link: re-spoken clip to the original.
        run_id: written into the rows.

    Raises:
        ConfigError: no model scored a clip in both versions.
    """
    known = _frame(labels)
    tables = []
    for model in originals:
        if model not in respoken:
            continue
        again = _scored(respoken[model]).dropna()
        again = again.groupby(again.index.map(lambda clip: link.get(clip, ""))).mean()
        both = _scored(originals[model]).join(again, how="inner", rsuffix="_respoken")
        both = known.join(both, how="inner", rsuffix="_original").sort_index()
        for name in DIMENSIONS:
            scores = [f"{name}_{version}" for version in (ORIGINAL, RESPOKEN_CLIP)]
            both.loc[both[scores].isna().any(axis=1), scores] = np.nan
        both = both.dropna(how="all", subset=[f"{name}_respoken" for name in DIMENSIONS])
        tables.append(both.rename_axis("clip_id").reset_index().assign(model=model, run_id=run_id))
    if not sum(map(len, tables)):
        raise ConfigError(
            f"no clip has scores of both its original and its re-spoken speech (models with "
            f"originals: {sorted(originals)}; with re-spoken clips: {sorted(respoken)})"
        )
    return pa.Table.from_pandas(pd.concat(tables), RESPOKEN, preserve_index=False)


def respoken_rows(
    table: pa.Table, clips: pa.Table, bootstrap: Bootstrap | None = None
) -> list[Row]:
    """Figures of every model, subset and dimension with 95 % intervals, by `group` "speech".

    `group_value` says of what: "original" and "respoken" have `ccc`, `pearson`, `mae` with the
    labels, `mean` and `sd` ("labels" has the last two as well); "respoken - original" has
    `ccc_difference` and `mean_shift`; "respoken, original" compares the two scores of a clip by
    `ccc` and their distributions by `js_distance` (Jensen-Shannon, base 2, 0..1, ten bins). Two
    models' re-spoken scores are compared by `group` "model": `respoken_ccc_difference` and so on.

    Args:
        table: of `respoken_table`.
        clips: what is known of the originals: `clip_id` and `join.COLUMNS`.
        bootstrap: draws and seed; speakers of the originals are resampled.
    """
    how = bootstrap or Bootstrap()
    frame = table.to_pandas()
    ids = pd.Index(sorted(set(frame["clip_id"])))
    about = clips.select(["clip_id", *(n for n in COLUMNS if n in clips.column_names)]).to_pylist()
    by_id = {row["clip_id"]: row for row in about}
    columns = {name: [by_id[i].get(name) for i in ids] for name in COLUMNS}

    def values(rows: pd.DataFrame, suffix: str) -> Floats:
        own = rows.set_index("clip_id")[[f"{name}{suffix}" for name in DIMENSIONS]]
        return np.asarray(own.reindex(ids).to_numpy(), np.float64)

    def scores(predictions: Mapping[str, Floats], truth: Floats) -> Scores:
        return Scores(clip_id=list(ids), truth=truth, predictions=predictions, columns=columns)

    truth = values(frame.drop_duplicates("clip_id"), "")
    models = list(frame.groupby("model", sort=False))
    second = {str(model): values(rows, "_respoken") for model, rows in models}
    found: list[Row] = []
    # a clip needs no label to be compared
    for cell in base_subsets(scores(second, np.zeros(truth.shape))):
        for model, rows in models:
            first, again = values(rows, "_original"), second[model]
            labelled = scores({ORIGINAL: first, RESPOKEN_CLIP: again}, truth)
            found += _against_labels(labelled, cell, model, how)
            found += _against_original(scores({model: again}, first), cell, model, how)
            found += _distributions(labelled, cell, model, how)
    compared = comparison_rows(scores(second, truth), how) if len(second) > 1 else []
    return found + [replace(row, metric=f"respoken_{row.metric}") for row in compared]


def jensen_shannon(one: Floats, other: Floats) -> Floats:
    """Jensen-Shannon distance of counts over the last axis, base 2: [..., k] twice -> [...].

    0: the same distribution; 1: nothing in common; NaN where one side counts nothing.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        p, q = (x / x.sum(axis=-1, keepdims=True) for x in (one, other))
        middle = (p + q) / 2
        divergence = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=-1) / (2 * np.log(2))
    return np.asarray(np.sqrt(np.clip(divergence, 0, 1)), np.float64)


def histogram(values: Floats) -> Floats:
    """One-hot bins of every value, [n, 3] -> [n, 3, 10]; nothing for NaN."""
    place = np.searchsorted(_EDGES, values, side="right")
    bins = (place[..., None] == np.arange(len(_EDGES) + 1)) & np.isfinite(values)[..., None]
    return np.asarray(bins, np.float64)


def _frame(table: pa.Table) -> pd.DataFrame:
    """The dimensions by clip id; NaN where there is none."""
    known = [name for name in ("clip_id", *DIMENSIONS) if name in table.column_names]
    frame = table.select(known).to_pandas().set_index("clip_id")
    return frame.reindex(columns=_DIMENSIONS).astype(np.float64)


def _scored(table: pa.Table) -> pd.DataFrame:
    """Scores by clip id; NaN where the clip failed. In order, so that sums do not vary."""
    frame = _frame(table)
    if "status" in table.column_names:
        frame[np.array(table["status"].to_pylist(), object) != str(Status.OK)] = np.nan
    return frame.sort_index()


def _part(cell: Subset, value: str) -> Subset:
    return replace(cell, group=GROUP, group_value=value)


def _against_labels(scores: Scores, cell: Subset, model: str, how: Bootstrap) -> Iterator[Row]:
    sides = scores.predictions
    drawn = draw_metrics(scores, cell, list(sides.values()), how)
    truth = scores.truth[cell.rows]
    n = pairs(truth, sides[RESPOKEN_CLIP][cell.rows])
    for metric, function in METRICS.items():
        values = [per_dimension(function, truth, side[cell.rows]) for side in sides.values()]
        low, high = drawn[metric].interval()
        for s, name in enumerate(sides):
            bounds = low[s], high[s]
            yield from dimension_rows(_part(cell, name), model, metric, values[s], n, bounds)
        if metric == "ccc":
            draws, units = drawn[metric].values, drawn[metric].units.min(axis=0)
            lost, bounds = values[1] - values[0], interval(draws[:, 1] - draws[:, 0], units)
            where = _part(cell, DIFFERENCE)
            yield from dimension_rows(where, model, "ccc_difference", lost, n, bounds)


def _against_original(scores: Scores, cell: Subset, model: str, how: Bootstrap) -> Iterator[Row]:
    """The first score of a clip takes the place of its label."""
    after = scores.predictions[model]
    drawn = draw_metrics(scores, cell, [after], how)
    both = scores.truth[cell.rows], after[cell.rows]
    for value, metric, of, function in (
        (AGREEMENT, "ccc", "ccc", METRICS["ccc"]),
        (DIFFERENCE, "mean_shift", "mean_error", mean_error),
    ):
        bounds = interval(drawn[of].values[:, 0], drawn[of].units[0])
        found = per_dimension(function, *both)
        yield from dimension_rows(_part(cell, value), model, metric, found, pairs(*both), bounds)


def _distributions(scores: Scores, cell: Subset, model: str, how: Bootstrap) -> Iterator[Row]:
    scored = np.isfinite(scores.predictions[ORIGINAL])
    sides = {LABELS: np.where(scored, scores.truth, np.nan), **scores.predictions}
    columns = np.stack([_columns(values[cell.rows]) for values in sides.values()], axis=1)
    whole = columns.sum(axis=0)  # [3 sides, 3 dimensions, 13]
    flat = columns.reshape(len(columns), -1)
    sums, units = drawn_counts(scores, cell, flat, how)
    drawn = sums.reshape(-1, *whole.shape)
    for name, function in _OF_COLUMNS.items():
        low, high = interval(function(drawn), units)
        for s, side in enumerate(sides):
            n = whole[s, :, 0].astype(np.int64)
            bounds = low[s], high[s]
            yield from dimension_rows(_part(cell, side), model, name, function(whole)[s], n, bounds)
    distance = jensen_shannon(whole[1, :, 3:], whole[2, :, 3:])
    bounds = interval(jensen_shannon(drawn[:, 1, :, 3:], drawn[:, 2, :, 3:]), units)
    n = whole[2, :, 0].astype(np.int64)
    yield from dimension_rows(_part(cell, AGREEMENT), model, "js_distance", distance, n, bounds)


def _columns(values: Floats) -> Floats:
    """Presence, value, square and bins, [n, 3] -> [n, 3, 3 + 10]; values about .5."""
    there = np.isfinite(values)
    near = np.where(there, values - 0.5, 0.0)
    return np.concatenate([np.stack([there, near, near**2], axis=-1), histogram(values)], axis=-1)


def _mean(columns: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(columns[..., 1] / columns[..., 0] + 0.5, np.float64)


def _sd(columns: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        square = columns[..., 2] / columns[..., 0] - (_mean(columns) - 0.5) ** 2
    return np.asarray(np.sqrt(np.maximum(square, 0)), np.float64)


#: Figures of a distribution as functions of the sums of `_columns`; `sd` is the population's.
_OF_COLUMNS: Mapping[str, Callable[[Floats], Floats]] = {"mean": _mean, "sd": _sd}
