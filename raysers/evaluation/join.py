"""Which prediction belongs to which label.

A clip is the same when its id is, or else when file, start and end are, and channel and stream
where both tables have them; an open end, which labels read without headers have, equals the end of
the file. Only when no file is the same, the corpus may have been moved in between: then one folder
stands for the other, and `Coverage.moved` says which.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysers.data.corpora import category_of, common_name
from raysers.data.splits import identities
from raysers.errors import ConfigError
from raysers.evaluation.scores import Categories, Floats, Scores
from raysers.schemas import PARTS_OF_FILE
from raysers.types import DIMENSIONS, Status

#: Label columns that describe a clip and may be grouped by.
COLUMNS = ("speaker", "sex", "language", "emotion", "corpus", "split", "session")
#: Optional columns of predictions: prefix of a category's probability, deviations of the scores,
#: and 1 for clips that the model was trained on, else 0.
PROBABILITY, DEVIATIONS, TRAINED_ON = "p_", tuple(f"{d}_sd" for d in DIMENSIONS), "trained_on"
_OPEN_END = _WHOLE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What became of one model's predictions (`rows`).

    They have the id of a labelled clip, or only its path, start and end, or no label; `unpredicted`
    counts labelled clips. `statuses` are of those with a label, and only `ok` has scores. `moved`
    are folders of predictions that stand for the folder of the labels.
    """

    rows: int
    by_id: int
    by_path: int
    unlabelled: int
    unpredicted: int
    statuses: Mapping[str, int]
    moved: tuple[str, ...] = ()

    @property
    def failed_share(self) -> float:
        """Share of the labelled clips' predictions that have no scores."""
        total = sum(self.statuses.values())
        return 1 - self.statuses.get(Status.OK, 0) / total if total else 0.0


def labelled_only(labels: pa.Table, *, emotions: bool = False) -> pa.Table:
    """The clips with a label in at least one dimension, or with `emotions` an emotion category."""
    labelled = np.isfinite(dimensions_of(labels))
    if emotions and "emotion" in labels.column_names:
        named = [[category_of(word) is not None] for word in labels["emotion"].to_pylist()]
        labelled = np.hstack([labelled, np.reshape(named, (len(labels), 1))])
    return labels.filter(pa.array(labelled.any(axis=1)))


def join(
    labels: pa.Table, predictions: Mapping[str, pa.Table]
) -> tuple[Scores, dict[str, Coverage]]:
    """Labels beside the predictions of every model, and what did not fit together.

    `labels` (`labelled_only`) have `clip_id, file, start, end`, the dimensions and what is known of
    `COLUMNS`; predictions have the annotations' columns. Raises ConfigError: a model predicted a
    clip twice, or none of the labelled ones.
    """
    coverage: dict[str, Coverage] = {}
    scores: dict[str, Floats] = {}
    deviations, categories, trained = dict(scores), dict[str, Categories](), dict[str, Any]()
    for model, table in predictions.items():
        names, values, coverage[model] = _aligned(labels, table, model)
        scores[model], probabilities, spread, met = np.split(
            values, np.cumsum([len(DIMENSIONS), len(names), len(DEVIATIONS)]), axis=1
        )
        if (met > 0).any():
            trained[model] = met[:, 0] > 0
        if names:
            categories[model] = Categories(names=names, probabilities=probabilities)
        if np.isfinite(spread).any():
            deviations[model] = spread
    known = [name for name in (*COLUMNS, "pitch_hz") if name in labels.column_names]
    columns = {name: labels[name].to_pylist() for name in known} | {"identity": identities(labels)}
    found = Scores(
        clip_id=labels["clip_id"].to_pylist(),
        truth=dimensions_of(labels),
        predictions=scores,
        columns=columns,
        deviations=deviations,
        categories=categories,
        trained=trained,
    )
    return found, coverage


