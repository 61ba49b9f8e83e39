"""Predictions of an evaluation, read from the folders other jobs left.

A folder of `annotate` has its rows in `annotations`, one of `train` in `predictions`. Who made a
row stands in the row itself, so one folder is one model; several folders of one model are put
together when they are about different clips.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.manifest import is_manifest, read_manifest
from raysers.data.splits import identities
from raysers.engine import output
from raysers.errors import ConfigError, StorageError
from raysers.evaluation.join import DEVIATIONS, PROBABILITY, TRAINED_ON
from raysers.io import storage
from raysers.run import load_record
from raysers.types import DIMENSIONS

#: Folders of an output with rows like those of annotations, the first that is there.
TABLES = ("annotations", "predictions")
_COLUMNS = ("file", "start", "end", "clip_id", "status", *DIMENSIONS, "model", "model_revision")
_READERS = 8
#: What the paper's models were trained on.
PAPER_CORPUS = "msp-podcast"


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


def read_predictions(uri: str) -> Predictions:
    """The predictions in a run's output, or in a folder of `part-*.parquet`.

    Raises:
        ConfigError: nothing there, other tables, or rows of several models.
    """
    found = next((p for p in _part_lists(uri) if p), [])
    if not found:
        raise ConfigError(
            f"--predictions {uri} has no {' or '.join(TABLES)} (part-*.parquet): give the output "
            "folder of annotate or train"
        )
    with ThreadPoolExecutor(_READERS) as pool:
        table = _concatenated(pool.map(_read_part, found))
    return replace(predictions_of(table, uri), notes=tuple(_unfinished(uri)))


def predictions_of(table: pa.Table, uri: str) -> Predictions:
    """The predictions that a table holds, of one model.

    Args:
        table: with the columns of annotations.
        uri: where it is from, for messages, and where no model is named.

    Raises:
        ConfigError: no rows, other columns, or rows of several models.
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
    return Predictions(
        model=makers[0]["model"] or uri,
        revision=makers[0]["model_revision"] or "",
        folders=(uri,),
        table=table,
    )


def _part_lists(uri: str) -> Iterator[list[str]]:
    for folder in (*(storage.join(uri, name) for name in TABLES), uri):
        yield [part.uri for part in storage.list_parts(folder)]


def _read_part(uri: str) -> pa.Table:
    try:
        table = output.read_part(uri)
    except StorageError as error:
        raise ConfigError(f"--predictions: {error}") from error
    if table is None:
        raise ConfigError(f"--predictions: {uri} went away while it was read")
    return _selected(table, uri)


def _selected(table: pa.Table, uri: str) -> pa.Table:
    if missing := [name for name in _COLUMNS if name not in table.column_names]:
        raise ConfigError(
            f"--predictions: {uri} holds no predictions, it has no column {', '.join(missing)}"
        )
    if "perturbation" in table.column_names:
        raise ConfigError(f"--predictions: {uri} holds perturbed clips, not predictions of clips")
    numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    optional = [n for n in numbers if n.startswith(PROBABILITY) or n in DEVIATIONS]
    return table.select([*_COLUMNS, *optional])


def _concatenated(tables: Iterable[pa.Table]) -> pa.Table:
    """Tables under one another; null where a column is not in all of them."""
    return pa.concat_tables(tables, promote_options="default")


def _unfinished(uri: str) -> Iterator[str]:
    record = load_record(uri)
    if record is not None and not record.status.startswith("done"):
        yield f"{uri}: its run has not ended well ({record.status}), predictions may be missing"


def merged(found: Sequence[Predictions]) -> list[Predictions]:
    """One entry a model, with names that tell them apart.

    Folders of the same model and revision are put together when no clip is in two of them;
    otherwise (another precision, say) each is a separate model, named by its folder.
    """
    joined: list[Predictions] = []
    ordered = sorted(found, key=lambda p: (p.model, p.revision))
    for _, same in groupby(ordered, key=lambda p: (p.model, p.revision)):
        group = list(same)
        ids = pa.concat_tables(p.table.select(["clip_id"]) for p in group)["clip_id"]
        disjoint = pc.count_distinct(ids).as_py() == len(ids)
        joined += [_together(group[0].model, group)] if disjoint else [*map(_by_folder, group)]
    names = [p.model for p in joined]
    unique = [p if names.count(p.model) == 1 else _by_revision(p) for p in joined]
    order = {uri: i for i, uri in enumerate(dict.fromkeys(f for p in found for f in p.folders))}
    return sorted(unique, key=lambda p: order[p.folders[0]])


