"""The clips of a file once its header is read: the whole, a table's segment, windows or speech.

The part of a file that cannot be read is a row too, so that a loss is counted and never silent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from raysers.audio.decode import AudioInfo, cut_message
from raysers.errors import ClipError, ConfigError
from raysers.types import NS_PER_S, Status

#: A segment may end this much after the file, because tables round; further ends, up to the second
#: limit, are set to the end of the file.
_ROUNDING_NS = 1_000_000
_CLAMPED_NS = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmenting:
    """How a recording without given segments becomes clips.

    Attributes:
        kind: the whole file, fixed windows, or the stretches of speech.
        window_s: length of a window, seconds.
        hop_s: from one window's start to the next one's, seconds.
        min_s: a last window shorter than this is dropped, seconds.
    """

    kind: Literal["whole", "window", "vad"] = "whole"
    window_s: float = 10.0
    hop_s: float = 10.0
    min_s: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in ("whole", "window", "vad"):
            raise ConfigError(f"--segment {self.kind}: choose whole, window or vad")
        if not (self.window_s > 0 and self.hop_s > 0 and self.min_s >= 0):
            raise ConfigError("--window-s and --hop-s must be more than 0 s, --min-s at least 0 s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One clip of a file."""

    start_ns: int
    end_ns: int | None
    duration_s: float | None
    status: Status = Status.OK
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What was decoded of a recording: (start_ns, end_ns) of speech, and where decoding failed."""

    spans: Sequence[tuple[int, int]]
    heard_ns: int
    failure: ClipError | None = None


def given(start_ns: int, end_ns: int | None, info: AudioInfo) -> Segment:
    """A table's own segment, checked against what the file holds."""
    held_ns = to_ns(info.duration_s)
    if end_ns is not None and _ROUNDING_NS < end_ns - held_ns <= _CLAMPED_NS:
        # what a damaged file has lost is no rounding
        end_ns = end_ns if info.is_cut or start_ns >= held_ns else held_ns
    last_ns = held_ns if end_ns is None else min(end_ns, held_ns)
    row = Segment(
        start_ns=start_ns, end_ns=end_ns, duration_s=max(0, last_ns - start_ns) / NS_PER_S
    )
    if end_ns is None:
        row = dataclasses.replace(row, end_ns=max(held_ns, start_ns))
    if start_ns >= held_ns:
        return _replaced(row, Status.EMPTY, f"starts after the file's end at {info.duration_s:g} s")
    if end_ns is not None and end_ns > held_ns + _ROUNDING_NS:
        return _replaced(row, Status.TRUNCATED, f"the file ends at {info.duration_s:g} s")
    if end_ns is None and info.is_cut:
        return _replaced(row, Status.TRUNCATED, cut_message(info))
    return row


def of_recording(info: AudioInfo, segmenting: Segmenting, speech: Speech | None) -> list[Segment]:
    """The clips of a recording without given segments, at least one."""
    if segmenting.kind == "whole":
        return [_whole(info)]
    if speech is not None:
        return _spoken(info, speech)
    spans = windows(
        info.duration_s,
        window_s=segmenting.window_s,
        hop_s=segmenting.hop_s,
        min_s=segmenting.min_s,
    )
    return [_span(start_ns, end_ns) for start_ns, end_ns in spans] + _lost_tail(info)


def _spoken(info: AudioInfo, speech: Speech) -> list[Segment]:
    rows = [_span(start_ns, end_ns) for start_ns, end_ns in speech.spans]
    held_ns, lost = to_ns(info.duration_s), _lost_tail(info)
    if speech.failure is not None:
        # decoding may find less than the header and the file's size let hope for
        held_ns = min(speech.heard_ns, held_ns)
        tail = _span(held_ns, max(_promised_ns(info), held_ns + 1))
        lost = [_replaced(tail, speech.failure.status, speech.failure.message)]
    if not rows and held_ns:
        rows = [_replaced(_span(0, held_ns), Status.EMPTY, "no speech found")]
    return rows + lost


def _whole(info: AudioInfo) -> Segment:
    row = Segment(start_ns=0, end_ns=to_ns(info.duration_s), duration_s=info.duration_s)
    return _replaced(row, Status.TRUNCATED, cut_message(info)) if info.is_cut else row


def _lost_tail(info: AudioInfo) -> list[Segment]:
    """The part of a cut file that is not there: a row of its own, so the loss is counted."""
    if not info.is_cut:
        return []
    tail = _span(to_ns(info.duration_s), _promised_ns(info))
    return [_replaced(tail, Status.TRUNCATED, cut_message(info))]


def _promised_ns(info: AudioInfo) -> int:
    return to_ns(info.promised_frames / info.sample_rate_hz)


def _span(start_ns: int, end_ns: int) -> Segment:
    return Segment(start_ns=start_ns, end_ns=end_ns, duration_s=(end_ns - start_ns) / NS_PER_S)


def _replaced(row: Segment, status: Status, error: str) -> Segment:
    return dataclasses.replace(row, status=status, error=error)


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
