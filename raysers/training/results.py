"""What a training shows and leaves beside the model: lines, figures, card, curve, full record.

The dev scores come from the model as it was stored, run the way annotate runs it. The figures of
every epoch also go to TensorBoard files, written anew from the whole history, and to MLflow if
asked for, where a resumed run continues its entry.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.corpora import common_name, load_emotion_map
from raysers.engine import output as parts
from raysers.engine.progress import duration, hours, print_pairs
from raysers.errors import ConfigError
from raysers.evaluation.bootstrap import interval_notes
from raysers.evaluation.correctness import category_rows, correctness_rows
from raysers.evaluation.evaluate import training_notes, with_training
from raysers.evaluation.rows import EMOTION, Row, to_table
from raysers.evaluation.scores import Scores, categories_of, dimensions_of, subsets, with_baseline
from raysers.io import marks, storage
from raysers.run import RunRecord
from raysers.training.checkpoint import TrainProgress
from raysers.training.config import TrainingFlags
from raysers.training.dataset import column_of
from raysers.training.loop import PREDICTIONS
from raysers.training.model_card import learning_curve, model_card
from raysers.training.plan import TrainingPlan

Epoch = Mapping[str, Any]
METRICS = "metrics/part-00000.parquet"
#: Experiment in MLflow, and the tag by which a run of ours is found again.
_EXPERIMENT, _TAG = "raysers", "raysers.run"


def write_results(plan: TrainingPlan, record: RunRecord, progress: TrainProgress) -> dict[str, Any]:
    """Everything a result folder has besides model and predictions; the figures for `run.json`."""
    output, history = plan.output, progress.history
    name = output.rstrip("/").rpartition("/")[2]
    dev_rows, notes = _dev_rows(plan, name)
    by_epoch = _progress_rows(plan, name, "epoch", history)
    by_step = _progress_rows(plan, name, "step", progress.evaluations)
    table = to_table([*dev_rows, *by_epoch, *by_step], record.run_id)
    parts.write_part(storage.join(output, METRICS), table)
    for kind, content in learning_curve(history).items():
        storage.write_atomic(storage.join(output, f"learning_curve.{kind}"), content)
    document = _document(plan, record, progress, dev_rows, name) | {"metric_notes": notes}
    card = model_card(name, document, dev_rows)
    storage.write_atomic(storage.join(output, "README.md"), card.encode())
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"
    storage.write_atomic(storage.join(output, "training.json"), text.encode())
    outcome: dict[str, Any] = document["outcome"]
    return outcome


def _dev_rows(plan: TrainingPlan, name: str) -> tuple[list[Row], list[str]]:
    """Figures of the stored model on the dev clips, and of the random baseline; and notes."""
    dev, table = plan.data.dev, plan.data.table
    if not len(dev):
        return [], []
    predictions = parts.read_part(storage.join(plan.output, PREDICTIONS))
    assert predictions is not None  # the workers have written it
    clip_ids = [clip.clip_id for clip in dev.clips]
    of_dev = table.filter(pc.equal(table["split"], "dev"))  # with a leak, a clip is in train too
    found, known = (
        part.take(pc.index_in(pa.array(clip_ids), part["clip_id"].combine_chunks()))
        for part in (predictions, of_dev)
    )
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


def _progress_rows(
    plan: TrainingPlan, name: str, group: str, records: Sequence[Epoch]
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


def _document(
    plan: TrainingPlan, record: RunRecord, progress: TrainProgress, rows: Sequence[Row], name: str
) -> dict[str, Any]:
    data, flags, placement, history = plan.data, plan.flags, plan.placement, progress.history
    texts = ("corpus", "split", "speaker", "language")
    columns = {name: column_of(data.table, name).fill_null("") for name in texts}
    clips = pd.DataFrame({name: column.to_pylist() for name, column in columns.items()})
    clips["hours"] = data.table["duration_s"].to_numpy() / 3600
    by_speaker = clips.replace({"speaker": {"": "unknown"}}).groupby(["split", "speaker"]).size()
    speakers: dict[str, dict[str, int]] = {}
    for (split, speaker), count in by_speaker.items():
        speakers.setdefault(split, {})[speaker] = int(count)
    mapping = load_emotion_map(flags.emotion_map) if flags.emotion_map else {}
    points = {category: mapping.get(common_name(category)) for category in data.categories}
    kept = [epoch["epoch"] for epoch in history if epoch["kept"]]
    whole = [row for row in rows if not row.group and row.model == name]
    figures = {
        metric: {
            f"{row.dataset} {row.dimension}": None if math.isnan(row.value) else round(row.value, 4)
            for row in whole
            if row.metric == metric
        }
        for metric in ("ccc", "uar")
    }
    return {
        "run_id": record.run_id,
        "command": record.command,
        "config": record.config,
        "settings": record.settings,
        "versions": record.versions,
        "seed": flags.seed,
        "network": asdict(plan.network),
        "data": {
            "fingerprint": data.fingerprint,
            "splits": [
                {
                    "corpus": corpus or "unnamed",
                    "split": split,
                    "clips": len(part),
                    "hours": float(part["hours"].sum()),
                    "speakers": len(set(part["speaker"]) - {""}) or None,
                }
                for (corpus, split), part in clips.groupby(["corpus", "split"])
            ][::-1],
            "speakers": speakers,
            "languages": sorted(set(clips["language"]) - {""}),
            "trained": list(data.trained),
            "categories": list(data.categories),
            # what categories stood for, where labels come from them
            "mapping": {category: point for category, point in points.items() if point},
            "leakage": list(data.leakage),
            "left_out": dict(data.left_out),
            "notes": list(data.notes),
        },
        "placement": {of: getattr(placement, of) for of in ("workers", "device", "threads")},
        "history": history,
        **({"evaluations": progress.evaluations} if flags.eval_steps else {}),
        "failed_clips": progress.failed,
        "outcome": {
            "epochs": len(history),
            "steps": progress.step,
            "kept_epoch": kept[-1] if kept and flags.keep != "last" else len(history),
            "dev_ccc": figures["ccc"],
            **({"dev_uar": figures["uar"]} if plan.categories else {}),
            "failed_clips": history[-1]["failed"],
            "left_out": dict(data.left_out),
            "audio_hours": round(sum(epoch["audio_s"] for epoch in history) / 3600, 4),
            "training_s": round(sum(epoch["wall_s"] for epoch in history), 1),
        },
    }


def print_outcome(output: str, outcome: Mapping[str, Any]) -> None:
    """Dev scores of the stored model, and where it is."""
    pairs = {"epochs": f"{outcome['epochs']}, kept {outcome['kept_epoch']}"}
    for metric in ("CCC", "UAR"):
        for name, value in outcome.get(f"dev_{metric.lower()}", {}).items():
            pairs[f"dev {metric} {name}"] = _number(value, "– (constant labels)")
    audio_s, wall_s = outcome["audio_hours"] * 3600, outcome["training_s"]
    pairs["trained on"] = f"{hours(audio_s)} of audio in {duration(wall_s)}"
    pairs["model"] = output
    if outcome["failed_clips"]:
        pairs["failed"] = f"{outcome['failed_clips']} clips could not be decoded: training.json"
    print_pairs("result", pairs)


def live_line(figures: Mapping[str, Any], epochs: int) -> str:
    """`epoch 2/5 | step 120/400 | loss 0.412 | 1.2 h of audio, 0.021 audio hours/s`."""
    if not figures:
        return "loading the model"
    return (
        f"epoch {figures['epoch']}/{epochs} | step {figures['step']}/{figures['steps']} | "
        f"loss {figures['loss']:.3f} | {hours(figures['audio_s'])} of audio, "
        f"{figures['audio_hours_per_s']:.3g} audio hours/s"
    )


def epoch_line(record: Epoch, epochs: int) -> str:
    """One line for an epoch: loss, dev CCC by dimension, dev UAR, speed, whether it was kept."""
    line = f"epoch {record['epoch']}/{epochs}  loss {_number(record['train_loss'])}"
    if ccc := record["dev_ccc"]:
        line += "  dev CCC " + "  ".join(f"{name} {_number(ccc[name])}" for name in ccc)
        line += f"  mean {_number(record['dev_ccc_mean'])}"
    if "dev_uar" in record:
        line += f"  dev UAR {_number(record['dev_uar'])}"
    return (
        f"{line}{' *' if record['kept'] else '  '}  {hours(record['audio_s'])} of audio in "
        f"{duration(record['wall_s'])}, {record['audio_hours_per_s']:.3g} audio hours/s"
    )


def _number(value: float | None, unknown: str = "-") -> str:
    return unknown if value is None or math.isnan(value) else f"{value:z.3f}"


@contextmanager
def tracked(
    flags: TrainingFlags, record: RunRecord, history: Sequence[Epoch]
) -> Iterator[Sequence[Callable[[Epoch], None]]]:
    """What to call with every further epoch's record; writes `OUTPUT/tensorboard`, on S3 anew."""
    from tensorboardX import SummaryWriter

    target = storage.join(flags.output, "tensorboard")
    folder = tempfile.mkdtemp() if storage.is_remote(target) else target
    shutil.rmtree(folder, ignore_errors=True)
    writer = SummaryWriter(folder, write_to_disk=True)

    def write(epoch: Epoch) -> None:
        for name, value in _figures(epoch).items():
            writer.add_scalar(name, value, epoch["epoch"])
        writer.flush()
        for file in Path(folder).iterdir() if folder != target else ():
            # one name for all attempts, so that an earlier one's file is replaced
            uri = storage.join(target, "events.out.tfevents.0.raysers")
            storage.write_atomic(uri, file.read_bytes())

    for epoch in history:
        write(epoch)
    try:
        with ExitStack() as stack:
            trackers: list[Callable[[Epoch], None]] = [write]
            if flags.track != "none":
                trackers.append(stack.enter_context(_mlflow_run(flags.output, record, history)))
            yield trackers
    finally:
        writer.close()
        if folder != target:
            shutil.rmtree(folder, ignore_errors=True)


