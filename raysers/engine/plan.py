"""What a job over clips has to do: the clips, the shards, and which of them are left.

The driver lists; headers are read in this process when there are few, else by Ray tasks. The result
does not depend on how the work was spread: rows are sorted by file and start.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.cli import ClipJobFlags, ListingFlags
from raysers.data.inputs import absolute_input
from raysers.data.manifest import (
    ShardPlan,
    fingerprint,
    is_manifest,
    plan_shards,
    read_manifest,
    sort_manifest,
)
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sources import list_inputs
from raysers.engine import output
from raysers.engine.progress import LINE_EVERY_S
from raysers.errors import ConfigError, RaysersError
from raysers.io import storage
from raysers.run import Run, absolute_output
from raysers.types import Status

#: Version of what the rows mean; another one is never mixed into an output folder.
ROWS_VERSION = 1

#: Objects whose headers one task reads. Finding speech decodes whole files, so its tasks are small.
_OBJECTS_PER_TASK = 2000
_OBJECTS_PER_VAD_TASK = 1

#: Up to so much 16-bit audio, finding speech is not worth starting a cluster.
_LOCAL_VAD_BYTES = 120 << 20

FlagsT = TypeVar("FlagsT", bound=ListingFlags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How many workers, and what each reserves; `local` is one worker in the driver's process."""

    workers: int
    num_cpus: float
    num_gpus: float
    local: bool = False

    @property
    def device(self) -> str:
        """`cuda` or `cpu`."""
        return "cuda" if self.num_gpus else "cpu"

    @property
    def threads(self) -> int:
        """Compute threads of one worker."""
        return max(1, int(self.num_cpus))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run has to do.

    Attributes:
        manifest: every clip of the output.
        shards: how the manifest is cut.
        todo: numbers of the shards without a finished part.
        settings: everything that decides the rows.
        stamp: what parts of this run carry.
    """

    manifest: pa.Table
    shards: ShardPlan
    todo: list[int]
    settings: Mapping[str, Any]
    stamp: str

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
    if flags.segment == "window":
        settings["hop_s"] = flags.hop_s
    if flags.segment != "whole":
        settings |= {"window_s": flags.window_s, "min_s": flags.min_s}
    return settings


def list_clips(flags: ListingFlags, *, local: bool | None = None) -> pa.Table:
    """The manifest of the input; see `index`."""
    manifest = index(flags.input, segmenting(flags), limit=flags.limit, local=local)
    refuse_unseen_input(manifest, local)
    return manifest


def segmenting(flags: ListingFlags) -> Segmenting:
    """How the flags cut recordings into clips."""
    return Segmenting(
        kind=flags.segment, window_s=flags.window_s, hop_s=flags.hop_s, min_s=flags.min_s
    )


def index(
    inputs: Sequence[str],
    segmenting: Segmenting,
    *,
    limit: int = 0,
    local: bool | None = None,
) -> pa.Table:
    """The manifest of everything under `inputs`, sorted; only the first `limit` clips if above 0.

    Finished manifests among the inputs are taken as they are; nothing of them is inspected again.
    With `local`, headers are read in this process; None does so when there are few.

    Raises:
        ConfigError: an input that is not there, holds no audio, or is a table that does not fit.
        CredentialsError, TransientStorageError: the store does not answer as it should.
    """
    refuse_cutting(inputs, segmenting)
    finished = [uri for uri in inputs if is_manifest(uri)]
    tables = [read_manifest(uri) for uri in finished]
    listed = None
    if others := [uri for uri in inputs if uri not in finished]:
        notes: list[str] = []
        batches = [pa.Table.from_batches([batch]) for batch in list_inputs(others, notes=notes)]
        listed = pa.concat_tables(batches, promote_options="default")  # only tables have labels
        for warning in notes:
            _warn(warning)
    return to_manifest(tables, listed, segmenting, limit=limit, local=local)


def to_manifest(
    finished: Sequence[pa.Table],
    listed: pa.Table | None,
    segmenting: Segmenting,
    *,
    limit: int = 0,
    local: bool | None = None,
) -> pa.Table:
    """Finished manifests and the clips of `listed` objects, sorted; see `index`.

    Headers are read in this process or by Ray tasks. Clips that several rows name are one row, and
    a warning counts them.
    """
    tables = list(finished)
    if listed is not None and len(listed):
        if limit:  # every object is at least one clip
            listed = listed.sort_by([("file", "ascending"), ("start", "ascending")])
            listed = listed.slice(0, limit)
        tables += inspected(listed, segmenting, local=local)
    together = pa.concat_tables(tables, promote_options="default")
    manifest = sort_manifest(together)
    if repeated := len(together) - len(manifest):
        _warn(
            f"{repeated:,} rows name the same stretch of a file as another row, or do so once they "
            "end where the file ends: each is one clip"
        )
    return manifest.slice(0, limit) if limit else manifest


def map_blocks(
    work: Callable[[pa.Table], pa.Table],
    blocks: Sequence[pa.Table],
    *,
    local: bool,
    threads: int = 4,
) -> Iterator[pa.Table]:
    """`work` on every block, in threads of this process or in Ray tasks; results in any order.

    Raises:
        RaysersError: what `work` raised.
    """
    if local:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(work, blocks)
        return
    from raysers.engine import cluster

    cluster.connect()
    yield from cluster.map_blocks(work, blocks)


def make_plan(
    flags: ClipJobFlags,
    run: Run,
    table: str,
    manifest: pa.Table,
    settings: Mapping[str, Any],
) -> Plan:
    """Cut the manifest into shards and see which are left.

    Raises:
        RefusedError: the output holds rows of other settings.
    """
    run.refuse_other_settings(settings)
    shards = plan_shards(manifest, shard_s=flags.shard_s)
    stamp = output.stamp_of(run.job, settings)
    resumed = run.earlier is not None
    done = output.shards_done(run.output, table, len(shards), stamp) if resumed else set()
    todo = set(range(len(shards))) - done
    return Plan(manifest=manifest, shards=shards, todo=sorted(todo), settings=settings, stamp=stamp)


def stored_manifest(run: Run) -> pa.Table:
    """The manifest of the run that is resumed.

    Raises:
        RaysersError: it is not the one that the run's record names.
    """
    assert run.earlier is not None, "nothing is resumed"
    manifest = read_manifest(storage.join(run.output, "manifest"))
    if fingerprint(manifest) != run.earlier.settings.get("manifest"):
        raise RaysersError(
            f"the manifest in {run.output} is not the one its run.json names: it was changed from "
            "outside; start again in another folder"
        )
    return manifest


def io_threads(manifest: pa.Table, placement: Placement) -> int:
    """Threads of a worker that fetch and decode.

    Local disks need few; object stores answer slowly, but to many at once.
    """
    remote = pc.any(pc.starts_with(manifest["file"], "s3://")).as_py()
    if placement.device == "cuda":
        return 32 if remote else 8
    return 16 if remote else max(2, placement.threads)


def refuse_cutting(inputs: Sequence[str], segmenting: Segmenting) -> None:
    """Raises ConfigError where a finished manifest among the inputs would have to be cut."""
    for uri in inputs if segmenting.kind != "whole" else ():
        if is_manifest(uri):
            raise ConfigError(
                f"--segment {segmenting.kind}: {uri} is a manifest whose clips are decided "
                "already; leave --segment out, or index the audio again"
            )


def refuse_unseen_input(manifest: pa.Table, local: bool | None = None) -> None:
    """Raises ConfigError where no clip is named, or no node but this one sees the files."""
    if not manifest.num_rows:
        raise ConfigError("--input: its tables name no clip: give tables with rows, or audio")
    first = manifest["file"][0].as_py()
    nothing = pc.all(pc.equal(manifest["status"], str(Status.MISSING))).as_py()
    if local or not nothing or not has_cluster() or not os.path.exists(first):
        return
    from raysers.engine import cluster

    if not cluster.is_one_machine():
        raise ConfigError(
            f"--input: the nodes do not see {first}: put the audio on a shared disk or in s3://"
        )


def inspected(
    listed: pa.Table, segmenting: Segmenting, *, local: bool | None = None
) -> Iterator[pa.Table]:
    """The manifest rows of listed objects, in any order.

    Headers are read in this process (`local`; None: when there are few) or by Ray tasks.
    """
    vad = segmenting.kind == "vad"
    size = _OBJECTS_PER_VAD_TASK if vad else _OBJECTS_PER_TASK
    blocks = [listed.slice(start, size) for start in range(0, listed.num_rows, size)]
    if local is None and not has_cluster() and vad:
        local = (pc.sum(listed["num_bytes"]).as_py() or 0) <= _LOCAL_VAD_BYTES
    here = bool(local) or (len(blocks) <= 1 and not vad)
    # one thread loads and calls the speech detector
    inspect = partial(_inspect, segmenting=segmenting)
    found = map_blocks(inspect, blocks, local=here, threads=1 if vad else 4)
    clips, last_s = 0, time.monotonic()
    for table in found:
        clips += table.num_rows
        if time.monotonic() - last_s >= LINE_EVERY_S:
            last_s = time.monotonic()
            print(f"reading headers: {clips:,} clips of {len(listed):,} files", file=sys.stderr)
        yield table


def _inspect(block: pa.Table, segmenting: Segmenting) -> pa.Table:
    if segmenting.kind != "vad":
        return probe_batch(block, segmenting)
    from raysers.models.vad import find_speech  # torch, which reading headers does not need

    speech = partial(find_speech, min_s=segmenting.min_s, max_s=segmenting.window_s)
    return probe_batch(block, segmenting, find_speech=speech)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
