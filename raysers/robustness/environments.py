"""Harder changes of a clip, as in ser-tests: background noise, spectral tilt, rooms, a phone.

Noise and impulse responses are the user's recordings. All are decoded once before a job begins, and
what cannot be read is left out: later it would not be a clip's fault and would stop the job.

Levels follow ser-tests: the result has the RMS of the clip, and is scaled down if a sample would
exceed full scale. Its tilt filters are its recordings; ours are generated, so figures of
the two tilts are comparable in kind only. The phone's AMR codec is optional, because no codec comes
with the package: a run uses it on all its workers or on none, and says so in every row.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy  # its signal package is slow to import, and is loaded when a clip is changed
import soxr
from numpy.typing import ArrayLike, NDArray

from raysers.audio.decode import AudioReader
from raysers.data.manifest import clips_of, fingerprint
from raysers.data.segments import Segmenting
from raysers.engine.listing import has_cluster, index, map_blocks
from raysers.engine.progress import print_warning
from raysers.errors import ClipError, ConfigError, RaysersError
from raysers.io import storage
from raysers.robustness.perturbations import Perturbation, Signal, highpass
from raysers.types import NS_PER_S, SAMPLE_RATE_HZ, Clip, Status

_NS_PER_SAMPLE = NS_PER_S // SAMPLE_RATE_HZ
#: Recordings of at most this length stay in memory once read; one task checks so many of them.
_KEPT_S, _CHECKED_PER_TASK = 10, 32
#: What the impulse response that others are compared with is called, without its suffix.
REFERENCE = "reference"
#: Tells an outage of the store from recordings that cannot be read.
_BREAKER = storage.Breaker()
_EPS = float(np.finfo(np.float32).eps)
#: A level below the smallest normal number is silence.
_LEAST = float(np.finfo(np.float32).tiny)
#: Taps of a tilt filter, and where its slope begins.
_TILT_TAPS, _TILT_FROM_HZ = 1025, 125.0
#: The telephone line.
_PHONE_HZ = 8000
_ATTACK_S, _RELEASE_S = 0.01, 0.02
_THRESHOLD_DB, _KNEE_DB, _SLOPE = -20.0, 4.0, 0.8
_PINK_DB, _PINK_FROM_HZ = -25.0, 3000.0
_FRAME, _ENCODER, _DECODER = 160, "libopencore_amrnb", "amrnb"


@dataclass(slots=True)
class NoiseReader:
    """Recordings of one kind as a perturbation reads them, noting which it took."""

    items: Sequence[Clip]
    taken: list[str] = field(default_factory=list)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Samples of each recording."""
        return np.array([round(item.duration_s * SAMPLE_RATE_HZ) for item in self.items])

    def read(self, number: int, first: int, samples: int) -> Signal:
        """Samples `[first, first + samples)` of a recording, fewer at its end."""
        item, length = self.items[number], int(self.lengths[number])
        self.taken.append(item.file)
        if item.duration_s <= _KEPT_S:
            return _kept(item, 0, length)[first : first + samples]
        return _read(item, first, min(first + samples, length))


def _open(item: Clip) -> AudioReader:
    names = ("num_bytes", "byte_offset", "byte_size", "etag")
    known = {name: getattr(item, name) for name in names}
    return AudioReader(storage.open_source(item.file, **known), name=item.file)


def _read(item: Clip, first: int, last: int) -> Signal:
    """Samples of a recording; raises RaysersError."""
    try:
        with _open(item) as reader:
            return reader.read(first * _NS_PER_SAMPLE, last * _NS_PER_SAMPLE, max_s=float("inf"))
    except ClipError as error:
        raise RaysersError(f"{item.file} cannot be used as noise: {error}") from error


_kept = lru_cache(maxsize=256)(_read)


def listed(flag: str, folder: str) -> tuple[dict[str, pa.Table], str]:
    """Manifests by kind (the subfolder recordings are in), and a fingerprint of all of them.

    A file named `reference` is a separate kind, `<kind>_reference`. Raises ConfigError.
    """
    if not folder:
        return {}, ""
    folder = storage.absolute(folder).rstrip("/")
    try:
        manifest = index([folder], Segmenting()).table()
    except ConfigError as error:
        raise ConfigError(str(error).replace("--input", flag)) from error
    kinds = [_kind(file.removeprefix(folder)) for file in manifest["file"].to_pylist()]
    if not any(kinds):
        raise ConfigError(f"{flag} {folder}: needs a subfolder per kind of recording")
    column = pa.array(kinds)
    found = {k: manifest.filter(pc.equal(column, k)) for k in sorted({*kinds} - {""})}
    return found, fingerprint(manifest)


