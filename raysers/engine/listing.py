"""The manifest of a job's input: listing, and reading headers.

The driver lists; headers are read in this process when there are few, else by Ray tasks. The result
does not depend on how the work was spread: rows are sorted by file and start.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, ClassVar, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from raysers.cli import DEFAULT_MODEL, Output, Retry, Uris, check_flags
from raysers.data.manifest import Manifest, collect, is_manifest, read_part, whole_parts
from raysers.data.segments import Segmenting, probe_batch
from raysers.data.sorting import in_parts
from raysers.data.sources import LISTING, absolute_input, list_inputs
from raysers.engine.progress import LINE_EVERY_S
from raysers.errors import ConfigError
from raysers.io import storage
from raysers.run import absolute_output
from raysers.schemas import MANIFEST
from raysers.types import Status

#: Version of what rows and shards mean; another one is never mixed into an output folder.
ROWS_VERSION = 3

#: Objects whose headers one task reads. Finding speech decodes whole files, so its tasks are small.
_OBJECTS_PER_TASK = 2000
_OBJECTS_PER_VAD_TASK = 1
#: Blocks that the cluster gets at a time.
_BLOCKS_AT_A_TIME = 1000
#: Up to so much 16-bit audio, finding speech is not worth starting a cluster.
_LOCAL_VAD_BYTES = 120 << 20


@dataclass(frozen=True, kw_only=True)
class ListingFlags:
    """Which audio is processed, and how it becomes clips."""

    #: Fields besides input and output that are places.
    places: ClassVar[Sequence[str]] = ()

    input: Uris
    """Folders, s3:// prefixes or URLs of audio, tar shards, or a table of clips."""
    output: Output
    """Folder or s3:// prefix for the tables; rerun the command to resume there."""
    segment: Literal["whole", "window", "vad"] = "whole"
    """How recordings become clips: the whole file, fixed windows, or stretches of speech."""
    window_s: float = 10.0
    """Window length in seconds; for vad the longest stretch of speech."""
    hop_s: float = 10.0
    """Seconds from one window's start to the next."""
    min_s: float = 0.5
    """Shortest last window, or stretch of speech, in seconds."""
    channel: Literal["mean", "left", "right", "each"] | int = "mean"
    """Channels of a recording: their mean, one of them (a number counts from 1), or each as
    separate clips, with a column `channel`."""
    audio_stream: str = "0"
    """Audio stream of containers such as MP4 and MKV: a number from 0, or a language (eng) or title
    as the file names it."""
    limit: int = 0
    """Only the first N clips; 0 takes all."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        window = f"above 0 and at most --window-s ({self.window_s:g})"
        whole = "also --segment window (or vad): whole files are not cut"
        cut, kind = self.segment != "whole", ListingFlags
        channel = not isinstance(self.channel, int) or self.channel >= 1
        hop = 0 < self.hop_s <= self.window_s or self.segment != "window"
        check_flags(
            (bool(self.input), "--input", "nothing", "at least one folder, prefix or manifest"),
            (bool(self.output), "--output", "nothing", "a folder or an s3:// prefix"),
            (self.window_s > 0, "--window-s", self.window_s, "a length above 0 seconds"),
            (hop, "--hop-s", self.hop_s, f"{window}, or audio would be skipped"),
            (cut or self.window_s == kind.window_s, "--window-s", self.window_s, whole),
            (cut or self.hop_s == kind.hop_s, "--hop-s", self.hop_s, whole),
            (cut or self.min_s == kind.min_s, "--min-s", self.min_s, whole),
            (0 < self.min_s <= self.window_s, "--min-s", self.min_s, window),
            (channel, "--channel", self.channel, "mean, left, right, each or a number from 1"),
            (self.audio_stream.strip() != "", "--audio-stream", "nothing", "a number or a name"),
            (self.limit >= 0, "--limit", self.limit, "0 (all) or more"),
        )


@dataclass(frozen=True, kw_only=True)
class ClipJobFlags(ListingFlags):
    """How clips are scored, and what happens to those that cannot be."""

    model: str = DEFAULT_MODEL
    """Alias, hub id, folder or s3:// prefix of a model, with an optional @revision."""
    dtype: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """Precision of the model; auto is bf16 where the hardware has it, else fp32. int8 is for CPUs:
    faster, and scores differ in the third decimal."""
    workers: int | Literal["local"] = 0
    """Model workers; 0 uses every GPU, or every CPU when there is none, also of nodes that join the
    cluster, and needs no Ray for up to an hour of audio on one machine; `local` scores in this
    process, without Ray."""
    decode_processes: int | Literal["auto"] = "auto"
    """Processes that decode for each worker; 0 decodes in its own threads, auto takes its share of
    the node's cores beside a GPU, else 0."""
    max_padded_s: float = 0.0
    """Padded audio seconds per forward pass; 0 chooses for the device."""
    shard_s: float = 1800.0
    """Audio seconds per output file at most; small archives get shorter ones."""
    dry_run: bool = False
    """Benchmark the cluster, estimate time and cost, write nothing."""
    usd_per_hour: float = 0.0
    """Price of one worker per hour (its machine's, divided by the workers on it)."""
    max_clip_s: float = 600.0
    """Longer clips are `too_long` instead of scored; cut recordings with --segment window."""
    max_failed: float = 0.05
    """Highest share of rows that are not ok before the job ends with exit code 3."""
    retry: Retry = ()
    """When resuming, also score clips with these statuses again."""
    extend: bool = False
    """When resuming, also score files that were added to the input since."""

    def check(self) -> None:
        """Raises ConfigError naming the first flag with an impossible value."""
        super().check()
        workers = self.workers == "local" or self.workers >= 0
        beside = self.decode_processes
        length = "a length above 0 seconds"
        check_flags(
            (workers, "--workers", self.workers, "0 (automatic), a number, or local"),
            (beside == "auto" or beside >= 0, "--decode-processes", beside, "auto, or 0 or more"),
            (self.max_padded_s >= 0, "--max-padded-s", self.max_padded_s, "0 or more seconds"),
            (self.max_clip_s > 0, "--max-clip-s", self.max_clip_s, length),
            (self.shard_s > 0, "--shard-s", self.shard_s, length),
            (0 <= self.max_failed <= 1, "--max-failed", self.max_failed, "a share from 0 to 1"),
            (self.usd_per_hour >= 0, "--usd-per-hour", self.usd_per_hour, "0 or more"),
            (not (self.extend and self.limit), "--limit", self.limit, "0 with --extend"),
            (Status.OK not in self.retry, "--retry", "ok", "statuses of failed clips"),
        )