def _aligned(
    labels: pa.Table, table: pa.Table, model: str
) -> tuple[Sequence[str], Floats, Coverage]:
    """Names of the categories, [k], and the predictions in the order of the labels; NaN: none.

    These are the dimensions, the probabilities of the categories, the deviations and whether the
    model was trained on the clip, [labels, 3 + k + 3 + 1].
    """
    match, by_path, moved = _match(labels, table, model)
    said = categories_of(table)
    outputs = np.hstack([dimensions_of(table), said.probabilities])
    status = np.array(table["status"].to_pylist(), object)
    ok = status == str(Status.OK)
    # null in every row: an output that was not trained
    trained = np.isfinite(outputs[ok]).any(axis=0)
    whole = np.isfinite(outputs[:, trained]).all(axis=1) & trained.any()
    status[ok & ~whole] = str(Status.NOT_FINITE)
    joined = match >= 0
    good = joined & (status == str(Status.OK))
    values = np.hstack([outputs, _numbers(table, (*DEVIATIONS, TRAINED_ON))])
    aligned: Floats = np.full((len(labels), values.shape[1]), np.nan)
    aligned[match[good]] = values[good]
    found = int(joined.sum())
    coverage = Coverage(
        rows=len(table),
        by_id=found - by_path,
        by_path=by_path,
        unlabelled=len(table) - found,
        unpredicted=len(labels) - found,
        statuses=dict(Counter(status[joined].tolist())),
        moved=moved,
    )
    return said.names, aligned, coverage


def categories_of(table: pa.Table) -> Categories:
    """The emotion categories a model predicted; without names where it predicted none.

    Categories of the same common name add up. Of models put together, one may lack a category of
    another: it gives that one no probability.
    """
    columns = [name for name in table.column_names if name.startswith(PROBABILITY)]
    common = [common_name(name.removeprefix(PROBABILITY)) for name in columns]
    names = list(dict.fromkeys(common))
    values = _numbers(table, columns)
    unknown = np.isnan(values).all(axis=1, keepdims=True)
    is_name = np.array([[one == name for name in names] for one in common], float)
    summed = np.nan_to_num(values) @ is_name.reshape(len(columns), len(names))
    return Categories(names=names, probabilities=np.where(unknown, np.nan, summed))


def _match(
    labels: pa.Table, table: pa.Table, model: str
) -> tuple[NDArray[np.intp], int, tuple[str, ...]]:
    """Row of the label of every prediction (-1: none), how many by path, and moved folders."""
    ids, mine = (t["clip_id"].to_pandas() for t in (labels, table))
    match = pd.Index(ids).get_indexer(pd.Index(mine))
    free, rest = np.setdiff1d(np.arange(len(labels)), match), np.flatnonzero(match < 0)
    moved: tuple[str, ...] = ()
    if len(free) and len(rest):
        shared = {*labels.column_names} & {*table.column_names}
        parts = [field.name for field in PARTS_OF_FILE if field.name in shared]
        labelled, predicted = _stretches(labels, free, parts), _stretches(table, rest, parts)
        if len(rest) == len(table) and not predicted["file"].isin(labelled["file"]).any():
            names, moved = _renamed(labels["file"].to_pylist(), predicted["file"].tolist())
            predicted["file"] = names
        match[rest] = _same_stretch(labelled, predicted, parts)
    found, times = np.unique(match[match >= 0], return_counts=True)
    if len(table) and not len(found):
        first = [t["file"][0].as_py() if len(t) else "nothing" for t in (table, labels)]
        raise ConfigError(
            f"--labels: none of the {len(table):,} clips that {model} predicted is among the "
            f"{len(labels):,} labelled ones (predicted: {first[0]}; labelled: {first[1]}): give "
            "the labels of the same files"
        )
    if (times > 1).any():
        twice = labels["file"][int(found[times > 1][0])].as_py()
        raise ConfigError(
            f"--predictions: {model} predicted {int((times > 1).sum()):,} labelled clips more than "
            f"once (first: {twice}): each clip must be predicted once; labels of single channels "
            "have a column channel"
        )
    return match, int((match[rest] >= 0).sum()), moved


