"""Where speech is in a recording of any length (silero-vad, extra `vad`), and cuts in its pauses.

The detector sees 512 samples at a time and only its probabilities are kept (one number per 32 ms),
so ten hours take no more memory than ten seconds; block borders leave no trace in the result.
Importing this module is cheap: torch and the detector come with the first use.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from raysers.errors import ConfigError
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ

#: Samples of one decision at 16 kHz; the network accepts no other number.
_WINDOW_SAMPLES = 512

_NS_PER_SAMPLE = NS_PER_S // SAMPLE_RATE_HZ

#: Without the detector: length of the quiet stretch to cut in, and step of the search, samples.
_PAUSE_SAMPLES, _STEP_SAMPLES = SAMPLE_RATE_HZ // 5, SAMPLE_RATE_HZ // 50

#: Idle loaded networks: as many as streams were ever open at the same time.
_idle: list[Any] = []

# importing the package and loading the network change torch's state for the whole process
_lock = threading.Lock()


def find_speech(
    blocks: Iterable[npt.NDArray[np.float32]], *, min_s: float, max_s: float
) -> list[tuple[int, int]]:
    """Stretches of speech in a stream.

    Args:
        blocks: consecutive 16 kHz mono float32 blocks of any lengths.
        min_s: shorter stretches are dropped, in seconds.
        max_s: longer stretches are split at their longest pause, or at `max_s` without one.

    Returns:
        (start, end) in nanoseconds from the start of the stream, in order, disjoint.

    Raises:
        ConfigError: the package is not installed, or `max_s` leaves no room for a segment.
    """
    if not 0 <= min_s < max_s:
        raise ConfigError(f"speech segments need 0 <= min ({min_s} s) < max ({max_s} s)")
    package = _package()
    import torch

    probabilities: list[float] = []
    samples = 0
    with _network(package) as network:
        for window, length in _windows(blocks):
            with torch.inference_mode():  # not around the loop: the stream is the caller's code
                speech = network(torch.from_numpy(window), SAMPLE_RATE_HZ)
            probabilities.append(float(speech.item()))
            samples += length
    stretches = package.get_speech_timestamps_from_probs(
        probabilities,
        audio_length_samples=samples,
        sampling_rate=SAMPLE_RATE_HZ,
        min_speech_duration_ms=round(min_s * 1000),
        max_speech_duration_s=max_s,
    )
    return [(s["start"] * _NS_PER_SAMPLE, s["end"] * _NS_PER_SAMPLE) for s in stretches]


def pauses_by() -> str:
    """What finds the pauses of `speech_windows` here."""
    return "silero-vad" if find_spec("silero_vad") else "level"


def speech_windows(signal: npt.NDArray[np.float32], longest_s: float) -> list[Any]:
    """A clip in consecutive windows, each but the last cut in a pause of its last third.

    The pause is the longest stretch without speech, or without the detector (or without a pause)
    the quietest fifth of a second. The cut depends on the clip alone. Windows neither overlap nor
    leave anything out, so that their texts are the text of the clip.

    Args:
        signal: 16 kHz mono [samples].
        longest_s: longest window, seconds.

    Returns:
        Views of the signal, in order; the signal itself when it is short enough.
    """
    longest, start, windows = round(longest_s * SAMPLE_RATE_HZ), 0, []
    if len(signal) <= longest:
        return [signal]
    speech = [(0, len(signal) * _NS_PER_SAMPLE)]
    if find_spec("silero_vad"):
        speech = find_speech([signal], min_s=0.0, max_s=math.inf)
    edges = np.array([0, *np.ravel(speech) // _NS_PER_SAMPLE, len(signal)], np.int64)
    pauses = edges.reshape(-1, 2)
    while len(signal) - start > longest:
        first, last = start + longest * 2 // 3, start + longest
        inside = np.clip(pauses, first, last)
        begin, end = inside[np.diff(inside).argmax()].tolist()
        cut = (begin + end) // 2 if end > begin else first + _quietest(signal[first:last])
        windows.append(signal[start:cut])
        start = cut
    return [*windows, signal[start:]]


def _quietest(stretch: npt.NDArray[np.float32]) -> int:
    """Middle of the stretch's quietest fifth of a second, in samples; of equal ones the last."""
    steps, width = len(stretch) // _STEP_SAMPLES, _PAUSE_SAMPLES // _STEP_SAMPLES
    whole = stretch[: steps * _STEP_SAMPLES].astype(np.float64)
    energy = np.square(whole).reshape(steps, _STEP_SAMPLES).sum(1)
    sums = np.convolve(energy, np.ones(width), mode="valid")
    last = len(sums) - 1 - int(np.argmin(sums[::-1]))
    return (2 * last + width) * _STEP_SAMPLES // 2


def _windows(
    blocks: Iterable[npt.NDArray[np.float32]],
) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """The stream in windows, the last one padded, and how many samples of each are its own."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        stream = np.concatenate((rest, np.asarray(block, np.float32)))
        whole = len(stream) - len(stream) % _WINDOW_SAMPLES
        for start in range(0, whole, _WINDOW_SAMPLES):
            yield stream[start : start + _WINDOW_SAMPLES], _WINDOW_SAMPLES
        rest = stream[whole:]
    if len(rest):
        yield np.pad(rest, (0, _WINDOW_SAMPLES - len(rest))), len(rest)


@contextmanager
def _network(package: Any) -> Iterator[Any]:
    """A network for one stream alone: it carries state from window to window."""
    with _lock:
        network = _idle.pop() if _idle else package.load_silero_vad()
    network.reset_states()
    try:
        yield network
    finally:
        _idle.append(network)


def _package() -> Any:
    """The detector's package, which sets torch to one thread when it is imported."""
    with _lock:
        if (package := sys.modules.get("silero_vad")) is not None:
            return package
        import torch

        threads = torch.get_num_threads()
        try:
            import silero_vad
        except ImportError as error:
            raise ConfigError(
                "--segment vad needs silero-vad: pip install 'raysers[vad]'"
            ) from error
        finally:
            torch.set_num_threads(threads)
        return silero_vad