FlagsT = TypeVar("FlagsT", bound=ListingFlags)


def has_cluster() -> bool:
    """Whether this process has a Ray cluster, or the address of one."""
    # another thread may be importing it
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", bool)
    return bool(os.environ.get("RAY_ADDRESS")) or is_initialized()


def with_absolute_paths(flags: FlagsT) -> FlagsT:
    """The flags, checked (ConfigError), with places that every process of the cluster knows."""
    flags.check()
    inputs = tuple(map(absolute_input, flags.input))
    given = ((name, getattr(flags, name)) for name in flags.places)
    places: dict[str, Any] = {name: storage.absolute(value) for name, value in given if value}
    return replace(flags, input=inputs, output=absolute_output(flags.output), **places)


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
    if flags.audio_stream != "0":
        settings["audio_stream"] = flags.audio_stream
    if flags.segment == "window":
        settings["hop_s"] = flags.hop_s
    if flags.segment != "whole":
        settings |= {"window_s": flags.window_s, "min_s": flags.min_s}
    return settings


def segmenting(flags: ListingFlags) -> Segmenting:
    """How the flags cut recordings into clips."""
    return Segmenting(
        kind=flags.segment,
        window_s=flags.window_s,
        hop_s=flags.hop_s,
        min_s=flags.min_s,
        channel={"left": 1, "right": 2}.get(str(flags.channel), flags.channel),  # type: ignore[arg-type]
        audio_stream=flags.audio_stream,
    )


def list_clips(flags: ListingFlags, *, local: bool | None = None) -> Manifest:
    """The manifest of the input; see `index` and `refuse_unseen_input`."""
    if flags.output in flags.input:  # later commands would read its manifest, and no new file
        raise ConfigError(f"--output {flags.output} is an --input, too: choose another folder")
    manifest = index(flags.input, segmenting(flags), limit=flags.limit, local=local)
    refuse_unseen_input(manifest, local)
    return manifest


def index(
    inputs: Sequence[str],
    segmenting: Segmenting,
    *,
    limit: int = 0,
    local: bool | None = None,
    only: Callable[[pa.Table], pa.Array] | None = None,
) -> Manifest:
    """The manifest of everything under `inputs`; only the first `limit` clips if above 0.

    Finished manifests among the inputs are taken as they are. With `local`, headers are read in
    this process; None does so when there are few. `only` is a mask of the rows to take. Raises
    ConfigError: an input that is not there, holds no audio, or is a table that does not fit.
    """
    _refuse_cutting(inputs, segmenting)
    finished = [uri for uri in inputs if is_manifest(uri)]
    others = [uri for uri in inputs if uri not in finished]

    tables = (read_part(place) for uri in finished for place in whole_parts(uri))
    listed = _listed(others) if others else iter(())
    if only is not None:
        tables, listed = ((t.filter(only(t)) for t in some) for some in (tables, listed))
    return to_manifest(tables, listed, segmenting, limit=limit, local=local)


