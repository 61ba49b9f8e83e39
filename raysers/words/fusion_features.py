"""The vectors a fusion is trained on, and the training of its heads on them.

The vectors come from one pass over the clips, in a folder with a record and a manifest like any
job's: an interrupted pass resumes, and a second training with other heads reuses the vectors. Two
trainings may share the folder one after the other; while one fills it, a second is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.splits import identities
from raysers.engine.cluster import call_on_worker
from raysers.engine.job import ClipJob
from raysers.engine.plan import Placement
from raysers.errors import RaysersError
from raysers.evaluation.join import dimensions_of
from raysers.io import storage
from raysers.models.fusion import (
    SOUND,
    SOURCES,
    WORDS,
    EpochOfHead,
    FusionHead,
    HeadSettings,
    Vectors,
    side_by_side,
    train_head,
)
from raysers.run import Exit, load_record
from raysers.types import Status
from raysers.words.fusion_data import DEV, TRAIN, nothing_to_learn
from raysers.words.fusion_flags import FuseTrainFlags

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


def make(job: ClipJob) -> Exit:
    """Run the pass over whatever is left; exit code 3 when too many clips failed."""
    earlier = job.run.earlier
    if earlier is not None and not job.plan.todo and earlier.status == "done":
        print(f"vectors: all there, {job.run.output}")
        return Exit.DONE
    return job.execute()


def read(job: ClipJob) -> Features:
    """The vectors of every clip that has them, in an order that stays when the corpus moves.

    Raises:
        RaysersError: none has, or too few of the labelled ones.
    """
    place, plan = job.run.output, job.plan
    rows = job.rows(job.task.schema.names)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedHeads:
    """Heads by name, and what every epoch of each came to."""

    heads: Mapping[str, FusionHead]
    history: Mapping[str, list[EpochOfHead]]


def train_heads(features: Features, settings: HeadSettings, placement: Placement) -> TrainedHeads:
    """The three heads on the training clips' vectors, each at its best epoch on dev."""
    found = {}
    for name in SOURCES:
        train, dev = (_vectors(features, name, split) for split in (TRAIN, DEV))
        work = partial(train_head, name, train, dev, settings, device=placement.device)
        if placement.num_gpus and not placement.local:
            found[name] = call_on_worker(placement, work)
        else:
            found[name] = work()
    return TrainedHeads(
        heads={name: head for name, (head, _) in found.items()},
        history={name: history for name, (_, history) in found.items()},
    )


def _vectors(features: Features, head: str, split: str) -> Vectors:
    rows = features.places(split)
    chosen = {source: values[rows] for source, values in features.vectors.items()}
    return Vectors(values=side_by_side(head, chosen), labels=features.labels[rows])
