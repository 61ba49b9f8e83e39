"""What a finished training leaves beside the model: figures, card, curve, and the full record.

The dev scores come from the model as it was stored, read back and run the way annotate runs it, so
the card describes the file that users load.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.corpora.emotions import common_name, load_emotion_map
from raysers.engine import output as parts
from raysers.evaluation.bootstrap import interval_notes
from raysers.evaluation.correctness import category_rows, correctness_rows
from raysers.evaluation.evaluate import training_notes, with_training
from raysers.evaluation.join import categories_of, dimensions_of
from raysers.evaluation.rows import EMOTION, Row, to_table
from raysers.evaluation.scores import Scores, subsets, with_baseline
from raysers.io import storage
from raysers.run import RunRecord
from raysers.training.checkpoint import TrainProgress
from raysers.training.config import TrainingFlags
from raysers.training.dataset import TrainingData
from raysers.training.dev import PREDICTIONS
from raysers.training.model_card import CardFacts, SplitFacts, learning_curve, model_card
from raysers.training.plan import TrainingPlan

METRICS = "metrics/part-00000.parquet"

#: Flags that are told elsewhere on the card, or that say nothing about the model.
_NOT_RECIPE = {
    "data", "train", "dev", "corpus", "speakers", "limit", "max_failed", "output", "seed",
    "workers", "track", "checkpoint_steps", "max_restarts", "backbone", "allow_leakage",
    "shuffle_labels", "categories",
}  # fmt: skip
_ALWAYS = ("epochs", "batch_size", "lr", "optimiser", "schedule", "loss", "freeze", "dtype")


def write_results(plan: TrainingPlan, record: RunRecord, progress: TrainProgress) -> dict[str, Any]:
    """Everything a result folder has besides the model and its predictions.

    Returns:
        The figures for `run.json`.

    Raises:
        WriteError: the folder cannot be written.
    """
    output, history = plan.flags.output, progress.history
    name = output.rstrip("/").rpartition("/")[2]
    dev_rows, notes = _dev_rows(plan, name)
    by_epoch = _progress_rows(plan, name, "epoch", history)
    by_step = _progress_rows(plan, name, "step", progress.evaluations)
    table = to_table([*dev_rows, *by_epoch, *by_step], record.run_id)
    parts.write_part(storage.join(output, METRICS), table)
    for kind, content in learning_curve(history).items():
        storage.write_atomic(storage.join(output, f"learning_curve.{kind}"), content)
    facts = _facts(plan, record, history, dev_rows, notes, name)
    storage.write_atomic(storage.join(output, "README.md"), model_card(facts).encode())
    outcome = _outcome(plan, history, facts)
    document = _document(plan, record, progress, facts) | {"outcome": outcome}
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"
    storage.write_atomic(storage.join(output, "training.json"), text.encode())
    return outcome


def _dev_rows(plan: TrainingPlan, name: str) -> tuple[list[Row], list[str]]:
    """Figures of the stored model on the dev clips, and of the random baseline; and notes."""
    dev = plan.data.dev
    if not len(dev):
        return [], []
    predictions = parts.read_part(storage.join(plan.flags.output, PREDICTIONS))
    assert predictions is not None  # the workers have written it
    clip_ids = [clip.clip_id for clip in dev.clips]
    found = _of_clips(predictions, clip_ids)
    # with a leak, a clip is in train too
    known = _of_clips(plan.data.table.filter(pc.equal(plan.data.table["split"], "dev")), clip_ids)
    names = ("speaker", "sex", "corpus", "split", "session", "emotion")
    predicted = categories_of(found)
    scores = Scores(
        clip_id=clip_ids,
        truth=dev.labels.astype(np.float64),
        predictions={name: dimensions_of(found)},
        columns={n: known[n].to_pylist() for n in names if n in known.column_names}
        | {"identity": list(dev.identities)},
        categories={name: predicted} if predicted.names else {},
        trained={name: np.isin(dev.identities, list(plan.data.train.identities))},
    )
    by = ("sex",)
    rows = [*correctness_rows(with_baseline(scores), by=by), *category_rows(scores, by=by)]
    notes = [*training_notes(scores), *interval_notes(scores, subsets(scores, by))]
    return with_training(scores, rows), notes


def _of_clips(table: pa.Table, clip_ids: Sequence[str]) -> pa.Table:
    """The rows of these clips, in their order."""
    return table.take(pc.index_in(pa.array(clip_ids), table["clip_id"].combine_chunks()))


def _progress_rows(
    plan: TrainingPlan, name: str, group: str, records: Sequence[Mapping[str, Any]]
) -> Iterator[Row]:
    """Dev CCC, dev UAR and, by epoch, training loss; `group` is epoch or step."""
    for record in records:
        figures = [("dev", "ccc", d, value) for d, value in (record["dev_ccc"] or {}).items()]
        figures.append(("dev", "uar", EMOTION, record.get("dev_uar")))
        figures.append(("train", "loss", "mean", record.get("train_loss")))
        for split, metric, dimension, value in figures:
            if value is not None:
                yield Row(
                    model=name,
                    dataset="all",
                    group=group,
                    group_value=str(record[group]),
                    split=split,
                    dimension=dimension,
                    metric=metric,
                    value=value,
                    n=len(plan.data.dev if split == "dev" else plan.data.train),
                )


def _facts(
    plan: TrainingPlan,
    record: RunRecord,
    history: Sequence[Mapping[str, Any]],
    rows: Sequence[Row],
    notes: Sequence[str],
    name: str,
) -> CardFacts:
    flags, network, data = plan.flags, plan.network, plan.data
    kept = [r["epoch"] for r in history if r["kept"]]
    categories = data.categories if flags.category_weight else ()
    head = len(categories) * (network.embedding_size + 1)
    leakage = data.leakage[0] if data.leakage else ""
    more = len(data.leakage) - 1
    return CardFacts(
        name=name,
        backbone=flags.backbone,
        parameters=network.parameters + head,
        trained_parameters=network.trained + head,
        min_samples=network.min_samples,
        splits=_splits(data),
        recipe=_recipe(flags),
        metrics=rows,
        metric_notes=notes,
        command=shlex.join(record.command),
        versions=record.versions,
        seed=flags.seed,
        epochs=len(history),
        best_epoch=kept[-1] if flags.keep != "last" and kept else None,
        audio_hours=sum(r["audio_s"] for r in history) / 3600,
        seconds=sum(r["wall_s"] for r in history),
        workers=plan.placement.workers,
        device=plan.placement.device,
        data_fingerprint=data.fingerprint,
        leakage=f"{leakage}; and {more:,} more such groups" if more > 0 else leakage,
        shuffled_labels=flags.shuffle_labels,
        failed_clips=history[-1]["failed"],
        base_hub_id=network.hub_id,
        base_licence=network.licence,
        languages=sorted(set(_texts(data, "language")) - {""}),
        notes=[str(note) for note in data.notes],
        mapping=_mapping(plan),
        model_type=network.model_type,
        pooling=flags.pooling,
        trained=data.trained,
        categories=categories,
    )


def _mapping(plan: TrainingPlan) -> dict[str, tuple[float, float, float]]:
    """What the categories of the training clips stood for, where labels come from categories."""
    if not plan.flags.emotion_map:
        return {}
    known = load_emotion_map(plan.flags.emotion_map)
    points = {name: known.get(common_name(name)) for name in plan.data.categories}
    return {name: point for name, point in points.items() if point is not None}


def _texts(data: TrainingData, name: str) -> list[str]:
    if name not in data.table.column_names:
        return [""] * len(data.table)
    return [value or "" for value in data.table[name].to_pylist()]


def _splits(data: TrainingData) -> list[SplitFacts]:
    """Clips, hours and speakers of every corpus and split, train before dev."""
    clips = pd.DataFrame({name: _texts(data, name) for name in ("corpus", "split", "speaker")})
    clips["duration_s"] = data.table["duration_s"].to_numpy()
    facts = [
        SplitFacts(
            corpus=str(corpus or "unnamed"),
            split=str(split),
            clips=len(part),
            hours=float(part["duration_s"].sum() / 3600),
            speakers=len(set(part["speaker"]) - {""}) or None,
        )
        for (corpus, split), part in clips.groupby(["corpus", "split"])
    ]
    return facts[::-1]


def _recipe(flags: TrainingFlags) -> dict[str, object]:
    """The settings that matter: the main ones, then whatever is not at its default."""
    others = [
        f.name
        for f in fields(TrainingFlags)
        if f.name not in _NOT_RECIPE.union(_ALWAYS) and getattr(flags, f.name) != f.default
    ]
    return {name: getattr(flags, name) for name in (*_ALWAYS, *others)}


def _outcome(
    plan: TrainingPlan, history: Sequence[Mapping[str, Any]], facts: CardFacts
) -> dict[str, Any]:
    last = history[-1]
    whole = [r for r in facts.metrics if not r.group and r.model == facts.name]

    def figures(metric: str) -> dict[str, float | None]:
        return {
            f"{r.dataset} {r.dimension}": None if math.isnan(r.value) else round(r.value, 4)
            for r in whole
            if r.metric == metric
        }

    return {
        "epochs": len(history),
        "steps": last["step"],
        "kept_epoch": facts.best_epoch or len(history),
        "dev_ccc": figures("ccc"),
        **({"dev_uar": figures("uar")} if facts.categories else {}),
        "failed_clips": last["failed"],
        "left_out": dict(plan.data.left_out),
        "audio_hours": round(facts.audio_hours, 4),
        "training_s": round(facts.seconds, 1),
    }


def _document(
    plan: TrainingPlan, record: RunRecord, progress: TrainProgress, facts: CardFacts
) -> dict[str, Any]:
    """`training.json` but for the outcome."""
    data, placement = plan.data, plan.placement
    speakers: dict[str, dict[str, int]] = {}  # clips by split and speaker
    for split, speaker in zip(_texts(data, "split"), _texts(data, "speaker"), strict=True):
        counts = speakers.setdefault(split, {})
        counts[speaker or "unknown"] = counts.get(speaker or "unknown", 0) + 1
    return {
        "run_id": record.run_id,
        "command": record.command,
        "config": record.config,
        "settings": record.settings,
        "versions": record.versions,
        "seed": plan.flags.seed,
        "network": asdict(plan.network),
        "data": {
            "fingerprint": data.fingerprint,
            "splits": [asdict(split) for split in facts.splits],
            "speakers": speakers,
            "categories": list(data.categories),
            "leakage": list(data.leakage),
            "left_out": dict(data.left_out),
        },
        "placement": {
            "workers": placement.workers,
            "device": placement.device,
            "threads": placement.threads,
        },
        "history": progress.history,
        **({"evaluations": progress.evaluations} if plan.flags.eval_steps else {}),
        "failed_clips": progress.failed,
    }
