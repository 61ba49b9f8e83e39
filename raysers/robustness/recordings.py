"""Recordings that perturbations mix in or convolve with: the user's noise and impulse responses.

All are decoded once before a job begins, and what cannot be read is left out, because later it
would not be a clip's fault and would stop the job.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysers.audio.decode import AudioReader
from raysers.data.manifest import fingerprint
from raysers.data.segments import Segmenting
from raysers.engine.listing import has_cluster, index, map_blocks
from raysers.engine.progress import print_warning
from raysers.errors import ClipError, ConfigError, RaysersError, status_of
from raysers.io import storage
from raysers.robustness.perturbations import Signal
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Status

_NS_PER_SAMPLE = NS_PER_S // SAMPLE_RATE_HZ
#: Recordings of at most this length stay in memory once read.
_KEPT_SAMPLES = 10 * SAMPLE_RATE_HZ
#: Recordings that one task decodes to see whether they can be used.
_CHECKED_PER_TASK = 32
#: What the impulse response that others are compared with is called, without its suffix.
REFERENCE = "reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One file or tar member: where it is, its samples at 16 kHz, and why it cannot be used."""

    file: str
    samples: int
    num_bytes: int | None
    byte_offset: int | None
    byte_size: int | None
    etag: str
    fault: str = ""


