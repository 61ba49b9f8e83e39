"""Samples of a recording: mixed, converted to 16 kHz with soxr, and measured.

Spans of one recording share one grid: whatever is converted begins exactly on a 16 kHz sample.
Levels describe the decoded 16 kHz signal, so a clipped 44.1 kHz recording can show less clipping
here than in its file: resampling moves the samples off full scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soxr

from raysers.errors import ClipError
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Status

Floats = npt.NDArray[np.float32]

#: Context on each side of a span, samples of the lower rate; soxr's HQ filter is shorter.
_CONTEXT = 512

#: Largest sample accepted, 1 being full scale: beyond, integers were stored as floating point.
_LARGEST = 8.0

#: Faults of a recording that is scored all the same, and what to do about each.
FAULTS = {
    "opposite_phase": "the channels have opposite phase and cancel in the mix: score one "
    "of them, with --channel left",
    "silent_channel": "a silent channel lowers the level of the mix: score "
    "another alone, with --channel left, right or its number",
    "hum": "mains hum of 50 or 60 Hz is louder than all else: remove it, "
    "for example with ffmpeg -af highpass=f=120",
}

#: Level given to digital silence, the floor auglib uses as well.
FLOOR_DB = -120.0

#: Largest positive 16-bit sample less a rounding error of float32: what counts as full scale.
FULL_SCALE = 32767 / 32768 - 1e-6

#: No sample above this (-80 dB re full scale): digital silence and its rounding noise.
_SILENT = 1e-4

#: Power of the mix, of that of uncorrelated channels, below which channels cancel.
_CANCELLED = 0.2
#: Power of a channel, of that of the loudest, below which it is silent (-40 dB).
_SILENT_CHANNEL = 1e-4
#: Mean power of the channels below which nothing is said about them (-60 dB re full scale).
_AUDIBLE = 1e-6

#: Five periods of 50 Hz and six of 60 Hz, after which hum repeats with all its harmonics.
_HUM_LAG = SAMPLE_RATE_HZ // 10
#: Samples of a clip, in its middle, that are searched for hum.
_HUM_LONGEST = 10 * SAMPLE_RATE_HZ
#: Harmonics of hum, half the width of their lines, and least shares of the clip's power.
_HUM_LINES, _HUM_WIDTH_HZ, _HUM_SHARE, _HUM_FIRST_SHARE = 6, 2.0, 0.5, 0.1

#: Squares are summed in float32 over so many samples.
_BLOCK = 1 << 13


def mono(block: Floats, channel: int | None = None) -> Floats:
    """A channel (from 1), or the mean over all, (frames, channels) -> (frames,)."""
    channels = block.shape[1]
    if channel is not None:
        return np.ascontiguousarray(block[:, channel - 1])
    if channels == 1:
        return block[:, 0]
    mono: Floats = block[:, 0] + block[:, 1] if channels == 2 else np.einsum("fc->f", block)
    mono *= np.float32(1 / channels)
    return mono


def usable(block: Floats, start: int, span: tuple[int, int], rate_hz: int) -> Floats:
    """The block [frames] or [frames, channels] from `start` on, without samples no model can take.

    NaN, infinite and absurdly large samples become zeros in place; within the frames `span` they
    raise ClipError (`not_finite`).
    """
    if block.size and block.max() <= _LARGEST and block.min() >= -_LARGEST:
        return block
    bad: npt.NDArray[np.bool_] = np.logical_not(np.abs(block) <= _LARGEST)  # true for NaN
    frames = np.asarray(bad if block.ndim == 1 else bad.any(axis=1))
    within = frames[max(0, span[0] - start) : max(0, span[1] - start)]
    if within.any():
        frame = max(span[0], start) + int(within.argmax())
        worst = float(np.abs(block[frame - start]).max())
        what = "NaN or infinite samples"
        if math.isfinite(worst):
            what = f"samples of {worst:.3g} where full scale is 1 (scale the audio down)"
        raise ClipError(Status.NOT_FINITE, f"{what}, first at {frame / rate_hz:.3f} s")
    block[bad] = 0.0
    return block


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
    """(first, end, 16 kHz index of the first) of the frames to convert for samples `[start, end)`.

    The first frame lies exactly on a 16 kHz sample, so that all spans share one grid.
    """
    if rate_hz == SAMPLE_RATE_HZ:
        return start, end, start
    common = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    margin = _CONTEXT * max(1, -(-SAMPLE_RATE_HZ // rate_hz))
    units = max(0, start - margin) * common // SAMPLE_RATE_HZ
    first = units * (rate_hz // common), units * (SAMPLE_RATE_HZ // common)
    return first[0], frames_for(end + margin, rate_hz), first[1]


def converted(blocks: Iterable[Floats], rate_hz: int, frames: int) -> Iterator[Floats]:
    """Mono blocks of a file of `frames` as one continuous signal at 16 kHz, in pieces."""
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


class Levels(NamedTuple):
    """RMS level (dB re full scale, at least -120), largest absolute sample, and clipping.

    `clipped_ratio` is the share of samples at full scale of 16-bit audio. Without samples all are
    NaN.
    """

    rms_db: float
    peak: float
    clipped_ratio: float


def levels(signal: Floats) -> Levels:
    """Levels of a clip [samples], without a copy of it.

    >>> levels(np.array([0.5, -0.5], np.float32))
    Levels(rms_db=-6.020599913279624, peak=0.5, clipped_ratio=0.0)
    >>> levels(np.array([0.0, 0.5, -1.0, 32767 / 32768], np.float32)).clipped_ratio
    0.5
    """
    if not signal.size:
        return Levels(math.nan, math.nan, math.nan)
    highest, lowest = float(np.maximum.reduce(signal)), float(np.minimum.reduce(signal))
    clipped = int(np.count_nonzero(signal >= FULL_SCALE)) if highest >= FULL_SCALE else 0
    clipped += int(np.count_nonzero(signal <= -FULL_SCALE)) if lowest <= -FULL_SCALE else 0
    return Levels(rms_db(signal), max(highest, -lowest), clipped / signal.size)


def channel_fault(channels: Sequence[float], mix: float) -> str:
    """A key of `FAULTS`, or nothing, by the mean squares of channels and of their mean, `mix`.

    - `opposite_phase`: the mix is 7 dB below the mix of as many uncorrelated channels, which is
      10 dB below the channels where there are two (correlation -0.8 at equal levels);
    - `silent_channel`: a channel is 40 dB below the loudest.

    Spaced microphones and speakers on channels of their own do neither; channels below -60 dB re
    full scale have no fault.

    >>> channel_fault([0.01, 0.01], 0.0)
    'opposite_phase'
    """
    total = sum(channels)
    if len(channels) < 2 or total < _AUDIBLE * len(channels):
        return ""
    if mix < _CANCELLED * total / len(channels) ** 2:
        return "opposite_phase"
    return "silent_channel" if min(channels) < _SILENT_CHANNEL * max(channels) else ""


def has_hum(signal: Floats) -> bool:
    """Whether mains hum is louder than all else in 16 kHz mono [samples]; never in under a second.

    Lines at 50 or 60 Hz and their first harmonics hold at least half of the power, the lowest of
    them alone a tenth. Speech has next to nothing there, whatever its pitch.
    """
    # whole periods of hum, which are also lengths of a fast transform
    samples = min(len(signal), _HUM_LONGEST) // _HUM_LAG * _HUM_LAG
    if samples < SAMPLE_RATE_HZ:
        return False
    start = (len(signal) - samples) // 2
    middle = (len(signal) - _BLOCK - _HUM_LAG) // 2
    now, later = (signal[at : at + _BLOCK] for at in (middle, middle + _HUM_LAG))
    if np.dot(now, later) < 0.8 * _HUM_SHARE * np.dot(now, now):
        return False  # nearly every clip: its middle is not as it was 100 ms before
    part = signal[start : start + samples]
    # the mean of 16 samples keeps what is below 500 Hz, where the lines are
    spectrum = np.fft.rfft(part.reshape(-1, 16).mean(axis=1))
    power = 2 * np.square(np.abs(spectrum) * (16 / samples))

    def within(low_hz: float, high_hz: float) -> float:
        first, last = (round(hz * samples / SAMPLE_RATE_HZ) for hz in (low_hz, high_hz))
        return float(power[first : last + 1].sum())

    total = float(np.var(part))
    for mains_hz in (50, 60):
        around = (mains_hz * number for number in range(1, _HUM_LINES + 1))
        lines = [within(hz - _HUM_WIDTH_HZ, hz + _HUM_WIDTH_HZ) for hz in around]
        if sum(lines) >= _HUM_SHARE * total and lines[0] >= _HUM_FIRST_SHARE * total > 0:
            return True
    return False


def rms_db(signal: Floats) -> float:
    """`10 log10(mean(x^2))` of [samples]: dB re full scale, at least -120; NaN without samples.

    >>> rms_db(np.ones(4, np.float32))
    0.0
    """
    if not signal.size:
        return math.nan
    # float32 within a block, float64 between them: exact enough, and 10 times as fast as float64;
    # from 10,000 samples on, BLAS would start threads
    whole = signal.size // _BLOCK * _BLOCK
    blocks, rest = signal[:whole].reshape(-1, _BLOCK), signal[whole:]
    power = sum(map(float, (*np.vecdot(blocks, blocks), np.dot(rest, rest)))) / signal.size
    return max(10.0 * math.log10(power), FLOOR_DB) if power > 0.0 else FLOOR_DB


def is_silent(signal: Floats) -> bool:
    """Whether [samples] are digital silence, or empty."""
    return not len(signal) or float(max(signal.max(), -signal.min())) <= _SILENT
