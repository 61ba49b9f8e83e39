"""The Whisper family: the encoder of a Whisper checkpoint, pooling and the emotion head.

Unlike the stock encoder, which takes windows of exactly 30 s, this one runs at a clip's own length:
log-mel frames of the clip alone and the first positions, nothing padded to 30 s. On a clip of 30 s
both are the same network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from raysers.models.emotion import EmotionModel
from raysers.models.frontend import MelSettings, conv_over_frames, log_mel
from raysers.models.masking import augment_hidden, valid
from raysers.types import SAMPLE_RATE_HZ

#: Of the 16 kHz spectrogram that every Whisper is trained on.
_WINDOW_SAMPLES, _HOP_SAMPLES = 400, 160

#: How far below a clip's loudest value its spectrogram reaches, in dB.
_RANGE_DB = 80.0

#: Spectral frames per position, the stride of the second convolution.
_STRIDE = 2


class WhisperEmotionModel(EmotionModel):
    """Speech to arousal, dominance, valence on a Whisper encoder.

    Clips go in as they are (`do_normalize` false), as in the published preprocessing. Three keys of
    the configuration, none of which a stock checkpoint has, change the network:

    - `trim_db`: frames before and after the speech, more than this below the loudest frame, are
      left out, so that silence around a clip changes nothing;
    - `peak_level`: the spectrogram is moved so that its largest value is this, so that the level of
      a recording changes nothing;
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

        As the published feature extractor computes it of each clip alone: log10 of the power, at
        most 8 below the clip's largest value, then (x + 4) / 4; the last frame is left out.
        """
        mel_db = log_mel(padded, lengths, self._mel)[:, :-1]
        peak_db = mel_db.masked_fill(~inside, -torch.inf).amax((1, 2), keepdim=True)
        mel = (torch.maximum(mel_db, peak_db - _RANGE_DB) / 10 + 4) / 4
        if self._peak_level is not None:
            mel = mel - (peak_db / 10 + 4) / 4 + self._peak_level
        return mel.masked_fill(~inside, 0.0)


def _trimmed(mel: Tensor, inside: Tensor, trim_db: float) -> tuple[Tensor, Tensor]:
    """`mel` from each clip's first to its last frame within `trim_db` of its loudest.

    Args:
        mel: float32 [clips, frames, bands], as `_spectrogram` gives it.
        inside: bool [clips, frames, 1], False behind a clip's end.
        trim_db: how far below the loudest frame the speech reaches.

    Returns:
        [clips, longest, bands], of which what lies behind a clip's frames means nothing, and
        int64 [clips] on the CPU, the frames that are left.
    """
    power_db = 10 * torch.logsumexp((4 * mel - 4) * math.log(10), 2) / math.log(10)
    power_db = power_db.masked_fill(~inside[..., 0], -torch.inf)
    loud = (power_db >= power_db.amax(1, keepdim=True) - trim_db).long()
    first = loud.argmax(1)
    counts = loud.shape[1] - loud.flip(1).argmax(1) - first
    frames = first[:, None] + torch.arange(cast(int, counts.max()), device=mel.device)
    frames = frames.clamp_max(mel.shape[1] - 1)[..., None].expand(-1, -1, mel.shape[2])
    return mel.gather(1, frames), counts.cpu()
