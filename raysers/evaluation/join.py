"""Predictions that other jobs left, and which of them belongs to which label.

A folder of `annotate` has its rows in `annotations`, one of `train` in `predictions`. Who made a
row stands in the row itself, so one folder is one model; several folders of one model are put
together when they are about different clips.

A clip is the same when its id is, or else when file, start and end are, and channel and stream
where the labels have them; an open end, which labels read without headers have, equals the end of
the file. Only when no file is the same, the corpus may have been moved in between: then one folder
stands for the other, and `Coverage.moved` says which.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysers.data.splits import identities
from raysers.engine import output
from raysers.errors import ConfigError, StorageError
from raysers.evaluation.scores import (
    PROBABILITY,
    Categories,
    Floats,
    Scores,
    categories_of,
    common_folder,
    dimensions_of,
    numbers_of,
)
from raysers.io import storage
from raysers.run import load_record
from raysers.schemas import parts_of_file
from raysers.types import DIMENSIONS, Status

#: Label columns that describe a clip and may be grouped by.
COLUMNS = ("speaker", "sex", "language", "emotion", "corpus", "split", "session")
#: Optional columns of predictions: deviations of the scores, and 1 for clips that the model was
#: trained on, else 0.
DEVIATIONS, TRAINED_ON = tuple(f"{d}_sd" for d in DIMENSIONS), "trained_on"
_OPEN_END = -1
#: Folders of an output with rows like those of annotations, the first that is there.
_TABLES = ("annotations", "predictions")
_NEEDED = ("file", "start", "end", "clip_id", "status", *DIMENSIONS, "model", "model_revision")
_READERS = 8


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """The rows of one model: what was read, from where, and what the user should know."""

    model: str
    revision: str
    folders: tuple[str, ...]
    table: pa.Table
    notes: tuple[str, ...] = ()

    @property
    def has_categories(self) -> bool:
        """Whether the model predicted emotion categories."""
        return any(name.startswith(PROBABILITY) for name in self.table.column_names)

    @property
    def places(self) -> list[str]:
        """Where a model's training may have left its files."""
        return [*([self.model] if "/" in self.model else []), *self.folders]

    @property
    def training(self) -> Mapping[str, Any]:
        """`training.json` of the model, empty when there is none."""
        found = (document_of(place, "training.json") for place in self.places)
        return next((one for one in found if isinstance(one, dict) and one), {})


def read_predictions(uri: str) -> Predictions:
    """The predictions in a run's output, or in a folder of `part-*.parquet`; raises ConfigError."""
    folders = (*(f"{uri}/{t}" for t in _TABLES), uri)
    found = next(filter(None, map(storage.list_parts, folders)), [])
    if not found:
        raise ConfigError(
            f"--predictions {uri} has no {' or '.join(_TABLES)} (part-*.parquet): give the output "
            "folder of annotate or train"
        )
    with ThreadPoolExecutor(_READERS) as pool:
        tables = pool.map(_read_part, [part.uri for part in found])
        table = pa.concat_tables(tables, promote_options="default")
    read = predictions_of(table, uri)
    record = load_record(uri)
    if record is None or record.status.startswith("done"):
        return read
    note = f"{uri}: its run has not ended well ({record.status}), predictions may be missing"
    return replace(read, notes=(note,))


def _read_part(uri: str) -> pa.Table:
    try:
        table = output.read_part(uri)
    except StorageError as error:
        raise ConfigError(f"--predictions: {error}") from error
    if table is None:
        raise ConfigError(f"--predictions: {uri} went away while it was read")
    return _selected(table, uri)


