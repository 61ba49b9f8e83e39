"""The transcription task: what was said in every clip.

The driver loads the recogniser once to check it before anything is written; every worker loads it
again, pinned to the revision that was checked.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pyarrow as pa
import ray

from raysers import annotate
from raysers.engine import cluster
from raysers.engine.cluster import Placement
from raysers.engine.worker import Signal
from raysers.errors import CheckpointError, ClipError
from raysers.io import storage
from raysers.annotate import local_model
from raysers.models.asr import Recogniser, is_moonshine, load_asr, parse_asr_name
from raysers.run import RunRecord
from raysers.schemas import ANNOTATIONS, TRANSCRIPTS


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscribeTask:
    """Settings of a transcription, checked against the recogniser itself.

    Attributes:
        asr: name, hub id, folder or URI, as written into every row.
        load_from: the same, pinned to the revision that was checked.
        revision: commit or content hash the texts come from.
        dtype: `auto` until `placed` settles it for all workers.
        max_padded_s: padded seconds per forward; 0 chooses for the device.
        threads: compute threads per worker.
    """

    asr: str
    load_from: str
    revision: str
    dtype: str
    max_padded_s: float
    threads: int = 1
    table: str = "transcripts"

    @property
    def schema(self) -> pa.Schema:
        """Columns of the output."""
        # how long a clip is, because progress and speed are counted from the finished rows
        return TRANSCRIPTS.append(ANNOTATIONS.field("duration_s"))

    @property
    def settings(self) -> dict[str, Any]:
        """What of this decides the rows."""
        return {"asr": self.asr, "asr_revision": self.revision, "dtype": self.dtype}

    def open(self) -> Transcriber:
        """Load the recogniser on this worker's device."""
        return Transcriber(self)


def prepare(asr: str, *, dtype: str, max_padded_s: float) -> TranscribeTask:
    """Load and check the recogniser here, before anything is written.

    Raises:
        ConfigError: unknown name, or a format it does not compute in.
        CheckpointError: a folder whose words cannot be trusted.
    """
    pinned = False
    if not is_moonshine(asr):
        name = parse_asr_name(asr)
        pinned = name.hub_id is not None
        asr = asr if pinned else storage.absolute(asr)  # workers have folders of their own
    # fp16 is for the workers' GPUs, which this process need not have; moonshine never takes it
    checked_in = "auto" if dtype == "fp16" and not is_moonshine(asr) else dtype
    loaded = load_asr(local_model(asr, "--asr"), dtype=checked_in, threads=1)
    return TranscribeTask(
        asr=asr,
        load_from=f"{asr.partition('@')[0]}@{loaded.revision}" if pinned else asr,
        revision=loaded.revision,
        dtype=dtype,
        max_padded_s=max_padded_s,
    )


def place(task: TranscribeTask, workers: int) -> Placement:
    """The workers' resources: as for any model, except that moonshine never takes a GPU.

    Raises:
        ConfigError: the cluster cannot hold that many workers.
    """
    if not is_moonshine(task.asr):
        return cluster.place(workers)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [{"CPU": resources.get("CPU", 0)} for resources in nodes]
    return cluster.choose_placement(workers, cpus)


def placed(task: TranscribeTask, placement: Placement, earlier: RunRecord | None) -> TranscribeTask:
    """The task with threads and number format settled, the same for all workers."""
    if is_moonshine(task.asr):
        return replace(task, threads=placement.threads)
    # settles number format and threads, which both kinds of task have under the same names
    return cast(TranscribeTask, annotate.placed(cast(Any, task), placement, earlier))


class Transcriber:
    """A loaded recogniser on one device, turning micro-batches into rows' columns."""

    def __init__(self, task: TranscribeTask) -> None:
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        loaded = load_asr(
            local_model(task.load_from, "--asr"),
            device=device,
            dtype=task.dtype,
            threads=task.threads,
        )
        if loaded.revision != task.revision:
            raise CheckpointError(
                f"{task.asr} is {loaded.revision} on {platform.node()} but was {task.revision} "
                "when the job began: every node must have the same, and it must not change"
            )
        if task.max_padded_s:
            loaded.max_padded_s = task.max_padded_s
        self.recogniser: Recogniser = loaded
        self.max_padded_s = loaded.max_padded_s
        self.schema = task.schema
        self.provenance = {"model": task.asr, "model_revision": task.revision}

    def score(self, signals: Sequence[Signal]) -> list[dict[str, Any] | ClipError]:
        """Per signal its text, or why it has none."""
        return [
            text if isinstance(text, ClipError) else {"text": text}
            for text in self.recogniser.transcribe(signals)
        ]
