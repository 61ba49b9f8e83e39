"""Speaker turns: each speaker's scores in the order of time, and their means.

Written beside the rows where a table of the input names several clips of a recording and who speaks
in them, such as an RTTM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from raysers.data.manifest import Manifest
from raysers.engine import output
from raysers.engine.progress import print_line
from raysers.io import storage
from raysers.schemas import ANNOTATIONS, CLIP_FIELDS, LABEL_FIELDS
from raysers.types import DIMENSIONS, Status

_SPEAKER = next(field for field in LABEL_FIELDS if field.name == "speaker")
_SCORES = tuple(ANNOTATIONS.field(name) for name in DIMENSIONS)

#: Columns of the rows that timelines are made of.
_COLUMNS = (*(f.name for f in CLIP_FIELDS), "status", *DIMENSIONS, "duration_s")

#: A turn a row, by file, speaker and start.
TIMELINES = pa.schema(
    [
        *CLIP_FIELDS[:1],
        _SPEAKER,
        *CLIP_FIELDS[1:],
        ANNOTATIONS.field("status"),
        *_SCORES,
        ANNOTATIONS.field("duration_s"),
    ]
)

#: A speaker of a file a row; means weigh each turn by its length.
SPEAKERS = pa.schema(
    [
        *CLIP_FIELDS[:1],
        _SPEAKER,
        pa.field("turns", pa.int64(), metadata={"meaning": "turns with scores"}),
        pa.field("speech_s", pa.float64(), metadata={"meaning": "their length", "unit": "s"}),
        *_SCORES,
    ]
)


def write_turns(where: str, clips: Manifest, rows: Callable[[Sequence[str]], pa.Table]) -> None:
    """Write `timelines` and `speakers` into an output whose clips are turns of known speakers.

    Does nothing for other clips.

    Args:
        where: the output.
        clips: its manifest.
        rows: gives columns of its rows.

    Raises:
        WriteError, StorageError: as `storage.write_atomic`.
    """
    speakers = (part["speaker"] for part in clips.parts(["speaker"]) if part.num_columns)
    if not any(len(column) > column.null_count for column in speakers):
        return
    known = clips.table(["clip_id", "speaker"])
    found = rows(_COLUMNS).join(
        known.filter(pc.is_valid(known["speaker"])), "clip_id", join_type="inner"
    )
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
    columns = [groups["file"], groups["speaker"], groups["clip_id_count"], speech_s, *means]
    means_of = pa.table(columns, names=SPEAKERS.names).cast(SPEAKERS)
    for name, table in (("timelines", found), ("speakers", means_of)):
        output.write_part(output.part_uri(where, name, 0), table)
    print_line(f"speakers: {len(means_of):,} in {storage.join(where, 'speakers')}")
