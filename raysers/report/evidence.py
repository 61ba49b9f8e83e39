"""The outputs of other jobs as frames.

A run is known by the job in its `run.json`. A dataset is shown by one split only, its (first) test
split where there is one; the dev split of a training stands in for it where nothing else was
measured. Trainings that differ in their seed only are one value: their mean, from their lowest to
their highest bound, because the interval of one training says what other speakers would change, not
what another seed would.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysers.display import model_names
from raysers.engine.output import read_part
from raysers.errors import ConfigError, ObjectMissing
from raysers.evaluation.scores import RANDOM
from raysers.io import storage
from raysers.run import load_record
from raysers.types import DIMENSIONS, NS_PER_S, Status

#: The parts of a fusion: models of the tables that are no networks, as the random one.
PARTS = ("fused", "acoustic model", "audio head", "text head")
#: The studies the paper's figures are of; others are the user's.
PAPER_STUDIES = (
    "backbones", "pretraining", "frozen", "seeds", "layers", "fraction", "robustness",
    "fairness", "speakers", "effects", "embeddings", "fusion", "probe", "respoken",
)  # fmt: skip
#: What a study varies when it trains the same several times.
SEED = "seed"
_MAIN_SPLITS = ("test1", "test", "all", "dev")
_AHEAD = 8
#: Columns of annotations, and what the manifest may know of the clips.
_ANNOTATIONS = (
    "file", "start", "end", "clip_id", "status", "error", *DIMENSIONS, "emotion", "ood",
    "duration_s", "rms_db", "clipped_ratio", "model", "channel", "audio_stream",
)  # fmt: skip
_MANIFEST = ("corpus", "speaker", "sex", "language")
_TEXTS = [
    "study", "cell", "backbone", "factor", "factor_value", "model", "dataset", "split", "group",
    "group_value", "dimension", "metric",
]  # fmt: skip
#: Numbers, with what stands for unknown ones.
_NUMBERS: dict[str, float] = {
    "seed": 0, "seeds": 1, "n": 0, "speakers": 0, "trained_on": 0, "value": math.nan,
    "ci_low": math.nan, "ci_high": math.nan, "paper": math.nan,
}  # fmt: skip


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else none."""
    return value if isinstance(value, Mapping) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRun:
    """A run's record (`run.json`), and `training.json` and `config.json` of a training.

    `model` is what its study calls the model; empty outside of studies.
    """

    folder: str
    record: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""

    @property
    def job(self) -> str:
        """Which job wrote the folder."""
        return str(self.record.get("job", ""))

    @property
    def name(self) -> str:
        """The last part of its folder."""
        return last_part(self.folder)

    @property
    def outcome(self) -> Mapping[str, Any]:
        """The figures of the run's end; empty when it has not ended."""
        return mapping(self.record.get("outcome"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the figures are made from.

    The given runs, and what the cells of the given studies left; all metrics tables, with the cell
    of a study (`STUDY_METRICS`); curves and cells of studies (`schemas.CURVES`, `schemas.CELLS`).
    """

    runs: Sequence[ReportRun] = ()
    cell_runs: Sequence[ReportRun] = ()
    metrics: pd.DataFrame = field(default_factory=lambda: metrics_frame(None))
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    cells: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: Sequence[str] = ()

    def of_job(self, *jobs: str) -> Iterator[ReportRun]:
        """Runs of these jobs, those in studies too."""
        return (run for run in (*self.runs, *self.cell_runs) if run.job in jobs)


def read_evidence(uris: Sequence[str]) -> Evidence:
    """Runs, metrics, curves and cells; tables of clips are read where they are shown.

    Raises ConfigError: a folder holds no run; RaysersError: a table cannot be read.
    """
    runs = [_run(uri) for uri in dict.fromkeys(uris)]
    cell_runs, notes = list[ReportRun](), list[str]()
    metrics, curves, cells = [], [pd.DataFrame()], [pd.DataFrame()]
    for run in runs:
        notes += _notes(run)
        table = metrics_frame(table_of(run.folder, "metrics"))
        if run.job == "study":
            own = frame_of(run.folder, "cells")
            table = _with_names(table, own)
            curves.append(frame_of(run.folder, "curves"))
            cells.append(own)
            cell_runs += _runs_of(run, own)
            notes += _progress(own)
        elif run.job == "train":  # calls its model by its folder's name, other jobs by the folder
            table["model"] = table.model.where(table.model != run.name, run.folder)
        elif run.job == "fuse-train":
            table["backbone"] = run.name
        metrics.append(table)
    values = pd.concat(metrics, ignore_index=True)
    values = values.drop_duplicates([*_TEXTS, SEED], keep="last", ignore_index=True)
    compared = values.group == "model"
    names = model_names([*dict.fromkeys([*values.model, *values.group_value[compared]])])
    # wherever such a number is shown, its model's name says so
    known = np.where(values.trained_on == 0, "", " (trained on these clips)")
    values["model"] = values.model.map(names) + known
    values["group_value"] = values.group_value.where(~compared, values.group_value.map(names))

    def named(note: str) -> str:
        model = next((m for m in names if m and note.startswith(f"{m} ")), "")
        return names[model] + note[len(model) :] if model else note

    return Evidence(
        runs=runs,
        cell_runs=cell_runs,
        metrics=values,
        curves=pd.concat([f for f in curves if len(f)] or curves[:1], ignore_index=True),
        cells=pd.concat([f for f in cells if len(f)] or cells[:1], ignore_index=True),
        notes=list(dict.fromkeys(map(named, notes))),
    )


def _run(uri: str, model: str = "") -> ReportRun:
    record = load_record(uri)
    if record is None:
        raise ConfigError(f"--runs {uri} has no run.json: give the --output folders of other jobs")
    names = {"training": "training.json", "network": "config.json"} if record.job == "train" else {}
    more = {key: _json(storage.join(uri, name)) for key, name in names.items()}
    return ReportRun(folder=uri, record=asdict(record), model=model, **more)


def _json(uri: str) -> Mapping[str, Any]:
    try:
        return mapping(json.loads(storage.read_bytes(uri)))
    except (ObjectMissing, ValueError):
        return {}


def _runs_of(run: ReportRun, cells: pd.DataFrame) -> Iterator[ReportRun]:
    for row in cells.to_dict("records"):
        folder = storage.join(run.folder, str(row["path"] or ""))
        if row["status"] == "done" and row["path"] and load_record(folder) is not None:
            yield _run(folder, str(row["model"] or ""))


def _notes(run: ReportRun) -> Iterator[str]:
    status = str(run.record.get("status", ""))
    if not status.startswith("done"):
        yield f"{run.folder}: this run is {status}, its results are incomplete"
    notes = run.outcome.get("notes")
    yield from map(str, notes) if isinstance(notes, list) else ()


def _progress(cells: pd.DataFrame) -> Iterator[str]:
    for study, own in cells.groupby("study", sort=False) if len(cells) else ():
        if (done := int((own.status == "done").sum())) < len(own):
            yield f"The study {study} is unfinished: {done} of {len(own)} runs are done"
        for row in own[own.status == "failed"].to_dict("records"):
            yield f"{study} {row['cell']} failed: {row['error']}"


def stream(folder: str, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The parts of a table in the order of their names, with those of `columns` that are there."""
    known = columns_of(folder, name)
    wanted = None if columns is None else [c for c in columns if c in known]
    waiting: deque[Future[pa.Table | None]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        for part in storage.list_parts(storage.join(folder, name)):
            waiting.append(pool.submit(read_part, part.uri, wanted))
            if len(waiting) == _AHEAD and (table := waiting.popleft().result()) is not None:
                yield table
        yield from (table for one in waiting if (table := one.result()) is not None)


def columns_of(folder: str, name: str) -> list[str]:
    """Names of the columns of a table; none when the run has no such table."""
    parts = storage.list_parts(storage.join(folder, name))
    if not parts:
        return []
    with pq.ParquetFile(storage.open_source(parts[0].uri)) as file:
        return list(file.schema_arrow.names)


def table_of(folder: str, name: str, columns: Sequence[str] | None = None) -> pa.Table | None:
    """A table whole, or None when the run has none."""
    found = list(stream(folder, name, columns))
    return pa.concat_tables(found, promote_options="default") if found else None


def frame_of(folder: str, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table as a frame; empty when the run has none."""
    found = table_of(folder, name, columns)
    return pd.DataFrame() if found is None else found.to_pandas()


def metrics_frame(table: pa.Table | None) -> pd.DataFrame:
    """A metrics table, or that of a study, with all columns of both; NaN: undefined."""
    frame = pd.DataFrame() if table is None else table.to_pandas()
    frame = frame.reindex(columns=[*_TEXTS, *_NUMBERS])
    frame[_TEXTS] = frame[_TEXTS].astype(object).fillna("").astype(str)
    known = {name: value for name, value in _NUMBERS.items() if value == value}
    return frame.astype(dict.fromkeys(_NUMBERS, float)).fillna(known)


def _with_names(metrics: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """A study's metrics with the models called as its cells do.

    Cells that compare several models, each with its own name, keep these.
    """
    if cells.empty or metrics.empty:
        return metrics
    keys = ["study", "cell"]
    called = cells.set_index(keys).model.fillna("")
    several = metrics[is_network(metrics)].groupby(keys).model.nunique() > 1
    place = pd.MultiIndex.from_frame(metrics[keys])
    name = called.reindex(place).fillna("").mask(several.reindex(place, fill_value=False), "")
    named = pd.Series(name.to_numpy(), metrics.index)
    ours = is_network(metrics) & (named != "")
    return metrics.assign(backbone=named, model=metrics.model.mask(ours, named))


def is_network(metrics: pd.DataFrame) -> pd.Series:
    """Which rows are of a model itself, neither random nor a part of a fusion."""
    return ~metrics.model.isin([RANDOM, *PARTS])


def of_studies(metrics: pd.DataFrame, *studies: str) -> pd.DataFrame:
    """The rows of these studies and of no study: others train the same models in other ways."""
    return metrics[metrics.study.isin(["", *studies])]


def own_studies(metrics: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of every study that is none of the paper's, by study."""
    own = metrics[~metrics.study.isin(["", *PAPER_STUDIES])]
    return {str(name): rows for name, rows in own.groupby("study", sort=False)}


def main_splits(metrics: pd.DataFrame) -> pd.DataFrame:
    """Of every model and dataset only the main split, so that no dataset is shown twice."""
    order = {split: place for place, split in enumerate(_MAIN_SPLITS)}
    rank = metrics.split.map(order).fillna(len(order))
    best = metrics.assign(rank=rank).sort_values(["rank", "split"], kind="stable")
    first = best.groupby(["model", "dataset"]).split.transform("first").reindex(metrics.index)
    return metrics[metrics.split == first]


def over_seeds(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row for the seeds of an experiment; the name of the model says how many there are."""
    if metrics.empty:
        return metrics
    keys = [name for name in _TEXTS if name not in ("cell", "factor")]
    rows = metrics.assign(factor_value=metrics.factor_value.mask(metrics.factor == SEED, ""))
    rows = rows.drop_duplicates([*keys, SEED], keep="last").assign(seeds=rows.value)
    how = dict.fromkeys(("factor", "paper", "n", "speakers"), "last")
    how |= {"value": "mean", "ci_low": "min", "ci_high": "max", "seeds": "count"}
    found = rows.groupby(keys, sort=False, as_index=False).agg(how)
    found["seeds"] = found.seeds.clip(lower=1)
    panels = found.groupby(["study", "model", "dataset", "split"], sort=False).seeds
    least, most = panels.transform("min"), panels.transform("max")
    said = least.astype(str).mask(least < most, least.astype(str) + " to " + most.astype(str))
    plain = (most == 1) | (found.model == RANDOM)
    return found.assign(model=found.model.where(plain, found.model + ", " + said + " seeds"))


def factor_values(metrics: pd.DataFrame) -> list[str]:
    """Values of what a study varies within a model; none where it only compares models or seeds."""
    varied = metrics[(metrics.factor_value != "") & (metrics.factor != SEED) & is_network(metrics)]
    several = varied.groupby("model").factor_value.nunique() > 1
    return list(varied.factor_value.unique()) if several.any() else []


def by_themselves(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of one study as if of none, each model called by what tells it from the others."""
    ours = is_network(metrics)
    name = value = metrics.factor_value
    if metrics.model[ours].nunique() > 1:
        name = metrics.model + ", " + value
    varied = ours & (value != "") & bool(factor_values(metrics))
    return metrics.assign(study="", factor_value="", model=metrics.model.mask(varied, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """An annotation.

    `clips` are its rows with `start_ns`, `end_ns` (of failed clips where the header says so),
    `folder` and what the manifest knows; `numbers` the columns of probabilities `p_*` and of
    deviations `*_sd`.
    """

    run: ReportRun
    clips: pd.DataFrame
    numbers: Sequence[str]

    @property
    def name(self) -> str:
        """What was annotated: the last part of the input's place, or else of the output's."""
        match mapping(self.run.record.get("config")).get("input"):
            case [place]:
                return last_part(str(place))
        return self.run.name

    @property
    def model(self) -> str:
        """The model that scored it."""
        return str(next(iter(self.clips.model.dropna()), "an unnamed model"))

    @property
    def ok(self) -> pd.DataFrame:
        """The scored clips."""
        return self.clips[self.clips.status == str(Status.OK)]


def read_archives(found: Evidence) -> list[Archive]:
    """The annotations among the given runs."""
    runs = (run for run in found.runs if run.job in ("annotate", "fuse-predict"))
    return [one for run in runs if (one := _archive(run)) is not None]


def _archive(run: ReportRun) -> Archive | None:
    names = columns_of(run.folder, "annotations")
    numbers = [n for n in names if n.startswith("p_") or n.endswith("_sd")]
    rows = table_of(run.folder, "annotations", [*_ANNOTATIONS, *numbers])
    if rows is None or not len(rows):
        return None
    for name, unknown in (("start", 0), ("end", -1)):  # integers cannot overflow a frame's times
        times = pc.fill_null(rows[name].cast(pa.int64()), unknown)
        rows = rows.set_column(rows.column_names.index(name), f"{name}_ns", times)
    clips = rows.to_pandas()
    known = table_of(run.folder, "manifest", ("clip_id", "duration_s", *_MANIFEST))
    if known is not None and "clip_id" in known.column_names:
        manifest = known.to_pandas().drop_duplicates("clip_id")
        clips = clips.merge(manifest, on="clip_id", how="left", suffixes=("", "_header"))
    length_s = clips.duration_s.fillna(clips.get("duration_s_header", np.nan)).fillna(0.0)
    end = clips.start_ns + (length_s * NS_PER_S).astype("int64")
    clips["end_ns"] = clips.end_ns.where(clips.end_ns > 0, end)
    clips = clips.assign(folder=folders(rows["file"]), error=clips.error.fillna(""))
    for name in ("emotion", "ood", *_MANIFEST):
        if name not in clips:
            clips[name] = np.nan if name == "ood" else ""
    return Archive(run=run, clips=clips, numbers=numbers)


def folders(files: pa.ChunkedArray) -> Any:
    """Of every file the first folder (or tar) below the one that all files share; "" for none."""
    is_member = pc.match_substring_regex(files, r"(?i)\.tar#")
    tars = pc.replace_substring_regex(files, r"(?i)(\.tar)#.*$", r"\1/")
    place = pc.if_else(is_member, tars, pc.replace_substring_regex(files, r"[^/]*$", ""))
    ends = list(pc.min_max(place).as_py().values())
    shared = os.path.commonprefix(ends).rpartition("/")[0] + "/"  # noqa: RUF071  cut at a slash
    below = pc.utf8_slice_codeunits(place, len(shared))
    return pc.replace_substring_regex(below, r"/.*$", "").to_pandas().to_numpy()


def last_part(path: str) -> str:
    """The last name of a path or URI."""
    return path.rstrip("/").rpartition("/")[2] or path
