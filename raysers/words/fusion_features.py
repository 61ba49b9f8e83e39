"""The vectors a fusion is trained on: one pass over the clips, kept as an output of its own.

The folder has a record and a manifest like any job's, so an interrupted pass goes on, and a second
training with other heads finds every vector there. Two trainings may share it one after the other,
not at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysers.cli import ClipJobFlags, as_plain
from raysers.data.manifest import fingerprint
from raysers.data.shards import plan_shards, shard_name
from raysers.data.splits import identities
from raysers.engine import job, output, summary
from raysers.engine import plan as planning
from raysers.engine.cluster import Placement
from raysers.engine.plan import Plan
from raysers.errors import ConfigError, RaysersError
from raysers.evaluation.join import dimensions_of
from raysers.io import storage
from raysers.models.fusion import SOUND, WORDS
from raysers.run import Exit, RunRecord, load_record, refuse_other_settings
from raysers.types import Status
from raysers.words.fusion_data import FusionData, nothing_to_learn, words_fingerprint
from raysers.words.fusion_flags import FuseTrainFlags
from raysers.words.fusion_task import FusionTask

JOB = "fuse-features"
TABLE = "features"
#: Of the training itself.
TRAIN_JOB = "fuse-train"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Clips that have vectors, by clip id.

    Attributes:
        table: their rows of the labelled manifest.
        rows: their rows of the features table, without the vectors.
        vectors: float32 [clips, size] by source.
        labels: float32 [clips, 3], NaN where unknown.
        acoustic: float32 [clips, 3], scores of the acoustic model itself.
    """

    table: pa.Table
    rows: pa.Table
    vectors: dict[str, Floats]
    labels: Floats
    acoustic: Floats

    def places(self, split: str) -> npt.NDArray[np.intp]:
        """Row numbers of a split."""
        return np.flatnonzero(np.array(self.table["split"].to_pylist(), object) == split)


def folder(flags: FuseTrainFlags) -> str:
    """Where the vectors are or will be; an earlier training's output stands for its vectors."""
    if not flags.features:
        return storage.join(flags.output, TABLE)
    earlier = load_record(flags.features)
    if earlier is not None and earlier.job == TRAIN_JOB:
        named = earlier.config.get("features")
        return str(named) if named else storage.join(flags.features, TABLE)
    return flags.features


def settings_of(flags: FuseTrainFlags, task: FusionTask, data: FusionData) -> dict[str, Any]:
    """Everything that decides the vectors."""
    words = "" if task.words.recognise_all else words_fingerprint(data.table)
    return {
        **task.settings,
        "max_clip_s": flags.max_clip_s,
        "shard_s": ClipJobFlags.shard_s,
        "manifest": fingerprint(data.table),
        "transcripts": words,
        "rows_version": planning.ROWS_VERSION,
    }


def earlier_record(place: str) -> RunRecord | None:
    """The record of the pass that began the folder.

    Raises:
        RefusedError: it is another job's.
        ConfigError: it holds vectors of unknown origin.
    """
    earlier = load_record(place)
    if earlier is not None and earlier.job != JOB:
        refuse_other_settings(place, earlier, JOB, {})
    if earlier is None and output.parts_done(place, TABLE):
        raise ConfigError(f"--features {place} has {TABLE} but no run.json: choose another folder")
    return earlier


def make_plan(
    clips: ClipJobFlags, data: FusionData, settings: Mapping[str, Any], earlier: RunRecord | None
) -> Plan:
    """What is left to do for the vectors.

    Raises:
        RefusedError: the folder's vectors are of other clips, models or words.
    """
    if earlier is not None:
        refuse_other_settings(clips.output, earlier, JOB, settings)
    shards = plan_shards(data.table, shard_s=ClipJobFlags.shard_s)
    done = output.parts_done(clips.output, TABLE) if earlier else set()
    todo = {i for i in range(len(shards)) if shard_name(i) not in done}
    if clips.retry and done:
        todo |= planning.shards_to_retry(clips, TABLE, len(shards))
    return Plan(
        manifest=data.table, shards=shards, todo=sorted(todo), earlier=earlier, settings=settings
    )


def make(
    clips: ClipJobFlags, plan: Plan, task: FusionTask, placement: Placement, flags: FuseTrainFlags
) -> Exit:
    """Run the pass over whatever is left; exit code 3 when too many clips failed."""
    if plan.earlier is not None and not plan.todo and plan.earlier.status == "done":
        print(f"vectors: all there, {clips.output}")
        return Exit.DONE
    summary.print_plan("fuse", plan)
    summary.warn_of_long_clips(plan, flags.max_clip_s)
    record = job.start(clips, JOB, plan, as_plain(clips), task)
    ran = job.run_plan(clips, plan, task, placement, record, flags.max_clip_s)
    return job.conclude(clips, plan, task.table, record, ran)


def read(place: str, plan: Plan, task: FusionTask) -> Features:
    """The vectors of every clip that has them, in an order that stays when the corpus moves.

    Raises:
        RaysersError: none has, or too few of the labelled ones.
    """
    rows = output.read_all(place, TABLE, len(plan.shards), task.schema.names)
    rows = rows.filter(pc.equal(rows["status"], str(Status.OK)))
    if not len(rows):
        raise RaysersError(f"no clip of {place} has vectors: see its columns status and error")
    ids = rows["clip_id"].combine_chunks()
    table = plan.manifest.take(pc.index_in(ids, plan.manifest["clip_id"].combine_chunks()))
    order = pc.sort_indices(pa.array(identities(table), pa.string()))
    rows, table = rows.take(order), table.take(order)
    labels = dimensions_of(table).astype(np.float32)
    if lacking := nothing_to_learn(labels, table["split"].to_pylist()):
        raise RaysersError(f"of the clips of {place} that have vectors, {lacking}")
    return Features(
        table=table,
        rows=rows.drop_columns(["embedding", "text_embedding"]),
        vectors={SOUND: _matrix(rows["embedding"]), WORDS: _matrix(rows["text_embedding"])},
        labels=labels,
        acoustic=dimensions_of(rows).astype(np.float32),
    )


def _matrix(column: pa.ChunkedArray) -> Floats:
    lists = column.combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(len(lists), -1)
