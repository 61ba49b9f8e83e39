"""Outputs of every job as small made-up tables, with names and words that try to break a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysers import display, schemas
from raysers.types import DIMENSIONS, NS_PER_S

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
    document = {"run_id": f"id-{folder.name}"[:16], "job": job, "status": status}
    document |= {"started_at": "2026-01-02T03:00:00+00:00", "command": ["jobs", job]}
    document |= {"finished_at": "2026-01-02T04:01:05+00:00", "settings": {}, "versions": {}}
    document |= {"config": {"workers": 2}, "outcome": outcome}
    (folder / "run.json").write_text(json.dumps(document))
    return folder


def shaped(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.table([pa.array([r.get(f.name) for r in rows], f.type) for f in schema], schema)


def metric(model: str, value: float, **other: Any) -> dict[str, Any]:
    known = {"dataset": "emodb", "split": "test", "dimension": "arousal", "metric": "ccc"}
    bounds = {"ci_low": value - 0.05, "ci_high": value + 0.04, "n": 120, "speakers": 8}
    empty = {"group": "", "group_value": "", "run_id": "id"}
    return {"model": model, "value": value} | empty | known | bounds | other


def measured(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    write(folder, "metrics", shaped([*rows], schemas.METRICS))
    return folder


def draw(folder: Path, *names: str) -> None:
    """Pictures as jobs leave them beside their tables."""

    def figure() -> Any:
        made = display.new_figure(1.0, 2.0)
        display.panel_title(made.subplots(), "a picture")
        return made

    for name, (kind, data) in product(names, display.picture(figure).items()):
        (folder / f"{name}.{kind}").write_bytes(data)


def evaluated(folder: Path, models: Sequence[str] = MODELS) -> Path:
    rng = np.random.default_rng(1)
    rows = []
    for (m, model), dimension in product(enumerate(models), DIMENSIONS):
        of = {"dimension": dimension}
        for dataset, split in (("msp-podcast", "test1"), ("emodb", "test"), ("emodb", "dev")):
            value = float(rng.uniform(0.2, 0.75))
            paper = value + 0.03 if dataset == "msp-podcast" else None
            rows.append(metric(model, value, paper=paper, dataset=dataset, split=split, **of))
        for kind in ("score", "bias"):
            known = {"metric": f"sex_fairness_{kind}", "group": "sex"} | of
            rows.append(metric(model, float(rng.normal(0, 0.03)), **known))
        known = {"metric": "speaker_ccc", "group": "speaker"} | of
        for speaker in range(30):
            value = float(rng.uniform(0.1, 0.8))
            rows.append(metric(model, value, group_value=f"{speaker:03d}", **known))
        known = {"metric": "speaker_spearman", "group": "model"} | of
        rows += [metric(model, 0.6, group_value=other, **known) for other in models[m + 1 :]]
        rows.append(metric("random-gaussian", 0.01, **of))
    record(folder, "evaluate", notes=[f"{EVIL[0]}: a note"])
    return measured(folder, rows)


def robust(folder: Path, models: Sequence[str] = MODELS) -> Path:
    names = ("", "_additive_tone", "_append_zeros", "_white_noise", "_gain")
    rows = [
        metric(model, 0.8 + 0.019 * (i * 7 % 10), metric=f"robustness{name}", dimension=dimension)
        for i, (model, name, dimension) in enumerate(product(models, names, DIMENSIONS))
    ]
    record(folder, "robustness", audio_s=7200.0, model_s=60.0, wall_s=100.0)
    return measured(folder, rows)


def annotated(folder: Path, clips: int = 90, *, embeddings: bool = True, part: int = 40) -> Path:
    """Half of the clips are overlapping windows of one recording; every ninth failed."""
    rng = np.random.default_rng(2)
    numbers = ["p_anger", "p_joy", "arousal_sd", "ood"]
    schema = schemas.with_outputs(schemas.ANNOTATIONS, ["anger", "joy"], numbers)
    schema = schemas.with_embeddings(schema, 8) if embeddings else schema
    rows, labels = [], []
    for i in range(clips):
        window, bad = i < clips // 2, i % 9 == 4
        name = EVIL[0] if window else f"{i:03d} {EVIL[i % len(EVIL)]}.wav"
        start = 2 * i if window else 0
        row: dict[str, Any] = {
            "file": f"/data/{'talks' if window else EVIL[3][:6]}/{name}",
            "start": start * NS_PER_S,
            "end": (start + 4) * NS_PER_S,
            "clip_id": f"c{i:05d}",
            "status": "unreadable" if bad else "ok",
            "error": f"broken: {EVIL[i % len(EVIL)]}" if bad else "",
            "duration_s": None if bad else 4.0,
            "model": "raysers-base",
        }
        if not bad:
            row |= dict(zip([*DIMENSIONS, *numbers], rng.beta(4, 4, 7).tolist(), strict=True))
            row |= {"rms_db": -20.0 - i % 7, "clipped_ratio": float(i % 5 == 0) / 100}
            row |= {"emotion": EVIL[0] if i % 3 else "joy"}
            row |= {"embedding": (rng.normal(0, 0.3, 8) + 3 * (i % 2)).tolist()}
        rows.append(row)
        known = {"corpus": "emodb", "sex": ("female", "male")[i % 2], "speaker": f"s{i % 4}"}
        labels.append(row | known | {"duration_s": 4.0, "valence": float(rng.random())})
    record(folder, "annotate", audio_s=4.0 * clips, model_s=2.0, wall_s=6.0, clips=clips)
    for number, first in enumerate(range(0, clips, part)):
        write(folder, "annotations", shaped(rows[first : first + part], schema), number)
    manifest = pa.schema(
        [
            *schemas.MANIFEST,
            *(f for f in schemas.LABEL_FIELDS if f.name not in schemas.MANIFEST.names),
        ]
    )
    write(folder, "manifest", shaped(labels, manifest))
    return folder


def transcribed(folder: Path) -> Path:
    record(folder, "transcribe")
    rows = [{"file": f"/d/{i}.wav", "status": "ok", "text": t} for i, t in enumerate(("", *EVIL))]
    write(folder, "transcripts", pa.Table.from_pylist(rows))
    return folder


def trained(folder: Path) -> Path:
    history = [
        {"epoch": e, "train_loss": 1 / e, "dev_ccc": dict.fromkeys(DIMENSIONS, 0.1 * e)}
        for e in range(1, 7)
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
    draw(folder, "learning_curve")
    return measured(
        folder, [metric(folder.name, 0.5, split="dev", dimension=d) for d in DIMENSIONS]
    )


def probed(folder: Path) -> Path:
    names = [f"{word}{i}" for i in range(10) for word in ("wörter", "<b>bold</b>", "nö")]
    words = [
        {"word": word, "occurrences": 10 + i, "valence": 0.3 + i / 100, "ci_low": 0.2,
         "ci_high": 0.7, "side": "low" if i < 15 else "high", "source": "labels"}
        for i, word in enumerate(names)
    ]  # fmt: skip
    groups = (("sentiment", "mean_shift"), ("speech", "ccc"))
    rows = [
        metric("raysers-base", 0.1, metric=name, group=group, group_value="positive", dimension=d)
        for (group, name), d in product(groups, DIMENSIONS)
    ]
    record(folder, "probe")
    write(folder, "words", pa.Table.from_pylist(words))
    draw(folder, "words-labels", "sentiment", "respoken-ccc")
    return measured(folder, rows)


def fused(folder: Path) -> Path:
    others = ("acoustic model", "audio head", "text head")
    rows = [
        metric(
            "fused", value, metric="ccc_difference", group="model", group_value=other, dimension=d
        )
        for (d, value), other in product(zip(DIMENSIONS, (-0.01, 0.0, 0.06), strict=True), others)
    ]
    rows += [metric(m, 0.5, dimension=d) for m in ("fused", "acoustic model") for d in DIMENSIONS]
    record(folder, "fuse-train")
    return measured(folder, rows)


def tuned(folder: Path) -> Path:
    rows = [
        {"trial": f"t{i}", "status": "done", "error": EVIL[2], "dev_ccc_mean": 0.1 + 0.05 * i,
         "param_lr": 10 ** -(2 + i % 3), "param_pooling": ("mean", "masked")[i % 2]}
        for i in range(9)
    ]  # fmt: skip
    record(folder, "tune")
    draw(folder, "importance")
    write(folder, "trials", pa.Table.from_pylist(rows))
    return folder


#: Studies of the paper, with the values of what they vary.
FACTORS = {
    "pretraining": ("pre-trained", "random"),
    "frozen": ("fine-tuned", "frozen"),
    "layers": ("2", "4", "8", "12"),
    "fraction": ("0.05", "0.25", "0.5", "1"),
    "seed": ("0", "1", "2"),
}


def studied(folder: Path) -> Path:
    """A study with cells of every kind; one failed."""
    cells, metrics, curves = [], [], []
    for factor, model in product(FACTORS, MODELS[:2]):
        for v, value in enumerate(FACTORS[factor]):
            known = {"study": "seeds" if factor == "seed" else factor, "cell": f"{model}-{value}"}
            known |= {"factor": factor, "factor_value": value, "seed": v * (factor == "seed")}
            cost = {"wall_s": 60.0, "audio_s": 3600.0, "workers": 1, "device": "cpu"}
            made = {"kind": "train", "model": model, "status": "done", "error": ""}
            cells.append(known | made | cost)
            for d in DIMENSIONS:
                metrics.append(known | metric(f"/at/{known['cell']}", 0.3 + 0.1 * v, dimension=d))
                curves += [
                    known | {"model": model, "epoch": e, "dimension": d, "ccc": 0.1 * e + 0.02 * v}
                    for e in range(1, 6)
                ]
    cells[-1] |= {"status": "failed", "error": EVIL[1]}
    record(folder, "study")
    shapes = (schemas.CELLS, schemas.STUDY_METRICS, schemas.CURVES)
    tables = zip(("cells", "metrics", "curves"), (cells, metrics, curves), shapes, strict=True)
    for name, rows, schema in tables:
        write(folder, name, shaped(rows, schema))
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