@dataclass(slots=True)
class NoiseReader:
    """Recordings of one kind as a perturbation reads them, noting which it took."""

    items: Sequence[Recording]
    taken: list[str] = field(default_factory=list)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Samples of each recording."""
        return np.array([item.samples for item in self.items])

    def read(self, number: int, first: int, samples: int) -> Signal:
        """Samples `[first, first + samples)` of a recording, fewer at its end.

        Raises:
            RaysersError: it cannot be read.
        """
        item = self.items[number]
        self.taken.append(item.file)
        if item.samples <= _KEPT_SAMPLES:
            return _whole(item)[first : first + samples]
        return _read(item, first, min(first + samples, item.samples))


@lru_cache(maxsize=256)
def _whole(item: Recording) -> Signal:
    return _read(item, 0, item.samples)


def _open(item: Recording) -> AudioReader:
    source = storage.open_source(
        item.file,
        num_bytes=item.num_bytes,
        byte_offset=item.byte_offset,
        byte_size=item.byte_size,
        etag=item.etag,
    )
    return AudioReader(source, name=item.file)


def _read(item: Recording, first: int, last: int) -> Signal:
    try:
        with _open(item) as reader:
            span = first * _NS_PER_SAMPLE, last * _NS_PER_SAMPLE
            return np.asarray(reader.read(*span, max_s=float("inf")), np.float32)
    except ClipError as error:
        raise RaysersError(f"{item.file} cannot be used as noise: {error}") from error


def listed(flag: str, folder: str) -> tuple[dict[str, tuple[Recording, ...]], str]:
    """Recordings by kind (the subfolder they are in), good or not, and a fingerprint of them.

    A kind with a file named `reference` has that one as a separate kind, `<kind>_reference`.

    Raises:
        ConfigError: nothing there can be used; it names `flag`.
    """
    if not folder:
        return {}, ""
    folder = storage.absolute(folder).rstrip("/")
    try:
        manifest = index([folder], Segmenting()).table()
    except ConfigError as error:
        raise ConfigError(str(error).replace("--input", flag)) from error
    found: dict[str, list[Recording]] = {}
    for row in sorted(manifest.to_pylist(), key=lambda row: str(row["file"])):
        if kind := _kind(row["file"].removeprefix(folder)):
            found.setdefault(kind, []).append(_recording(row))
    if not found:
        raise ConfigError(f"{flag} {folder}: needs a subfolder per kind of recording")
    return {kind: tuple(found[kind]) for kind in sorted(found)}, fingerprint(manifest)


def usable(
    flag: str, found: Mapping[str, Sequence[Recording]], used: Collection[str]
) -> dict[str, tuple[Recording, ...]]:
    """Recordings of the kinds that are used, without those that cannot be decoded to their end.

    Warns of what is left out: bad recordings, and folders that nothing uses.

    Raises:
        ConfigError: a kind with nothing left.
        CredentialsError, TransientStorageError: the store does not answer as it should.
    """
    if idle := sorted(set(found) - set(used)):
        print_warning(f"{flag}: no perturbation of this run uses the folders {', '.join(idle)}")
    kinds = sorted(set(found) & set(used))
    checked = iter(_checked([item for kind in kinds for item in found[kind]]))
    material: dict[str, tuple[Recording, ...]] = {}
    for kind in kinds:
        items = [next(checked) for _ in found[kind]]
        bad = [item for item in items if item.fault]
        material[kind] = tuple(item for item in items if not item.fault)
        if not material[kind]:
            raise ConfigError(f"{flag}: no recording of {kind} can be read: {_first(bad)}")
        if bad:
            print_warning(f"{flag}: {len(bad)} recordings of {kind} are left out: {_first(bad)}")
    return material


def _first(bad: Sequence[Recording]) -> str:
    more = " and others" if len(bad) > 1 else ""
    return f"{bad[0].file} ({' '.join(bad[0].fault.split())}){more}"


def _checked(items: Sequence[Recording]) -> list[Recording]:
    """The same recordings, in their order, with what decoding them on the cluster showed."""
    rows = [{**asdict(item), "number": i} for i, item in enumerate(items) if not item.fault]
    if not rows:
        return list(items)
    size = _CHECKED_PER_TASK
    blocks = [pa.Table.from_pylist(rows[i : i + size], _SCHEMA) for i in range(0, len(rows), size)]
    checked = list(items)
    for block in map_blocks(_decoded, blocks, local=not has_cluster()):
        for row in block.to_pylist():
            number = row.pop("number")
            checked[number] = Recording(**row)
    return checked


#: Tells an outage of the store from recordings that cannot be read.
_BREAKER = storage.Breaker()

_NUMBERS = ("samples", "num_bytes", "byte_offset", "byte_size", "number")
_SCHEMA = pa.schema(
    [*((name, pa.string()) for name in ("file", "etag", "fault"))]
    + [(name, pa.int64()) for name in _NUMBERS]
)


def _decoded(block: pa.Table) -> pa.Table:
    rows = block.to_pylist()
    merged = [
        {"number": row.pop("number")} | asdict(decoded_once(Recording(**row))) for row in rows
    ]
    return pa.Table.from_pylist(merged, _SCHEMA)


def decoded_once(item: Recording) -> Recording:
    """The recording with the samples it really has, or with its fault.

    Raises:
        CredentialsError, TransientStorageError: an outage, see `storage.Breaker`.
    """
    try:
        with _open(item) as reader:
            samples = sum(len(block) for block in reader.blocks())
    except Exception as error:
        if (failure := status_of(error)) is None:
            raise
        _BREAKER.failed(item.file, error)
        return replace(item, fault=failure.message)
    _BREAKER.succeeded(item.file)
    # the tail of a header's promise may hold nothing to read
    return replace(item, samples=max(1, min(item.samples, samples)))


def _kind(path: str) -> str:
    """The subfolder of a path like `/music/fma/a.wav`; empty for a file in the folder itself."""
    parts = path.strip("/").split("/")
    if len(parts) < 2:
        return ""
    is_reference = parts[-1].partition(".")[0] == REFERENCE
    return f"{parts[0]}_{REFERENCE}" if is_reference else parts[0]


def _recording(row: Mapping[str, Any]) -> Recording:
    return Recording(
        file=row["file"],
        samples=max(1, round((row["duration_s"] or 0.0) * SAMPLE_RATE_HZ)),
        num_bytes=row["num_bytes"],
        byte_offset=row["byte_offset"],
        byte_size=row["byte_size"],
        etag=row["etag"] or "",
        fault="" if row["status"] == Status.OK else row["error"] or row["status"],
    )
