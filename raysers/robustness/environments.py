"""Harder changes of a clip, as in ser-tests: noise behind the speech, spectral tilt, rooms.

Levels follow ser-tests: the result has the RMS of the clip, and is scaled down if a sample would
exceed full scale. Its tilt filters are its recordings; ours are generated, so figures of
the two tilts are comparable in kind only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import scipy.signal
from numpy.typing import ArrayLike, NDArray

from raysers.robustness.perturbation import Perturbation, Signal
from raysers.types import SAMPLE_RATE_HZ

_EPS = float(np.finfo(np.float32).eps)
#: A level below the smallest normal number is silence.
_LEAST = float(np.finfo(np.float32).tiny)

#: Taps of a tilt filter, and where its slope begins.
_TILT_TAPS, _TILT_FROM_HZ = 1025, 125.0


class Recordings(Protocol):
    """Recordings of one kind, mono at 16 kHz, to be mixed in or convolved with.

    Attributes:
        lengths: samples of each recording, at least one recording.
    """

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Samples of each recording."""

    def read(self, number: int, first: int, samples: int) -> Signal:
        """Samples `[first, first + samples)` of a recording, fewer at its end."""


def mix(signal: ArrayLike, noise: ArrayLike, snr_db: float) -> Signal:
    """The clip with noise behind it, at the level the clip had.

    Args:
        signal: the clip, shape (samples,).
        noise: as long as the clip; its RMS is measured over its whole length.
        snr_db: RMS of the clip over that of the noise.

    Silence, as clip or as noise, leaves the clip as it is: no ratio could be reached.
    """
    x, n = np.asarray(signal, np.float32), np.asarray(noise, np.float64)
    rms_x, rms_n = _rms(x), _rms(n)
    if not (rms_x and rms_n):
        return x.copy()
    return _levelled(10 ** (snr_db / 20) * (rms_n / rms_x) * x + n, rms_x)


def tilt(signal: ArrayLike, db_per_octave: float) -> Signal:
    """The clip through a linear-phase filter that falls or rises steadily from 125 Hz up.

    The filter's delay is taken back, so the clip keeps its length and place.
    """
    x = np.asarray(signal, np.float32)
    half = _TILT_TAPS // 2
    filtered = scipy.signal.fftconvolve(x, _tilt_filter(db_per_octave))[half : half + x.size]
    return _levelled(filtered, _rms(x))


def convolve(signal: ArrayLike, impulse_response: ArrayLike) -> Signal:
    """The clip convolved with an impulse response, without its tail, with a peak of 1."""
    x = np.asarray(signal, np.float32)
    convolved = scipy.signal.fftconvolve(x, np.asarray(impulse_response, np.float64))[: x.size]
    peak = float(np.abs(convolved).max(initial=0.0))
    return np.asarray(convolved / peak if peak >= _LEAST else convolved, np.float32)


def _background_white(signal: Signal, snr_db: float, rng: np.random.Generator) -> Signal:
    return mix(signal, rng.standard_normal(len(signal), np.float32), snr_db)


def _background(
    signal: Signal, snr_db: float, rng: np.random.Generator, material: Recordings
) -> Signal:
    """One recording from a random place on, looped from there."""
    return mix(signal, _stretch(len(signal), rng, material), snr_db)


def _babble(
    signal: Signal, snr_db: float, voices: int, rng: np.random.Generator, material: Recordings
) -> Signal:
    """Several voices at once, each at its own level."""
    noise = np.zeros(len(signal))
    for _ in range(voices):
        gain_db = int(rng.integers(-20, -12))
        noise += 10 ** (gain_db / 20) * _stretch(len(signal), rng, material)
    return mix(signal, noise, snr_db)


def _event(signal: Signal, snr_db: float, rng: np.random.Generator, material: Recordings) -> Signal:
    """One recording, once, beginning at a random place; cut where the clip ends."""
    number = int(rng.integers(len(material.lengths)))
    first = int(rng.integers(len(signal)))
    event = material.read(number, 0, len(signal) - first)
    noise = np.zeros(len(signal))
    noise[first : first + len(event)] = event
    return mix(signal, noise, snr_db)


def _room(signal: Signal, rng: np.random.Generator, material: Recordings) -> Signal:
    number = int(rng.integers(len(material.lengths)))
    return convolve(signal, material.read(number, 0, int(material.lengths[number])))


def _stretch(samples: int, rng: np.random.Generator, material: Recordings) -> Signal:
    number = int(rng.integers(len(material.lengths)))
    first = int(rng.integers(material.lengths[number]))
    return np.resize(material.read(number, first, samples), samples)


def _levelled(signal: NDArray[np.float64], rms: float) -> Signal:
    """At this RMS, but with no sample above full scale."""
    own = _rms(signal)
    scaled = signal * (rms / own) if own else signal
    most = float(scaled.max(initial=0.0))
    return (scaled / (most + _EPS) if most > 1 else scaled).astype(np.float32)


def _rms(x: NDArray[np.floating]) -> float:
    rms = float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0
    return rms if rms >= _LEAST else 0.0


@lru_cache(maxsize=8)
def _tilt_filter(db_per_octave: float) -> NDArray[np.float64]:
    nyquist_hz = SAMPLE_RATE_HZ / 2
    hz = np.concatenate([[0.0], np.geomspace(_TILT_FROM_HZ, nyquist_hz, 64)])
    gains_db = db_per_octave * np.log2(np.maximum(hz, _TILT_FROM_HZ) / _TILT_FROM_HZ)
    taps = scipy.signal.firwin2(_TILT_TAPS, hz, 10 ** (gains_db / 20), fs=SAMPLE_RATE_HZ)
    return np.asarray(taps, np.float64)


_NOISE = "ser-tests, robustness to background noise"
_TILT = "ser-tests, robustness to spectral tilt; filters of our own"
_ROOMS = "ser-tests, robustness to simulated recording conditions"
_SNR = {"snr_db": (20,)}

#: Behind speech, from the user's folder of noise (its subfolders are the kinds).
BACKGROUND = (
    Perturbation(
        name="background_white",
        function=_background_white,
        choices=_SNR,
        source=_NOISE,
        drawn=True,
    ),
    Perturbation(
        name="background_babble",
        function=_babble,
        choices={**_SNR, "voices": (4, 5, 6, 7)},
        source=_NOISE,
        drawn=True,
        needs="speech",
    ),
    *(
        Perturbation(
            name=f"background_{name}",
            function=function,
            choices={"snr_db": (snr_db,)},
            source=_NOISE,
            drawn=True,
            needs=kind,
        )
        for name, kind, function, snr_db in (
            ("ambience", "noise", _background, 20),
            ("music", "music", _background, 20),
            ("coughing", "coughing", _event, 10),
            ("sneezing", "sneezing", _event, 10),
        )
    ),
)

TILTS = tuple(
    Perturbation(name=name, function=tilt, choices={"db_per_octave": (slope,)}, source=_TILT)
    for name, slope in (("tilt_down", -3), ("tilt_up", 3))
)

#: Another position or room against a reference one, from the user's impulse responses.
ROOMS = tuple(
    Perturbation(name=name, function=_room, source=_ROOMS, drawn=True, needs=name, against=against)
    for name, against in (
        ("position_reference", "clean"),
        ("position", "position_reference"),
        ("room_reference", "clean"),
        ("room", "room_reference"),
    )
)
