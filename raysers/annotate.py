"""The annotation task: emotion scores, and embeddings when asked for, of every clip.

The driver loads the model once to check it before anything is written; every worker loads it again,
pinned to the revision that was checked.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray

from raysers.engine.cluster import Placement, is_one_machine, patient_get
from raysers.engine.worker import Signal
from raysers.errors import CheckpointError, ClipError
from raysers.io import storage
from raysers.model_files import local_model
from raysers.models.backbones import parse_model_name
from raysers.models.loading import load_emotion_model
from raysers.models.precision import dtype_name
from raysers.models.scorer import Scorer, auto_padded_s, score_rows
from raysers.run import RunRecord
from raysers.schemas import ANNOTATIONS, with_embeddings
from raysers.types import DIMENSIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateTask:
    """Settings of an annotation, checked against the model itself.

    Attributes:
        model: name, hub id, folder or URI, as written into every row.
        load_from: the same, pinned to the revision that was checked.
        revision: commit or content hash the scores come from.
        hidden_size: size of an embedding.
        dtype: `auto` until `placed` settles it for all workers.
        max_padded_s: padded seconds per forward; 0 chooses for the device.
        threads: compute threads per worker.
        embeddings: also write the masked mean of the last layer.
    """

    model: str
    load_from: str
    revision: str
    hidden_size: int
    dtype: str
    max_padded_s: float
    embeddings: bool
    threads: int = 1
    table: str = "annotations"

    @property
    def schema(self) -> pa.Schema:
        """Columns of the output."""
        return with_embeddings(ANNOTATIONS, self.hidden_size) if self.embeddings else ANNOTATIONS

    @property
    def has_random_weights(self) -> bool:
        """True when nobody ever trained the model."""
        return parse_model_name(self.model).random

    @property
    def settings(self) -> dict[str, Any]:
        """What of this decides the rows."""
        return {
            "model": self.model,
            "model_revision": self.revision,
            "dtype": self.dtype,
            "embeddings": self.embeddings,
        }

    def open(self) -> Annotator:
        """Load the model on this worker's device."""
        return Annotator(self)


def prepare(model: str, *, dtype: str, max_padded_s: float, embeddings: bool) -> AnnotateTask:
    """Load and check the model here, before anything is written.

    Raises:
        ConfigError: unknown model.
        CheckpointError: a model that cannot be trusted to score.
    """
    name = parse_model_name(model)
    if name.path is not None and name.alias is None and not name.random:
        model = storage.absolute(model)  # workers have working folders of their own
    loaded = load_emotion_model(local_model(model))
    pinned = name.hub_id is not None and not name.random
    return AnnotateTask(
        model=model,
        load_from=f"{model.partition('@')[0]}@{loaded.revision}" if pinned else model,
        revision=loaded.revision,
        hidden_size=loaded.hidden_size,
        dtype=dtype,
        max_padded_s=max_padded_s,
        embeddings=embeddings,
    )


def placed(task: AnnotateTask, placement: Placement, earlier: RunRecord | None) -> AnnotateTask:
    """The task with threads and number format settled, the same for all workers.

    `auto` means what it meant when the output was begun, else what the workers' hardware has.
    """
    dtype = task.dtype
    if dtype == "auto" and earlier is not None:
        dtype = str(earlier.settings.get("dtype", dtype))
    if dtype == "auto" or dtype == "fp16":
        dtype = _ask_worker(dtype, placement)
    return replace(task, dtype=dtype, threads=placement.threads)


def _ask_worker(dtype: str, placement: Placement) -> str:
    if placement.device == "cpu" and is_one_machine():
        return dtype_name(dtype, "cpu")
    ask = ray.remote(num_cpus=placement.num_cpus, num_gpus=placement.num_gpus)(dtype_name)
    wanted = f"one worker ({placement.num_gpus:g} GPU, {placement.num_cpus:g} CPU)"
    return str(patient_get(ask.remote(dtype, placement.device), wanted))


class Annotator:
    """A loaded model on one device, turning micro-batches into rows' columns."""

    def __init__(self, task: AnnotateTask) -> None:
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        loaded = load_emotion_model(local_model(task.load_from))
        if loaded.revision != task.revision:
            raise CheckpointError(
                f"{task.model} is {loaded.revision} on {platform.node()} but was {task.revision} "
                "when the job began: every node must have the same, and it must not change"
            )
        self.scorer = Scorer(loaded, dtype=task.dtype, device=device, threads=task.threads)
        self.max_padded_s = task.max_padded_s or auto_padded_s(self.scorer)
        self.schema = task.schema
        self.provenance = {"model": task.model, "model_revision": task.revision}
        self._embeddings = task.embeddings

    def score(self, signals: Sequence[Signal]) -> list[dict[str, Any] | ClipError]:
        """Per signal its own columns, or why it has none."""
        return [
            row if isinstance(row, ClipError) else self._columns(row)
            for row in score_rows(self.scorer, signals)
        ]

    def _columns(self, row: Any) -> dict[str, Any]:
        columns: dict[str, Any] = dict(zip(DIMENSIONS, row.scores.tolist(), strict=True))
        if self._embeddings:
            columns["embedding"] = row.embedding
        return columns
