"""Small changes of a clip that should not change how it is scored, as functions and as a table.

The eight of Wagner et al. 2022 (section 3.4) and two more of the authors' later test suite,
ser-tests. The paper's additive tone has its SNR against the peak of the clip, ser-tests' against
its RMS, which is 12 to 18 dB less noise for speech; the paper's "1 %" of clipping is .1 %.

Every function takes and returns mono float32 at 16 kHz of shape (samples,), changes nothing in
place, and lets a signal exceed full scale rather than clip it. Drawing and changing are apart, so
that what was drawn is known even where it cannot be applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import scipy  # its signal package is slow to import, and is loaded when a clip is changed
from numpy.typing import ArrayLike, NDArray

from raysers.audio.samples import rms_db
from raysers.types import SAMPLE_RATE_HZ
from raysers.types import generator as generator_of

Signal = NDArray[np.float32]
Reference = Literal["peak", "rms"]
#: A turn per sample at 1 Hz, and the samples up to which a float32 phase keeps a tone a tone.
_TURN, _MOST_COARSE = 2 * np.pi / SAMPLE_RATE_HZ, 40 * SAMPLE_RATE_HZ
#: Predictions of the clips as they are.
CLEAN = "clean"


class TooShort(ValueError):
    """A perturbation cannot be applied to a clip, being too short for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbation:
    """One row of the table: `function(signal, **parameters)`, by its name in flags and tables.

    `choices` are the values of every parameter, each as likely as the others. A function that is
    `drawn` also takes `rng` for noise or positions; one that `needs` a kind of recording (a
    folder's name) also takes `material`. Its scores are compared with the clip itself or `against`
    another perturbation.
    """

    name: str
    function: Callable[..., Signal]
    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    drawn: bool = False
    needs: str = ""
    against: str = CLEAN

    @property
    def is_random(self) -> bool:
        """Whether another draw gives another signal."""
        return self.drawn or any(len(values) > 1 for values in self.choices.values())

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """A value for every parameter."""
        return {
            name: values[int(rng.integers(len(values)))] for name, values in self.choices.items()
        }

    def change(
        self,
        signal: Signal,
        parameters: Mapping[str, Any],
        rng: np.random.Generator,
        material: Any = None,
    ) -> Signal:
        """The changed clip for drawn parameters, with the generator they were drawn from."""
        own: dict[str, Any] = {"rng": rng} if self.drawn else {}
        if self.needs:
            own["material"] = material
        return self.function(signal, **parameters, **own)


def generator(seed: int, clip_id: str, perturbation: str, repeat: int = 0) -> np.random.Generator:
    """Where a clip's draws come from: these four alone, never order, worker or time."""
    return generator_of(seed, clip_id, perturbation, repeat, byteorder="little")


def additive_tone(
    signal: ArrayLike, frequency_hz: float, snr_db: float, reference: Reference = "peak"
) -> Signal:
    """Add a sine that starts at phase 0, `snr_db` below the clip.

    The reference `peak` compares the clip's largest magnitude with the sine's amplitude (the
    paper), `rms` root mean squares, the sine's taken as amplitude / sqrt 2 (auglib's `Tone`, used
    by ser-tests).
    """
    x = _mono(signal)
    if not x.size:
        return x.copy()
    level = float(np.abs(x).max()) if reference == "peak" else _rms(x) * 2**0.5
    # auglib's phase is float32, which is too coarse for a clip of minutes
    n, turn = np.arange(x.size), _TURN * frequency_hz
    coarse = x.size <= _MOST_COARSE
    tone = np.sin(n.astype(np.float32) * np.float32(turn) if coarse else n * turn)
    return np.asarray(x + level * _ratio(-snr_db) * tone, np.float32)


def append_zeros(signal: ArrayLike, samples: int) -> Signal:
    """Add silence of `samples` at the end."""
    return np.concatenate([_mono(signal), np.zeros(samples, np.float32)])


def prepend_zeros(signal: ArrayLike, samples: int) -> Signal:
    """Add silence of `samples` at the beginning."""
    return np.concatenate([np.zeros(samples, np.float32), _mono(signal)])


def crop_beginning(signal: ArrayLike, samples: int) -> Signal:
    """Drop the first `samples`; TooShort where nothing would be left."""
    x = _mono(signal)
    return x[_less_than_all(samples, x) :].copy()


