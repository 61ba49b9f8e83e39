"""What `--retry` scores again: failed rows, their files inspected as on the first listing.

The list of clips stays: a row keeps its `clip_id`, whatever its file is by now. A clip that was cut
from its file is scored only where the file would still be cut there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysers.cli import ClipJobFlags
from raysers.data.manifest import Manifest, is_manifest, plain_rows
from raysers.data.segments import CARRIED, CLAMPED_NS
from raysers.data.sources import listed_segments
from raysers.engine import output
from raysers.engine.plan import Plan, inspected, segmenting
from raysers.schemas import CHANNEL, MANIFEST, OBJECTS
from raysers.types import Status

_CUT_OTHERWISE = (
    "the file changed since it was listed and is cut into other clips now: give a new --output to "
    "score all of it"
)

#: No end of a clip.
_NOT_GIVEN = -1

Row = dict[str, Any]


def with_failed(plan: Plan, flags: ClipJobFlags, output_uri: str, table: str) -> Plan:
    """The plan with the finished shards that hold a row to retry, its clips as their files are now.

    A whole file takes its new length. A segment has the times of its table, held against the file
    as on the first listing. Windows and stretches of speech are scored where the file is still cut
    alike; where it is not, the row says so. Members of a tar and clips of a finished manifest have
    to be of the version that was listed.

    Raises:
        ConfigError: a table of the input cannot be read any more.
    """
    statuses = pa.array(map(str, flags.retry))
    todo, failed = set(plan.todo), set()
    for shard, part in output.read_parts(
        output_uri, table, range(len(plan.shards)), ["clip_id", "status"], stamp=plan.stamp
    ):
        if ids := part.filter(pc.is_in(part["status"], statuses))["clip_id"].to_pylist():
            todo.add(shard)
            failed.update(ids)
    changed = _inspected_again(plan.clips, failed, flags) if failed else None
    return replace(plan, changed=changed, todo=sorted(todo))


def _inspected_again(clips: Manifest, ids: Collection[str], flags: ClipJobFlags) -> pa.Table:
    """The clips of these ids, as their files are now."""
    rows = plain_rows(_where(clips, "clip_id", ids))
    listed = _listed(rows, flags.input)
    again = pa.Table.from_pylist(
        list({row[CARRIED.name]: row for row in listed}.values()),
        pa.schema([*OBJECTS, CARRIED, CHANNEL]),
    )
    local = True if flags.workers == "local" else None
    found: dict[str, list[Row]] = defaultdict(list)
    # the channels are decided as well
    for table in inspected([again], replace(segmenting(flags), channel="mean"), local=local):
        for clip in plain_rows(table):
            found[clip[CARRIED.name]].append(clip)
    spans = defaultdict(set)
    if flags.segment != "whole":
        for row in plain_rows(_where(clips, "file", {row["file"] for row in rows})):
            spans[row["file"], row.get(CHANNEL.name)].add((row["start"], row["end"]))
    new = []
    for row, key in zip(rows, (one[CARRIED.name] for one in listed), strict=True):
        is_cut = flags.segment != "whole" and key != row["clip_id"]
        known = spans[row["file"], row.get(CHANNEL.name)]
        now = _cut(row, found[key], known) if is_cut else found[key][0]
        if now["end"] is None:  # nothing is known of the file
            now = row | {name: now[name] for name in ("status", "error")}
        new.append(now | {"clip_id": row["clip_id"]})
    return pa.Table.from_pylist(new, MANIFEST)


def _listed(rows: list[Row], inputs: Sequence[str]) -> list[Row]:
    """How the input lists what each clip is of: a file, or a part of it, which carries the id."""
    finished = [uri for uri in inputs if is_manifest(uri)]
    ids = {row["clip_id"] for row in rows}
    decided = (_where(Manifest.stored(uri), "clip_id", ids) for uri in finished)
    pinned = {clip for table in decided for clip in table["clip_id"].to_pylist()}
    segments = listed_segments([uri for uri in inputs if uri not in finished])
    ends = defaultdict(set)
    files = pa.array({row["file"] for row in rows}, pa.string())
    for given in plain_rows(segments.filter(pc.is_in(segments["file"], files))):
        ends[given["file"], given["start"] or 0].add(given["end"])
    listed = []
    for row in rows:
        channel = row.get(CHANNEL.name)
        key = f"{row['file']}\0{row['byte_offset']}\0{channel}"
        one = {"file": row["file"], CHANNEL.name: channel}
        if row["byte_offset"] is not None:
            one |= {name: row[name] for name in ("num_bytes", "etag", "byte_offset", "byte_size")}
        if row["clip_id"] in pinned and row["end"] is not None:
            key, one = row["clip_id"], one | {name: row[name] for name in OBJECTS.names}
        elif (end := _given_end(row["end"], ends[row["file"], row["start"]])) != _NOT_GIVEN:
            key = row["clip_id"]
            one |= {"start": row["start"], "end": end}
        listed.append(one | {CARRIED.name: key})
    return listed


def _where(clips: Manifest, name: str, values: Collection[str]) -> pa.Table:
    known = pa.array(values, pa.string())
    found = [part.filter(pc.is_in(part[name], known)) for part in clips.parts()]
    return pa.concat_tables(found, promote_options="default")


def _given_end(end: int | None, ends: Collection[int | None]) -> int | None:
    """The end that a table gave a clip of the end `end`; `_NOT_GIVEN` where it gave none.

    An open end and one just behind the file's end are in the manifest as the end of the file.
    """
    if end in ends:
        return end
    near = [e for e in ends if e is not None and end is not None and 0 < e - end <= CLAMPED_NS]
    return min(near) if near else None if None in ends else _NOT_GIVEN


def _cut(row: Row, now: list[Row], spans: Collection[tuple[int, int | None]]) -> Row:
    """The listed window `row` of a file that is cut into the clips `now`, before into `spans`."""
    same = next((r for r in now if (r["start"], r["end"]) == (row["start"], row["end"])), None)
    is_same_file = same and row["etag"] and same["etag"] == row["etag"]  # `--limit` cuts spans off
    if same and (is_same_file or all((r["start"], r["end"]) in spans for r in now)):
        return same
    if all(r["status"] != Status.OK for r in now):
        return row | {name: now[0][name] for name in ("status", "error")}
    return row | {"status": str(Status.UNREADABLE), "error": _CUT_OTHERWISE}
