"""What a job over clips has to do: the clips, the shards, and which of them are left.

Everything that can be wrong with the command is found here, before the first byte is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysers.cli import ClipJobFlags, ListingFlags
from raysers.data.manifest import clips_of, fingerprint, read_manifest
from raysers.data.segments import Segmenting
from raysers.data.shards import ShardPlan, plan_shards, shard_name
from raysers.data.sources import list_inputs
from raysers.engine import output as parts
from raysers.engine.cluster import is_one_machine
from raysers.engine.indexing import index, index_labelled
from raysers.engine.worker import can_redo
from raysers.errors import ConfigError, RaysersError, StorageError, TransientStorageError
from raysers.io import storage
from raysers.run import RunRecord, load_record, refuse_other_settings
from raysers.types import Status

#: Version of what the rows mean; another one is never mixed into an output folder.
ROWS_VERSION = 1

#: Where Ray unpacks what `ray job submit --working-dir` sends.
_RAY_PACKAGES = "runtime_resources"

FlagsT = TypeVar("FlagsT", bound=ListingFlags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run has to do.

    Attributes:
        manifest: every clip of the output.
        shards: how the manifest is cut.
        todo: numbers of the shards without a finished part.
        earlier: the record of the run that is resumed, if any.
        settings: everything that decides the rows.
    """

    manifest: pa.Table
    shards: ShardPlan
    todo: list[int]
    earlier: RunRecord | None
    settings: Mapping[str, Any]

    def todo_s(self) -> float:
        """Audio seconds of the shards that are left."""
        return float(np.sum(self.shards.seconds[self.todo]))


@contextmanager
def before_writing() -> Iterator[None]:
    """Until something is written, a store that refuses is the command's fault, not the job's."""
    try:
        yield
    except TransientStorageError:
        raise
    except StorageError as error:
        raise ConfigError(str(error)) from error


def anchored(flags: FlagsT) -> FlagsT:
    """The flags, checked, with places that mean the same in every process of the cluster.

    Raises:
        ConfigError: a flag has an impossible value.
    """
    flags.check()
    places = tuple(storage.absolute(uri) for uri in flags.input)
    return replace(flags, input=places, output=anchored_output(flags.output))


def anchored_output(output: str) -> str:
    """`--output` as a place that means the same in every process of the cluster.

    Raises:
        ConfigError: it would be thrown away with the job's copy of the code.
    """
    here = not storage.is_remote(output) and not os.path.isabs(os.path.expanduser(output))
    if _RAY_PACKAGES in os.getcwd() and here:
        raise ConfigError(
            f"--output {output} would be inside the job's own copy of the code, which is "
            "thrown away: give an absolute path or an s3:// prefix"
        )
    return storage.absolute(output)


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