def crop_end(signal: ArrayLike, samples: int) -> Signal:
    """Drop the last `samples`; TooShort where nothing would be left."""
    x = _mono(signal)
    return x[: x.size - _less_than_all(samples, x)].copy()


def clip(signal: ArrayLike, ratio: float) -> Signal:
    """Clip hard so that about this share of the samples lies at the threshold.

    The threshold is the magnitude that `int(ratio x samples)` samples exceed; nothing is scaled
    back afterwards. A ratio of 0 and silence change nothing.
    """
    x = _mono(signal)
    if not ratio or not x.size:
        return x.copy()
    rank = min(int(ratio * x.size) + 1, x.size)
    threshold = np.partition(np.abs(x), x.size - rank)[x.size - rank]
    return x.clip(-threshold, threshold) if threshold else x.copy()


def gain(signal: ArrayLike, gain_db: float) -> Signal:
    """Multiply by `10^(gain_db / 20)`."""
    return (_mono(signal) * _ratio(gain_db)).astype(np.float32)


def highpass(signal: ArrayLike, cutoff_hz: float, order: int = 1) -> Signal:
    """Butterworth high-pass, causal, from rest (`scipy.signal.lfilter`)."""
    return _filtered(signal, "highpass", cutoff_hz, order)


def lowpass(signal: ArrayLike, cutoff_hz: float, order: int = 1) -> Signal:
    """Butterworth low-pass, causal, from rest (`scipy.signal.lfilter`)."""
    return _filtered(signal, "lowpass", cutoff_hz, order)


def white_noise(signal: ArrayLike, snr_db: float, noise: ArrayLike) -> Signal:
    """Add standard normal `noise`, as many samples as the clip has, at a ratio of RMS.

    The noise's own is taken as 1, what it is on average, so a short clip may be off by a fraction
    of a dB.
    """
    x = _mono(signal)
    return (x + _rms(x) * _ratio(-snr_db) * np.asarray(noise)).astype(np.float32)


def _drawn_white_noise(signal: Signal, snr_db: float, rng: np.random.Generator) -> Signal:
    return white_noise(signal, snr_db, rng.standard_normal(len(signal), np.float32))


_TONES = {"frequency_hz": range(5000, 7001), "snr_db": (40, 45, 50), "reference": ("peak",)}
_SAMPLES = {"samples": (100, 500, 1000)}
_NOISE = {"snr_db": (35, 40, 45)}

#: The paper's eight, then ser-tests' two more.
PERTURBATIONS = tuple(
    Perturbation(name=name, function=function, choices=choices, drawn=choices is _NOISE)
    for name, function, choices in (
        ("additive_tone", additive_tone, _TONES),
        ("append_zeros", append_zeros, _SAMPLES),
        ("clip", clip, {"ratio": (0.001, 0.002, 0.003)}),
        ("crop_beginning", crop_beginning, _SAMPLES),
        ("gain", gain, {"gain_db": (-2, -1, 1, 2)}),
        ("highpass", highpass, {"cutoff_hz": (50, 100, 150)}),
        ("lowpass", lowpass, {"cutoff_hz": (7500, 7000, 6500)}),
        ("white_noise", _drawn_white_noise, _NOISE),
        ("crop_end", crop_end, _SAMPLES),
        ("prepend_zeros", prepend_zeros, _SAMPLES),
    )
)


def _mono(signal: ArrayLike) -> Signal:
    return np.asarray(signal, np.float32)


def _rms(x: Signal) -> float:
    return _ratio(rms_db(x))


def _ratio(level_db: float) -> float:
    return float(10 ** (level_db / 20))


def _less_than_all(samples: int, x: Signal) -> int:
    if samples >= x.size:
        raise TooShort(f"{samples} samples cannot be cropped from a clip of {x.size}")
    return samples


@lru_cache(maxsize=64)
def _coefficients(
    kind: str, cutoff_hz: float, order: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    b, a = scipy.signal.butter(order, cutoff_hz, btype=kind, fs=SAMPLE_RATE_HZ)
    return b, a


def _filtered(signal: ArrayLike, kind: str, cutoff_hz: float, order: int) -> Signal:
    x = _mono(signal)
    b, a = _coefficients(kind, cutoff_hz, order)
    return np.asarray(scipy.signal.lfilter(b, a, x)).astype(np.float32)
