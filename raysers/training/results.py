"""What a finished training leaves beside the model: figures, card, curve, and the full record.

The dev scores come from the model as it was stored, read back and run the way annotate runs it, so
the card describes the file that users load.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.corpora.emotions import common_name, load_emotion_map
from raysers.engine import output as parts
from raysers.evaluation.baseline import with_baseline
from raysers.evaluation.categories import EMOTION, category_rows
from raysers.evaluation.correctness import correctness_rows
from raysers.evaluation.join import categories_of, dimensions_of
from raysers.evaluation.rows import Row, to_table
from raysers.evaluation.scores import Scores
from raysers.io import storage
from raysers.run import RunRecord
from raysers.training.config import TrainingFlags
from raysers.training.curve import learning_curve
from raysers.training.dataset import Examples
from raysers.training.model_card import CardFacts, SplitFacts, model_card
from raysers.training.plan import TrainingPlan
from raysers.training.store import PREDICTIONS

METRICS = "metrics/part-00000.parquet"

History = Sequence[Mapping[str, Any]]


def write_results(
    plan: TrainingPlan, record: RunRecord, history: History, failed: Mapping[str, str]
) -> dict[str, Any]:
    """Everything a result folder has besides the model and its predictions.

    Returns:
        The figures for `run.json`.

    Raises:
        WriteError: the folder cannot be written.
    """
    output = plan.flags.output
    name = output.rstrip("/").rpartition("/")[2]
    rows = _dev_rows(plan, name)
    facts = _facts(plan, record, history, rows, name)
    table = to_table([*rows, *_epoch_rows(plan, name, history)], record.run_id)
    parts.write_part(storage.join(output, METRICS), table)
    for kind, content in learning_curve(history).items():
        storage.write_atomic(storage.join(output, f"learning_curve.{kind}"), content)
    storage.write_atomic(storage.join(output, "README.md"), model_card(facts).encode())
    outcome = _outcome(plan, history, facts, rows)
    document = _document(plan, record, history, facts)
    document |= {"failed_clips": dict(failed), "outcome": outcome}
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"
    storage.write_atomic(storage.join(output, "training.json"), text.encode())
    return outcome


def _dev_rows(plan: TrainingPlan, name: str) -> list[Row]:
    """Figures of the stored model on the dev clips, and of the random baseline."""
    dev = plan.data.dev
    if not len(dev):
        return []
    predictions = parts.read_part(storage.join(plan.flags.output, PREDICTIONS))
    assert predictions is not None  # the workers have written it
    wanted = pa.array([clip.clip_id for clip in dev.clips])
    found = predictions.take(pc.index_in(wanted, predictions["clip_id"].combine_chunks()))
    said = categories_of(found)
    scores = Scores(
        clip_id=[clip.clip_id for clip in dev.clips],
        truth=dev.labels.astype(np.float64),
        predictions={name: dimensions_of(found)},
        columns=_known(plan.data.table, dev),
        categories={name: said} if said.names else {},
    )
    by = ("sex",)
    return [*correctness_rows(with_baseline(scores), by=by), *category_rows(scores, by=by)]


def _known(table: pa.Table, dev: Examples) -> dict[str, list[str | None]]:
    """What is known of the dev clips, in their order."""
    wanted = pa.array([clip.clip_id for clip in dev.clips])
    table = table.filter(pc.equal(table["split"], "dev"))  # with a leak, a clip is in train too
    rows = table.take(pc.index_in(wanted, table["clip_id"].combine_chunks()))
    names = ("speaker", "sex", "corpus", "split", "session", "emotion")
    return {n: rows[n].to_pylist() for n in names if n in rows.column_names}


def _epoch_rows(plan: TrainingPlan, name: str, history: History) -> Iterator[Row]:
    """Dev CCC, dev UAR and training loss of every epoch."""
    for record in history:
        common: dict[str, Any] = {
            "model": name,
            "dataset": "all",
            "group": "epoch",
            "group_value": str(record["epoch"]),
        }
        figures = [("ccc", name, value) for name, value in (record["dev_ccc"] or {}).items()]
        figures.append(("uar", EMOTION, record.get("dev_uar")))
        for metric, dimension, value in figures:
            if value is not None:
                yield Row(
                    **common,
                    split="dev",
                    dimension=dimension,
                    metric=metric,
                    value=value,
                    n=len(plan.data.dev),
                )
        yield Row(
            **common,
            split="train",
            dimension="mean",
            metric="loss",
            value=record["train_loss"],
            n=len(plan.data.train),
        )


def _facts(
    plan: TrainingPlan, record: RunRecord, history: History, rows: Sequence[Row], name: str
) -> CardFacts:
    flags, network = plan.flags, plan.network
    kept = [r["epoch"] for r in history if r["kept"]]
    categories = plan.data.categories if flags.category_weight else ()
    head = len(categories) * (network.embedding_size + 1)
    return CardFacts(
        name=name,
        backbone=flags.backbone,
        parameters=network.parameters + head,
        trained_parameters=network.trained + head,
        min_samples=network.min_samples,
        splits=_splits(plan.data.table),
        recipe=_recipe(flags),
        metrics=rows,
        command=shlex.join(record.command),
        versions=record.versions,
        seed=flags.seed,
        epochs=len(history),
        best_epoch=kept[-1] if flags.keep == "best" and kept else None,
        audio_hours=sum(r["audio_s"] for r in history) / 3600,
        seconds=sum(r["wall_s"] for r in history),
        workers=plan.placement.workers,
        device=plan.placement.device,
        data_fingerprint=plan.data.fingerprint,
        leakage=_leakage(plan.data.leakage),
        shuffled_labels=flags.shuffle_labels,
        failed_clips=history[-1]["failed"],
        base_hub_id=network.hub_id,
        base_licence=network.licence,
        languages=_distinct(plan.data.table, "language"),
        notes=[str(note) for note in plan.data.notes],
        mapping=_mapping(plan),
        model_type=network.model_type,
        pooling=flags.pooling,
        trained=plan.data.trained,
        categories=categories,
    )


def _leakage(leaks: Sequence[str]) -> str:
    """As one sentence, with an example."""
    if not leaks:
        return ""
    return leaks[0] if len(leaks) == 1 else f"{leaks[0]}; and {len(leaks) - 1:,} more such groups"


def _mapping(plan: TrainingPlan) -> dict[str, tuple[float, float, float]]:
    """What the categories of the training clips stood for, where labels come from categories."""
    if not plan.flags.emotion_map:
        return {}
    known = load_emotion_map(plan.flags.emotion_map)
    points = {name: known.get(common_name(name)) for name in plan.data.categories}
    return {name: point for name, point in points.items() if point is not None}


def _splits(table: pa.Table) -> list[SplitFacts]:
    """Clips, hours and speakers of every corpus and split."""
    corpora = _texts(table, "corpus")
    splits = _texts(table, "split")
    speakers = _texts(table, "speaker")
    lengths_s = table["duration_s"].to_pylist()
    facts = []
    for corpus, split in sorted(set(zip(corpora, splits, strict=True)), reverse=True):
        mine = [
            i for i, key in enumerate(zip(corpora, splits, strict=True)) if key == (corpus, split)
        ]
        voices = {speakers[i] for i in mine if speakers[i]}
        facts.append(
            SplitFacts(
                corpus=corpus or "unnamed",
                split=split,
                clips=len(mine),
                hours=sum(lengths_s[i] for i in mine) / 3600,
                speakers=len(voices) or None,
            )
        )
    return facts


def _texts(table: pa.Table, name: str) -> list[str]:
    if name not in table.column_names:
        return [""] * len(table)
    return [value or "" for value in table[name].to_pylist()]


def _distinct(table: pa.Table, name: str) -> list[str]:
    return sorted(set(_texts(table, name)) - {""})


#: Flags that are told elsewhere on the card, or that say nothing about the model.
_NOT_RECIPE = {
    "data", "train", "dev", "corpus", "speakers", "limit", "max_failed", "output", "seed",
    "workers", "track", "checkpoint_steps", "max_restarts", "backbone", "allow_leakage",
    "shuffle_labels", "categories",
}  # fmt: skip

_DEFAULTS = {f.name: f.default for f in fields(TrainingFlags)}
_ALWAYS = ("epochs", "batch_size", "lr", "optimiser", "schedule", "loss", "freeze", "dtype")


def _recipe(flags: TrainingFlags) -> dict[str, object]:
    """The settings that matter: the main ones, then whatever is not at its default."""
    others = [
        name
        for name in _DEFAULTS
        if name not in _NOT_RECIPE
        and name not in _ALWAYS
        and getattr(flags, name) != _DEFAULTS[name]
    ]
    return {name: getattr(flags, name) for name in (*_ALWAYS, *others)}


def _outcome(
    plan: TrainingPlan, history: History, facts: CardFacts, rows: Sequence[Row]
) -> dict[str, Any]:
    last = history[-1]
    whole = [r for r in rows if not r.group and r.model == facts.name]

    def figures(metric: str) -> dict[str, float]:
        return {
            f"{r.dataset} {r.dimension}": round(r.value, 4) for r in whole if r.metric == metric
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
    plan: TrainingPlan, record: RunRecord, history: History, facts: CardFacts
) -> dict[str, Any]:
    """`training.json` but for the outcome."""
    return {
        "run_id": record.run_id,
        "command": record.command,
        "config": record.config,
        "settings": record.settings,
        "versions": record.versions,
        "seed": plan.flags.seed,
        "network": {name: getattr(plan.network, name) for name in plan.network.__slots__},
        "data": {
            "fingerprint": plan.data.fingerprint,
            "splits": [asdict(split) for split in facts.splits],
            "speakers": _speakers(plan.data.table),
            "categories": list(plan.data.categories),
            "leakage": list(plan.data.leakage),
            "left_out": dict(plan.data.left_out),
        },
        "placement": {
            "workers": plan.placement.workers,
            "device": plan.placement.device,
            "threads": plan.placement.threads,
        },
        "history": list(history),
    }


def _speakers(table: pa.Table) -> dict[str, dict[str, int]]:
    """Clips per speaker, by split."""
    counts: dict[str, dict[str, int]] = {}
    for split, speaker in zip(_texts(table, "split"), _texts(table, "speaker"), strict=True):
        of_split = counts.setdefault(split, {})
        of_split[speaker or "unknown"] = of_split.get(speaker or "unknown", 0) + 1
    return counts