def _figures(record: Epoch) -> dict[str, float]:
    found = {f"train/{name}": record[name] for name in ("lr", "audio_hours_per_s")}
    found |= {"train/loss": record["train_loss"], "dev/ccc_mean": record["dev_ccc_mean"]}
    found |= {f"dev/ccc_{name}": value for name, value in (record["dev_ccc"] or {}).items()}
    found["dev/uar"] = record.get("dev_uar")
    return {name: float(value) for name, value in found.items() if value is not None}


@contextmanager
def _mlflow_run(
    output: str, record: RunRecord, history: Sequence[Epoch]
) -> Iterator[Callable[[Epoch], None]]:
    """Logs to `MLFLOW_TRACKING_URI`; the model follows at the end, unless an error ends it."""
    mlflow = check_tracking("mlflow")
    tag = record.history[0]["run_id"] if record.history else record.run_id
    experiment = mlflow.set_experiment(_EXPERIMENT).experiment_id
    query = f"tags.`{_TAG}` = '{tag}'"
    earlier = mlflow.search_runs([experiment], query, output_format="list")
    done = earlier[0].data.metrics.get("train/epoch", 0) if earlier else 0

    def log(epoch: Epoch) -> None:
        try:
            number = epoch["epoch"]
            mlflow.log_metrics(_figures(epoch) | {"train/epoch": number}, step=number)
        except mlflow.exceptions.MlflowException as error:  # the training is worth more
            print(f"warning: MLflow: {str(error).splitlines()[0]}", file=sys.stderr)

    name = output.rstrip("/").rpartition("/")[2]
    run_id = earlier[0].info.run_id if earlier else None
    with mlflow.start_run(run_id=run_id, run_name=name, tags={_TAG: tag}):
        if not earlier:
            mlflow.log_params({key: str(value)[:500] for key, value in record.settings.items()})
        for epoch in history:
            if epoch["epoch"] > done:
                log(epoch)
        yield log
        with tempfile.TemporaryDirectory() as folder:
            for found in storage.list_objects(output):
                file = found.uri.removeprefix(output + "/")
                if "/" not in file and file != marks.CLAIM_NAME:
                    Path(folder, file).write_bytes(storage.read_bytes(found.uri))
            mlflow.log_artifacts(folder, "model")


def check_tracking(track: str) -> Any:
    """The package `mlflow` where `--track` asks for it; ConfigError without it or a server."""
    if track == "none":
        return None
    try:
        import mlflow
    except ImportError as error:
        raise ConfigError(
            "--track mlflow needs the package mlflow-skinny: pip install 'raysers[track]'"
        ) from error
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError("--track mlflow: set MLFLOW_TRACKING_URI to the server to report to")
    # a server that is not there is found out in seconds, not minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        mlflow.get_experiment_by_name(_EXPERIMENT)
    except (mlflow.exceptions.MlflowException, ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--track mlflow: MLFLOW_TRACKING_URI does not answer ({reason})"
        ) from error
    return mlflow