def predictions_of(table: pa.Table, uri: str) -> Predictions:
    """The predictions of one model in a table with the columns of annotations.

    `uri` is where it is from, for messages and where no model is named. Raises ConfigError.
    """
    table = _selected(table, uri)
    if not len(table):
        raise ConfigError(f"--predictions {uri} has no rows")
    makers = table.group_by(["model", "model_revision"]).aggregate([]).to_pylist()
    if len(makers) > 1:
        names = sorted(f"{m['model']} {m['model_revision']}" for m in makers)
        raise ConfigError(
            f"--predictions {uri} has rows of {len(makers)} models ({', '.join(names)}): give one "
            "folder for each"
        )
    model, revision = makers[0]["model"] or uri, makers[0]["model_revision"] or ""
    return Predictions(model=model, revision=revision, folders=(uri,), table=table)


def _selected(table: pa.Table, uri: str) -> pa.Table:
    if missing := [name for name in _NEEDED if name not in table.column_names]:
        raise ConfigError(
            f"--predictions: {uri} holds no predictions, it has no column {', '.join(missing)}"
        )
    if "perturbation" in table.column_names:
        raise ConfigError(f"--predictions: {uri} holds perturbed clips, not predictions of clips")
    numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    optional = [n for n in numbers if n.startswith(PROBABILITY) or n in DEVIATIONS]
    return table.select([*_NEEDED, *parts_of_file(table.column_names), *optional])


def merged(found: Sequence[Predictions]) -> list[Predictions]:
    """One entry a model, with names that tell them apart.

    Folders of the same model and revision are put together when no clip is in two of them;
    otherwise (another precision, say) each is a separate model, named by its folder.
    """
    groups: dict[tuple[str, str], list[Predictions]] = {}
    for one in found:
        groups.setdefault((one.model, one.revision), []).append(one)
    joined: list[Predictions] = []
    for (model, _), group in groups.items():
        if _twice(group):
            joined += [replace(p, model=f"{model} in {p.folders[0]}") for p in group]
        else:
            joined.append(_together(model, group))
    names = [p.model for p in joined]
    order = [folder for p in found for folder in p.folders]
    return [
        p if names.count(p.model) == 1 else replace(p, model=f"{p.model}@{p.revision[:12]}")
        for p in sorted(joined, key=lambda p: order.index(p.folders[0]))
    ]


def pooled(found: Sequence[Predictions]) -> list[Predictions]:
    """All folders as one model: the folds of a cross-validation, which share no clip."""
    if twice := _twice(found):
        raise ConfigError(
            f"--pool: {twice:,} predictions are of clips another folder (or row) also predicts: "
            "the folders of a cross-validation predict each clip once"
        )
    names = [p.model for p in found]
    if len(set(names)) == 1:
        return [_together(names[0], found)]
    levels = zip(*(name.split("/") for name in names), strict=False)
    shared = "/".join(level[0] for level in levels if len(set(level)) == 1)
    return [_together(f"{shared or names[0]} (pool of {len(found)})", found)]


def _twice(found: Sequence[Predictions]) -> int:
    """Predictions of clips that another one is of."""
    ids = pa.concat_tables(p.table.select(["clip_id"]) for p in found)["clip_id"]
    return len(ids) - int(pc.count_distinct(ids).as_py())


def _together(name: str, group: Sequence[Predictions]) -> Predictions:
    return Predictions(
        model=name,
        revision=group[0].revision,
        folders=tuple(folder for p in group for folder in p.folders),
        table=pa.concat_tables((p.table for p in group), promote_options="default"),
        notes=tuple(note for p in group for note in p.notes),
    )


def document_of(folder: str, name: str) -> Any:
    """What a JSON file holds; None where it is not there or cannot be read."""
    try:
        return json.loads(storage.read_bytes(storage.join(folder, name)))
    except (StorageError, ConfigError, ValueError):
        return None


