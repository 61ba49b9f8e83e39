"""What a fusion's training leaves: heads, predictions of dev and test clips, figures, card.

The predictions come from the heads as they were stored and read back, as predict will have them.
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
from typing import Any

import numpy as np
import pyarrow as pa

from raysers.engine import output as parts
from raysers.evaluation.bootstrap import Bootstrap
from raysers.evaluation.join import COLUMNS
from raysers.evaluation.rows import Row, to_table
from raysers.evaluation.scores import Scores
from raysers.io import storage
from raysers.models.fusion import LEAST_LABELS, Fusion, FusionConfig, best_epoch, save_fusion
from raysers.run import RunRecord
from raysers.schemas import FUSED
from raysers.types import DIMENSIONS
from raysers.words.fusion_card import FusionFacts, fusion_card
from raysers.words.fusion_data import DEV, TRAIN, FusionData
from raysers.words.fusion_features import Features, Floats, TrainedHeads
from raysers.words.fusion_flags import FuseTrainFlags, head_settings
from raysers.words.fusion_parts import cut_note, read_fusion
from raysers.words.fusion_scores import ACOUSTIC, OF_HEAD, differences_figure, fusion_rows
from raysers.words.fusion_task import SUFFIXES, FusionTask

METRICS = "metrics/part-00000.parquet"
PREDICTIONS = "predictions/part-00000.parquet"
#: The picture of Figure 6, in both formats.
FIGURE = "differences"


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionResult:
    """Rows of the metrics table that are worth printing, figures for the record, and notes."""

    rows: list[Row]
    outcome: dict[str, Any]
    notes: list[str]


def write(
    flags: FuseTrainFlags,
    task: FusionTask,
    data: FusionData,
    features: Features,
    trained: TrainedHeads,
    record: RunRecord,
) -> FusionResult:
    """Write everything; returns what there is to say about it.

    Raises:
        WriteError: the folder cannot be written.
    """
    config, dimensions = config_of(flags, task), _trained(features)
    store(Fusion(config=config, heads=trained.heads, trained=dimensions), flags.output)
    fusion = read_fusion(flags.output)
    scores = fusion.score(features.vectors)
    judged = np.flatnonzero(np.array(features.table["split"].to_pylist(), object) != TRAIN)
    predictions = _predictions(flags, task, features, scores, fusion.revision, record)
    rows_of = predictions.take(pa.array(judged))
    parts.write_part(storage.join(flags.output, PREDICTIONS), rows_of)
    rows = fusion_rows(_scores(features, scores, judged), _bootstrap(flags))
    table = to_table([*rows, *_epoch_rows(trained, features)], record.run_id)
    parts.write_part(storage.join(flags.output, METRICS), table)
    figure = differences_figure(rows)
    for kind, content in figure.items():
        storage.write_atomic(storage.join(flags.output, f"{FIGURE}.{kind}"), content)
    notes = [*data.notes, *_notes(flags, task, features)]
    outcome = _outcome(features, trained, rows, notes)
    facts = _facts(flags, task, data, features, trained, rows, record, notes, bool(figure))
    storage.write_atomic(storage.join(flags.output, "README.md"), fusion_card(facts).encode())
    _write_document(flags, data, trained, record, outcome)
    return FusionResult(rows=rows, outcome=outcome, notes=notes)


def config_of(flags: FuseTrainFlags, task: FusionTask) -> FusionConfig:
    """What the heads were trained on, for their folder."""
    words = task.words
    return FusionConfig(
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


def store(fusion: Fusion, output: str) -> None:
    """Make `fusion` the one in the output; its configuration comes last."""
    with tempfile.TemporaryDirectory() as place:
        save_fusion(fusion, place)
        for file in sorted(Path(place).iterdir(), key=lambda f: f.suffix == ".json"):
            storage.write_atomic(storage.join(output, file.name), file.read_bytes())


def _bootstrap(flags: FuseTrainFlags) -> Bootstrap:
    return Bootstrap(draws=flags.bootstrap, seed=flags.seed)


def _predictions(
    flags: FuseTrainFlags,
    task: FusionTask,
    features: Features,
    scores: Mapping[str, Floats],
    revision: str,
    record: RunRecord,
) -> pa.Table:
    """The features' rows with the heads' scores in place of the acoustic model's."""
    rows = features.rows
    count = len(rows)
    own: dict[str, Any] = {
        "model": pa.array([flags.output] * count, pa.string()),
        "model_revision": pa.array([revision] * count, pa.string()),
        "run_id": pa.array([record.run_id] * count, pa.string()),
        "created_at": pa.array([datetime.now(UTC)] * count, pa.timestamp("us", tz="UTC")),
    }
    for head, values in scores.items():
        for place, dimension in enumerate(DIMENSIONS):
            column = pa.array(values[:, place], pa.float32(), from_pandas=True)
            own[f"{dimension}{SUFFIXES[head]}"] = column
    columns = [own.get(name) if name in own else rows[name] for name in FUSED.names]
    return pa.table(columns, schema=FUSED)


