"""The task of the main job: emotion scores, and embeddings when asked for, of every clip.

The driver checks the model before anything is written; every worker loads it again, pinned to the
revision that was checked.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import pyarrow as pa
import pyarrow.compute as pc

from raysers.engine import output, progress
from raysers.engine.job import ClipJob
from raysers.engine.placement import Placement, settled_backend, settled_dtype
from raysers.engine.worker import ClipTask, Signal
from raysers.errors import CheckpointError, ClipError
from raysers.io import storage
from raysers.models.backbones import PLAIN, Outputs, parse_model_name
from raysers.models.checkpoint import identify
from raysers.run import RunRecord
from raysers.schemas import ANNOTATIONS, SPEAKERS, TIMELINES, with_embeddings, with_outputs
from raysers.types import DIMENSIONS, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateTask(ClipTask):
    """Settings of an annotation, checked against the model itself.

    `load_from` is the `model`, pinned to the `revision` (a commit or content hash) that was
    checked. `dtype` and `backend` are `auto` until `placed` settles them, device and threads for
    all workers; `max_padded_s` 0 chooses for the device. With `embeddings` the rows also have the
    masked mean of the last layer, `hidden_size` numbers. `outputs` is what the model says beside
    that; dimensions that are not trained stay null.
    """

    preloads: ClassVar[Sequence[str]] = (
        "raysers.models.scorer",
        "transformers.models.wav2vec2.modeling_wav2vec2",
        "onnxruntime",
    )

    model: str
    load_from: str
    revision: str
    hidden_size: int
    dtype: str
    max_padded_s: float
    embeddings: bool
    backend: str = "auto"
    device: str = "cpu"
    threads: int = 1
    outputs: Outputs = PLAIN
    model_licence: str = ""

    @classmethod
    def load(
        cls, model: str, *, dtype: str, max_padded_s: float, embeddings: bool = False
    ) -> AnnotateTask:
        """Check the model's configuration and files, before anything is written."""
        name = parse_model_name(model)
        if name.path is not None and name.alias is None and not name.random:
            model = storage.absolute(model)  # workers have working folders of their own
        found = identify(parse_model_name(storage.fetch_folder(model)))
        pinned = name.hub_id is not None and not name.random
        return cls(
            model=model,
            load_from=f"{model.partition('@')[0]}@{found.revision}" if pinned else model,
            revision=found.revision,
            hidden_size=found.embedding_size,
            dtype=dtype,
            max_padded_s=max_padded_s,
            embeddings=embeddings,
            outputs=found.outputs,
            model_licence=found.licence,
        )

    @property
    def schema(self) -> pa.Schema:
        """Columns of the output."""
        schema = with_outputs(ANNOTATIONS, self.outputs.categories, self.outputs.columns)
        return with_embeddings(schema, self.hidden_size) if self.embeddings else schema

    @property
    def licence(self) -> str:
        """See `ClipTask.licence`."""
        return self.model_licence

    @property
    def model_threads(self) -> int:
        """See `ClipTask.model_threads`; fp32 sets switches of the whole process."""
        return 2 if self.device == "cuda" and self.dtype != "fp32" else 1

    @property
    def notes(self) -> Sequence[str]:
        """Warnings about weights or outputs that were never trained."""
        if parse_model_name(self.model).random:
            return [f"{self.model} has random weights: its scores mean nothing"]
        untrained = ", ".join(name for name in DIMENSIONS if name not in self.outputs.trained)
        warning = f"{self.model} was not trained for {untrained}: these scores are null"
        return [warning] if untrained else []

    @property
    def settings(self) -> dict[str, Any]:
        """What of this decides the rows; torch is not named, as in outputs from before."""
        return {
            "model": self.model,
            "model_revision": self.revision,
            "dtype": self.dtype,
            "embeddings": self.embeddings,
        } | ({} if self.backend == "torch" else {"backend": self.backend})

    def placed(self, placement: Placement, earlier: RunRecord | None) -> Self:
        """See `ClipTask.placed`."""
        dtype = settled_dtype(self.dtype, placement, earlier)
        return replace(
            self,
            dtype=dtype,
            backend=settled_backend(dtype, placement, earlier),
            device=placement.device,
            threads=placement.threads,
        )

    def open(self) -> Annotator:
        """Load the model on this worker's device."""
        return Annotator(self)


