"""Recordings that perturbations mix in or convolve with: the user's noise and impulse responses.

Workers read the stretches they need; only short recordings are kept in memory. What cannot be read
here is not the clip's fault and stops the job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysers.audio.decode import AudioReader
from raysers.audio.perturbation import Signal
from raysers.data import storage
from raysers.data.manifest import Segmenting, fingerprint
from raysers.distributed.indexing import index
from raysers.errors import ClipError, ConfigError, RaysersError
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Status

_NS_PER_SAMPLE = NS_PER_S // SAMPLE_RATE_HZ
#: Recordings of at most this length stay in memory once read.
_KEPT_SAMPLES = 10 * SAMPLE_RATE_HZ
#: What the impulse response that others are compared with is called, without its suffix.
REFERENCE = "reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One file or tar member: where it is, and its samples at 16 kHz."""

    file: str
    samples: int
    num_bytes: int | None
    byte_offset: int | None
    byte_size: int | None
    etag: str


@dataclass(slots=True)
class Reading:
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


def _read(item: Recording, first: int, last: int) -> Signal:
    source = storage.open_source(
        item.file,
        num_bytes=item.num_bytes,
        byte_offset=item.byte_offset,
        byte_size=item.byte_size,
        etag=item.etag,
    )
    try:
        with AudioReader(source, name=item.file) as reader:
            span = first * _NS_PER_SAMPLE, last * _NS_PER_SAMPLE
            return np.asarray(reader.read(*span, max_s=float("inf")), np.float32)
    except ClipError as error:
        raise RaysersError(f"{item.file} cannot be used as noise: {error}") from error


def listed(flag: str, folder: str) -> tuple[dict[str, tuple[Recording, ...]], str]:
    """Recordings by kind (the subfolder they are in), and a fingerprint of all of them.

    A kind with a file named `reference` has that one as a kind of its own, `<kind>_reference`.

    Args:
        flag: named in errors.
        folder: folder or prefix with a subfolder per kind; empty: nothing.

    Raises:
        ConfigError: nothing there can be used.
    """
    if not folder:
        return {}, ""
    folder = storage.absolute(folder).rstrip("/")
    try:
        manifest = index([folder], Segmenting())
    except ConfigError as error:
        raise ConfigError(str(error).replace("--input", flag)) from error
    rows = [r for r in _rows(manifest, folder) if r[0]]
    if not rows:
        raise ConfigError(f"{flag} {folder}: needs a subfolder per kind of recording")
    kinds = groupby(sorted(rows, key=lambda r: (r[0], r[1].file)), key=lambda r: r[0])
    return {kind: tuple(r for _, r in members) for kind, members in kinds}, fingerprint(manifest)


def _rows(manifest: pa.Table, folder: str) -> list[tuple[str, Recording]]:
    good = [row for row in manifest.to_pylist() if row["status"] == Status.OK]
    return [(_kind(row["file"].removeprefix(folder)), _recording(row)) for row in good]


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
        samples=max(1, round(row["duration_s"] * SAMPLE_RATE_HZ)),
        num_bytes=row["num_bytes"],
        byte_offset=row["byte_offset"],
        byte_size=row["byte_size"],
        etag=row["etag"] or "",
    )