def _listed(inputs: Sequence[str]) -> Iterator[pa.Table]:
    notes: list[str] = []
    for batch in list_inputs(inputs, notes=notes):
        yield pa.Table.from_batches([batch])
    for note in notes:
        warn(note)


def index_labelled(
    inputs: Sequence[str],
    *,
    corpus: str = "auto",
    emotion_map: str = "",
    speakers: str = "",
    segmenting: Segmenting | None = None,
    limit: int = 0,
    flag: str = "--input",
) -> tuple[pa.Table, list[str]]:
    """The manifest of labelled inputs, with every label column, and notes for the user.

    Arguments are those of `read_labelled` and `index`; `segmenting` is for rows without a segment.
    """
    from raysers.data.labelled import read_labelled  # every corpus' reader

    segmenting = segmenting or Segmenting()
    _refuse_cutting(inputs, segmenting)
    found = read_labelled(
        inputs, corpus=corpus, emotion_map=emotion_map, speakers=speakers, flag=flag
    )
    finished, listed = found.table.slice(0, found.finished), found.table.slice(found.finished)
    return to_manifest([finished], [listed], segmenting, limit=limit).table(), list(found.notes)


def to_manifest(
    finished: Iterable[pa.Table],
    listed: Iterable[pa.Table],
    segmenting: Segmenting,
    *,
    limit: int = 0,
    local: bool | None = None,
) -> Manifest:
    """The manifest of finished manifests and of the clips of `listed` objects; see `index`."""
    if limit:  # every object is at least one clip
        first = LISTING.empty_table()
        for some in in_parts(listed, max(2 * limit, _OBJECTS_PER_TASK)):
            both = pa.concat_tables([first, some], promote_options="default")
            first = both.sort_by([("file", "ascending"), ("start", "ascending")]).slice(0, limit)
        listed = [first]
    empty = MANIFEST.empty_table()
    tables = chain([empty], finished, inspected(listed, segmenting, local=local))
    manifest, repeated = collect(tables, limit=limit)
    if repeated:
        warn(
            f"{repeated:,} rows name the same stretch of a file as another row, or do so once they "
            "end where the file ends: each is one clip"
        )
    return manifest


def map_blocks(
    work: Callable[[pa.Table], pa.Table],
    blocks: Iterable[pa.Table],
    *,
    local: bool,
    threads: int = 4,
) -> Iterator[pa.Table]:
    """`work` on every block, in threads of this process or in Ray tasks; results in any order."""
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


def _refuse_cutting(inputs: Sequence[str], segmenting: Segmenting) -> None:
    """Raises ConfigError where a finished manifest among the inputs would have to be cut."""
    flag = f"--segment {segmenting.kind}" if segmenting.kind != "whole" else ""
    flag = flag or (f"--channel {segmenting.channel}" if segmenting.channel != "mean" else "")
    stream = segmenting.audio_stream
    flag = flag or (f"--audio-stream {stream}" if stream != "0" else "")
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
    """The manifest rows of listed objects, in any order; for `local` see `index`."""
    vad, objects = segmenting.kind == "vad", 0

    def counted() -> Iterator[pa.Table]:
        nonlocal objects
        for table in listed:
            objects += len(table)
            yield table

    blocks = in_parts(counted(), _OBJECTS_PER_VAD_TASK if vad else _OBJECTS_PER_TASK)
    first: list[pa.Table] = []
    num_bytes = 0
    for block in blocks:
        first.append(block)
        num_bytes += pc.sum(block["num_bytes"]).as_py() or 0
        if num_bytes > _LOCAL_VAD_BYTES if vad else len(first) > 1:
            break
    else:
        local = local or not (vad and has_cluster())
    inspect = partial(_inspect, segmenting=segmenting)
    # one thread loads and calls the speech detector
    found = map_blocks(inspect, chain(first, blocks), local=bool(local), threads=1 if vad else 4)
    clips, last_s = 0, time.monotonic()
    for table in found:
        clips += len(table)
        if time.monotonic() - last_s >= LINE_EVERY_S:
            last_s = time.monotonic()
            what = "finding speech" if vad else "reading headers"
            print(f"{what}: {clips:,} clips of {objects:,} files", file=sys.stderr)
        yield table


def _inspect(block: pa.Table, segmenting: Segmenting) -> pa.Table:
    if segmenting.kind != "vad":
        return probe_batch(block, segmenting)
    from raysers.models.speech import find_speech  # torch, which reading headers does not need

    speech = partial(find_speech, min_s=segmenting.min_s, max_s=segmenting.window_s)
    return probe_batch(block, segmenting, find_speech=speech)


def warn(text: str) -> None:
    """A line on stderr."""
    print(f"warning: {text}", file=sys.stderr)
