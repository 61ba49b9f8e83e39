"""Recordings that perturbations mix in or convolve with: the user's noise and impulse responses.

All are decoded once before a job begins, and what cannot be read is left out, because later it
would not be a clip's fault and would stop the job.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysers.audio.decode import AudioReader
from raysers.data.manifest import clips_of, fingerprint
from raysers.data.segments import Segmenting
from raysers.engine.listing import has_cluster, index, map_blocks
from raysers.engine.progress import print_warning
from raysers.errors import ClipError, ConfigError, RaysersError, status_of
from raysers.io import storage
from raysers.robustness.perturbations import Signal
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Clip, Status

_NS_PER_SAMPLE = NS_PER_S // SAMPLE_RATE_HZ
#: Recordings of at most this length stay in memory once read.
_KEPT_S = 10
#: Recordings that one task decodes to see whether they can be used.
_CHECKED_PER_TASK = 32
#: What the impulse response that others are compared with is called, without its suffix.
REFERENCE = "reference"
#: Tells an outage of the store from recordings that cannot be read.
_BREAKER = storage.Breaker()


@dataclass(slots=True)
class NoiseReader:
    """Recordings of one kind as a perturbation reads them, noting which it took."""

    items: Sequence[Clip]
    taken: list[str] = field(default_factory=list)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Samples of each recording."""
        return np.array([round(item.duration_s * SAMPLE_RATE_HZ) for item in self.items])

    def read(self, number: int, first: int, samples: int) -> Signal:
        """Samples `[first, first + samples)` of a recording, fewer at its end.

        Raises RaysersError: it cannot be read.
        """
        item, length = self.items[number], int(self.lengths[number])
        self.taken.append(item.file)
        if item.duration_s <= _KEPT_S:
            return _whole(item, length)[first : first + samples]
        return _read(item, first, min(first + samples, length))


@lru_cache(maxsize=256)
def _whole(item: Clip, samples: int) -> Signal:
    return _read(item, 0, samples)


def _open(item: Clip) -> AudioReader:
    source = storage.open_source(
        item.file,
        num_bytes=item.num_bytes,
        byte_offset=item.byte_offset,
        byte_size=item.byte_size,
        etag=item.etag,
    )
    return AudioReader(source, name=item.file)


def _read(item: Clip, first: int, last: int) -> Signal:
    try:
        with _open(item) as reader:
            return reader.read(first * _NS_PER_SAMPLE, last * _NS_PER_SAMPLE, max_s=float("inf"))
    except ClipError as error:
        raise RaysersError(f"{item.file} cannot be used as noise: {error}") from error


def listed(flag: str, folder: str) -> tuple[dict[str, pa.Table], str]:
    """Manifests by kind (the subfolder recordings are in), and a fingerprint of all of them.

    A kind with a file named `reference` has that one as a separate kind, `<kind>_reference`. Raises
    ConfigError: nothing there can be used; it names `flag`.
    """
    if not folder:
        return {}, ""
    folder = storage.absolute(folder).rstrip("/")
    try:
        manifest = index([folder], Segmenting()).table()
    except ConfigError as error:
        raise ConfigError(str(error).replace("--input", flag)) from error
    kinds = [_kind(file.removeprefix(folder)) for file in manifest["file"].to_pylist()]
    if not any(kinds):
        raise ConfigError(f"{flag} {folder}: needs a subfolder per kind of recording")
    column = pa.array(kinds)
    found = {k: manifest.filter(pc.equal(column, k)) for k in sorted({*kinds} - {""})}
    return found, fingerprint(manifest)


def usable(
    flag: str, found: Mapping[str, pa.Table], used: Collection[str]
) -> dict[str, tuple[Clip, ...]]:
    """Recordings of the kinds that are used, without those that cannot be decoded to their end.

    Warns of what is left out: bad recordings, and folders that nothing uses. Raises ConfigError: a
    kind with nothing left; CredentialsError, TransientStorageError: the store does not answer as it
    should.
    """
    if idle := sorted(set(found) - set(used)):
        print_warning(f"{flag}: no perturbation of this run uses the folders {', '.join(idle)}")
    material: dict[str, tuple[Clip, ...]] = {}
    for kind in sorted(set(found) & set(used)):
        table, size = found[kind], _CHECKED_PER_TASK
        blocks = [table.slice(place, size) for place in range(0, len(table), size)]
        checked = pa.concat_tables(map_blocks(_decoded, blocks, local=not has_cluster()))
        clips = clips_of(checked.sort_by("file"))
        bad = [clip for clip in clips if clip.status != Status.OK]
        material[kind] = tuple(clip for clip in clips if clip.status == Status.OK)
        if not material[kind]:
            raise ConfigError(f"{flag}: no recording of {kind} can be read: {_first(bad)}")
        if bad:
            print_warning(f"{flag}: {len(bad)} recordings of {kind} are left out: {_first(bad)}")
    return material


def _first(bad: Sequence[Clip]) -> str:
    more = " and others" if len(bad) > 1 else ""
    return f"{bad[0].file} ({' '.join(bad[0].error.split())}){more}"


def _decoded(block: pa.Table) -> pa.Table:
    """The rows of a manifest with what decoding them showed."""
    rows = zip(block.to_pylist(), map(decoded_once, clips_of(block)), strict=True)
    names = ("status", "error", "duration_s")
    merged = [row | {name: getattr(clip, name) for name in names} for row, clip in rows]
    return pa.Table.from_pylist(merged, block.schema)


def decoded_once(item: Clip) -> Clip:
    """The recording with the length it really has, or with its fault.

    Raises CredentialsError, TransientStorageError: an outage, see `storage.Breaker`.
    """
    if item.status != Status.OK:
        return item
    try:
        with _open(item) as reader:
            samples = sum(len(block) for block in reader.blocks())
    except Exception as error:
        if (failure := status_of(error)) is None:
            raise
        _BREAKER.failed(item.file, error)
        return replace(item, status=failure.status, error=failure.message)
    _BREAKER.succeeded(item.file)
    # the tail of a header's promise may hold nothing to read
    told = round(item.duration_s * SAMPLE_RATE_HZ)
    return replace(item, duration_s=max(1, min(told, samples)) / SAMPLE_RATE_HZ)


def _kind(path: str) -> str:
    """The subfolder of a path like `/music/fma/a.wav`; empty for a file in the folder itself."""
    parts = path.strip("/").split("/")
    if len(parts) < 2:
        return ""
    is_reference = parts[-1].partition(".")[0] == REFERENCE
    return f"{parts[0]}_{REFERENCE}" if is_reference else parts[0]
