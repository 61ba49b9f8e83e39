"""Turning inputs into a manifest: the driver lists, Ray Data reads the headers in parallel.

The result does not depend on how the work was spread: rows are sorted by file and start.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysers.data.corpora import read_labelled
from raysers.data.manifest import is_manifest, probe_batch, read_manifest, sort_manifest
from raysers.data.segments import Segmenting
from raysers.data.sources import ListingNotes, list_inputs
from raysers.engine.cluster import dataset_of
from raysers.engine.failures import carried, raise_carried
from raysers.engine.progress import LINE_EVERY_S
from raysers.errors import ConfigError

#: Objects whose headers one task reads. Finding speech decodes whole files, so its tasks are small.
_OBJECTS_PER_TASK = 2000
_OBJECTS_PER_VAD_TASK = 1


def index(inputs: Sequence[str], segmenting: Segmenting, *, limit: int = 0) -> pa.Table:
    """The manifest of everything under `inputs`, sorted; only the first `limit` clips if above 0.

    Finished manifests among the inputs are taken as they are; nothing of them is probed again.

    Raises:
        ConfigError: an input that is not there, holds no audio, or is a table that does not fit.
        CredentialsError, TransientStorageError: the store does not answer as it should.
    """
    finished = [uri for uri in inputs if is_manifest(uri)]
    _refuse_cutting(finished, segmenting)
    tables = [read_manifest(uri) for uri in finished]
    others = [uri for uri in inputs if uri not in finished]
    if others:
        notes = ListingNotes()
        listed = pa.Table.from_batches(list_inputs(others, notes=notes))
        for warning in notes.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        tables += _probed(listed, segmenting, limit)
    return _manifest(tables, limit)


def index_labelled(
    inputs: Sequence[str],
    *,
    corpus: str = "auto",
    emotion_map: str = "",
    speakers: str = "",
    segmenting: Segmenting | None = None,
    limit: int = 0,
) -> tuple[pa.Table, list[str]]:
    """The manifest of labelled inputs, as `index` makes it, and notes for the user.

    Every label column is there, null where nothing is known. Finished manifests among the inputs
    are not probed again.

    Args:
        inputs: corpora, tables, manifests, audio.
        corpus: as `read_labelled`, like the next two.
        emotion_map: a map from categories to missing dimensions; empty for none.
        speakers: a table of speakers and their sex; empty for none.
        segmenting: for rows without a segment of their own; None leaves files whole.
        limit: only the first clips; 0 takes all.

    Raises:
        ConfigError: as `read_labelled` and `index`.
        CredentialsError, TransientStorageError: the store does not answer as it should.
    """
    segmenting = segmenting or Segmenting()
    _refuse_cutting([uri for uri in inputs if is_manifest(uri)], segmenting)
    found = read_labelled(inputs, corpus=corpus, emotion_map=emotion_map, speakers=speakers)
    tables = [found.table.slice(0, found.finished)]
    if found.finished < found.table.num_rows:
        tables += _probed(found.table.slice(found.finished), segmenting, limit)
    return _manifest(tables, limit), list(found.notes)


def _refuse_cutting(finished: Sequence[str], segmenting: Segmenting) -> None:
    if finished and segmenting.kind != "whole":
        raise ConfigError(
            f"--segment {segmenting.kind}: {finished[0]} is a manifest whose clips are decided "
            "already; leave --segment out, or index the audio again"
        )


def _manifest(tables: Sequence[pa.Table], limit: int) -> pa.Table:
    manifest = sort_manifest(pa.concat_tables(tables, promote_options="default"))
    return manifest.slice(0, limit) if limit else manifest


def _probed(listed: pa.Table, segmenting: Segmenting, limit: int) -> list[pa.Table]:
    size = _OBJECTS_PER_VAD_TASK if segmenting.kind == "vad" else _OBJECTS_PER_TASK
    if limit:  # every object is at least one clip
        listed = listed.sort_by([("file", "ascending"), ("start", "ascending")]).slice(0, limit)
    blocks = [listed.slice(start, size) for start in range(0, listed.num_rows, size)]
    if len(blocks) == 1 and segmenting.kind != "vad":  # one task would be no faster than we are
        return [raise_carried(_probe(blocks[0], segmenting))]
    probed = dataset_of(blocks).map_batches(
        _probe, fn_kwargs={"segmenting": segmenting}, batch_size=None, batch_format="pyarrow"
    )
    found = probed.iter_batches(batch_size=None, batch_format="pyarrow")
    return list(_told(map(raise_carried, found), listed.num_rows))


def _told(tables: Iterator[pa.Table], objects: int) -> Iterator[pa.Table]:
    """The same tables, with a line every now and then about how many headers are read."""
    clips, last_s = 0, time.monotonic()
    for table in tables:
        clips += table.num_rows
        if time.monotonic() - last_s >= LINE_EVERY_S:
            last_s = time.monotonic()
            print(f"reading headers: {clips:,} clips of {objects:,} files", file=sys.stderr)
        yield table


@carried
def _probe(block: pa.Table, segmenting: Segmenting) -> pa.Table:
    speech = partial(_speech_in, segmenting=segmenting) if segmenting.kind == "vad" else None
    return probe_batch(block, segmenting, find_speech=speech)


def _speech_in(
    blocks: Iterator[NDArray[np.float32]], segmenting: Segmenting
) -> list[tuple[int, int]]:
    from raysers.models.vad import find_speech  # torch, which reading headers does not need

    return find_speech(blocks, min_s=segmenting.min_s, max_s=segmenting.window_s)
