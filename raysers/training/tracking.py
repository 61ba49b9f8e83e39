"""Where the figures of every epoch go besides the terminal: TensorBoard files and MLflow.

No epoch is ever logged twice: TensorBoard's file is written anew from the whole history, and MLflow
is asked which epochs it has. So a run that was interrupted shows as one.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from raysers.errors import ConfigError
from raysers.io import claim, storage
from raysers.run import RunRecord
from raysers.training.config import TrainingFlags
from raysers.types import DIMENSIONS

Epoch = Mapping[str, Any]

#: Tag by which a run of ours is found again.
_TAG = "raysers.run"


class Tracker(Protocol):
    """Receives the record of every epoch."""

    def epoch(self, record: Epoch) -> None:
        """One more epoch is done."""

    def close(self, model_folder: str | None) -> None:
        """The run is over; with the finished model folder when it went well."""


def figures(record: Epoch) -> dict[str, float]:
    """The numbers of an epoch by their name in the trackers, what is unknown left out."""
    found = {
        "train/loss": record.get("train_loss"),
        "train/lr": record.get("lr"),
        "train/audio_hours_per_s": record.get("audio_hours_per_s"),
        "dev/ccc_mean": record.get("dev_ccc_mean"),
        "dev/uar": record.get("dev_uar"),
    }
    ccc = record.get("dev_ccc") or {}
    found |= {f"dev/ccc_{name}": ccc.get(name) for name in DIMENSIONS}
    return {name: float(value) for name, value in found.items() if value is not None}


class TensorBoard:
    """Writes `OUTPUT/tensorboard`; on S3 the file is sent again after every epoch."""

    def __init__(self, output: str, history: Sequence[Epoch]) -> None:
        from tensorboardX import SummaryWriter

        self._target = storage.join(output, "tensorboard")
        self._remote = storage.is_remote(output)
        self._folder = tempfile.mkdtemp() if self._remote else self._target
        if not self._remote:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._writer = SummaryWriter(self._folder, write_to_disk=True)
        for record in history:
            self._write(record)
        self._send()

    def epoch(self, record: Epoch) -> None:
        """Add an epoch's scalars."""
        self._write(record)
        self._send()

    def close(self, model_folder: str | None) -> None:
        """End the file."""
        self._writer.close()
        self._send()
        if self._remote:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, record: Epoch) -> None:
        for name, value in figures(record).items():
            self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def _send(self) -> None:
        if self._remote:
            # one name for all attempts, so that an earlier one's file is replaced
            for file in Path(self._folder).iterdir():
                name = "events.out.tfevents.0.raysers"
                storage.write_atomic(storage.join(self._target, name), file.read_bytes())


class MLflow:
    """Logs to the server or folder of `MLFLOW_TRACKING_URI`, continuing this run's entry there."""

    def __init__(
        self, name: str, run: str, params: Mapping[str, Any], history: Sequence[Epoch]
    ) -> None:
        self._client = _mlflow_client()
        self._run = self._find(run) or self._new(name, run, params)
        self._client.set_terminated(self._run, "RUNNING")
        done = {m.step for m in self._client.get_metric_history(self._run, "train/loss")}
        self._pending = [record for record in history if record["epoch"] not in done]
        self._log_pending()

    def epoch(self, record: Epoch) -> None:
        """Log an epoch's metrics; should the server be away, with a later epoch's."""
        self._pending.append(record)
        self._log_pending()

    def _log_pending(self) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now_ms = int(time.time() * 1000)
        try:
            while self._pending:
                step = self._pending[0]["epoch"]
                found = figures(self._pending[0]).items()
                # one request: all of an epoch or nothing
                self._client.log_batch(self._run, [Metric(k, v, now_ms, step) for k, v in found])
                del self._pending[0]
        except MlflowException as error:
            print(f"warning: MLflow: {str(error).splitlines()[0]}", file=sys.stderr)

    def close(self, model_folder: str | None) -> None:
        """Upload the finished model and end the run."""
        if model_folder is None:
            self._client.set_terminated(self._run, "FAILED")
            return
        with _local_files(model_folder) as files:
            for file in files:
                self._client.log_artifact(self._run, str(file), "model")
        self._client.set_terminated(self._run, "FINISHED")

    def _find(self, run: str) -> str | None:
        experiment = self._client.get_experiment_by_name("raysers")
        if experiment is None:
            return None
        query = f"tags.`{_TAG}` = '{run}'"
        found = self._client.search_runs([experiment.experiment_id], query)
        return str(found[0].info.run_id) if found else None

    def _new(self, name: str, run: str, params: Mapping[str, Any]) -> str:
        experiment = self._client.get_experiment_by_name("raysers")
        number = (
            self._client.create_experiment("raysers")
            if experiment is None
            else experiment.experiment_id
        )
        made = self._client.create_run(number, tags={_TAG: run}, run_name=name)
        for key, value in params.items():
            self._client.log_param(made.info.run_id, key, str(value)[:500])
        return str(made.info.run_id)


def check_tracking(track: str) -> None:
    """Raises ConfigError when `--track` cannot work here."""
    if track == "mlflow":
        _mlflow_client()


def _mlflow_client() -> Any:
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise ConfigError(
            "--track mlflow needs the package mlflow-skinny: pip install 'raysers[track]'"
        ) from error
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError("--track mlflow: set MLFLOW_TRACKING_URI to the server to report to")
    # a server that is not there is found out in seconds, not minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        client = MlflowClient()
        client.get_experiment_by_name("raysers")
    except (MlflowException, ImportError, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(
            f"--track mlflow: MLFLOW_TRACKING_URI does not answer ({first_line})"
        ) from error
    return client


@contextmanager
def _local_files(folder: str) -> Iterator[list[Path]]:
    """The files directly in a model folder, fetched first when it is on S3."""
    with tempfile.TemporaryDirectory() as place:
        files = []
        for found in storage.list_objects(folder):
            name = found.uri.removeprefix(folder + "/")
            if "/" in name or name == claim.NAME:
                continue
            files.append(Path(place, name))
            files[-1].write_bytes(storage.read_bytes(found.uri))
        yield files


@contextmanager
def tracked(
    flags: TrainingFlags, record: RunRecord, history: Sequence[Epoch]
) -> Iterator[list[Tracker]]:
    """The trackers of a run, which has `history` behind it; closed whatever happens."""
    members: list[Tracker] = [TensorBoard(flags.output, history)]
    try:
        if flags.track == "mlflow":
            first = record.history[0]["run_id"] if record.history else record.run_id
            name = flags.output.rstrip("/").rpartition("/")[2]
            members.append(MLflow(name, first, record.settings, history))
        yield members
    except BaseException:
        for member in members:
            member.close(None)
        raise
    for member in members:
        member.close(flags.output)