def _stretches(table: pa.Table, rows: NDArray[np.intp], parts: Sequence[str]) -> pd.DataFrame:
    """File, start and end in ns, `parts`, `row`, and whether nothing begins later."""
    part = table.select(["file", "start", "end", *parts]).take(rows)
    start, end = (part[name].cast(pa.int64()) for name in ("start", "end"))
    frame = pd.DataFrame(
        {
            "file": np.array(part["file"].to_pylist(), object),
            "start": pc.fill_null(start, 0).to_numpy(),
            "end": pc.fill_null(end, _OPEN_END).to_numpy(),
            "row": rows,
            **{name: pc.fill_null(part[name], _WHOLE).to_numpy() for name in parts},
        }
    )
    return frame.assign(last=frame["start"] == frame.groupby("file")["start"].transform("max"))


def _same_stretch(
    labelled: pd.DataFrame, predicted: pd.DataFrame, parts: Sequence[str]
) -> NDArray[np.intp]:
    """The row of the label of every predicted stretch, -1 for none.

    An open end means the end of the file, which a header tells later: it is any end, as long as
    nothing in the file begins later. (A window is not the label of a whole recording.)
    """
    here = predicted.assign(number=np.arange(len(predicted)))
    both = here.merge(labelled, on=["file", "start", *parts], suffixes=("", "_label"))
    same = both["end"] == both["end_label"]
    open_label = (both["end_label"] == _OPEN_END) & both["last"]
    open_prediction = (both["end"] == _OPEN_END) & both["last_label"]
    both = both[same | open_label | open_prediction].assign(same=same)
    both = both.sort_values(["same", "row_label"], ascending=[False, True])
    best = both.drop_duplicates("number").set_index("number")["row_label"]
    return np.asarray(best.reindex(here["number"], fill_value=-1).to_numpy(), np.intp)


def _renamed(labelled: list[str], predicted: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Predicted files as they were called before they were moved, and the folders they moved to.

    A file is identified by its path below the folder that all labelled files share. Of several
    folders with such paths, those whose names end most like the labels' folder count.
    """
    home = _common_folder(labelled)
    known = {file[len(home) :] for file in labelled}
    roots = [_root(file, known) for file in predicted]
    likeness = {root: _same_end(root, home) for root in roots if root is not None}
    best = {root for root, same in likeness.items() if same == max(likeness.values())}
    names = [
        home + file[len(root) :] if root is not None and root in best else file
        for file, root in zip(predicted, roots, strict=True)
    ]
    return names, tuple(sorted(best))


def _root(file: str, known: set[str]) -> str | None:
    """The shortest folder (or none) below which the path is `known`; None: it is not."""
    starts = (0, *(place + 1 for place, letter in enumerate(file) if letter == "/"))
    return next((file[:start] for start in starts if file[start:] in known), None)


def _same_end(folder: str, other: str) -> int:
    """How many folder names two paths have in common at their end."""
    ends = [path.rstrip("/").split("/")[::-1] for path in (folder, other)]
    return len(os.path.commonprefix(ends))  # noqa: RUF071  of names


def _common_folder(files: list[str]) -> str:
    """The longest folder all files are in, with its slash; empty when they share none."""
    shared = os.path.commonprefix([min(files), max(files)])  # noqa: RUF071  cut at a slash
    return shared[: shared.rfind("/") + 1]


def with_dataset_names(table: pa.Table) -> pa.Table:
    """The table with `corpus` of clips that have none: the folder that all of these clips share."""
    if "corpus" not in table.column_names:
        table = table.append_column("corpus", pa.nulls(len(table), pa.string()))
    known = table["corpus"].to_pylist()
    files = [file for file, name in zip(table["file"].to_pylist(), known, strict=True) if not name]
    folder = _common_folder(files).rstrip("/#").rpartition("/")[2] if files else ""
    named = pa.array([name or folder or None for name in known], pa.string())
    return table.drop_columns(["corpus"]).append_column("corpus", named)


def dimensions_of(table: pa.Table) -> Floats:
    """Arousal, dominance and valence of every row, [n, 3]; a missing column or value is NaN."""
    return _numbers(table, DIMENSIONS)


def _numbers(table: pa.Table, names: Sequence[str]) -> Floats:
    out: Floats = np.full((len(table), len(names)), np.nan)
    for place, name in enumerate(names):
        if name in table.column_names:
            out[:, place] = table[name].to_numpy(zero_copy_only=False)
    return out