def usable(
    flag: str, found: Mapping[str, pa.Table], used: Collection[str]
) -> dict[str, tuple[Clip, ...]]:
    """Recordings of the kinds that are used, without those that cannot be decoded to their end.

    Warns of what is left out: bad recordings, and folders that nothing uses. Raises ConfigError: a
    kind with nothing left; StorageError: an outage of the store.
    """
    if idle := sorted(set(found) - set(used)):
        print_warning(f"{flag}: no perturbation of this run uses the folders {', '.join(idle)}")
    material: dict[str, tuple[Clip, ...]] = {}
    for kind in sorted(set(found) & set(used)):
        table, size = found[kind], _CHECKED_PER_TASK
        blocks = [table.slice(place, size) for place in range(0, len(table), size)]
        checked = pa.concat_tables(map_blocks(_decoded, blocks, local=not has_cluster()))
        clips = clips_of(checked.sort_by("file"))
        bad = [clip for clip in clips if clip.status != Status.OK]
        material[kind] = tuple(clip for clip in clips if clip.status == Status.OK)
        if not material[kind]:
            raise ConfigError(f"{flag}: no recording of {kind} can be read: {_first(bad)}")
        if bad:
            print_warning(f"{flag}: {len(bad)} recordings of {kind} are left out: {_first(bad)}")
    return material


def _first(bad: Sequence[Clip]) -> str:
    more = " and others" if len(bad) > 1 else ""
    return f"{bad[0].file} ({' '.join(bad[0].error.split())}){more}"


def _decoded(block: pa.Table) -> pa.Table:
    """The rows of a manifest with what decoding them showed."""
    rows = zip(block.to_pylist(), map(decoded_once, clips_of(block)), strict=True)
    names = ("status", "error", "duration_s")
    merged = [row | {name: getattr(clip, name) for name in names} for row, clip in rows]
    return pa.Table.from_pylist(merged, block.schema)


def decoded_once(item: Clip) -> Clip:
    """The recording with the length it really has, or with its fault (see `storage.Breaker`)."""
    if item.status != Status.OK:
        return item
    try:
        with _open(item) as reader:
            samples = sum(len(block) for block in reader.blocks())
    except Exception as error:
        failure = _BREAKER.failed(item.file, error)
        return replace(item, status=failure.status, error=failure.message)
    _BREAKER.succeeded(item.file)
    # the tail of a header's promise may hold nothing to read
    told = round(item.duration_s * SAMPLE_RATE_HZ)
    return replace(item, duration_s=max(1, min(told, samples)) / SAMPLE_RATE_HZ)


def _kind(path: str) -> str:
    """The subfolder of a path like `/music/fma/a.wav`; empty for a file in the folder itself."""
    parts = path.strip("/").split("/")
    if len(parts) < 2:
        return ""
    is_reference = parts[-1].partition(".")[0] == REFERENCE
    return f"{parts[0]}_{REFERENCE}" if is_reference else parts[0]


