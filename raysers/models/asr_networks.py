"""Networks of recognisers: padded signals in, tokens out, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from raysers.errors import ConfigError
from raysers.models.backbones import WHISPER
from raysers.models.emotion import EmotionModel, EmotionNetwork
from raysers.types import SAMPLE_RATE_HZ

Floats = npt.NDArray[np.float32]

#: Samples of the shortest clip: one frame of Whisper's spectrogram. A tenth of a second, which is
#: shorter than any word, where the receptive field is not known.
_WHISPER_MIN_SAMPLES, _MIN_SAMPLES = 400, 1_600
#: What stands behind a shorter clip's tokens in a batch.
NO_TOKEN = -1.0


class CtcNetwork(EmotionModel):
    """A backbone of the emotion models and one linear layer to the alphabet.

    Padding reaches no statistic of it, group norm included; the stock forward pass of the base
    models gives other letters in a batch than alone.
    """

    def init_head(self) -> None:
        """The layer to the alphabet, as new."""
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size)

    @property
    def embedding_size(self) -> int:
        """Numbers of a frame."""
        return cast(int, self.config.hidden_size)

    def logits(self, padded: Tensor, lengths: Tensor) -> Tensor:
        """float32 [clips, frames, tokens]; behind a clip's own frames they mean nothing."""
        hidden, _ = self._hidden(padded, lengths)
        return cast(Tensor, self.lm_head(hidden.float()))

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `StockNetwork.forward`."""
        frames = self.geometry.frames(lengths).tolist()
        tokens = _likeliest(self.logits(padded, lengths))
        return _padded([row[:count] for row, count in zip(tokens, frames, strict=True)])


class StockNetwork(EmotionNetwork):
    """A stock network, its feature extractor, and rules of its search (None: CTC)."""

    def __init__(
        self, stock: Any, extractor: Any, rules: Any, *, detects: bool, times: bool
    ) -> None:
        super().__init__()
        self.stock, self.config = stock, stock.config
        self.rules, self._extractor = rules, extractor
        self._detects, self._times = detects, times
        self._whisper = self.config.model_type == WHISPER

    @property
    def embedding_size(self) -> int:
        """Of the language beside the tokens."""
        return 1

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip."""
        return _WHISPER_MIN_SAMPLES if self._whisper else _MIN_SAMPLES

    def forward(self, padded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of every clip, float32 [clips, tokens], and what else is known of them.

        That is the token of the language and, with `times`, where each token ends in seconds,
        [clips, 1] or [clips, 1 + tokens].

        Whole numbers, exact in float32; -1 behind a shorter text and where no language is detected,
        NaN where a logit is not finite. `padded` are 16 kHz clips of `lengths` samples.
        """
        signals = [row[:n] for row, n in zip(padded.cpu().numpy(), lengths.tolist(), strict=True)]
        # all of Whisper's windows are of one length, so they share a pass without padding
        at_once = len(signals) if self._whisper else 1
        starts = range(0, len(signals), at_once)
        parts = [self._tokens(signals[at : at + at_once]) for at in starts]
        tokens, others = ([row for part in parts for row in part[which]] for which in (0, 1))
        return _padded(tokens)[0], _padded(others)[0]

    def _tokens(self, signals: Sequence[Floats]) -> tuple[Tensor, Tensor]:
        lengths = {"return_attention_mask": True} if self._times and self._whisper else {}
        features = self._extractor(
            signals, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", **lengths
        )
        if self._whisper and not lengths:
            features["attention_mask"] = torch.ones_like(features.input_features[:, 0]).long()
        features = features.to(self.stock.device, self.stock.dtype)
        language = torch.full((len(signals), 1), NO_TOKEN)
        if self.rules is None:
            return _likeliest(self.stock(**features).logits.float()), language
        how: dict[str, Any] = {"generation_config": self.rules}
        if self._detects:
            found = self.stock.detect_language(features["input_features"], **how).flatten()
            names = {number: token for token, number in self.rules.lang_to_id.items()}
            how["language"] = [names[number] for number in found.tolist()]
            language = found.float().cpu()[:, None]
        if self._times:
            found = self.stock.generate(**features, **how, return_token_timestamps=True)
            times = found["token_timestamps"].float().cpu()
            return found["sequences"].float(), torch.cat([language, times], dim=1)
        return cast(Tensor, self.stock.generate(**features, **how)).float(), language

    def cast(self, dtype: torch.dtype) -> None:
        """Let the network compute in `dtype`."""
        self.stock.to(dtype)

    def freeze(self, part: str) -> None:
        """Raises ConfigError: recognisers are not trained."""
        raise ConfigError(f"--freeze {part}: a recogniser is not trained here")

    def gradient_checkpointing(self, on: bool) -> None:
        """Nothing to do: recognisers are not trained."""


def _likeliest(logits: Tensor) -> Tensor:
    """Tokens [..., frames] of logits [..., frames, tokens]; NaN where the best is not finite."""
    best = logits.max(dim=-1)
    return best.indices.float().masked_fill(~best.values.isfinite(), torch.nan)


def _padded(tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
    counts = torch.tensor([[float(len(row))] for row in tokens])
    return pad_sequence(tokens, batch_first=True, padding_value=NO_TOKEN), counts
