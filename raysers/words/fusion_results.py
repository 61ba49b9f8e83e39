"""What training a fusion leaves: heads, predictions of dev and test clips, figures, card.

Predictions come from the stored heads, read back, as `fuse predict` will load them.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.splits import identities
from raysers.engine import output as parts
from raysers.engine.job import ClipJob
from raysers.errors import RaysersError
from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.correctness import comparison_rows, correctness_rows
from raysers.evaluation.join import COLUMNS, dimensions_of
from raysers.evaluation.rows import METRICS_PART, Row, to_table
from raysers.evaluation.scores import ALL, Scores
from raysers.io import storage
from raysers.models.fusion import (
    LEAST_LABELS,
    SOUND,
    WORDS,
    EpochOfHead,
    Fusion,
    FusionConfig,
    FusionHead,
    Vectors,
    best_epoch,
    load_fusion,
    save_fusion,
    side_by_side,
)
from raysers.run import RunRecord
from raysers.schemas import FUSED as FUSED_SCHEMA
from raysers.types import DIMENSIONS, Status
from raysers.words.fusion import SUFFIXES, FusionTask
from raysers.words.fusion_card import (
    ACOUSTIC,
    FIGURE,
    FUSED,
    OF_HEAD,
    differences_figure,
    fusion_card,
    verdict,
)

if TYPE_CHECKING:
    from raysers.words.fuse_train import FuseTrainFlags

TRAIN, DEV = "train", "dev"
_PREDICTIONS = "predictions/part-00000.parquet"

Floats = npt.NDArray[np.float32]
Trained = Mapping[str, tuple[FusionHead, list[EpochOfHead]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionData:
    """Labelled clips for training and evaluation.

    Attributes:
        table: labelled manifest with a `split` in every row.
        fingerprint: changes with any clip, label or split.
        leakage: what train shares with other splits although it should not, a line each.
        notes: warnings, a line each.
    """

    table: pa.Table
    fingerprint: str
    leakage: Sequence[str]
    notes: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Clips that have vectors.

    Attributes:
        table: their rows of the labelled manifest.
        rows: their rows of the features table, without the vectors.
        vectors: float32 [clips, size] by source.
        labels: float32 [clips, 3], NaN where unknown.
        acoustic: float32 [clips, 3], scores of the acoustic model itself.
    """

    table: pa.Table
    rows: pa.Table
    vectors: dict[str, Floats]
    labels: Floats
    acoustic: Floats

    def places(self, split: str) -> npt.NDArray[np.intp]:
        """Row numbers of a split."""
        return np.flatnonzero(np.array(self.table["split"].to_pylist(), object) == split)

    def of(self, head: str, split: str) -> Vectors:
        """Input of a head and labels of a split."""
        rows = self.places(split)
        chosen = {source: values[rows] for source, values in self.vectors.items()}
        return Vectors(values=side_by_side(head, chosen), labels=self.labels[rows])

    @property
    def trained(self) -> list[str]:
        """Dimensions with enough train labels."""
        labels = np.isfinite(self.labels[self.places(TRAIN)]).sum(axis=0)
        return [d for d, n in zip(DIMENSIONS, labels, strict=True) if n >= LEAST_LABELS]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionResult:
    """Rows of the metrics table to print, figures for the record, notes, and the last line."""

    rows: list[Row]
    outcome: dict[str, Any]
    notes: list[str]
    verdict: str


def nothing_to_learn(labels: npt.NDArray[np.floating[Any]], split: Sequence[str]) -> str:
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