def join(
    labels: pa.Table, predictions: Mapping[str, pa.Table]
) -> tuple[Scores, dict[str, Coverage]]:
    """Labels beside the predictions of every model, and what did not fit together.

    `labels` (`labelled_only`) have `clip_id, file, start, end`, the dimensions and what is known of
    `COLUMNS`; predictions have the annotations' columns.
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
    values = np.hstack([outputs, numbers_of(table, (*DEVIATIONS, TRAINED_ON))])
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


def _match(
    labels: pa.Table, table: pa.Table, model: str
) -> tuple[NDArray[np.intp], int, tuple[str, ...]]:
    """Row of the label of every prediction (-1: none), how many by path, and moved folders."""
    ids, mine = (t["clip_id"].to_pandas() for t in (labels, table))
    match = pd.Index(ids).get_indexer(pd.Index(mine))
    free, rest = np.setdiff1d(np.arange(len(labels)), match), np.flatnonzero(match < 0)
    moved: tuple[str, ...] = ()
    if len(free) and len(rest):
        parts = parts_of_file(labels.column_names)
        labelled, predicted = _stretches(labels, free, parts), _stretches(table, rest, parts)
        if len(rest) == len(table) and not predicted["file"].isin(labelled["file"]).any():
            names, moved = _renamed(labels["file"].to_pylist(), predicted["file"].tolist())
            predicted["file"] = names
        match[rest] = _same_stretch(labelled, predicted, parts)
    apart = parts_of_file({*labels.column_names} ^ {*table.column_names})
    hint = f" (only one of the two has a column {' or '.join(apart)})" if apart else ""
    found, times = np.unique(match[match >= 0], return_counts=True)
    if len(table) and not len(found):
        first = [t["file"][0].as_py() if len(t) else "nothing" for t in (table, labels)]
        raise ConfigError(
            f"--labels: none of the {len(table):,} clips that {model} predicted is among the "
            f"{len(labels):,} labelled ones (predicted: {first[0]}; labelled: {first[1]}): give "
            f"the labels of the same files{hint}"
        )
    if (times > 1).any():
        twice = labels["file"][int(found[times > 1][0])].as_py()
        raise ConfigError(
            f"--predictions: {model} predicted {int((times > 1).sum()):,} labelled clips more than "
            f"once (first: {twice}): each clip must be predicted once{hint}"
        )
    return match, int((match[rest] >= 0).sum()), moved


def _stretches(table: pa.Table, rows: NDArray[np.intp], parts: Sequence[str]) -> pd.DataFrame:
    """File, start and end in ns, `parts`, `row`, and whether nothing begins later."""
    present = [name for name in parts if name in table.column_names]
    part = table.select(["file", "start", "end", *present]).take(rows)
    start, end = (part[name].cast(pa.int64()) for name in ("start", "end"))
    frame = pd.DataFrame(
        {
            "file": np.array(part["file"].to_pylist(), object),
            "start": pc.fill_null(start, 0).to_numpy(),
            "end": pc.fill_null(end, _OPEN_END).to_numpy(),
            "row": rows,
            **dict.fromkeys(parts, 0),  # the mean of all channels, and the first stream
            **{name: pc.fill_null(part[name], 0).to_numpy() for name in present},
        }
    )
    latest = frame.groupby(["file", *parts])["start"].transform("max")
    return frame.assign(last=frame["start"] == latest)


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
    home = common_folder(labelled)
    known = {file[len(home) :] for file in labelled}
    roots = [_root(file, known) for file in predicted]
    ends = {root: root.rstrip("/").split("/")[::-1] for root in roots if root is not None}
    end = home.rstrip("/").split("/")[::-1]
    same = {root: len(os.path.commonprefix([own, end])) for root, own in ends.items()}  # noqa: RUF071
    most = max(same.values(), default=0)
    best = {root for root, count in same.items() if count == most}
    names = [
        home + file[len(root) :] if root is not None and root in best else file
        for file, root in zip(predicted, roots, strict=True)
    ]
    return names, tuple(sorted(best))


def _root(file: str, known: set[str]) -> str | None:
    """The shortest folder (or none) below which the path is `known`; None: it is not."""
    starts = (0, *(place + 1 for place, letter in enumerate(file) if letter == "/"))
    return next((file[:start] for start in starts if file[start:] in known), None)