class Annotator:
    """A loaded model on one device, turning micro-batches into rows' columns."""

    def __init__(self, task: AnnotateTask) -> None:
        from raysers.models.loading import load_emotion_model
        from raysers.models.scorer import Scorer, auto_padded_s

        loaded = load_emotion_model(storage.fetch_folder(task.load_from))
        require_revision(task.model, task.revision, loaded.revision)
        self.scorer = Scorer(
            loaded, dtype=task.dtype, device=task.device, threads=task.threads, backend=task.backend
        )
        self.max_padded_s = task.max_padded_s or auto_padded_s(self.scorer)
        self.provenance: Mapping[str, Any] = {"model": task.model, "model_revision": task.revision}
        self._embeddings = task.embeddings
        self._outputs = task.outputs

    def score(
        self, signals: Sequence[Signal], transcripts: Sequence[str | None] = ()
    ) -> list[dict[str, Any] | ClipError]:
        """See `ClipModel.score`; transcripts are not used."""
        from raysers.models.scorer import score_rows

        found: list[dict[str, Any] | ClipError] = []
        for row in score_rows(self.scorer, signals):
            if isinstance(row, ClipError):
                found.append(row)
                continue
            columns = self._outputs.row(row.scores.tolist(), row.extras.tolist())
            embedding = {"embedding": row.embedding} if self._embeddings else {}
            found.append(columns | embedding)
        return found


def require_revision(name: str, checked: str, found: str) -> None:
    """Raises CheckpointError when a worker finds another model than the driver checked."""
    if found != checked:
        raise CheckpointError(
            f"{name} is {found} on {platform.node()} but was {checked} when the job began: every "
            "node must have the same, and it must not change"
        )


def write_turns(job: ClipJob) -> None:
    """Write the speaker turns of a job's output: scores in the order of time, and means.

    They are there where a table of the input names parts of recordings and who speaks in them.
    """
    where, clips = job.run.output, job.plan.clips
    speakers = (part["speaker"] for part in clips.parts(["speaker"]) if part.num_columns)
    if not any(len(column) > column.null_count for column in speakers):
        return
    known = clips.table(["clip_id", "speaker"]).filter(pc.field("speaker").is_valid())
    columns = [name for name in TIMELINES.names if name != "speaker"]
    found = job.rows(columns).join(known, "clip_id", join_type="inner")
    if len(found) == pc.count_distinct(found["file"]).as_py():
        return  # whole files
    found = found.select(TIMELINES.names).cast(TIMELINES)
    found = found.sort_by([(name, "ascending") for name in ("file", "speaker", "start", "end")])
    scored = found.filter(pc.equal(found["status"], str(Status.OK)))
    for name in DIMENSIONS:
        weighted = pc.multiply(scored[name].cast(pa.float64()), scored["duration_s"])
        scored = scored.append_column(f"{name}_s", weighted)
    sums = [("duration_s", "sum"), ("clip_id", "count"), *((f"{n}_s", "sum") for n in DIMENSIONS)]
    groups = scored.group_by(["file", "speaker"], use_threads=False).aggregate(sums)
    speech_s = groups["duration_s_sum"]
    means = [pc.divide(groups[f"{name}_s_sum"], speech_s) for name in DIMENSIONS]
    values = [groups["file"], groups["speaker"], groups["clip_id_count"], speech_s, *means]
    means_of = pa.table(values, names=SPEAKERS.names).cast(SPEAKERS)
    for name, table in (("timelines", found), ("speakers", means_of)):
        output.write_part(output.part_uri(where, name, 0), table)
    job.write_header(timelines=TIMELINES, speakers=SPEAKERS)
    progress.print_line(f"speakers: {len(means_of):,} in {storage.join(where, 'speakers')}")