def _scores(features: Features, scores: Mapping[str, Floats], rows: Any) -> Scores:
    """Labels beside the four contestants, the fused one first."""
    named = {OF_HEAD[name]: values for name, values in scores.items()}
    fused, *others = named
    ordered = {fused: named[fused], ACOUSTIC: features.acoustic} | {n: named[n] for n in others}
    table = features.table.take(pa.array(rows))
    known = [name for name in COLUMNS if name in table.column_names]
    return Scores(
        clip_id=table["clip_id"].to_pylist(),
        truth=features.labels[rows].astype(np.float64),
        predictions={name: values[rows].astype(np.float64) for name, values in ordered.items()},
        columns={name: table[name].to_pylist() for name in known},
    )


def _epoch_rows(trained: TrainedHeads, features: Features) -> Iterator[Row]:
    """Mean dev CCC and training loss of every epoch of every head."""
    counts = {"dev": len(features.places(DEV)), "train": len(features.places(TRAIN))}
    for head, history in trained.history.items():
        for epoch in history:
            for split, metric, value in (
                ("dev", "ccc", epoch.dev_ccc),
                ("train", "loss", epoch.train_loss),
            ):
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


def _notes(flags: FuseTrainFlags, task: FusionTask, features: Features) -> Iterator[str]:
    clips = len(features.rows)
    makers = Counter(features.rows["asr_model"].to_pylist())
    yield "words from: " + ", ".join(f"{name} ({n:,} clips)" for name, n in sorted(makers.items()))
    texts = features.rows["text"].to_pylist()
    if empty := sum(not text.strip() for text in texts):
        yield (
            f"{empty:,} of {clips:,} clips have no words (an empty transcript means that no one "
            "speaks; leave it null to have the clip recognised)"
        )
    if note := cut_note(task.words, texts):
        yield note
    trained = _trained(features)
    if nothing := [name for name in DIMENSIONS if name not in trained]:
        yield f"too few train labels for {', '.join(nothing)}: not trained, the scores are null"
    if not any(split.startswith("test") for split in set(features.table["split"].to_pylist())):
        yield "there is no test split: the dev clips that chose the epochs are the ones reported"


def _trained(features: Features) -> list[str]:
    """Dimensions with enough train labels."""
    labels = np.isfinite(features.labels[features.places(TRAIN)]).sum(axis=0)
    return [d for d, n in zip(DIMENSIONS, labels, strict=True) if n >= LEAST_LABELS]


def _outcome(
    features: Features, trained: TrainedHeads, rows: Sequence[Row], notes: Sequence[str]
) -> dict[str, Any]:
    best = {name: best_epoch(history) for name, history in trained.history.items()}
    return {
        "clips": len(features.rows),
        "kept_epoch": {name: epoch.epoch for name, epoch in best.items()},
        "dev_ccc": {name: round(epoch.dev_ccc, 4) for name, epoch in best.items()},
        "ccc": {
            f"{r.dataset} {r.split} {r.model} {r.dimension}": round(r.value, 4)
            for r in rows
            if r.metric == "ccc"
        },
        "notes": list(notes),
    }


def _facts(
    flags: FuseTrainFlags,
    task: FusionTask,
    data: FusionData,
    features: Features,
    trained: TrainedHeads,
    rows: Sequence[Row],
    record: RunRecord,
    notes: Sequence[str],
    has_figure: bool,
) -> FusionFacts:
    words = task.words
    asr = words.asr
    keys = zip(
        features.table["corpus"].to_pylist(), features.table["split"].to_pylist(), strict=True
    )
    best = {name: best_epoch(history) for name, history in trained.history.items()}
    return FusionFacts(
        name=flags.output.rstrip("/").rpartition("/")[2],
        parts=[
            ("acoustic model", task.sound.model, task.sound.revision),
            ("text model", f"{words.model} ({words.pooling})", words.revision),
            ("recogniser", asr.asr if asr else "none: transcripts", asr.revision if asr else ""),
        ],
        clips=dict(sorted(Counter((c or "", s) for c, s in keys).items())),
        recipe=head_settings(flags),
        kept={name: (epoch.epoch, epoch.dev_ccc) for name, epoch in best.items()},
        rows=rows,
        command=shlex.join(record.command),
        notes=notes,
        leakage=data.leakage,
        has_figure=has_figure,
    )


def _write_document(
    flags: FuseTrainFlags,
    data: FusionData,
    trained: TrainedHeads,
    record: RunRecord,
    outcome: Mapping[str, Any],
) -> None:
    document = {
        "run_id": record.run_id,
        "command": record.command,
        "config": record.config,
        "settings": record.settings,
        "versions": record.versions,
        "seed": flags.seed,
        "data": {"fingerprint": data.fingerprint, "leakage": list(data.leakage)},
        "history": {n: [asdict(e) for e in history] for n, history in trained.history.items()},
        "outcome": outcome,
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"
    storage.write_atomic(storage.join(flags.output, "training.json"), text.encode())
