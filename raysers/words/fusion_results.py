"""What training a fusion leaves: heads, predictions of dev and test clips, figures, card.

Predictions come from the stored heads, read back, as `fuse predict` will load them. Does text help?
Fused scores are compared with the acoustic model, the audio head and the text head on the same
clips and the same draws of speakers (Figure 6).
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysers import display
from raysers.data.splits import identities
from raysers.engine import output as parts
from raysers.errors import RaysersError
from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.correctness import comparison_rows, correctness_rows
from raysers.evaluation.join import COLUMNS
from raysers.evaluation.rows import METRICS_PART, Row, bounded, number, row_of, to_table
from raysers.evaluation.scores import ALL, Scores, Subset, dimensions_of
from raysers.io import storage
from raysers.models.backbones import ASSETS
from raysers.models.fusion import (
    LEAST_LABELS,
    SOUND,
    WORDS,
    Fusion,
    Vectors,
    load_fusion,
    save_fusion,
    side_by_side,
)
from raysers.run import RunRecord
from raysers.schemas import FUSED as FUSED_SCHEMA
from raysers.types import DIMENSIONS, Status
from raysers.words.fusion import SUFFIXES

TRAIN, DEV = "train", "dev"
#: Names of the contestants, the fused one first; `model` and `group_value` of the rows.
FUSED, ACOUSTIC, AUDIO_HEAD, TEXT_HEAD = "fused", "acoustic model", "audio head", "text head"
_OF_HEAD = {"fused": FUSED, "audio": AUDIO_HEAD, "text": TEXT_HEAD}


class EpochOfHead(NamedTuple):
    """Mean loss of an epoch's steps, and CCC over the whole dev set."""

    epoch: int
    train_loss: float
    dev_ccc: float