def pooled(found: Sequence[Predictions]) -> list[Predictions]:
    """All folders as one model: the folds of a cross-validation.

    Raises:
        ConfigError: a clip is in two of them.
    """
    names = [p.model for p in found]
    ids = pa.concat_tables(p.table.select(["clip_id"]) for p in found)["clip_id"]
    if twice := len(ids) - pc.count_distinct(ids).as_py():
        raise ConfigError(
            f"--pool: {twice:,} predictions are of clips another folder (or row) also predicts: "
            "the folders of a cross-validation predict each clip once"
        )
    if len(set(names)) == 1:
        return [_together(names[0], found)]
    shared = _shared_folder(names)
    return [_together(f"{shared or found[0].model} (pool of {len(found)})", found)]


def _shared_folder(names: Sequence[str]) -> str:
    split = [name.split("/") for name in names]
    common = [level[0] for level in zip(*split, strict=False) if len(set(level)) == 1]
    return "/".join(common)


def _together(name: str, group: Sequence[Predictions]) -> Predictions:
    return Predictions(
        model=name,
        revision=group[0].revision,
        folders=tuple(folder for p in group for folder in p.folders),
        table=_concatenated(p.table for p in group),
        notes=tuple(note for p in group for note in p.notes),
    )


def _by_folder(one: Predictions) -> Predictions:
    return replace(one, model=f"{one.model} in {one.folders[0]}")


def _by_revision(one: Predictions) -> Predictions:
    return replace(one, model=f"{one.model}@{one.revision[:12]}")


def backbones(found: Sequence[Predictions]) -> dict[str, str]:
    """By model, the whole backbone it was fine-tuned from as the paper did.

    The model's own folder says so, which may be the one its predictions are in. Another corpus,
    other frozen parts, less data or shuffled labels make another model than the paper's.
    """
    named = {p.model: _backbone(_training(p)) for p in found}
    return {model: name for model, name in named.items() if name}


def with_training_clips(one: Predictions) -> Predictions:
    """The predictions with `TRAINED_ON`, where a training left its manifest beside the model.

    Clips are the same by their id, or by their path below the folder that all clips share.
    """
    for folder in _folders(one):
        place = storage.join(folder, "manifest")
        if not (_document(folder) and is_manifest(place)):
            continue
        clips = read_manifest(place)
        if "split" not in clips.column_names:
            continue
        used = np.array(clips["split"].to_pylist(), object) == "train"
        known = {name for names in _names(clips) for name in np.array(names, object)[used]}
        met = np.any([[name in known for name in names] for names in _names(one.table)], axis=0)
        return replace(one, table=one.table.append_column(TRAINED_ON, pa.array(met.astype(float))))
    return one


def _names(table: pa.Table) -> tuple[list[str], list[str]]:
    """Ids and identities of clips."""
    paths = identities(table.select(["file", "start", "end"]))
    return table["clip_id"].to_pylist(), paths


def leaking(found: Sequence[Predictions]) -> list[str]:
    """A note on every model whose training data shares speakers with its dev data."""
    return [
        f"{one.model} was trained with --allow-leakage ({leaks[0]}): its figures are too good"
        for one in found
        if (leaks := _part(_training(one), "data").get("leakage"))
    ]


def _training(one: Predictions) -> Mapping[str, Any]:
    """`training.json` of a model, empty when there is none."""
    return next(filter(None, map(_document, _folders(one))), {})


def _folders(one: Predictions) -> list[str]:
    """Where a model's training may have left its files."""
    return [*([one.model] if "/" in one.model else []), *one.folders]


def _document(folder: str) -> Mapping[str, Any]:
    try:
        document = json.loads(storage.read_bytes(storage.join(folder, "training.json")))
    except (StorageError, ConfigError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _part(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = document.get(name)
    return part if isinstance(part, Mapping) else {}


def _backbone(document: Mapping[str, Any]) -> str:
    config = _part(document, "config")
    splits = _part(document, "data").get("splits")
    corpora = {row.get("corpus") for row in splits or () if isinstance(row, Mapping)}
    changed = (
        config.get("layers"),
        config.get("shuffle_labels"),
        config.get("freeze") in ("backbone", "none"),
        config.get("train_fraction", 1.0) != 1.0,
        corpora != {PAPER_CORPUS},
    )
    return "" if any(changed) else str(config.get("backbone") or "")
