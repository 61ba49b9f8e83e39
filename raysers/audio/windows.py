"""Cut a recording's time line into fixed windows.

The last window is the first that reaches the end of the recording: a hop shorter than the window
does not go on to repeat ever shorter tails of what that window already holds.
"""

from __future__ import annotations

import math

from raysers.errors import ConfigError
from raysers.types import NS_PER_S


def to_ns(seconds: float) -> int:
    """Seconds as the nearest whole nanosecond."""
    return round(seconds * NS_PER_S)


def windows(
    duration_s: float, *, window_s: float, hop_s: float, min_s: float
) -> list[tuple[int, int]]:
    """Windows of `window_s` every `hop_s` over `[0, duration_s)`.

    A window that would pass the end is cut there, and dropped when less than `min_s` is left of
    it; the first window always stays, so every recording yields at least one clip and a very
    short one is judged by the model, not lost here.

    Args:
        duration_s: length of the recording, seconds.
        window_s: length of a window, seconds, > 0.
        hop_s: from one window's start to the next one's, seconds, > 0; more than `window_s`
            leaves gaps.
        min_s: shortest last window, seconds.

    Returns:
        (start_ns, end_ns) in order; integer arithmetic throughout, so starts are exact multiples
        of the hop.

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
    # starts before `last_start_ns` do not reach the end; the one at or after it does
    last = max(0, -((window_ns - end_ns) // hop_ns))
    cuts = [(k * hop_ns, min(k * hop_ns + window_ns, end_ns)) for k in range(last + 1)]
    start_ns, stop_ns = cuts[-1]
    if last > 0 and stop_ns - start_ns < max(min(to_ns(min_s), window_ns), 1):
        cuts.pop()
    return cuts
