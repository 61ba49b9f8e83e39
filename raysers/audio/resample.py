"""Positions and streaming conversion from a file's sample rate to 16 kHz.

A span is a slice of the converted whole file, not a conversion of a slice: the filter sees the
audio on both sides of a cut, so cutting a recording leaves no click at its borders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import soxr

from raysers.errors import ClipError
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Status

#: Context on each side of a span, samples of the lower rate; soxr's HQ filter is shorter.
_CONTEXT = 512


def to_sample(time_ns: int) -> int:
    """Index of the 16 kHz sample nearest to a time."""
    return (time_ns * SAMPLE_RATE_HZ + NS_PER_S // 2) // NS_PER_S


def converted_length(frames: int, rate_hz: int) -> int:
    """Samples at 16 kHz of `frames` at `rate_hz`; at least one for at least one."""
    if frames <= 0:
        return 0
    return max(1, (2 * frames * SAMPLE_RATE_HZ + rate_hz) // (2 * rate_hz))


def frames_for(samples: int, rate_hz: int) -> int:
    """Frames at `rate_hz` that `samples` at 16 kHz cover, with the last one begun."""
    return -(-samples * rate_hz // SAMPLE_RATE_HZ)


def context(start: int, end: int, rate_hz: int) -> tuple[int, int, int]:
    """Frames to convert for the 16 kHz samples `[start, end)`.

    Returns:
        (first frame, frame after the last, 16 kHz index of the first frame): the first frame lies
        exactly on a 16 kHz sample, so that all spans share one grid.
    """
    common = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    unit_in, unit_out = rate_hz // common, SAMPLE_RATE_HZ // common
    margin_out = _CONTEXT * max(1, -(-SAMPLE_RATE_HZ // rate_hz))
    units = max(0, start - margin_out) // unit_out
    return units * unit_in, frames_for(end + margin_out, rate_hz), units * unit_out


def converted(blocks: Iterable[np.ndarray], rate_hz: int) -> Iterator[np.ndarray]:
    """Consecutive mono blocks at `rate_hz` as one continuous signal at 16 kHz, in pieces.

    Raises:
        ClipError: `unsupported`, if soxr cannot convert from this rate.
    """
    stream, held = None, None
    try:
        for block in blocks:
            # one block behind, to know the last one
            if held is not None:
                stream = stream or soxr.ResampleStream(
                    rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ"
                )
                yield stream.resample_chunk(held)
            held = block
        if held is not None:
            # a single block without a stream: the same samples, and a fifth faster for 3 s
            yield (
                soxr.resample(held, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
                if stream is None
                else stream.resample_chunk(held, last=True)
            )
    except (ValueError, RuntimeError) as error:
        message = f"cannot convert {rate_hz} Hz to {SAMPLE_RATE_HZ} Hz: {error}"
        raise ClipError(Status.UNSUPPORTED, message) from error


def rounds_to_nothing(frames: int, rate_hz: int) -> bool:
    """Whether so few frames are less than half a sample at 16 kHz."""
    return 2 * frames * SAMPLE_RATE_HZ < rate_hz
