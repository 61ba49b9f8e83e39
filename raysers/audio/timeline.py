"""The 16 kHz time line: positions on it, conversion to it, and windows cut from it.

Spans of one recording share one grid: whatever is converted begins exactly on a 16 kHz sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import soxr

from raysers.errors import ClipError, ConfigError
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Status

Floats = npt.NDArray[np.float32]

#: Context on each side of a span, samples of the lower rate; soxr's HQ filter is shorter.
_CONTEXT = 512


def mono(block: Floats) -> Floats:
    """Mean over channels, (frames, channels) -> (frames,)."""
    channels = block.shape[1]
    if channels == 1:
        return block[:, 0]
    mono: Floats = block[:, 0] + block[:, 1] if channels == 2 else np.einsum("fc->f", block)
    mono *= np.float32(1 / channels)
    return mono


def to_sample(time_ns: int) -> int:
    """Index of the 16 kHz sample nearest to a time."""
    return (time_ns * SAMPLE_RATE_HZ + NS_PER_S // 2) // NS_PER_S


def converted_length(frames: int, rate_hz: int) -> int:
    """Samples at 16 kHz of `frames` at `rate_hz`; at least one for at least one."""
    return max(1, (2 * frames * SAMPLE_RATE_HZ + rate_hz) // (2 * rate_hz)) if frames > 0 else 0


def frames_for(samples: int, rate_hz: int) -> int:
    """Frames at `rate_hz` that `samples` at 16 kHz cover, with the last one begun."""
    return -(-samples * rate_hz // SAMPLE_RATE_HZ)


def context(start: int, end: int, rate_hz: int) -> tuple[int, int, int]:
    """Frames to convert for the 16 kHz samples `[start, end)`.

    Returns:
        (first frame, frame after the last, 16 kHz index of the first frame): the first frame lies
        exactly on a 16 kHz sample, so that all spans share one grid.
    """
    if rate_hz == SAMPLE_RATE_HZ:
        return start, end, start
    common = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    margin = _CONTEXT * max(1, -(-SAMPLE_RATE_HZ // rate_hz))
    units = max(0, start - margin) * common // SAMPLE_RATE_HZ
    first = units * (rate_hz // common), units * (SAMPLE_RATE_HZ // common)
    return first[0], frames_for(end + margin, rate_hz), first[1]


def converted(blocks: Iterable[Floats], rate_hz: int, frames: int) -> Iterator[Floats]:
    """Consecutive mono blocks of a file of `frames` as one continuous signal at 16 kHz, in pieces.

    Raises:
        ClipError: `unsupported`, if soxr cannot convert from this rate.
    """
    if rate_hz == SAMPLE_RATE_HZ:
        yield from blocks
        return
    if 2 * frames * SAMPLE_RATE_HZ < rate_hz:
        # less than half a sample at 16 kHz: soxr would give no sample at all
        yield from (block.mean(keepdims=True) for block in blocks)
        return
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
        if held is not None and stream is not None:
            yield stream.resample_chunk(held, last=True)
        elif held is not None:
            # a single block without a stream: the same samples, and a fifth faster for 3 s
            yield soxr.resample(held, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    except (ValueError, RuntimeError) as error:
        message = f"cannot convert {rate_hz} Hz to {SAMPLE_RATE_HZ} Hz: {error}"
        raise ClipError(Status.UNSUPPORTED, message) from error


def regrouped(pieces: Iterable[Floats], size: int) -> Iterator[Floats]:
    """The same samples in arrays of `size`, the last one shorter."""
    block, filled = np.empty(size, np.float32), 0
    for piece in pieces:
        while piece.size:
            taken = piece[: size - filled]
            block[filled : filled + taken.size] = taken
            filled += taken.size
            piece = piece[taken.size :]  # noqa: PLW2901
            if filled == size:
                yield block
                block, filled = np.empty(size, np.float32), 0
    if filled:
        yield block[:filled]


def to_ns(seconds: float) -> int:
    """Seconds as the nearest whole nanosecond."""
    return round(seconds * NS_PER_S)


def windows(
    duration_s: float, *, window_s: float, hop_s: float, min_s: float
) -> list[tuple[int, int]]:
    """Windows of `window_s` every `hop_s` over `[0, duration_s)`.

    A window that would pass the end is cut there, and dropped when less than `min_s` is left of
    it; the first window always stays. The last window is the first that reaches the end: a hop
    shorter than the window does not repeat ever shorter tails of what that window already holds.

    Args:
        duration_s: length of the recording, seconds.
        window_s: length of a window, seconds, > 0.
        hop_s: from one window's start to the next one's, seconds, > 0; more than `window_s`
            leaves gaps.
        min_s: shortest last window, seconds.

    Returns:
        (start_ns, end_ns) in order; starts are exact multiples of the hop.

    Raises:
        ConfigError: a window or hop that is not longer than zero.
        ValueError: a duration that is negative or not a number.

    >>> [(a / 1e9, b / 1e9) for a, b in windows(2.5, window_s=1, hop_s=1, min_s=0.5)]
    [(0.0, 1.0), (1.0, 2.0), (2.0, 2.5)]
    """
    if not (math.isfinite(duration_s) and duration_s >= 0):
        raise ValueError(f"duration must be a finite number of seconds >= 0, got {duration_s}")
    end_ns, window_ns, hop_ns = to_ns(duration_s), to_ns(window_s), to_ns(hop_s)
    if window_ns <= 0 or hop_ns <= 0:
        raise ConfigError(f"window and hop must be longer than 0 s, got {window_s} and {hop_s}")
    # starts before `last * hop_ns` do not reach the end; the one at or after it does
    last = max(0, -((window_ns - end_ns) // hop_ns))
    cuts = [(k * hop_ns, min(k * hop_ns + window_ns, end_ns)) for k in range(last + 1)]
    start_ns, stop_ns = cuts[-1]
    if last > 0 and stop_ns - start_ns < max(min(to_ns(min_s), window_ns), 1):
        cuts.pop()
    return cuts
