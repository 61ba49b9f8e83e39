"""What a job over clips has to do: the clips, the shards, and which of them are left.

An extension is a further list behind the first one: its clips are in shards with the numbers that
follow, so nothing that is written changes. It exists once the first of its parts is written, which
is written last; from then on the plain command scores it too.

`--retry` adds failed rows, their files inspected as on the first listing. The list of clips stays:
a row keeps its `clip_id`, whatever its file is by now. A clip that was cut from its file is scored
only where the file would still be cut there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysers.data.manifest import Manifest, is_manifest, plain_rows
from raysers.data.readers import STDIN
from raysers.data.segments import CARRIED, CLAMPED_NS
from raysers.data.shards import ShardPlan, plan_shards
from raysers.data.sources import list_inputs, listed_segments
from raysers.engine import output
from raysers.engine.listing import ClipJobFlags, index, inspected, segmenting, warn
from raysers.errors import ConfigError, RaysersError
from raysers.io import storage
from raysers.run import Run
from raysers.schemas import AUDIO_STREAM, MANIFEST, OBJECTS, PARTS_OF_FILE
from raysers.types import Status

_CUT_OTHERWISE = (
    "the file changed since it was listed and is cut into other clips now: give a new --output to "
    "score all of it"
)

#: No end of a clip.
_NOT_GIVEN = -1

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run has to do.

    `clips` are all clips of the output, cut into `shards`, of which `todo` have no finished part.
    `settings` are everything that decides the rows, and make the `stamp` of the parts. `changed`
    are rows of clips whose files are otherwise by now, found by `--retry`.
    """

    clips: Manifest
    shards: ShardPlan
    todo: list[int]
    settings: Mapping[str, Any]
    stamp: str
    changed: pa.Table | None = None

    @cached_property
    def manifest(self) -> pa.Table:
        """All clips in memory, for jobs whose results are small tables as well."""
        return self.clips.table()

    def todo_s(self) -> float:
        """Audio seconds of the shards that are left."""
        return float(np.sum(self.shards.seconds[self.todo]))


def make_plan(
    flags: ClipJobFlags, run: Run, table: str, manifest: Manifest, settings: Mapping[str, Any]
) -> Plan:
    """Cut the manifest into shards and see which are left; RefusedError for other settings."""
    run.refuse_other_settings(settings)
    shards = plan_shards(manifest, shard_s=flags.shard_s)
    # an extension changes no row before it, so parts keep the stamp of the original list
    stamp = output.stamp_of(run.job, {**settings, "manifest": manifest.fingerprints[0]})
    todo = set(range(len(shards)))
    if run.earlier is not None:
        finished = output.read_parts(run.output, table, range(len(shards)), [], stamp=stamp)
        todo.difference_update(shard for shard, _ in finished)
    return Plan(clips=manifest, shards=shards, todo=sorted(todo), settings=settings, stamp=stamp)


def warn_of_new_files(inputs: Sequence[str], clips: Manifest) -> None:
    """Name files that the inputs have got since the list of clips was made."""
    others = [uri for uri in inputs if uri != STDIN and not is_manifest(uri)]
    if not others:
        return
    is_new, added = _known_files(clips), set[str]()
    with suppress(RaysersError):  # the run goes on with what it has listed
        for batch in list_inputs(others):
            added.update(batch.filter(is_new(batch))["file"].to_pylist())
    if added:
        files = "1 file was" if len(added) == 1 else f"{len(added):,} files were"
        warn(
            f"{files} added since the clips were listed and not scored (the first: {min(added)}): "
            "--extend scores them"
        )


def extended(flags: ClipJobFlags, run: Run, clips: Manifest) -> Manifest:
    """The clips, and those of files that the inputs have got since these were listed."""
    local = True if flags.workers == "local" else None
    inputs = [uri for uri in flags.input if uri != STDIN]
    added = index(inputs, segmenting(flags), local=local, only=_known_files(clips))
    if not added.num_rows:
        return clips
    for field in PARTS_OF_FILE:
        if len({field.name in one.part(0).column_names for one in (clips, added)}) > 1:
            raise ConfigError(
                f"--extend: --output {run.output} has a column {field.name} and the added clips "
                "have none, or the other way round: give another --output"
            )
    clips = clips.extended(added)
    _settle(run, clips)
    return clips


