"""What a job over clips has to do: the clips, the shards, and which of them are left.

The driver lists; headers are read in this process when there are few, else by Ray tasks. The result
does not depend on how the work was spread: rows are sorted by file and start.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.cli import ClipJobFlags, ListingFlags
from raysers.data.manifest import Manifest, collect, is_manifest, read_part, whole_parts
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.shards import ShardPlan, plan_shards
from raysers.data.sources import LISTING, absolute_input, list_inputs
from raysers.engine import output
from raysers.engine.placement import Placement as Placement
from raysers.engine.placement import io_threads as io_threads
from raysers.engine.progress import LINE_EVERY_S, hours
from raysers.errors import ConfigError
from raysers.run import Run, absolute_output
from raysers.schemas import MANIFEST
from raysers.types import NS_PER_S, Status

#: Version of what the rows mean; another one is never mixed into an output folder.
ROWS_VERSION = 2

#: Objects whose headers one task reads. Finding speech decodes whole files, so its tasks are small.
_OBJECTS_PER_TASK = 2000
_OBJECTS_PER_VAD_TASK = 1

#: Blocks that the cluster gets at a time.
_BLOCKS_AT_A_TIME = 1000

#: Up to so much 16-bit audio, finding speech is not worth starting a cluster.
_LOCAL_VAD_BYTES = 120 << 20

FlagsT = TypeVar("FlagsT", bound=ListingFlags)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run has to do.

    Attributes:
        clips: the manifest, every clip of the output.
        shards: how its parts are cut.
        todo: numbers of the shards without a finished part.
        settings: everything that decides the rows.
        stamp: what parts of this run carry.
        changed: rows of clips whose files are otherwise by now, found by `--retry`.
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


def has_cluster() -> bool:
    """Whether this process has a Ray cluster, or the address of one."""
    # another thread may be importing it
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", bool)
    return bool(os.environ.get("RAY_ADDRESS")) or is_initialized()


def with_absolute_paths(flags: FlagsT) -> FlagsT:
    """The flags, checked (ConfigError), with places that every process of the cluster knows."""
    flags.check()
    places = tuple(map(absolute_input, flags.input))
    return replace(flags, input=places, output=absolute_output(flags.output))


def listing_settings(flags: ListingFlags) -> dict[str, Any]:
    """The settings that decide a manifest."""
    settings: dict[str, Any] = {
        "input": list(flags.input),
        "segment": flags.segment,
        "limit": flags.limit,
        "rows_version": ROWS_VERSION,
    }
    if flags.channel != "mean":
        settings["channel"] = flags.channel
    if flags.segment == "window":
        settings["hop_s"] = flags.hop_s
    if flags.segment != "whole":
        settings |= {"window_s": flags.window_s, "min_s": flags.min_s}
    return settings


def list_clips(flags: ListingFlags, *, local: bool | None = None) -> Manifest:
    """The manifest of the input; see `index`."""
    manifest = index(flags.input, segmenting(flags), limit=flags.limit, local=local)
    refuse_unseen_input(manifest, local)
    return manifest


def segmenting(flags: ListingFlags) -> Segmenting:
    """How the flags cut recordings into clips."""
    channel = {"left": 1, "right": 2}.get(str(flags.channel), flags.channel)
    return Segmenting(
        kind=flags.segment,
        window_s=flags.window_s,
        hop_s=flags.hop_s,
        min_s=flags.min_s,
        channel=channel,  # type: ignore[arg-type]
    )


def index(
    inputs: Sequence[str],
    segmenting: Segmenting,
    *,
    limit: int = 0,
    local: bool | None = None,
) -> Manifest:
    """The manifest of everything under `inputs`; only the first `limit` clips if above 0.

    Finished manifests among the inputs are taken as they are; nothing of them is inspected again.
    With `local`, headers are read in this process; None does so when there are few.

    Raises:
        ConfigError: an input that is not there, holds no audio, or is a table that does not fit.
        CredentialsError, TransientStorageError: the store does not answer as it should.
    """
    refuse_cutting(inputs, segmenting)
    finished = [uri for uri in inputs if is_manifest(uri)]
    tables = (read_part(place) for uri in finished for place in whole_parts(uri))
    others = [uri for uri in inputs if uri not in finished]
    listed = listed_tables(others) if others else ()
    return to_manifest(tables, listed, segmenting, limit=limit, local=local)


def listed_tables(inputs: Sequence[str]) -> Iterator[pa.Table]:
    """What the inputs list; warnings are printed."""
    notes: list[str] = []
    for batch in list_inputs(inputs, notes=notes):
        yield pa.Table.from_batches([batch])
    for warning in notes:
        warn(warning)


def to_manifest(
    finished: Iterable[pa.Table],
    listed: Iterable[pa.Table],
    segmenting: Segmenting,
    *,
    limit: int = 0,
    local: bool | None = None,
) -> Manifest:
    """The manifest of finished manifests and of the clips of `listed` objects; see `index`.

    Headers are read in this process or by Ray tasks. Clips that several rows name are one row, and
    a warning counts them.
    """
    if limit:  # every object is at least one clip
        listed = _first(listed, limit)
    empty = MANIFEST.empty_table()
    tables = chain([empty], finished, inspected(listed, segmenting, local=local))
    manifest, repeated = collect(tables, limit=limit)
    if repeated:
        warn(
            f"{repeated:,} rows name the same stretch of a file as another row, or do so once they "
            "end where the file ends: each is one clip"
        )
    return manifest


def _first(tables: Iterable[pa.Table], limit: int) -> Iterator[pa.Table]:
    """The first `limit` rows by file and start of tables in any order."""
    held, order = LISTING.empty_table(), [("file", "ascending"), ("start", "ascending")]
    for table in tables:
        held = pa.concat_tables([held, table], promote_options="default")
        if len(held) > 2 * limit + _OBJECTS_PER_TASK:
            held = held.sort_by(order).slice(0, limit)
    yield held.sort_by(order).slice(0, limit)


def map_blocks(
    work: Callable[[pa.Table], pa.Table],
    blocks: Iterable[pa.Table],
    *,
    local: bool,
    threads: int = 4,
) -> Iterator[pa.Table]:
    """`work` on every block, in threads of this process or in Ray tasks; results in any order.

    Raises:
        RaysersError: what `work` raised.
    """
    blocks = iter(blocks)
    if local:
        with ThreadPoolExecutor(threads) as pool:
            while some := list(islice(blocks, 16 * threads)):
                yield from pool.map(work, some)
        return
    from raysers.engine import cluster

    cluster.connect()
    # what is listed goes to the workers while the next is listed
    while some := list(islice(blocks, _BLOCKS_AT_A_TIME)):
        yield from cluster.map_blocks(work, some)


def make_plan(
    flags: ClipJobFlags,
    run: Run,
    table: str,
    manifest: Manifest,
    settings: Mapping[str, Any],
) -> Plan:
    """Cut the manifest into shards and see which are left.

    Raises:
        RefusedError: the output holds rows of other settings.
    """
    run.refuse_other_settings(settings)
    shards = plan_shards(manifest, shard_s=flags.shard_s)
    # an extension changes no row before it, so parts keep the stamp of the original list
    stamp = output.stamp_of(run.job, {**settings, "manifest": manifest.fingerprints[0]})
    resumed = run.earlier is not None
    done = output.shards_done(run.output, table, len(shards), stamp) if resumed else set()
    todo = set(range(len(shards))) - done
    return Plan(clips=manifest, shards=shards, todo=sorted(todo), settings=settings, stamp=stamp)


def refuse_cutting(inputs: Sequence[str], segmenting: Segmenting) -> None:
    """Raises ConfigError where a finished manifest among the inputs would have to be cut."""
    flag = f"--segment {segmenting.kind}" if segmenting.kind != "whole" else ""
    flag = flag or (f"--channel {segmenting.channel}" if segmenting.channel != "mean" else "")
    for uri in inputs if flag else ():
        if is_manifest(uri):
            raise ConfigError(
                f"{flag}: {uri} is a manifest whose clips are decided already; leave "
                f"{flag.split()[0]} out, or index the audio again"
            )


def refuse_unseen_input(manifest: Manifest, local: bool | None = None) -> None:
    """Raises ConfigError where no clip is named, or no node but this one sees the files."""
    if not manifest.num_rows:
        raise ConfigError("--input: its tables name no clip: give tables with rows, or audio")
    if local or not has_cluster():
        return
    first = manifest.part(0, ["file"])["file"][0].as_py()
    statuses = (part["status"] for part in manifest.parts(["status"]))
    nothing = all(pc.all(pc.equal(one, str(Status.MISSING))).as_py() for one in statuses)
    if not nothing or not os.path.exists(first):
        return
    from raysers.engine import cluster

    if not cluster.is_one_machine():
        raise ConfigError(
            f"--input: the nodes do not see {first}: put the audio on a shared disk or in s3://"
        )


def inspected(
    listed: Iterable[pa.Table], segmenting: Segmenting, *, local: bool | None = None
) -> Iterator[pa.Table]:
    """The manifest rows of listed objects, in any order.

    Headers are read in this process (`local`; None: when there are few) or by Ray tasks.
    """
    vad = segmenting.kind == "vad"
    objects = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal objects
        for table in listed:
            objects += len(table)
            yield table

    blocks = _blocks(counted(), _OBJECTS_PER_VAD_TASK if vad else _OBJECTS_PER_TASK)
    first = list(_few(blocks, vad))
    rest = next(blocks, None)
    here = bool(local) or (rest is None and not (vad and has_cluster()))
    if rest is not None:
        first.append(rest)
    # one thread loads and calls the speech detector
    inspect = partial(_inspect, segmenting=segmenting)
    found = map_blocks(inspect, chain(first, blocks), local=here, threads=1 if vad else 4)
    clips, speech_s, read_s, last_s = 0, 0.0, 0.0, time.monotonic()
    for table in found:
        clips += table.num_rows
        if vad:
            speech = table.filter(pc.equal(table["status"], str(Status.OK)))
            speech_s += pc.sum(speech["duration_s"]).as_py() or 0.0
            ends = pa.table({"file": table["file"], "end": table["end"].cast(pa.int64())})
            ends = ends.group_by("file").aggregate([("end", "max")])
            read_s += (pc.sum(ends["end_max"]).as_py() or 0) / NS_PER_S
        if time.monotonic() - last_s >= LINE_EVERY_S:
            last_s = time.monotonic()
            line = f"reading headers: {clips:,} clips of {objects:,} files"
            if vad:
                line = f"finding speech: {hours(speech_s)} in {hours(read_s)} of audio"
            print(line, file=sys.stderr)
        yield table


def _blocks(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size`; only tables of clips have labels."""
    held: list[pa.Table] = []
    rows = 0
    for table in chain(tables, [None]):
        if table is not None:
            held.append(table)
            rows += len(table)
        if rows and (table is None or rows >= size):
            together = pa.concat_tables(held, promote_options="default")
            yield from (together.slice(at, size) for at in range(0, rows, size))
            held, rows = [], 0


def _few(blocks: Iterator[pa.Table], vad: bool) -> Iterator[pa.Table]:
    """The first blocks, up to what is too little to start a cluster for."""
    num_bytes = 0
    for block in blocks:
        yield block
        num_bytes += pc.sum(block["num_bytes"]).as_py() or 0
        if not vad or num_bytes > _LOCAL_VAD_BYTES:
            return


def _inspect(block: pa.Table, segmenting: Segmenting) -> pa.Table:
    if segmenting.kind != "vad":
        return probe_batch(block, segmenting)
    from raysers.models.vad import find_speech  # torch, which reading headers does not need

    speech = partial(find_speech, min_s=segmenting.min_s, max_s=segmenting.window_s)
    return probe_batch(block, segmenting, find_speech=speech)


def warn(text: str) -> None:
    """A warning on stderr."""
    print(f"warning: {text}", file=sys.stderr)