def mix(signal: ArrayLike, noise: ArrayLike, snr_db: float) -> Signal:
    """The clip with noise of the same length behind it, at the level the clip had.

    `snr_db` is the RMS of the clip over that of the noise. Silence, as clip or as noise, leaves the
    clip as it is: no ratio could be reached.
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
    signal: Signal, snr_db: float, rng: np.random.Generator, material: NoiseReader
) -> Signal:
    """One recording from a random place on, looped from there."""
    return mix(signal, _stretch(len(signal), rng, material), snr_db)


def _babble(
    signal: Signal, snr_db: float, voices: int, rng: np.random.Generator, material: NoiseReader
) -> Signal:
    """Several voices at once, each at its own level."""
    noise = np.zeros(len(signal))
    for _ in range(voices):
        gain_db = int(rng.integers(-20, -12))
        noise += 10 ** (gain_db / 20) * _stretch(len(signal), rng, material)
    return mix(signal, noise, snr_db)


def _event(
    signal: Signal, snr_db: float, rng: np.random.Generator, material: NoiseReader
) -> Signal:
    """One recording, once, beginning at a random place; cut where the clip ends."""
    number = int(rng.integers(len(material.lengths)))
    first = int(rng.integers(len(signal)))
    event = material.read(number, 0, len(signal) - first)
    noise = np.zeros(len(signal))
    noise[first : first + len(event)] = event
    return mix(signal, noise, snr_db)


def _room(signal: Signal, rng: np.random.Generator, material: NoiseReader) -> Signal:
    number = int(rng.integers(len(material.lengths)))
    return convolve(signal, material.read(number, 0, int(material.lengths[number])))


def _stretch(samples: int, rng: np.random.Generator, material: NoiseReader) -> Signal:
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


def phone(signal: ArrayLike, noise: ArrayLike, *, amr: bool = False) -> Signal:
    """The clip at 8 kHz, compressed, and back at 16 kHz with high-passed pink noise.

    As many samples, with the RMS of the clip unless a sample would exceed full scale. `noise` has
    one standard normal sample more than the clip; with `amr` also through the AMR codec at 7,400
    bit/s, which needs the package `av`.
    """
    x = np.asarray(signal, np.float32)
    narrow = soxr.resample(x, SAMPLE_RATE_HZ, _PHONE_HZ, quality="HQ") if x.size else x
    peak = float(np.abs(narrow).max(initial=0.0))
    if peak < _LEAST:
        return x.copy()
    sent = compressed(narrow / np.float32(peak), _PHONE_HZ)
    sent = through_amr(sent) if amr else sent
    back = soxr.resample(sent, _PHONE_HZ, SAMPLE_RATE_HZ, quality="HQ")[: x.size]
    wide = np.zeros(x.size)
    wide[: back.size] = back
    wide /= max(float(wide.max()), 0.0) + _EPS
    pink = pink_noise(noise)
    pink *= 10 ** (_PINK_DB / 20) / (float(np.abs(pink).max()) + _EPS)
    received = (wide + highpass(pink, _PINK_FROM_HZ, order=2)) / 2
    return _levelled(received, _rms(x))


def compressed(signal: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """Less dynamic range: above -20 dB a dB in is .8 dB out, below it everything is 4 dB louder.

    As `sox compand .01,.02 4:-20,-16` describes it: the level follows the magnitude within 10 ms
    upwards and 20 ms downwards and starts at full scale; the corner is rounded over +-4 dB.
    """
    rise, fall = (1 - math.exp(-1 / (rate_hz * s)) for s in (_ATTACK_S, _RELEASE_S))
    level, levels = 1.0, []
    for magnitude in np.abs(signal).tolist():
        step = magnitude - level
        level += step * (rise if step > 0 else fall)
        levels.append(level)
    level_db = 20 * np.log10(np.maximum(levels, 1e-9))
    over_db = level_db - _THRESHOLD_DB
    bend = np.clip((over_db + _KNEE_DB) / (2 * _KNEE_DB), 0.0, 1.0)
    rounded_db = np.where(over_db > _KNEE_DB, over_db, _KNEE_DB * bend**2)
    gain_db = (_SLOPE - 1) * (_THRESHOLD_DB + rounded_db)
    return (signal * 10 ** (gain_db / 20)).clip(-1, 1).astype(np.float32)


def pink_noise(noise: ArrayLike) -> NDArray[np.float64]:
    """White noise shaped to a power that falls with frequency; one sample shorter."""
    white = np.asarray(noise, np.float64)
    spectrum = np.fft.rfft(white)
    spectrum[0] = 0.0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return np.fft.irfft(spectrum, white.size)[: white.size - 1]


def _drawn(signal: Signal, rng: np.random.Generator, amr: bool) -> Signal:
    return phone(signal, rng.standard_normal(len(signal) + 1), amr=amr)


@cache
def has_amr() -> bool:
    """Whether this process can encode and decode AMR."""
    if importlib.util.find_spec("av") is None:
        return False
    return {_ENCODER, _DECODER} <= set(importlib.import_module("av").codecs_available)


def through_amr(signal: NDArray[np.float32], bit_rate: int = 7400) -> NDArray[np.float32]:
    """As many samples at 8 kHz through the AMR codec of mobile telephony; clipped at full scale."""
    av: Any = importlib.import_module("av")
    encoder = av.CodecContext.create(_ENCODER, "w")
    encoder.sample_rate, encoder.layout, encoder.format = _PHONE_HZ, "mono", "s16"
    encoder.bit_rate = bit_rate
    padded = np.zeros(-(-signal.size // _FRAME) * _FRAME + 2 * _FRAME, np.int16)
    padded[: signal.size] = np.rint(signal.clip(-1, 1) * 32767)
    packets = []
    for samples in padded.reshape(-1, 1, _FRAME):
        sent = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        sent.sample_rate = _PHONE_HZ
        packets += encoder.encode(sent)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create(_DECODER, "r")
    decoded = [frame.to_ndarray().ravel() for p in packets for frame in decoder.decode(p)]
    received = np.concatenate([*decoded, np.zeros(signal.size, np.float32)])[: signal.size]
    return np.asarray(received, np.float32)


#: Behind speech, from the user's folder of noise (its subfolders are the kinds).
BACKGROUND = tuple(
    Perturbation(
        name=f"background_{name}",
        function=function,
        choices={"snr_db": (snr_db,)} | ({"voices": (4, 5, 6, 7)} if name == "babble" else {}),
        drawn=True,
        needs=kind,
    )
    for name, kind, function, snr_db in (
        ("white", "", _background_white, 20),
        ("babble", "speech", _babble, 20),
        ("ambience", "noise", _background, 20),
        ("music", "music", _background, 20),
        ("coughing", "coughing", _event, 10),
        ("sneezing", "sneezing", _event, 10),
    )
)
TILTS = tuple(
    Perturbation(name=name, function=tilt, choices={"db_per_octave": (slope,)})
    for name, slope in (("tilt_down", -3), ("tilt_up", 3))
)
#: Another position or room against a reference one, from the user's impulse responses.
ROOMS = tuple(
    Perturbation(name=name, function=_room, drawn=True, needs=name, against=against)
    for name, against in (
        ("position_reference", "clean"),
        ("position", "position_reference"),
        ("room_reference", "clean"),
        ("room", "room_reference"),
    )
)
PHONE = Perturbation(name="phone", function=_drawn, choices={"amr": (False,)}, drawn=True)