def read_features(job: ClipJob) -> Features:
    """The vectors of every clip that has them, in an order that survives moving the corpus.

    Raises:
        RaysersError: none has, or too few of the labelled ones.
    """
    rows = job.rows(job.task.schema.names)
    rows = rows.filter(pc.equal(rows["status"], str(Status.OK)))
    if not len(rows):
        place = job.run.output
        raise RaysersError(f"no clip of {place} has vectors: see its columns status and error")
    manifest = job.plan.manifest
    ids = manifest["clip_id"].combine_chunks()
    table = manifest.take(pc.index_in(rows["clip_id"].combine_chunks(), ids))
    order = pc.sort_indices(pa.array(identities(table), pa.string()))
    rows, table = rows.take(order), table.take(order)
    labels = dimensions_of(table).astype(np.float32)
    if lacking := nothing_to_learn(labels, table["split"].to_pylist()):
        raise RaysersError(f"of the clips of {job.run.output} that have vectors, {lacking}")
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
    flags: FuseTrainFlags,
    task: FusionTask,
    data: FusionData,
    features: Features,
    trained: Trained,
    record: RunRecord,
) -> FusionResult:
    """Write everything; returns what to print and record.

    Raises:
        WriteError: the folder cannot be written.
    """
    output, words = flags.output, task.words
    config = FusionConfig(
        acoustic_model=task.sound.model,
        acoustic_revision=task.sound.revision,
        text_model=words.model,
        text_revision=words.revision,
        text_pooling=words.pooling,
        asr=words.asr.asr if words.asr else flags.asr,
        asr_revision=words.asr.revision if words.asr else "",
        recognise_all=words.recognise_all,
        sound_size=task.sound.hidden_size,
        words_size=words.size,
        dropout=flags.dropout,
    )
    heads = {name: head for name, (head, _) in trained.items()}
    with tempfile.TemporaryDirectory() as place:
        save_fusion(Fusion(config=config, heads=heads, trained=features.trained), place)
        # the configuration comes last: without it the folder is not a fusion
        for file in sorted(Path(place).iterdir(), key=lambda f: f.suffix == ".json"):
            storage.write_atomic(storage.join(output, file.name), file.read_bytes())
    fusion = load_fusion(storage.fetch_folder(output, "--fusion"))
    scores = fusion.score(features.vectors)
    judged = np.flatnonzero(np.array(features.table["split"].to_pylist(), object) != TRAIN)
    predictions = _predictions(output, features, scores, fusion.revision, record)
    parts.write_part(storage.join(output, _PREDICTIONS), predictions.take(pa.array(judged)))
    rows = fusion_rows(
        _as_scores(features, scores, judged), Bootstrap(draws=flags.bootstrap, seed=flags.seed)
    )
    metrics = to_table([*rows, *_epoch_rows(trained, features)], record.run_id)
    parts.write_part(storage.join(output, METRICS_PART), metrics)
    figure = differences_figure(rows)
    for kind, content in figure.items():
        storage.write_atomic(storage.join(output, f"{FIGURE}.{kind}"), content)
    notes = [*data.notes, *_notes(task, features)]
    best = {name: best_epoch(history) for name, (_, history) in trained.items()}
    outcome: dict[str, Any] = {
        "clips": len(features.rows),
        "kept_epoch": {name: epoch.epoch for name, epoch in best.items()},
        "dev_ccc": {name: round(epoch.dev_ccc, 4) for name, epoch in best.items()},
        "ccc": {
            f"{r.dataset} {r.split} {r.model} {r.dimension}": round(r.value, 4)
            for r in rows
            if r.metric == "ccc"
        },
        "notes": notes,
    }
    asr = words.asr
    keys = zip(*(features.table[name].to_pylist() for name in ("corpus", "split")), strict=True)
    card = fusion_card(
        name=output.rstrip("/").rpartition("/")[2],
        parts=[
            ("acoustic model", task.sound.model, task.sound.revision),
            ("text model", f"{words.model} ({words.pooling})", words.revision),
            ("recogniser", asr.asr if asr else "none: transcripts", asr.revision if asr else ""),
        ],
        clips=dict(sorted(Counter((c or "", s) for c, s in keys).items())),
        recipe=flags.recipe,
        kept={name: (epoch.epoch, epoch.dev_ccc) for name, epoch in best.items()},
        rows=rows,
        command=shlex.join(record.command),
        notes=notes,
        leakage=data.leakage,
        has_figure=bool(figure),
    )
    storage.write_atomic(storage.join(output, "README.md"), card.encode())
    document = {
        **{n: getattr(record, n) for n in ("run_id", "command", "config", "settings", "versions")},
        "seed": flags.seed,
        "data": {"fingerprint": data.fingerprint, "leakage": list(data.leakage)},
        "history": {name: [asdict(e) for e in history] for name, (_, history) in trained.items()},
        "outcome": outcome,
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"
    storage.write_atomic(storage.join(output, "training.json"), text.encode())
    return FusionResult(rows=rows, outcome=outcome, notes=notes, verdict=verdict(rows))


def _predictions(
    output: str,
    features: Features,
    scores: Mapping[str, Floats],
    revision: str,
    record: RunRecord,
) -> pa.Table:
    """The features' rows with the heads' scores in place of the acoustic model's."""
    rows = features.rows
    own: dict[str, Any] = {
        name: pa.array([value] * len(rows), FUSED_SCHEMA.field(name).type)
        for name, value in (
            ("model", output),
            ("model_revision", revision),
            ("run_id", record.run_id),
            ("created_at", datetime.now(UTC)),
        )
    }
    for head, values in scores.items():
        for place, dimension in enumerate(DIMENSIONS):
            column = pa.array(values[:, place], pa.float32(), from_pandas=True)
            own[f"{dimension}{SUFFIXES[head]}"] = column
    columns = [own[name] if name in own else rows[name] for name in FUSED_SCHEMA.names]
    return pa.table(columns, schema=FUSED_SCHEMA)


def _as_scores(
    features: Features, scores: Mapping[str, Floats], rows: npt.NDArray[np.intp]
) -> Scores:
    """Labels beside the four contestants, the fused one first."""
    fused, *others = ((OF_HEAD[name], values) for name, values in scores.items())
    table = features.table.take(pa.array(rows))
    return Scores(
        clip_id=table["clip_id"].to_pylist(),
        truth=features.labels[rows].astype(np.float64),
        predictions={
            name: values[rows].astype(np.float64)
            for name, values in (fused, (ACOUSTIC, features.acoustic), *others)
        },
        columns={n: table[n].to_pylist() for n in COLUMNS if n in table.column_names},
    )


def _epoch_rows(trained: Trained, features: Features) -> Iterator[Row]:
    """Mean dev CCC and training loss of every epoch of every head."""
    counts = {split: len(features.places(split)) for split in (DEV, TRAIN)}
    for head, (_, history) in trained.items():
        for epoch in history:
            values = ((DEV, "ccc", epoch.dev_ccc), (TRAIN, "loss", epoch.train_loss))
            for split, metric, value in values:
                yield Row(
                    model=OF_HEAD[head],
                    dataset="all",
                    split=split,
                    group="epoch",
                    group_value=str(epoch.epoch),
                    dimension="mean",
                    metric=metric,
                    value=value,
                    n=counts[split],
                )


def _notes(task: FusionTask, features: Features) -> Iterator[str]:
    sources = Counter(features.rows["asr_model"].to_pylist())
    yield "texts from: " + ", ".join(f"{name} ({n:,} clips)" for name, n in sorted(sources.items()))
    texts = features.rows["text"].to_pylist()
    if empty := sum(not text.strip() for text in texts):
        yield (
            f"{empty:,} of {len(texts):,} clips have no words, so their text vector is that of the "
            "special tokens alone (an empty transcript means no speech; leave it null to have the "
            "clip recognised)"
        )
    if note := task.words.cut_note(texts):
        yield note
    if untrained := [name for name in DIMENSIONS if name not in features.trained]:
        yield f"too few train labels for {', '.join(untrained)}: not trained, the scores are null"
    if not any(split.startswith("test") for split in set(features.table["split"].to_pylist())):
        yield "there is no test split: the dev clips that chose the epochs are the ones reported"


def fusion_rows(scores: Scores, bootstrap: Bootstrap) -> list[Row]:
    """CCC, Pearson and MAE of all four, and the fused ones' differences to each other one.

    Args:
        scores: predictions by the names above, `fused` first.
        bootstrap: draws behind the intervals.

    Returns:
        Rows as of `correctness_rows` and `comparison_rows`. None is of several splits together:
        dev clips have chosen the epochs, test clips have not.
    """
    rows = correctness_rows(scores, draws=bootstrap.draws, seed=bootstrap.seed)
    rows += [row for row in comparison_rows(scores, bootstrap) if row.model == FUSED]
    return [row for row in rows if row.split != ALL or not any(scores.column("split"))]
