"""The words every layer shares: statuses, dimensions, clips, and numbers drawn from names.

Times are whole nanoseconds (as in audformat tables), so a segment's identity never depends on
floating point; seconds (`_s`) are for sizes and durations only.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

#: What the models predict, each about 0..1, always in this order (Wagner et al. 2022, section 3.1).
DIMENSIONS = ("arousal", "dominance", "valence")

#: Sample rate of every model in this project.
SAMPLE_RATE_HZ = 16_000

NS_PER_S = 1_000_000_000


class Status(StrEnum):
    """Status of one clip; only `OK` rows carry scores."""

    OK = "ok"
    MISSING = "missing"
    FORBIDDEN = "forbidden"
    UNREADABLE = "unreadable"
    UNSUPPORTED = "unsupported"
    EMPTY = "empty"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    NOT_FINITE = "not_finite"
    TRUNCATED = "truncated"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_DIED = "worker_died"
    MODEL_ERROR = "model_error"


def clip_id(
    file: str,
    start_ns: int,
    end_ns: int | None,
    channel: int | None = None,
    audio_stream: int | None = None,
) -> str:
    """Stable identity of a clip: 32 hex digits of BLAKE2b over file, start, end, and what it is of.

    That is a channel, if any, and an audio stream other than the first.

    >>> clip_id("a.wav", 0, None)
    '78e408b6163072e6d083036945670312'
    """
    end = "" if end_ns is None else str(end_ns)
    end += "" if channel is None else f"\0{channel}"
    end += f"\0stream {audio_stream}" if audio_stream else ""
    # surrogateescape: a local file name need not be valid UTF-8
    key = f"{file}\0{start_ns}\0{end}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(key, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One row of the manifest: the reference that travels to a worker in place of audio.

    `file` is an absolute path or an `s3://` URI; a tar member is `<tar URI>#<member name>` and has
    `byte_offset` and `byte_size` (its data inside the tar object). `end_ns` None means the end of
    the file. `duration_s` is NaN when the header could not be read. `etag` is the version the clip
    was listed with (of the tar, for a member); empty when unknown. `transcript` is what the
    manifest says was spoken; None when it does not say. `channel` counts from 1; None is the mean
    of all. `audio_stream` counts from 0, which None stands for.
    """

    clip_id: str
    file: str
    start_ns: int = 0
    end_ns: int | None = None
    duration_s: float = math.nan
    num_bytes: int | None = None
    byte_offset: int | None = None
    byte_size: int | None = None
    etag: str = ""
    status: Status = Status.OK
    error: str = ""
    transcript: str | None = None
    channel: int | None = None
    audio_stream: int | None = None


def seed_of(
    *names: object, size_bytes: int = 16, byteorder: Literal["big", "little"] = "big"
) -> int:
    """An integer of `size_bytes` (1 to 64) from the BLAKE2b digest of `names`, joined by NUL.

    The names are a seed and what is drawn for, as text; stray bytes of file names are allowed.
    Published results depend on size and byte order: another one is another draw.

    >>> seed_of(0, "clip", size_bytes=2) == seed_of("0", "clip", size_bytes=2)
    True
    """
    key = "\0".join(map(str, names)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(key, digest_size=size_bytes).digest(), byteorder)


def generator(
    *names: object, size_bytes: int = 16, byteorder: Literal["big", "little"] = "big"
) -> np.random.Generator:
    """A generator (PCG64) seeded with `seed_of` the same arguments."""
    import numpy as np

    seed = seed_of(*names, size_bytes=size_bytes, byteorder=byteorder)
    return np.random.Generator(np.random.PCG64(seed))
