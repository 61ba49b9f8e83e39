"""Turning inputs into a manifest: the driver lists, Ray Data reads the headers in parallel.

The result does not depend on how the work was spread: rows are sorted by file and start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import pyarrow as pa
import ray

from raysers.audio.decode import AudioReader, AudioSource
from raysers.data.manifest import (
    Segmenting,
    is_manifest,
    probe_batch,
    read_manifest,
    sort_manifest,
)
from raysers.data.sources import list_inputs
from raysers.distributed.failures import carried, raise_carried
from raysers.errors import ConfigError
from raysers.models.vad import find_speech

#: Objects whose headers one task reads. Finding speech decodes whole files, so its tasks are small.
_OBJECTS_PER_TASK = 2000
_OBJECTS_PER_VAD_TASK = 16


def index(inputs: Sequence[str], segmenting: Segmenting, *, limit: int = 0) -> pa.Table:
    """The manifest of everything under `inputs`, sorted; only the first `limit` clips if above 0.

    Finished manifests among the inputs are taken as they are; nothing of them is probed again.

    Raises:
        ConfigError: an input that is not there, holds no audio, or is a table that does not fit.
        CredentialsError, TransientStorageError: the store does not answer as it should.
    """
    finished = [uri for uri in inputs if is_manifest(uri)]
    if finished and segmenting.kind != "whole":
        raise ConfigError(
            f"--segment {segmenting.kind}: {finished[0]} is a manifest whose clips are decided "
            "already; leave --segment out, or index the audio again"
        )
    tables = [read_manifest(uri) for uri in finished]
    others = [uri for uri in inputs if uri not in finished]
    if others:
        tables += _probed(others, segmenting)
    manifest = sort_manifest(pa.concat_tables(tables, promote_options="default"))
    return manifest.slice(0, limit) if limit else manifest


def _probed(inputs: Sequence[str], segmenting: Segmenting) -> list[pa.Table]:
    size = _OBJECTS_PER_VAD_TASK if segmenting.kind == "vad" else _OBJECTS_PER_TASK
    blocks = [pa.Table.from_batches([b]) for b in _sliced(list_inputs(inputs), size)]
    probed = ray.data.from_arrow(blocks).map_batches(
        _probe, fn_kwargs={"segmenting": segmenting}, batch_size=None, batch_format="pyarrow"
    )
    found = probed.iter_batches(batch_size=None, batch_format="pyarrow")
    return [raise_carried(table) for table in found]


def _sliced(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, size):
            yield batch.slice(start, size)


@carried
def _probe(block: pa.Table, segmenting: Segmenting) -> pa.Table:
    speech = partial(_speech_in, segmenting=segmenting) if segmenting.kind == "vad" else None
    return probe_batch(block, segmenting, find_speech=speech)


def _speech_in(source: AudioSource, segmenting: Segmenting) -> list[tuple[int, int]]:
    with AudioReader(source, name="recording") as reader:
        return find_speech(reader.blocks(), min_s=segmenting.min_s, max_s=segmenting.window_s)
