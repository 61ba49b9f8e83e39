"""Log-mel spectrograms of batches: a clip's frames do not depend on the padding behind it.

The mel scale is Slaney's, with filters of equal area (librosa's default, which the published
networks of this family were trained on); torchaudio's default, HTK's scale with filters of equal
height, gives other numbers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from raysers.types import SAMPLE_RATE_HZ

#: Least power under the logarithm: nothing is below -100 dB.
_LEAST_POWER = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class MelSettings:
    """Shape of a log-mel spectrogram at 16 kHz; the window is also the length of the transform."""

    bands: int = 64
    window_samples: int = 512
    hop_samples: int = 160
    low_hz: float = 50.0
    high_hz: float = 8_000.0

    def __post_init__(self) -> None:
        """Raises ValueError: the numbers leave no spectrogram."""
        if min(self.bands, self.hop_samples, self.window_samples // 4) < 1:
            raise ValueError(f"no spectrogram has these settings: {self}")
        if not 0 <= self.low_hz < self.high_hz <= SAMPLE_RATE_HZ / 2:
            raise ValueError(f"mel bands need 0 <= low < high <= {SAMPLE_RATE_HZ / 2:.0f} Hz")

    def frames(self, lengths: Tensor) -> Tensor:
        """Frames of clips of `lengths` samples: one every hop, the first at sample 0."""
        return lengths // self.hop_samples + 1


def log_mel(padded: Tensor, lengths: Tensor, settings: MelSettings) -> Tensor:
    """float32 [clips, frames, bands] in dB re 1, at least -100.

    Frames are centred on their sample; each clip is mirrored at its own ends.

    Args:
        padded: float32 [clips, samples].
        lengths: int64 [clips] on the same device, each more than half a window.
        settings: what to compute. Frames behind `settings.frames(lengths)` mean nothing.
    """
    half = settings.window_samples // 2
    signal = functional.pad(padded, (0, half))
    signal = torch.cat((signal[:, 1 : half + 1].flip(1), signal), 1)
    steps = torch.arange(half, device=padded.device)
    last = lengths[:, None] + half  # where the clip ends in `signal`
    signal = signal.scatter(1, last + steps, signal.gather(1, last - 2 - steps))
    return mel_of_windows(signal, settings.hop_samples, settings)


def mel_of_windows(signal: Tensor, hop_samples: int, settings: MelSettings) -> Tensor:
    """float32 [clips, frames, bands] in dB of windows at 0, hop, 2 hop ... of [clips, samples]."""
    with torch.autocast(signal.device.type, enabled=False):
        window = torch.hann_window(settings.window_samples, device=signal.device)
        spectrum = torch.stft(
            signal.float(),
            settings.window_samples,
            hop_samples,
            window=window,
            center=False,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        filters = torch.as_tensor(mel_filters(settings), device=signal.device)
        return 10 * torch.log10((power.transpose(1, 2) @ filters).clamp_min(_LEAST_POWER))


@functools.lru_cache(maxsize=8)
def mel_filters(settings: MelSettings) -> npt.NDArray[np.float32]:
    """float32 [window // 2 + 1, bands]: triangles on Slaney's mel scale, each of the same area."""
    from transformers.audio_utils import mel_filter_bank

    filters: npt.NDArray[np.float32] = mel_filter_bank(
        num_frequency_bins=settings.window_samples // 2 + 1,
        num_mel_filters=settings.bands,
        min_frequency=settings.low_hz,
        max_frequency=settings.high_hz,
        sampling_rate=SAMPLE_RATE_HZ,
        norm="slaney",
        mel_scale="slaney",
        dtype=np.float32,
    )
    return filters
