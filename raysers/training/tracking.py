"""The figures of every epoch besides the terminal: TensorBoard files, and MLflow if asked for.

TensorBoard's file is written anew from the whole history, and a resumed run continues its entry in
MLflow, so that a run that was interrupted shows as one.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysers.errors import ConfigError
from raysers.io import claim, storage
from raysers.run import RunRecord
from raysers.training.config import TrainingFlags
from raysers.types import DIMENSIONS

Epoch = Mapping[str, Any]
Track = Callable[[Epoch], None]

#: Experiment in MLflow, and the tag by which a run of ours is found again.
_EXPERIMENT, _TAG = "raysers", "raysers.run"


@contextmanager
def tracked(
    flags: TrainingFlags, record: RunRecord, history: Sequence[Epoch]
) -> Iterator[Sequence[Track]]:
    """What to call with the record of every further epoch; `history` is behind the run."""
    with _tensorboard(flags.output, history) as tensorboard:
        if flags.track == "none":
            yield [tensorboard]
        else:
            with _mlflow_run(flags.output, record, history) as server:
                yield [tensorboard, server]


def _figures(record: Epoch) -> dict[str, float]:
    """The numbers of an epoch by their name in the trackers, what is unknown left out."""
    ccc = record.get("dev_ccc") or {}
    found = {
        "train/loss": record.get("train_loss"),
        "train/lr": record.get("lr"),
        "train/audio_hours_per_s": record.get("audio_hours_per_s"),
        "dev/ccc_mean": record.get("dev_ccc_mean"),
        "dev/uar": record.get("dev_uar"),
        **{f"dev/ccc_{name}": ccc.get(name) for name in DIMENSIONS},
    }
    return {name: float(value) for name, value in found.items() if value is not None}


@contextmanager
def _tensorboard(output: str, history: Sequence[Epoch]) -> Iterator[Track]:
    """Writes `OUTPUT/tensorboard`; on S3 the file is sent again after every epoch."""
    from tensorboardX import SummaryWriter

    target = storage.join(output, "tensorboard")
    is_remote = storage.is_remote(output)
    folder = tempfile.mkdtemp() if is_remote else target
    if not is_remote:
        shutil.rmtree(folder, ignore_errors=True)
    writer = SummaryWriter(folder, write_to_disk=True)

    def track(record: Epoch) -> None:
        for name, value in _figures(record).items():
            writer.add_scalar(name, value, record["epoch"])
        writer.flush()
        for file in Path(folder).iterdir() if is_remote else ():
            # one name for all attempts, so that an earlier one's file is replaced
            name = "events.out.tfevents.0.raysers"
            storage.write_atomic(storage.join(target, name), file.read_bytes())

    try:
        for record in history:
            track(record)
        yield track
    finally:
        writer.close()
        if is_remote:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _mlflow_run(output: str, record: RunRecord, history: Sequence[Epoch]) -> Iterator[Track]:
    """Logs to `MLFLOW_TRACKING_URI`; the model follows at the end, unless an error ends it."""
    mlflow = check_tracking("mlflow")
    tag = record.history[0]["run_id"] if record.history else record.run_id
    experiment = mlflow.set_experiment(_EXPERIMENT).experiment_id
    query = f"tags.`{_TAG}` = '{tag}'"
    earlier = mlflow.search_runs([experiment], query, output_format="list")
    done = earlier[0].data.metrics.get("train/epoch", 0) if earlier else 0

    def track(record: Epoch) -> None:
        try:
            figures = _figures(record) | {"train/epoch": record["epoch"]}
            mlflow.log_metrics(figures, step=record["epoch"])
        except mlflow.exceptions.MlflowException as error:  # the training is worth more
            print(f"warning: MLflow: {str(error).splitlines()[0]}", file=sys.stderr)

    name = output.rstrip("/").rpartition("/")[2]
    run_id = earlier[0].info.run_id if earlier else None
    with mlflow.start_run(run_id=run_id, run_name=name, tags={_TAG: tag}):
        if not earlier:
            mlflow.log_params({key: str(value)[:500] for key, value in record.settings.items()})
        for epoch in history:
            if epoch["epoch"] > done:
                track(epoch)
        yield track
        with tempfile.TemporaryDirectory() as folder:
            for found in storage.list_objects(output):
                file = found.uri.removeprefix(output + "/")
                if "/" not in file and file != claim.NAME:
                    Path(folder, file).write_bytes(storage.read_bytes(found.uri))
            mlflow.log_artifacts(folder, "model")


def check_tracking(track: str) -> Any:
    """The package `mlflow` where `--track` asks for it.

    Raises:
        ConfigError: it is not installed, or no server answers.
    """
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