def row_settings(flags: ClipJobFlags, own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide an output's rows: those all clip jobs share, and a job's `own`."""
    return listing_settings(flags) | {"shard_s": flags.shard_s} | dict(own)


def open_output(flags: ListingFlags, job: str, table: str) -> RunRecord | None:
    """The record of the run to resume, or None for a fresh folder and inputs that exist.

    Raises:
        RefusedError: the folder belongs to another job.
        ConfigError: it holds tables of unknown origin.
    """
    earlier = load_record(flags.output)
    if earlier is None and table != "manifest" and parts.parts_done(flags.output, table):
        raise ConfigError(
            f"--output {flags.output} has {table} but no run.json: choose another folder"
        )
    if earlier is not None and earlier.job != job:
        refuse_other_settings(flags.output, earlier, job, {})
    if earlier is None:
        list_inputs(flags.input)  # only looks at each: a misspelt one should not cost a start
    if not getattr(flags, "dry_run", False):
        check_writable(flags.output)
    return earlier


def check_writable(output: str) -> None:
    """As `storage.check_writable`, leaving no folder behind for a command that may yet be wrong.

    Raises:
        ConfigError: nothing can be written there; one line with the reason.
    """
    new = [output]
    while not storage.is_remote(output) and not os.path.exists(os.path.dirname(new[-1])):
        new.append(os.path.dirname(new[-1]))
    existed = storage.is_remote(output) or os.path.exists(output)
    storage.check_writable(output)
    for folder in [] if existed else new:
        os.rmdir(folder)


def list_clips(flags: ListingFlags) -> pa.Table:
    """The manifest of the input, on the connected cluster.

    Raises:
        ConfigError: an input is not there or holds no audio.
    """
    manifest = index(flags.input, _segmenting(flags), limit=flags.limit)
    _refuse_unseen_input(manifest)
    return manifest


def list_labelled_clips(
    flags: ListingFlags, *, corpus: str, emotion_map: str, speakers: str
) -> tuple[pa.Table, list[str]]:
    """The manifest of labelled input, on the connected cluster, and notes for the user.

    Raises:
        ConfigError: as `indexing.index_labelled`.
    """
    manifest, notes = index_labelled(
        flags.input,
        corpus=corpus,
        emotion_map=emotion_map,
        speakers=speakers,
        segmenting=_segmenting(flags),
        limit=flags.limit,
    )
    _refuse_unseen_input(manifest)
    return manifest, notes


def _segmenting(flags: ListingFlags) -> Segmenting:
    return Segmenting(
        kind=flags.segment, window_s=flags.window_s, hop_s=flags.hop_s, min_s=flags.min_s
    )


def _refuse_unseen_input(manifest: pa.Table) -> None:
    """Files that are here but on no other node would be a table of `missing` rows."""
    if not manifest.num_rows:
        raise ConfigError("--input: its tables name no clip: give tables with rows, or audio")
    first = manifest["file"][0].as_py()
    nothing = pc.all(pc.equal(manifest["status"], str(Status.MISSING))).as_py()
    if nothing and not is_one_machine() and os.path.exists(first):
        raise ConfigError(
            f"--input: the nodes do not see {first}: put the audio on a shared disk or in s3://"
        )


def make_plan(
    flags: ClipJobFlags, table: str, settings: Mapping[str, Any], earlier: RunRecord | None
) -> Plan:
    """List or re-read the clips and see what is left.

    Raises:
        ConfigError: an input cannot be used.
        RefusedError: the output holds rows of other settings.
    """
    if earlier is None:
        manifest = list_clips(flags)
        settings = {**settings, "manifest": fingerprint(manifest)}
    else:
        settings = {**settings, "manifest": earlier.settings.get("manifest")}
        refuse_other_settings(flags.output, earlier, earlier.job, settings)
        manifest = _stored_manifest(flags.output, str(settings["manifest"]))
    shards = plan_shards(manifest, shard_s=flags.shard_s)
    done = parts.parts_done(flags.output, table) if earlier else set()
    todo = {i for i in range(len(shards)) if shard_name(i) not in done}
    if flags.retry and done:
        todo |= shards_to_retry(flags, table, len(shards))
        _warn_of_rows_to_list_anew(flags, manifest)
    return Plan(
        manifest=manifest, shards=shards, todo=sorted(todo), earlier=earlier, settings=settings
    )


def _stored_manifest(output: str, expected: str) -> pa.Table:
    manifest = read_manifest(storage.join(output, "manifest"))
    if fingerprint(manifest) != expected:
        raise RaysersError(
            f"the manifest in {output} is not the one its run.json names: it was changed from "
            "outside; start again in another folder"
        )
    return manifest


def _warn_of_rows_to_list_anew(flags: ClipJobFlags, manifest: pa.Table) -> None:
    wanted = pa.array([str(s) for s in flags.retry])
    failed = manifest.filter(pc.is_in(manifest["status"], wanted))
    whole = flags.segment == "whole"
    left = sum(not can_redo(clip, whole=whole) for clip in clips_of(failed))
    if left:
        print(
            f"warning: {left} rows stay as they are, because their clips were cut from what could "
            "be read: to score the mended files, give them a new --output",
            file=sys.stderr,
        )


def shards_to_retry(flags: ClipJobFlags, table: str, shards: int) -> set[int]:
    """Finished shards that hold a row with a status to retry."""
    wanted = pa.array([str(s) for s in flags.retry])
    found = parts.read_parts(flags.output, table, shards, ["status"])
    return {i for i, part in found.items() if pc.any(pc.is_in(part["status"], wanted)).as_py()}
