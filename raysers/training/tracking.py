"""The figures of every epoch besides the terminal: TensorBoard files, and MLflow if asked for.

TensorBoard's file is written anew from the whole history, and a resumed run continues its entry in
MLflow, so that a run that was interrupted shows as one.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysers.errors import ConfigError
from raysers.io import claim, storage
from raysers.run import RunRecord
from raysers.training.config import TrainingFlags
from raysers.types import DIMENSIONS

Epoch = Mapping[str, Any]

#: Experiment in MLflow, and the tag by which a run of ours is found again.
_EXPERIMENT, _TAG = "raysers", "raysers.run"


def check_tracking(track: str) -> None:
    """Raises ConfigError when `--track` cannot work here."""
    if track == "mlflow":
        _mlflow()


@contextmanager
def tracked(
    flags: TrainingFlags, record: RunRecord, history: Sequence[Epoch]
) -> Iterator[_TensorBoard | _MLflow]:
    """Where to pass the record of every further epoch; `history` is behind the run."""
    board = _TensorBoard(flags.output, history)
    try:
        if flags.track == "none":
            yield board
        else:
            server = _MLflow(flags.output, record, history, board)
            with server.run():
                yield server
    finally:
        board.close()


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


class _TensorBoard:
    """Writes `OUTPUT/tensorboard`; on S3 the file is sent again after every epoch."""

    def __init__(self, output: str, history: Sequence[Epoch]) -> None:
        from tensorboardX import SummaryWriter

        self._target = storage.join(output, "tensorboard")
        self._is_remote = storage.is_remote(output)
        self._folder = tempfile.mkdtemp() if self._is_remote else self._target
        if not self._is_remote:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._writer = SummaryWriter(self._folder, write_to_disk=True)
        for record in history:
            self.epoch(record)

    def epoch(self, record: Epoch) -> None:
        """Add an epoch's scalars."""
        for name, value in _figures(record).items():
            self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()
        if self._is_remote:
            # one name for all attempts, so that an earlier one's file is replaced
            for file in Path(self._folder).iterdir():
                name = "events.out.tfevents.0.raysers"
                storage.write_atomic(storage.join(self._target, name), file.read_bytes())

    def close(self) -> None:
        """End the file."""
        self._writer.close()
        if self._is_remote:
            shutil.rmtree(self._folder, ignore_errors=True)


class _MLflow:
    """Logs to the server or folder of `MLFLOW_TRACKING_URI` as well, in this run's entry there."""

    def __init__(
        self, output: str, record: RunRecord, history: Sequence[Epoch], board: _TensorBoard
    ) -> None:
        self._output, self._board, self._mlflow = output, board, _mlflow()
        self._params = {key: str(value)[:500] for key, value in record.settings.items()}
        self._tag = record.history[0]["run_id"] if record.history else record.run_id
        self._pending = [*history]

    @contextmanager
    def run(self) -> Iterator[None]:
        """Within, epochs are logged; the model follows at the end, unless an error ends it."""
        mlflow = self._mlflow
        experiment = mlflow.set_experiment(_EXPERIMENT).experiment_id
        earlier = mlflow.search_runs(
            [experiment], f"tags.`{_TAG}` = '{self._tag}'", output_format="list"
        )
        name = self._output.rstrip("/").rpartition("/")[2]
        run_id = earlier[0].info.run_id if earlier else None
        with mlflow.start_run(run_id=run_id, run_name=name, tags={_TAG: self._tag}) as run:
            done = earlier[0].data.metrics.get("train/epoch", 0) if earlier else 0
            self._pending = [record for record in self._pending if record["epoch"] > done]
            if not earlier:
                mlflow.log_params(self._params)
            self._log_pending()
            yield
            with _local_files(self._output) as folder:
                mlflow.log_artifacts(folder, "model", run_id=run.info.run_id)

    def epoch(self, record: Epoch) -> None:
        """Log an epoch's metrics; should the server be away, with a later epoch's."""
        self._board.epoch(record)
        self._pending.append(record)
        self._log_pending()

    def _log_pending(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            while self._pending:
                epoch = self._pending[0]["epoch"]
                figures = _figures(self._pending[0]) | {"train/epoch": epoch}
                self._mlflow.log_metrics(figures, step=epoch)
                del self._pending[0]
        except MlflowException as error:
            print(f"warning: MLflow: {str(error).splitlines()[0]}", file=sys.stderr)


def _mlflow() -> Any:
    """The package, once it is known to work.

    Raises:
        ConfigError: it is not installed, or no server answers.
    """
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
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
    except (MlflowException, ImportError, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(
            f"--track mlflow: MLFLOW_TRACKING_URI does not answer ({first_line})"
        ) from error
    return mlflow


@contextmanager
def _local_files(output: str) -> Iterator[str]:
    """A folder with copies of the files directly in a model folder."""
    with tempfile.TemporaryDirectory() as place:
        for found in storage.list_objects(output):
            name = found.uri.removeprefix(output + "/")
            if "/" not in name and name != claim.NAME:
                Path(place, name).write_bytes(storage.read_bytes(found.uri))
        yield place
