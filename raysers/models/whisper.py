"""Log-mel spectrograms, and the Whisper family: the encoder of a checkpoint and the emotion head.

Unlike the stock encoder, which takes windows of exactly 30 s, this one runs at a clip's own length:
log-mel frames of the clip alone and the first positions. On a clip of 30 s both are the same.

The mel scale is Slaney's, with filters of equal area (librosa's default); torchaudio's default,
HTK's scale with filters of equal height, gives other numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from raysers.models.emotion import EmotionModel
from raysers.models.frontend import augment_hidden, conv_over_frames, valid
from raysers.types import SAMPLE_RATE_HZ


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

    Frames are centred on their sample, from 0 on; each clip, longer than half a window, is mirrored
    at its own ends. Frames behind `settings.frames(lengths)` mean nothing.
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
        if torch.onnx.is_in_onnx_export():
            power = _power_by_convolution(signal, hop_samples, window)
        else:
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
        return 10 * torch.log10((power.transpose(1, 2) @ filters).clamp_min(1e-10))


def _power_by_convolution(signal: Tensor, hop_samples: int, window: Tensor) -> Tensor:
    """[clips, bins, frames] power spectrum without complex numbers, which ONNX has none of."""
    samples = len(window)
    bins = torch.arange(samples // 2 + 1, dtype=torch.float64)[:, None]
    turns = bins * torch.arange(samples) % samples / samples
    kernels = torch.cat([torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)])
    kernels = (kernels * window)[:, None].float()
    real, imaginary = functional.conv1d(signal[:, None], kernels, stride=hop_samples).chunk(2, 1)
    return real.square() + imaginary.square()


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


#: Of the 16 kHz spectrogram that every Whisper is trained on.
_WINDOW_SAMPLES, _HOP_SAMPLES = 400, 160
#: How far below a clip's loudest value its spectrogram reaches, in dB.
_RANGE_DB = 80.0
#: Spectral frames per position, the stride of the second convolution.
_STRIDE = 2


class WhisperEmotionModel(EmotionModel):
    """Speech to arousal, dominance, valence on a Whisper encoder.

    Clips go in as they are (`do_normalize` false). Three keys of the configuration, none of which a
    stock checkpoint has, change the network:

    - `trim_db`: frames around the speech, this far below the loudest one, are left out;
    - `peak_level`: the spectrogram's largest value is moved here, so that levels change nothing;
    - `final_norm` false: no layer norm after the last layer, whose weights fit the full depth.
    """

    def _stock_backbone(self) -> nn.Module:
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        config = self.config
        # keys of the head, which Whisper's own configuration does not have
        config.final_dropout = getattr(config, "final_dropout", 0.0)
        config.initializer_range = config.init_std
        self._layerdrop: float = config.encoder_layerdrop
        self._final_norm: bool = getattr(config, "final_norm", True)
        self._trim_db: float | None = getattr(config, "trim_db", None)
        self._peak_level: float | None = getattr(config, "peak_level", None)
        self._mel = MelSettings(
            bands=config.num_mel_bins,
            window_samples=_WINDOW_SAMPLES,
            hop_samples=_HOP_SAMPLES,
            low_hz=0.0,
            high_hz=SAMPLE_RATE_HZ / 2,
        )
        return cast(nn.Module, WhisperEncoder(config))

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip: one window of the spectrogram."""
        return _WINDOW_SAMPLES

    @property
    def max_samples(self) -> int:
        """Samples of the longest clip: as many frames as there are positions, 30 s as published."""
        frames = _STRIDE * int(self.config.max_source_positions)
        return (frames + 1) * _HOP_SAMPLES - 1

    @property
    def preprocessing(self) -> dict[str, Any]:
        """As the published feature extractor is described."""
        frames = _STRIDE * int(self.config.max_source_positions)
        return {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": self._mel.bands,
            "n_fft": _WINDOW_SAMPLES,
            "hop_length": _HOP_SAMPLES,
            "chunk_length": frames * _HOP_SAMPLES // SAMPLE_RATE_HZ,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
        }

    def backbone_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's tensors of a whole Whisper checkpoint, under `encoder.`."""
        bare = {key.removeprefix("model."): value for key, value in tensors.items()}
        return {k: v for k, v in bare.items() if not k.startswith(("decoder.", "proj_out."))}

    @property
    def _front(self) -> tuple[nn.Module, ...]:
        return (self.backbone.conv1, self.backbone.conv2)

    @property
    def _layers(self) -> Any:
        return self.backbone.layers

    def _idle_parameters(self) -> Iterator[nn.Parameter]:
        yield self.backbone.embed_positions.weight  # sinusoids, fixed in the stock network too

    def _hidden(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        encoder = self.backbone
        counts = lengths // _HOP_SAMPLES
        with torch.no_grad():
            inside = valid(counts, padded.shape[1] // _HOP_SAMPLES)[..., None].to(padded.device)
            mel = self._spectrogram(padded, lengths.to(padded.device), inside)
            if self._trim_db is not None:
                mel, counts = _trimmed(mel, inside, self._trim_db)
                inside = valid(counts, mel.shape[1])[..., None].to(padded.device)
                mel = mel.masked_fill(~inside, 0.0)
        if encoder.training:
            mel = augment_hidden(mel, counts.tolist(), encoder)
        hidden = functional.gelu(
            conv_over_frames(encoder.conv1, mel.to(encoder.conv1.weight.dtype))
        )
        # behind a clip's end the second convolution finds zeros, as behind a single file's
        hidden = functional.gelu(conv_over_frames(encoder.conv2, hidden.masked_fill(~inside, 0.0)))
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        hidden = functional.dropout(hidden, encoder.dropout, encoder.training)
        frames = (counts + 1) // _STRIDE
        # without padding there is no mask, which is what lets attention take its fastest kernel
        ragged = bool((frames < hidden.shape[1]).any())
        mask = valid(frames, hidden.shape[1]).to(hidden.device) if ragged else None
        keys = None if mask is None else mask[:, None, None, :]
        norm = encoder.layer_norm if self._final_norm else None
        return self._through_layers(hidden, keys, norm), mask

    def _spectrogram(self, padded: Tensor, lengths: Tensor, inside: Tensor) -> Tensor:
        """float32 [clips, frames, bands], zero where `inside` [clips, frames, 1] is False.

        As published, of each clip alone: log10 of the power, at most 8 below the clip's largest
        value, then (x + 4) / 4; the last frame is left out.
        """
        mel_db = log_mel(padded, lengths, self._mel)[:, :-1]
        peak_db = mel_db.masked_fill(~inside, -torch.inf).amax((1, 2), keepdim=True)
        mel = (torch.maximum(mel_db, peak_db - _RANGE_DB) / 10 + 4) / 4
        if self._peak_level is not None:
            mel = mel - (peak_db / 10 + 4) / 4 + self._peak_level
        return mel.masked_fill(~inside, 0.0)


def _trimmed(mel: Tensor, inside: Tensor, trim_db: float) -> tuple[Tensor, Tensor]:
    """`mel` from each clip's first to last frame within `trim_db` of its loudest; frames [clips].

    What lies behind a clip's frames, also in what is returned, means nothing.
    """
    power_db = 10 * torch.logsumexp((4 * mel - 4) * math.log(10), 2) / math.log(10)
    power_db = power_db.masked_fill(~inside[..., 0], -torch.inf)
    loud = (power_db >= power_db.amax(1, keepdim=True) - trim_db).long()
    first = loud.argmax(1)
    counts = loud.shape[1] - loud.flip(1).argmax(1) - first
    frames = first[:, None] + torch.arange(cast(int, counts.max()), device=mel.device)
    frames = frames.clamp_max(mel.shape[1] - 1)[..., None].expand(-1, -1, mel.shape[2])
    return mel.gather(1, frames), counts.cpu()
