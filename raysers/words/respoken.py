"""Test clips spoken again by a neutral voice: what remains of the scores (5.3, Figures 10c, 11).

A model that uses the delivery alone gives all re-spoken clips about the same score, so its CCC
with the labels is 0; what stays above 0 comes from the text. Only clips that a model scored in
both versions are compared. A clip spoken by several voices has the mean of their scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.spatial.distance import jensenshannon

from raysers.errors import ConfigError
from raysers.evaluation.bootstrap import Bootstrap, draw_metrics, drawn_counts, interval
from raysers.evaluation.correctness import comparison_rows
from raysers.evaluation.join import COLUMNS
from raysers.evaluation.rows import Row, dimension_rows, drawn_rows
from raysers.evaluation.scores import METRICS, Floats, Scores, Subset, base_subsets
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
    """Labels and the scores of both versions by model, a table of `RESPOKEN`.

    `link` leads from re-spoken clips to originals. Rows that have a `status` and are not ok do not
    count.

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


def respoken_rows(table: pa.Table, clips: pa.Table, how: Bootstrap) -> list[Row]:
    """Figures of every model, subset and dimension with 95 % intervals, by `group` "speech".

    `group_value` says of what: "original" and "respoken" have `ccc`, `pearson`, `mae` with the
    labels, `mean` and `sd` ("labels" has the last two as well); "respoken - original" has
    `ccc_difference` and `mean_shift`; "respoken, original" compares the two scores of a clip by
    `ccc` and their distributions by `js_distance` (Jensen-Shannon, base 2, 0..1, ten bins). Two
    models' re-spoken scores are compared by `group` "model": `respoken_ccc_difference` and so on.
    `clips` has `clip_id` and `join.COLUMNS` of the originals, whose speakers are resampled.
    """
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
    drawn = draw_metrics(scores, cell, list(scores.predictions.values()), how)
    n = scores.scored(RESPOKEN_CLIP, cell.rows).sum(axis=0)
    for metric in METRICS:
        before, after = drawn[metric][0], drawn[metric][1]
        found = [(ORIGINAL, metric, before), (RESPOKEN_CLIP, metric, after)]
        found += [(DIFFERENCE, "ccc_difference", after - before)] * (metric == "ccc")
        for of, name, figure in found:
            yield from drawn_rows(_part(cell, of), model, name, figure, n)


def _against_original(scores: Scores, cell: Subset, model: str, how: Bootstrap) -> Iterator[Row]:
    """The first score of a clip takes the place of its label."""
    drawn = draw_metrics(scores, cell, [scores.predictions[model]], how)
    n = scores.scored(model, cell.rows).sum(axis=0)
    for value, metric, of in ((AGREEMENT, "ccc", "ccc"), (DIFFERENCE, "mean_shift", "mean_error")):
        yield from drawn_rows(_part(cell, value), model, metric, drawn[of][0], n)


def _distributions(scores: Scores, cell: Subset, model: str, how: Bootstrap) -> Iterator[Row]:
    scored = np.isfinite(scores.predictions[ORIGINAL])
    sides = {LABELS: np.where(scored, scores.truth, np.nan), **scores.predictions}
    columns = np.stack([_columns(values[cell.rows]) for values in sides.values()], axis=1)
    sums, units = drawn_counts(scores, cell, columns.reshape(len(columns), -1), how)
    whole, drawn = columns.sum(axis=0), sums.reshape(-1, *columns.shape[1:])  # [3, 3, 13]
    n = whole[..., 0].astype(np.int64)
    of_whole, of_draws = (_mean_sd_distance(one) for one in (whole, drawn))
    for metric in ("mean", "sd"):
        low, high = interval(of_draws[metric], units)
        for s, side in enumerate(sides):
            value, bounds = of_whole[metric][s], (low[s], high[s])
            yield from dimension_rows(_part(cell, side), model, metric, value, n[s], bounds)
    name, bounds = "js_distance", interval(of_draws["js_distance"], units)
    yield from dimension_rows(_part(cell, AGREEMENT), model, name, of_whole[name], n[2], bounds)


def _columns(values: Floats) -> Floats:
    """Presence, value, square and ten bins, [n, 3] -> [n, 3, 13]; values about .5."""
    there = np.isfinite(values)
    near = np.where(there, values - 0.5, 0.0)
    place = np.searchsorted(_EDGES, values, side="right")[..., None]
    bins = (place == np.arange(len(_EDGES) + 1)) & there[..., None]
    return np.concatenate([np.stack([there, near, near**2], axis=-1), bins], axis=-1)


def _mean_sd_distance(sums: Floats) -> dict[str, Floats]:
    """Of sums of `_columns` [..., 3 sides, 3, 13]; `sd` is the population's."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums[..., 1] / sums[..., 0]
        variance = np.maximum(sums[..., 2] / sums[..., 0] - mean**2, 0)
        distance = jensenshannon(sums[..., 1, :, 3:], sums[..., 2, :, 3:], base=2, axis=-1)
    return {"mean": mean + 0.5, "sd": np.sqrt(variance), "js_distance": np.asarray(distance)}
