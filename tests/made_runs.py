"""Outputs of every job as small made-up tables, with names and words that try to break a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysers.evaluation.rows import Row, to_table
from raysers.schemas import (
    ANNOTATIONS,
    CELLS,
    CURVES,
    LABEL_FIELDS,
    MANIFEST,
    METRICS,
    STUDY_METRICS,
    TRANSCRIPTS,
    with_embeddings,
)
from raysers.types import DIMENSIONS, NS_PER_S
from raysers.words.ratings import WORDS
from raysers.words.respoken import respoken_rows, respoken_table
from raysers.words.sentiment import SENTENCES, sentiment_rows

#: What must come out as text: markup, an entity, quotes, another direction, emoji, half a page.
EVIL = (
    "<script>document.title='broken'</script>",
    '"><img src=x onerror="document.title=\'broken\'">',
    "</table></details></main>",
    "&lt;b&gt; $x^2$ {0} %s",
    "שלום עולם \u202e gnirts",
    "👩‍👩‍👧 smile",
    "tab\tand\nline\x00end",
)
MODELS = ("w2v2-b", "hubert-L", "w2v2-L-robust")


def write(folder: Path, name: str, table: pa.Table, part: int = 0) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name / f"part-{part:05d}.parquet")


def record(folder: Path, job: str, *, status: str = "done", **outcome: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "run_id": f"id-{folder.name}"[:16],
        "job": job,
        "status": status,
        "started_at": "2026-01-02T03:00:00+00:00",
        "finished_at": "2026-01-02T04:01:05+00:00",
        "config": {"workers": 2},
        "settings": {},
        "versions": {},
        "command": ["jobs", job],
        "outcome": outcome,
    }
    (folder / "run.json").write_text(json.dumps(document))
    return folder


def shaped(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.table([pa.array([r.get(f.name) for r in rows], f.type) for f in schema], schema)


def metric(model: str, value: float, **other: Any) -> Row:
    known: dict[str, Any] = {
        "dataset": "emodb",
        "split": "test",
        "dimension": "arousal",
        "metric": "ccc",
        "ci_low": value - 0.05,
        "ci_high": value + 0.04,
        "n": 120,
    }
    return Row(model=model, value=value, **(known | other))


def evaluated(folder: Path, models: Sequence[str] = MODELS) -> Path:
    rng = np.random.default_rng(1)
    rows: list[Row] = []
    for (m, model), dimension in product(enumerate(models), DIMENSIONS):
        for dataset, split in (("msp-podcast", "test1"), ("emodb", "test"), ("emodb", "dev")):
            value = float(rng.uniform(0.2, 0.75))
            paper = value + 0.03 if dataset == "msp-podcast" else float("nan")
            known = {"dataset": dataset, "split": split, "dimension": dimension}
            rows.append(metric(model, value, paper=paper, **known))
        for kind in ("score", "bias"):
            name = f"sex_fairness_{kind}"
            known = {"group": "sex", "group_value": "female - male", "dimension": dimension}
            rows.append(metric(model, float(rng.normal(0, 0.03)), metric=name, **known))
        for speaker in range(30):
            known = {"group": "speaker", "group_value": f"{speaker:03d}", "dimension": dimension}
            value = float(rng.uniform(0.1, 0.8))
            rows.append(metric(model, value, metric="speaker_ccc", **known))
        for other in models[m + 1 :]:
            known = {"group": "model", "group_value": other, "dimension": dimension}
            value = float(rng.uniform(0.3, 0.9))
            rows.append(metric(model, value, metric="speaker_spearman", **known))
        rows.append(metric("random-gaussian", 0.01, dimension=dimension))
    record(folder, "evaluate", rows=len(rows), notes=[f"{EVIL[0]}: a note"])
    write(folder, "metrics", to_table(rows, "id"))
    return folder


def robust(folder: Path, models: Sequence[str] = MODELS) -> Path:
    rows = []
    names = ("", "_additive_tone", "_append_zeros", "_white_noise", "_gain")
    for i, (model, name, dimension) in enumerate(product(models, names, DIMENSIONS)):
        value = 0.8 + 0.19 * ((i * 7) % 10) / 10
        rows.append(metric(model, value, metric=f"robustness{name}", dimension=dimension))
    record(folder, "robustness", audio_s=7200.0, model_s=60.0, wall_s=100.0)
    write(folder, "metrics", to_table(rows, "id"))
    return folder


def annotated(folder: Path, clips: int = 90, *, embeddings: bool = True, part: int = 40) -> Path:
    """Half of the clips are windows of one recording; every ninth failed."""
    rng = np.random.default_rng(2)
    schema = with_embeddings(ANNOTATIONS, 8) if embeddings else ANNOTATIONS
    rows, labels = [], []
    for i in range(clips):
        window = i < clips // 2
        start = i * 4 if window else 0
        bad = i % 9 == 4
        row = {
            "file": f"/data/{EVIL[0] if window else f'{i:03d} {EVIL[i % len(EVIL)]}.wav'}",
            "start": start * NS_PER_S,
            "end": (start + 4) * NS_PER_S,
            "clip_id": f"c{i:05d}",
            "status": "unreadable" if bad else "ok",
            "error": f"broken: {EVIL[i % len(EVIL)]}" if bad else "",
            "duration_s": 4.0,
            "rms_db": None if bad else -20.0 - i % 7,
            "clipped_ratio": None if bad else float(i % 5 == 0) / 100,
            "model": "raysers-base",
            "model_revision": "r1",
            "run_id": "id",
        }
        if not bad:
            row |= dict(zip(DIMENSIONS, rng.beta(4, 4, 3).tolist(), strict=True))
            if embeddings:
                row["embedding"] = (rng.normal(0, 0.3, 8) + 3 * (i % 2)).tolist()
        rows.append(row)
        sex, speaker = ("female", "male")[i % 2], f"s{i % 4}"
        known = {"corpus": "emodb", "sex": sex, "speaker": speaker, "valence": float(rng.random())}
        labels.append(row | known)
    record(folder, "annotate", audio_s=4.0 * clips, model_s=2.0, wall_s=6.0, clips=clips)
    for number, first in enumerate(range(0, clips, part)):
        write(folder, "annotations", shaped(rows[first : first + part], schema), number)
    manifest = pa.schema([*MANIFEST, *(f for f in LABEL_FIELDS if f.name not in MANIFEST.names)])
    write(folder, "manifest", shaped(labels, manifest))
    return folder


def transcribed(folder: Path) -> Path:
    rows = [
        {"file": f"/d/{i}.wav", "clip_id": f"c{i}", "status": "ok", "error": "", "text": text}
        for i, text in enumerate(("", *EVIL))
    ]
    record(folder, "transcribe")
    write(folder, "transcripts", shaped(rows, TRANSCRIPTS))
    return folder


def trained(folder: Path, epochs: int = 6) -> Path:
    history = [
        {
            "epoch": e,
            "train_loss": 1 / e,
            "dev_ccc": {d: 0.1 * e - 0.05 * k for k, d in enumerate(DIMENSIONS)},
            "kept": True,
        }
        for e in range(1, epochs + 1)
    ]
    document = {
        "config": {"backbone": f"random:{EVIL[1]}", "seed": 3},
        "network": {"parameters": 176_000},
        "placement": {"workers": 2, "device": "cpu"},
        "history": history,
    }
    record(folder, "train", audio_hours=2.0, training_s=600.0)
    (folder / "training.json").write_text(json.dumps(document))
    (folder / "config.json").write_text('{"num_hidden_layers": 2, "hidden_size": 64}')
    rows = [metric(folder.name, 0.5, split="dev", dimension=d) for d in DIMENSIONS]
    write(folder, "metrics", to_table(rows, "id"))
    return folder


def probed(folder: Path) -> Path:
    rng = np.random.default_rng(5)
    words = []
    for i in range(40):
        value = 0.3 + i / 100
        side = "low" if i < 20 else "high"
        words.append(
            {
                "word": ("wörter", "<b>bold</b>", "ok", "nö")[i % 4] + str(i),
                "occurrences": 10 + i,
                "clips": 9,
                "valence": value,
                "ci_low": value - 0.05,
                "ci_high": value + 0.05,
                "corpus_valence": 0.5,
                "side": side,
                "rank": 1 + (i if side == "low" else 39 - i),
                "source": "labels",
            }
        )
    sentences = []
    for i, (word, slot) in enumerate(product(range(9), range(3))):
        sentiment = ("negative", "neutral", "positive")[word % 3]
        shift = (word % 3) * 0.15
        scores = dict(zip(DIMENSIONS, (rng.random(3) * 0.2 + 0.3 + shift).tolist(), strict=True))
        sentences.append(
            {
                "text": f"This {slot} is {word}",
                "sentiment": sentiment,
                "template": "this-is",
                "word": str(word),
                "slot": str(slot),
                "clip_id": f"s{i}",
                "model": "raysers-base",
            }
            | scores
        )
    said = shaped(sentences, SENTENCES)
    clips = [f"c{i:03d}" for i in range(60)]
    truth = rng.random((60, 3))
    labels, original, respoken = (
        pa.table(
            {"clip_id": [f"c{i:03d}" for i in range(60)]} | dict(zip(DIMENSIONS, v.T, strict=True))
        )
        for v in (
            truth,
            truth + rng.normal(0, 0.1, (60, 3)),
            truth * 0.3 + rng.normal(0.3, 0.1, (60, 3)),
        )
    )
    link = dict(zip(clips, clips, strict=True))
    again = respoken_table(labels, {"raysers-base": original}, {"raysers-base": respoken}, link)
    rows = [*sentiment_rows(said, dataset="made"), *respoken_rows(again, labels)]
    record(folder, "probe")
    write(folder, "metrics", to_table(rows, "id"))
    write(folder, "words", shaped(words, WORDS))
    write(folder, "sentences", said)
    write(folder, "respoken", again)
    return folder


def fused(folder: Path) -> Path:
    rows = []
    for dimension, value in zip(DIMENSIONS, (-0.01, 0.0, 0.06), strict=True):
        for other in ("acoustic model", "audio head", "text head"):
            known = {"group": "model", "group_value": other, "dimension": dimension}
            rows.append(metric("fused", value, metric="ccc_difference", **known))
        rows += [metric(m, 0.5, dimension=dimension) for m in ("fused", "acoustic model")]
    record(folder, "fuse-train")
    write(folder, "metrics", to_table(rows, "id"))
    return folder


def tuned(folder: Path) -> Path:
    rows = [
        {
            "trial": f"t{i}",
            "number": i,
            "status": ("done", "stopped", "failed")[i % 3],
            "error": EVIL[2] if i % 3 == 2 else "",
            "epochs": 5,
            "best_epoch": 4,
            "dev_ccc_mean": None if i % 3 == 2 else 0.1 + 0.05 * i,
            "param_lr": 10 ** -(2 + i % 3),
            "param_pooling": ("mean", "masked")[i % 2],
        }
        for i in range(9)
    ]
    record(folder, "tune")
    write(folder, "trials", pa.Table.from_pylist(rows))
    return folder


#: Studies of the paper that vary one thing, with its values.
FACTORS = {
    "pretraining": ("pre-trained", "random"),
    "frozen": ("fine-tuned", "frozen"),
    "layers": ("2", "4", "8", "12"),
    "fraction": ("0.05", "0.25", "0.5", "1"),
}


def studied(folder: Path) -> Path:
    """A study with cells of every kind; one failed."""
    cells, metrics, curves = [], [], []

    def cell(study: str, model: str, factor: str, value: str, seed: int = 0) -> dict[str, Any]:
        known = {
            "study": study,
            "cell": f"{model}-{value}-{seed}",
            "factor": factor,
            "factor_value": value,
            "seed": seed,
        }
        own = {"kind": "train", "status": "done", "error": "", "wall_s": 60.0, "audio_s": 3600.0}
        place = {"path": f"{study}/{known['cell']}", "workers": 1, "device": "cpu"}
        cells.append(known | own | place | {"model": model, "run_id": "id"})
        return known

    def measure(known: Mapping[str, Any], value: float) -> None:
        for k, dimension in enumerate(DIMENSIONS):
            row = metric(f"/somewhere/{known['cell']}", value - 0.1 * k, dimension=dimension)
            fields = {name: getattr(row, name) for name in METRICS.names if name != "run_id"}
            metrics.append(dict(known) | fields | {"run_id": "id"})

    for study, values in FACTORS.items():
        for (m, model), (v, value) in product(enumerate(MODELS[:2]), enumerate(values)):
            measure(cell(study, model, study, value), 0.3 + 0.1 * v + 0.05 * m)
    for model, seed in product(MODELS[:2], range(3)):
        known = cell("seeds", model, "seed", str(seed), seed)
        measure(known, 0.4 + 0.02 * seed)
        for epoch, dimension in product(range(1, 6), DIMENSIONS):
            ccc = 0.1 * epoch + 0.02 * seed + 0.05 * (model == MODELS[1])
            own = {"epoch": epoch, "dimension": dimension, "ccc": ccc}
            curves.append(known | {"model": model} | own)
    for model in MODELS:
        measure(cell("backbones", model, "model", model), 0.5)
    cells[-1] |= {"status": "failed", "error": EVIL[1]}
    record(folder, "study")
    write(folder, "cells", shaped(cells, CELLS))
    write(folder, "metrics", shaped(metrics, STUDY_METRICS))
    write(folder, "curves", shaped(curves, CURVES))
    return folder


def everything(root: Path) -> list[Path]:
    """One run of each job."""
    return [
        evaluated(root / "evaluated"),
        robust(root / "robust"),
        annotated(root / "annotated"),
        transcribed(root / "transcribed"),
        trained(root / f"tiny {EVIL[3][:6]}"),
        probed(root / "probed"),
        fused(root / "fused"),
        tuned(root / "tuned"),
        studied(root / "studied"),
    ]
