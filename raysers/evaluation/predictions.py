"""Predictions of an evaluation, read from the folders other jobs left.

A folder of `annotate` has its rows in `annotations`, one of `train` in `predictions`. Who made a
row stands in the row itself, so one folder is one model; several folders of one model are put
together when they are about different clips.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.manifest import is_manifest, read_manifest
from raysers.data.splits import identities
from raysers.engine import output
from raysers.errors import ConfigError, StorageError
from raysers.evaluation.join import DEVIATIONS, PROBABILITY, TRAINED_ON
from raysers.io import storage
from raysers.models.backbones import ASSETS, EMBEDDED, TRAINED_FILES
from raysers.run import load_record
from raysers.schemas import PARTS_OF_FILE
from raysers.types import DIMENSIONS

#: Folders of an output with rows like those of annotations, the first that is there.
_TABLES = ("annotations", "predictions")
_NEEDED = ("file", "start", "end", "clip_id", "status", *DIMENSIONS, "model", "model_revision")
_READERS = 8
#: What the paper's models were trained on.
_PAPER_CORPUS = "msp-podcast"


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
        found = (_document(place, "training.json") for place in self.places)
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
    parts = [field.name for field in PARTS_OF_FILE if field.name in table.column_names]
    return table.select([*_NEEDED, *parts, *optional])


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


def _document(folder: str, name: str) -> Any:
    """What a JSON file holds; None where it is not there or cannot be read."""
    try:
        return json.loads(storage.read_bytes(storage.join(folder, name)))
    except (StorageError, ConfigError, ValueError):
        return None


def backbone_of(one: Predictions) -> str:
    """The backbone that the whole model was fine-tuned from as the paper did; empty: otherwise.

    Another corpus, other frozen parts, less data or shuffled labels make another model.
    """
    config, data = one.training.get("config") or {}, one.training.get("data") or {}
    changed = (
        config.get("layers"),
        config.get("shuffle_labels"),
        config.get("freeze") in ("backbone", "none"),
        config.get("train_fraction", 1.0) != 1.0,
        {row.get("corpus") for row in data.get("splits") or ()} != {_PAPER_CORPUS},
    )
    return "" if any(changed) else str(config.get("backbone") or "")


def with_training_clips(one: Predictions) -> Predictions:
    """The predictions with the training clips, where a training left its manifest.

    Clips are the same by their id, or by their path below the folder that all clips share. Those of
    a built-in model and its copies are known by the names of their files, however they are cut or
    stored.
    """
    name = one.model.partition("@")[0]
    for folder in [str(ASSETS / name)] if name in EMBEDDED else one.places:
        listed = _document(folder, TRAINED_FILES)
        if taught := frozenset(map(str, listed if isinstance(listed, list) else ())):
            files = pc.cast(one.table["file"], pa.string()).to_pylist()
            stems = (re.split("[/#]", file)[-1].rpartition(".")[0] for file in files)
            return _marked(one, pa.array([stem in taught for stem in stems]))
        place = storage.join(folder, "manifest")
        if not (_document(folder, "training.json") and is_manifest(place)):
            continue
        clips = read_manifest(place)
        if "split" in clips.column_names:
            used = pc.fill_null(pc.equal(clips["split"], "train"), False)
            pairs = zip(_names(one.table), _names(clips), strict=True)
            met = [pc.is_in(mine, value_set=known.filter(used)) for mine, known in pairs]
            return _marked(one, pc.or_(*met))
    return one


def _marked(one: Predictions, met: pa.Array) -> Predictions:
    return replace(one, table=one.table.append_column(TRAINED_ON, met.cast(pa.float64())))


def _names(table: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Ids and identities of clips."""
    paths = identities(table.select(["file", "start", "end"]))
    return pa.array(table["clip_id"].to_pylist(), pa.string()), pa.array(paths, pa.string())
