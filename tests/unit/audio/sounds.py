"""Signals and encoded files for the audio tests."""

import io

import numpy as np
import soundfile as sf

#: (format, subtype, sample rate) of everything decoded here, with the parameters to write it.
FORMATS = [
    ("WAV", "PCM_16", 16000),
    ("WAV", "PCM_U8", 11025),
    ("WAVEX", "FLOAT", 44100),
    ("RF64", "PCM_24", 48000),
    ("W64", "PCM_16", 22050),
    ("WAV", "MS_ADPCM", 22050),
    ("WAV", "IMA_ADPCM", 16000),
    ("WAV", "ULAW", 8000),
    ("AIFF", "PCM_16", 44100),
    ("AIFF", "ULAW", 8000),
    ("AU", "PCM_16", 16000),
    ("CAF", "PCM_16", 32000),
    ("FLAC", "PCM_16", 16000),
    ("FLAC", "PCM_24", 96000),
    ("OGG", "VORBIS", 44100),
    ("OGG", "OPUS", 48000),
    ("MP3", "MPEG_LAYER_III", 44100),
    ("MP3", "MPEG_LAYER_III", 16000),
]


def noise(seconds: float, rate_hz: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise of uneven level, so that any two stretches of it differ in samples and in size."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((round(seconds * rate_hz), channels)).astype(np.float32)
    level = 0.05 + 0.1 * np.abs(np.sin(np.arange(len(signal)) / rate_hz))
    return (signal * level[:, None]).squeeze().astype(np.float32)


def encode(signal: np.ndarray, rate_hz: int, fmt: str, subtype: str, **settings: object) -> bytes:
    """`signal` as a file of this format."""
    file = io.BytesIO()
    channels = 1 if signal.ndim == 1 else signal.shape[1]
    with sf.SoundFile(
        file, "w", rate_hz, channels, format=fmt, subtype=subtype, **settings
    ) as sound:
        for start in range(0, len(signal), 16000):  # libsndfile's Vorbis writer crashes on more
            sound.write(signal[start : start + 16000])
    return file.getvalue()