def _known_files(clips: Manifest) -> Callable[[Any], pa.Array]:
    """A mask of the rows of a table whose file is not of these clips."""

    def hashes(rows: Any) -> NDArray[np.int64]:  # eight bytes a file
        return np.fromiter(map(hash, rows["file"].to_pylist()), np.int64, len(rows))

    known = np.unique(np.concatenate([hashes(part) for part in clips.parts(["file"])]))
    return lambda rows: pa.array(~np.isin(hashes(rows), known, assume_unique=False))


def _settle(run: Run, clips: Manifest) -> None:
    """Let the record that is resumed name all clips: what was added changes no row before it."""
    assert run.earlier is not None, "nothing is resumed"
    settings = {**run.earlier.settings, "manifest": clips.fingerprint}
    run.earlier = replace(run.earlier, settings=settings)


def stored_manifest(run: Run) -> Manifest:
    """The manifest of the run that is resumed, with extensions that are not in its record yet."""
    assert run.earlier is not None, "nothing is resumed"
    manifest = Manifest.stored(storage.join(run.output, "manifest"))
    if run.earlier.settings.get("manifest") not in manifest.fingerprints:
        raise RaysersError(
            f"the manifest in {run.output} is not the one its run.json names: it was changed from "
            "outside; start again in another folder"
        )
    _settle(run, manifest)
    return manifest


def with_failed(plan: Plan, flags: ClipJobFlags, output_uri: str, table: str) -> Plan:
    """The plan with the finished shards that hold a row to retry, its clips as their files are now.

    A whole file takes its new length. A segment has the times of its table, held against the file
    as on the first listing. Windows and stretches of speech are scored where the file is still cut
    alike; where it is not, the row says so. Members of a tar and clips of a finished manifest have
    to be of the version that was listed.
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
        pa.schema([*OBJECTS, CARRIED, *PARTS_OF_FILE]),
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
            spans[_part_of_file(row)].add((row["start"], row["end"]))
    new = []
    for row, key in zip(rows, (one[CARRIED.name] for one in listed), strict=True):
        is_cut = flags.segment != "whole" and key != row["clip_id"]
        known = spans[_part_of_file(row)]
        now = _cut(row, found[key], known) if is_cut else found[key][0]
        if now["end"] is None:  # nothing is known of the file
            now = row | {name: now[name] for name in ("status", "error")}
        new.append(now | {"clip_id": row["clip_id"]})
    return pa.Table.from_pylist(new, pa.schema([*MANIFEST, AUDIO_STREAM]))


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
        one = {"file": row["file"], **{field.name: row.get(field.name) for field in PARTS_OF_FILE}}
        key = "\0".join(map(str, (row["byte_offset"], *one.values())))
        if row["byte_offset"] is not None:
            one |= {name: row[name] for name in ("num_bytes", "etag", "byte_offset", "byte_size")}
        if row["clip_id"] in pinned and row["end"] is not None:
            key, one = row["clip_id"], one | {name: row[name] for name in OBJECTS.names}
        elif (end := _given_end(row["end"], ends[row["file"], row["start"]])) != _NOT_GIVEN:
            key = row["clip_id"]
            one |= {"start": row["start"], "end": end}
        listed.append(one | {CARRIED.name: key})
    return listed


def _part_of_file(row: Row) -> tuple[Any, ...]:
    return row["file"], *(row.get(field.name) for field in PARTS_OF_FILE)


def _where(clips: Manifest, name: str, values: Collection[str]) -> pa.Table:
    known = pa.array(values, pa.string())
    found = [part.filter(pc.is_in(part[name], known)) for part in clips.parts()]
    return pa.concat_tables(found, promote_options="default")


def _given_end(end: int | None, ends: Collection[int | None]) -> int | None:
    """The end that a table gave a clip that ends at `end`; `_NOT_GIVEN` where it gave none.

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