Floats = npt.NDArray[np.float32]
History = Mapping[str, Sequence[EpochOfHead]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Clips that have vectors: rows of the labelled manifest, and of the predictions.

    All arrays are float32: `vectors` [clips, size] by source, `labels` [clips, 3] with NaN where
    unknown, and `acoustic` [clips, 3], the scores of the acoustic model itself.
    """

    table: pa.Table
    rows: pa.Table
    vectors: dict[str, Floats]
    labels: Floats
    acoustic: Floats

    @property
    def split(self) -> npt.NDArray[np.object_]:
        """Split of every clip."""
        return np.array(self.table["split"].to_pylist(), object)

    def of(self, head: str, split: str) -> Vectors:
        """Input of a head and labels of a split."""
        rows = self.split == split
        return Vectors(side_by_side(head, self.vectors)[rows], self.labels[rows])

    @property
    def trained(self) -> list[str]:
        """Dimensions with enough train labels."""
        counts = np.isfinite(self.labels[self.split == TRAIN]).sum(axis=0)
        return [d for d, n in zip(DIMENSIONS, counts, strict=True) if n >= LEAST_LABELS]


def nothing_to_learn(labels: Any, split: Sequence[str]) -> str:
    """Why no head can be trained and judged on these labels [clips, 3]; empty when one can.

    A CCC needs two clips, so without two labels of one dimension in train and dev, every epoch
    would be as good as any other.
    """
    of = np.array(split, object)
    counts = [np.isfinite(labels[of == name]).sum(axis=0) for name in (TRAIN, DEV)]
    if (np.minimum(*counts) >= LEAST_LABELS).any():
        return ""
    return (
        f"no dimension has {LEAST_LABELS} or more labels in both train and dev: give more labelled "
        "clips, or other splits"
    )


def features_of(clips: pa.Table, rows: pa.Table, place: str) -> Features:
    """The vectors of every clip that has them, in an order that survives moving the corpus.

    Raises RaysersError: none has, or too few of the labelled ones.
    """
    rows = rows.filter(pc.equal(rows["status"], str(Status.OK)))
    if not len(rows):
        raise RaysersError(f"no clip of {place} has vectors: see its columns status and error")
    ids = clips["clip_id"].combine_chunks()
    table = clips.take(pc.index_in(rows["clip_id"].combine_chunks(), ids))
    order = pc.sort_indices(pa.array(identities(table), pa.string()))
    rows, table = rows.take(order), table.take(order)
    labels = dimensions_of(table).astype(np.float32)
    if lacking := nothing_to_learn(labels, table["split"].to_pylist()):
        raise RaysersError(f"of the clips of {place} that have vectors, {lacking}")
    vectors = {
        source: np.stack(rows[column].to_numpy()).astype(np.float32)
        for source, column in ((SOUND, "embedding"), (WORDS, "text_embedding"))
    }
    return Features(
        table=table,
        rows=rows.drop_columns(["embedding", "text_embedding"]),
        vectors=vectors,
        labels=labels,
        acoustic=dimensions_of(rows).astype(np.float32),
    )


def write(
    output: str,
    fusion: Fusion,
    history: History,
    features: Features,
    record: RunRecord,
    *,
    bootstrap: Bootstrap,
    leakage: Sequence[str],
    notes: Sequence[str],
) -> tuple[list[Row], dict[str, Any]]:
    """Write everything; returns rows of the metrics table, and the outcome with all notes.

    Raises WriteError: the folder cannot be written.
    """
    with tempfile.TemporaryDirectory() as place:
        save_fusion(fusion, place)
        # the configuration comes last: without it the folder is not a fusion
        for file in sorted(Path(place).iterdir(), key=lambda f: f.suffix == ".json"):
            storage.write_atomic(storage.join(output, file.name), file.read_bytes())
    fusion = load_fusion(storage.fetch_folder(output, "--fusion"))
    scores = fusion.score(features.vectors)
    judged = np.flatnonzero(features.split != TRAIN)
    predictions = _predictions(output, fusion.revision, scores, features.rows, record.run_id)
    part = storage.join(output, "predictions", "part-00000.parquet")
    parts.write_part(part, predictions.take(pa.array(judged)))
    fused, *others = ((_OF_HEAD[name], values) for name, values in scores.items())
    clips = features.table.take(pa.array(judged))
    contestants = dict([fused, (ACOUSTIC, features.acoustic), *others])
    rows = fusion_rows(
        Scores(
            clip_id=clips["clip_id"].to_pylist(),
            truth=features.labels[judged].astype(np.float64),
            predictions={k: v[judged].astype(np.float64) for k, v in contestants.items()},
            columns={n: clips[n].to_pylist() for n in COLUMNS if n in clips.column_names},
        ),
        bootstrap,
    )
    metrics = to_table([*rows, *_epoch_rows(history, features)], record.run_id)
    parts.write_part(storage.join(output, METRICS_PART), metrics)
    if shown := _judged_by(differences(rows)):
        for kind, content in display.picture(lambda: _draw(shown)).items():
            storage.write_atomic(storage.join(output, f"differences.{kind}"), content)
    best = {name: best_epoch(epochs) for name, epochs in history.items()}
    outcome: dict[str, Any] = {
        "clips": len(features.rows),
        "kept_epoch": {name: epoch.epoch for name, epoch in best.items()},
        "dev_ccc": {name: round(epoch.dev_ccc, 4) for name, epoch in best.items()},
        "notes": [*notes, *_notes(features)],
    }
    keys = zip(*(features.table[name].to_pylist() for name in ("corpus", "split")), strict=True)
    card = fusion_card(
        rows,
        name=output.rstrip("/").rpartition("/")[2],
        config=fusion.config,
        clips=Counter((corpus or "", split) for corpus, split in keys),
        best=best,
        command=shlex.join(record.command),
        notes=outcome["notes"],
        leakage=leakage,
    )
    storage.write_atomic(storage.join(output, "README.md"), card.encode())
    known = ("run_id", "command", "config", "settings", "versions")
    document = {name: getattr(record, name) for name in known} | {
        "data": {"leakage": list(leakage)},
        "history": {name: [e._asdict() for e in epochs] for name, epochs in history.items()},
        "outcome": outcome,
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"
    storage.write_atomic(storage.join(output, "training.json"), text.encode())
    return rows, outcome


def _predictions(
    output: str, revision: str, scores: Mapping[str, Floats], rows: pa.Table, run_id: str
) -> pa.Table:
    """The features' rows with the heads' scores in place of the acoustic model's."""
    made = {"model": output, "model_revision": revision, "run_id": run_id}
    own: dict[str, Any] = {name: [value] * len(rows) for name, value in made.items()}
    own["created_at"] = [datetime.now(UTC)] * len(rows)
    for name in ("start", "end"):
        ns = rows[name].cast(pa.int64()).cast(pa.float64())
        own[f"{name}_s"] = pc.divide(ns, 1e9)
    for head, values in scores.items():
        for place, dimension in enumerate(DIMENSIONS):
            column = pa.array(values[:, place], pa.float32(), from_pandas=True)
            own[f"{dimension}{SUFFIXES[head]}"] = column
    columns = {name: own[name] if name in own else rows[name] for name in FUSED_SCHEMA.names}
    return pa.table(columns, schema=FUSED_SCHEMA)


def _epoch_rows(history: History, features: Features) -> Iterator[Row]:
    """Mean dev CCC and training loss of every epoch of every head."""
    counts = Counter(features.split.tolist())
    for head, epochs in history.items():
        for epoch, loss, ccc in epochs:
            for split, metric, value in ((DEV, "ccc", ccc), (TRAIN, "loss", loss)):
                of = Subset(dataset="all", split=split, group="epoch", group_value=str(epoch))
                yield row_of(of, _OF_HEAD[head], metric, value, counts[split], dimension="mean")


def _notes(features: Features) -> Iterator[str]:
    sources = Counter(features.rows["asr_model"].to_pylist())
    yield "texts from: " + ", ".join(f"{name} ({n:,} clips)" for name, n in sorted(sources.items()))
    texts = features.rows["text"].to_pylist()
    if empty := sum(not text.strip() for text in texts):
        yield (
            f"{empty:,} of {len(texts):,} clips have no words, so their text vector is that of the "
            "special tokens alone (an empty transcript means no speech; leave it null to have the "
            "clip recognised)"
        )
    if untrained := [name for name in DIMENSIONS if name not in features.trained]:
        yield f"too few train labels for {', '.join(untrained)}: not trained, the scores are null"
    if not any(split.startswith("test") for split in set(features.split)):
        yield "there is no test split: the dev clips that chose the epochs are the ones reported"


def best_epoch(history: Sequence[EpochOfHead]) -> EpochOfHead:
    """The epoch that was kept: the first of those with the highest dev CCC."""
    return max(history, key=lambda one: (one.dev_ccc, -one.epoch))


def fusion_rows(scores: Scores, bootstrap: Bootstrap) -> list[Row]:
    """CCC, Pearson and MAE of all contestants, and the fused ones' differences to each other one.

    No row is of several splits together: dev clips have chosen the epochs, test clips have not.
    """
    rows = correctness_rows(scores, draws=bootstrap.draws, seed=bootstrap.seed)
    rows += [row for row in comparison_rows(scores, bootstrap) if row.model == FUSED]
    return [row for row in rows if row.split != ALL or not any(scores.column("split"))]


def differences(rows: Sequence[Row]) -> list[Row]:
    """The rows of Figure 6: CCC fused minus CCC of another, by subset, other and dimension."""
    of_fused = (row for row in rows if row.model == FUSED and row.group == "model")
    return [row for row in of_fused if row.metric == "ccc_difference"]


def _judged_by(rows: Sequence[Row]) -> list[Row]:
    """Rows of the split to judge by: the first test split, else dev, else any."""
    splits = sorted({row.split for row in rows}, key=lambda s: (s[:4] != "test", s != DEV, s))
    return [row for row in rows if row.split == splits[0]]


def verdict(rows: Sequence[Row]) -> str:
    """One line: the dimensions in which text helps, and those in which it does not.

    It helps where the whole interval of the CCC of the fused head minus that of the acoustic model
    is above 0.
    """
    found = _judged_by([row for row in differences(rows) if row.group_value == ACOUSTIC])
    shown = [row for row in found if row.value == row.value]
    if not shown:
        return "text does not help: the fused head cannot be compared with the acoustic model"
    sides = {
        "text helps": [row for row in shown if row.ci_low > 0],
        "text does not help": [row for row in shown if not row.ci_low > 0],
    }
    lines = [
        f"{side}: " + ", ".join(f"{row.dimension} {_difference(row)}" for row in mine)
        for side, mine in sides.items()
        if mine
    ]
    return f"{'; '.join(lines)} (CCC fused - acoustic model, {shown[0].split})"


def _difference(row: Row) -> str:
    """`+.123 [.012, .234]`."""
    return "+" * (row.value > 0) + bounded(row)


def _draw(rows: Sequence[Row]) -> Any:
    """CCC of fused scores minus CCC of the others, a panel for each dimension."""
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    lines = [(d, other) for d in datasets for other in (ACOUSTIC, AUDIO_HEAD, TEXT_HEAD)]
    figure = display.new_figure(0.95 + 0.3 * len(lines))
    there = [name for name in DIMENSIONS if name in {row.dimension for row in rows}]
    panels = figure.subplots(1, len(there), sharex=True, sharey=True, squeeze=False)[0]
    for axis, dimension in zip(panels, there, strict=True):
        display.panel_title(axis, dimension)
        display.guide(axis, 0.0)
        for row in rows:
            if row.dimension == dimension:
                at = lines.index((row.dataset, row.group_value))
                display.interval(
                    axis, row.value, (row.ci_low, row.ci_high), at, display.COLOURS[dimension]
                )
        display.value_grid(axis, "x", most=4)
    display.name_rows(panels[0], [f"{d}: {o}" if len(datasets) > 1 else o for d, o in lines])
    split = rows[0].split
    figure.supxlabel(f"CCC fused - CCC of the other, {split} clips; lines are 95 % intervals")
    return figure


def fusion_card(rows: Sequence[Row], **facts: Any) -> str:
    """The card as Markdown, of `fusion_rows` and what else the template names."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False
    )
    environment.filters |= {
        "plain": display.plain,
        "number": number,
        "line": lambda cells: "| " + " | ".join(map(display.plain, cells)) + " |",
        "code": lambda text: display.fenced(display.one_line(text), "sh"),
    }
    template = environment.from_string((ASSETS / "fusion_card.md.j2").read_text("utf-8"))
    return template.render(
        ccc=_by_dimension([row for row in rows if row.metric == "ccc"], "model", "{}", bounded),
        differences=_by_dimension(differences(rows), "group_value", "fused - {}", _difference),
        verdict=verdict(rows),
        **facts,
    )


def _by_dimension(
    rows: Sequence[Row], of: str, name: str, text: Callable[[Row], str]
) -> list[Sequence[str]]:
    """A line for each dataset, split and value of the attribute `of`."""
    found = {(r.dataset, r.split, getattr(r, of), r.dimension): text(r) for r in rows}
    return [
        (f"{d} {split}: {name.format(v)}", *(found.get((d, split, v, n), "") for n in DIMENSIONS))
        for d, split, v in dict.fromkeys(key[:3] for key in found)
    ]
